//! Bytes that anyone may have written: what is read is written as the same bytes' meaning, and whoever holds the lease is
//! one worker.
#![no_main]

use idleguard::learner::Learner;
use idleguard::shared::{self, Claim};
use idleguard::time::Timestamp;
use libfuzzer_sys::fuzz_target;

/// The checksum that makes any content sound, so that the fuzzer gets behind it.
fn sealed(content: &[u8]) -> Vec<u8> {
    let sum = content
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    [content, &sum.to_le_bytes()].concat()
}

fuzz_target!(|data: &[u8]| {
    let now = Timestamp::from_millis(1_000_000);
    for bytes in [data.to_vec(), sealed(data), sealed(&[b"ig-know1", data].concat()), sealed(&[b"ig-prob1", data].concat())] {
        if let Some(learner) = shared::decode(&bytes) {
            let again = shared::encode(&learner);
            assert_eq!(shared::decode(&again), Some(learner.clone()));
            let mut merged = Learner::default();
            merged.merge(&learner, now);
            let before = merged.clone();
            merged.merge(&learner, now);
            assert_eq!(merged, before);
        }
        let (one, other) = (shared::claim(&bytes, 1, now), shared::claim(&bytes, 2, now));
        assert!(!(one == Claim::Held && other == Claim::Held));
        if let Claim::Write(lease) = one {
            assert_eq!(shared::claim(&lease, 1, now), Claim::Held);
            assert_eq!(shared::claim(&lease, 2, now), Claim::Taken);
        }
    }
});

//! Any events in any order: the learner neither panics nor forgets its bounds, a success refutes at once, and more of the
//! same says nothing new.
#![no_main]

use std::time::Duration;

use idleguard::learner::{Belief, Evidence, LOWEST_LIMIT, Learner, Rules, SHORTEST_AGE};
use idleguard::policy::Margin;
use idleguard::shared;
use idleguard::time::Timestamp;
use libfuzzer_sys::fuzz_target;

fn evidence(kind: u8, age: Duration, connection_age: Duration) -> Evidence {
    match kind % 6 {
        0 => Evidence::Closed { age, connection_age, is_sentinel: false },
        1 => Evidence::Closed { age, connection_age, is_sentinel: true },
        2 => Evidence::Failed { age },
        3 => Evidence::Succeeded { age },
        4 => Evidence::ProbeSurvived { gap: age },
        _ => Evidence::ProbeFailed { gap: age },
    }
}

fuzz_target!(|data: &[u8]| {
    let rules = Rules { initial_limit: Duration::from_secs(4), margin: Margin::Share(0.1) };
    let mut workers = [Learner::default(), Learner::default()];
    let mut now = Timestamp::from_millis(1_000);
    for event in data.chunks_exact(8) {
        now = now.after(Duration::from_millis(u64::from(event[1]) * u64::from(event[2])));
        let age = Duration::from_millis(u64::from(u16::from_le_bytes([event[3], event[4]])) << (event[5] % 8));
        let connection_age = age + Duration::from_millis(u64::from(event[6]) << (event[7] % 16));
        let worker = &mut workers[usize::from(event[0] >> 7)];
        worker.observe(evidence(event[0] & 0x7f, age, connection_age), now);

        let verdict = worker.verdict(&rules, now);
        assert!(verdict.limit >= LOWEST_LIMIT);
        if let Belief::About { timeout, .. } = verdict.belief {
            assert!(verdict.limit <= timeout);
        }
        let bytes = shared::encode(worker);
        assert!(bytes.len() < 3_000);
        assert_eq!(shared::decode(&bytes).as_ref(), Some(&*worker));
    }
    let [one, other] = &mut workers;
    one.merge(other, now);
    other.merge(one, now);
    assert_eq!(one, other);
    let before = one.clone();
    one.merge(other, now);
    assert_eq!(*one, before);

    let later = now.after(Duration::from_secs(1));
    let age = one.verdict(&rules, later).belief.timeout() * 2 + SHORTEST_AGE;
    one.observe(Evidence::ProbeSurvived { gap: age }, later);
    let belief = one.verdict(&rules, later).belief;
    assert!(belief.timeout() + belief.timeout() / 10 + Duration::from_millis(50) >= age, "{belief:?} but {age:?} survived");
});

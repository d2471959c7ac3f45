//! Whose turn it is: one worker of an Envoy scouts a destination, by a lease in the shared data.
//!
//! It is taken and renewed by compare-and-swap, and runs out with its holder. A worker that stalls for longer than
//! [`LEASE_TIME`] may find it taken; it asks before each request, so it sends none beside its successor's.

use std::time::Duration;

use crate::time::Timestamp;

/// Changes whenever the bytes or their meaning do.
const VERSION: u64 = u64::from_le_bytes(*b"ig-turn1");

/// How long a lease lasts. Its holder renews it in its ticks, so this is how long nobody scouts when a worker is gone.
pub const LEASE_TIME: Duration = Duration::from_secs(5);

/// What a worker may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is its turn, and stays so for a while.
    Held,
    /// It is its turn once these bytes are written, by compare-and-swap.
    Write(Vec<u8>),
    /// Another worker's turn.
    Taken,
}

/// Asks for the lease. `current` is the value in the shared data, `worker` a random number that is this worker's name.
pub fn claim(current: &[u8], worker: u64, now: Timestamp) -> Claim {
    if let Some((holder, until)) = read(current) {
        // An end that is further away than any lease lasts was written with another clock.
        let is_valid = until > now && until.since(now) <= LEASE_TIME;
        if is_valid && holder != worker {
            return Claim::Taken;
        }
        if is_valid && until.since(now).saturating_mul(2) > LEASE_TIME {
            return Claim::Held;
        }
    }
    Claim::Write(write(worker, now.after(LEASE_TIME)))
}

/// What its holder writes, by compare-and-swap, to give it up; `None` if it isn't its own.
pub fn release(current: &[u8], worker: u64) -> Option<Vec<u8>> {
    read(current).filter(|(holder, _)| *holder == worker).map(|_| write(worker, Timestamp::default()))
}

fn read(bytes: &[u8]) -> Option<(u64, Timestamp)> {
    let (numbers, rest) = bytes.as_chunks::<8>();
    let ([version, holder, until], []) = (numbers, rest) else { return None };
    let number = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    (number(version) == VERSION).then(|| (number(holder), Timestamp::from_nanos(number(until))))
}

fn write(worker: u64, until: Timestamp) -> Vec<u8> {
    [VERSION, worker, until.as_nanos()].iter().flat_map(|number| number.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_at_a_time_scouts_and_another_follows_when_it_is_gone() {
        let now = Timestamp::from_millis(1_000);
        let Claim::Write(lease) = claim(&[], 1, now) else { panic!("nobody has it") };
        assert_eq!(claim(&lease, 1, now), Claim::Held);
        assert_eq!(claim(&lease, 2, now), Claim::Taken);
        assert!(matches!(claim(&lease, 1, now.after(LEASE_TIME / 2)), Claim::Write(_)));
        assert!(matches!(claim(&lease, 2, now.after(LEASE_TIME)), Claim::Write(_)));
        assert!(matches!(claim(b"garbage", 2, now), Claim::Write(_)));
        assert!(matches!(claim(&lease, 2, Timestamp::from_nanos(0)), Claim::Write(_)), "written with another clock");
    }

    #[test]
    fn a_turn_that_is_given_up_is_free_at_once() {
        let now = Timestamp::from_millis(1_000);
        let Claim::Write(lease) = claim(&[], 1, now) else { panic!("nobody has it") };
        assert_eq!(release(&lease, 2), None);
        let released = release(&lease, 1).unwrap();
        assert!(matches!(claim(&released, 2, now), Claim::Write(_)));
    }
}

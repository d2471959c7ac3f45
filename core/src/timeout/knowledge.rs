//! What users' requests have said so far, for all workers: a pair of failures lowers the idle limit for a while, an answer at such an
//! age ends that.
//!
//! One failure can be anything: a crash, a restart, a client that got a request dropped. Two, on two connections, within ten minutes
//! and without an answer at such an age in between, are worth a reconnect for each connection in use, which is all that a shorter lane
//! costs. When the time is up nobody is sent back to the longer lane to find out: one connection is ([`look`](super::look)).

use std::time::Duration;

use super::evidence::{Evidence, Outcome, SHORTEST_AGE};
use crate::time::{Timestamp, nanos};

/// Two failures further apart than this have nothing to do with each other.
const TOGETHER: Duration = Duration::from_secs(600);

/// How long the first pair of failures counts; each further one counts for twice as long as the one before.
const FIRST_HOLD: Duration = Duration::from_secs(600);

/// How long a pair of failures counts at most.
const LONGEST_HOLD: Duration = Duration::from_secs(24 * 3600);

/// Changes whenever the bytes or their meaning do.
const VERSION: u64 = u64::from_le_bytes(*b"ig-req-2");

/// What users' requests have said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Knowledge {
    /// The latest failure.
    failure: Option<Failure>,
    /// The longest idle age that was answered since that failure was sent.
    answered: Duration,
    /// What a pair of failures said.
    hold: Option<Hold>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Failure {
    sent: Timestamp,
    idle_age: Duration,
    connection: u64,
}

/// What two failures say: the far end's timeout is not above an idle age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// The smaller of the two idle ages.
    pub idle_age: Duration,
    /// When the second failure became known.
    pub since: Timestamp,
    /// For how long it counts without being asked again.
    pub length: Duration,
    /// Until then one worker looks whether it still holds. In the past: nobody does.
    pub looking_until: Timestamp,
}

impl Hold {
    /// Whether it may be looked at again.
    pub fn is_due(&self, now: Timestamp) -> bool {
        now >= self.since.after(self.length)
    }

    /// It is as it was, or shorter: it counts for twice as long from now on.
    fn renewed(self, idle_age: Duration, now: Timestamp) -> Self {
        let length = self.length.saturating_mul(2).min(LONGEST_HOLD);
        Self { idle_age, since: now, length, looking_until: Timestamp::default() }
    }
}

impl Knowledge {
    /// Takes in what a request has told. `now` is when it became known.
    pub fn learn(&mut self, evidence: &Evidence, now: Timestamp) {
        if evidence.idle_age < SHORTEST_AGE {
            return;
        }
        match evidence.outcome {
            Outcome::Answered => self.on_answered(evidence),
            Outcome::Failed { connection } => self.on_failed(evidence, connection, now),
        }
    }

    /// Whether an answer at this age, of a request sent then, would change anything: most don't, and need not be shared.
    pub fn is_news(&self, evidence: &Evidence) -> bool {
        let mut after = *self;
        after.learn(evidence, evidence.sent);
        after != *self
    }

    fn on_answered(&mut self, evidence: &Evidence) {
        if self.hold.is_some_and(|hold| evidence.sent >= hold.since && evidence.idle_age >= hold.idle_age) {
            *self = Self::default();
        } else if self.failure.is_some_and(|failure| evidence.sent >= failure.sent) {
            self.answered = self.answered.max(evidence.idle_age);
        }
    }

    fn on_failed(&mut self, evidence: &Evidence, connection: u64, now: Timestamp) {
        let Evidence { sent, idle_age, .. } = *evidence;
        // What has been idle for longer than a hold allows is known to fail: only a look, after the hold, says something new.
        if let Some(hold) = self.hold
            && idle_age >= hold.idle_age
        {
            if sent >= hold.since.after(hold.length) {
                self.hold = Some(hold.renewed(hold.idle_age, now));
            }
            return;
        }
        let together = self.failure.filter(|first| {
            let apart = sent.since(first.sent).max(first.sent.since(sent));
            apart <= TOGETHER && first.connection != connection && self.answered < first.idle_age.min(idle_age)
        });
        if let Some(first) = together {
            let idle_age = first.idle_age.min(idle_age);
            self.hold = Some(match self.hold {
                Some(hold) => hold.renewed(idle_age, now),
                None => Hold { idle_age, since: now, length: FIRST_HOLD, looking_until: Timestamp::default() },
            });
        }
        self.failure = Some(Failure { sent, idle_age, connection });
        self.answered = Duration::ZERO;
    }

    /// The request that was to tell whether the hold still holds was not answered. Its idle age may be unknown, because others were under
    /// way beside it; the hold is not looked at again so soon for that, since each look may cost a request.
    pub fn on_look_failed(&mut self, now: Timestamp) {
        if let Some(hold) = self.hold.filter(|hold| hold.is_due(now)) {
            self.hold = Some(hold.renewed(hold.idle_age, now));
        }
    }

    /// What a pair of failures says, as long as nothing has ended it.
    pub fn hold(&self) -> Option<Hold> {
        self.hold
    }

    /// When the request was sent that failed last.
    pub fn last_failure(&self) -> Option<Timestamp> {
        self.failure.map(|failure| failure.sent)
    }

    /// Somebody measured the timeout after the hold began, and found a longer one.
    pub fn is_outdated_by(&self, measured_at: Timestamp) -> bool {
        self.hold.is_some_and(|hold| measured_at > hold.since)
    }

    /// Reserves the look at a hold that is due for the worker that asks. False if somebody else has it.
    pub fn claim_look(&mut self, until: Timestamp, now: Timestamp) -> bool {
        match &mut self.hold {
            Some(hold) if hold.is_due(now) && hold.looking_until <= now => {
                hold.looking_until = until;
                true
            }
            _ => false,
        }
    }

    /// Holds the reserved look for longer.
    pub fn keep_look(&mut self, until: Timestamp) {
        if let Some(hold) = &mut self.hold {
            hold.looking_until = until;
        }
    }

    /// As bytes for what workers share.
    pub fn encode(&self) -> Vec<u8> {
        let (failure, hold) = (self.failure.unwrap_or_default(), self.hold.unwrap_or_default());
        [
            VERSION,
            failure.sent.as_nanos(),
            nanos(failure.idle_age),
            failure.connection,
            nanos(self.answered),
            nanos(hold.idle_age),
            hold.since.as_nanos(),
            nanos(hold.length),
            hold.looking_until.as_nanos(),
        ]
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
    }

    /// What the bytes say; `None` if another version wrote them, or nobody.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (numbers, rest) = bytes.as_chunks::<8>();
        let numbers: Vec<u64> = numbers.iter().map(|number| u64::from_le_bytes(*number)).collect();
        let [VERSION, sent, failed, connection, answered, held, since, length, looking] = numbers.as_slice() else {
            return None;
        };
        let some = |age: &u64| (*age > 0).then(|| Duration::from_nanos(*age));
        rest.is_empty().then(|| Self {
            failure: some(failed).map(|idle_age| Failure {
                sent: Timestamp::from_nanos(*sent),
                idle_age,
                connection: *connection,
            }),
            answered: Duration::from_nanos(*answered),
            hold: some(held).map(|idle_age| Hold {
                idle_age,
                since: Timestamp::from_nanos(*since),
                length: Duration::from_nanos(*length),
                looking_until: Timestamp::from_nanos(*looking),
            }),
        })
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "a test that panics fails")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    /// A request at this second, at this idle age in milliseconds.
    fn failed(second: u64, age: u64, connection: u64) -> Evidence {
        Evidence { sent: at(second), idle_age: Duration::from_millis(age), outcome: Outcome::Failed { connection } }
    }

    fn answered(second: u64, age: u64) -> Evidence {
        Evidence { sent: at(second), idle_age: Duration::from_millis(age), outcome: Outcome::Answered }
    }

    fn after(seen: &[Evidence]) -> Knowledge {
        let mut knowledge = Knowledge::default();
        for evidence in seen {
            knowledge.learn(evidence, evidence.sent);
        }
        knowledge
    }

    /// The idle age of the hold in milliseconds and its length in minutes.
    fn hold(seen: &[Evidence]) -> Option<(u128, u64)> {
        after(seen).hold().map(|hold| (hold.idle_age.as_millis(), hold.length.as_secs() / 60))
    }

    #[test]
    fn two_failures_on_two_connections_within_ten_minutes_count_and_the_smaller_age_counts() {
        for (seen, expected) in [
            (vec![failed(0, 3_000, 1)], None),
            (vec![failed(0, 3_000, 1), failed(1, 2_500, 2)], Some((2_500, 10))),
            (vec![failed(0, 2_500, 1), failed(600, 3_000, 2)], Some((2_500, 10))),
            (vec![failed(0, 3_000, 1), failed(601, 3_000, 2)], None),
            (vec![failed(0, 3_000, 1), failed(1, 3_000, 1)], None),
            (vec![failed(0, 499, 1), failed(1, 3_000, 2)], None),
            (vec![failed(0, 499, 1), failed(1, 499, 2)], None),
        ] {
            assert_eq!(hold(&seen), expected, "{seen:?}");
        }
    }

    #[test]
    fn an_answer_in_between_at_the_smaller_age_or_above_parts_them() {
        for (seen, expected) in [
            (vec![failed(0, 3_000, 1), answered(1, 2_500), failed(2, 2_500, 2)], None),
            (vec![failed(0, 3_000, 1), answered(1, 9_000), failed(2, 2_500, 2)], None),
            (vec![failed(0, 3_000, 1), answered(1, 2_499), failed(2, 2_500, 2)], Some((2_500, 10))),
            (vec![answered(0, 9_000), failed(1, 3_000, 1), failed(2, 2_500, 2)], Some((2_500, 10))),
            (vec![failed(1, 3_000, 1), answered(0, 9_000), failed(2, 2_500, 2)], Some((2_500, 10))),
        ] {
            assert_eq!(hold(&seen), expected, "{seen:?}");
        }
    }

    #[test]
    fn an_answer_afterwards_at_such_an_age_ends_it() {
        let pair = [failed(0, 3_000, 1), failed(1, 2_500, 2)];
        for (answer, expected) in [
            (answered(2, 2_500), None),
            (answered(2, 60_000), None),
            (answered(2, 2_499), Some((2_500, 10))),
            (answered(0, 60_000), Some((2_500, 10))), // sent before: the far end may have changed since
        ] {
            assert_eq!(hold(&[pair[0], pair[1], answer]), expected, "{answer:?}");
        }
    }

    #[test]
    fn what_fails_within_a_hold_is_known_and_what_fails_after_it_doubles_it() {
        let mut seen = vec![failed(0, 3_000, 1), failed(1, 3_000, 2)];
        seen.push(failed(2, 3_000, 3));
        assert_eq!(hold(&seen), Some((3_000, 10)), "on its way when the lane changed");
        seen.push(failed(601, 3_500, 4));
        assert_eq!(hold(&seen), Some((3_000, 20)), "one look");
        seen.push(failed(1_801, 3_500, 5));
        assert_eq!(hold(&seen), Some((3_000, 40)));
        for (look, second) in (0_u64..20).map(|look| (look, 10_000_000 + look * 1_000_000)) {
            seen.push(failed(second, 3_000, 10 + look));
        }
        assert_eq!(hold(&seen), Some((3_000, 24 * 60)), "a day at most");
    }

    #[test]
    fn a_look_without_an_answer_doubles_what_is_due_and_nothing_else() {
        let mut knowledge = after(&[failed(0, 3_000, 1), failed(1, 3_000, 2)]);
        let before = knowledge;
        knowledge.on_look_failed(at(600));
        assert_eq!(knowledge, before);
        knowledge.on_look_failed(at(601));
        let hold = knowledge.hold().unwrap();
        assert_eq!((hold.idle_age.as_secs(), hold.since, hold.length.as_secs()), (3, at(601), 1_200));
        knowledge.on_look_failed(at(602));
        assert_eq!(knowledge.hold(), Some(hold));
    }

    #[test]
    fn a_shorter_pair_within_a_hold_shortens_it() {
        let mut seen = vec![failed(0, 3_000, 1), failed(1, 3_000, 2), failed(2, 800, 3)];
        assert_eq!(hold(&seen), Some((800, 20)), "with the failure before, which is at least as old");
        seen.push(answered(3, 2_999));
        assert_eq!(hold(&seen), None);
    }

    #[test]
    fn one_worker_looks_at_a_hold_that_is_due() {
        let mut knowledge = after(&[failed(0, 3_000, 1), failed(1, 3_000, 2)]);
        assert!(!knowledge.claim_look(at(700), at(600)), "not yet");
        assert!(knowledge.claim_look(at(700), at(601)));
        assert!(!knowledge.claim_look(at(800), at(699)), "taken");
        assert!(knowledge.claim_look(at(800), at(700)), "its time is up");
        assert!(!Knowledge::default().claim_look(at(700), at(601)));
    }

    fn evidence() -> impl Strategy<Value = Evidence> {
        (0_u64..5_000, 0_u64..10_000, prop_oneof![Just(None), (0_u64..4).prop_map(Some)]).prop_map(
            |(second, age, failure)| match failure {
                Some(connection) => failed(second, age, connection),
                None => answered(second, age),
            },
        )
    }

    proptest! {
        #[test]
        fn a_failure_never_lengthens_what_is_allowed(seen in prop::collection::vec(evidence(), 0..20), age in 0_u64..10_000) {
            let before = after(&seen).hold().map_or(Duration::MAX, |hold| hold.idle_age);
            let last = seen.iter().map(|evidence| evidence.sent).max().unwrap_or_default();
            let mut knowledge = after(&seen);
            knowledge.learn(&failed(5_001, age, 9), last);
            let now = knowledge.hold().map_or(Duration::MAX, |hold| hold.idle_age);
            prop_assert!(now <= before);
        }

        #[test]
        fn what_is_written_is_read(seen in prop::collection::vec(evidence(), 0..20)) {
            let knowledge = after(&seen);
            prop_assert_eq!(Knowledge::decode(&knowledge.encode()), Some(knowledge));
        }

        #[test]
        fn bytes_of_anybody_are_no_knowledge(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(Knowledge::decode(&bytes), None);
        }
    }
}

//! How long is idle too long, and which lane follows?
//!
//! Time and evidence in, a lane out. What the operator told, what a scout measured and what users' requests said make an
//! [`IdleLimit`]; the limit asks for a lane, which [`Lanes`] follows. [`Knowledge`] is what workers share; the rest is each worker's
//! own and comes out the same on all of them.
//!
//! ```
//! use std::time::Duration;
//! use idleguard_core::{config::Section, time::Timestamp, timeout::{Policy, Timeout}};
//!
//! let section = serde_json::json!({"lb_idle_timeout": "60s", "lanes": {"payments-54s": "54s", "payments-4s": "4s"}});
//! let policy = Policy::from_section("payments", Section::try_new("destinations.payments", section)?)?;
//! let timeout = Timeout::new(policy);
//! assert_eq!(timeout.policy().token_of(timeout.lane()), Some("payments=54s"));
//! # Ok::<(), idleguard_core::config::ConfigError>(())
//! ```

pub mod evidence;
pub mod finding;
pub mod knowledge;
pub mod lanes;
pub mod limit;
pub mod look;
pub mod policy;
pub mod scout;

use std::time::Duration;

pub use evidence::{Evidence, Outcome, SHORTEST_AGE};
pub use finding::Finding;
pub use knowledge::Knowledge;
pub use lanes::{LaneId, Lanes};
pub use limit::{IdleLimit, Measured, Reason};
pub use look::Look;
pub use policy::{Lane, LbIdleTimeout, Margin, Policy};
pub use scout::Scout;

use crate::time::Timestamp;

/// A worker that looks at a hold asks for this much time again and again; one that has ended is followed by another then.
pub const LOOK_LEASE: Duration = Duration::from_secs(60);

/// One destination, as one worker knows it.
#[derive(Clone, Debug)]
pub struct Timeout {
    policy: Policy,
    knowledge: Knowledge,
    measured: Option<Measured>,
    limit: IdleLimit,
    lanes: Lanes,
    /// While it is this worker's to look at the hold.
    look: Option<Look>,
}

/// Which way a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// To this lane.
    pub lane: LaneId,
    /// It takes part in a look.
    pub looks: bool,
}

impl Timeout {
    /// A destination of which nothing is known yet but what the operator said.
    pub fn new(policy: Policy) -> Self {
        let knowledge = Knowledge::default();
        let limit = IdleLimit::new(&policy, &knowledge, None);
        let lanes = Lanes::new(&policy, limit.limit);
        Self { policy, knowledge, measured: None, limit, lanes, look: None }
    }

    /// What the operator said.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The limit in force, and why.
    pub fn limit(&self) -> &IdleLimit {
        &self.limit
    }

    /// The lane in force.
    pub fn lane(&self) -> LaneId {
        self.lanes.in_force()
    }

    /// What requests have said, as far as this worker knows.
    pub fn knowledge(&self) -> &Knowledge {
        &self.knowledge
    }

    /// What a scout has found out, as far as this worker knows.
    pub fn measured(&self) -> Option<Measured> {
        self.measured
    }

    /// Whether there is a lane within the limit.
    pub fn is_safe(&self) -> bool {
        self.lanes.choose(&self.policy, self.limit.limit).is_safe
    }

    /// Takes over what workers share.
    pub fn adopt(&mut self, knowledge: Knowledge, measured: Option<Measured>) {
        self.knowledge = knowledge;
        self.measured = measured;
    }

    /// Starts with what is known already: no lane is in force yet that would have to be left.
    pub fn begin_with(&mut self, knowledge: Knowledge, measured: Option<Measured>) {
        self.adopt(knowledge, measured);
        self.limit = IdleLimit::new(&self.policy, &self.knowledge, self.measured.as_ref());
        self.lanes = Lanes::new(&self.policy, self.limit.limit);
    }

    /// Draws the conclusions. Returns whether the lane in force has changed.
    pub fn tick(&mut self, now: Timestamp) -> bool {
        self.limit = IdleLimit::new(&self.policy, &self.knowledge, self.measured.as_ref());
        if !self.wants_look(now) {
            self.look = None;
        }
        self.lanes.follow(&self.policy, self.limit.limit, now)
    }

    /// Whether the hold in force is due to be looked at, and a longer lane would follow if it no longer held.
    pub fn wants_look(&self, now: Timestamp) -> bool {
        let is_due = self.knowledge.hold().is_some_and(|hold| hold.is_due(now));
        is_due
            && matches!(self.limit.reason, Reason::Failures { .. })
            && self.policy.idle_timeout_of(self.longer_lane()) > self.policy.idle_timeout_of(self.lane())
    }

    /// Whether this worker looks at the hold.
    pub fn is_looking(&self) -> bool {
        self.look.is_some()
    }

    /// The look is this worker's.
    pub fn begin_look(&mut self) {
        self.look.get_or_insert(Look::Begin);
    }

    /// The look is not, or no longer, this worker's.
    pub fn end_look(&mut self) {
        self.look = None;
    }

    /// The lane that would follow without what requests have said.
    fn longer_lane(&self) -> LaneId {
        let limit = IdleLimit::without_requests(&self.policy, self.measured.as_ref()).limit;
        self.lanes.choose(&self.policy, limit).lane
    }

    /// Which way a request goes that is sent now.
    pub fn way(&mut self, now: Timestamp) -> Way {
        let lane = self.lane();
        let Some(hold) = self.knowledge.hold().filter(|_| self.look.is_some()) else {
            return Way { lane, looks: false };
        };
        let longer = self.longer_lane();
        let idle_timeout = self.policy.idle_timeout_of(longer);
        let looks = self.look.as_mut().is_some_and(|look| look.takes(hold.idle_age, idle_timeout, now));
        Way { lane: if looks { longer } else { lane }, looks }
    }

    /// A request that took part in a look has ended. Returns whether it was to tell, and has not: if it wasn't answered either,
    /// [`Knowledge::on_look_failed`] is to hear of it.
    pub fn on_look_ended(&mut self, now: Timestamp) -> bool {
        self.look.as_mut().is_some_and(|look| look.on_ended(now))
    }

    /// A connection to a lane could not be made. Returns the lane that is passed over from now on, if that is news.
    pub fn on_connect_failed(&mut self, lane: LaneId) -> Option<LaneId> {
        self.lanes.on_connect_failed(&self.policy, lane)
    }

    /// A connection to a lane was made. Returns whether it is certain now that connects fail on shorter lanes alone.
    pub fn on_connected(&mut self, lane: LaneId) -> bool {
        self.lanes.on_connected(lane)
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "a test that panics fails")]
mod tests {
    use super::*;
    use crate::config::Section;
    use serde_json::{Value, json};

    const fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn timeout(section: Value) -> Timeout {
        Timeout::new(Policy::from_section("x", Section::try_new("", section).unwrap()).unwrap())
    }

    fn lanes() -> Value {
        json!({"x-54s": "54s", "x-4s": "4s", "x-900ms": "900ms"})
    }

    fn failed(second: u64, millis: u64, connection: u64) -> Evidence {
        let outcome = Outcome::Failed { connection };
        Evidence { sent: at(second), idle_age: Duration::from_millis(millis), outcome }
    }

    fn answered(second: u64, millis: u64) -> Evidence {
        Evidence { sent: at(second), idle_age: Duration::from_millis(millis), outcome: Outcome::Answered }
    }

    fn measured(second: u64, timeout: u64) -> Option<Measured> {
        let timeout = Duration::from_secs(timeout);
        Some(Measured { timeout: Some(timeout), limit: timeout.mul_f64(0.9), at: at(second) })
    }

    fn learn(timeout: &mut Timeout, seen: &[Evidence], measured: Option<Measured>) {
        let mut knowledge = *timeout.knowledge();
        for evidence in seen {
            knowledge.learn(evidence, evidence.sent);
        }
        timeout.adopt(knowledge, measured);
    }

    #[test]
    fn the_page_of_evidence_and_what_follows() {
        let pair = [failed(0, 3_000, 1), failed(1, 2_500, 2)];
        let told = json!({"lb_idle_timeout": "60s", "lanes": lanes()});
        let learning = json!({"lanes": lanes()});
        for (section, seen, scout, cluster, limit) in [
            (&told, &[][..], None, "x-54s", 54_000),
            (&told, &pair, None, "x-900ms", 2_250),
            (&told, &pair[..1], None, "x-54s", 54_000),
            (&told, &[], measured(2, 6), "x-4s", 5_400),
            (&told, &[], measured(2, 300), "x-54s", 54_000),
            (&told, &pair, measured(2, 60), "x-54s", 54_000),
            (&learning, &[], None, "x-4s", 4_000),
            (&learning, &pair, None, "x-900ms", 2_250),
            (&learning, &[pair[0], pair[1], answered(2, 2_500)], None, "x-4s", 4_000),
            (&learning, &[], measured(2, 6), "x-4s", 5_400),
            (&learning, &[], measured(2, 60), "x-54s", 54_000),
            (&learning, &[], measured(2, 2), "x-900ms", 1_800),
            (&learning, &pair, measured(0, 60), "x-900ms", 2_250),
            (&learning, &pair, measured(2, 60), "x-54s", 54_000),
        ] {
            let mut timeout = timeout(section.clone());
            learn(&mut timeout, seen, scout);
            timeout.tick(at(3));
            timeout.tick(at(63));
            assert_eq!(timeout.policy().cluster_of(timeout.lane()), cluster, "{section} {seen:?} {scout:?}");
            assert_eq!(timeout.limit().limit.as_millis(), limit, "{section} {seen:?} {scout:?}");
        }
    }

    #[test]
    fn a_timeout_that_the_operator_got_wrong_is_named_beside_what_shows_it() {
        let mut timeout = timeout(json!({"lb_idle_timeout": "60s", "lanes": lanes()}));
        learn(&mut timeout, &[failed(0, 3_000, 1), failed(1, 2_500, 2)], None);
        assert!(timeout.tick(at(2)));
        assert!(timeout.limit().reason.contradicts_operator());
        assert_eq!(
            timeout.limit().reason.to_string(),
            "lb_idle_timeout is 60s, but requests failed on connections that had been idle for 2500ms and more"
        );
    }

    #[test]
    fn a_look_takes_two_requests_and_leaves_the_others_alone() {
        let mut timeout = timeout(json!({"lanes": lanes()}));
        learn(&mut timeout, &[failed(0, 3_000, 1), failed(1, 3_000, 2)], None);
        timeout.tick(at(2));
        assert!(!timeout.wants_look(at(600)));
        assert!(timeout.wants_look(at(601)));
        timeout.begin_look();
        let short = timeout.lane();
        let opening = timeout.way(at(602));
        assert_eq!((timeout.policy().cluster_of(opening.lane), opening.looks), ("x-4s", true));
        assert_eq!(timeout.way(at(602)), Way { lane: short, looks: false });
        timeout.on_look_ended(at(603));
        assert_eq!(timeout.way(at(605)), Way { lane: short, looks: false });
        assert!(timeout.way(at(606)).looks);
        learn(&mut timeout, &[answered(606, 3_000)], None);
        timeout.tick(at(607));
        assert!(!timeout.is_looking());
        assert_eq!(timeout.lane(), short, "longer after a minute");
        timeout.tick(at(667));
        assert_eq!(timeout.policy().cluster_of(timeout.lane()), "x-4s");
    }

    #[test]
    fn a_look_that_fails_costs_one_request_and_the_hold_doubles() {
        let mut timeout = timeout(json!({"lanes": lanes()}));
        learn(&mut timeout, &[failed(0, 3_000, 1), failed(1, 3_000, 2)], None);
        timeout.tick(at(2));
        timeout.begin_look();
        assert!(timeout.way(at(602)).looks);
        timeout.on_look_ended(at(602));
        assert!(timeout.way(at(605)).looks);
        learn(&mut timeout, &[failed(605, 3_000, 3)], None);
        assert!(!timeout.tick(at(605)));
        assert!(!timeout.is_looking() && !timeout.wants_look(at(605 + 1_199)) && timeout.wants_look(at(605 + 1_200)));
    }

    #[test]
    fn without_lanes_there_is_nothing_to_look_at() {
        let mut timeout = timeout(json!({}));
        learn(&mut timeout, &[failed(0, 3_000, 1), failed(1, 3_000, 2)], None);
        assert!(!timeout.tick(at(2)));
        assert!(!timeout.wants_look(at(10_000)));
        assert_eq!(timeout.limit().limit, Duration::from_millis(2_700));
    }
}

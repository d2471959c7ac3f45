//! Which lane follows from a limit? The longest `idle_timeout` that is not above it; shorter at once, longer only when that has been
//! right for a minute.

use std::time::Duration;

use super::policy::Policy;
use crate::time::Timestamp;

/// A longer lane must have been right for this long: what is short-lived is not worth two reconnects.
pub const LONGER_AFTER: Duration = Duration::from_secs(60);

/// After so many connects in a row that failed on a lane, the next longer one is tried.
const CONNECTS: u8 = 3;

/// The base or a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(u16);

impl LaneId {
    /// The base, which needs no header.
    pub const BASE: Self = Self(0);

    /// The lane at this place of [`Policy::lanes`].
    pub fn of_lane(at: usize) -> Self {
        Self(u16::try_from(at.saturating_add(1)).unwrap_or(u16::MAX))
    }

    fn place(self) -> Option<usize> {
        usize::from(self.0).checked_sub(1)
    }
}

impl Policy {
    /// The base and the lanes, each with its `idle_timeout`.
    pub fn all_lanes(&self) -> impl Iterator<Item = (LaneId, Duration)> {
        let lanes = self.lanes.iter().enumerate();
        std::iter::once((LaneId::BASE, self.idle_timeout))
            .chain(lanes.map(|(at, lane)| (LaneId::of_lane(at), lane.idle_timeout)))
    }

    /// The `idle_timeout` of a lane.
    pub fn idle_timeout_of(&self, lane: LaneId) -> Duration {
        let lane = lane.place().and_then(|at| self.lanes.get(at));
        lane.map_or(self.idle_timeout, |lane| lane.idle_timeout)
    }

    /// Envoy's name of a lane's cluster.
    pub fn cluster_of(&self, lane: LaneId) -> &str {
        lane.place().and_then(|at| self.lanes.get(at)).map_or(&self.cluster, |lane| &lane.cluster)
    }

    /// The header's value that leads to a lane; none leads to the base.
    pub fn token_of(&self, lane: LaneId) -> Option<&str> {
        lane.place().and_then(|at| self.lanes.get(at)).map(|lane| lane.token.as_str())
    }
}

/// What the choice came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The lane.
    pub lane: LaneId,
    /// Whether its `idle_timeout` is within the limit. If not, no lane's is.
    pub is_safe: bool,
}

/// The lane in force on one worker.
#[derive(Clone, Debug)]
pub struct Lanes {
    in_force: LaneId,
    /// Since when a longer one would be right.
    longer_since: Option<Timestamp>,
    connects: Connects,
}

/// Connects that fail on one lane and not on the next longer one. A far end that is down for a while looks the same once, so both are
/// tried twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connects {
    /// So many in a row have failed on the lane in force. Before that the next longer one may have worked already.
    Failed { in_a_row: u8, is_second: bool },
    /// Lanes with an `idle_timeout` up to this are passed over, to see whether connects work on a longer one.
    Trying { above: Duration, is_second: bool },
    /// They did twice, where those on the shorter one failed.
    Barred { above: Duration },
    /// They did not: the far end can't be reached by any, and nothing is tried until it can.
    Unreachable,
}

const NONE_FAILED: Connects = Connects::Failed { in_a_row: 0, is_second: false };

impl Lanes {
    /// The lane that follows from the limit now.
    pub fn new(policy: &Policy, limit: Duration) -> Self {
        let connects = NONE_FAILED;
        Self { in_force: choose(policy, limit, Duration::ZERO).lane, longer_since: None, connects }
    }

    /// The lane in force.
    pub fn in_force(&self) -> LaneId {
        self.in_force
    }

    /// The lane that `limit` asks for.
    pub fn choose(&self, policy: &Policy, limit: Duration) -> Choice {
        let above = match self.connects {
            Connects::Trying { above, .. } | Connects::Barred { above } => above,
            Connects::Failed { .. } | Connects::Unreachable => Duration::ZERO,
        };
        choose(policy, limit, above)
    }

    /// Goes on to what the limit asks for, if it is time. Returns whether the lane in force has changed.
    pub fn follow(&mut self, policy: &Policy, limit: Duration, now: Timestamp) -> bool {
        let wanted = self.choose(policy, limit).lane;
        let (old, new) = (policy.idle_timeout_of(self.in_force), policy.idle_timeout_of(wanted));
        let must_wait = new > old && !matches!(self.connects, Connects::Trying { .. });
        if must_wait {
            let since = *self.longer_since.get_or_insert(now);
            if now.since(since) < LONGER_AFTER {
                return false;
            }
        }
        self.longer_since = None;
        std::mem::replace(&mut self.in_force, wanted) != wanted
    }

    /// A connection could not be made on a lane. Returns the lane that is passed over from now on, if that is news.
    pub fn on_connect_failed(&mut self, policy: &Policy, lane: LaneId) -> Option<LaneId> {
        if lane != self.in_force || lane == LaneId::BASE {
            if let (Connects::Trying { .. }, true) = (self.connects, lane == self.in_force) {
                self.connects = Connects::Unreachable;
            }
            return None;
        }
        match &mut self.connects {
            Connects::Failed { in_a_row, is_second } => {
                *in_a_row = in_a_row.saturating_add(1);
                if *in_a_row < CONNECTS {
                    return None;
                }
                let is_second = *is_second;
                self.connects = Connects::Trying { above: policy.idle_timeout_of(lane), is_second };
                Some(lane)
            }
            Connects::Trying { .. } => {
                self.connects = Connects::Unreachable;
                None
            }
            Connects::Barred { .. } | Connects::Unreachable => None,
        }
    }

    /// A new connection was made on a lane. Returns whether it is known now that connects fail on shorter ones alone.
    pub fn on_connected(&mut self, lane: LaneId) -> bool {
        if lane != self.in_force {
            return false;
        }
        let (connects, is_known) = match self.connects {
            Connects::Trying { is_second: false, .. } => (Connects::Failed { in_a_row: 0, is_second: true }, false),
            Connects::Trying { above, is_second: true } => (Connects::Barred { above }, true),
            Connects::Failed { .. } | Connects::Unreachable => (NONE_FAILED, false),
            barred @ Connects::Barred { .. } => (barred, false),
        };
        self.connects = connects;
        is_known
    }
}

/// The longest of the lanes above `above` whose `idle_timeout` is not above the limit; the shortest of them if there is none.
fn choose(policy: &Policy, limit: Duration, above: Duration) -> Choice {
    let usable = || policy.all_lanes().filter(|(_, timeout)| *timeout > above);
    let longest = usable().filter(|(_, timeout)| *timeout <= limit).max_by_key(|(_, timeout)| *timeout);
    match longest {
        Some((lane, _)) => Choice { lane, is_safe: true },
        None => {
            let shortest = usable().min_by_key(|(_, timeout)| *timeout);
            Choice { lane: shortest.map_or(LaneId::BASE, |(lane, _)| lane), is_safe: false }
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "a test that panics fails")]
mod tests {
    use super::*;
    use crate::config::Section;
    use serde_json::json;

    fn policy() -> Policy {
        let section = json!({"lanes": {"a": "54s", "b": "4s", "c": "900ms"}});
        Policy::from_section("payments", Section::try_new("", section).unwrap()).unwrap()
    }

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    #[test]
    fn the_longest_within_the_limit_else_the_shortest() {
        let policy = policy();
        for (limit, cluster, is_safe) in [
            (secs(7_200), "payments", true),
            (secs(3_600), "payments", true),
            (secs(3_599), "a", true),
            (secs(54), "a", true),
            (secs(53), "b", true),
            (Duration::from_millis(900), "c", true),
            (Duration::from_millis(899), "c", false),
        ] {
            let choice = choose(&policy, limit, Duration::ZERO);
            assert_eq!((policy.cluster_of(choice.lane), choice.is_safe), (cluster, is_safe), "{limit:?}");
        }
    }

    #[test]
    fn without_lanes_the_base_is_all_there_is() {
        let policy = Policy::from_section("x", Section::try_new("", json!({})).unwrap()).unwrap();
        assert_eq!(choose(&policy, secs(4), Duration::ZERO), Choice { lane: LaneId::BASE, is_safe: false });
    }

    #[test]
    fn shorter_at_once_longer_after_a_minute_of_asking() {
        let policy = policy();
        let mut lanes = Lanes::new(&policy, secs(54));
        let mut follow = |second, limit: Duration, cluster| {
            lanes.follow(&policy, limit, at(second));
            assert_eq!(policy.cluster_of(lanes.in_force()), cluster, "second {second}");
        };
        follow(1, secs(4), "b");
        follow(2, secs(54), "b");
        follow(61, secs(54), "b");
        follow(62, secs(54), "a");
        follow(63, secs(1), "c");
        follow(64, secs(4), "c");
        follow(70, secs(1), "c");
        follow(71, secs(4), "c");
        follow(130, secs(4), "c");
        follow(131, secs(54), "a");
    }

    #[test]
    fn connects_that_fail_twice_on_one_lane_alone_lead_to_the_next_longer() {
        let policy = policy();
        let limit = Duration::from_millis(900);
        let mut lanes = Lanes::new(&policy, limit);
        let c = lanes.in_force();
        for round in 0..2 {
            assert_eq!(lanes.on_connect_failed(&policy, c), None);
            assert_eq!(lanes.on_connect_failed(&policy, c), None);
            assert_eq!(lanes.on_connect_failed(&policy, c), Some(c));
            assert!(lanes.follow(&policy, limit, at(1)));
            let b = lanes.in_force();
            assert_eq!(policy.cluster_of(b), "b");
            assert_eq!(lanes.on_connected(b), round == 1);
            assert_eq!(
                lanes.follow(&policy, limit, at(2)),
                round == 0,
                "back to see whether they still fail, then for good"
            );
        }
    }

    #[test]
    fn a_far_end_that_was_down_for_a_while_changes_nothing() {
        let policy = policy();
        let limit = Duration::from_millis(900);
        let mut lanes = Lanes::new(&policy, limit);
        let c = lanes.in_force();
        for _ in 0..3 {
            lanes.on_connect_failed(&policy, c);
        }
        lanes.follow(&policy, limit, at(1));
        assert!(!lanes.on_connected(lanes.in_force()), "up again");
        assert!(lanes.follow(&policy, limit, at(1)));
        assert_eq!(lanes.in_force(), c);
        assert!(!lanes.on_connected(c));
        assert_eq!(lanes.connects, NONE_FAILED);
    }

    #[test]
    fn a_far_end_that_nobody_reaches_changes_nothing() {
        let policy = policy();
        let mut lanes = Lanes::new(&policy, Duration::from_millis(900));
        let c = lanes.in_force();
        for _ in 0..3 {
            lanes.on_connect_failed(&policy, c);
        }
        lanes.follow(&policy, Duration::from_millis(900), at(1));
        let b = lanes.in_force();
        assert_eq!(lanes.on_connect_failed(&policy, b), None);
        assert!(lanes.follow(&policy, Duration::from_millis(900), at(1)));
        assert_eq!(lanes.in_force(), c);
        for _ in 0..10 {
            assert_eq!(lanes.on_connect_failed(&policy, c), None, "tried once");
        }
        assert!(!lanes.on_connected(c));
        for _ in 0..2 {
            assert_eq!(lanes.on_connect_failed(&policy, c), None);
        }
        assert_eq!(lanes.on_connect_failed(&policy, c), Some(c), "again, once it could be reached");
    }
}

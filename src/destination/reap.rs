//! Time: which connections are fenced, which are closed, and how fast.

use std::time::Duration;

use super::Destination;
use super::counts::key_of;
use crate::connection::{CloseCause, Connection, ConnectionKey, Phase};
use crate::metrics::DestinationMetric;
use crate::policy::LbIdleTimeout;
use crate::time::{Timestamp, millis};

/// The time from the fence to the reap. A request that was admitted just before the fence is still under way to its
/// connection; 50 ms are too short when a burst stalls the event loop.
pub const REAP_DELAY: Duration = Duration::from_millis(100);

/// Closes in one tick. Envoy needs a tenth of a millisecond for each, and requests wait for those of one tick.
const CLOSES_PER_TICK: usize = 4;

/// Closes in a second of a reap that takes more than one tick, however long a turn of the event loop takes: a quarter of a worker's
/// time. Any faster, and closes make ticks late, and late ticks make for more closes.
const CLOSES_PER_SECOND: usize = 2_000;

/// A reap that would take longer at that rate is quicker: connections must not be opened faster than closed.
const LONGEST_REAP: Duration = Duration::from_secs(5);

/// The same while nobody knows when the far end would close them itself.
const REAP_BLIND: Duration = Duration::from_secs(1);

/// From one tick to the next while more is due than one closes: what waits has its turn in between.
const REAP_PERIOD: Duration = Duration::from_millis(2);

/// So many connections may be opened anew to have one of them watched.
const FEW: usize = 4;

/// A connection that is to be closed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Which one.
    pub key: ConnectionKey,
    /// Whether it never carried a byte: then it must be asked whether it is connected at all, because a request may be
    /// waiting for it.
    pub unused: bool,
}

impl Destination {
    /// How soon [`tick`](Self::tick) wants to be called again.
    pub fn tick_period(&self) -> Duration {
        if self.reaping.is_some() { REAP_PERIOD } else { self.turns.period() }
    }

    /// Whether a reap goes on in quick ticks.
    pub fn is_reaping(&self) -> bool {
        self.reaping.is_some()
    }

    /// Looks at the connections whose time may have come, and returns those that are to be closed now. Constant work if
    /// there is none. May change [`tick_period`](Self::tick_period).
    pub fn tick(&mut self, now: Timestamp) -> Vec<Due> {
        if let Some(turn) = self.turns.tick(now) {
            self.turn = turn;
            self.fence.forget_the_empty();
            self.forget_the_gone();
            self.run_timers(now);
        } else if self.reaping.is_none() {
            return Vec::new();
        }
        // Between two turns a reap goes on with what was settled at the last one.
        if self.turn.may_close { self.due(now) } else { Vec::new() }
    }

    pub(super) fn run_timers(&mut self, now: Timestamp) {
        while let Some(slot) = self.timers.pop(&mut self.connections, now) {
            self.on_timer(slot, now);
        }
    }

    pub(super) fn forget_the_gone(&mut self) {
        while let Some((forget_at, key)) = self.gone.front().copied() {
            if forget_at > self.turns.count() {
                break;
            }
            self.gone.pop_front();
            self.forget(key);
        }
        while let Some((forget_at, generation, count)) = self.aborted.front().copied() {
            if forget_at > self.turns.count() {
                break;
            }
            self.aborted.pop_front();
            match generation {
                None => self.flow.end(count as usize),
                Some(generation) => {
                    if let Some(pool) = self.fence.any_pool(generation) {
                        pool.flow.end(count as usize);
                    }
                }
            }
        }
    }

    pub(super) fn on_timer(&mut self, slot: u32, now: Timestamp) {
        let Some(connection) = self.connections.get(slot as usize) else { return };
        match connection.expires_at(self.limit) {
            Some(_) if connection.is_fenced => {} // a sentinel, too
            // Timers count milliseconds.
            Some(at) if at < now.after(Duration::from_millis(1)) => self.fence_one(key_of((slot, connection)), now),
            Some(at) => self.timers.set(&mut self.connections, slot, at, now),
            None => {} // set again when it becomes idle
        }
    }

    pub(super) fn due(&mut self, now: Timestamp) -> Vec<Due> {
        let delay = if self.has_requests { REAP_DELAY } else { Duration::ZERO };
        let mut due = Vec::new();
        due.extend(self.sentinel_given_up(now));
        self.set_sentinel_aside(now);
        let since_last = self.reaping.take().map(|last| millis(now.since(last)));
        if self.retiring.is_empty() {
            return due;
        }
        if self.has_doomed() {
            due.extend(self.close_doomed().into_iter().map(|key| Due { key, unused: false }));
        }
        let most = since_last.map_or(CLOSES_PER_TICK, |passed| {
            let passed = usize::try_from(passed).unwrap_or(usize::MAX);
            let longest = usize::try_from(millis(self.longest_reap())).unwrap_or(usize::MAX);
            let at_least = CLOSES_PER_SECOND.saturating_mul(passed) / 1_000;
            let in_time = self.retiring.len().saturating_mul(passed).checked_div(longest).unwrap_or(usize::MAX);
            CLOSES_PER_TICK.max(at_least).max(in_time)
        });
        while let Some((fenced_at, key)) = self.retiring.front().copied() {
            let is_settled = !self.has_requests || fenced_at <= self.turn.settled;
            if !is_settled || now.since(fenced_at) < delay {
                break;
            }
            if due.len() >= most {
                self.reaping = Some(now);
                break;
            }
            self.retiring.pop_front();
            let Some(connection) = self.get(key) else { continue };
            let idle_since = match connection.phase {
                Phase::Unused => Some(connection.opened_at),
                Phase::Idle { since } => Some(since.into()),
                _ => None,
            };
            let Some(idle_since) = idle_since.filter(|since| connection.is_fenced && *since <= fenced_at) else {
                continue; // it was used since, and is fenced again when that exchange ends
            };
            let unused = connection.phase == Phase::Unused;
            let cause = if connection.retire_at() <= now || connection.exchanges_left() == Some(0) {
                CloseCause::Retired
            } else {
                CloseCause::Reaped
            };
            if !unused && cause == CloseCause::Reaped && self.wants_sentinel() {
                self.sentinel = Some(key);
                self.update(key, |connection| connection.phase = Phase::Sentinel { since: idle_since.into() });
                continue;
            }
            if !unused {
                self.close(key, cause);
            }
            due.push(Due { key, unused });
        }
        due
    }

    /// How long a reap may take: half of the time after which the far end would do it, all at once.
    pub(super) fn longest_reap(&self) -> Duration {
        let fixed = self.policies.iter().filter_map(|(_, policy)| match policy.lb_idle_timeout {
            LbIdleTimeout::Fixed(timeout) => Some(timeout),
            LbIdleTimeout::Learn => None,
        });
        let margin = fixed.chain(self.learned()).min().map(|timeout| timeout.saturating_sub(self.limit));
        margin.map_or(REAP_BLIND, |margin| margin.checked_div(2).unwrap_or_default().min(LONGEST_REAP))
    }

    /// Sets a connection aside to be the next sentinel, if it is time for one and none will be fenced anyway: where a few
    /// connections carry all the traffic none is ever idle for long. The one that has been idle for longest is the one that
    /// the pool needs least.
    pub(super) fn set_sentinel_aside(&mut self, now: Timestamp) {
        if now < self.next_sentinel_at || !self.retiring.is_empty() || !self.has_requests || !self.wants_sentinel() {
            return;
        }
        // Where places aren't known, fencing one connection takes all out of use: only where they are few.
        let loose = (self.loose.len() <= FEW).then_some(&self.loose);
        let is_idle = |connection: &Connection| matches!(connection.phase, Phase::Idle { .. });
        let oldest = self
            .fence
            .stacks()
            .chain(loose)
            .filter_map(|list| {
                list.oldest(&self.connections).filter(|oldest| is_idle(oldest)).zip(list.oldest_key(&self.connections))
            })
            .min_by_key(|(oldest, _)| oldest.idle_since());
        let Some((_, key)) = oldest else { return };
        self.next_sentinel_at = now.after(REAP_DELAY.saturating_mul(4));
        self.fence_one(key, now);
    }

    /// Whether the next connection that is to be reaped is to be watched instead.
    pub(super) fn wants_sentinel(&mut self) -> bool {
        let is_watched = |connection: &mut Connection| matches!(connection.phase, Phase::Sentinel { .. });
        self.learns() && !self.sentinel.and_then(|key| self.get(key)).is_some_and(is_watched)
    }

    /// The sentinel, if it has been watched for long enough.
    pub(super) fn sentinel_given_up(&mut self, now: Timestamp) -> Option<Due> {
        let key = self.sentinel?;
        let Phase::Sentinel { since } = self.get(key)?.phase else { return None };
        let longest = self.policies.iter().map(|(_, policy)| policy.sentinel_max).min()?;
        if now.since(since.into()) < longest {
            return None;
        }
        self.close(key, CloseCause::Reaped);
        Some(Due { key, unused: false })
    }

    pub(super) fn close(&mut self, key: ConnectionKey, cause: CloseCause) {
        self.update(key, |connection| connection.phase = Phase::Closing);
        self.tally.count(match cause {
            CloseCause::Reaped => DestinationMetric::ConnectionsClosedIdle,
            CloseCause::Retired => DestinationMetric::ConnectionsClosedLifetime,
        });
    }

    /// What the host said of a [`Due`] connection that was never used. Returns whether it is to be closed; if it is not
    /// connected, a request may be waiting for it, and whoever connects decides for how long.
    pub fn on_unused(&mut self, key: ConnectionKey, is_connected: bool, now: Timestamp) -> bool {
        let Some(connection) = self.get(key) else { return false };
        if connection.phase != Phase::Unused {
            return false;
        }
        if is_connected {
            self.close(key, CloseCause::Reaped);
        } else {
            self.fence_one(key, now);
        }
        is_connected
    }
}

pub(super) fn tick_period(limit: Duration) -> Duration {
    limit.checked_div(64).unwrap_or_default().clamp(Duration::from_millis(25), Duration::from_millis(100))
}

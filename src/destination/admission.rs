//! Requests: into which generation one is put, and when generations are taken out of use.

use std::rc::Rc;
use std::time::Duration;

use super::counts::key_of;
use super::{Destination, Endpoints};
use crate::connection::{CloseCause, Connection, ConnectionKey, Generation, Phase};
use crate::fence::Steer;
use crate::flow::Flow;
use crate::learner::Evidence;
use crate::metrics::DestinationMetric;
use crate::pool::Pool;
use crate::time::Timestamp;
use crate::turns::TURNS_IN_PIPE;
use crate::unseen::Ending;

/// Closes at once of connections beside one that failed. A far end that ends so many makes as much work for Envoy itself.
const MOST_SUSPECTS: usize = 512;

/// How long before an expiry it begins to matter how requests end; longer than a turn of the event loop should take.
const DELICATE: Duration = Duration::from_millis(200);

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct Admission {
    /// The generation that it is put into.
    pub generation: Generation,
    /// How to tell the host.
    pub steer: Rc<Steer>,
    /// Whether the pool is divided by our own connections (an internal listener), so that the host call that does it
    /// changes nothing else.
    pub guarded: bool,
    /// Whether it may meet a connection that has been used before, or one that is no better because the far end is being
    /// restarted.
    pub may_be_stale: bool,
    /// Whether Envoy has to open a connection for it, as far as can be told.
    pub opens_connection: bool,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With its response: its connection is back in the pool, or was closed by the far end.
    Answered,
    /// Without: the pool has closed its connection, and the connection filter will hear of it.
    Aborted,
}

impl Destination {
    /// Decides for a request which connections it may get, and counts on its being sent at once.
    pub fn admit(&mut self, now: Timestamp) -> Admission {
        self.has_requests = true;
        let guarded = self.is_guarded();
        self.run_timers(now); // a hint may have expired since the last tick, anywhere in a stack
        let chosen = if guarded { self.choose(now) } else { self.young(now) };
        let (open, generation) = (self.open, self.fence.latest());
        let Some(pool) = self.fence.pool(chosen.unwrap_or(generation)) else {
            // Not reached: the latest pool is never retired.
            let steer = Rc::new(Steer::new(0, generation));
            return Admission { generation, steer, guarded: false, may_be_stale: true, opens_connection: false };
        };
        let admission = Admission {
            generation: pool.generation,
            steer: Rc::clone(&pool.steer),
            guarded,
            may_be_stale: chosen.is_some() && (!guarded || open > 0) || self.restarts.is_unsettled(now),
            opens_connection: guarded && !pool.has_idle(),
        };
        pool.on_admitted(now);
        self.flow.on_admitted(now);
        admission
    }

    /// The generation in which no connection within reach has expired; if there is none, a new one is started, for which the
    /// answer is `None`.
    pub(super) fn choose(&mut self, now: Timestamp) -> Option<Generation> {
        let limit = self.limit;
        let loose_has_expired = self.loose_out_of_use > 0
            || self.loose.oldest(&self.connections).is_some_and(|oldest| oldest.has_expired(now, limit));
        if loose_has_expired {
            self.retire_all(now);
        } else if let Some(generation) = self.fence.choose(&self.connections, now, limit) {
            return Some(generation);
        } else if let Some(retired) = self.fence.start() {
            self.fence_idle(retired, now);
        }
        self.tally.count(DestinationMetric::Fenced);
        None
    }

    /// The same where connections are not seen.
    pub(super) fn young(&mut self, now: Timestamp) -> Option<Generation> {
        let (limit, latest) = (self.limit, self.fence.latest());
        if self.fence.latest_pool().is_some_and(|pool| pool.is_young(now, limit)) {
            return Some(latest);
        }
        self.retire_all(now);
        self.unseen.forget_all();
        self.tally.count(DestinationMetric::Fenced);
        None
    }

    /// A request of `generation` ended.
    pub fn on_ended(&mut self, generation: Generation, end: End) {
        let is_guarded = self.is_guarded();
        let is_over = |flow: &mut Flow| match is_guarded {
            false => {
                flow.end(1);
                true
            }
            true => end == End::Answered && flow.on_ended(),
        };
        let is_over_in_all = is_over(&mut self.flow);
        let is_over_in_pool = self.fence.any_pool(generation).is_none_or(|pool| is_over(&mut pool.flow));
        if !is_over_in_all {
            self.end_later(None);
        }
        if !is_over_in_pool {
            self.end_later(Some(generation));
        }
    }

    fn end_later(&mut self, generation: Option<Generation>) {
        let forget_at = self.turns.count().saturating_add(TURNS_IN_PIPE as u64);
        let mut latest = self.aborted.iter_mut().rev().take_while(|(at, ..)| *at == forget_at);
        match latest.find(|(_, of, _)| *of == generation) {
            Some((_, _, count)) => *count = count.saturating_add(1),
            None => self.aborted.push_back((forget_at, generation, 1)),
        }
    }

    /// A request that was admitted at `begun`, where connections are not seen, ended on the connection called `connection`.
    pub fn on_unseen_end(&mut self, connection: &[u8], begun: Timestamp, ending: Ending, now: Timestamp) {
        let Some(evidence) = self.unseen.on_ended(connection, begun, ending, now) else { return };
        match evidence {
            Evidence::Failed { age } => {
                self.tally.count(DestinationMetric::StaleFailures);
                self.learning.on_failure(age);
                self.retire_all(now);
                self.unseen.forget_all();
            }
            Evidence::Succeeded { age } => self.tally.age(DestinationMetric::ReuseIdleAge, age),
            _ => {}
        }
        self.observe(evidence, now);
    }

    /// Whether it matters now how requests of `generation` end: something in the stack has expired, or will soon.
    pub fn is_delicate(&mut self, generation: Generation, now: Timestamp) -> bool {
        let soon = now.after(DELICATE);
        let Some(pool) = self.fence.pool(generation) else { return false };
        pool.out_of_use > 0
            || pool.stack.oldest(&self.connections).is_some_and(|oldest| oldest.has_expired(soon, self.limit))
    }

    /// No connection that exists now will be given to a request.
    pub(super) fn retire_all(&mut self, now: Timestamp) {
        for pool in self.fence.restart() {
            self.fence_idle(pool, now);
        }
        let loose: Vec<_> = self.loose.from_newest(&self.connections).map(key_of).collect();
        self.fence_listed(loose, now);
    }

    /// The same, because they are dead or dying. Returns those to be closed at once, because a request that fails is
    /// retried within its generation, soon: it must not find another dead one there. What a request that was admitted and
    /// not seen yet may have been given is closed as soon as that is seen ([`close_doomed`](Self::close_doomed)), at the
    /// latest by the reap.
    pub(super) fn retire_suspects(&mut self, now: Timestamp) -> Vec<ConnectionKey> {
        for pool in self.fence.restart() {
            let is_open = |connection: &Connection| matches!(connection.phase, Phase::Unused | Phase::Idle { .. });
            let open = pool.stack.from_newest(&self.connections).filter(|(_, connection)| is_open(connection));
            for key in open.map(key_of).collect::<Vec<_>>().into_iter().rev() {
                self.fence_one(key, now);
            }
            if let Some(dropped) = self.fence.doom(pool) {
                self.take_apart(&dropped);
            }
        }
        let loose: Vec<_> = self.loose.from_newest(&self.connections).map(key_of).collect();
        self.fence_listed(loose.clone(), now);
        let mut suspects = self.close_doomed();
        if self.endpoints != Endpoints::Several && self.flow.known_unseen().is_some_and(|(unseen, _)| unseen == 0) {
            let is_idle = |connection: &mut Connection| matches!(connection.phase, Phase::Idle { .. });
            let idle = loose.into_iter().filter(|key| self.get(*key).is_some_and(is_idle)).collect::<Vec<_>>();
            for key in idle.into_iter().take(MOST_SUSPECTS) {
                self.close(key, CloseCause::Reaped);
                suspects.push(key);
            }
        }
        suspects
    }

    /// Whether [`close_doomed`](Self::close_doomed) may have something to do.
    pub fn has_doomed(&self) -> bool {
        self.fence.has_doomed()
    }

    /// Idle connections of doomed generations that no request can be under way to, to be closed at once.
    pub fn close_doomed(&mut self) -> Vec<ConnectionKey> {
        let mut suspects = Vec::new();
        for pool in self.fence.take_doomed() {
            let certain = pool.idle_for_certain(&self.connections, &self.flow).take(MOST_SUSPECTS);
            let certain: Vec<_> = certain.map(key_of).collect();
            for key in &certain {
                self.close(*key, CloseCause::Reaped);
            }
            if pool.idle(&self.connections).next().is_some() {
                self.fence.doom(pool);
            } else {
                self.take_apart(&pool);
            }
            suspects.extend(certain);
        }
        suspects
    }

    /// A doomed pool isn't kept any longer; its connections are fenced, and left to the reap.
    fn take_apart(&mut self, pool: &Pool) {
        for key in pool.stack.from_newest(&self.connections).map(key_of).collect::<Vec<_>>() {
            self.unlink(key);
        }
    }

    /// The idle connections of a retired pool are fenced; the busy ones will be when they become idle.
    pub(super) fn fence_idle(&mut self, pool: Pool, now: Timestamp) {
        let stacked: Vec<_> = pool.stack.from_newest(&self.connections).map(key_of).collect();
        self.fence_listed(stacked, now);
    }

    /// Takes connections, the newest first, out of their list.
    pub(super) fn fence_listed(&mut self, keys: Vec<ConnectionKey>, now: Timestamp) {
        for key in keys.into_iter().rev() {
            self.unlink(key);
            let Some(connection) = self.get(key) else { continue };
            match connection.phase {
                Phase::Gone => self.remove(key),
                Phase::Sentinel { .. } | Phase::Closing => {}
                _ => self.fence_one(key, now),
            }
        }
    }
}

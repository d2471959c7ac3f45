//! The idle limit in force: what the filters' policies say, and what has been learnt.

use std::time::Duration;

use super::Destination;
use super::reap::tick_period;
use crate::learner::{Bracket, Evidence, Rules};
use crate::learning::News;
use crate::policy::{LbIdleTimeout, Policy};
use crate::time::Timestamp;

impl Destination {
    /// A filter with root context `root` brings its policy. Returns the keys in which it differs from those that
    /// are here already.
    pub fn add_policy(&mut self, root: u32, policy: Policy, is_guard: bool, now: Timestamp) -> Vec<&'static str> {
        let mut differing: Vec<_> = self.policies.iter().flat_map(|(_, other)| policy.differing_keys(other)).collect();
        differing.dedup();
        self.policies.push((root, policy));
        if is_guard {
            self.guards.push(root);
        }
        self.apply_policies(now);
        differing
    }

    /// The filter with root context `root` is gone.
    pub fn remove_policy(&mut self, root: u32, now: Timestamp) {
        self.policies.retain(|(of, _)| *of != root);
        self.guards.retain(|of| *of != root);
        if !self.policies.is_empty() {
            self.apply_policies(now); // the last policy outlives its filter, for the connections that do, too
        }
    }

    /// The lowest limit that a policy sets, by what is known now.
    pub(super) fn apply_policies(&mut self, now: Timestamp) {
        let learns = |policy: &&Policy| policy.lb_idle_timeout == LbIdleTimeout::Learn;
        let policies = || self.policies.iter().map(|(_, policy)| policy);
        let rules = policies().filter(learns).map(Rules::from).min_by_key(|rules| rules.initial_limit);
        let learnt = rules.map(|rules| self.learning.judge(&rules, now));
        let fixed = policies().filter(|policy| !learns(policy)).map(Policy::idle_limit).min();
        let limit = learnt.into_iter().chain(fixed).min().unwrap_or(self.limit);
        let lowered = limit < self.limit;
        self.limit = limit;
        self.turns.set_period(tick_period(limit));
        if lowered {
            self.requeue_all(now);
        }
    }

    /// Whether a policy leaves the timeout to be learnt.
    pub fn learns(&self) -> bool {
        self.policies.iter().any(|(_, policy)| policy.lb_idle_timeout == LbIdleTimeout::Learn)
    }

    pub(super) fn observe(&mut self, evidence: Evidence, now: Timestamp) {
        if self.learning.observe(evidence, now) && self.learns() {
            self.apply_policies(now);
        }
    }

    /// Takes in what other workers know, as they stored it, and returns what is to be stored in its place.
    pub fn exchange_knowledge(&mut self, stored: &[u8], now: Timestamp) -> Option<Vec<u8>> {
        let own = self.learning.exchange(stored, now);
        self.apply_policies(now);
        own
    }

    /// The far end's idle timeout, as far as it is known.
    pub fn learned(&self) -> Option<Duration> {
        self.learns().then(|| self.learning.learned()).flatten()
    }

    /// What the log should tell now.
    pub fn take_news(&mut self, now: Timestamp) -> Vec<News> {
        self.learning.take_news(self.limit, self.learns(), now)
    }

    /// Whether the connection filter with root context `root` may send probes: it has not been replaced by another; an HTTP
    /// filter divides the pool, so that no request of a user's lands on the connections without a generation, which are the
    /// probe's; and this is a worker, as a request shows. (Envoy's main thread has the filters, too, but no internal
    /// listener that it could connect to.)
    pub fn may_probe(&self, root: u32) -> bool {
        self.guards.contains(&root) && self.has_requests
    }

    /// What probes have found so far.
    pub fn bracket(&self) -> Bracket {
        self.learning.bracket()
    }

    /// The probe found something out.
    pub fn on_probed(&mut self, evidence: Evidence, now: Timestamp) {
        self.observe(evidence, now);
    }

    /// The idle limit in force.
    pub fn idle_limit(&self) -> Duration {
        self.limit
    }
}

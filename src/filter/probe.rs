//! The probe in Envoy: this worker's share in asking a destination for its idle timeout.
//!
//! Its requests belong to no generation, so Envoy's pool keeps them apart from users' requests, all of which the HTTP filter puts
//! into one. Its connection is known by a header in its first request, whose value is random and of this VM: no client can
//! make another connection look like it. How a request ended is read off the connection: an answer that Envoy makes up itself
//! doesn't pass there.

use std::cell::Cell;
use std::time::Duration;

use crate::host;
use crate::learner::Evidence;
use crate::policy::{LbIdleTimeout, Policy, Probe};
use crate::probe::{Answer, Probing};
use crate::shared::{self, Claim};
use crate::time::Timestamp;
use crate::worker::DestinationId;

use super::destinations::with_destination;

/// How long an answer may take; then Envoy gives the request up, and closes its connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// After this nobody gives a request up any more: it was never sent, or on a connection of somebody else's.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// One destination's probe on one worker. At most one worker of the process has a turn at a time.
pub(super) struct Prober {
    id: DestinationId,
    /// The filter's root context.
    root: u32,
    /// The cluster's name, which is the destination's.
    cluster: String,
    probe: Probe,
    longest_gap: Duration,
    /// Where workers agree whose turn it is, and this worker's name there.
    lease_key: Vec<u8>,
    worker: u64,
    /// What its requests carry.
    token: String,
    /// While it is this worker's turn.
    probing: Cell<Option<Probing>>,
    /// The context of its connection.
    connection: Cell<Option<u32>>,
    /// One that is to be closed.
    leftover: Cell<Option<u32>>,
    asked_at: Cell<Timestamp>,
    /// Requests in a row that never showed on a connection of its own.
    misses: Cell<u32>,
    /// Whether users' requests are on the probe's connections, which therefore must not become old.
    is_disturbed: Cell<bool>,
}

impl Prober {
    /// None if the policy asks for no probe.
    pub(super) fn new(id: DestinationId, root: u32, cluster: &str, policy: &Policy) -> Option<Self> {
        let probe = policy.probe.clone().filter(|_| policy.lb_idle_timeout == LbIdleTimeout::Learn)?;
        Some(Self {
            id,
            root,
            cluster: cluster.to_owned(),
            probe,
            longest_gap: policy.sentinel_max,
            lease_key: [b"idleguard.probe.", cluster.as_bytes()].concat(),
            worker: host::random(),
            token: format!("{:016x}", host::random()),
            probing: Cell::default(),
            connection: Cell::default(),
            leftover: Cell::default(),
            asked_at: Cell::default(),
            misses: Cell::default(),
            is_disturbed: Cell::default(),
        })
    }

    /// Takes, keeps or gives up this worker's turn. To be called more often than a lease lasts.
    pub(super) fn take_turn(&self, now: Timestamp) {
        let may_probe = with_destination(self.id, |destination| destination.may_probe(self.root)).unwrap_or_default();
        if !may_probe || !self.holds_lease(now) {
            self.probing.set(None);
        } else if self.probing.get().is_none() {
            let bracket = with_destination(self.id, |destination| destination.bracket()).unwrap_or_default();
            self.probing.set(Some(Probing::new(bracket, self.longest_gap, now)));
        }
    }

    fn holds_lease(&self, now: Timestamp) -> bool {
        let held = host::shared_data(&self.lease_key).and_then(|(lease, version)| {
            match shared::claim(&lease, self.worker, now) {
                Claim::Held => Ok(true),
                Claim::Write(lease) => host::set_shared_data(&self.lease_key, &lease, version),
                Claim::Taken => Ok(false),
            }
        });
        held.unwrap_or_else(|error| {
            host::report(error);
            false
        })
    }

    /// Returns whether a request is to be sent after this tick. May enter other contexts.
    pub(super) fn on_tick(&self, now: Timestamp) -> bool {
        if self.is_asking() && now.since(self.asked_at.get()) > LOST_AFTER {
            self.disturb(now);
        }
        let is_over =
            |probing: Option<Probing>| probing.is_none_or(|probing| probing.ask_at().is_some() && !probing.is_warm());
        let old = if is_over(self.probing.get()) { self.connection.take() } else { None };
        for context in [old, self.leftover.take()].into_iter().flatten() {
            host::enter(context).and_then(|()| host::close_connection()).unwrap_or_else(host::report);
        }
        let Some(mut probing) = self.probing.get().filter(|_| !self.is_disturbed.get()) else { return false };
        // A worker that stalled may have lost its turn.
        if probing.ask_at().is_none_or(|at| at > now) || !self.holds_lease(now) {
            return false;
        }
        let asks = probing.ask(now);
        self.probing.set(Some(probing));
        self.asked_at.set(now);
        asks
    }

    /// Sends the request.
    pub(super) fn send(&self) {
        let host = self.probe.host.as_deref().unwrap_or(&self.cluster);
        let headers = [
            (":method", "HEAD"),
            (":scheme", "http"),
            (":path", &self.probe.path),
            (":authority", host),
            ("user-agent", "idleguard"),
            ("x-idleguard-probe", &self.token),
        ];
        if let Err(error) = host::send_request(&self.cluster, &headers, ANSWER_TIMEOUT) {
            host::report(error);
            self.disturb(host::now());
        }
    }

    /// Whether a request is under way that may open a connection.
    pub(super) fn is_asking(&self) -> bool {
        self.probing.get().is_some_and(|probing| probing.ask_at().is_none())
    }

    /// Whether the first request of a connection, which begins with `head`, is the probe's; if so the connection is, too.
    pub(super) fn claims(&self, context: u32, head: &[u8]) -> bool {
        let is_own = head.windows(self.token.len()).any(|part| part == self.token.as_bytes());
        if is_own {
            self.misses.set(0);
            self.leftover.set(self.connection.replace(Some(context)));
            self.change(|probing| {
                probing.on_fresh();
                None
            });
        }
        is_own
    }

    /// Whether the connection is the probe's, or was and is about to be closed.
    pub(super) fn owns(&self, context: u32) -> bool {
        self.connection.get() == Some(context) || self.leftover.get() == Some(context)
    }

    /// A request began on the probe's connection.
    pub(super) fn on_request(&self, context: u32, now: Timestamp) {
        if self.connection.get() == Some(context) && !self.is_asking() && !self.is_disturbed.replace(true) {
            self.disturb(now);
            log::warn!(
                "{}: no more probes, because some requests do not pass the HTTP filter and could meet the probe's connection",
                self.cluster
            );
        }
    }

    /// A response ended on the probe's connection.
    pub(super) fn on_response(&self, context: u32, now: Timestamp) {
        if self.connection.get() == Some(context) {
            self.on_answer(Answer::Response, now);
        }
    }

    /// A connection of the probe's was closed by whomever.
    pub(super) fn on_closed(&self, context: u32, now: Timestamp) {
        if self.leftover.get() == Some(context) {
            self.leftover.set(None);
        }
        if self.connection.get() == Some(context) {
            self.connection.set(None);
            self.change(|probing| probing.on_closed(now));
            self.on_answer(Answer::Failure, now);
        }
    }

    fn disturb(&self, now: Timestamp) {
        let misses = self.misses.get().saturating_add(1);
        self.misses.set(misses);
        self.change(|probing| {
            probing.on_disturbed(misses, now);
            None
        });
    }

    fn on_answer(&self, answer: Answer, now: Timestamp) {
        self.change(|probing| probing.on_answer(answer, now));
    }

    fn change(&self, change: impl FnOnce(&mut Probing) -> Option<Evidence>) {
        let Some(mut probing) = self.probing.get() else { return };
        let evidence = change(&mut probing);
        self.probing.set(Some(probing));
        if let Some(evidence) = evidence {
            let now = host::now();
            with_destination(self.id, |destination| destination.on_probed(evidence, now));
        }
    }
}

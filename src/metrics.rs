//! Every metric once: its name, its kind, and what a worker has counted since it last told Envoy.
//!
//! A host call a count would be felt on the path of every byte. So a worker counts for itself and tells Envoy in its next
//! tick, a tenth of a second later at most.

use std::time::Duration;

use crate::time::millis;

/// What Envoy does with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sums up.
    Counter,
    /// Goes up and down; the workers' shares are added.
    Gauge,
    /// Keeps the distribution.
    Histogram,
}

macro_rules! metrics {
    ($(#[$outer:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal, $kind:ident;)+ }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// All of them, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The last part of its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// What it counts as.
            pub const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)+ }
            }
        }
    };
}

metrics! {
    /// The metrics of a destination: `idleguard.destination.<name>.<metric>`.
    DestinationMetric {
        /// Connections that the pool opened.
        ConnectionsOpened = "connections_opened", Counter;
        /// Connections that pass unseen: the worker tracks as many as it may.
        ConnectionsUnguarded = "connections_unguarded", Counter;
        /// Connections that idleguard closed because they had been idle for too long.
        ConnectionsClosedIdle = "connections_closed_idle", Counter;
        /// Connections that idleguard closed because they were too old.
        ConnectionsClosedLifetime = "connections_closed_lifetime", Counter;
        /// Idle connections that the far end closed first.
        ConnectionsClosedByPeerIdle = "connections_closed_by_peer_idle", Counter;
        /// Requests that met a connection which the far end had dropped.
        StaleFailures = "stale_failures", Counter;
        /// Requests steered away from connections that had been idle for too long.
        Fenced = "fenced", Counter;
        /// Open connections.
        ConnectionsActive = "connections_active", Gauge;
        /// Open connections without an exchange in flight.
        ConnectionsIdle = "connections_idle", Gauge;
        /// The idle limit in force.
        IdleLimit = "idle_limit_ms", Gauge;
        /// The far end's idle timeout, as far as it has been learnt.
        LearnedLbIdleTimeout = "learned_lb_idle_timeout_ms", Gauge;
        /// Idle age at reuse.
        ReuseIdleAge = "reuse_idle_age_ms", Histogram;
        /// Idle age at the far end's close.
        PeerCloseIdleAge = "peer_close_idle_age_ms", Histogram;
    }
}

metrics! {
    /// The metrics of the client-address rules: `idleguard.client_ip.<metric>`.
    ClientIpMetric {
        /// Requests whose client was found as configured.
        Rewritten = "rewritten", Counter;
        /// Requests of peers that are not trusted.
        UntrustedPeer = "untrusted_peer", Counter;
        /// Requests whose peer could not be told.
        UnknownPeer = "unknown_peer", Counter;
        /// Requests with a malformed source.
        Invalid = "invalid", Counter;
        /// Requests of a trusted peer without a source.
        Missing = "missing", Counter;
        /// Requests answered with 400.
        Rejected = "rejected", Counter;
    }
}

/// What one worker counted at one destination since it last told Envoy.
#[derive(Debug, Default)]
pub struct Tally {
    counts: [u32; DestinationMetric::ALL.len()],
    ages: Vec<(DestinationMetric, u64)>,
    has_counts: bool,
}

impl Tally {
    /// One more.
    pub fn count(&mut self, metric: DestinationMetric) {
        self.has_counts = true;
        if let Some(count) = self.counts.get_mut(metric as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// One more value of a histogram.
    pub fn age(&mut self, metric: DestinationMetric, age: Duration) {
        self.ages.push((metric, millis(age)));
    }

    /// Whether nothing has been counted since the last [`take`](Self::take).
    pub fn is_empty(&self) -> bool {
        !self.has_counts && self.ages.is_empty()
    }

    /// What has been counted since the last call: counters first, then the values of the histograms.
    pub fn take(&mut self) -> Vec<(DestinationMetric, u64)> {
        self.has_counts = false;
        let counts = std::mem::take(&mut self.counts);
        let counters = DestinationMetric::ALL.iter().zip(counts).filter(|(_, count)| *count > 0);
        let mut taken: Vec<_> = counters.map(|(metric, count)| (*metric, u64::from(count))).collect();
        taken.append(&mut self.ages);
        taken
    }
}

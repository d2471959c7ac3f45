//! Every metric once: its name, its kind, and what a worker has counted since it last told Envoy.
//!
//! A host call for each count would be felt by every request. So a worker counts for itself and tells Envoy in its next tick.

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
        /// Requests on a connection that had served before.
        Reuses = "reuses", Counter;
        /// Requests that a client saw fail because the far end had dropped the idle connection they were sent on.
        StaleFailures = "stale_failures", Counter;
        /// Requests that needed more than one attempt.
        Retried = "retried", Counter;
        /// Changes of the lane in force.
        LaneChanges = "lane_changes", Counter;
        /// Idle age at reuse.
        ReuseIdleAge = "reuse_idle_age_ms", Histogram;
        /// The idle limit.
        IdleLimit = "idle_limit_ms", Gauge;
        /// The `idle_timeout` of the lane in force; of the base, if that is.
        LaneIdleTimeout = "lane_idle_timeout_ms", Gauge;
        /// The far end's idle timeout, 0 while it is unknown.
        LbIdleTimeout = "lb_idle_timeout_ms", Gauge;
    }
}

metrics! {
    /// The metrics of a scout: `idleguard.scout.<name>.<metric>`.
    ScoutMetric {
        /// The far end's idle timeout, 0 while it is unknown.
        LbIdleTimeout = "lb_idle_timeout_ms", Gauge;
        /// The far end keeps idle connections for at least this long.
        LowerBound = "lower_bound_ms", Gauge;
        /// Requests of the scout's own.
        Requests = "requests", Counter;
        /// Those of them that had no answer.
        Failures = "failures", Counter;
        /// How long ago the far end was last seen to let go of an idle connection.
        LastSeen = "last_seen_seconds", Gauge;
        /// Whether it lets go by FIN.
        KindFin = "kind_fin", Gauge;
        /// Whether it lets go by RST.
        KindRst = "kind_rst", Gauge;
        /// Whether it forgets silently.
        KindSilent = "kind_silent", Gauge;
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

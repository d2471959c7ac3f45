//! The JSON Schema of the plugin configuration, for editors and reviews.
//!
//! These types describe; the filter's own parser ([`idleguard::config`]) decides. A test holds the two against each other. What
//! a schema can't say (the longest duration, a margin against its timeout, an address block) is in the descriptions.

#![expect(dead_code, reason = "types that only describe")]

use std::collections::BTreeMap;

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::Serialize;
use serde_json::Value;

/// The configuration of one idleguard filter: the value of the plugin's `configuration`.
#[derive(JsonSchema)]
#[schemars(title = "idleguard", tag = "filter", rename_all = "lowercase", deny_unknown_fields)]
enum Configuration {
    /// The HTTP filter, the last one before the router.
    Http {
        /// Policies by the name of the cluster that the route names; `"*"` is every other cluster. A cluster without an entry
        /// is left alone.
        #[schemars(default, with = "BTreeMap<String, Policy>", skip_serializing_if = "Option::is_none")]
        destinations: Option<BTreeMap<String, Policy>>,
        /// Who the client is. Without it all headers are left alone.
        #[schemars(default, with = "ClientIp", skip_serializing_if = "Option::is_none")]
        client_ip: Option<ClientIp>,
        /// Tells HTTP/1.1 clients `keep-alive: timeout=N`, so that their pools let go of the connection to Envoy in time. From
        /// 1s to 168h; set it below the listener's `idle_timeout`. Envoy 1.38 or newer.
        #[schemars(default, with = "Positive", skip_serializing_if = "Option::is_none")]
        advertise_keep_alive: Option<Positive>,
    },
    /// The connection filter, before `tcp_proxy`.
    Connection {
        /// The name under which the HTTP filter knows the cluster; it ties the two together.
        destination: Destination,
        /// What holds for its connections; without it, the defaults.
        #[schemars(default, with = "Policy", skip_serializing_if = "Option::is_none")]
        policy: Option<Policy>,
        /// How many connections one worker tracks, those of other destinations included. Each takes at most
        /// 160 bytes while it is idle. Further ones pass unguarded, and the metric `connections_unguarded` counts them.
        #[schemars(default = "max_tracked")]
        max_tracked_connections: Count,
    },
}

/// What holds for the connections to one destination. The same keys in both filters.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Policy {
    /// The idle age at which the far end drops a connection, from 100ms to 168h; `"learn"` finds it out.
    #[schemars(default = "learn")]
    lb_idle_timeout: Timeout,
    /// The idle limit while the timeout is unknown. From 100ms to 168h.
    #[schemars(default = "initial_limit")]
    initial_limit: Positive,
    /// How long a connection is watched to learn the timeout. From 100ms to 168h.
    #[schemars(default = "sentinel_max")]
    sentinel_max: Positive,
    /// A request with which the timeout is found out where the far end forgets silently; only while it is learnt.
    #[schemars(default, with = "Probe", skip_serializing_if = "Option::is_none")]
    probe: Option<Probe>,
    /// Taken off the timeout: below 50%, or below half of `lb_idle_timeout`; the limit is at least half the timeout.
    #[schemars(default = "margin")]
    margin: Margin,
    /// A connection older than this is retired between exchanges. From 100ms to 168h.
    #[schemars(default, with = "Positive", skip_serializing_if = "Option::is_none")]
    max_lifetime: Option<Positive>,
    /// Each lifetime is shortened by a random share up to this, so that connections opened together don't end together.
    #[schemars(default = "jitter")]
    lifetime_jitter: Jitter,
    /// Whether a `Keep-Alive: timeout=N` response header lowers the limit of its connection to N less the margin, and at
    /// least 1 s less (N of 0 or 1: no reuse); after `max=M` more responses no request is given to it.
    #[schemars(default = "yes")]
    honor_keep_alive: bool,
    /// Which requests are retried once after a reset, if they may have met a reused connection.
    #[schemars(default)]
    retry_stale: RetryStale,
}

/// A request that may be sent at any time.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Probe {
    /// Its path, such as `/healthz`: it starts with `/`, and has no blanks.
    #[schemars(regex(pattern = r"^/[!-~]*$"))]
    path: String,
    /// Its authority; the destination's name if absent.
    #[schemars(default, with = "Host", skip_serializing_if = "Option::is_none")]
    host: Option<Host>,
}

/// Who the client is, and which headers the application gets.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ClientIp {
    /// The proxies whose headers are believed; empty: nobody's.
    #[schemars(default)]
    trusted_proxies: Vec<Proxy>,
    /// How many proxies in front are ours, the peer included; alone it believes any peer.
    #[schemars(default, with = "Hops", skip_serializing_if = "Option::is_none")]
    trusted_hops: Option<Hops>,
    /// Where to look, in order; `x-forwarded-for` and `forwarded` (RFC 7239) are lists, any other name holds one address.
    #[schemars(default = "sources")]
    sources: Vec<HeaderName>,
    /// What the application gets.
    #[schemars(default = "set")]
    set: Vec<HeaderName>,
    /// More headers to remove from every request, less what is in `sources` or `set`.
    #[schemars(default = "strip")]
    strip: Vec<HeaderName>,
    /// A malformed source: `"peer"` falls back to the nearest verified hop, `"omit"` writes nothing, `"reject"` answers 400.
    #[schemars(default)]
    on_invalid: Fallback,
    /// A trusted peer, but no source is there: the same three.
    #[schemars(default)]
    on_missing: Fallback,
    /// The key of the filter state that holds the true peer.
    #[schemars(default = "peer", length(min = 1))]
    peer_filter_state: String,
}

#[derive(JsonSchema, Serialize, Default)]
#[schemars(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
enum RetryStale {
    /// GET, HEAD, OPTIONS, TRACE, PUT and DELETE.
    #[default]
    Idempotent,
    /// None.
    Off,
}

#[derive(JsonSchema, Serialize, Default)]
#[schemars(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
enum Fallback {
    #[default]
    Peer,
    Omit,
    Reject,
}

macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident $pattern:literal)*) => {
        $(
            $(#[$doc])*
            #[derive(JsonSchema, Serialize)]
            struct $name(#[schemars(regex(pattern = $pattern))] String);
        )*
    };
}

texts! {
    /// A duration.
    Positive r"^0*[1-9][0-9]*(ms|s|m|h)$"
    /// A duration, or `"learn"`.
    Timeout r"^(learn|0*[1-9][0-9]*(ms|s|m|h))$"
    /// A percentage below 50%, or a duration.
    Margin r"^(0?[0-4]?[0-9](\.[0-9]{1,3})?%|[0-9]+(ms|s|m|h))$"
    /// A percentage below 100%.
    Jitter r"^0?[0-9]{1,2}(\.[0-9]{1,3})?%$"
    /// A host, with or without a port.
    Host r"^[!-~]+$"
    /// An address, a CIDR block, `"private"` or `"loopback"`.
    Proxy r"^(private|loopback|[0-9A-Fa-f.:]+(/[0-9]{1,3})?)$"
    /// A header's name.
    HeaderName r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
    /// The name of a cluster, not `"*"`.
    Destination r"^(?:[^*]|.{2,})"
}

/// A number of proxies.
#[derive(JsonSchema)]
struct Hops(#[schemars(range(min = 1, max = 4_294_967_295_u32))] u32);

/// A number of connections.
#[derive(JsonSchema, Serialize)]
struct Count(#[schemars(range(min = 1, max = 4_294_967_295_u32))] u32);

fn max_tracked() -> Count {
    Count(100_000)
}

fn learn() -> Timeout {
    Timeout("learn".to_owned())
}

fn initial_limit() -> Positive {
    Positive("4s".to_owned())
}

fn sentinel_max() -> Positive {
    Positive("1h".to_owned())
}

fn margin() -> Margin {
    Margin("10%".to_owned())
}

fn jitter() -> Jitter {
    Jitter("10%".to_owned())
}

fn yes() -> bool {
    true
}

fn names(names: &[&str]) -> Vec<HeaderName> {
    names.iter().map(|name| HeaderName((*name).to_owned())).collect()
}

fn sources() -> Vec<HeaderName> {
    names(&["x-forwarded-for"])
}

fn set() -> Vec<HeaderName> {
    names(&["x-forwarded-for", "x-real-ip"])
}

fn strip() -> Vec<HeaderName> {
    names(&[
        "forwarded",
        "x-client-ip",
        "x-cluster-client-ip",
        "true-client-ip",
        "cf-connecting-ip",
        "fastly-client-ip",
    ])
}

fn peer() -> String {
    "idleguard.peer".to_owned()
}

/// The schema (JSON Schema 2020-12).
pub fn schema() -> Value {
    let generator: SchemaGenerator = SchemaSettings::draft2020_12().into_generator();
    generator.into_root_schema_for::<Configuration>().to_value()
}

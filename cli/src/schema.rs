//! The JSON Schema of the plugin configuration, for editors and reviews.
//!
//! These types describe; the filter's own parser ([`idleguard_core::plugin`]) decides. A test holds the two against each other. What
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
    /// The HTTP filter, the last one before the router. At least one destination or `client_ip` is there.
    Http {
        /// Destinations by name: that of the cluster that users' requests go to, or any other with `cluster` beside it. A cluster
        /// that is none's is left alone.
        #[schemars(default, with = "BTreeMap<String, Destination>", skip_serializing_if = "Option::is_none")]
        destinations: Option<BTreeMap<String, Destination>>,
        /// Who the client is. Without it all headers are left alone.
        #[schemars(default, with = "ClientIp", skip_serializing_if = "Option::is_none")]
        client_ip: Option<ClientIp>,
    },
    /// The scout, on an internal listener of its own, before `tcp_proxy` to the destination's base.
    Scout {
        /// Whose idle timeout it finds out, as the HTTP filter calls it.
        destination: DestinationName,
        /// The cluster that leads to the listener on which this filter is.
        cluster: ClusterName,
        /// The path of its requests: any answer will do.
        #[schemars(default = "root")]
        path: RequestPath,
        /// Their authority; the destination's name if absent.
        #[schemars(default, with = "Host", skip_serializing_if = "Option::is_none")]
        host: Option<Host>,
        /// How long it waits on one connection, from 1s to 24h: what lasts longer is "longer than".
        #[schemars(default = "hour")]
        max_wait: Positive,
    },
}

/// What users' requests go to behind one load balancer: a cluster and its lanes.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Destination {
    /// The base, Envoy's name of the operator's own cluster; the destination's name if absent.
    #[schemars(default, with = "ClusterName", skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterName>,
    /// The `idle_timeout` that the base has in Envoy, from 100ms to 168h; `"0s"` if it is switched off.
    #[schemars(default = "envoys_hour")]
    idle_timeout: Duration,
    /// The lanes: cluster, and the `idle_timeout` that it has in Envoy, from 100ms to 168h, no two the same. Empty: watch only.
    #[schemars(default)]
    lanes: BTreeMap<String, Positive>,
    /// The idle age at which the far end drops a connection, from 100ms to 168h; `"learn"` finds it out.
    #[schemars(default = "learn")]
    lb_idle_timeout: Timeout,
    /// Whether every route of this connection manager leads to the base, so that nobody has to ask where a request goes.
    #[schemars(default)]
    all_requests: bool,
    /// The idle limit while nothing is known. From 100ms to 168h.
    #[schemars(default = "initial_limit")]
    initial_limit: Positive,
    /// Taken off the timeout: below 50%, or below half of `lb_idle_timeout`; the limit is at least half the timeout.
    #[schemars(default = "margin")]
    margin: Margin,
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
    /// A malformed source: `"peer"` falls back to the nearest verified hop, `"omit"` writes nothing, `"reject"` answers 400. By
    /// default what never hands out a trusted address: `"peer"` for a list, `"omit"` for a header that holds one address.
    #[schemars(default, with = "Fallback", skip_serializing_if = "Option::is_none")]
    on_invalid: Option<Fallback>,
    /// A trusted peer, but no source is there: the same three. By default `"peer"`, and `"omit"` if a source holds one address.
    #[schemars(default, with = "Fallback", skip_serializing_if = "Option::is_none")]
    on_missing: Option<Fallback>,
    /// The key of the filter state that holds the true peer.
    #[schemars(default = "peer", length(min = 1))]
    peer_filter_state: String,
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
enum Fallback {
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
    /// A duration, or `"0s"`.
    Duration r"^[0-9]+(ms|s|m|h)$"
    /// A duration, or `"learn"`.
    Timeout r"^(learn|0*[1-9][0-9]*(ms|s|m|h))$"
    /// A percentage below 50%, or a duration.
    Margin r"^(0?[0-4]?[0-9](\.[0-9]{1,3})?%|[0-9]+(ms|s|m|h))$"
    /// A path that starts with `/`, without blanks.
    RequestPath r"^/[!-~]*$"
    /// A host, with or without a port.
    Host r"^[!-~]+$"
    /// An address, a CIDR block, `"private"`, `"loopback"` or `"unix"`.
    Proxy r"^(private|loopback|unix|[0-9A-Fa-f.:]+(/[0-9]{1,3})?)$"
    /// A header's name.
    HeaderName r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
    /// A name of up to 256 bytes, without `=` and control characters.
    DestinationName r"^[^=\x00-\x1f\x7f]+$"
    /// The name of a cluster.
    ClusterName r"^[\s\S]+$"
}

/// A number of proxies.
#[derive(JsonSchema)]
struct Hops(#[schemars(range(min = 1, max = 4_294_967_295_u32))] u32);

fn learn() -> Timeout {
    Timeout("learn".to_owned())
}

fn initial_limit() -> Positive {
    Positive("4s".to_owned())
}

fn hour() -> Positive {
    Positive("1h".to_owned())
}

fn envoys_hour() -> Duration {
    Duration("1h".to_owned())
}

fn root() -> RequestPath {
    RequestPath("/".to_owned())
}

fn margin() -> Margin {
    Margin("10%".to_owned())
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
    names(idleguard_core::client_ip::STRIPPED)
}

fn peer() -> String {
    "idleguard.peer".to_owned()
}

/// The schema (JSON Schema 2020-12).
pub fn schema() -> Value {
    let generator: SchemaGenerator = SchemaSettings::draft2020_12().into_generator();
    generator.into_root_schema_for::<Configuration>().to_value()
}

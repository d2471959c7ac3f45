//! Whether a cluster can be split without changing what its users rely on. Each refusal says why, and what would help.

use anyhow::{Result, bail};
use serde_json::Value;

use crate::bootstrap::{self, HTTP_OPTIONS, TLS, is_message, items, text};
use crate::path::{Path, walk};

/// What the cluster's keys are for: those that are known to belong to one of the two, or to both.
const KNOWN_KEYS: &[&str] = &[
    "alt_stat_name",
    "circuit_breakers",
    "cleanup_interval",
    "close_connections_on_host_health_failure",
    "cluster_type",
    "common_http_protocol_options",
    "common_lb_config",
    "connect_timeout",
    "connection_pool_per_downstream_connection",
    "dns_failure_refresh_rate",
    "dns_jitter",
    "dns_lookup_family",
    "dns_refresh_rate",
    "dns_resolution_config",
    "dns_resolvers",
    "filters",
    "health_checks",
    "http2_protocol_options",
    "http_protocol_options",
    "ignore_health_on_host_removal",
    "lb_policy",
    "least_request_lb_config",
    "load_assignment",
    "load_balancing_policy",
    "max_requests_per_connection",
    "metadata",
    "name",
    "outlier_detection",
    "per_connection_buffer_limit_bytes",
    "preconnect_policy",
    "respect_dns_ttl",
    "round_robin_lb_config",
    "slow_start_config",
    "track_cluster_stats",
    "track_timeout_budgets",
    "transport_socket",
    "type",
    "typed_dns_resolver_config",
    "typed_extension_protocol_options",
    "upstream_bind_config",
    "upstream_connection_options",
    "upstream_http_protocol_options",
    "use_tcp_for_dns_lookups",
    "wait_for_warm_on_init",
    "warm_hosts",
];

/// # Errors
/// If the cluster can't be split safely, with the reason.
pub(super) fn check(root: &Value, name: &str, cluster: &Value) -> Result<()> {
    endpoints(name, cluster)?;
    transport(name, cluster)?;
    http_options(name, cluster)?;
    balancing(name, cluster)?;
    health_checks(name, cluster)?;
    for key in cluster.as_object().into_iter().flat_map(serde_json::Map::keys) {
        if !KNOWN_KEYS.contains(&key.as_str()) {
            bail!(
                "{name} has the key {key}, of which idleguard does not know to which half of a split cluster it belongs"
            );
        }
    }
    uses(root, name, cluster)
}

fn endpoints(name: &str, cluster: &Value) -> Result<()> {
    let kind = bootstrap::word(cluster, "type").unwrap_or_else(|| "STATIC".to_owned());
    let why = match (kind.as_str(), text(cluster, "cluster_type.name")) {
        (
            _,
            Some(
                "envoy.cluster.strict_dns" | "envoy.cluster.logical_dns" | "envoy.cluster.dns" | "envoy.cluster.static",
            ),
        )
        | ("STATIC" | "STRICT_DNS" | "LOGICAL_DNS", None) => None,
        ("EDS", None) => {
            Some("its endpoints come from the control plane (EDS), and so should the split: see docs/cli.md")
        }
        ("ORIGINAL_DST", None) => Some("each of its connections goes to the client's own destination (ORIGINAL_DST)"),
        (_, Some(custom)) if custom.contains("dynamic_forward_proxy") => Some(
            "its hosts come from the requests (dynamic forward proxy), and the connection behind a split does not see them",
        ),
        (_, Some(custom)) if custom.contains("aggregate") => Some("it is made of other clusters: guard those"),
        _ => Some("idleguard does not know its type"),
    };
    if let Some(why) = why {
        bail!("{name} can't be split: {why}");
    }
    if bootstrap::endpoints(cluster).next().is_none() {
        bail!("{name} has no endpoints in its load_assignment");
    }
    for endpoint in bootstrap::endpoints(cluster) {
        if endpoint.pointer("/address/socket_address").is_none() && endpoint.pointer("/address/pipe").is_none() {
            bail!("{name} has an endpoint that is neither an address nor a pipe");
        }
    }
    Ok(())
}

fn transport(name: &str, cluster: &Value) -> Result<()> {
    let Some(socket) = cluster.get("transport_socket") else { return Ok(()) };
    let config = socket.get("typed_config").unwrap_or(&Value::Null);
    if is_message(config, TLS) || is_message(config, "transport_sockets.raw_buffer.v3.RawBuffer") {
        return Ok(());
    }
    let kind = text(config, "@type").and_then(|full| full.rsplit('.').next()).unwrap_or("an unknown one");
    let why = match kind {
        "ProxyProtocolUpstreamTransport" => {
            "it tells the far end each client's address (PROXY protocol), which the connections behind a split do not know"
        }
        "QuicUpstreamTransport" => "HTTP/3 has no TCP connections to guard",
        _ => "idleguard knows TLS and plaintext",
    };
    bail!("{name} has the transport socket {kind}: {why}");
}

/// The cluster's HTTP options, wherever they stand.
fn http_options(name: &str, cluster: &Value) -> Result<()> {
    let empty = Value::Null;
    let options = cluster.pointer(&format!("/typed_extension_protocol_options/{HTTP_OPTIONS}")).unwrap_or(&empty);
    for other in cluster.get("typed_extension_protocol_options").and_then(Value::as_object).into_iter().flatten() {
        if other.0 != HTTP_OPTIONS {
            bail!("{name} has options of {}, which idleguard does not know", other.0);
        }
    }
    let has_tls = bootstrap::does_tls(cluster);
    if options.get("auto_config").is_some() {
        bail!(
            "{name} lets ALPN choose the protocol (auto_config), but behind a split the pool can't see what was chosen: say \
             explicit_http_config, with http_protocol_options or http2_protocol_options"
        );
    }
    if has_tls && options.get("use_downstream_protocol_config").is_some() {
        bail!(
            "{name} takes the client's protocol (use_downstream_protocol_config), but TLS must offer one: say explicit_http_config"
        );
    }
    let http = [options.get("upstream_http_protocol_options"), cluster.get("upstream_http_protocol_options")];
    for key in ["auto_sni", "auto_san_validation"] {
        if http.iter().flatten().any(|http| http.get(key) == Some(&Value::Bool(true))) {
            bail!(
                "{name} takes the TLS server name from each request ({key}), which the connections behind a split do not see: set \
                 `sni` (and match_typed_subject_alt_names) in the UpstreamTlsContext instead"
            );
        }
    }
    let mut has_http3 = false;
    walk(options, &mut |path, _| has_http3 |= path.to_string().ends_with("http3_protocol_options"));
    if has_http3 {
        bail!("{name} speaks HTTP/3, which has no TCP connections to guard");
    }
    Ok(())
}

/// Balancing moves behind the split, where there are connections instead of requests.
fn balancing(name: &str, cluster: &Value) -> Result<()> {
    let several = bootstrap::endpoints(cluster).nth(1).is_some();
    let policy = bootstrap::word(cluster, "lb_policy").unwrap_or_else(|| "ROUND_ROBIN".to_owned());
    let policy = policy.as_str();
    let mut extensions = Vec::new();
    walk(cluster.get("load_balancing_policy").unwrap_or(&Value::Null), &mut |_, value| {
        extensions.extend(text(value, "@type").and_then(|full| full.rsplit('.').next()));
    });
    let known = ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"];
    let unknown = extensions.iter().find(|kind| !["RoundRobin", "LeastRequest", "Random"].contains(kind));
    if known.contains(&policy) && unknown.is_none() || !several && policy != "CLUSTER_PROVIDED" {
        return Ok(());
    }
    bail!(
        "{name} is balanced by {}, which looks at each request; behind a split, where balancing goes, there are only connections",
        unknown.copied().unwrap_or(policy)
    );
}

/// A health check picks its protocol by ALPN, unless the TLS context does; behind a split it must.
fn health_checks(name: &str, cluster: &Value) -> Result<()> {
    let tls = cluster.pointer("/transport_socket/typed_config").filter(|tls| is_message(tls, TLS));
    if tls.is_none_or(|tls| tls.pointer("/common_tls_context/alpn_protocols").is_some()) {
        return Ok(());
    }
    let speaks_http2 = super::split::speaks_http2(cluster);
    for check in items(cluster, "health_checks") {
        let checks_http2 = match check.get("http_health_check") {
            Some(http) => bootstrap::word(http, "codec_client_type").is_some_and(|codec| codec == "HTTP2"),
            None if check.get("grpc_health_check").is_some() => true,
            None => continue,
        };
        if checks_http2 != speaks_http2 && Path::of("tls_options.alpn_protocols").get(check).is_none() {
            bail!(
                "{name} is checked in another HTTP version than it serves, over TLS: give the health check tls_options with \
                 alpn_protocols"
            );
        }
    }
    Ok(())
}

/// Who uses the cluster.
fn uses(root: &Value, name: &str, cluster: &Value) -> Result<()> {
    let references = bootstrap::references(root, name);
    if let Some(other) = references.iter().find(|reference| !reference.is_route) {
        bail!(
            "{name} is used by more than HTTP routes ({}): such requests pass no HTTP filter, so they would meet connections that \
             are about to be closed. Give them a cluster of their own",
            other.path
        );
    }
    let hcms = bootstrap::hcms(root);
    if hcms.iter().all(|hcm| hcm.routes_to(root, name) == Some(false)) {
        bail!("no HTTP route in this file leads to {name}");
    }
    for hcm in hcms.iter().filter(|hcm| hcm.routes_to(root, name) != Some(false)) {
        let filters = items(hcm.config, "http_filters");
        if filters.last().is_none_or(|last| !bootstrap::is_type(last, bootstrap::ROUTER)) {
            bail!("{}: the last HTTP filter is not the router", hcm.path);
        }
        if filters.iter().any(|filter| bootstrap::is_type(filter, "stateful_session.v3.StatefulSession")) {
            bail!(
                "{}: stateful sessions choose a host for each request; behind a split there are only connections",
                hcm.path
            );
        }
    }
    let rewrites = references.iter().any(|reference| {
        let route = reference.path.split_last().map(|(route, _)| route).unwrap_or_default();
        route.get(root).and_then(|route| route.get("auto_host_rewrite")) == Some(&Value::Bool(true)) || {
            let text = reference.path.to_string();
            let route = text.find(".weighted_clusters").and_then(|at| text.get(..at)).unwrap_or_default();
            references_route(root, route)
        }
    });
    if rewrites && super::split::hostname(cluster).is_none() {
        bail!(
            "routes to {name} take the host from its endpoints (auto_host_rewrite), and these have several names or none"
        );
    }
    Ok(())
}

/// Whether the route at this printed path rewrites the host.
fn references_route(root: &Value, route: &str) -> bool {
    let mut found = false;
    walk(root, &mut |path, value| {
        found |= !route.is_empty()
            && value.get("auto_host_rewrite") == Some(&Value::Bool(true))
            && path.to_string() == route;
    });
    found
}

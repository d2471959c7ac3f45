//! Splits a cluster in two.
//!
//! What stands in the file becomes the inner cluster, under a new name, so that its comments stay; before it goes the outer
//! one, which takes the old name and what concerns HTTP and the pool.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::indented;
use crate::bootstrap::{self, HTTP_OPTIONS, TLS, is_message, items, text};
use crate::document::{Document, Spot};
use crate::path::{Path, Step};

/// The names of what a split makes.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The outer cluster, as the routes name it.
    pub(super) cluster: String,
    /// The internal listener.
    pub(super) guard: String,
    /// The inner cluster.
    pub(super) inner: String,
}

impl Names {
    pub(super) fn choose(root: &Value, cluster: &str) -> Self {
        let free = |base: String, taken: &dyn Fn(&str) -> bool| {
            let numbered = (2..).map(|number| format!("{base}-{number}"));
            std::iter::once(base.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(base)
        };
        Self {
            cluster: cluster.to_owned(),
            guard: free(format!("{cluster}-guard"), &|name| bootstrap::listener(root, name).is_some()),
            inner: free(format!("{cluster}-lb"), &|name| bootstrap::cluster(root, name).is_some()),
        }
    }
}

/// Keys that concern HTTP and the pool: they leave for the outer cluster.
const OUTER: [&str; 12] = [
    "alt_stat_name",
    "common_http_protocol_options",
    "connection_pool_per_downstream_connection",
    "http2_protocol_options",
    "http_protocol_options",
    "max_requests_per_connection",
    "preconnect_policy",
    "track_cluster_stats",
    "track_timeout_budgets",
    "typed_extension_protocol_options",
    "upstream_http_protocol_options",
    "circuit_breakers",
];

/// Keys that both need.
const BOTH: [&str; 2] = ["metadata", "per_connection_buffer_limit_bytes"];

pub(super) fn split(document: &mut Document, path: &Path, names: &Names, notes: &mut Vec<String>) -> Result<()> {
    let cluster = path.get(document.value()).context("no cluster")?.clone();
    let outer = outer(document, path, &cluster, names);
    explain(&cluster, names, notes);
    for key in OUTER.iter().filter(|key| cluster.get(**key).is_some()) {
        document.remove(&path.then(*key))?;
    }
    if let Some(limits) = connection_limits(&cluster) {
        let comment = "# The connections of the pool, each of which is one here; limits of requests are above.";
        let snippet = format!("{comment}\n{}", crate::document::yaml(&limits));
        document.insert_key(path, "circuit_breakers", Spot::After("connect_timeout"), &snippet)?;
    }
    offer_protocol(document, path, &cluster)?;
    keep_checked_host(document, path, &cluster, names)?;
    if text(&cluster, "load_assignment.cluster_name").is_some() {
        document.set(&path.keys("load_assignment.cluster_name"), names.inner.as_str())?;
    }
    document.set(&path.then("name"), names.inner.as_str())?;
    let (list, Step::Index(index)) = path.split_last().context("no list")? else { return Ok(()) };
    document.insert_item(&list, *index, &outer)
}

/// The outer cluster's source.
fn outer(document: &Document, path: &Path, cluster: &Value, names: &Names) -> String {
    let mut out = format!(
        "\
# What the routes name. Its connections are in-process: each leads through the listener {guard} to one connection of
# {inner}, which is the far end. TLS, DNS, balancing, health checks and outlier detection belong there; HTTP's options,
# limits of requests and retries belong here.
name: {name}
type: STATIC
connect_timeout: 1s # in-process: does not wait for the far end
",
        guard = names.guard,
        inner = names.inner,
        name = plain(&names.cluster),
    );
    for key in BOTH.iter().chain(&OUTER).filter(|key| cluster.get(**key).is_some()) {
        let source = document.source(&path.then(*key));
        let lines: Vec<&str> = source.lines().collect();
        let first = lines.iter().position(|line| !line.starts_with('#')).unwrap_or_default();
        let (comments, body) = lines.split_at_checked(first).unwrap_or_default();
        for comment in comments {
            out.push_str(&format!("{comment}\n"));
        }
        let value = cluster.get(*key).unwrap_or(&Value::Null);
        match (body, value) {
            ([line], Value::Object(_) | Value::Array(_)) if !line.starts_with(['{', '[']) => {
                out.push_str(&format!("{key}:\n  {line}\n"));
            }
            ([line], _) => out.push_str(&format!("{key}: {line}\n")),
            (lines, _) => {
                out.push_str(&format!("{key}:\n"));
                lines.iter().for_each(|line| out.push_str(&format!("  {line}\n")));
            }
        }
    }
    let mut endpoint = Map::new();
    if let Some(hostname) = hostname(cluster) {
        endpoint.insert("hostname".to_owned(), hostname.into()); // for auto_host_rewrite and access logs
    }
    let address = json!({ "envoy_internal_address": { "server_listener_name": names.guard } });
    endpoint.insert("address".to_owned(), address);
    out.push_str(&format!(
        "\
transport_socket:
  name: envoy.transport_sockets.internal_upstream
  typed_config:
    \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport
    transport_socket:
      name: envoy.transport_sockets.raw_buffer
      typed_config:
        \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer
load_assignment:
  cluster_name: {name}
  endpoints:
  - lb_endpoints:
    - endpoint:
        {endpoint}
",
        name = plain(&names.cluster),
        endpoint = indented(&Value::Object(endpoint), 8),
    ));
    out
}

fn plain(name: &str) -> String {
    crate::document::yaml(&name.into())
}

/// The one name that all endpoints have, if it is one.
pub(super) fn hostname(cluster: &Value) -> Option<String> {
    let by_dns = bootstrap::word(cluster, "type").is_some_and(|kind| kind.ends_with("_DNS"))
        || cluster.get("cluster_type").is_some();
    let mut names = bootstrap::endpoints(cluster).map(|endpoint| {
        let address = text(endpoint, "address.socket_address.address").filter(|_| by_dns);
        text(endpoint, "hostname").filter(|name| !name.is_empty()).or(address)
    });
    let first = names.next()??;
    names.all(|other| other == Some(first)).then(|| first.to_owned())
}

/// Whether the pool speaks HTTP/2 to the far end.
pub(super) fn speaks_http2(cluster: &Value) -> bool {
    let explicit =
        format!("/typed_extension_protocol_options/{HTTP_OPTIONS}/explicit_http_config/http2_protocol_options");
    cluster.pointer(&explicit).is_some() || cluster.get("http2_protocol_options").is_some()
}

/// Envoy's HTTP pool offers its protocol by ALPN; the inner cluster has no such pool, so the TLS context must.
fn offer_protocol(document: &mut Document, path: &Path, cluster: &Value) -> Result<()> {
    let socket = path.keys("transport_socket.typed_config");
    let Some(tls) = cluster.pointer("/transport_socket/typed_config").filter(|tls| is_message(tls, TLS)) else {
        return Ok(());
    };
    let context = socket.then("common_tls_context");
    if tls.pointer("/common_tls_context/alpn_protocols").is_some() {
        return Ok(());
    }
    let protocol = if speaks_http2(cluster) { "h2" } else { "http/1.1" };
    let comment = "# What the pool of the outer cluster speaks; it can't offer it itself.";
    match tls.get("common_tls_context") {
        Some(_) => document.insert_key(&context, "alpn_protocols", Spot::End, &format!("{comment}\n[{protocol}]")),
        None => {
            let snippet = format!("{comment}\n{{ alpn_protocols: [{protocol}] }}");
            document.insert_key(&socket, "common_tls_context", Spot::End, &snippet)
        }
    }
}

/// A health check names the cluster as its host unless it is told one, and the cluster has another name now.
fn keep_checked_host(document: &mut Document, path: &Path, cluster: &Value, names: &Names) -> Result<()> {
    for (at, check) in items(cluster, "health_checks").iter().enumerate() {
        for (kind, key) in [("http_health_check", "host"), ("grpc_health_check", "authority")] {
            if check.get(kind).is_some_and(|check| check.is_object() && text(check, key).is_none()) {
                let place = path.then("health_checks").then(at).then(kind);
                document.insert_key(&place, key, Spot::End, &plain(&names.cluster))?;
            }
        }
    }
    Ok(())
}

/// The limits that count connections, for the inner cluster.
fn connection_limits(cluster: &Value) -> Option<Value> {
    let thresholds: Vec<Value> = items(cluster, "circuit_breakers.thresholds")
        .iter()
        .filter_map(|threshold| {
            let kept = ["priority", "max_connections", "max_pending_requests"];
            let limits: Map<String, Value> =
                kept.iter().filter_map(|key| Some(((*key).to_owned(), threshold.get(*key)?.clone()))).collect();
            limits.keys().any(|key| key.starts_with("max_")).then_some(Value::Object(limits))
        })
        .collect();
    (!thresholds.is_empty()).then(|| json!({ "thresholds": thresholds }))
}

/// What changes for the operator.
fn explain(cluster: &Value, names: &Names, notes: &mut Vec<String>) {
    let Names { cluster: name, inner, .. } = names;
    if bootstrap::endpoints(cluster).nth(1).is_some() {
        notes.push(format!("{inner} balances connections over its endpoints, where {name} balanced requests"));
    }
    if cluster.get("outlier_detection").is_some() {
        notes.push(format!("outlier detection is on {inner} now: it sees connections that fail, but no 5xx responses"));
    }
    if cluster.get("health_checks").is_some() {
        notes.push(format!("health checks are on {inner} now: their statistics are cluster.{inner}.health_check.*"));
    }
    notes.push(format!(
        "a far end that can't be reached shows as a reset (503 UC), no longer as a connect failure (503 UF): where a route of {name} \
         is retried on connect-failure, add reset"
    ));
}

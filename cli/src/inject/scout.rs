//! The scout: a cluster, an internal listener behind it, and nothing that users' requests pass.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::filters::{spaced, vm_config};
use super::{Request, ScoutRequest, append, extension, find_cluster, free, indented, plain};
use crate::bootstrap;
use crate::document::{Document, Spot};

pub(super) const CLUSTER_COMMENT: &str = "# idleguard: leads the scout's requests to its listener, in-process.";
pub(super) const LISTENER_COMMENT: &str =
    "# idleguard: not on the network; only the scout's own requests come here, from this process.";

pub(super) fn configuration(destination: &str, cluster: &str, request: &ScoutRequest) -> Value {
    let mut scout = json!({ "filter": "scout", "destination": destination, "cluster": cluster });
    for (key, value) in [("path", &request.path), ("host", &request.host)] {
        if let (Some(value), Value::Object(entries)) = (value, &mut scout) {
            entries.insert(key.to_owned(), value.as_str().into());
        }
    }
    scout
}

/// Puts in what is missing.
pub(super) fn ensure(document: &mut Document, request: &Request, notes: &mut Vec<String>) -> Result<()> {
    let Some(wanted) = &request.scout else { return Ok(()) };
    let base = request.cluster.as_str();
    let root = document.value();
    let (_, cluster) = find_cluster(root, base)?;
    let plugins = bootstrap::plugins(root);
    let mut http = plugins.iter().filter_map(|plugin| plugin.http()).flat_map(|http| &http.destinations);
    let destination =
        http.find(|(_, policy)| policy.cluster == base).map_or(base, |(name, _)| name.as_str()).to_owned();
    if plugins.iter().filter_map(|plugin| plugin.scout()).any(|scout| scout.destination == destination) {
        return Ok(());
    }
    let is_taken = |name: &str| bootstrap::cluster(root, name).is_some() || bootstrap::listener(root, name).is_some();
    let name = free(&format!("{base}-scout"), &is_taken);
    let speaks_http2 = bootstrap::speaks_http2(cluster);
    let does_tls = bootstrap::does_tls(cluster);
    if crate::path::Path::of("transport_socket.typed_config")
        .get(cluster)
        .is_some_and(|socket| bootstrap::is_message(socket, "QuicUpstreamTransport"))
    {
        bail!("{base} speaks HTTP/3, and tcp_proxy behind a scout can't");
    }
    if does_tls && bootstrap::http_options(cluster).is_some_and(|options| options.get("auto_config").is_some()) {
        notes.push(format!("{base} lets ALPN choose the protocol; the scout asks in HTTP/1.1"));
    }
    let vm = vm_config(document, request);
    let listener =
        listener(&name, base, &vm, &configuration(&destination, &name, wanted), does_tls.then_some(speaks_http2));
    let snippet = cluster_snippet(&name, speaks_http2);
    extension(document)?;
    append(document, &bootstrap::resources("listeners"), Spot::Before("clusters"), LISTENER_COMMENT, &listener)?;
    document.add_item(&bootstrap::resources("clusters"), &format!("{CLUSTER_COMMENT}\n{snippet}"))
}

/// The internal listener. `tls` is whether the far end speaks HTTP/2 behind TLS.
fn listener(name: &str, base: &str, vm: &Value, configuration: &Value, tls: Option<bool>) -> String {
    let alpn = tls.map_or_else(String::new, |speaks_http2| {
        format!(
            "  # What the scout speaks is settled here, so that the cluster's TLS stays as it is.
  - name: alpn
    typed_config:
      \"@type\": type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config
      on_new_connection:
      - object_key: envoy.network.application_protocols
        format_string: {{ text_format_source: {{ inline_string: {} }} }}
        shared_with_upstream: ONCE
",
            if speaks_http2 { "h2" } else { "http/1.1" }
        )
    });
    format!(
        "\
name: {scout}
internal_listener: {{}}
filter_chains:
- filters:
  - name: idleguard
    typed_config:
      \"@type\": type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm
      config:
        name: idleguard-scout
        failure_policy: FAIL_RELOAD
        vm_config:
          {vm}
        configuration:
          \"@type\": type.googleapis.com/google.protobuf.StringValue
          value: '{configuration}'
{alpn}  - name: tcp
    typed_config:
      \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: {scout}
      cluster: {base}
      idle_timeout: 0s # off: how long the scout's connections idle is the far end's decision
",
        scout = plain(name),
        base = plain(base),
        vm = indented(vm, 10),
        configuration = spaced(configuration).replace('\'', "''"),
    )
}

/// The cluster that leads to it.
fn cluster_snippet(name: &str, speaks_http2: bool) -> String {
    // One request a connection, so that two at once make two.
    let protocol = if speaks_http2 {
        "http2_protocol_options: { max_concurrent_streams: 1 }"
    } else {
        "http_protocol_options: {}"
    };
    format!(
        "\
name: {scout}
type: STATIC
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    common_http_protocol_options: {{ idle_timeout: 0s }} # off, as tcp_proxy's
    explicit_http_config: {{ {protocol} }}
transport_socket:
  name: envoy.transport_sockets.internal_upstream
  typed_config:
    \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport
    transport_socket:
      name: envoy.transport_sockets.raw_buffer
      typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer }}
load_assignment:
  cluster_name: {scout}
  endpoints:
  - lb_endpoints:
    - endpoint: {{ address: {{ envoy_internal_address: {{ server_listener_name: {scout} }} }} }}
",
        scout = plain(name),
    )
}

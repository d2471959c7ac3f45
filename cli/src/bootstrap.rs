//! What `inject` and `check` look for in a bootstrap: listeners, connection managers, clusters, and idleguard itself.

use idleguard::config::{self, Config};
use serde_json::{Value, json};

use crate::path::{Path, Step, walk};

/// The type of Envoy's HTTP connection manager.
pub const HCM: &str = "filters.network.http_connection_manager.v3.HttpConnectionManager";
/// The type of the router, the last HTTP filter.
pub const ROUTER: &str = "filters.http.router.v3.Router";
/// The type of `tcp_proxy`.
pub const TCP_PROXY: &str = "filters.network.tcp_proxy.v3.TcpProxy";
/// The type of the HTTP Wasm filter.
pub const HTTP_WASM: &str = "filters.http.wasm.v3.Wasm";
/// The type of the network Wasm filter.
pub const NETWORK_WASM: &str = "filters.network.wasm.v3.Wasm";
/// The type of the network filter that records the peer.
pub const RECORDER: &str = "filters.network.set_filter_state.v3.Config";
/// The type of the HTTP filter that can divide a pool.
pub const HTTP_SET_FILTER_STATE: &str = "filters.http.set_filter_state.v3.Config";
/// The type of TLS towards the far end.
pub const TLS: &str = "transport_sockets.tls.v3.UpstreamTlsContext";
/// The type of the transport socket towards an internal listener.
pub const INTERNAL_UPSTREAM: &str = "transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
/// The key of a cluster's HTTP options.
pub const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// An HTTP connection manager.
#[derive(Clone, Debug)]
pub struct Hcm<'a> {
    /// Its filter chain's list of network filters.
    pub filters: Path,
    /// Its place among them.
    pub index: usize,
    /// Its `typed_config`.
    pub path: Path,
    /// The same.
    pub config: &'a Value,
}

/// A plugin configuration of idleguard's, wherever it stands.
#[derive(Debug)]
pub struct Plugin<'a> {
    /// The `typed_config` of the Wasm filter.
    pub path: Path,
    /// Its `config`, Envoy's `PluginConfig`.
    pub plugin: &'a Value,
    /// Whether it is an HTTP filter, by its type.
    pub is_http: bool,
    /// What idleguard says to its configuration.
    pub checked: Result<config::Checked, config::ConfigError>,
}

/// How a cluster's name is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Where the name stands.
    pub path: Path,
    /// Whether it is a route's cluster, or one of its weighted clusters.
    pub is_route: bool,
}

/// The message type of an extension, if it is this one.
pub fn is_type(extension: &Value, suffix: &str) -> bool {
    is_message(extension.get("typed_config").unwrap_or(&Value::Null), suffix)
}

/// Whether a message is of this type.
pub fn is_message(message: &Value, suffix: &str) -> bool {
    message.get("@type").and_then(Value::as_str).is_some_and(|name| name.ends_with(suffix))
}

/// The text at a path of keys, joined by dots.
pub fn text<'a>(value: &'a Value, keys: &str) -> Option<&'a str> {
    Path::of(keys).get(value).and_then(Value::as_str)
}

/// The word of an enumeration at a path of keys, as protobuf spells it: Envoy takes it in any case.
pub fn word(value: &Value, keys: &str) -> Option<String> {
    text(value, keys).map(str::to_ascii_uppercase)
}

/// The items of a list at a path of keys.
pub fn items<'a>(value: &'a Value, keys: &str) -> &'a [Value] {
    Path::of(keys).get(value).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The path of `static_resources.<kind>`.
pub fn resources(kind: &str) -> Path {
    Path::of("static_resources").then(kind)
}

/// A static cluster by its name.
pub fn cluster<'a>(root: &'a Value, name: &str) -> Option<(Path, &'a Value)> {
    named(root, "clusters", name)
}

/// A static listener by its name.
pub fn listener<'a>(root: &'a Value, name: &str) -> Option<(Path, &'a Value)> {
    named(root, "listeners", name)
}

fn named<'a>(root: &'a Value, kind: &str, name: &str) -> Option<(Path, &'a Value)> {
    let all = items(root, &format!("static_resources.{kind}"));
    let at = all.iter().position(|one| text(one, "name") == Some(name))?;
    Some((resources(kind).then(at), all.get(at)?))
}

/// Every static HTTP connection manager.
pub fn hcms(root: &Value) -> Vec<Hcm<'_>> {
    let mut found = Vec::new();
    walk(root, &mut |path, value| {
        let Some((extension, Step::Key(key))) = path.split_last() else { return };
        if key != "typed_config" || !is_message(value, HCM) {
            return;
        }
        if let Some((filters, Step::Index(index))) = extension.split_last() {
            found.push(Hcm { filters, index: *index, path: path.clone(), config: value });
        }
    });
    found
}

impl Hcm<'_> {
    /// Whether it may route to this cluster, as far as the file tells: `None` if its routes come from elsewhere.
    pub fn routes_to(&self, root: &Value, cluster: &str) -> Option<bool> {
        if references(root, cluster).iter().any(|reference| reference.is_route && reference.path.is_within(&self.path))
        {
            return Some(true);
        }
        let mut is_open = self.config.get("rds").is_some() || self.config.get("scoped_routes").is_some();
        walk(self.config, &mut |path, _| {
            let last = path.0.last();
            is_open |= ["cluster_header", "cluster_specifier_plugin", "inline_cluster_specifier_plugin", "vhds"]
                .iter()
                .any(|key| last == Some(&Step::from(*key)));
        });
        if is_open { None } else { Some(false) }
    }
}

/// Every place where a cluster is used, as far as a file can tell: code (Lua, Wasm) may name one, too.
pub fn references(root: &Value, cluster: &str) -> Vec<Reference> {
    let mut found = Vec::new();
    walk(root, &mut |path, value| {
        if value.as_str() != Some(cluster) {
            return;
        }
        let keys: Vec<&str> = path
            .0
            .iter()
            .map(|step| match step {
                Step::Key(key) => key.as_str(),
                Step::Index(_) => "[]",
            })
            .collect();
        let is_in_routes = keys.contains(&"route_config") || keys.contains(&"virtual_hosts");
        let reference = match keys.as_slice() {
            [.., "load_assignment", "cluster_name"] if keys.starts_with(&["static_resources", "clusters"]) => None,
            [.., "route", "cluster"] | [.., "weighted_clusters", "clusters", "[]", "name"] => Some(is_in_routes),
            [.., "node", "cluster"] => None, // the name of Envoy's own service cluster
            [.., key]
                if ["cluster", "cluster_name", "clusters", "cluster_names"].iter().any(|end| key.ends_with(end)) =>
            {
                Some(false)
            }
            [.., "clusters" | "cluster_names", "[]"] => Some(false),
            _ => None,
        };
        if let Some(is_route) = reference {
            found.push(Reference { path: path.clone(), is_route });
        }
    });
    found
}

/// Every plugin configuration of idleguard's: in listeners, in the default of a dynamic one, and in a file of discovered
/// extensions.
pub fn plugins(root: &Value) -> Vec<Plugin<'_>> {
    let mut found = Vec::new();
    walk(root, &mut |path, value| {
        let is_http = is_message(value, HTTP_WASM);
        if !is_http && !is_message(value, NETWORK_WASM) {
            return;
        }
        let Some(plugin) = value.get("config") else { return };
        let checked = config::parse(&configuration(plugin));
        if checked.is_ok() || is_called_idleguard(plugin) {
            found.push(Plugin { path: path.clone(), plugin, is_http, checked });
        }
    });
    found
}

/// What Envoy hands to the plugin; a `Struct` as JSON, which the filter reads from its bytes.
pub fn configuration(plugin: &Value) -> Vec<u8> {
    match plugin.get("configuration") {
        None => Vec::new(),
        Some(message) if is_message(message, "google.protobuf.StringValue") => {
            text(message, "value").unwrap_or_default().as_bytes().to_vec()
        }
        Some(message) => message.get("value").unwrap_or(&Value::Null).to_string().into_bytes(),
    }
}

fn is_called_idleguard(plugin: &Value) -> bool {
    let vm = plugin.get("vm_config").unwrap_or(&Value::Null);
    [text(plugin, "name"), text(vm, "vm_id"), text(vm, "code.local.filename"), text(vm, "code.remote.http_uri.uri")]
        .into_iter()
        .flatten()
        .any(|name| name.contains("idleguard"))
}

impl Plugin<'_> {
    /// The configuration, if it is accepted.
    pub fn config(&self) -> Option<&Config> {
        self.checked.as_ref().ok().map(|checked| &checked.config)
    }

    /// What Envoy tells VMs apart by: id, code and VM configuration.
    pub fn vm(&self) -> Value {
        let vm = self.plugin.get("vm_config").unwrap_or(&Value::Null);
        let part = |key: &str| vm.get(key).cloned().unwrap_or_default();
        let id = text(vm, "vm_id").unwrap_or_default();
        json!({ "vm_id": id, "code": part("code"), "configuration": part("configuration") })
    }
}

/// The internal listener that all endpoints of a cluster lead to.
pub fn internal_listener_of(cluster: &Value) -> Option<&str> {
    let mut listeners =
        endpoints(cluster).map(|endpoint| text(endpoint, "address.envoy_internal_address.server_listener_name"));
    let first = listeners.next()??;
    listeners.all(|other| other == Some(first)).then_some(first)
}

/// The endpoints of a cluster with a static `load_assignment`.
pub fn endpoints(cluster: &Value) -> impl Iterator<Item = &Value> {
    items(cluster, "load_assignment.endpoints")
        .iter()
        .flat_map(|locality| items(locality, "lb_endpoints"))
        .filter_map(|endpoint| endpoint.get("endpoint"))
}

/// The cluster that an internal listener's `tcp_proxy` leads to, and the paths of its filters' `typed_config`.
pub fn filters_of(root: &Value, listener: &str) -> Vec<(Path, Value)> {
    let Some((path, listener)) = self::listener(root, listener) else { return Vec::new() };
    let mut found = Vec::new();
    walk(listener, &mut |below, value| {
        if below.0.last() == Some(&Step::from("typed_config")) {
            found.push((Path([path.0.clone(), below.0.clone()].concat()), value.clone()));
        }
    });
    found
}

/// Whether a transport socket encrypts, or wraps one that does.
pub fn does_tls(cluster: &Value) -> bool {
    let mut found = false;
    walk(cluster, &mut |path, value| {
        let is_socket = path.0.first() == Some(&Step::from("transport_socket"))
            || path.0.first() == Some(&Step::from("transport_socket_matches"));
        found |= is_socket && (is_message(value, TLS) || is_message(value, "QuicUpstreamTransport"));
    });
    found
}

//! What `inject` and `check` look for in a bootstrap: listeners, connection managers, routes, clusters, and idleguard itself.
//!
//! All of it reads [`Document::value`](crate::document::Document::value), whose names are in snake_case. A `TypedStruct` is read
//! as the message that it stands for.

use std::time::Duration;

use idleguard_core::config::ConfigError;
use idleguard_core::plugin::{self, Checked, Config, HttpConfig, ScoutConfig};
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
/// The type of TLS towards the far end.
pub const TLS: &str = "transport_sockets.tls.v3.UpstreamTlsContext";
/// The type of the bootstrap extension without which there are no internal listeners.
pub const INTERNAL_LISTENER: &str = "internal_listener.v3.InternalListener";
/// The type of the extension that changes headers before routes are looked at.
pub const EARLY_MUTATION: &str = "early_header_mutation.header_mutation.v3.HeaderMutation";
/// The key of a cluster's HTTP options.
pub const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// The header that chooses a lane.
pub const LANE_HEADER: &str = "x-idleguard-lane";

/// An HTTP connection manager.
#[derive(Clone, Debug)]
pub struct Hcm<'a> {
    /// Its filter chain's list of network filters.
    pub filters: Path,
    /// Its place among them.
    pub index: usize,
    /// Where its fields are.
    pub path: Path,
    /// Its fields.
    pub config: &'a Value,
}

/// A plugin configuration of idleguard's, wherever it stands.
#[derive(Debug)]
pub struct Plugin<'a> {
    /// Where the fields of the Wasm filter are.
    pub path: Path,
    /// Its `config`, Envoy's `PluginConfig`.
    pub plugin: &'a Value,
    /// Whether it is an HTTP filter, by its type.
    pub is_http: bool,
    /// What idleguard says to its configuration.
    pub checked: Result<Checked, ConfigError>,
}

/// How a cluster's name is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Where the name stands.
    pub path: Path,
    /// Whether it is a route's cluster, or one of its weighted clusters.
    pub is_route: bool,
}

/// A route, within one connection manager.
#[derive(Clone, Debug)]
pub struct Route<'a> {
    /// Where it is.
    pub path: Path,
    /// Its fields.
    pub config: &'a Value,
    /// Its virtual host.
    pub virtual_host: &'a Value,
    /// Its route configuration.
    pub configuration: &'a Value,
}

/// The type and the fields of a message in an `Any`; of a `TypedStruct` those that it stands for.
pub fn message(any: &Value) -> Option<(&str, &Value)> {
    let name = any.get("@type")?.as_str()?;
    match (any.get("type_url").and_then(Value::as_str), any.get("value")) {
        (Some(inner), Some(fields))
            if name.ends_with("type.v1.TypedStruct") || name.ends_with("type.v3.TypedStruct") =>
        {
            Some((inner, fields))
        }
        _ => Some((name, any)),
    }
}

/// The same, with the path to the fields of the one at `path`.
fn message_at<'a>(path: &Path, any: &'a Value) -> Option<(&'a str, Path, &'a Value)> {
    let (name, fields) = message(any)?;
    let is_wrapped = !std::ptr::eq(fields, any);
    Some((name, if is_wrapped { path.then("value") } else { path.clone() }, fields))
}

/// Whether an extension's message is of this type.
pub fn is_type(extension: &Value, suffix: &str) -> bool {
    is_message(extension.get("typed_config").unwrap_or(&Value::Null), suffix)
}

/// Whether a message is of this type.
pub fn is_message(any: &Value, suffix: &str) -> bool {
    message(any).is_some_and(|(name, _)| name.ends_with(suffix))
}

/// The fields of an extension's message.
pub fn fields(extension: &Value) -> &Value {
    extension.get("typed_config").and_then(message).map_or(&Value::Null, |(_, fields)| fields)
}

/// The text at a path of keys, joined by dots.
pub fn text<'a>(value: &'a Value, keys: &str) -> Option<&'a str> {
    Path::of(keys).get(value).and_then(Value::as_str)
}

/// The word of an enumeration at a path of keys, in any case or as a number; `words` are all, by their numbers.
pub fn word(value: &Value, keys: &str, words: &[&'static str]) -> Option<&'static str> {
    match Path::of(keys).get(value)? {
        Value::String(text) => words.iter().find(|word| word.eq_ignore_ascii_case(text)).copied(),
        number => words.get(usize::try_from(number.as_u64()?).ok()?).copied(),
    }
}

/// `Cluster.DiscoveryType`.
pub const CLUSTER_TYPES: &[&str] = &["STATIC", "STRICT_DNS", "LOGICAL_DNS", "EDS", "ORIGINAL_DST"];
/// `FailurePolicy` of Wasm plugins.
pub const FAILURE_POLICIES: &[&str] = &["UNSPECIFIED", "FAIL_RELOAD", "FAIL_CLOSED", "FAIL_OPEN"];

/// The items of a list at a path of keys.
pub fn items<'a>(value: &'a Value, keys: &str) -> &'a [Value] {
    Path::of(keys).get(value).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The path of `static_resources.<kind>`.
pub fn resources(kind: &str) -> Path {
    Path::of("static_resources").then(kind)
}

/// The static clusters.
pub fn clusters(root: &Value) -> &[Value] {
    items(root, "static_resources.clusters")
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

/// A duration in protobuf's JSON: `"3600s"`, `"0.5s"`.
pub fn protobuf_duration(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.strip_suffix('s')?.parse().ok()?).ok()
}

/// A duration as protobuf's JSON has it.
pub fn duration_text(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

/// Where a cluster's `common_http_protocol_options` are, or would be: among its HTTP options, or, where the older keys are used,
/// beside them.
pub fn common_options(cluster: &Value) -> Path {
    const OLDER: [&str; 4] = [
        "common_http_protocol_options",
        "http_protocol_options",
        "http2_protocol_options",
        "upstream_http_protocol_options",
    ];
    let at = Path::of("typed_extension_protocol_options").then(HTTP_OPTIONS);
    let options = match at.get(cluster) {
        Some(any) => message_at(&at, any).map_or(at, |(_, fields_at, _)| fields_at),
        None if OLDER.iter().any(|key| cluster.get(*key).is_some()) => Path::default(),
        None => at,
    };
    options.then("common_http_protocol_options")
}

/// A cluster's HTTP options.
pub fn http_options(cluster: &Value) -> Option<&Value> {
    let any = cluster.get("typed_extension_protocol_options")?.get(HTTP_OPTIONS)?;
    Some(message(any).map_or(any, |(_, fields)| fields))
}

/// The `idle_timeout` that Envoy gives a cluster: 1 h unless it is set, [`Duration::MAX`] if it is switched off.
pub fn idle_timeout(cluster: &Value) -> Option<Duration> {
    match common_options(cluster).then("idle_timeout").get(cluster) {
        None | Some(Value::Null) => Some(Duration::from_secs(3600)),
        Some(given) => {
            protobuf_duration(given.as_str()?).map(|timeout| if timeout.is_zero() { Duration::MAX } else { timeout })
        }
    }
}

/// Every static HTTP connection manager.
pub fn hcms(root: &Value) -> Vec<Hcm<'_>> {
    let mut found = Vec::new();
    walk(root, &mut |path, value| {
        let Some((extension, Step::Key(key))) = path.split_last() else { return };
        let Some((name, fields_at, config)) = message_at(path, value) else { return };
        if key != "typed_config" || !name.ends_with(HCM) {
            return;
        }
        if let Some((filters, Step::Index(index))) = extension.split_last() {
            found.push(Hcm { filters, index: *index, path: fields_at, config });
        }
    });
    found
}

impl<'a> Hcm<'a> {
    /// Its route configurations, as far as the file has them.
    pub fn route_configurations(&self) -> Vec<(Path, &'a Value)> {
        let mut found = Vec::new();
        walk(self.config, &mut |below, value| {
            if value.get("virtual_hosts").is_some_and(Value::is_array) {
                found.push((self.path.join(below), value));
            }
        });
        found
    }

    /// Its routes in order, as far as the file has them; of a matcher those in its `RouteList`s.
    pub fn routes(&self) -> Vec<Route<'a>> {
        let mut found = Vec::new();
        for (path, configuration) in self.route_configurations() {
            for (at, virtual_host) in items(configuration, "virtual_hosts").iter().enumerate() {
                let host = path.then("virtual_hosts").then(at);
                walk(virtual_host, &mut |below, value| {
                    let is_list = below.0.last() == Some(&"routes".into())
                        && (below.0.len() == 1 || below.0.first() == Some(&"matcher".into()));
                    let Some(routes) = value.as_array().filter(|_| is_list) else { return };
                    let route =
                        |(at, config)| Route { path: host.join(below).then(at), config, virtual_host, configuration };
                    found.extend(routes.iter().enumerate().map(route));
                });
            }
        }
        found
    }

    /// Where a matcher has one route to this cluster, beside which no other has a place.
    pub fn lone_routes(&self, root: &Value, cluster: &str) -> Vec<Path> {
        let listed = self.routes();
        let is_lone =
            |path: &Path| path.is_within(&self.path) && !listed.iter().any(|route| path.is_within(&route.path));
        let routes = references(root, cluster).into_iter().filter(|reference| reference.is_route);
        routes.map(|reference| reference.path).filter(is_lone).collect()
    }

    /// Whether it may route to this cluster, as far as the file tells: `None` if its routes come from elsewhere.
    pub fn routes_to(&self, cluster: &str) -> Option<bool> {
        if self.routes().iter().any(|route| route.leads_to(cluster)) {
            return Some(true);
        }
        if self.is_open() { None } else { Some(false) }
    }

    /// Whether some of its routes are not in the file, or lead where only a request can tell.
    pub fn is_open(&self) -> bool {
        const OPEN: [&str; 6] =
            ["cluster_specifier_plugin", "inline_cluster_specifier_plugin", "matcher", "rds", "scoped_rds", "vhds"];
        let mut is_open = false;
        walk(self.config, &mut |path, _| {
            let is_route = !path.0.iter().any(|step| *step == Step::from("http_filters"));
            is_open |= is_route && OPEN.iter().any(|key| path.0.last() == Some(&Step::from(*key)));
            is_open |= is_cluster_header(path);
        });
        is_open
    }

    /// Whether every request that it routes at all goes to this cluster, or to a lane of it.
    pub fn leads_only_to(&self, clusters: &[&str]) -> bool {
        let routes = self.routes();
        let mut targets = routes.iter().flat_map(|route| route.clusters());
        !self.is_open() && !routes.is_empty() && targets.all(|target| clusters.contains(&target))
    }

    /// Its lists of HTTP filters: its own, and those of upgrades that have their own.
    pub fn filter_lists(&self) -> Vec<(Path, &'a [Value])> {
        let own = (self.path.then("http_filters"), items(self.config, "http_filters"));
        let upgrades = items(self.config, "upgrade_configs").iter().enumerate();
        let upgrades = upgrades.filter(|(_, upgrade)| !items(upgrade, "filters").is_empty()).map(|(at, upgrade)| {
            (self.path.then("upgrade_configs").then(at).then("filters"), items(upgrade, "filters"))
        });
        std::iter::once(own).chain(upgrades).collect()
    }

    /// Whether a filter of it comes by discovery: it may be idleguard.
    pub fn has_discovered_filter(&self) -> bool {
        items(self.config, "http_filters").iter().any(|filter| filter.get("config_discovery").is_some())
    }
}

impl<'a> Route<'a> {
    /// The clusters that it names.
    pub fn clusters(&self) -> Vec<&'a str> {
        let weighted = items(self.config, "route.weighted_clusters.clusters").iter();
        text(self.config, "route.cluster").into_iter().chain(weighted.filter_map(|one| text(one, "name"))).collect()
    }

    /// Whether it names this cluster.
    pub fn leads_to(&self, cluster: &str) -> bool {
        self.clusters().contains(&cluster)
    }

    /// The token that a request must have to take it.
    pub fn token(&self) -> Option<&'a str> {
        token(self.config)
    }
}

/// Whether a route's cluster, or one of its weighted clusters, is what a header says: that of a mirror leads no request astray.
pub fn is_cluster_header(path: &Path) -> bool {
    let keys: Vec<Option<&str>> = path
        .0
        .iter()
        .map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        })
        .collect();
    matches!(
        keys.as_slice(),
        [.., Some("route"), Some("cluster_header")]
            | [.., Some("weighted_clusters"), Some("clusters"), None, Some("cluster_header")]
    )
}

/// The token that a request must have to take this route.
pub fn token(route: &Value) -> Option<&str> {
    let header = items(route, "match.headers").iter().find(|header| is_lane_header(header))?;
    text(header, "string_match.exact").or_else(|| text(header, "exact_match"))
}

/// Whether a header matcher looks at the header that chooses a lane.
pub fn is_lane_header(matcher: &Value) -> bool {
    text(matcher, "name").is_some_and(|name| name.eq_ignore_ascii_case(LANE_HEADER))
}

/// Whether a list of names to remove holds the header that chooses a lane.
pub fn removes_lane_header(holder: &Value) -> bool {
    let names = items(holder, "request_headers_to_remove").iter();
    names.filter_map(Value::as_str).any(|name| name.eq_ignore_ascii_case(LANE_HEADER))
}

/// Whether a connection manager removes the header before it looks at routes.
pub fn removes_early(hcm: &Value) -> bool {
    items(hcm, "early_header_mutation_extensions").iter().filter(|one| is_type(one, EARLY_MUTATION)).any(|extension| {
        let mutations = items(fields(extension), "mutations").iter();
        mutations.filter_map(|one| text(one, "remove")).any(|name| name.eq_ignore_ascii_case(LANE_HEADER))
    })
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
        let Some((name, path, fields)) = message_at(path, value) else { return };
        let is_http = name.ends_with(HTTP_WASM);
        if !is_http && !name.ends_with(NETWORK_WASM) {
            return;
        }
        let Some(plugin) = fields.get("config") else { return };
        let checked = plugin::parse(&configuration(plugin));
        if checked.is_ok() || is_called_idleguard(plugin) {
            found.push(Plugin { path, plugin, is_http, checked });
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
    /// Its configuration, if it is accepted and fits an HTTP filter.
    pub fn http(&self) -> Option<&HttpConfig> {
        match self.checked.as_ref().map(|checked| &checked.config) {
            Ok(Config::Http(config)) if self.is_http => Some(config),
            _ => None,
        }
    }

    /// Its configuration, if it is accepted and fits a network filter.
    pub fn scout(&self) -> Option<&ScoutConfig> {
        match self.checked.as_ref().map(|checked| &checked.config) {
            Ok(Config::Scout(config)) if !self.is_http => Some(config),
            _ => None,
        }
    }

    /// Its configuration as JSON, whatever it says.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&configuration(self.plugin)).unwrap_or_default()
    }

    /// Whether it is the connection filter of the first design.
    pub fn is_first_design(&self) -> bool {
        self.json().get("filter").is_some_and(|filter| filter == "connection")
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

/// The network filters of a listener, with their places.
pub fn network_filters<'a>(path: &Path, listener: &'a Value) -> Vec<(Path, &'a Value)> {
    let mut found = Vec::new();
    walk(listener, &mut |below, value| {
        if let [.., Step::Key(key), Step::Index(_)] = below.0.as_slice()
            && key == "filters"
        {
            found.push((path.join(below), value));
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

/// Whether the pool speaks HTTP/2 to the far end, whatever that offers.
pub fn speaks_http2(cluster: &Value) -> bool {
    let explicit =
        http_options(cluster).and_then(|options| options.pointer("/explicit_http_config/http2_protocol_options"));
    explicit.is_some() || cluster.get("http2_protocol_options").is_some()
}

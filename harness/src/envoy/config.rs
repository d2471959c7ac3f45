//! An Envoy bootstrap to edit.
//!
//! A path names what stands at it: `static_resources/clusters/payments/connect_timeout`. In a list, a segment is the
//! `name` of an element, or its index. What isn't there is a mistake in the caller, so the editing functions panic.

use std::{fmt, fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::project;

/// The names of the filters, of the destination's base, and of what leads to the scout, in the project's `envoy.yaml`.
const FILTER: &str = "idleguard";
const CLUSTER: &str = "payments";
const SCOUT: &str = "payments-scout";

/// The header by which the filter chooses a lane.
const HEADER: &str = "x-idleguard-lane";

const ROUTES: &str = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config/route_config";

/// A bootstrap configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config(Value);

impl Config {
    /// The project's own `envoy.yaml`, with the filter that has been built (if it has).
    pub fn project() -> Result<Self> {
        let config = Self::load(&project::root().join("envoy.yaml"))?;
        Ok(match project::wasm() {
            Ok(path) => config.wasm(&path),
            Err(_) => config,
        })
    }

    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads YAML (or JSON, which is YAML) and resolves its anchors.
    pub fn parse(text: &str) -> Result<Self> {
        let mut yaml: serde_norway::Value = serde_norway::from_str(text)?;
        yaml.apply_merge()?;
        Ok(Self(serde_json::to_value(yaml)?))
    }

    // --- anything

    /// What stands at the path.
    pub fn get(&self, path: &str) -> Option<&Value> {
        path.split('/').try_fold(&self.0, |value, segment| match value {
            Value::Array(list) => list.get(position(list, segment)?),
            value => value.get(segment),
        })
    }

    /// What stands at the path, to be edited.
    pub fn get_mut(&mut self, path: &str) -> Option<&mut Value> {
        path.split('/').try_fold(&mut self.0, |value, segment| match value {
            Value::Array(list) => {
                let index = position(list, segment)?;
                list.get_mut(index)
            }
            value => value.get_mut(segment),
        })
    }

    /// Puts a value at the path. Objects on the way are made, elements of lists are not.
    #[must_use]
    pub fn set(mut self, path: &str, new: impl Into<Value>) -> Self {
        let mut value = &mut self.0;
        for segment in path.split('/') {
            value = match value {
                Value::Array(list) => {
                    let index = position(list, segment).unwrap_or_else(|| panic!("no `{segment}` in {path}"));
                    &mut list[index]
                }
                Value::Null => {
                    *value = Value::Object(Map::new());
                    &mut value[segment]
                }
                value => &mut value[segment],
            };
        }
        *value = new.into();
        self
    }

    /// Adds an element to the list at the path; an index before which to put it, or none for the end.
    #[must_use]
    pub fn insert(mut self, path: &str, before: Option<usize>, element: Value) -> Self {
        let list = self.list(path);
        list.insert(before.unwrap_or(list.len()), element);
        self
    }

    fn list(&mut self, path: &str) -> &mut Vec<Value> {
        self.get_mut(path).and_then(Value::as_array_mut).unwrap_or_else(|| panic!("no list at {path}"))
    }

    // --- addresses

    /// Free ports for the listener `ingress` and the admin interface: [`super::Envoy`] tells which.
    #[must_use]
    pub fn free_ports(self) -> Self {
        self.ingress_port(0).admin_port(0)
    }

    /// The port of the listener `ingress`; 0 takes a free one.
    #[must_use]
    pub fn ingress_port(self, port: u16) -> Self {
        self.set("static_resources/listeners/ingress/address/socket_address/port_value", port)
    }

    /// The port of the admin interface; 0 takes a free one.
    #[must_use]
    pub fn admin_port(self, port: u16) -> Self {
        self.set("admin/address/socket_address/port_value", port)
    }

    /// The load balancer's address, for the base and its lanes.
    #[must_use]
    pub fn upstream(self, address: SocketAddr) -> Self {
        self.upstream_name(&address.ip().to_string(), address.port())
    }

    /// The load balancer's address, or its name in the DNS, for the base and its lanes.
    #[must_use]
    pub fn upstream_name(self, host: &str, port: u16) -> Self {
        self.clusters().iter().fold(self, |config, name| config.endpoint(name, host, port))
    }

    /// The base and its lanes.
    pub fn clusters(&self) -> Vec<String> {
        let clusters = self.get("static_resources/clusters").and_then(Value::as_array).expect("clusters");
        let names = clusters.iter().filter_map(|cluster| cluster["name"].as_str());
        names.filter(|name| name.starts_with(CLUSTER) && *name != SCOUT).map(str::to_owned).collect()
    }

    /// Edits the base and each lane alike.
    #[must_use]
    pub fn edit_clusters(mut self, mut edit: impl FnMut(&mut Value)) -> Self {
        for name in self.clusters() {
            edit(self.get_mut(&cluster(&name)).expect("a cluster of this name"));
        }
        self
    }

    /// Gives a cluster this one endpoint.
    #[must_use]
    pub fn endpoint(self, name: &str, host: &str, port: u16) -> Self {
        let is_address = host.parse::<std::net::IpAddr>().is_ok();
        let path = cluster(name);
        let address = json!({ "socket_address": { "address": host, "port_value": port } });
        let config = if is_address {
            self.set(&format!("{path}/type"), "STATIC")
        } else {
            // By default Envoy takes IPv6 addresses whenever the name has any, reachable or not.
            self.set(&format!("{path}/type"), "STRICT_DNS").set(&format!("{path}/dns_lookup_family"), "V4_PREFERRED")
        };
        config.set(
            &format!("{path}/load_assignment"),
            json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }] }),
        )
    }

    /// Makes a cluster do TLS itself, with this server name and any certificate accepted.
    #[must_use]
    pub fn upstream_tls(self, name: &str, sni: &str) -> Self {
        self.upstream_tls_alpn(name, sni, &[])
    }

    /// As [`upstream_tls`](Self::upstream_tls), and offers these protocols by ALPN.
    #[must_use]
    pub fn upstream_tls_alpn(self, name: &str, sni: &str, protocols: &[&str]) -> Self {
        let socket = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": sni,
                "common_tls_context": { "alpn_protocols": protocols },
            },
        });
        self.set(&format!("{}/transport_socket", cluster(name)), socket)
    }

    /// Speaks HTTP/2 to this cluster, without asking. Its other protocol options stay.
    #[must_use]
    pub fn http2(mut self, name: &str) -> Self {
        let key = "typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        match self.get_mut(&format!("{}/{key}", cluster(name))) {
            None => self.protocol_options(name, json!({ "explicit_http_config": { "http2_protocol_options": {} } })),
            Some(options) => {
                options["explicit_http_config"] = json!({ "http2_protocol_options": {} });
                self
            }
        }
    }

    /// Sets Envoy's own idle timeout on a cluster's connections.
    #[must_use]
    pub fn envoy_idle_timeout(self, name: &str, timeout: &str) -> Self {
        let options = json!({
            "common_http_protocol_options": { "idle_timeout": timeout },
            "explicit_http_config": { "http_protocol_options": {} },
        });
        self.protocol_options(name, options)
    }

    fn protocol_options(self, name: &str, mut options: Value) -> Self {
        options["@type"] = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into();
        let key = "typed_extension_protocol_options";
        let mut config = self.set(&format!("{}/{key}", cluster(name)), json!({}));
        let place = config.get_mut(&format!("{}/{key}", cluster(name))).expect("just set");
        place["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"] = options;
        config
    }

    // --- the filters

    /// The filter's file.
    #[must_use]
    pub fn wasm(mut self, path: &Path) -> Self {
        let path = path.to_str().expect("a path in UTF-8");
        walk(&mut self.0, &mut |object| {
            if let Some(name) = object.get_mut("vm_config").and_then(|vm| vm.pointer_mut("/code/local/filename")) {
                *name = path.into();
            }
        });
        self
    }

    /// The whole configuration of the HTTP filter, as a `StringValue`.
    #[must_use]
    pub fn http_filter(self, json: &Value) -> Self {
        self.edit_filter(Kind::Http, |configuration| *configuration = json.clone())
    }

    /// The whole configuration of the scout, as a `StringValue`.
    #[must_use]
    pub fn scout_filter(self, json: &Value) -> Self {
        self.edit_filter(Kind::Scout, |configuration| *configuration = json.clone())
    }

    /// Edits the configuration of the HTTP filter.
    #[must_use]
    pub fn edit_http_filter(self, edit: impl FnMut(&mut Value)) -> Self {
        self.edit_filter(Kind::Http, edit)
    }

    /// Edits the configuration of the scout.
    #[must_use]
    pub fn edit_scout_filter(self, edit: impl FnMut(&mut Value)) -> Self {
        self.edit_filter(Kind::Scout, edit)
    }

    /// Sets a key of the destination `payments`.
    #[must_use]
    pub fn policy(self, key: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        self.edit_http_filter(|http| http["destinations"][CLUSTER][key] = value.clone())
    }

    /// The load balancer's idle timeout.
    #[must_use]
    pub fn lb_idle_timeout(self, timeout: &str) -> Self {
        self.policy("lb_idle_timeout", timeout)
    }

    /// The lanes of `payments`: clusters, routes and the plugin's configuration. None: watch only.
    #[must_use]
    pub fn lanes(mut self, idle_timeouts: &[&str]) -> Self {
        let base = self.get(&cluster(CLUSTER)).expect("the base").clone();
        self.list("static_resources/clusters").retain(|cluster| !is_lane(cluster));
        self.list(&format!("{ROUTES}/virtual_hosts/0/routes")).retain(|route| lane_of(route).is_none());
        let route = self.get(&format!("{ROUTES}/virtual_hosts/0/routes/0")).expect("the base's route").clone();
        let mut lanes = Map::new();
        for (at, text) in idle_timeouts.iter().enumerate() {
            let name = format!("{CLUSTER}-{text}");
            let mut lane = base.clone();
            lane["name"] = name.clone().into();
            lane["alt_stat_name"] = CLUSTER.into();
            let mut own = route.clone();
            own["match"]["headers"] =
                json!([{ "name": HEADER, "string_match": { "exact": format!("{CLUSTER}={text}") } }]);
            own["route"]["cluster"] = name.clone().into();
            own["request_headers_to_remove"] = json!([HEADER]);
            let seconds = crate::arguments::duration(text).expect("a duration").as_secs_f64();
            self = self
                .insert("static_resources/clusters", None, lane)
                .insert(&format!("{ROUTES}/virtual_hosts/0/routes"), Some(at), own)
                .envoy_idle_timeout(&name, &format!("{seconds}s"));
            lanes.insert(name, (*text).into());
        }
        self.policy("lanes", lanes)
    }

    /// Whether there is a scout.
    pub fn has_scout(&self) -> bool {
        self.get(&format!("static_resources/listeners/{SCOUT}")).is_some()
    }

    /// Without the scout, its listener and the cluster that leads to it.
    #[must_use]
    pub fn without_scout(mut self) -> Self {
        for path in ["static_resources/listeners", "static_resources/clusters"] {
            self.list(path).retain(|element| element["name"] != SCOUT);
        }
        if let Some(Value::Array(extensions)) = self.0.get_mut("bootstrap_extensions") {
            extensions.retain(|extension| !is_type(extension, "InternalListener"));
        }
        self
    }

    fn edit_filter(mut self, kind: Kind, mut edit: impl FnMut(&mut Value)) -> Self {
        let mut found = false;
        walk(&mut self.0, &mut |object| {
            if object.get("name").and_then(Value::as_str) != Some(FILTER) || !kind.is(object) {
                return;
            }
            let Some(plugin) = object.get_mut("typed_config").and_then(|typed| typed.get_mut("config")) else {
                return;
            };
            let text = plugin.pointer("/configuration/value").and_then(Value::as_str).unwrap_or("{}");
            let mut configuration = serde_json::from_str(text).expect("the filter's configuration is JSON");
            edit(&mut configuration);
            plugin["configuration"] = json!({
                "@type": "type.googleapis.com/google.protobuf.StringValue",
                "value": configuration.to_string(),
            });
            found = true;
        });
        assert!(found, "no {kind:?} filter named `{FILTER}`");
        self
    }

    /// Plain Envoy: the same listener, base and limits; neither filters nor lanes nor a scout.
    #[must_use]
    pub fn without_idleguard(self) -> Self {
        let mut config = self.without_scout();
        config.list("static_resources/clusters").retain(|cluster| !is_lane(cluster));
        walk(&mut config.0, &mut |object| {
            if let Some(Value::Array(routes)) = object.get_mut("routes") {
                routes.retain(|route| lane_of(route).is_none());
            }
            if let Some(Value::Array(filters)) = object.get_mut("http_filters") {
                filters.retain(|filter| !is_type(filter, "wasm.v3.Wasm"));
            }
            if object.get("request_headers_to_remove").is_some_and(|names| *names == json!([HEADER])) {
                object.remove("request_headers_to_remove");
            }
            object.remove("early_header_mutation_extensions");
        });
        config
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Http,
    Scout,
}

impl Kind {
    fn is(self, filter: &Map<String, Value>) -> bool {
        let suffix = match self {
            Self::Http => "filters.http.wasm.v3.Wasm",
            Self::Scout => "filters.network.wasm.v3.Wasm",
        };
        filter.get("typed_config").is_some_and(|typed| typed["@type"].as_str().is_some_and(|t| t.ends_with(suffix)))
    }
}

fn cluster(name: &str) -> String {
    format!("static_resources/clusters/{name}")
}

fn is_type(extension: &Value, suffix: &str) -> bool {
    extension.pointer("/typed_config/@type").and_then(Value::as_str).is_some_and(|name| name.ends_with(suffix))
}

fn position(list: &[Value], segment: &str) -> Option<usize> {
    list.iter()
        .position(|element| element["name"] == segment)
        .or_else(|| segment.parse().ok().filter(|&index| index < list.len()))
}

fn walk(value: &mut Value, visit: &mut impl FnMut(&mut Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            visit(object);
            object.values_mut().for_each(|value| walk(value, visit));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| walk(value, visit)),
        _ => {}
    }
}

/// The lanes are the clusters that share the base's counters.
fn is_lane(cluster: &Value) -> bool {
    cluster["alt_stat_name"] == CLUSTER
}

/// The token by which a route is chosen, if it leads to a lane.
fn lane_of(route: &Value) -> Option<&str> {
    let headers = route.pointer("/match/headers")?.as_array()?;
    headers.iter().find(|header| header["name"] == HEADER)?.pointer("/string_match/exact")?.as_str()
}

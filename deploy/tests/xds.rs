//! What a control plane sends, and how it becomes a configuration that starts here without one.
//!
//! Replaced are the things that aren't here: the control plane (by the bootstrap and files), what the network has at an
//! address (by the scripted load balancer), certificates, the download of the module (its file), and filters that only
//! Istio's build of Envoy has.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use idleguard_harness::{envoy::Config, project};
use serde_json::{Map, Value, json};

use super::proto::proto_names;

/// The resources for one proxy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resources {
    pub(crate) listeners: Vec<Value>,
    pub(crate) routes: Vec<Value>,
    pub(crate) clusters: Vec<Value>,
    /// `TypedExtensionConfig`s.
    pub(crate) extensions: Vec<Value>,
}

impl Resources {
    /// Reads a fixture, with field names as in `.proto` files.
    pub(crate) fn fixture(name: &str) -> Result<Self> {
        let mut all = fixture(name)?;
        proto_names(&mut all);
        let mut take =
            |key: &str| all[key].as_array_mut().map(std::mem::take).with_context(|| format!("{name}: {key}"));
        Ok(Self {
            listeners: take("listeners")?,
            routes: take("routes")?,
            clusters: take("clusters")?,
            extensions: Vec::new(),
        })
    }

    /// A configuration in which every cluster of the network leads to `upstream`. Extension configurations are discovered from
    /// files in `directory`.
    pub(crate) fn start_here(mut self, bootstrap: Value, upstream: SocketAddr, directory: &Path) -> Result<Config> {
        let wasm = project::wasm()?;
        let routes = std::mem::take(&mut self.routes);
        for extension in &mut self.extensions {
            use_local_module(extension, &wasm);
            let name = extension["name"].as_str().context("a name")?;
            let mut resource = extension.clone();
            resource["@type"] = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig".into();
            let response = json!({"version_info": "1", "resources": [resource]});
            fs::write(discovery_file(directory, name), response.to_string())?;
        }
        for listener in &mut self.listeners {
            use_local_module(listener, &wasm);
            if listener.get("internal_listener").is_none() {
                listener["address"] = json!({"socket_address": {"address": "127.0.0.1", "port_value": 0}});
                listener["bind_to_port"] = true.into();
            }
            walk(listener, &mut |object| {
                for key in ["filters", "http_filters"] {
                    if let Some(Value::Array(filters)) = object.get_mut(key) {
                        filters
                            .retain(|filter| !filter["name"].as_str().is_some_and(|name| name.starts_with("istio.")));
                        filters.iter_mut().for_each(|filter| discover_from_file(filter, directory));
                    }
                }
                if let Some(rds) = object.remove("rds") {
                    let found = routes.iter().find(|routes| routes["name"] == rds["route_config_name"]);
                    object.insert("route_config".to_owned(), found.expect("the routes of a listener").clone());
                }
            });
        }
        self.clusters.iter_mut().for_each(|cluster| lead_to(cluster, upstream));
        let mut bootstrap = bootstrap;
        bootstrap["admin"] = json!({"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}});
        bootstrap["static_resources"] = json!({"listeners": self.listeners, "clusters": self.clusters});
        bootstrap["node"] = json!({"id": "proxy", "cluster": "proxy"});
        for key in ["dynamic_resources", "cluster_manager"] {
            bootstrap.as_object_mut().context("a bootstrap")?.remove(key);
        }
        Config::parse(&bootstrap.to_string())
    }
}

/// A file of `fixtures/`.
pub(crate) fn fixture(name: &str) -> Result<Value> {
    let path = project::root().join("deploy/tests/fixtures").join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(serde_norway::from_str(&text)?)
}

/// The HTTP connection manager's configuration, if the filter is one.
pub(crate) fn manager(filter: &mut Value) -> Option<&mut Value> {
    let is_manager = filter["name"] == "envoy.filters.network.http_connection_manager";
    is_manager.then(|| &mut filter["typed_config"])
}

/// The list under a key.
pub(crate) fn list<'a>(value: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    value[key].as_array_mut().unwrap_or_else(|| panic!("no list {key}"))
}

fn discovery_file(directory: &Path, name: &str) -> std::path::PathBuf {
    directory.join(format!("{}.json", name.replace('/', "-")))
}

fn discover_from_file(filter: &mut Value, directory: &Path) {
    let name = filter["name"].as_str().unwrap_or_default();
    let path = discovery_file(directory, name);
    if let Some(source) = filter.pointer_mut("/config_discovery/config_source") {
        *source = json!({"path_config_source": {"path": path}, "resource_api_version": "V3"});
    }
}

/// As Istio's agent rewrites it: the module has been downloaded, and the agent's own variables are gone.
fn use_local_module(value: &mut Value, wasm: &Path) {
    walk(value, &mut |object| {
        if let Some(vm) = object.get_mut("vm_config").and_then(Value::as_object_mut) {
            vm.insert("code".to_owned(), json!({"local": {"filename": wasm}}));
            vm.remove("environment_variables");
        }
    });
}

/// Gives a cluster the load balancer as its only endpoint, unless it leads to an internal listener.
fn lead_to(cluster: &mut Value, upstream: SocketAddr) {
    if cluster["lb_policy"] == "CLUSTER_PROVIDED" || cluster.to_string().contains("envoy_internal_address") {
        return;
    }
    let name = cluster["name"].clone();
    let dynamic = ["cluster_type", "eds_cluster_config", "respect_dns_ttl", "ignore_health_on_host_removal"];
    if let Some(cluster) = cluster.as_object_mut() {
        cluster.retain(|key, _| !key.starts_with("dns_") && !dynamic.contains(&key.as_str()));
    }
    let address = json!({"socket_address": {"address": upstream.ip(), "port_value": upstream.port()}});
    cluster["type"] = "STATIC".into();
    cluster["load_assignment"] =
        json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]});
    // The load balancer's certificate is its own.
    if let Some(tls) = cluster.pointer_mut("/transport_socket/typed_config/common_tls_context") {
        tls.as_object_mut().expect("an object").remove("combined_validation_context");
    }
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

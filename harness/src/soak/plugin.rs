//! The soak's Envoy: two destinations with lanes (HTTP/1.1 and HTTP/2 to the LB), a scout, WebSockets, and both filters'
//! configuration in files that Envoy watches, as a control plane would send it.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::envoy::Config;

const HTTP_MANAGER: &str = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config";
const SCOUT: &str = "static_resources/listeners/payments-scout/filter_chains/0/filters/idleguard";

/// The lanes of both destinations. All of them close a connection before the LB would.
const LANES: [&str; 3] = ["1800ms", "1300ms", "900ms"];

/// A filter whose configuration comes from a file (extension config discovery).
#[derive(Debug)]
struct Plugin {
    name: &'static str,
    /// The filter as `typed_config` has it, to be given a new `configuration`.
    typed: Value,
    configure: fn(&Policy) -> Value,
}

/// What changes from one update to the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    /// What the filter is told of the LB's idle timeout, in milliseconds.
    pub(super) told: u64,
    /// In percent.
    pub(super) margin: u64,
    /// In minutes.
    pub(super) scout_waits: u64,
}

/// Both filters.
#[derive(Debug)]
pub(super) struct Plugins {
    directory: std::path::PathBuf,
    plugins: Vec<Plugin>,
    version: u64,
}

impl Plugins {
    /// Edits the project's configuration, and takes the filters' own configuration out into files in `directory`.
    pub(super) fn take_out(config: Config, directory: &Path, policy: Policy) -> Result<(Config, Self)> {
        let mut config = with_orders(config.lanes(&LANES))
            .set(&format!("{HTTP_MANAGER}/upgrade_configs"), json!([{ "upgrade_type": "websocket" }]));
        let mut plugins = Vec::new();
        type FilterOf = fn(&Policy) -> Value;
        let places: [(String, &'static str, FilterOf); 2] = [
            (format!("{HTTP_MANAGER}/http_filters/idleguard"), "idleguard", |policy| {
                let destination = |name: &str| {
                    let lanes = LANES.map(|text| (format!("{name}-{text}"), Value::from(text)));
                    json!({
                        "lb_idle_timeout": format!("{}ms", policy.told),
                        "margin": format!("{}%", policy.margin),
                        "lanes": serde_json::Map::from_iter(lanes),
                    })
                };
                let destinations = json!({ "payments": destination("payments"), "orders": destination("orders") });
                json!({ "filter": "http", "destinations": destinations, "client_ip": {} })
            }),
            (SCOUT.to_owned(), "idleguard-scout", |policy| {
                let max_wait = format!("{}m", policy.scout_waits);
                json!({ "filter": "scout", "destination": "payments", "cluster": "payments-scout", "path": "/", "max_wait": max_wait })
            }),
        ];
        for (place, name, configure) in places {
            let filter = config.get_mut(&place).with_context(|| format!("no filter at {place}"))?;
            let typed = filter["typed_config"].clone();
            let path = directory.join(format!("{name}.json"));
            *filter = json!({
                "name": name,
                "config_discovery": {
                    "config_source": { "path_config_source": { "path": path }, "resource_api_version": "V3" },
                    "type_urls": [typed["@type"]],
                },
            });
            plugins.push(Plugin { name, typed, configure });
        }
        let mut plugins = Self { directory: directory.to_owned(), plugins, version: 0 };
        plugins.update(policy)?;
        Ok((config, plugins))
    }

    /// Gives both filters this policy.
    pub(super) fn update(&mut self, policy: Policy) -> Result<()> {
        self.version += 1;
        for plugin in &self.plugins {
            let mut typed = plugin.typed.clone();
            typed["config"]["configuration"] = json!({
                "@type": "type.googleapis.com/google.protobuf.StringValue",
                "value": (plugin.configure)(&policy).to_string(),
            });
            let resource = json!({
                "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
                "name": plugin.name,
                "typed_config": typed,
            });
            let update = json!({ "version_info": self.version.to_string(), "resources": [resource] });
            let path = self.directory.join(format!("{}.json", plugin.name));
            let temporary = path.with_extension("new");
            fs::write(&temporary, update.to_string())?;
            fs::rename(temporary, path)?; // Envoy watches for moves
        }
        Ok(())
    }
}

/// A second destination `orders` with lanes of its own, in HTTP/2 and under `/h2/`, beside `payments`.
fn with_orders(mut config: Config) -> Config {
    let copy = |value: &Value| -> Value {
        serde_json::from_str(&value.to_string().replace("payments", "orders")).expect("still JSON")
    };
    let at = |path: &str| config.get(path).expect("the project's envoy.yaml").clone();
    let clusters: Vec<Value> =
        config.clusters().iter().map(|name| copy(&at(&format!("static_resources/clusters/{name}")))).collect();
    let routes_at = format!("{HTTP_MANAGER}/route_config/virtual_hosts/all/routes");
    let routes: Vec<Value> = at(&routes_at).as_array().cloned().unwrap_or_default();
    for (index, route) in routes.iter().enumerate() {
        let mut route = copy(route);
        route["match"]["prefix"] = "/h2/".into();
        route["route"]["prefix_rewrite"] = "/".into();
        config = config.insert(&routes_at, Some(index), route);
    }
    for cluster in clusters {
        let name = cluster["name"].as_str().expect("a name").to_owned();
        config = config.insert("static_resources/clusters", None, cluster).http2(&name);
    }
    config
}

//! The soak's Envoy: two destinations (HTTP/1.1 and HTTP/2 to the LB), WebSockets, and both filters' configuration in
//! files that Envoy watches, as a control plane would send it.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::envoy::Config;

const HTTP_MANAGER: &str = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config";

/// A filter whose configuration comes from a file (extension config discovery).
#[derive(Debug)]
struct Plugin {
    name: &'static str,
    /// The filter as `typed_config` has it, to be given a new `configuration`.
    typed: Value,
    configure: fn(&Value) -> Value,
}

/// The three filters.
#[derive(Debug)]
pub(super) struct Plugins {
    directory: std::path::PathBuf,
    plugins: Vec<Plugin>,
    version: u64,
}

/// A filter's configuration with this policy.
type FilterOf = fn(&Value) -> Value;

impl Plugins {
    /// Edits the project's configuration, and takes the filters' own configuration out into files in `directory`.
    pub(super) fn take_out(config: Config, directory: &Path, policy: &Value) -> Result<(Config, Self)> {
        let mut config = with_orders(config)
            .set(&format!("{HTTP_MANAGER}/upgrade_configs"), json!([{ "upgrade_type": "websocket" }]))
            .http2("orders");
        let connection = |destination: &'static str| {
            format!("static_resources/listeners/{destination}-guard/filter_chains/0/filters/idleguard")
        };
        let mut plugins = Vec::new();
        let places: [(String, &'static str, FilterOf); 3] = [
            (
                format!("{HTTP_MANAGER}/http_filters/idleguard"),
                "idleguard",
                |policy| json!({ "filter": "http", "destinations": { "payments": policy, "orders": policy } }),
            ),
            (
                connection("payments"),
                "idleguard-payments",
                |policy| json!({ "filter": "connection", "destination": "payments", "policy": policy }),
            ),
            (
                connection("orders"),
                "idleguard-orders",
                |policy| json!({ "filter": "connection", "destination": "orders", "policy": policy }),
            ),
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

    /// Gives both filters this policy for both destinations.
    pub(super) fn update(&mut self, policy: &Value) -> Result<()> {
        self.version += 1;
        for plugin in &self.plugins {
            let mut typed = plugin.typed.clone();
            typed["config"]["configuration"] = json!({
                "@type": "type.googleapis.com/google.protobuf.StringValue",
                "value": (plugin.configure)(policy).to_string(),
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

/// A second destination `orders`, under `/h2/`, beside `payments`.
fn with_orders(config: Config) -> Config {
    let copy = |config: &Config, path: &str| -> Value {
        let text = config.get(path).expect("the project's envoy.yaml").to_string().replace("payments", "orders");
        serde_json::from_str(&text).expect("still JSON")
    };
    let (listener, near, far) = (
        copy(&config, "static_resources/listeners/payments-guard"),
        copy(&config, "static_resources/clusters/payments"),
        copy(&config, "static_resources/clusters/payments-lb"),
    );
    let route = json!({
        "match": { "prefix": "/h2/" },
        "route": { "cluster": "orders", "prefix_rewrite": "/", "timeout": "15s" },
    });
    config
        .insert("static_resources/listeners", None, listener)
        .insert("static_resources/clusters", None, near)
        .insert("static_resources/clusters", None, far)
        .insert(&format!("{HTTP_MANAGER}/route_config/virtual_hosts/all/routes"), Some(0), route)
}

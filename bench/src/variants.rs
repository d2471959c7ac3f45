//! Envoys for the cost sections: the same listener, route and far end, with more and more in the way.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result};
use idleguard_harness::{envoy::Config, project};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Nothing: the HTTP connection manager and the router.
    Plain,
    /// Envoy's own features, for the address: `xff_num_trusted_hops`, and `x-real-ip` from `%DOWNSTREAM_REMOTE_ADDRESS%`.
    Native,
    /// A Lua filter that sets one header.
    Lua,
    /// A Wasm HTTP filter that does nothing.
    NoopHttp,
    /// idleguard's HTTP filter, with `client_ip` alone.
    ClientIp,
    /// The in-process hop without filters.
    Hop,
    /// The hop, and a filter that does nothing in both places.
    NoopBoth,
    /// The hop, and both filters: fence, retry and reap.
    Guard,
    /// The same and `client_ip`.
    Everything,
}

impl Variant {
    /// All, in the order of tables and pictures.
    pub const ALL: [Self; 9] = [
        Self::Plain,
        Self::Native,
        Self::Lua,
        Self::NoopHttp,
        Self::ClientIp,
        Self::Hop,
        Self::NoopBoth,
        Self::Guard,
        Self::Everything,
    ];

    /// As tables and pictures call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Plain => "plain Envoy",
            Self::Native => "Envoy's own header features",
            Self::Lua => "Lua filter, one header",
            Self::NoopHttp => "no-op Wasm filter",
            Self::ClientIp => "idleguard: client_ip",
            Self::Hop => "in-process hop, no filter",
            Self::NoopBoth => "hop, no-op in both places",
            Self::Guard => "idleguard: fence and reap",
            Self::Everything => "idleguard: everything",
        }
    }

    /// Its configuration.
    pub fn config(self, far_end: &[SocketAddr]) -> Result<Config> {
        let config = Config::project()?.free_ports();
        let config = far_ends(config, far_end);
        let http = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config";
        let guard = json!({ "lb_idle_timeout": "1h" });
        let client_ip = json!({ "trusted_proxies": ["10.0.0.0/8", "127.0.0.0/8"] });
        Ok(match self {
            Self::Plain => unguarded(config),
            Self::Native => {
                let header = json!([{
                    "header": { "key": "x-real-ip", "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%" },
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                }]);
                unguarded(config)
                    .set(&format!("{http}/xff_num_trusted_hops"), 1)
                    .set(&format!("{http}/route_config/virtual_hosts/all/request_headers_to_add"), header)
            }
            Self::Lua => {
                let code =
                    "function envoy_on_request(handle)\n  handle:headers():replace('x-real-ip', '203.0.113.7')\nend\n";
                let lua = json!({
                    "name": "lua",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
                        "default_source_code": { "inline_string": code },
                    },
                });
                unguarded(config).insert(&format!("{http}/http_filters"), Some(0), lua)
            }
            Self::NoopHttp => {
                return with_module(far_end, &noop()?, &json!("http"));
            }
            Self::ClientIp => {
                let told = json!({ "filter": "http", "client_ip": client_ip });
                let filter = config.clone().http_filter(&told);
                with_http_filter(unguarded(config), &filter)
            }
            Self::Hop => {
                let mut hop = config;
                for (list, keep) in [(format!("{http}/http_filters"), "router"), (format!("{GUARD}/filters"), "tcp")] {
                    if let Some(Value::Array(filters)) = hop.get_mut(&list) {
                        filters.retain(|filter| filter["name"] == keep);
                    }
                }
                hop
            }
            Self::NoopBoth => guarded(config, &json!("http"), &json!("connection"), &noop()?),
            Self::Guard => config
                .http_filter(&json!({ "filter": "http", "destinations": { "payments": guard } }))
                .connection_filter(&json!({ "filter": "connection", "destination": "payments", "policy": guard })),
            Self::Everything => config
                .http_filter(
                    &json!({ "filter": "http", "destinations": { "payments": guard }, "client_ip": client_ip }),
                )
                .connection_filter(&json!({ "filter": "connection", "destination": "payments", "policy": guard })),
        })
    }
}

/// Plain Envoy with another module's HTTP filter, told this text.
pub fn with_module(far_end: &[SocketAddr], module: &std::path::Path, told: &Value) -> Result<Config> {
    let config = far_ends(Config::project()?.free_ports(), far_end);
    let filter = guarded(config.clone(), told, &Value::Null, module);
    Ok(with_http_filter(unguarded(config), &filter))
}

const GUARD: &str = "static_resources/listeners/payments-guard/filter_chains/0";
const HTTP_FILTERS: &str = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config/http_filters";

fn unguarded(config: Config) -> Config {
    config.without_idleguard()
}

/// Plain Envoy with the HTTP filter of another configuration.
fn with_http_filter(config: Config, from: &Config) -> Config {
    let filter = from.get(&format!("{HTTP_FILTERS}/idleguard")).cloned().unwrap_or_default();
    config.insert(HTTP_FILTERS, Some(0), filter)
}

/// Another module in the places of idleguard's, with these texts as configuration.
fn guarded(config: Config, http: &Value, connection: &Value, module: &std::path::Path) -> Config {
    let text = |value: &Value| {
        json!({
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": value.as_str().unwrap_or_default(),
        })
    };
    config
        .set(&format!("{HTTP_FILTERS}/idleguard/typed_config/config/configuration"), text(http))
        .set(&format!("{GUARD}/filters/idleguard/typed_config/config/configuration"), text(connection))
        .wasm(module)
}

/// The module that does nothing.
fn noop() -> Result<PathBuf> {
    let path = project::root().join(".run/noop.wasm");
    path.canonicalize().with_context(|| format!("no {}: `make bench` makes it", path.display()))
}

/// Several addresses of one far end, and no limits on the way to it.
fn far_ends(config: Config, addresses: &[SocketAddr]) -> Config {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| {
            let socket = json!({ "address": address.ip().to_string(), "port_value": address.port() });
            json!({ "endpoint": { "address": { "socket_address": socket } } })
        })
        .collect();
    let mut config = config;
    if let Some(first) = addresses.first() {
        config = config.upstream(*first);
    }
    config = config
        .set("static_resources/clusters/payments-lb/load_assignment/endpoints/0/lb_endpoints", Value::Array(endpoints));
    let most = 1_000_000;
    let limits =
        json!({ "thresholds": [{ "max_connections": most, "max_pending_requests": most, "max_requests": most }] });
    config
        .set("static_resources/clusters/payments/circuit_breakers", limits.clone())
        .set("static_resources/clusters/payments-lb/circuit_breakers", limits)
}

//! Envoys for the cost sections: the same listener, base and far end, with more and more in the way.

use std::net::SocketAddr;

use anyhow::Result;
use clap::ValueEnum;
use idleguard_harness::envoy::Config;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Nothing: the HTTP connection manager and the router.
    Plain,
    /// One more route, with a header match, that no request takes: what a lane needs.
    Route,
    /// Envoy's own features, for the address: `xff_num_trusted_hops`, and `x-real-ip` from `%DOWNSTREAM_REMOTE_ADDRESS%`.
    Native,
    /// A Lua filter that sets one header.
    Lua,
    /// idleguard that watches the base; there are no lanes.
    Watch,
    /// The same, told that every route leads to the base (`all_requests`).
    WatchAll,
    /// The lanes of `envoy.yaml`, none in force: requests go to the base.
    Base,
    /// One of them in force.
    Lane,
    /// `client_ip` alone.
    ClientIp,
    /// A lane in force, and `client_ip`.
    Everything,
}

impl Variant {
    /// As tables and pictures call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Plain => "plain Envoy",
            Self::Route => "plain Envoy, one more route with a header match",
            Self::Native => "Envoy's own header features",
            Self::Lua => "Lua filter, one header",
            Self::Watch => "idleguard: watching, without `all_requests`",
            Self::WatchAll => "idleguard: watching",
            Self::Base => "idleguard: lanes, the base in force",
            Self::Lane => "idleguard: a lane in force",
            Self::ClientIp => "idleguard: `client_ip`",
            Self::Everything => "idleguard: everything, a lane in force",
        }
    }

    /// Its configuration. The scout, whose requests are its own, is left out.
    pub fn config(self, far_end: &[SocketAddr]) -> Result<Config> {
        let config = far_ends(Config::project()?.free_ports().without_scout(), far_end);
        let client_ip = || json!({ "trusted_proxies": ["10.0.0.0/8", "127.0.0.0/8"] });
        // What keeps clients from choosing a lane is not needed where there is none.
        let no_lanes = || {
            let mut config = config.clone().lanes(&[]);
            for (path, key) in [(HTTP, "early_header_mutation_extensions"), (ROUTES, "request_headers_to_remove")] {
                config.get_mut(path).and_then(Value::as_object_mut).and_then(|object| object.remove(key));
            }
            config
        };
        // The base's `idle_timeout` is Envoy's default, an hour: safe before a far end that waits for two.
        let filter = |config: Config, lb_idle_timeout: &str, all_requests: bool, with_client_ip: bool| {
            config.lb_idle_timeout(lb_idle_timeout).policy("all_requests", all_requests).edit_http_filter(|http| {
                if let Some(http) = http.as_object_mut() {
                    http.remove("client_ip");
                    if with_client_ip {
                        http.insert("client_ip".to_owned(), client_ip());
                    }
                }
            })
        };
        Ok(match self {
            Self::Plain => config.without_idleguard(),
            Self::Route => {
                let routes = format!("{ROUTES}/virtual_hosts/all/routes");
                let lane = config.get(&format!("{routes}/0")).cloned().unwrap_or_default();
                let plain = config.without_idleguard().insert(&routes, Some(0), lane);
                plain.set(&format!("{routes}/0/route/cluster"), "payments")
            }
            Self::Native => {
                let header = json!([{
                    "header": { "key": "x-real-ip", "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%" },
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                }]);
                config
                    .without_idleguard()
                    .set(&format!("{HTTP}/xff_num_trusted_hops"), 1)
                    .set(&format!("{ROUTES}/virtual_hosts/all/request_headers_to_add"), header)
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
                config.without_idleguard().insert(&format!("{HTTP}/http_filters"), Some(0), lua)
            }
            Self::Watch => filter(no_lanes(), "2h", false, false),
            Self::WatchAll => filter(no_lanes(), "2h", true, false),
            Self::Base => filter(config, "2h", true, false),
            Self::Lane => filter(config, "60s", true, false),
            Self::ClientIp => no_lanes().http_filter(&json!({ "filter": "http", "client_ip": client_ip() })),
            Self::Everything => filter(config, "60s", true, true),
        })
    }
}

const HTTP: &str = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config";
const ROUTES: &str = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config/route_config";

/// Several addresses of one far end, and no limits on the way to it.
fn far_ends(config: Config, addresses: &[SocketAddr]) -> Config {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| {
            let socket = json!({ "address": address.ip().to_string(), "port_value": address.port() });
            json!({ "endpoint": { "address": { "socket_address": socket } } })
        })
        .collect();
    let most = 1_000_000;
    let limits =
        json!({ "thresholds": [{ "max_connections": most, "max_pending_requests": most, "max_requests": most }] });
    config.edit_clusters(|cluster| {
        cluster["load_assignment"]["endpoints"] = json!([{ "lb_endpoints": Value::Array(endpoints.clone()) }]);
        cluster["circuit_breakers"] = limits.clone();
    })
}

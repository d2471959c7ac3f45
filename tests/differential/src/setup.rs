//! What stands between client and far end: plain Envoy, and idleguard with the base or with a lane in force.

use std::net::SocketAddr;

use anyhow::Result;
use idleguard_harness::envoy::Config;
use serde_json::{Value, json};

use crate::drive::Protocol;

/// What stands in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Envoy without idleguard.
    Plain,
    /// idleguard, the operator's own cluster in force.
    Base,
    /// idleguard, a lane in force.
    Lane,
}

impl Subject {
    /// All of them; plain first.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Base, Self::Lane];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Base => "base",
            Self::Lane => "lane",
        }
    }

    /// The `lb_idle_timeout` that puts it in force.
    pub fn lb_idle_timeout(self) -> &'static str {
        match self {
            Self::Plain | Self::Base => "2h",
            Self::Lane => "60s",
        }
    }

    /// The `idle_timeout` then in force.
    pub fn idle_timeout_ms(self) -> u64 {
        match self {
            Self::Plain | Self::Base => 3_600_000,
            Self::Lane => 54_000,
        }
    }
}

/// How Envoy is configured otherwise. Equal setups share their Envoys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setup {
    /// As the project's `envoy.yaml`, with WebSocket and CONNECT.
    Usual,
    /// HTTP/1.0, trailers, `100 Continue` from the far end.
    Lenient,
    /// HTTP/2 to the far end.
    Http2,
    /// A route with retries.
    Retries,
}

impl Setup {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Usual, Self::Lenient, Self::Http2, Self::Retries];

    /// What the far end speaks.
    pub fn far_end(self) -> Protocol {
        if self == Self::Http2 { Protocol::Http2 } else { Protocol::Http1 }
    }

    /// The operator's own configuration: base and routes, without lanes.
    fn own(self, far_end: SocketAddr) -> Result<Config> {
        let config = own()?.upstream(far_end);
        Ok(match self {
            Self::Usual => config,
            Self::Lenient => {
                let config = config
                    .set(
                        &format!("{HTTP_MANAGER}/http_protocol_options"),
                        json!({
                            "accept_http_10": true, "default_host_for_http_10": "old.example", "enable_trailers": true,
                        }),
                    )
                    .set(&format!("{HTTP_MANAGER}/proxy_100_continue"), true);
                protocol(config, json!({ "http_protocol_options": { "enable_trailers": true } }))
            }
            Self::Http2 => protocol(config, json!({ "http2_protocol_options": { "allow_connect": true } })),
            Self::Retries => config.set(
                &format!("{ROUTES}/1/route/retry_policy"),
                json!({
                    "retry_on": "connect-failure,refused-stream,reset,5xx,retriable-status-codes", "num_retries": 2,
                    "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" },
                }),
            ),
        })
    }

    /// The configuration for a subject.
    pub fn config(self, subject: Subject, far_end: SocketAddr) -> Result<Config> {
        Ok(for_subject(self.own(far_end)?, subject))
    }
}

/// The HTTP connection manager of the listener `ingress`.
pub const HTTP_MANAGER: &str = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config";

/// The routes: CONNECT, and everything else.
pub const ROUTES: &str =
    "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config/route_config/virtual_hosts/0/routes";

/// The operator's own cluster.
pub const BASE: &str = "static_resources/clusters/payments";

/// The project's lanes.
pub const LANES: [&str; 3] = ["54s", "4s", "900ms"];

/// The project's configuration without lanes and scout, with WebSocket, CONNECT and the listener `settle`, which answers
/// by itself: once it has, the worker has seen everything that came before.
pub fn own() -> Result<Config> {
    let connect = json!({
        "match": { "connect_matcher": {} },
        "route": { "cluster": "payments", "timeout": "15s", "upgrade_configs": [{ "upgrade_type": "CONNECT" }] },
    });
    Ok(Config::project()?
        .free_ports()
        .without_scout()
        .lanes(&[])
        .set(
            &format!("{HTTP_MANAGER}/upgrade_configs"),
            json!([
                { "upgrade_type": "websocket" }, { "upgrade_type": "CONNECT" },
            ]),
        )
        .set(&format!("{HTTP_MANAGER}/http2_protocol_options"), json!({ "allow_connect": true }))
        .insert(ROUTES, Some(0), connect)
        .insert("static_resources/listeners", None, settle()))
}

/// The protocol to the far end.
#[must_use]
pub fn protocol(config: Config, explicit: Value) -> Config {
    let options = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": explicit,
    }});
    config.set(&format!("{BASE}/typed_extension_protocol_options"), options)
}

/// Without idleguard for plain; else with lanes, of which one is in force or none.
#[must_use]
pub fn for_subject(config: Config, subject: Subject) -> Config {
    match subject {
        Subject::Plain => config.without_idleguard(),
        _ => with_lanes(config, &LANES).policy("lb_idle_timeout", subject.lb_idle_timeout()),
    }
}

/// Adds the lanes: a copy of the base, and of each of its routes.
#[must_use]
pub fn with_lanes(mut config: Config, idle_timeouts: &[&str]) -> Config {
    let base = config.get(BASE).expect("the base").clone();
    let own = config.get(ROUTES).and_then(Value::as_array).expect("routes").clone();
    let mut routes = Vec::new();
    for text in idle_timeouts {
        let cluster = lane(&base, text);
        routes.extend(own.iter().filter_map(|route| lane_route(route, text)));
        config = config.insert("static_resources/clusters", None, cluster);
    }
    let lanes: serde_json::Map<String, Value> =
        idle_timeouts.iter().map(|text| (format!("payments-{text}"), (*text).into())).collect();
    routes.extend(own);
    config.set(ROUTES, routes).policy("lanes", lanes)
}

/// The base's copy with this `idle_timeout`.
#[must_use]
pub fn lane(base: &Value, text: &str) -> Value {
    let mut cluster = base.clone();
    cluster["name"] = format!("payments-{text}").into();
    cluster["alt_stat_name"] = "payments".into();
    if let Some(name) = cluster.pointer_mut("/eds_cluster_config")
        && name.get("service_name").is_none()
    {
        name["service_name"] = "payments".into();
    }
    let seconds = idleguard_harness::arguments::duration(text).expect("a duration").as_secs_f64();
    let options =
        &mut cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
    options["@type"] = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into();
    options["common_http_protocol_options"]["idle_timeout"] = format!("{seconds}s").into();
    if options.get("explicit_http_config").is_none() {
        options["explicit_http_config"] = json!({ "http_protocol_options": {} });
    }
    cluster
}

/// The copy of a base's route that leads to the lane.
#[must_use]
pub fn lane_route(route: &Value, text: &str) -> Option<Value> {
    if route.pointer("/route/cluster")? != "payments" {
        return None;
    }
    let mut copy = route.clone();
    let header = json!({ "name": "x-idleguard-lane", "string_match": { "exact": format!("payments={text}") } });
    match copy["match"]["headers"].as_array_mut() {
        Some(headers) => headers.push(header),
        None => copy["match"]["headers"] = json!([header]),
    }
    copy["route"]["cluster"] = format!("payments-{text}").into();
    copy["request_headers_to_remove"] = json!(["x-idleguard-lane"]);
    Some(copy)
}

fn settle() -> Value {
    json!({
        "name": "settle",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{
            "name": "http",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "settle",
                "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
                    { "match": { "prefix": "/" }, "direct_response": { "status": 200 } },
                ] }] },
                "http_filters": [{ "name": "router", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                } }],
            },
        }] }],
    })
}

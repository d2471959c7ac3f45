//! What is compared: proxies between the clients and the load balancer, each as its documentation or an expert would set it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use clap::ValueEnum;
use idleguard_cli::recommend::{as_json, recommend};
use idleguard_core::timeout::Margin;
use idleguard_harness::{
    envoy::{Config, Envoy, Options},
    http,
    servers::Server,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A proxy with one way to treat idle connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Envoy as it comes: idle connections are kept for an hour.
    Plain,
    /// Envoy whose operator knows the timeout: `idle_timeout` at 90 % of it, and one retry of GET after a reset.
    Static,
    /// The same where nobody knew it: a scout measured, and the patch of `idleguard recommend` was put in. No filter of ours is there then.
    Recommended,
    /// HAProxy as it comes: `http-reuse safe`, `pool-purge-delay 5s`.
    Haproxy,
    /// HAProxy with `pool-purge-delay` at a sixth of the timeout, and retries of GET after an empty response.
    HaproxyTuned,
    /// nginx as it comes (before 1.29.7): a new connection for each request.
    Nginx,
    /// nginx with the `keepalive` of its documentation, which keeps idle connections for 60 s.
    NginxKeepalive,
    /// The same with `keepalive_timeout` at 90 % of the load balancer's.
    NginxTuned,
    /// idleguard, told the timeout.
    Known,
    /// idleguard, told nothing, without a scout: it goes by what requests say.
    Learning,
    /// idleguard, told nothing, with a scout.
    Scout,
}

impl Subject {
    /// All, in the order of tables and pictures.
    pub const ALL: [Self; 11] = [
        Self::Plain,
        Self::Haproxy,
        Self::HaproxyTuned,
        Self::Nginx,
        Self::NginxKeepalive,
        Self::NginxTuned,
        Self::Static,
        Self::Recommended,
        Self::Known,
        Self::Learning,
        Self::Scout,
    ];

    /// As tables and pictures call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Plain => "Envoy, as it comes",
            Self::Static => "Envoy, idle_timeout known",
            Self::Recommended => "Envoy, as `recommend` says",
            Self::Haproxy => "HAProxy, as it comes",
            Self::HaproxyTuned => "HAProxy, tuned",
            Self::Nginx => "nginx, as it comes",
            Self::NginxKeepalive => "nginx, keepalive",
            Self::NginxTuned => "nginx, timeout known",
            Self::Known => "idleguard, timeout known",
            Self::Learning => "idleguard, learning, no scout",
            Self::Scout => "idleguard, learning",
        }
    }

    /// Starts it in front of a load balancer.
    pub async fn start(self, lb: SocketAddr, terms: Terms) -> Result<Running> {
        let limit = (terms.timeout * 9 / 10).as_millis();
        Ok(match self {
            Self::Haproxy => Running::Server(haproxy(format!(" server lb {lb}\n")).await?),
            Self::HaproxyTuned => {
                let purge = (terms.timeout / 6).as_millis();
                let backend = format!(
                    " retries 3\n retry-on conn-failure empty-response\n \
                     http-request disable-l7-retry unless METH_GET\n server lb {lb} pool-purge-delay {purge}ms\n"
                );
                Running::Server(haproxy(backend).await?)
            }
            Self::Nginx => Running::Server(nginx(lb, None).await?),
            Self::NginxKeepalive => Running::Server(nginx(lb, Some(String::new())).await?),
            Self::NginxTuned => Running::Server(nginx(lb, Some(format!("keepalive_timeout {limit}ms;"))).await?),
            Self::Recommended => {
                let config = recommended(self.envoy(terms)?.upstream(lb), terms.timeout).await?;
                Running::Envoy(Envoy::start(&config, options()).await?)
            }
            Self::Plain | Self::Static | Self::Known | Self::Learning | Self::Scout => {
                let config = self.envoy(terms)?.upstream(lb);
                Running::Envoy(Envoy::start(&config, options()).await?)
            }
        })
    }

    fn envoy(self, terms: Terms) -> Result<Config> {
        let config = Config::project()?.free_ports();
        let lanes: Vec<_> = [90, 60, 15].iter().map(|percent| millis(terms.timeout * *percent / 100)).collect();
        let lanes: Vec<_> = lanes.iter().map(String::as_str).collect();
        // The lanes' routes are copies of the base's, so that is edited first.
        let config = config.lanes(&[]).set(&format!("{ROUTE}/timeout"), seconds(ANSWER_WITHIN));
        let config =
            if self == Self::Plain { config } else { config.set(&format!("{ROUTE}/retry_policy"), retry_get()) };
        let config = config.lanes(&lanes).policy("initial_limit", millis(terms.timeout * 2 / 3));
        Ok(match self {
            Self::Static => config.without_idleguard().envoy_idle_timeout("payments", &seconds(terms.timeout * 9 / 10)),
            Self::Known => config.without_scout().lb_idle_timeout(&millis(terms.timeout)),
            Self::Learning => config.without_scout(),
            Self::Scout | Self::Recommended => config,
            _ => config.without_idleguard(),
        })
    }
}

fn options() -> Options {
    Options { start_within: Duration::from_secs(120), ..Options::default() }
}

/// The base alone, with what `recommend` says after a scout has measured; as it was, if there was nothing to measure.
async fn recommended(with_scout: Config, timeout: Duration) -> Result<Config> {
    let with_scout = with_scout.lanes(&[]); // what is in use is the base's timeout
    let envoy = Envoy::start(&with_scout, options()).await?;
    let known = |stats: &BTreeMap<String, u64>| {
        let of =
            |metric: &str| stats.get(&format!("wasmcustom.idleguard.scout.payments.{metric}")).copied().unwrap_or(0);
        // The bounds of a silent far end are narrowed down first.
        let is_close = of("lower_bound_ms") * 10 >= u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) * 9;
        of("lb_idle_timeout_ms") > 0 && (is_close || of("kind_silent") == 0)
    };
    let plain = with_scout.without_idleguard();
    if envoy.wait_for(timeout * 26, "a scout", known).await.is_err() {
        return Ok(plain);
    }
    let dump = http::get(envoy.admin(), "/config_dump").await?.text();
    let stats = http::get(envoy.admin(), "/stats?filter=idleguard").await?.text();
    let (found, _) = recommend(&serde_json::from_str(&dump)?, &stats, Margin::Share(0.1))?;
    let one = found.first().context("a recommendation")?;
    let patch = as_json(one)["patch"].clone();
    Ok(plain.edit_clusters(|cluster| {
        let is_meant = cluster["name"] == patch["name"];
        for (key, value) in patch.as_object().into_iter().flatten().filter(|_| is_meant) {
            cluster[key] = value.clone();
        }
    }))
}

/// What a subject is told, and what it isn't.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The load balancer's idle timeout.
    pub timeout: Duration,
}

const ROUTE: &str = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config/route_config/\
                     virtual_hosts/all/routes/0/route";

/// How long every proxy waits for a response.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A subject that runs.
#[derive(Debug)]
pub enum Running {
    /// An Envoy.
    Envoy(Envoy),
    /// HAProxy or nginx.
    Server(Server),
}

impl Running {
    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Envoy(envoy) => envoy.ingress(),
            Self::Server(server) => server.address(),
        }
    }

    /// The idle timeout that idleguard has learnt, in milliseconds; 0 while it has not.
    pub async fn learnt(&self) -> u64 {
        match self {
            Self::Envoy(envoy) => {
                envoy.stat("wasmcustom.idleguard.destination.payments.lb_idle_timeout_ms").await.unwrap_or(0)
            }
            Self::Server(_) => 0,
        }
    }
}

fn retry_get() -> Value {
    json!({
        "retry_on": "connect-failure,reset",
        "num_retries": 1,
        "retriable_request_headers": [{ "name": ":method", "string_match": { "exact": "GET" } }],
    })
}

async fn haproxy(backend: String) -> Result<Server> {
    let answer = ANSWER_WITHIN.as_millis();
    Server::haproxy_with(move |port| {
        format!(
            "global\n maxconn 4096\n nbthread 1\n\
             defaults\n mode http\n timeout client 3600s\n timeout connect 5s\n timeout server {answer}ms\n\
             frontend ingress\n bind 127.0.0.1:{port}\n default_backend payments\n\
             backend payments\n{backend}"
        )
    })
    .await
}

async fn nginx(lb: SocketAddr, keepalive: Option<String>) -> Result<Server> {
    let answer = ANSWER_WITHIN.as_millis();
    let pool = keepalive.as_ref().map_or_else(String::new, |more| format!("keepalive 64; {more}"));
    let reuse = keepalive.as_ref().map_or("", |_| "proxy_http_version 1.1; proxy_set_header Connection \"\";");
    Server::nginx_with(move |port| {
        format!(
            "keepalive_timeout 3600s; keepalive_requests 1000000;
            upstream payments {{ server {lb}; {pool} }}
            server {{
                listen 127.0.0.1:{port};
                location / {{ proxy_pass http://payments; proxy_read_timeout {answer}ms; {reuse} }}
            }}"
        )
    })
    .await
}

/// A duration as Envoy's own configuration writes it.
fn seconds(duration: Duration) -> String {
    format!("{:.3}s", duration.as_secs_f64())
}

/// A duration as idleguard's configuration writes it.
pub fn millis(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

//! Lanes are copies of clusters: what they cost Envoy in memory, start-up, health checks and DNS look-ups, beside the same
//! bootstrap without idleguard.

use std::time::Duration;

use anyhow::{Context, Result};
use idleguard_cli::{
    document::{Document, yaml},
    inject::{LANES, Request, inject},
};
use idleguard_harness::{
    envoy::{Config, Envoy, Options},
    project,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    far_end::FarEnd,
    process_cost::{self, open_files},
    statistics::Spread,
};

/// Envoy with so many clusters of so many hosts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Copies {
    /// Clusters that routes lead to.
    pub clusters: u64,
    /// Hosts of each, in the bootstrap.
    pub hosts: u64,
    /// Envoy without idleguard.
    pub plain: Side,
    /// With idleguard, and the lanes that `inject` gives each cluster.
    pub guarded: Side,
    /// The start-up with idleguard, of plain Envoy's right before it.
    pub start_ratio: Spread,
    /// Sockets that the health checks with lanes need, one for each host of each cluster and lane.
    pub sockets: u64,
    /// Sockets that an Envoy may have here.
    pub allowed: u64,
}

/// What one Envoy needs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Side {
    /// Resident memory a second after the start, in bytes: the median.
    pub memory_bytes: f64,
    /// From the start of the process until `/ready` says so, in milliseconds: the median.
    pub start_ms: f64,
    /// Health checks a second; none where they need more sockets than are allowed.
    pub checks_per_s: Option<f64>,
    /// DNS look-ups a second, where each cluster has one name. They don't depend on hosts, and are counted once.
    pub lookups_per_s: Option<f64>,
}

/// How much is measured.
pub struct Plan {
    /// Numbers of clusters.
    pub clusters: &'static [u64],
    /// Numbers of hosts.
    pub hosts: &'static [u64],
    /// Starts of each kind.
    pub rounds: u64,
    /// How long checks and look-ups are counted.
    pub counted: Duration,
}

/// The interval of health checks, in seconds.
pub const INTERVAL_S: u64 = 10;

/// Measures all of them.
pub async fn run(plan: &Plan) -> Result<Vec<Copies>> {
    let far_end = FarEnd::everywhere()?;
    let port = far_end.addresses().first().context("an address")?.port();
    let mut all = Vec::new();
    for &clusters in plan.clusters {
        let plain = yaml(&bootstrap(clusters));
        let guarded = with_lanes(&plain, clusters)?;
        for &hosts in plan.hosts {
            let sides = [with_hosts(&plain, hosts, port)?, with_hosts(&guarded, hosts, port)?];
            let copies = measure(plan, clusters, hosts, &sides).await;
            let copies = copies.with_context(|| format!("{clusters} clusters of {hosts} hosts"))?;
            eprintln!("  {clusters} clusters of {hosts} hosts: {:?}, {:?}", copies.plain, copies.guarded);
            all.push(copies);
        }
    }
    Ok(all)
}

async fn measure(plan: &Plan, clusters: u64, hosts: u64, sides: &[Config; 2]) -> Result<Copies> {
    let mut starts: [Vec<f64>; 2] = Default::default();
    let mut memory: [Vec<f64>; 2] = Default::default();
    for _ in 0..plan.rounds {
        for (side, config) in sides.iter().enumerate() {
            let begun = Instant::now();
            let envoy = start(config).await?;
            starts[side].push(begun.elapsed().as_secs_f64() * 1e3);
            sleep(Duration::from_secs(1)).await;
            memory[side].push(process_cost::resident_bytes(envoy.pid())? as f64);
        }
    }
    let [plain, guarded] = &starts;
    let start_ratio = Spread::of(plain.iter().zip(guarded).map(|(plain, guarded)| guarded / plain).collect());
    let (sockets, allowed) = (clusters * hosts * (LANES.len() as u64 + 1), open_files());
    let mut measured: [Side; 2] = Default::default();
    for (at, side) in measured.iter_mut().enumerate() {
        side.memory_bytes = Spread::of(memory[at].clone()).median;
        side.start_ms = Spread::of(starts[at].clone()).median;
        let needed = if at == 0 { clusters * hosts } else { sockets };
        if needed + 200 <= allowed {
            side.checks_per_s = Some(checks(plan, &sides[at]).await?);
        }
        if plan.hosts.first() == Some(&hosts) {
            side.lookups_per_s = Some(lookups(plan, &sides[at]).await?);
        }
    }
    let [plain, guarded] = measured;
    Ok(Copies { clusters, hosts, plain, guarded, start_ratio, sockets, allowed })
}

async fn start(config: &Config) -> Result<Envoy> {
    let within = Duration::from_secs(300);
    Envoy::start(config, Options { concurrency: 2, start_within: within, ..Options::default() }).await
}

/// Health checks a second, by HTTP over connections that are kept.
async fn checks(plan: &Plan, config: &Config) -> Result<f64> {
    let interval = format!("{INTERVAL_S}s");
    let config = config.clone().edit_clusters(|cluster| {
        cluster["health_checks"] = json!([{
            "timeout": "5s", "interval": interval, "no_traffic_interval": interval, "initial_jitter": "5s",
            "unhealthy_threshold": 3, "healthy_threshold": 1, "http_health_check": { "path": "/", "host": "hosts" },
        }]);
    });
    let envoy = start(&config).await?;
    sleep(Duration::from_secs(INTERVAL_S)).await; // until all have been checked once
    rate(plan, &envoy, ".health_check.attempt").await
}

/// DNS look-ups a second, at Envoy's own refresh rate.
async fn lookups(plan: &Plan, config: &Config) -> Result<f64> {
    let config = config.clone().edit_clusters(|cluster| {
        cluster["type"] = "STRICT_DNS".into();
        cluster["load_assignment"]["endpoints"] = json!([{ "lb_endpoints": [host("localhost", 1)] }]);
    });
    rate(plan, &start(&config).await?, ".update_attempt").await
}

/// What is added to these counters of all clusters, a second. Lanes count under their base's name.
async fn rate(plan: &Plan, envoy: &Envoy, counter: &str) -> Result<f64> {
    let sum = async || {
        let stats = envoy.stats().await?;
        let of_clusters = stats.iter().filter(|(name, _)| name.starts_with("cluster.") && name.ends_with(counter));
        anyhow::Ok((of_clusters.map(|(_, count)| count).sum::<u64>(), Instant::now()))
    };
    let (before, begun) = sum().await?;
    sleep(plan.counted).await;
    let (after, ended) = sum().await?;
    Ok((after - before) as f64 / (ended - begun).as_secs_f64())
}

fn name(cluster: u64) -> String {
    format!("payments{cluster}")
}

fn bootstrap(clusters: u64) -> Value {
    let routes: Vec<Value> = (0..clusters)
        .map(|at| json!({ "match": { "prefix": format!("/c{at}/") }, "route": { "cluster": name(at) } }))
        .collect();
    let address = json!({ "socket_address": { "address": "127.0.0.1", "port_value": 0 } });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
        "http_filters": [{
            "name": "router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    let clusters: Vec<Value> = (0..clusters).map(|at| json!({ "name": name(at), "type": "STATIC" })).collect();
    json!({
        "admin": { "address": address },
        "static_resources": {
            "listeners": [{
                "name": "ingress",
                "address": address,
                "filter_chains": [{ "filters": [{ "name": "http", "typed_config": manager }] }],
            }],
            "clusters": clusters,
        },
    })
}

/// As `idleguard inject` writes it.
fn with_lanes(plain: &str, clusters: u64) -> Result<String> {
    let wasm = project::wasm()?.display().to_string();
    let mut document = Document::parse(plain)?;
    for at in 0..clusters {
        let request = Request { cluster: name(at), wasm: Some(wasm.clone()), ..Request::default() };
        inject(&mut document, &request)?;
    }
    Ok(document.text().to_owned())
}

/// With so many hosts in each cluster and lane: all are the one far end, by its addresses 127.x.y.z.
fn with_hosts(bootstrap: &str, hosts: u64, port: u16) -> Result<Config> {
    let config = Config::parse(bootstrap)?;
    Ok(config.edit_clusters(|cluster| {
        let name = cluster["name"].as_str().and_then(|name| name.strip_prefix("payments"));
        let number: u8 = name.and_then(|name| name.split('-').next()?.parse().ok()).unwrap_or(0);
        let address = |at: u64| format!("127.{}.{}.{}", 1 + number, at / 250, 1 + at % 250);
        let hosts: Vec<Value> = (0..hosts).map(|at| host(&address(at), port)).collect();
        cluster["load_assignment"] = json!({ "cluster_name": "hosts", "endpoints": [{ "lb_endpoints": hosts }] });
    }))
}

fn host(address: &str, port: u16) -> Value {
    json!({ "endpoint": { "address": { "socket_address": { "address": address, "port_value": port } } } })
}

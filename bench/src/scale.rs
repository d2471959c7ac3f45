//! Thousands of open connections to the far end in one Envoy: what each costs in memory, and what watching them costs while
//! nothing happens.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use idleguard_harness::envoy::{Envoy, Options};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    far_end::FarEnd,
    process_cost::{self, open_files},
    variants::Variant,
};

/// One Envoy with so many connections.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Load {
    /// What is in the way.
    pub variant: Variant,
    /// Open connections to the far end.
    pub connections: u64,
    /// Envoy's memory before they were opened, in bytes.
    pub before_bytes: u64,
    /// With all of them open and idle.
    pub open_bytes: u64,
    /// CPU time while nothing happens, in microseconds per second.
    pub idle_us_per_s: f64,
}

impl Load {
    /// Bytes per connection.
    pub fn bytes_per_connection(&self) -> f64 {
        self.open_bytes.saturating_sub(self.before_bytes) as f64 / self.connections.max(1) as f64
    }
}

const VARIANTS: [Variant; 2] = [Variant::Plain, Variant::Lane];

/// Measures these numbers of connections, as far as the machine's limit of open files goes.
pub async fn run(counts: &[u64], idle: Duration) -> Result<Vec<Load>> {
    let files = open_files();
    let most = files.saturating_sub(600);
    let mut counts: Vec<u64> = counts.iter().map(|&count| count.min(most)).collect();
    counts.dedup();
    eprintln!("  {files} open files allowed: up to {} connections", counts.last().unwrap_or(&0));
    let mut loads = Vec::new();
    for &count in &counts {
        for variant in VARIANTS {
            let load =
                measure(variant, count, idle).await.with_context(|| format!("{} with {count}", variant.label()))?;
            eprintln!(
                "  {}: {count} connections, {:.0} bytes each, {:.0} us/s idle",
                variant.label(),
                load.bytes_per_connection(),
                load.idle_us_per_s
            );
            loads.push(load);
        }
    }
    Ok(loads)
}

async fn measure(variant: Variant, connections: u64, idle: Duration) -> Result<Load> {
    let far_end = FarEnd::start(4)?;
    let route = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config/route_config/\
                 virtual_hosts/all/routes/0/route/timeout";
    let config = variant.config(far_end.addresses())?.set(route, "0s");
    let config = config.edit_clusters(|cluster| cluster["upstream_connection_options"] = json!({}));
    let envoy = Envoy::start(&config, Options::default()).await?;
    let one = requests(envoy.ingress(), 1, &far_end).await; // the filter's first request is not the connections' cost
    one.context("the first request")?;
    sleep(Duration::from_secs(1)).await;
    let before_bytes = process_cost::resident_bytes(envoy.pid())?;
    requests(envoy.ingress(), connections, &far_end).await?;
    sleep(Duration::from_secs(3)).await; // until the last request is logged and its memory given back
    let open = envoy.stat("cluster.payments.upstream_cx_active").await?; // base and lanes together
    ensure!(open >= connections, "{open} connections are open, not {connections}");
    let open_bytes = process_cost::resident_bytes(envoy.pid())?;
    let cpu = process_cost::cpu_ns(envoy.pid())?;
    sleep(idle).await;
    let idle_us = (process_cost::cpu_ns(envoy.pid())? - cpu) as f64 / 1e3;
    Ok(Load { variant, connections, before_bytes, open_bytes, idle_us_per_s: idle_us / idle.as_secs_f64() })
}

/// Requests that are all in flight at once, so that each has a connection to the far end; then all are answered. They come
/// over a few HTTP/2 connections, which are closed afterwards.
async fn requests(address: SocketAddr, count: u64, far_end: &FarEnd) -> Result<()> {
    let mut running = JoinSet::new();
    let mut open = Vec::new();
    let mut sent = 0;
    while sent < count {
        let tcp = TcpStream::connect(address).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await?;
        open.push(tokio::spawn(connection));
        for _ in 0..(count - sent).min(STREAMS) {
            let mut sender = sender.clone();
            running.spawn(async move {
                let request = Request::get(format!("http://{address}/hold")).body(Empty::<Bytes>::new())?;
                sender.ready().await?;
                let response = sender.send_request(request).await?;
                let status = response.status();
                let body = response.into_body().collect().await?.to_bytes();
                ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
                anyhow::Ok(())
            });
            sent += 1;
        }
        // All at once they would keep the event loop from opening connections in time.
        arrived(far_end, sent, &mut running).await?;
    }
    far_end.release();
    while let Some(answer) = running.join_next().await {
        answer??;
    }
    open.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

async fn arrived(far_end: &FarEnd, count: u64, running: &mut JoinSet<Result<()>>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    while far_end.held() < count {
        if let Some(early) = running.try_join_next() {
            early?.context("a request that should wait")?;
        }
        ensure!(Instant::now() < end, "only {} of {count} requests have arrived", far_end.held());
        sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Streams of one HTTP/2 connection: fewer than any default allows.
const STREAMS: u64 = 90;

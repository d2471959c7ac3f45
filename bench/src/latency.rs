//! Latency and CPU at a fixed rate below saturation, with many client connections open, against plain Envoy and beside other proxies with
//! the same job: requests leave when they are due, and their time counts from then, so that a stall is not hidden by the requests that it
//! held back.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use idleguard_harness::{
    envoy::{Envoy, Options},
    servers::Server,
};
use serde::{Deserialize, Serialize};

use crate::{
    clients,
    far_end::FarEnd,
    process_cost::{cpu_ns, open_files},
    statistics::{Spread, quantile},
    variants::Variant,
};

/// What is compared. Each keeps its connections to the far end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    /// An Envoy of one worker.
    Envoy(Variant),
    /// nginx with one worker process: `real_ip_header` and `X-Real-IP`.
    Nginx,
    /// HAProxy with one thread: `set-src` and `X-Real-IP`.
    Haproxy,
}

impl Proxy {
    const ALL: [Self; 7] = [
        Self::Envoy(Variant::Plain),
        Self::Envoy(Variant::Lua),
        Self::Envoy(Variant::Lane),
        Self::Envoy(Variant::ClientIp),
        Self::Envoy(Variant::Everything),
        Self::Nginx,
        Self::Haproxy,
    ];

    /// As tables and pictures call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Envoy(variant) => variant.label(),
            Self::Nginx => "nginx, `real_ip` and a header",
            Self::Haproxy => "HAProxy, `set-src` and a header",
        }
    }

    async fn start(self, far_end: &FarEnd) -> Result<Running> {
        let to = far_end.addresses().first().copied().context("a far end")?;
        let running = match self {
            Self::Envoy(variant) => {
                let envoy = Envoy::start(&variant.config(far_end.addresses())?, Options::default()).await?;
                Running { address: envoy.ingress(), pid: envoy.pid(), _process: Process::Envoy(envoy) }
            }
            Self::Nginx => nginx(to).await?.into(),
            Self::Haproxy => haproxy(to).await?.into(),
        };
        Ok(running)
    }
}

struct Running {
    address: SocketAddr,
    pid: u32,
    _process: Process,
}

/// Ends when this is dropped.
enum Process {
    Envoy(#[expect(dead_code, reason = "kept until it is to end")] Envoy),
    Server(#[expect(dead_code, reason = "kept until it is to end")] Server),
}

impl From<Server> for Running {
    fn from(server: Server) -> Self {
        Self { address: server.address(), pid: server.pid(), _process: Process::Server(server) }
    }
}

async fn nginx(far_end: SocketAddr) -> Result<Server> {
    Server::nginx_with(move |port| {
        format!(
            "keepalive_timeout 3600s; keepalive_requests 1000000;
            set_real_ip_from 10.0.0.0/8; set_real_ip_from 127.0.0.0/8;
            real_ip_header X-Forwarded-For; real_ip_recursive on;
            upstream payments {{ server {far_end}; keepalive 64; keepalive_requests 1000000; }}
            server {{
                listen 127.0.0.1:{port} backlog=4096;
                location / {{
                    proxy_pass http://payments; proxy_http_version 1.1; proxy_set_header Connection \"\";
                    proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-For $remote_addr;
                }}
            }}"
        )
    })
    .await
}

async fn haproxy(far_end: SocketAddr) -> Result<Server> {
    Server::haproxy_with(move |port| {
        format!(
            "global\n no strict-limits\n maxconn 12000\n nbthread 1\n\
             defaults\n mode http\n timeout client 3600s\n timeout connect 5s\n timeout server 15s\n \
             timeout http-keep-alive 3600s\n\
             frontend ingress\n bind 127.0.0.1:{port} backlog 4096\n \
             http-request set-src hdr_ip(x-forwarded-for,-2) if {{ src 10.0.0.0/8 127.0.0.0/8 }}\n \
             http-request set-header x-real-ip %[src]\n http-request set-header x-forwarded-for %[src]\n \
             default_backend payments\n\
             backend payments\n http-reuse always\n server far {far_end}\n"
        )
    })
    .await
}

/// What one proxy needs with so many client connections open.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Latency {
    /// What was in the way.
    pub proxy: Proxy,
    /// Client connections that were open, all used in turn.
    pub connections: usize,
    /// CPU in microseconds a request, over the rounds.
    pub cpu_us: Spread,
    /// Median in microseconds, over the rounds.
    pub p50_us: Spread,
    /// 99th percentile in microseconds, over the rounds.
    pub p99_us: Spread,
    /// CPU against plain Envoy's in the same round.
    pub cpu_ratio: Spread,
    /// Median against plain Envoy's in the same round.
    pub p50_ratio: Spread,
    /// 99th percentile against plain Envoy's in the same round.
    pub p99_ratio: Spread,
    /// Requests per second.
    pub rate: f64,
    /// Rounds.
    pub rounds: usize,
}

/// What one turn was seen to need: CPU, median, 99th percentile, in microseconds.
#[derive(Clone, Copy)]
struct Turn([f64; 3]);

/// Measures at this rate; each round lasts `slice` for each proxy.
pub async fn run(connections: &[usize], rounds: usize, slice: Duration, rate: f64) -> Result<Vec<Latency>> {
    open_files();
    let mut results = Vec::new();
    for &connections in connections {
        let far_end = FarEnd::start(1)?;
        let mut running = Vec::new();
        for proxy in Proxy::ALL {
            running.push(proxy.start(&far_end).await.context(proxy.label())?);
        }
        let mut turns = vec![Vec::new(); running.len()];
        for round in 0..=rounds {
            for place in 0..running.len() {
                let index = (place + round) % running.len();
                let turn = turn(&running[index], connections, rate, slice).context(Proxy::ALL[index].label())?;
                if round > 0 {
                    turns[index].push(turn);
                }
            }
        }
        let plain = turns.first().cloned().unwrap_or_default();
        results.extend(Proxy::ALL.into_iter().zip(&turns).map(|(proxy, own)| {
            let spread = |part: usize| Spread::of(own.iter().map(|turn| turn.0[part]).collect());
            let ratio = |part: usize| {
                Spread::of(own.iter().zip(&plain).map(|(own, plain)| own.0[part] / plain.0[part]).collect())
            };
            Latency {
                proxy,
                connections,
                cpu_us: spread(0),
                p50_us: spread(1),
                p99_us: spread(2),
                cpu_ratio: ratio(0),
                p50_ratio: ratio(1),
                p99_ratio: ratio(2),
                rate,
                rounds: own.len(),
            }
        }));
    }
    Ok(results)
}

fn turn(running: &Running, connections: usize, rate: f64, slice: Duration) -> Result<Turn> {
    let clients = clients::Open::connect(running.address, connections)?;
    let before = cpu_ns(running.pid)?;
    let latencies = clients.at_rate(rate, slice)?;
    let cpu = (cpu_ns(running.pid)? - before) as f64 / 1e3 / latencies.len().max(1) as f64;
    let mut micros: Vec<f64> = latencies.iter().map(|latency| latency.as_secs_f64() * 1e6).collect();
    micros.sort_by(f64::total_cmp);
    Ok(Turn([cpu, quantile(&micros, 0.5), quantile(&micros, 0.99)]))
}

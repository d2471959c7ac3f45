//! Many connections at once, through plain Envoy and through idleguard: does anything fail, and what does it weigh?
//!
//! Each client has one exchange in flight, and all of them are answered at one moment; then all of them again, on connections
//! that were idle for a while. More connections than idleguard follows are no reason for a failure.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use idleguard_harness::{
    arguments,
    envoy::{Config, Envoy, Options},
    process,
    stub_lb::{self, Mode, StubLb},
};
use serde_json::json;
use tokio::{net::TcpSocket, sync::Semaphore, task::JoinSet, time::sleep};

/// Addresses on which the LB listens and from which clients come: there are not enough ports for one pair.
const ADDRESSES: u64 = 8;

/// How long connections are idle between the two waves: long enough to be evidence.
const IDLE: Duration = Duration::from_millis(1_500);

/// Load idleguard.
#[derive(Parser)]
struct Arguments {
    /// Connections at once
    #[arg(long, default_value_t = 20_000)]
    connections: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tokio::select! {
        result = load(arguments) => match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("load: {error:#}");
                ExitCode::FAILURE
            }
        },
        () = process::stop_signal() => ExitCode::FAILURE,
    }
}

async fn load(arguments: Arguments) -> Result<()> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("limits")?;
    let limit: u64 = limit.split_whitespace().next().and_then(|soft| soft.parse().ok()).context("a limit")?;
    // Envoy needs two descriptors a connection, one to each side; so do we, who are both clients and LB.
    let connections = arguments.connections.min(limit.saturating_sub(500) / 2);
    if connections < arguments.connections {
        println!("the limit of open files is {limit}: {connections} connections, not {}", arguments.connections);
    }
    println!(
        "| {connections} exchanges at once, twice | failed | connections to the LB, at most | Envoy's memory, at most |"
    );
    println!("| --- | --- | --- | --- |");
    let config = configuration(arguments::configuration(None, None)?);
    let plain = waves("plain Envoy", config.clone().without_idleguard(), connections).await?;
    let guarded = waves("idleguard", config, connections).await?;
    if plain + guarded > 0 {
        bail!("{plain} requests failed through plain Envoy, {guarded} through idleguard");
    }
    Ok(())
}

/// Holds so many exchanges, twice; says what came of it, and returns how many failed.
async fn waves(name: &str, config: Config, connections: u64) -> Result<u64> {
    let listen = (Ipv4Addr::UNSPECIFIED, 0).into();
    let lb = StubLb::with(stub_lb::Options { mode: Mode::Stable, listen, ..Default::default() })?;
    let config = reaching(config, lb.address().port());
    let mut envoy = Envoy::start(&config, Options { concurrency: 2, ..Options::default() }).await?;
    let within = Duration::from_secs(10 + connections / 500);
    let mut failed = 0;
    for _ in 0..2 {
        failed += crowd(envoy.ingress(), connections, Instant::now() + within).await?;
        sleep(IDLE).await;
    }
    let status = fs::read_to_string(format!("/proc/{}/status", envoy.pid()))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    println!("| {name} | {failed} | {} | {} MiB |", lb.counters().peak, kib / 1_024);
    if !envoy.is_running() {
        bail!("Envoy has ended");
    }
    if lb.counters().peak < connections {
        bail!("not all of {connections} connections were held");
    }
    Ok(failed)
}

fn configuration(config: Config) -> Config {
    let breakers = json!({ "thresholds": [{
        "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000, "max_retries": 1_000
    }]});
    let routes = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config/route_config/virtual_hosts/all/routes";
    let count = config.get(routes).and_then(serde_json::Value::as_array).map_or(0, Vec::len);
    // As long as nothing is known the limit is 4 s, and these are idle for less.
    let config = (0..count).fold(config.free_ports().without_scout(), |config, route| {
        config.set(&format!("{routes}/{route}/route/timeout"), "180s")
    });
    config.edit_clusters(|cluster| {
        cluster["circuit_breakers"] = breakers.clone();
        cluster["connect_timeout"] = "30s".into();
    })
}

/// With several addresses of the LB.
fn reaching(config: Config, port: u16) -> Config {
    let endpoints: Vec<_> = (1..=ADDRESSES)
        .map(|n| {
            let address = json!({ "socket_address": { "address": format!("127.0.0.{n}"), "port_value": port } });
            json!({ "endpoint": { "address": address } })
        })
        .collect();
    config.edit_clusters(|cluster| cluster["load_assignment"]["endpoints"] = json!([{ "lb_endpoints": endpoints }]))
}

/// So many clients, each on a connection of its own, with one exchange; all are answered at `together`. Returns how many were
/// not.
async fn crowd(address: SocketAddr, clients: u64, together: Instant) -> Result<u64> {
    let (gate, failed) = (Arc::new(Semaphore::new(200)), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let (gate, failed) = (gate.clone(), failed.clone());
        tasks.spawn(async move {
            let one = async {
                let permit = gate.acquire_owned().await?;
                let mut sender = connect(address, client).await?;
                let wait = together.saturating_duration_since(Instant::now()).as_millis();
                let response = sender.send_request(request(&format!("/slow?ms={wait}"))?);
                // Its place is free when the request is on its way, and the next client need not wait for the answer.
                let release = async {
                    sleep(Duration::from_millis(20)).await;
                    drop(permit);
                    std::future::pending::<()>().await;
                };
                let response = tokio::select! { response = response => response?, () = release => bail!("never") };
                if !response.status().is_success() {
                    bail!("{}", response.status());
                }
                response.into_body().collect().await?;
                anyhow::Ok(())
            };
            if let Err(error) = one.await
                && failed.fetch_add(1, Ordering::Relaxed) < 3
            {
                eprintln!("load: {error:#}");
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(failed.load(Ordering::Relaxed))
}

async fn connect(address: SocketAddr, client: u64) -> Result<http1::SendRequest<Empty<Bytes>>> {
    let socket = TcpSocket::new_v4()?;
    let from = Ipv4Addr::new(127, 0, 1, u8::try_from(client % ADDRESSES)? + 1);
    socket.bind((from, 0).into())?;
    let tcp = socket.connect(address).await?;
    tcp.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

fn request(path: &str) -> Result<Request<Empty<Bytes>>> {
    Ok(Request::get(path).header("host", "example").body(Empty::new())?)
}

//! Many connections through a real Envoy, and what a reap of thousands of them does to the traffic beside it; then the same
//! through plain Envoy with its own `idle_timeout`, to tell the filter's part from the machine's.
//!
//! The LB drops idle connections silently, so a reap that comes too late is seen as a dropped connection.

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
    stub_lb::{By, Mode, StubLb},
};
use serde_json::json;
use tokio::{
    net::TcpSocket,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, sleep_until},
};

/// The LB's idle timeout.
const LB_IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// About what a tenth is of a minute, the commonest timeout: thousands of responses that come at one moment are read over
/// seconds, and only then are their connections idle for Envoy.
const MARGIN: &str = "5s";
/// The same for plain Envoy.
const ENVOY_IDLE_TIMEOUT: &str = "15s";
/// Addresses on which the LB listens and from which clients come: there are not enough ports for one pair.
const ADDRESSES: u64 = 8;
/// The clients beside.
const OTHERS: u64 = 20;

/// Load idleguard.
#[derive(Parser)]
struct Arguments {
    /// Connections at once
    #[arg(long, default_value_t = 20_000)]
    connections: u64,
    /// Connections that are reaped together
    #[arg(long, default_value_t = 10_000)]
    reaped: u64,
    /// How often
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// The most that p99 during a reap may be, in terms of the p99 before it; the median of the rounds counts
    #[arg(long, default_value_t = 1.5)]
    bar: f64,
    /// Leave out plain Envoy
    #[arg(long)]
    no_control: bool,
}

/// Who closes the connections.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    Idleguard,
    /// Plain Envoy, by its `idle_timeout`.
    Envoy,
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

/// When a request was sent, and how long its answer took.
type Latency = (Instant, Duration);

async fn load(arguments: Arguments) -> Result<()> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("limits")?;
    let limit: u64 = limit.split_whitespace().next().and_then(|soft| soft.parse().ok()).context("a limit")?;
    // Envoy needs two descriptors a connection, one to each side; so do we, who are both clients and LB.
    let connections = arguments.connections.min(limit.saturating_sub(500) / 2);
    if connections < arguments.connections {
        println!("the limit of open files is {limit}: {connections} connections, not {}", arguments.connections);
    }
    let reaped = arguments.reaped.min(connections);

    let (ratio, wrong) = rounds(Subject::Idleguard, connections, reaped, arguments.rounds).await?;
    let control = match arguments.no_control {
        true => None,
        false => Some(rounds(Subject::Envoy, connections, reaped, arguments.rounds).await?.0),
    };
    println!(
        "\np99 beside a reap, in terms of the p99 before it, median of {} rounds: {ratio:.2} times",
        arguments.rounds
    );
    if let Some(control) = control {
        println!("through plain Envoy whose idle_timeout closes as many: {control:.2} times");
    }
    if wrong > 0 {
        bail!("{wrong} requests failed or connections were dropped by the LB before they were reaped");
    }
    if ratio > arguments.bar {
        bail!("more than {} times", arguments.bar);
    }
    Ok(())
}

/// Holds so many connections and has some of them closed, this often. The median of p99 beside in terms of p99 before; requests
/// that failed and connections that the LB dropped.
async fn rounds(subject: Subject, connections: u64, reaped: u64, rounds: u32) -> Result<(f64, u64)> {
    println!("\n## {}\n", if subject == Subject::Envoy { "Plain Envoy, idle_timeout" } else { "idleguard" });
    let listen = (Ipv4Addr::UNSPECIFIED, 0).into();
    let mode = Mode::SilentRst(LB_IDLE_TIMEOUT);
    let lb = StubLb::with(idleguard_harness::stub_lb::Options { mode, listen, ..Default::default() })?;
    let config = configuration(arguments::configuration(None, None)?, lb.address().port());
    let config = match subject {
        Subject::Idleguard => config,
        Subject::Envoy => config.without_idleguard().envoy_idle_timeout("payments", ENVOY_IDLE_TIMEOUT),
    };
    let mut envoy = Envoy::start(&config, Options { concurrency: 2, ..Options::default() }).await?;

    let begun = Instant::now();
    let failed = crowd(envoy.ingress(), connections, Instant::now() + Duration::from_secs(40)).await?;
    let rss = fs::read_to_string(format!("/proc/{}/status", envoy.pid()))?;
    let rss = rss.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default().to_owned();
    let peak = lb.counters().peak;
    println!(
        "{connections} exchanges at once in {:.0} s: {failed} failed, {peak} connections to the LB at the peak",
        begun.elapsed().as_secs_f64()
    );
    println!("Envoy's memory at its highest: {}", rss.trim_start_matches("VmHWM:").trim());
    if failed > 0 || peak < connections {
        bail!("not all of {connections} connections were held");
    }
    empty(&lb).await?;

    println!(
        "\n| reap | closed in | p50, p99, most beside it | p50, p99, most before it | p99 | requests | failed | dropped by the LB |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let (mut ratios, mut wrong) = (Vec::new(), 0);
    for _ in 0..rounds {
        let reap = reap(envoy.ingress(), &lb, reaped).await?;
        let (beside, before) = (&reap.beside, &reap.before);
        let ratio = share(beside, 0.99) / share(before, 0.99);
        println!(
            "| {} of {reaped} | {:.2} s | {} | {} | {ratio:.2} times | {} and {} | {} | {} |",
            reap.closed,
            reap.took.as_secs_f64(),
            milliseconds(beside),
            milliseconds(before),
            beside.len(),
            before.len(),
            reap.failed,
            reap.dropped,
        );
        wrong += reap.failed + reap.dropped;
        ratios.push(ratio);
        empty(&lb).await?;
    }
    ratios.sort_by(f64::total_cmp);
    if !envoy.is_running() {
        bail!("Envoy has ended");
    }
    Ok((ratios.get(ratios.len() / 2).copied().context("no rounds")?, wrong))
}

/// What came of one reap.
struct Reap {
    /// Connections that Envoy closed.
    closed: usize,
    /// From the first close to the last.
    took: Duration,
    /// Connections that the LB dropped because their reap came too late.
    dropped: u64,
    /// What passed while connections were closed, and what passed before.
    beside: Vec<Latency>,
    before: Vec<Latency>,
    failed: u64,
}

/// Makes so many connections idle together, and watches the traffic beside them until they are gone.
async fn reap(ingress: SocketAddr, lb: &StubLb, connections: u64) -> Result<Reap> {
    let earlier = lb.counters();
    let together = Instant::now() + Duration::from_secs(15 + connections / 1_000);
    let failed = crowd(ingress, connections, together).await?;
    let idle = Instant::now();
    let (latencies, wrong) = others(ingress, idle + LB_IDLE_TIMEOUT + Duration::from_secs(1)).await?;
    let closes: Vec<_> = lb
        .records()
        .into_iter()
        .filter(|record| record.id > earlier.opened && record.requests <= 2)
        .filter_map(|record| record.close)
        .filter(|close| close.by == By::Peer && close.at > idle)
        .map(|close| close.at)
        .collect();
    let (Some(first), Some(last)) = (closes.iter().min().copied(), closes.iter().max().copied()) else {
        bail!("nothing was reaped");
    };
    let (begin, end) = (first - Duration::from_millis(50), last + Duration::from_millis(50));
    let (beside, mut before): (Vec<_>, Vec<_>) =
        latencies.into_iter().partition(|(sent, took)| *sent + *took >= begin && *sent <= end);
    before.retain(|(sent, _)| *sent > idle + Duration::from_secs(1) && *sent < begin);
    let dropped = lb.counters().idle_drops - earlier.idle_drops;
    Ok(Reap { closed: closes.len(), took: last - first, dropped, beside, before, failed: failed + wrong })
}

fn configuration(config: Config, port: u16) -> Config {
    let breakers = json!({ "thresholds": [{
        "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000, "max_retries": 1_000
    }]});
    let endpoints: Vec<_> = (1..=ADDRESSES)
        .map(|n| {
            let address = json!({ "socket_address": { "address": format!("127.0.0.{n}"), "port_value": port } });
            json!({ "endpoint": { "address": address } })
        })
        .collect();
    let route = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config/route_config/virtual_hosts/all/routes/0/route/timeout";
    config
        .free_ports()
        .set(route, "180s")
        .policy("lb_idle_timeout", format!("{}s", LB_IDLE_TIMEOUT.as_secs()))
        .policy("margin", MARGIN)
        .policy("retry_stale", "off")
        .set("static_resources/clusters/payments/circuit_breakers", breakers.clone())
        .set("static_resources/clusters/payments/connect_timeout", "30s")
        .set("static_resources/clusters/payments-lb/circuit_breakers", breakers)
        .set(
            "static_resources/clusters/payments-lb/load_assignment",
            json!({ "cluster_name": "payments-lb", "endpoints": [{ "lb_endpoints": endpoints }] }),
        )
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

/// A few clients that send all the time, until then: their latencies, and how many requests failed.
async fn others(address: SocketAddr, until: Instant) -> Result<(Vec<Latency>, u64)> {
    let mut tasks = JoinSet::new();
    let (stop, stopped) = watch::channel(false);
    for client in 0..OTHERS {
        let stopped = stopped.clone();
        tasks.spawn(async move {
            let mut random = fastrand::Rng::with_seed(client);
            let (mut latencies, mut wrong) = (Vec::new(), 0);
            let Ok(mut sender) = connect(address, client).await else { return (latencies, 1) };
            while !*stopped.borrow() {
                let sent = Instant::now();
                let exchange = async {
                    let response = sender.send_request(request("/")?).await?;
                    let is_success = response.status().is_success();
                    response.into_body().collect().await?;
                    anyhow::Ok(is_success)
                };
                match exchange.await {
                    Ok(true) => latencies.push((sent, sent.elapsed())),
                    Ok(false) => wrong += 1,
                    Err(_) => return (latencies, wrong + 1),
                }
                sleep(Duration::from_millis(random.u64(10..60))).await;
            }
            (latencies, wrong)
        });
    }
    sleep_until(until.into()).await;
    stop.send(true)?;
    let (mut all, mut wrong) = (Vec::new(), 0);
    while let Some(done) = tasks.join_next().await {
        let (latencies, failed) = done?;
        all.extend(latencies);
        wrong += failed;
    }
    Ok((all, wrong))
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

/// Waits until every connection to the LB is closed.
async fn empty(lb: &StubLb) -> Result<()> {
    if !lb.wait_for(LB_IDLE_TIMEOUT + Duration::from_secs(10), |counters| counters.open == 0).await {
        bail!("{} connections to the LB are left", lb.counters().open);
    }
    Ok(())
}

/// The median, the p99 and the longest, in milliseconds.
fn milliseconds(latencies: &[Latency]) -> String {
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(|part| share(latencies, part));
    format!("{p50:.1}, {p99:.1}, {most:.1} ms")
}

/// The latency in milliseconds that this share of the requests did not exceed.
fn share(latencies: &[Latency], share: f64) -> f64 {
    let mut sorted: Vec<_> = latencies.iter().map(|(_, took)| *took).collect();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).map_or(0.0, |took| took.as_secs_f64() * 1e3)
}

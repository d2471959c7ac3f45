//! What a request costs, in instructions of the whole Envoy process: callgrind counts them, and a busy machine doesn't change
//! what it counts. (CPU time does change there: `cpu.rs`.)
//!
//! Envoy runs under valgrind, at full length uncounted: it starts, serves 2,400 requests over the connections that will be used,
//! V8 compiles what runs often, and then counting is switched on for 400 requests. What Envoy does for itself in as much time
//! (timers come as often as ever while valgrind makes everything slow) is subtracted. What the kernel does is not counted.

use std::cmp::Ordering;
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Request, Response, body::Bytes, client, server, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use idleguard_harness::{
    envoy::{Config, Envoy, Options},
    project,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use crate::{clients, far_end::FarEnd, results, variants::Variant};

/// Requests before those that count.
const WARM_UP: usize = 2_400;

/// Requests that count.
const COUNTED: usize = 400;

/// Clients, each with one request at a time.
const CLIENTS: usize = 8;

/// The share by which a variant may grow, of plain Envoy's: what [`check`] lets pass. The figures repeat within 0.3 %.
const TOLERANCE: f64 = 0.02;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Traffic {
    /// 27 bytes over HTTP/1.1, connections kept.
    Small,
    /// 64 KiB.
    Body,
    /// 27 bytes over HTTP/2 on both sides.
    Http2,
    /// 27 bytes, each on a client's connection of its own.
    NewConnections,
}

impl Traffic {
    /// As tables call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Small => "small response, keep-alive",
            Self::Body => "64 KiB response",
            Self::Http2 => "HTTP/2 on both sides",
            Self::NewConnections => "a new connection each",
        }
    }
}

/// What a request costs in one variant under one kind of traffic.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cost {
    /// The traffic.
    pub traffic: Traffic,
    /// What is in the way.
    pub variant: Variant,
    /// Thousand instructions of the whole process a request.
    pub thousands: f64,
    /// Of plain Envoy's under the same traffic.
    pub of_plain: f64,
}

/// What is counted: everything, in the order of the table.
const CASES: [(Traffic, Variant); 15] = [
    (Traffic::Small, Variant::Plain),
    (Traffic::Small, Variant::Route),
    (Traffic::Small, Variant::Lua),
    (Traffic::Small, Variant::WatchAll),
    (Traffic::Small, Variant::Watch),
    (Traffic::Small, Variant::Base),
    (Traffic::Small, Variant::Lane),
    (Traffic::Small, Variant::ClientIp),
    (Traffic::Small, Variant::Everything),
    (Traffic::Body, Variant::Plain),
    (Traffic::Body, Variant::Everything),
    (Traffic::Http2, Variant::Plain),
    (Traffic::Http2, Variant::Everything),
    (Traffic::NewConnections, Variant::Plain),
    (Traffic::NewConnections, Variant::Everything),
];

/// What the short form counts.
const SHORT: [(Traffic, Variant); 5] = [
    (Traffic::Small, Variant::Plain),
    (Traffic::Small, Variant::WatchAll),
    (Traffic::Small, Variant::Lane),
    (Traffic::Small, Variant::ClientIp),
    (Traffic::Small, Variant::Everything),
];

/// Counts all cases, or those of the short form; only these variants (and plain Envoy) if any are named.
pub async fn run(short: bool, only: &[Variant]) -> Result<Vec<Cost>> {
    let cases: &[_] = if short { &SHORT } else { &CASES };
    let wanted = |variant: Variant| only.is_empty() || variant == Variant::Plain || only.contains(&variant);
    let mut plain = BTreeMap::new();
    let mut costs = Vec::new();
    for &(traffic, variant) in cases.iter().filter(|(_, variant)| wanted(*variant)) {
        let counted = count(traffic, variant).await;
        let thousands = counted.with_context(|| format!("{}, {}", variant.label(), traffic.label()))?;
        let of_plain = thousands / *plain.entry(traffic).or_insert(thousands);
        eprintln!("  {:28} {:52} {thousands:7.1} {of_plain:6.3}", traffic.label(), variant.label());
        costs.push(Cost { traffic, variant, thousands, of_plain });
    }
    Ok(costs)
}

/// Compares with the committed figures: by the ratio to plain Envoy, which another machine shares.
pub fn check(costs: &[Cost], baseline: &Path) -> Result<()> {
    let committed = results::load::<Vec<Cost>>(baseline, "cost")?.context("no committed bench/results/cost.json")?;
    let grown = grown(costs, &committed.results);
    ensure!(
        grown.is_empty(),
        "more than {:.0} % above bench/results/cost.json: {}. If that is meant, `make cost` writes it anew",
        TOLERANCE * 1e2,
        grown.join("; ")
    );
    Ok(())
}

fn grown(costs: &[Cost], baseline: &[Cost]) -> Vec<String> {
    let before = |cost: &Cost| {
        let same = |other: &&Cost| (other.traffic, other.variant) == (cost.traffic, cost.variant);
        baseline.iter().find(same).map_or(f64::NAN, |cost| cost.of_plain)
    };
    let text = |cost: &Cost| {
        format!("{}: {:.3} of plain Envoy, committed {:.3}", cost.variant.label(), cost.of_plain, before(cost))
    };
    // A variant that has no committed figure is one that grew from nothing.
    costs
        .iter()
        .filter(|cost| {
            !matches!(
                cost.of_plain.partial_cmp(&(before(cost) * (1.0 + TOLERANCE))),
                Some(Ordering::Less | Ordering::Equal)
            )
        })
        .map(text)
        .collect()
}

/// Thousand instructions a request.
async fn count(traffic: Traffic, variant: Variant) -> Result<f64> {
    let far_end = FarEnd::start(1)?;
    let http2_end = Http2End::start().await?;
    let config = match traffic {
        Traffic::Http2 => http2(variant.config(&[http2_end.address])?),
        _ => variant.config(far_end.addresses())?,
    };
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("callgrind.out");
    let valgrind = project::program("valgrind").context("valgrind is not installed: `make servers` does it")?;
    let under = [
        valgrind.into_os_string(),
        "--tool=callgrind".into(),
        "--instr-atstart=no".into(),
        "--smc-check=all-non-file".into(), // V8 writes code while it runs
        format!("--callgrind-out-file={}", output.display()).into(),
    ];
    let options = Options { under: under.into(), start_within: Duration::from_secs(180), ..Options::default() };
    let envoy = Envoy::start(&config, options).await?;
    let pid = envoy.pid();
    let mut clients = Clients::connect(traffic, envoy.ingress()).await?;
    clients.send(WARM_UP).await?;
    control(pid, &["--instr=on"])?;
    let begun = Instant::now();
    clients.send(COUNTED).await?;
    let took = begun.elapsed();
    control(pid, &["--instr=off"])?;
    control(pid, &["--dump"])?; // into a file of its own, and counts from 0 again
    control(pid, &["--instr=on"])?;
    sleep(took).await;
    control(pid, &["--instr=off"])?;
    let log = envoy.log();
    envoy.quit().context("Envoy does not end")?;
    ensure!(!log.contains("[critical]"), "the filter has failed:\n{log}");
    let (counted, alone) = (total(&output.with_extension("out.1"))?, total(&output)?);
    Ok(counted.saturating_sub(alone) as f64 / COUNTED as f64 / 1e3)
}

fn control(pid: u32, how: &[&str]) -> Result<()> {
    let control = project::program("callgrind_control").context("callgrind_control is part of valgrind")?;
    let done = Command::new(control).args(how).arg(pid.to_string()).output()?;
    ensure!(done.status.success(), "callgrind_control: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// From the end of callgrind's file.
fn total(output: &Path) -> Result<u64> {
    let text = fs::read_to_string(output).context("callgrind's output")?;
    let line = text.lines().rev().find_map(|line| line.strip_prefix("totals: ")).context("no totals in it")?;
    Ok(line.trim().parse()?)
}

/// HTTP/2 without TLS to the base and its lanes.
fn http2(config: Config) -> Config {
    config.edit_clusters(|cluster| {
        let options =
            &mut cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
        options["@type"] = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions".into();
        options["explicit_http_config"] = json!({ "http2_protocol_options": {} });
    })
}

/// Clients whose connections outlast the warming up.
enum Clients {
    Http1(clients::Clients),
    Http2 { senders: Vec<client::conn::http2::SendRequest<Empty<Bytes>>>, address: SocketAddr },
}

impl Clients {
    async fn connect(traffic: Traffic, address: SocketAddr) -> Result<Self> {
        let request = |path| clients::Request { path, new_connections: traffic == Traffic::NewConnections };
        Ok(match traffic {
            Traffic::Small | Traffic::NewConnections => {
                Self::Http1(clients::Clients::new(address, &request("/small"), CLIENTS))
            }
            Traffic::Body => Self::Http1(clients::Clients::new(address, &request("/64k"), CLIENTS)),
            Traffic::Http2 => {
                let mut senders = Vec::new();
                for _ in 0..CLIENTS {
                    let tcp = TcpStream::connect(address).await?;
                    tcp.set_nodelay(true)?;
                    let handshake = client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp));
                    let (sender, connection) = handshake.await?;
                    tokio::spawn(connection);
                    senders.push(sender);
                }
                Self::Http2 { senders, address }
            }
        })
    }

    async fn send(&mut self, requests: usize) -> Result<()> {
        match self {
            Self::Http1(clients) => clients.send(requests),
            Self::Http2 { senders, address } => {
                let mut running = JoinSet::new();
                for sender in senders {
                    running.spawn(exchange(sender.clone(), *address, requests / CLIENTS));
                }
                while let Some(done) = running.join_next().await {
                    done??;
                }
                Ok(())
            }
        }
    }
}

async fn exchange(
    mut sender: client::conn::http2::SendRequest<Empty<Bytes>>,
    address: SocketAddr,
    requests: usize,
) -> Result<()> {
    for _ in 0..requests {
        let request = Request::get(format!("http://{address}/small"))
            .header("user-agent", "bench")
            .header("accept", "*/*")
            .header("x-forwarded-for", "203.0.113.7, 10.0.0.2");
        sender.ready().await?;
        let response = sender.send_request(request.body(Empty::new())?).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}

/// A far end that speaks HTTP/2 without TLS.
struct Http2End {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Http2End {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((tcp, _)) = listener.accept().await else {
                    sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let answer = service_fn(async |_| {
                    let body = Full::new(Bytes::from_static(b"hello, here is the far end\n"));
                    Ok::<_, std::convert::Infallible>(Response::new(body))
                });
                let serving = server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(async move { serving.serve_connection(TokioIo::new(tcp), answer).await });
            }
        });
        Ok(Self { address, accepting })
    }
}

impl Drop for Http2End {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(variant: Variant, of_plain: f64) -> Cost {
        Cost { traffic: Traffic::Small, variant, thousands: 160.0 * of_plain, of_plain }
    }

    #[test]
    fn what_has_grown_by_more_than_two_percent_is_named() {
        let baseline = [cost(Variant::Lane, 1.15), cost(Variant::ClientIp, 1.20)];
        assert_eq!(grown(&[cost(Variant::Lane, 1.172), cost(Variant::ClientIp, 1.0)], &baseline), Vec::<String>::new());
        let grown = grown(&[cost(Variant::Lane, 1.18), cost(Variant::ClientIp, 1.20)], &baseline);
        assert_eq!(grown, ["idleguard: a lane in force: 1.180 of plain Envoy, committed 1.150"]);
    }

    #[test]
    fn a_variant_without_a_committed_figure_is_named() {
        assert_eq!(grown(&[cost(Variant::Lane, 1.0)], &[]).len(), 1);
    }
}

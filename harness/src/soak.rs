//! Mixed traffic for a long time, against an LB that changes its mind, while the configuration is updated and backends
//! restart. At the end: which requests failed, and which of these the LB had broken itself.
//!
//! The LB's idle timeout is random but never below what the filter was told, so it is never to blame for a stale
//! connection. What it does break is known: the requests that were in flight when it restarted, or that were under way to it
//! in that moment. Every other failure is the proxy's.

mod plugin;
mod samples;
mod traffic;

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, sleep_until},
};

pub use self::samples::Sample;
use self::{
    plugin::{Plugins, Policy},
    traffic::{Client, Failed, Kind, Ledger},
};
use crate::{
    envoy::{Config, Envoy, Options},
    plot::{self, Panel},
    stub_lb::{How, Mode, StubLb},
};

/// How often the filters' configuration is updated.
const UPDATE_EVERY: Duration = Duration::from_secs(10);
/// Requests sent so soon after a restart may have met a connection whose end was not yet known to Envoy.
const UNDER_WAY: Duration = Duration::from_millis(250);
/// How many updates in a row say the same of the LB's idle timeout: a longer lane comes into force after a minute.
const SAME: u64 = 9;
/// The longest idle timeout that the filter is told, and the shortest that the LB has. Between them lies what a machine
/// that stalls for a while needs.
const TOLD_AT_MOST: u64 = 2_000;
const LB_AT_LEAST: u64 = 3_000;

/// What the LB broke, and when.
#[derive(Debug, Default)]
struct Truth {
    restarts: Vec<(Instant, Instant)>,
    broken: HashSet<u64>,
    modes: u64,
}

impl Truth {
    /// Whether the LB broke this request.
    fn explains(&self, failed: &Failed) -> bool {
        let meets = |(from, to): &(Instant, Instant)| failed.sent <= *to + UNDER_WAY && failed.ended >= *from;
        self.broken.contains(&failed.id) || self.restarts.iter().any(meets)
    }

    fn take_broken(&mut self, lb: &StubLb) {
        let id =
            |target: String| target.split(['?', '&']).find_map(|pair| pair.strip_prefix("id=")?.parse::<u64>().ok());
        self.broken.extend(lb.take_broken().into_iter().filter_map(id));
    }
}

/// What came of a soak.
#[derive(Debug)]
pub struct Report {
    /// How long traffic was sent.
    pub elapsed: Duration,
    /// Requests that got their whole answer, by sort.
    pub done: BTreeMap<&'static str, u64>,
    /// Failures that the LB caused by a restart.
    pub broken_by_lb: usize,
    /// Exchanges that the LB ended, restarts and the aborts that it was asked for together.
    pub ended_by_lb: usize,
    /// The other failures: there must be none.
    pub unexplained: Vec<String>,
    /// Restarts, changes of the LB's mode, updates of the configuration that Envoy has taken in.
    pub happened: (usize, u64, u64),
    /// idleguard's counters at the end.
    pub counters: BTreeMap<String, u64>,
    /// Requests in flight, and connections that are not the scout's, after the traffic had ended.
    pub left_over: BTreeMap<String, u64>,
    /// What was measured meanwhile.
    pub samples: Vec<Sample>,
    /// And when all was quiet again.
    pub last: Sample,
    /// Whether Envoy still ran.
    pub is_running: bool,
}

/// Runs for this long, with this seed.
pub async fn run(config: Config, duration: Duration, seed: u64) -> Result<Report> {
    let directory = tempfile::tempdir()?;
    let lb = StubLb::start(Mode::Stable);
    let config = config.free_ports().upstream(lb.address());
    let (config, mut plugins) = Plugins::take_out(config, directory.path(), policy(0))?;
    let arguments = ["--service-node", "soak", "--service-cluster", "soak"].map(str::to_owned).to_vec();
    let options = Options { concurrency: 2, arguments, ..Options::default() };
    let mut envoy = Envoy::start(&config, options).await?;

    let begun = Instant::now();
    let end = begun + duration;
    let ledger = Arc::new(Ledger::default());
    let (stop, stopped) = watch::channel(false);
    let mut clients = JoinSet::new();
    for client in crowd(envoy.ingress(), seed) {
        let (ledger, stopped) = (ledger.clone(), stopped.clone());
        clients.spawn(async move { client.run(&ledger, stopped).await });
    }

    let mut random = fastrand::Rng::with_seed(seed);
    let mut truth = Truth::default();
    let mut samples = Vec::new();
    let every = (duration / 300).max(Duration::from_secs(1));
    let (mut next_sample, mut next_update) = (begun, begun + UPDATE_EVERY);
    let (mut next_mode, mut next_restart) = (begun, begun + Duration::from_secs(8));
    let mut updates = 0;
    loop {
        let next = next_sample.min(next_update).min(next_mode).min(next_restart);
        if next >= end {
            break;
        }
        sleep_until(next.into()).await;
        if next == next_sample {
            samples.push(Sample::take(&envoy, begun.elapsed()).await?);
            truth.take_broken(&lb);
            next_sample += every;
        } else if next == next_update {
            updates += 1;
            plugins.update(policy(updates))?;
            next_update += UPDATE_EVERY;
        } else if next == next_mode {
            lb.set(some_mode(&mut random));
            truth.modes += 1;
            next_mode += Duration::from_millis(random.u64(1_000..6_000));
        } else {
            restart(&lb, &mut truth, &mut random).await;
            next_restart += Duration::from_millis(random.u64(8_000..20_000));
        }
    }
    sleep_until(end.into()).await;
    let elapsed = begun.elapsed();
    stop.send(true)?;
    while let Some(client) = clients.join_next().await {
        client.context("a client")?;
    }
    truth.take_broken(&lb);

    // Every lane closes what is idle by its own timer.
    lb.set(Mode::Stable);
    let quiet = |stats: &BTreeMap<String, u64>| left_over(stats).is_empty();
    let _ = envoy.wait_for(Duration::from_secs(15), "_active", quiet).await; // what is left is reported
    let last = Sample::take(&envoy, begun.elapsed()).await?;
    let stats = envoy.stats().await?;
    let counters = stats.iter().filter(|(name, _)| name.starts_with("wasmcustom.idleguard."));
    let reloads = stats.iter().filter(|(name, _)| name.ends_with("config_reload")).map(|(_, n)| *n).sum::<u64>();
    let failed = std::mem::take(&mut *ledger.failed.lock().expect("no panic"));
    let (broken, unexplained): (Vec<_>, Vec<_>) = failed.into_iter().partition(|failed| truth.explains(failed));
    let done = ledger.done.lock().expect("no panic").clone();
    Ok(Report {
        elapsed,
        done,
        broken_by_lb: broken.len(),
        ended_by_lb: truth.broken.len(),
        unexplained: unexplained.iter().map(|failed| describe(failed, begun)).collect(),
        happened: (truth.restarts.len(), truth.modes, reloads),
        counters: counters.map(|(name, value)| (name.clone(), *value)).collect(),
        left_over: left_over(&stats),
        samples,
        last,
        is_running: envoy.is_running(),
    })
}

/// What should be 0 when nobody sends, and is not. The scout may keep one connection, on the base of its destination.
fn left_over(stats: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let allowed = |name: &str| match name {
        "cluster.payments.upstream_cx_active" | "cluster.payments.upstream_rq_active" => 1,
        _ => 0,
    };
    let active = samples::connections(stats).into_iter().filter(|(name, value)| *value > allowed(name));
    active.map(|(name, value)| (name.to_owned(), value)).collect()
}

fn describe(failed: &Failed, begun: Instant) -> String {
    let (at, took) = ((failed.sent - begun).as_secs_f64(), failed.ended - failed.sent);
    format!("{} at {at:.3} s, after {took:?}: {}", failed.kind, failed.detail)
}

/// The clients: who they are hardly matters, that they differ does.
fn crowd(address: std::net::SocketAddr, seed: u64) -> Vec<Client> {
    let sorts = [
        (Kind::Small { http2: false }, "", 20),
        (Kind::Small { http2: false }, "/h2", 10),
        (Kind::Small { http2: true }, "", 6),
        (Kind::Small { http2: true }, "/h2", 6),
        (Kind::Big { http2: false }, "", 3),
        (Kind::Big { http2: true }, "/h2", 3),
        (Kind::Slow, "", 4),
        (Kind::Slow, "/h2", 4),
        (Kind::ClientAborts, "", 3),
        (Kind::ClientAborts, "/h2", 3),
        (Kind::LbAborts, "", 2),
        (Kind::WebSocket, "", 4),
    ];
    let mut clients = Vec::new();
    for (kind, prefix, count) in sorts {
        for _ in 0..count {
            let seed = seed.wrapping_mul(1_000_003).wrapping_add(clients.len() as u64);
            clients.push(Client { kind, address, prefix, seed });
        }
    }
    clients
}

/// The policy of update number `n`: each is another one, and none lets connections live for longer than the LB does.
fn policy(n: u64) -> Policy {
    let told = [TOLD_AT_MOST, 1_000, 1_500][(n / SAME % 3) as usize];
    Policy { told, margin: 10 + n % 3, scout_waits: 30 + n % 2 }
}

fn some_mode(random: &mut fastrand::Rng) -> Mode {
    let timeout = Duration::from_millis(random.u64(LB_AT_LEAST..8_000));
    match random.u8(0..5) {
        0 => Mode::Stable,
        1 => Mode::FinAt(timeout),
        2 => Mode::RstAt(timeout),
        3 => Mode::SilentRst(timeout),
        _ => Mode::SilentSwallow(timeout),
    }
}

async fn restart(lb: &StubLb, truth: &mut Truth, random: &mut fastrand::Rng) {
    let from = Instant::now();
    lb.close_all_by(if random.bool() { How::Fin } else { How::Rst });
    sleep(Duration::from_millis(200)).await;
    let to = lb.restarted_at().filter(|at| *at > from).unwrap_or(from);
    truth.restarts.push((from, to));
    truth.take_broken(lb);
}

// === impl Report ===

impl Report {
    /// What a soak must not show; empty if it was a good one. The memory of a process settles in the first minutes, so it is
    /// judged in longer soaks alone.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.unexplained.clone();
        if !self.is_running {
            faults.push("Envoy has ended".to_owned());
        }
        faults.extend(self.left_over.iter().map(|(name, value)| format!("{name} is {value} when all is quiet")));
        let stale =
            self.counters.iter().filter(|(name, _)| name.ends_with(".stale_failures")).map(|(_, n)| n).sum::<u64>();
        // A request that was under way to a restarting LB may have been repeated; the LB knows nothing of it.
        let most = self.ended_by_lb + self.broken_by_lb + 10 * self.happened.0;
        if stale > most as u64 {
            faults.push(format!("{stale} stale failures, of which the LB can explain {most}"));
        }
        if self.last.wasm == 0 {
            faults.push("no Wasm memory was found in the process".to_owned());
        }
        if self.elapsed >= Duration::from_secs(600) {
            for (what, slack, of) in [
                ("Wasm memory", 0, (|s: &Sample| s.wasm) as fn(&Sample) -> u64),
                ("Envoy's resident memory", 8 << 20, |s| s.rss),
                ("Envoy's allocated memory", 2 << 20, |s| s.allocated),
                ("descriptors", 20, |s| s.descriptors),
                ("Wasm VMs", 0, |s| s.vms),
            ] {
                let (before, after) = self.halves(of);
                if after > before + before / 20 + slack {
                    faults.push(format!(
                        "{what} grew from {before} to {after} (medians of the second and the last third)"
                    ));
                }
            }
        }
        faults
    }

    /// Medians of the second and of the last third.
    fn halves(&self, of: fn(&Sample) -> u64) -> (u64, u64) {
        let third = self.samples.len() / 3;
        let median = |samples: &[Sample]| {
            let mut values: Vec<_> = samples.iter().map(of).collect();
            values.sort_unstable();
            values.get(values.len() / 2).copied().unwrap_or(0)
        };
        let later = &self.samples[third..];
        (median(&later[..third.min(later.len())]), median(&later[third.min(later.len())..]))
    }

    /// The measurements as an SVG.
    pub fn plot(&self) -> String {
        let times: Vec<_> = self.samples.iter().map(|sample| sample.at.as_secs_f64()).collect();
        let line = |name: &str, of: fn(&Sample) -> f64| (name.to_owned(), self.samples.iter().map(of).collect());
        let panels = [
            Panel {
                title: "Envoy's memory, MiB".to_owned(),
                lines: vec![
                    line("resident", |s| s.rss as f64 / 1_048_576.0),
                    line("allocated", |s| s.allocated as f64 / 1_048_576.0),
                ],
            },
            Panel {
                title: "Wasm memory, MiB".to_owned(),
                lines: vec![line("all VMs", |s| s.wasm as f64 / 1_048_576.0)],
            },
            Panel {
                title: "descriptors, connections".to_owned(),
                lines: vec![
                    line("descriptors of Envoy", |s| s.descriptors as f64),
                    line("upstream connections", |s| s.active as f64),
                ],
            },
        ];
        plot::svg(&format!("Soak of {} s", self.elapsed.as_secs()), &times, &panels)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (restarts, modes, updates) = self.happened;
        let total: u64 = self.done.values().sum();
        writeln!(f, "{:.0} s, {total} requests answered:", self.elapsed.as_secs_f64())?;
        for (kind, count) in &self.done {
            writeln!(f, "  {kind:<28}{count:>9}")?;
        }
        writeln!(
            f,
            "{restarts} restarts of the LB, {modes} changes of its idle timeout, {updates} configurations taken in"
        )?;
        writeln!(f, "{} requests failed because the LB restarted on them", self.broken_by_lb)?;
        writeln!(f, "{} requests failed for another reason", self.unexplained.len())?;
        for (name, value) in &self.counters {
            writeln!(f, "  {:<56}{value:>9}", name.trim_start_matches("wasmcustom."))?;
        }
        let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
        writeln!(f, "{:<28}{:>12}{:>12}{:>12}", "", "2nd third", "last third", "at the end")?;
        for (what, of) in [
            ("resident memory, MiB", (|s: &Sample| s.rss) as fn(&Sample) -> u64),
            ("allocated memory, MiB", |s| s.allocated),
            ("Wasm memory, MiB", |s| s.wasm),
        ] {
            let (before, after) = self.halves(of);
            writeln!(f, "{what:<28}{:>12.2}{:>12.2}{:>12.2}", mib(before), mib(after), mib(of(&self.last)))?;
        }
        for (what, of) in [
            ("descriptors", (|s: &Sample| s.descriptors) as fn(&Sample) -> u64),
            ("Wasm VMs", |s| s.vms),
            ("upstream connections", |s| s.active),
        ] {
            let (before, after) = self.halves(of);
            writeln!(f, "{what:<28}{before:>12}{after:>12}{:>12}", of(&self.last))?;
        }
        for fault in self.faults().iter().take(30) {
            writeln!(f, "FAULT: {fault}")?;
        }
        Ok(())
    }
}

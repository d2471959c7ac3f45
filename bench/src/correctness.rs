//! Failed requests: every subject, before load balancers that drop idle connections in every way, under two kinds of load.
//!
//! A cell has a proxy, a load balancer and clients of its own. Cells mostly wait, so they run side by side.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use idleguard_harness::{
    load::{Load, Pattern, Report},
    stub_lb::{Mode, Options, StubLb},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, sleep_until},
};

use crate::subjects::{Running, Subject, Terms};

/// What the load balancer does to a connection that has been idle for the timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LbMode {
    /// Closes it.
    Fin,
    /// Resets it.
    Rst,
    /// Forgets it; the next packet is answered by RST.
    SilentRst,
    /// Forgets it; the next packets vanish.
    SilentSwallow,
    /// None of these. It closes all connections at random moments, as when it is restarted.
    Restart,
}

impl LbMode {
    /// All, in the order of tables and pictures.
    pub const ALL: [Self; 5] = [Self::Fin, Self::Rst, Self::SilentRst, Self::SilentSwallow, Self::Restart];

    /// As tables and pictures call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Fin => "FIN",
            Self::Rst => "RST",
            Self::SilentRst => "silent, then RST",
            Self::SilentSwallow => "silent for ever",
            Self::Restart => "restart",
        }
    }

    fn stub(self, timeout: Duration) -> Mode {
        match self {
            Self::Fin => Mode::FinAt(timeout),
            Self::Rst => Mode::RstAt(timeout),
            Self::SilentRst => Mode::SilentRst(timeout),
            Self::SilentSwallow => Mode::SilentSwallow(timeout),
            Self::Restart => Mode::Stable,
        }
    }
}

/// When the clients send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Each by itself.
    Steady,
    /// All at once, then silence.
    Bursts,
}

impl Shape {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Steady, Self::Bursts];

    /// As tables and pictures call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Bursts => "bursts",
        }
    }
}

/// How much is measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The load balancer's idle timeout.
    pub timeout_ms: u64,
    /// Delay between proxy and load balancer, each way.
    pub delay_ms: u64,
    /// Clients of each cell.
    pub clients: usize,
    /// Load before the one that counts, in seconds: learning needs it.
    pub warm_up_s: u64,
    /// Load that counts, in seconds.
    pub counted_s: u64,
    /// Modes, subjects and shapes.
    pub modes: Vec<LbMode>,
    /// Subjects.
    pub subjects: Vec<Subject>,
    /// Modes that are measured side by side.
    pub modes_at_once: usize,
}

/// Requests and failures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Sent.
    pub requests: u64,
    /// Of these, failed.
    pub failed: u64,
}

impl Tally {
    /// Failures in 10,000.
    pub fn per_10_000(self) -> f64 {
        self.failed as f64 * 10_000.0 / (self.requests.max(1)) as f64
    }

    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self { requests: self.requests + other.requests, failed: self.failed + other.failed }
    }
}

/// What came of one subject before one load balancer under one kind of load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cell {
    /// The load balancer.
    pub mode: LbMode,
    /// The load.
    pub shape: Shape,
    /// The proxy.
    pub subject: Subject,
    /// By method.
    pub methods: BTreeMap<String, Tally>,
    /// Failures by kind, as the client sees them.
    pub kinds: BTreeMap<String, u64>,
    /// The words of one failure of each kind.
    pub examples: Vec<String>,
    /// Connections that the load balancer accepted meanwhile.
    pub opened: u64,
    /// The median latency in milliseconds, delay included.
    pub p50_ms: f64,
    /// Failures before the load that counts.
    pub warm_up: Tally,
    /// What idleguard had learnt when the counted load began, in milliseconds; 0: nothing, or not idleguard.
    pub learnt_ms: u64,
    /// What idleguard had learnt at the end.
    pub learnt_at_end_ms: u64,
}

impl Cell {
    /// All methods together.
    pub fn total(&self) -> Tally {
        self.methods.values().fold(Tally::default(), |sum, &part| sum.and(part))
    }

    /// Connections opened per 1,000 requests.
    pub fn opened_per_1_000(&self) -> f64 {
        self.opened as f64 * 1_000.0 / self.total().requests.max(1) as f64
    }
}

/// Runs every cell of the plan.
pub async fn run(plan: &Plan) -> Result<Vec<Cell>> {
    let mut cells = Vec::new();
    for modes in plan.modes.chunks(plan.modes_at_once) {
        let names: Vec<_> = modes.iter().map(|mode| mode.label()).collect();
        eprintln!("  {}: starting {} proxies", names.join(", "), modes.len() * plan.subjects.len() * 2);
        let begun = Instant::now();
        let seats = Arc::new(Semaphore::new(3)); // Envoys compile the filter when they start
        let mut starting = JoinSet::new();
        for &mode in modes {
            for &subject in &plan.subjects {
                for shape in Shape::ALL {
                    let (plan, seats) = (plan.clone(), seats.clone());
                    starting.spawn(async move {
                        let _seat = seats.acquire().await?;
                        Bench::start(plan, mode, subject, shape).await
                    });
                }
            }
        }
        let mut ready = Vec::new();
        while let Some(bench) = starting.join_next().await {
            ready.push(bench??);
        }
        eprintln!(
            "  started in {:.0} s; {} s of load to warm up, {} s that count",
            begun.elapsed().as_secs_f64(),
            plan.warm_up_s,
            plan.counted_s
        );
        let mut running = JoinSet::new();
        ready.into_iter().for_each(|bench| drop(running.spawn(bench.measure())));
        while let Some(cell) = running.join_next().await {
            cells.push(cell??);
        }
    }
    cells.sort_by_key(|cell| (cell.mode, cell.shape, cell.subject));
    Ok(cells)
}

/// The longest silence of a client before a load balancer that restarts.
const RESTART_GAP: Duration = Duration::from_secs(1);

/// A proxy with its load balancer.
struct Bench {
    plan: Plan,
    mode: LbMode,
    subject: Subject,
    shape: Shape,
    lb: StubLb,
    proxy: Running,
}

impl Bench {
    async fn start(plan: Plan, mode: LbMode, subject: Subject, shape: Shape) -> Result<Self> {
        let timeout = Duration::from_millis(plan.timeout_ms);
        let delay = Duration::from_millis(plan.delay_ms);
        let lb = StubLb::with(Options { mode: mode.stub(timeout), delay, ..Options::default() })?;
        let terms = Terms { timeout };
        let proxy = subject.start(lb.address(), terms).await;
        let proxy = proxy.with_context(|| format!("{} before {}", subject.label(), mode.label()))?;
        Ok(Self { plan, mode, subject, shape, lb, proxy })
    }

    async fn measure(self) -> Result<Cell> {
        let warm_up = self.load(self.plan.warm_up_s, 7).await;
        let learnt_ms = self.proxy.learnt().await;
        let opened = self.lb.counters().opened;
        let report = self.load(self.plan.counted_s, 1).await;
        let tally = |tally: &idleguard_harness::load::Tally| Tally { requests: tally.requests, failed: tally.failed };
        Ok(Cell {
            mode: self.mode,
            shape: self.shape,
            subject: self.subject,
            methods: report.methods.iter().map(|(method, part)| (method.clone(), tally(part))).collect(),
            kinds: report.failures.iter().map(|(kind, &count)| (kind.to_string(), count)).collect(),
            examples: report.examples.iter().map(|example| example.detail.trim().to_owned()).collect(),
            opened: self.lb.counters().opened - opened,
            p50_ms: report.latency(0.5).as_secs_f64() * 1e3,
            warm_up: Tally { requests: warm_up.requests, failed: warm_up.failed() },
            learnt_ms,
            learnt_at_end_ms: self.proxy.learnt().await,
        })
    }

    /// The same for every subject: same clients, same gaps, same restarts.
    async fn load(&self, seconds: u64, seed: u64) -> Report {
        let timeout = Duration::from_millis(self.plan.timeout_ms);
        let address = self.proxy.address();
        // No idle age matters at a restart: more requests then, since only few are on their way at such a moment.
        let most = if self.mode == LbMode::Restart { RESTART_GAP } else { timeout };
        let load = match self.shape {
            Shape::Steady => Load::post(address, Pattern::Scattered { gap: (Duration::ZERO, most) }),
            Shape::Bursts => Load::post(address, Pattern::Bursts { gap: (Duration::ZERO, most * 3 / 2) }),
        };
        // Every other silence is that of a poller whose period is the timeout: where a close is on its way.
        let load = match (self.mode, self.shape) {
            (LbMode::Restart, _) | (_, Shape::Steady) => load,
            (_, Shape::Bursts) => load.near(timeout * 98 / 100, timeout * 102 / 100),
        };
        let load = load.half_get().clients(self.plan.clients).seed(seed).run(Duration::from_secs(seconds));
        if self.mode != LbMode::Restart {
            return load.await;
        }
        tokio::select! {
            report = load => report,
            () = self.restarts(seed) => unreachable!("restarts go on for ever"),
        }
    }

    async fn restarts(&self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut next = Instant::now();
        loop {
            next += Duration::from_millis(random.u64(500..1_500));
            if next > Instant::now() {
                sleep_until(next.into()).await;
            } else {
                sleep(Duration::from_millis(1)).await;
            }
            self.lb.close_all();
        }
    }
}

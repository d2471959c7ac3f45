//! The same traffic through plain Envoy and through idleguard, in the same seconds, to load balancers that behave alike.
//!
//! idleguard is not told the idle timeout. First the load balancers close idle connections by FIN, from which it learns the
//! timeout; then they forget them without a word, as many do. [`Demo::round`] follows that script;
//! a click on the [`page`] overrides it.

pub mod page;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    envoy::{Config, Envoy, Options},
    http,
    load::{Live, Load, Pattern, Report},
    stub_lb::{By, Counters, Mode, Standing, StubLb},
};

/// When, in each round, the load balancers go over from FIN to silence.
const SILENT_FROM: f64 = 0.4;

/// One side of the comparison: an Envoy, and a load balancer of its own, so that connections can be told apart.
#[derive(Debug)]
pub struct Lane {
    lb: StubLb,
    envoy: Envoy,
    live: Arc<Live>,
    /// Since when ended connections have not been shown yet.
    shown: Mutex<Instant>,
}

/// What came of a lane.
#[derive(Debug, Default, Clone)]
pub struct Outcome {
    report: Report,
    opened: u64,
}

/// Both lanes.
#[derive(Debug)]
pub struct Demo {
    plain: Lane,
    guarded: Lane,
    lb_idle_timeout: Duration,
    clients: usize,
    begun: Instant,
    /// Somebody chose the load balancers' mode by hand.
    by_hand: AtomicBool,
}

/// What came of both.
#[derive(Debug, Default, Clone)]
pub struct Comparison {
    plain: Outcome,
    guarded: Outcome,
}

impl Demo {
    /// Starts both Envoys, with this configuration, and their load balancers.
    pub async fn start(config: &Config, lb_idle_timeout: Duration, clients: usize) -> Result<Self> {
        // Shorter than the timeout: a start that is safe, as 4 s are with the timeouts of real load balancers.
        let initial_limit = format!("{}ms", (lb_idle_timeout / 3).as_millis());
        let learning = config.clone().policy("initial_limit", initial_limit);
        let mode = Mode::FinAt(lb_idle_timeout);
        Ok(Self {
            plain: Lane::start(config.clone().without_idleguard(), mode).await?,
            guarded: Lane::start(learning, mode).await?,
            lb_idle_timeout,
            clients,
            begun: Instant::now(),
            by_hand: AtomicBool::new(false),
        })
    }

    /// The admin interface of the Envoy with idleguard.
    pub fn guarded_admin(&self) -> SocketAddr {
        self.guarded.envoy.admin()
    }

    /// Sends for this long, one round.
    pub async fn round(&self, duration: Duration) -> Comparison {
        let script = async {
            self.follow_script("fin");
            tokio::time::sleep(duration.mul_f64(SILENT_FROM)).await;
            self.follow_script("silent");
        };
        let (plain, guarded, ()) = tokio::join!(
            self.plain.measure(self.clients, self.lb_idle_timeout, duration),
            self.guarded.measure(self.clients, self.lb_idle_timeout, duration),
            script
        );
        Comparison { plain, guarded }
    }

    fn follow_script(&self, mode: &str) {
        if !self.by_hand.load(Ordering::Relaxed) {
            self.set(mode);
        }
    }

    /// From now on the load balancers do this to idle connections, whatever the script says: `fin`, `rst`, `silent` or
    /// `stable`. False if it is none of these.
    pub fn choose(&self, mode: &str) -> bool {
        let known = self.set(mode);
        self.by_hand.fetch_or(known, Ordering::Relaxed);
        known
    }

    fn set(&self, mode: &str) -> bool {
        let timeout = self.lb_idle_timeout;
        let mode = match mode {
            "fin" => Mode::FinAt(timeout),
            "rst" => Mode::RstAt(timeout),
            "silent" => Mode::SilentRst(timeout),
            "stable" => Mode::Stable,
            _ => return false,
        };
        self.plain.lb.set(mode);
        self.guarded.lb.set(mode);
        true
    }

    /// What the page shows, now.
    pub async fn snapshot(&self) -> Value {
        let mode = match self.plain.lb.mode() {
            Mode::Stable => "stable",
            Mode::FinAt(_) | Mode::AnnounceAt(_) | Mode::AgeAt(_) => "fin",
            Mode::RstAt(_) => "rst",
            Mode::SilentRst(_) | Mode::SilentSwallow(_) => "silent",
        };
        json!({
            "elapsed_ms": millis(self.begun.elapsed()),
            "lb": { "mode": mode, "idle_timeout_ms": millis(self.lb_idle_timeout) },
            "plain": self.plain.snapshot().await,
            "guarded": self.guarded.snapshot().await,
        })
    }
}

impl Lane {
    async fn start(config: Config, mode: Mode) -> Result<Self> {
        let lb = StubLb::start(mode);
        let envoy = Envoy::start(&config.upstream(lb.address()), Options::default()).await?;
        Ok(Self { lb, envoy, live: Arc::default(), shown: Mutex::new(Instant::now()) })
    }

    async fn measure(&self, clients: usize, timeout: Duration, duration: Duration) -> Outcome {
        let gap = (Duration::ZERO, timeout * 2);
        let load = |pattern| Load::post(self.envoy.ingress(), pattern).live(self.live.clone());
        let bursts = load(Pattern::Bursts { gap }).clients(clients.div_ceil(2));
        let scattered = load(Pattern::Scattered { gap }).clients(clients / 2);
        let before = self.lb.counters();
        let (mut report, other) = tokio::join!(bursts.run(duration), scattered.run(duration));
        report.add(other);
        Outcome { report, opened: self.lb.counters().opened - before.opened }
    }

    async fn snapshot(&self) -> Value {
        let since =
            std::mem::replace(&mut *self.shown.lock().expect("nothing panics while it holds it"), Instant::now());
        let view = self.lb.view(since);
        let connections: Vec<Value> =
            view.iter().map(|view| json!([view.id, standing(view.standing), millis(view.idle_age)])).collect();
        let (ok, failed) = self.live.counts();
        let Counters { opened, open, .. } = self.lb.counters();
        let (limit, learnt) = self.limits().await;
        json!({
            "requests": ok + failed, "failed": failed, "last_failure": self.live.last_failure(),
            "opened": opened, "open": open, "limit_ms": limit, "learnt_ms": learnt, "connections": connections,
        })
    }

    /// The idle limit in force and the learnt timeout, in milliseconds; 0 where there is none.
    async fn limits(&self) -> (u64, u64) {
        let text = match http::get(self.envoy.admin(), "/stats?filter=idleguard.destination").await {
            Ok(answer) => answer.text(),
            Err(_) => return (0, 0), // it is ending
        };
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.split_once(name)?.1.strip_prefix(": "));
            line.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        (value("payments.idle_limit_ms"), value("payments.learned_lb_idle_timeout_ms"))
    }
}

fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Busy => "busy",
        Standing::Idle => "idle",
        Standing::Dropped => "dropped",
        Standing::Broken => "broken",
        Standing::Closed(By::Lb) => "closed-by-lb",
        Standing::Closed(By::Peer) => "closed",
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

impl Comparison {
    /// Adds another round.
    pub fn add(&mut self, other: Self) {
        for (sum, other) in [(&mut self.plain, other.plain), (&mut self.guarded, other.guarded)] {
            sum.report.add(other.report);
            sum.opened += other.opened;
        }
    }

    /// Requests sent and failed, without idleguard and with it.
    pub fn counts(&self) -> [(u64, u64); 2] {
        [&self.plain, &self.guarded].map(|lane| (lane.report.requests, lane.report.failed()))
    }
}

/// A table.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (plain, guarded) = (&self.plain, &self.guarded);
        let mut rows = vec![("requests".to_owned(), plain.report.requests, guarded.report.requests)];
        rows.push(("failed".to_owned(), plain.report.failed(), guarded.report.failed()));
        let mut kinds: Vec<_> = plain.report.failures.keys().chain(guarded.report.failures.keys()).copied().collect();
        kinds.sort_unstable();
        kinds.dedup();
        for kind in kinds {
            rows.push((format!("  {kind}"), plain.report.count(kind), guarded.report.count(kind)));
        }
        rows.push(("connections opened to the LB".to_owned(), plain.opened, guarded.opened));
        writeln!(f, "{:<30}{:>14}{:>14}", "", "plain Envoy", "idleguard")?;
        for (what, plain, guarded) in rows {
            writeln!(f, "{what:<30}{plain:>14}{guarded:>14}")?;
        }
        for (name, lane) in [("plain Envoy", plain), ("idleguard", guarded)] {
            if let Some(example) = lane.report.examples.first() {
                writeln!(f, "\nA failure through {name}: {}", example.detail.trim())?;
            }
        }
        Ok(())
    }
}

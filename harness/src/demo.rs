//! The same traffic through plain Envoy and through idleguard, in the same seconds, to load balancers that behave alike.
//!
//! Both load balancers forget idle connections without a word, as many do, and in the middle of each round their idle timeout
//! falls. idleguard is told neither timeout: the base has Envoy's own `idle_timeout` of an hour, and the lanes are those of
//! `envoy.yaml`. [`Demo::round`] follows that script; a click on the [`page`] overrides it.

pub mod page;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
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
    stub_lb::{By, Counters, Mode, Reuse, Standing, StubLb},
};

/// When, in each round, the load balancers' idle timeout falls.
const FALLS_AT: f64 = 0.3;

/// The longest silence of a client, in terms of the first timeout.
pub const LONGEST: f64 = 1.25;

/// What the scout asks for: by it the load balancer tells its connections from those of requests.
const SCOUT: &str = "/scout";

/// One side of the comparison: an Envoy, and a load balancer of its own, so that connections can be told apart.
#[derive(Debug)]
pub struct Side {
    lb: StubLb,
    envoy: Envoy,
    live: Arc<Live>,
    shown: Mutex<Shown>,
}

/// What the page knows already, and what the table will need.
#[derive(Debug)]
struct Shown {
    /// Since when ended connections have not been shown yet.
    ended: Instant,
    reuses: Vec<Reuse>,
}

/// What came of a side.
#[derive(Debug, Default, Clone)]
pub struct Outcome {
    report: Report,
    opened: u64,
    /// Idle ages at reuse, of requests that were answered and of those that were lost.
    reused: Vec<Duration>,
    lost: Vec<Duration>,
    /// In milliseconds, where there is idleguard.
    lanes: Option<Vec<u64>>,
    /// What idleguard says of the idle timeout at the end.
    found: Option<Duration>,
}

/// The idle timeouts of the load balancers: the first one, and what it falls to.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// At the beginning of each round.
    pub first: Duration,
    /// From the middle of each round on.
    pub then: Duration,
}

/// Both sides.
#[derive(Debug)]
pub struct Demo {
    plain: Side,
    guarded: Side,
    timeouts: Timeouts,
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
    pub async fn start(config: &Config, timeouts: Timeouts, clients: usize) -> Result<Self> {
        let guarded = match config.has_scout() {
            true => config.clone().edit_scout_filter(|scout| scout["path"] = SCOUT.into()),
            false => config.clone(),
        };
        let mode = Mode::SilentRst(timeouts.first);
        Ok(Self {
            plain: Side::start(config.clone().without_idleguard(), mode).await?,
            guarded: Side::start(guarded, mode).await?,
            timeouts,
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
            self.follow_script(self.timeouts.first);
            tokio::time::sleep(duration.mul_f64(FALLS_AT)).await;
            self.follow_script(self.timeouts.then);
        };
        let longest = self.timeouts.first.mul_f64(LONGEST);
        let (plain, guarded, ()) = tokio::join!(
            self.plain.measure(self.clients, longest, duration),
            self.guarded.measure(self.clients, longest, duration),
            script
        );
        Comparison { plain, guarded }
    }

    fn follow_script(&self, timeout: Duration) {
        if !self.by_hand.load(Ordering::Relaxed) {
            self.set(self.plain.lb.mode().with_timeout(timeout));
        }
    }

    /// From now on the load balancers do this to idle connections, whatever the script says: `fin`, `rst`, `silent` or
    /// `stable`, or one of the two timeouts in milliseconds. False if it is none of these.
    pub fn choose(&self, what: &str) -> bool {
        let now = self.plain.lb.mode();
        let timeout = now.timeout().unwrap_or(self.timeouts.first);
        let known = [self.timeouts.first, self.timeouts.then];
        let mode = match what {
            "fin" => Mode::FinAt(timeout),
            "rst" => Mode::RstAt(timeout),
            "silent" => Mode::SilentRst(timeout),
            "stable" => Mode::Stable,
            millis => match known.iter().find(|timeout| millis == timeout.as_millis().to_string()) {
                Some(timeout) => now.with_timeout(*timeout),
                None => return false,
            },
        };
        self.by_hand.store(true, Ordering::Relaxed);
        self.set(mode);
        true
    }

    fn set(&self, mode: Mode) {
        self.plain.lb.set(mode);
        self.guarded.lb.set(mode);
    }

    /// What the page shows, now.
    pub async fn snapshot(&self) -> Value {
        let now = self.plain.lb.mode();
        let mode = match now {
            Mode::Stable => "stable",
            Mode::FinAt(_) | Mode::AnnounceAt(_) | Mode::AgeAt(_) => "fin",
            Mode::RstAt(_) => "rst",
            Mode::SilentRst(_) | Mode::SilentSwallow(_) => "silent",
        };
        let Timeouts { first, then } = self.timeouts;
        json!({
            "elapsed_ms": millis(self.begun.elapsed()),
            "lb": {
                "mode": mode,
                "idle_timeout_ms": now.timeout().map_or(0, millis),
                "choice_ms": [millis(first), millis(then)],
            },
            "plain": self.plain.snapshot().await,
            "guarded": self.guarded.snapshot().await,
        })
    }
}

impl Side {
    async fn start(config: Config, mode: Mode) -> Result<Self> {
        let lb = StubLb::start(mode);
        let envoy = Envoy::start(&config.upstream(lb.address()), Options::default()).await?;
        let shown = Mutex::new(Shown { ended: Instant::now(), reuses: Vec::new() });
        Ok(Self { lb, envoy, live: Arc::default(), shown })
    }

    async fn measure(&self, clients: usize, longest: Duration, duration: Duration) -> Outcome {
        let gap = (Duration::ZERO, longest);
        let load = |pattern| Load::post(self.envoy.ingress(), pattern).live(self.live.clone());
        let bursts = load(Pattern::Bursts { gap }).clients(clients.div_ceil(4));
        let scattered = load(Pattern::Scattered { gap }).clients(clients - clients.div_ceil(4));
        let before = self.lb.counters();
        let (mut seen, mut found) = (Vec::new(), None);
        let lanes = async {
            loop {
                let Destination { lane, timeout, .. } = self.destination().await;
                found = (timeout > 0).then(|| Duration::from_millis(timeout));
                if lane > 0 && seen.last() != Some(&lane) {
                    seen.push(lane);
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        };
        let traffic = async { tokio::join!(bursts.run(duration), scattered.run(duration)) };
        let (mut report, other) = tokio::select! {
            reports = traffic => reports,
            () = lanes => unreachable!("it looks for ever"),
        };
        report.add(other);
        self.collect();
        let reuses = std::mem::take(&mut self.shown().reuses);
        let ages = |lost| reuses.iter().filter(|reuse| reuse.lost == lost).map(|reuse| reuse.idle_age).collect();
        let opened = self.lb.counters().opened - before.opened;
        let lanes = (!seen.is_empty()).then_some(seen);
        Outcome { report, opened, reused: ages(false), lost: ages(true), lanes, found }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().expect("nothing panics while it holds it")
    }

    /// The reuses since the last look, the scout's left out.
    fn collect(&self) -> Vec<Reuse> {
        let mut new = self.lb.take_reuses();
        new.retain(|reuse| reuse.path != SCOUT);
        self.shown().reuses.extend_from_slice(&new);
        new
    }

    async fn snapshot(&self) -> Value {
        let since = std::mem::replace(&mut self.shown().ended, Instant::now());
        let connections: Vec<Value> = self
            .lb
            .view(since)
            .iter()
            .map(|view| {
                let of_the_scout = view.path == SCOUT && matches!(view.standing, Standing::Busy | Standing::Idle);
                let standing = if of_the_scout { "scout" } else { standing(view.standing) };
                json!([view.id, standing, millis(view.idle_age)])
            })
            .collect();
        let reuses: Vec<Value> =
            self.collect().iter().map(|reuse| json!([millis(reuse.idle_age), u8::from(reuse.lost)])).collect();
        let (ok, failed) = self.live.counts();
        let Counters { opened, open, .. } = self.lb.counters();
        let Destination { limit, lane, timeout, stale_failures } = self.destination().await;
        json!({
            "requests": ok + failed, "failed": failed, "last_failure": self.live.last_failure(),
            "opened": opened, "open": open, "connections": connections, "reuses": reuses,
            "limit_ms": limit, "lane_ms": lane, "found_ms": timeout, "stale_failures": stale_failures,
        })
    }

    /// What idleguard says of the destination; zeros where there is none.
    async fn destination(&self) -> Destination {
        let text = match http::get(self.envoy.admin(), "/stats?filter=idleguard.destination").await {
            Ok(answer) => answer.text(),
            Err(_) => return Destination::default(), // it is ending
        };
        let value = |name: &str| {
            let name = format!("destination.payments.{name}: ");
            let line = text.lines().find_map(|line| line.split_once(&name));
            line.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
        };
        Destination {
            limit: value("idle_limit_ms"),
            lane: value("lane_idle_timeout_ms"),
            timeout: value("lb_idle_timeout_ms"),
            stale_failures: value("stale_failures"),
        }
    }
}

/// Gauges in milliseconds, 0 where there is nothing to tell.
#[derive(Debug, Default, Clone, Copy)]
struct Destination {
    limit: u64,
    lane: u64,
    timeout: u64,
    stale_failures: u64,
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
            sum.reused.extend(other.reused);
            sum.lost.extend(other.lost);
            sum.found = other.found;
            if let Some(lanes) = other.lanes {
                sum.lanes.get_or_insert_default().extend(lanes);
            }
        }
    }

    /// Requests sent and failed, without idleguard and with it.
    pub fn counts(&self) -> [(u64, u64); 2] {
        [&self.plain, &self.guarded].map(|side| (side.report.requests, side.report.failed()))
    }
}

/// A table.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sides = [&self.plain, &self.guarded];
        let mut rows = vec![("requests".to_owned(), sides.map(|side| side.report.requests.to_string()))];
        rows.push(("failed".to_owned(), sides.map(|side| side.report.failed().to_string())));
        let mut kinds: Vec<_> = sides.iter().flat_map(|side| side.report.failures.keys().copied()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for kind in kinds {
            rows.push((format!("  {kind}"), sides.map(|side| side.report.count(kind).to_string())));
        }
        rows.push(("connections opened to the LB".to_owned(), sides.map(|side| side.opened.to_string())));
        rows.push(("requests on reused connections".to_owned(), sides.map(|side| side.reused.len().to_string())));
        rows.push(("  longest idle age, answered".to_owned(), sides.map(|side| seconds(side.reused.iter().max()))));
        rows.push(("  shortest idle age, lost".to_owned(), sides.map(|side| seconds(side.lost.iter().min()))));
        rows.push(("lanes in force".to_owned(), sides.map(Outcome::lanes)));
        rows.push(("idle timeout, as found at last".to_owned(), sides.map(|side| seconds(side.found.as_ref()))));
        writeln!(f, "{:<32}{:>14}{:>18}", "", "plain Envoy", "idleguard")?;
        for (what, [plain, guarded]) in rows {
            writeln!(f, "{what:<32}{plain:>14}{guarded:>18}")?;
        }
        for (name, side) in [("plain Envoy", sides[0]), ("idleguard", sides[1])] {
            if let Some(example) = side.report.examples.first() {
                writeln!(f, "\nA failure through {name}: {}", example.detail.trim())?;
            }
        }
        Ok(())
    }
}

impl Outcome {
    /// One after the other, each by its `idle_timeout`.
    fn lanes(&self) -> String {
        let Some(lanes) = &self.lanes else { return "-".to_owned() };
        let names: Vec<_> = lanes
            .iter()
            .map(|&lane| if lane % 1_000 == 0 { format!("{}s", lane / 1_000) } else { format!("{lane}ms") })
            .collect();
        names.join(", ")
    }
}

fn seconds(age: Option<&Duration>) -> String {
    age.map_or("-".to_owned(), |age| format!("{:.1} s", age.as_secs_f64()))
}

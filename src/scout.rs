//! The scout in Envoy: a connection filter on an internal listener that only its own requests reach, and the tick that sends them.
//!
//! What to ask, and what an end means, is decided in [`idleguard_core::timeout::scout`]. Here is whose turn it is, by a lease in the
//! shared data; what passes on the connections; and what others are told. An HTTP call enters the module again before it returns, so
//! nothing is borrowed across one, nor across the closing of a connection.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use idleguard_core::metrics::ScoutMetric;
use idleguard_core::plugin::ScoutConfig;
use idleguard_core::time::{Timestamp, millis};
use idleguard_core::timeout::Finding;
use idleguard_core::timeout::finding::{Idle, Kind};
use idleguard_core::timeout::scout::lease::{self, Claim};
use idleguard_core::timeout::scout::wire::Wire;
use idleguard_core::timeout::scout::{ANSWER_TIMEOUT, Actions, By, Scout};
use proxy_wasm::types::{BufferType, PeerType};

use crate::{host, shared};

/// Readable as soon as anything passes: the connection to the far end stands then.
const UPSTREAM_ADDRESS: &[u8] = b"upstream\0address";

/// How often a worker looks at the clock while it scouts, and while it waits for its turn.
const TICK: Duration = Duration::from_millis(200);
const TICK_WITHOUT_TURN: Duration = Duration::from_secs(1);

/// So many ticks without a turn are quick, because whoever has it first may give it up at once.
const QUICK_TICKS: u32 = 15;

/// A tick that must not be late comes no sooner.
const SHORTEST_TICK: Duration = Duration::from_millis(5);

/// How long a worker leaves the turn to others whose requests did not reach its scout; doubling. (That is so for the VM of Envoy's main
/// thread, for ever, and for the filter of a listener that drains. Nobody else gets the turn while somebody has it.)
const STEP_BACK: Duration = Duration::from_secs(2);
const LONGEST_STEP_BACK: Duration = Duration::from_secs(600);

/// One scout configuration on one worker.
pub(crate) struct ScoutRoot {
    /// Its root context.
    id: u32,
    config: ScoutConfig,
    /// This worker's name in the lease.
    worker: u64,
    /// While it is this worker's turn.
    turn: RefCell<Option<Turn>>,
    tick_period: Cell<Duration>,
    not_before: Cell<Timestamp>,
    step_back: Cell<Duration>,
    /// Ticks without a turn.
    waited: Cell<u32>,
    metrics: Vec<(ScoutMetric, host::MetricId)>,
}

struct Turn {
    scout: Scout,
    /// What others have been told.
    told: Finding,
    /// What the log has been told.
    logged: Idle,
    /// The latest event that users' requests had it look for.
    looked: u64,
    told_at: Timestamp,
}

impl ScoutRoot {
    pub(crate) fn new(id: u32, config: ScoutConfig) -> Self {
        let define = |metric: &ScoutMetric| {
            let name = format!("idleguard.scout.{}.{}", config.destination, metric.name());
            let defined = host::define_metric(metric.kind(), &name);
            defined.map_err(host::report).ok().map(|id| (*metric, id))
        };
        let metrics = ScoutMetric::ALL.iter().filter_map(define).collect();
        host::set_tick_period(TICK).unwrap_or_else(host::report);
        Self {
            id,
            config,
            worker: host::random(),
            turn: RefCell::default(),
            tick_period: Cell::new(TICK),
            not_before: Cell::default(),
            step_back: Cell::new(STEP_BACK),
            waited: Cell::default(),
            metrics,
        }
    }

    /// Nothing within calls back for the scout's own state.
    fn with_turn<T>(&self, act: impl FnOnce(&mut Option<Turn>) -> T) -> Option<T> {
        self.turn.try_borrow_mut().ok().map(|mut turn| act(&mut turn))
    }

    fn with_scout<T>(&self, act: impl FnOnce(&mut Scout) -> T) -> Option<T> {
        self.with_turn(|turn| turn.as_mut().map(|turn| act(&mut turn.scout))).flatten()
    }

    pub(crate) fn on_tick(&self) {
        let now = host::now();
        if !self.take_turn(now) {
            let waited = self.waited.get();
            self.waited.set(waited.saturating_add(1));
            self.tick_every(if waited < QUICK_TICKS { TICK } else { TICK_WITHOUT_TURN });
            return;
        }
        self.look(now);
        let Some(Actions { close, ask, steps_back }) = self.with_scout(|scout| scout.tick(now)) else { return };
        self.close(close);
        self.tell(now);
        if steps_back {
            log::debug!("{}: requests of this thread don't reach its scout", self.config.destination);
            let step_back = self.step_back.get();
            self.not_before.set(now.after(step_back));
            self.step_back.set(step_back.saturating_mul(2).min(LONGEST_STEP_BACK));
            self.give_up_turn();
            return;
        }
        let due = self.with_scout(|scout| scout.next_due(now)).flatten();
        self.tick_every(due.map_or(TICK, |due| due.clamp(SHORTEST_TICK, TICK)));
        for _ in 0..ask {
            self.send();
        }
    }

    fn tick_every(&self, period: Duration) {
        if self.tick_period.replace(period) != period {
            host::set_tick_period(period).unwrap_or_else(host::report);
        }
    }

    // --- whose turn it is

    /// Takes or keeps the turn, if it is this worker's.
    fn take_turn(&self, now: Timestamp) -> bool {
        if now < self.not_before.get() {
            return false;
        }
        let key = shared::key("turn", &self.config.destination);
        let held =
            host::shared_data(&key).and_then(|(current, version)| match lease::claim(&current, self.worker, now) {
                Claim::Held => Ok(true),
                Claim::Write(lease) => host::set_shared_data(&key, &lease, version),
                Claim::Taken => Ok(false),
            });
        let is_held = held.map_err(host::report).unwrap_or_default();
        if !is_held {
            self.end_turn();
        }
        if !is_held || self.with_turn(|turn| turn.is_some()).unwrap_or_default() {
            return is_held;
        }
        let known = shared::finding(&self.config.destination).unwrap_or_default();
        let scout = Scout::new(self.config.max_wait, known, now);
        let turn =
            Turn { scout, told: known, logged: known.idle, looked: self.latest_event(), told_at: Timestamp::default() };
        self.with_turn(|place| *place = Some(turn)).is_some()
    }

    /// Another worker scouts now: what is left of ours would stand in its way.
    fn end_turn(&self) {
        if let Some(turn) = self.with_turn(Option::take).flatten() {
            self.close(turn.scout.connections().collect());
        }
    }

    fn give_up_turn(&self) {
        self.end_turn();
        shared::update(&shared::key("turn", &self.config.destination), |lease| lease::release(lease, self.worker));
    }

    fn close(&self, connections: Vec<u32>) {
        if connections.is_empty() {
            return;
        }
        for context in connections {
            host::enter(context).and_then(|()| host::close_connection()).unwrap_or_else(host::report);
        }
        host::enter(self.id).unwrap_or_else(host::report);
    }

    // --- what others say, and are told

    fn latest_event(&self) -> u64 {
        shared::number(&shared::key("look", &self.config.destination))
    }

    /// Users' requests met a connection that the far end had dropped, or needed a second attempt.
    fn look(&self, now: Timestamp) {
        let latest = self.latest_event();
        self.with_turn(|turn| {
            if let Some(turn) = turn.as_mut().filter(|turn| latest > turn.looked) {
                turn.looked = latest;
                turn.scout.on_look(now);
            }
        });
    }

    fn tell(&self, now: Timestamp) {
        let Ok(mut turn) = self.turn.try_borrow_mut() else { return };
        let Some(turn) = turn.as_mut() else { return };
        let counts = turn.scout.take_counts();
        self.add(ScoutMetric::Requests, counts.requests);
        self.add(ScoutMetric::Failures, counts.failures);
        let finding = *turn.scout.finding();
        if finding != turn.told {
            turn.told = finding;
            turn.told_at = Timestamp::default();
            if shared::update(&shared::key("scout", &self.config.destination), |_| Some(finding.encode())) {
                shared::announce();
            }
        }
        if finding.idle.is_worth_telling() && finding.idle.is_news_to(&turn.logged) {
            turn.logged = finding.idle;
            let announced =
                finding.keep_alive.map(|timeout| format!("; the far end announces {} s", timeout.as_secs()));
            let (name, announced) = (&self.config.destination, announced.unwrap_or_default());
            log::info!("{name}: idle connections are {}{announced}", finding.idle);
        }
        if now.since(turn.told_at) >= TICK_WITHOUT_TURN {
            turn.told_at = now;
            self.set(ScoutMetric::LbIdleTimeout, finding.timeout().map_or(0, millis));
            self.set(ScoutMetric::LowerBound, millis(turn.scout.lower_bound()));
            self.set(ScoutMetric::LastSeen, turn.scout.last_seen().map_or(0, |at| now.since(at).as_secs()));
            let fin = matches!(finding.idle, Idle::Closes { kind: Kind::Fin | Kind::Announced, .. });
            self.set(ScoutMetric::KindFin, fin.into());
            self.set(ScoutMetric::KindRst, matches!(finding.idle, Idle::Closes { kind: Kind::Rst, .. }).into());
            self.set(ScoutMetric::KindSilent, matches!(finding.idle, Idle::Silent { .. }).into());
        }
    }

    fn metric(&self, wanted: ScoutMetric) -> Option<host::MetricId> {
        self.metrics.iter().find(|(metric, _)| *metric == wanted).map(|(_, id)| *id)
    }

    fn add(&self, metric: ScoutMetric, count: u32) {
        if let Some(id) = self.metric(metric).filter(|_| count > 0) {
            host::add_to_metric(id, i64::from(count)).unwrap_or_else(host::report);
        }
    }

    fn set(&self, metric: ScoutMetric, value: u64) {
        if let Some(id) = self.metric(metric) {
            host::record_metric(id, value).unwrap_or_else(host::report);
        }
    }

    // --- requests

    /// Sends a request. Envoy may open a connection for it before this returns, and calls back for that.
    fn send(&self) {
        const NO_SUCH_CLUSTER: u32 = 2;
        let headers = [
            (":method", "HEAD"),
            (":scheme", "http"),
            (":path", &self.config.path),
            (":authority", &self.config.host),
            ("user-agent", "idleguard-scout"),
        ];
        if let Err(error) = host::send_request(&self.config.cluster, &headers, ANSWER_TIMEOUT) {
            if error.status == NO_SUCH_CLUSTER {
                host::report(error);
            }
            self.on_call_ended();
        }
    }

    /// A request has ended, with or without an answer.
    pub(crate) fn on_call_ended(&self) {
        self.with_scout(Scout::on_call_ended);
    }
}

impl Drop for ScoutRoot {
    fn drop(&mut self) {
        self.give_up_turn();
    }
}

/// One connection that a request of the scout's opened.
pub(crate) struct Connection {
    root: Rc<ScoutRoot>,
    wire: Wire,
    /// The far end's address, as soon as it is known.
    host: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(root: Rc<ScoutRoot>) -> Self {
        Self { root, wire: Wire::default(), host: Vec::new() }
    }

    pub(crate) fn on_new_connection(&mut self, context: u32) {
        let now = host::now();
        self.root.with_scout(|scout| scout.on_opened(context, now));
    }

    pub(crate) fn on_downstream_data(&mut self, context: u32, size: usize, end: bool) {
        let now = host::now();
        let bytes = host::buffer(BufferType::DownstreamData, 0, size).map_err(host::report).unwrap_or_default();
        if self.host.is_empty() {
            self.host = host::property(UPSTREAM_ADDRESS).map_err(host::report).ok().flatten().unwrap_or_default();
        }
        if self.wire.on_sent(&bytes) {
            self.root.with_scout(|scout| scout.on_asked(context, &self.host, now));
        }
        if end {
            // Envoy's pool ends it. Until 1.39 the far end's FIN that answers comes before the close, and must not look like the cause.
            self.root.with_scout(|scout| scout.on_closed(context, By::Pool, now));
        }
    }

    pub(crate) fn on_upstream_data(&mut self, context: u32, size: usize, end: bool) {
        let now = host::now();
        let bytes = host::buffer(BufferType::UpstreamData, 0, size).map_err(host::report).unwrap_or_default();
        let received = self.wire.on_received(&bytes);
        if let Some(kept) = bytes.get(..bytes.len().saturating_sub(received.excess)).filter(|_| received.excess > 0) {
            host::replace_buffer(BufferType::UpstreamData, size, kept).unwrap_or_else(host::report);
        }
        self.root.with_scout(|scout| {
            if let Some(answer) = received.answer {
                scout.on_answered(context, answer, now);
            }
            if received.excess > 0 {
                scout.on_excess(context, now);
            }
            if received.is_announced {
                scout.on_let_go(context, Kind::Announced, now);
            }
            if end {
                scout.on_let_go(context, Kind::Fin, now);
            }
        });
    }

    pub(crate) fn on_downstream_close(&mut self, context: u32, peer: PeerType) {
        // Our side of the in-process connection was closed: by the far end, or by the scout, which knows of that.
        let by = if peer == PeerType::Local { By::FarEnd } else { By::Pool };
        let now = host::now();
        self.root.with_scout(|scout| scout.on_closed(context, by, now));
    }

    /// Envoy has ended it, perhaps without a word before.
    pub(crate) fn end(self, context: u32) {
        let now = host::now();
        self.root.with_scout(|scout| scout.on_closed(context, By::Pool, now));
    }
}

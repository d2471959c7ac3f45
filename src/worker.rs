//! What one worker knows: its connections, and its destinations with what Envoy is to be told of them.

use std::cell::RefCell;
use std::time::Duration;

use idleguard_core::metrics::DestinationMetric;
use idleguard_core::time::{DurationText, Timestamp, millis};
use idleguard_core::timeout::{
    Evidence, IdleLimit, Knowledge, LOOK_LEASE, LaneId, LbIdleTimeout, Outcome, Policy, Timeout, Way,
};
use idleguard_core::watch::{DestinationId, Watch};

use crate::{host, shared};

/// How often connections that are gone are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// How often a stale failure is logged.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Idle ages that Envoy's histogram gets in a tick: of more than that a random part.
const AGES: usize = 32;

#[derive(Default)]
pub(crate) struct Worker {
    pub(crate) watch: Watch,
    destinations: Vec<Destination>,
    forget_at: Timestamp,
    /// The count of changes that has been taken in.
    changes: u64,
}

thread_local! {
    static WORKER: RefCell<Worker> = RefCell::default();
}

/// `None` only within a callback within another, where nothing needs it.
pub(crate) fn with_worker<T>(act: impl FnOnce(&mut Worker) -> T) -> Option<T> {
    WORKER.with(|worker| worker.try_borrow_mut().ok().map(|mut worker| act(&mut worker)))
}

/// One destination on one worker: what its connections are counted under, whatever filter configurations say about it.
struct Destination {
    name: String,
    metrics: Metrics,
    log: FailureLog,
    /// One for each policy that a filter configuration has for it, as long as there are such. While a configuration changes, and
    /// while listeners of the old one drain, there are several.
    variants: Vec<Option<Variant>>,
    /// The one that the latest request used.
    current: usize,
}

/// A destination as filter configurations with one and the same policy have it.
struct Variant {
    timeout: Timeout,
    users: u32,
    /// The lane that the log was told of.
    told: Option<LaneId>,
}

/// A destination of a filter configuration.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Configured {
    pub(crate) id: DestinationId,
    variant: usize,
}

impl Worker {
    fn get(&mut self, id: DestinationId) -> Option<&mut Destination> {
        self.destinations.get_mut(usize::from(id.0))
    }

    fn variant(&mut self, of: Configured) -> Option<&mut Variant> {
        self.get(of.id)?.variants.get_mut(of.variant)?.as_mut()
    }

    fn ids(&self) -> impl Iterator<Item = DestinationId> + use<> {
        (0..u16::try_from(self.destinations.len()).unwrap_or(u16::MAX)).map(DestinationId)
    }

    /// Everything that is configured for a destination.
    fn configured(&mut self, id: DestinationId) -> Vec<Configured> {
        let variants = self.get(id).map_or(0, |destination| destination.variants.len());
        (0..variants).map(|variant| Configured { id, variant }).filter(|of| self.variant(*of).is_some()).collect()
    }

    /// Which way a request to this destination goes that is sent now.
    pub(crate) fn way(&mut self, of: Configured, now: Timestamp) -> Option<Way> {
        Some(self.variant(of)?.timeout.way(now))
    }

    /// The header's value for a lane, if it needs one.
    pub(crate) fn token(&mut self, of: Configured, lane: LaneId) -> Option<String> {
        Some(self.variant(of)?.timeout.policy().token_of(lane)?.to_owned())
    }

    /// Whether any request needs a header. Asked for a request, so this policy is the current one.
    pub(crate) fn steers(&mut self, of: Configured) -> bool {
        let Some(destination) = self.get(of.id) else { return false };
        destination.current = of.variant;
        let variant = destination.variants.get(of.variant).and_then(Option::as_ref);
        variant.is_some_and(|variant| variant.timeout.lane() != LaneId::BASE || variant.timeout.is_looking())
    }

    fn count(&mut self, id: DestinationId, metric: DestinationMetric) {
        if let Some(destination) = self.get(id) {
            destination.metrics.count(metric);
        }
    }

    /// A request on a connection that had served before.
    pub(crate) fn on_reuse(&mut self, id: DestinationId, idle_age: Option<Duration>) {
        if let Some(destination) = self.get(id) {
            destination.metrics.count(DestinationMetric::Reuses);
            if let Some(idle_age) = idle_age {
                destination.metrics.age(idle_age);
            }
        }
    }

    /// Returns whether it was the request that was to tell, and has not.
    pub(crate) fn on_look_ended(&mut self, of: Configured, now: Timestamp) -> bool {
        self.variant(of).is_some_and(|variant| variant.timeout.on_look_ended(now))
    }

    pub(crate) fn on_connected(&mut self, of: Configured, lane: LaneId) {
        if let Some(variant) = self.variant(of)
            && variant.timeout.on_connected(lane)
        {
            let policy = variant.timeout.policy();
            log::warn!(
                "connects fail on the lanes of {} with an idle_timeout below {}, and not on that one: those are passed over. Does this \
                 Envoy count a lane's idle_timeout while it connects (docs/envoy.md)?",
                policy.cluster,
                DurationText(policy.idle_timeout_of(lane)),
            );
        }
    }

    /// Returns whether the lane in force may change by it.
    pub(crate) fn on_connect_failed(&mut self, of: Configured, lane: LaneId) -> bool {
        self.variant(of).is_some_and(|variant| variant.timeout.on_connect_failed(lane).is_some())
    }

    /// Takes over what is known by now.
    fn adopt(&mut self, id: DestinationId, knowledge: Knowledge) {
        for of in self.configured(id) {
            if let Some(variant) = self.variant(of) {
                let measured = variant.timeout.measured();
                variant.timeout.adopt(knowledge, measured);
            }
        }
    }
}

/// Names of destinations that one worker remembers. Connections outlive a change of the configuration, so a name keeps its id.
const MAX_NAMES: usize = 4_096;

/// Makes the destination known on this worker. `None` if there are too many.
pub(crate) fn register(name: &str, policy: &Policy) -> Option<Configured> {
    let mut timeout = Timeout::new(policy.clone());
    timeout.begin_with(shared::knowledge(name), shared::measured(name, policy));
    let known = with_worker(|worker| worker.ids().find(|id| worker.get(*id).is_some_and(|known| known.name == name)));
    let id = known.flatten().or_else(|| {
        let (metrics, log) = (Metrics::new(name), FailureLog::default());
        let destination = Destination { name: name.to_owned(), metrics, log, variants: Vec::new(), current: 0 };
        with_worker(|worker| {
            let id = u16::try_from(worker.destinations.len()).ok().map(DestinationId)?;
            (worker.destinations.len() < MAX_NAMES).then(|| worker.destinations.push(destination))?;
            Some(id)
        })
        .flatten()
    });
    let Some(id) = id else {
        log::warn!("{name}: not watched, because this worker has had {MAX_NAMES} other destinations");
        return None;
    };
    let configured = with_worker(|worker| {
        let known = worker.configured(id).into_iter().find(|of| {
            let variant = worker.variant(*of).filter(|variant| variant.timeout.policy() == policy);
            variant.map(|variant| variant.users = variant.users.saturating_add(1)).is_some()
        });
        let destination = worker.get(id)?;
        let variant = known.map(|of| of.variant).unwrap_or_else(|| {
            let new = Some(Variant { timeout, users: 1, told: None });
            match destination.variants.iter().position(Option::is_none) {
                Some(free) => {
                    destination.variants.get_mut(free).map(|place| *place = new).unwrap_or_default();
                    free
                }
                None => {
                    destination.variants.push(new);
                    destination.variants.len().saturating_sub(1)
                }
            }
        });
        destination.current = variant;
        Some(Configured { id, variant })
    })
    .flatten();
    follow(id, host::now());
    configured
}

/// A filter configuration that registered a destination is gone.
pub(crate) fn unregister(of: Configured) {
    flush(of.id);
    with_worker(|worker| {
        let place = worker.get(of.id)?.variants.get_mut(of.variant)?;
        let variant = place.as_mut()?;
        variant.users = variant.users.saturating_sub(1);
        if variant.users == 0 {
            *place = None;
        }
        Some(())
    });
}

/// What all destinations do from time to time. Every root context of a VM ticks, so it comes more often than need be.
pub(crate) fn tick(now: Timestamp) {
    let changes = shared::changes();
    let Some((ids, has_changed)) = with_worker(|worker| {
        if now >= worker.forget_at {
            worker.forget_at = now.after(FORGET_EVERY);
            worker.watch.forget(now);
        }
        let has_changed = std::mem::replace(&mut worker.changes, changes) != changes;
        (worker.ids(), has_changed)
    }) else {
        return;
    };
    for id in ids {
        let Some((name, configured)) = with_worker(|worker| {
            let configured = worker.configured(id);
            Some((worker.get(id)?.name.clone(), configured))
        })
        .flatten() else {
            continue;
        };
        if configured.is_empty() {
            continue;
        }
        if has_changed {
            let knowledge = shared::knowledge(&name);
            for of in &configured {
                let policy = |worker: &mut Worker| Some(worker.variant(*of)?.timeout.policy().clone());
                let Some(policy) = with_worker(policy).flatten() else { continue };
                let measured = shared::measured(&name, &policy);
                with_worker(|worker| worker.variant(*of).map(|variant| variant.timeout.adopt(knowledge, measured)));
            }
        }
        for of in configured {
            look(of, &name, now);
        }
        follow(id, now);
        flush(id);
    }
}

/// Takes the look at a hold that is due, or keeps it, if no other worker has it.
fn look(of: Configured, name: &str, now: Timestamp) {
    let standing = |worker: &mut Worker| {
        let variant = worker.variant(of)?;
        Some((variant.timeout.wants_look(now), variant.timeout.is_looking()))
    };
    let (wants, is_looking) = with_worker(standing).flatten().unwrap_or_default();
    if !wants {
        return;
    }
    let until = now.after(LOOK_LEASE);
    let mut is_ours = is_looking;
    let knowledge = shared::learn(name, |knowledge| {
        let Some(hold) = knowledge.hold() else { return };
        if !is_looking {
            is_ours = knowledge.claim_look(until, now);
        } else if hold.looking_until.since(now).saturating_mul(2) < LOOK_LEASE {
            knowledge.keep_look(until);
        }
    });
    with_worker(|worker| {
        worker.adopt(of.id, knowledge);
        let variant = worker.variant(of).filter(|_| is_ours)?;
        variant.timeout.begin_look();
        Some(())
    });
}

/// The request that was to tell whether a hold still holds was not answered.
pub(crate) fn on_look_failed(of: Configured, now: Timestamp) {
    let name = with_worker(|worker| worker.get(of.id).map(|destination| destination.name.clone())).flatten();
    let Some(name) = name else { return };
    let knowledge = shared::learn(&name, |knowledge| knowledge.on_look_failed(now));
    with_worker(|worker| worker.adopt(of.id, knowledge));
    follow(of.id, now);
}

/// What a request told is certain: takes it in, for all workers.
pub(crate) fn learn(id: DestinationId, evidence: &Evidence, now: Timestamp) {
    let failed = matches!(evidence.outcome, Outcome::Failed { .. });
    let news = with_worker(|worker| {
        if failed {
            worker.count(id, DestinationMetric::StaleFailures);
        }
        let of = worker.configured(id).first().copied()?;
        let is_news = worker.variant(of)?.timeout.knowledge().is_news(evidence);
        is_news.then(|| worker.get(id).map(|destination| destination.name.clone()))?
    });
    let Some(name) = news.flatten() else { return };
    let knowledge = shared::learn(&name, |knowledge| knowledge.learn(evidence, now));
    with_worker(|worker| worker.adopt(id, knowledge));
    if failed {
        shared::ask_to_look(&name, now);
    }
    follow(id, now);
}

/// The scout, if there is one, should look: a request needed more than one attempt.
pub(crate) fn on_retried(id: DestinationId, now: Timestamp) {
    let name = with_worker(|worker| {
        worker.count(id, DestinationMetric::Retried);
        worker.get(id).map(|destination| destination.name.clone())
    });
    if let Some(name) = name.flatten() {
        shared::ask_to_look(&name, now);
    }
}

/// Goes on to the lanes that follow, and tells Envoy.
pub(crate) fn follow(id: DestinationId, now: Timestamp) {
    let news = with_worker(|worker| {
        let mut changes = Vec::new();
        for of in worker.configured(id) {
            let Some(name) = worker.get(id).map(|destination| destination.name.clone()) else { continue };
            let Some(variant) = worker.variant(of) else { continue };
            variant.timeout.tick(now);
            let lane = variant.timeout.lane();
            let before = variant.told.replace(lane);
            if before != Some(lane) {
                let (limit, policy) = (*variant.timeout.limit(), variant.timeout.policy().clone());
                changes.push(Change { name, before, lane, is_safe: variant.timeout.is_safe(), limit, policy });
            }
        }
        let destination = worker.get(id)?;
        let current = destination.variants.get(destination.current).and_then(Option::as_ref);
        let gauges = current.map(|current| destination.metrics.gauges_of(&current.timeout)).unwrap_or_default();
        Some((gauges, changes))
    });
    let Some((gauges, changes)) = news.flatten() else { return };
    for (metric, value) in gauges {
        host::record_metric(metric, value).unwrap_or_else(host::report);
    }
    for change in changes {
        if change.tell() {
            with_worker(|worker| worker.count(id, DestinationMetric::LaneChanges));
        }
    }
}

/// A lane that is in force from now on.
struct Change {
    name: String,
    /// The one before, on this worker.
    before: Option<LaneId>,
    lane: LaneId,
    is_safe: bool,
    limit: IdleLimit,
    policy: Policy,
}

impl Change {
    /// Where workers with the same policy agree who writes the line.
    fn key(&self) -> Vec<u8> {
        let told = match self.policy.lb_idle_timeout {
            LbIdleTimeout::Fixed(timeout) => DurationText(timeout).to_string(),
            LbIdleTimeout::Learn => String::new(),
        };
        let lanes = self.policy.lanes.iter().map(|lane| lane.token.as_str());
        let told = lanes.fold(format!("{} {told}", self.name), |all, lane| all + " " + lane);
        shared::key("lane", &told)
    }

    /// Writes a line to the log, unless another worker has written the same. Returns whether it is a change of what the process did before.
    fn tell(&self) -> bool {
        let idle_timeout = millis(self.policy.idle_timeout_of(self.lane)).to_le_bytes().to_vec();
        let mut is_first = false;
        let is_news = shared::update(&self.key(), |told| {
            is_first = told.is_empty();
            (*told != idle_timeout).then(|| idle_timeout.clone())
        });
        if !is_news || (self.policy.lanes.is_empty() && self.before.is_none()) {
            return false;
        }
        let lane = |id| {
            let idle_timeout = self.policy.idle_timeout_of(id);
            format!("{} (idle_timeout {})", self.policy.cluster_of(id), DurationText(idle_timeout))
        };
        let before =
            self.before.filter(|before| *before != self.lane).map(|before| format!(" instead of {}", lane(before)));
        let text = format!(
            "{}: requests go to {}{}: the idle limit is {}, because {}",
            self.name,
            lane(self.lane),
            before.unwrap_or_default(),
            DurationText(self.limit.limit),
            self.limit.reason,
        );
        if !self.is_safe {
            log::warn!("{text}; no lane has an idle_timeout within the limit, and this is the shortest");
        } else if self.limit.reason.contradicts_operator() {
            log::warn!("{text}");
        } else {
            log::info!("{text}");
        }
        !is_first
    }
}

/// Tells Envoy what was counted.
fn flush(id: DestinationId) {
    let counted = with_worker(|worker| worker.get(id).map(|destination| destination.metrics.take()));
    let Some((counts, ages)) = counted.flatten() else { return };
    for (metric, count) in counts {
        host::add_to_metric(metric, i64::from(count)).unwrap_or_else(host::report);
    }
    if let Some((metric, ages)) = ages {
        for age in ages {
            host::record_metric(metric, age).unwrap_or_else(host::report);
        }
    }
}

/// A stale failure, for the log.
pub(crate) struct StaleFailure<'a> {
    pub(crate) cluster: &'a [u8],
    pub(crate) far_end: &'a [u8],
    pub(crate) connection: &'a [u8],
    pub(crate) idle_age: Duration,
    /// Envoy's word for what happened.
    pub(crate) details: &'a [u8],
}

/// Logs it, at most once a second for each destination on a worker.
pub(crate) fn log_failure(id: DestinationId, failure: &StaleFailure<'_>, now: Timestamp) {
    let unlogged = with_worker(|worker| worker.get(id)?.log.admit(now)).flatten();
    let Some(unlogged) = unlogged else { return };
    let text = String::from_utf8_lossy;
    let more = if unlogged > 0 { format!("; {unlogged} more since the last such line") } else { String::new() };
    log::warn!(
        "a request to {} failed on connection {} to {}, which had been idle for {}: {}{more}",
        text(failure.cluster),
        text(failure.connection),
        text(failure.far_end),
        DurationText(failure.idle_age),
        text(failure.details),
    );
}

#[derive(Default)]
struct FailureLog {
    next: Timestamp,
    unlogged: u64,
}

impl FailureLog {
    /// How many were not logged since the last one that was; `None` if this one isn't, either.
    fn admit(&mut self, now: Timestamp) -> Option<u64> {
        if now < self.next {
            self.unlogged = self.unlogged.saturating_add(1);
            return None;
        }
        self.next = now.after(LOG_EVERY);
        Some(std::mem::take(&mut self.unlogged))
    }
}

/// What counters have grown by.
type Counts = Vec<(host::MetricId, u32)>;

/// What was counted since Envoy was last told, and the ids by which it is.
struct Metrics {
    ids: Vec<Option<host::MetricId>>,
    counts: [u32; DestinationMetric::ALL.len()],
    ages: Vec<u64>,
    /// How many ages there were since the last tick.
    seen: u64,
    gauges: [Option<u64>; DestinationMetric::ALL.len()],
    random: u64,
}

impl Metrics {
    fn new(destination: &str) -> Self {
        let define = |metric: &DestinationMetric| {
            let name = format!("idleguard.destination.{destination}.{}", metric.name());
            host::define_metric(metric.kind(), &name).map_err(host::report).ok()
        };
        let ids = DestinationMetric::ALL.iter().map(define).collect();
        let (counts, gauges) = ([0; _], [None; _]);
        Self { ids, counts, ages: Vec::new(), seen: 0, gauges, random: host::random() | 1 }
    }

    fn id(&self, metric: DestinationMetric) -> Option<host::MetricId> {
        self.ids.get(metric as usize).copied().flatten()
    }

    fn count(&mut self, metric: DestinationMetric) {
        if let Some(count) = self.counts.get_mut(metric as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// One of the ages of this tick: each is equally likely to be kept (Vitter's algorithm R).
    fn age(&mut self, idle_age: Duration) {
        self.seen = self.seen.saturating_add(1);
        if self.ages.len() < AGES {
            self.ages.push(millis(idle_age));
            return;
        }
        // Marsaglia's xorshift: good enough to choose by.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let place = self.random.checked_rem(self.seen).and_then(|place| usize::try_from(place).ok());
        if let Some(kept) = place.and_then(|place| self.ages.get_mut(place)) {
            *kept = millis(idle_age);
        }
    }

    /// The gauges that have changed.
    fn gauges_of(&mut self, timeout: &Timeout) -> Vec<(host::MetricId, u64)> {
        let limit = timeout.limit();
        let idle_timeout = timeout.policy().idle_timeout_of(timeout.lane());
        let values = [
            (DestinationMetric::IdleLimit, millis(limit.limit)),
            (DestinationMetric::LaneIdleTimeout, if idle_timeout == Duration::MAX { 0 } else { millis(idle_timeout) }),
            (DestinationMetric::LbIdleTimeout, limit.timeout.map_or(0, millis)),
        ];
        let mut changed = Vec::new();
        for (metric, value) in values {
            let told = self.gauges.get_mut(metric as usize);
            if told.is_some_and(|told| told.replace(value) != Some(value))
                && let Some(id) = self.id(metric)
            {
                changed.push((id, value));
            }
        }
        changed
    }

    /// Counters, and the values of the histogram.
    fn take(&mut self) -> (Counts, Option<(host::MetricId, Vec<u64>)>) {
        self.seen = 0;
        let counts = std::mem::take(&mut self.counts);
        let counted = DestinationMetric::ALL.iter().zip(counts).filter(|(_, count)| *count > 0);
        let counts = counted.filter_map(|(metric, count)| Some((self.id(*metric)?, count))).collect();
        let ages = std::mem::take(&mut self.ages);
        (counts, self.id(DestinationMetric::ReuseIdleAge).filter(|_| !ages.is_empty()).map(|id| (id, ages)))
    }
}

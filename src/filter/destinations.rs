//! The worker that both filters share, and its metrics in Envoy.

use std::cell::{Cell, RefCell};

use crate::destination::Destination;
use crate::host::{self, MetricId};
use crate::learner::Told;
use crate::learning::News;
use crate::metrics::{DestinationMetric, Kind};
use crate::policy::Policy;
use crate::shared;
use crate::time::millis;
use crate::worker::{DestinationId, MAX_DESTINATIONS, MAX_NAME, Worker};

type Metrics = Vec<(DestinationMetric, MetricId)>;

/// The `name` of a filter's configuration in Envoy.
const PLUGIN_NAME: &[u8] = b"plugin_name";

/// A configured connection filter.
struct Guard {
    plugin: Vec<u8>,
    destination: DestinationId,
    root: u32,
}

thread_local! {
    static WORKER: RefCell<Worker> = RefCell::new(Worker::new(host::random()));
    static HAS_WARNED_OF_NUMBER: Cell<bool> = const { Cell::new(false) };
    /// By destination: what a worker counts, under the ids that Envoy gave.
    static METRICS: RefCell<Vec<(DestinationId, Metrics)>> = const { RefCell::new(Vec::new()) };
    static GUARDS: RefCell<Vec<Guard>> = const { RefCell::new(Vec::new()) };
}

/// Does something with the worker. `None` only if it is in use already, which would be a bug of ours: the closure must not
/// call the host.
pub(super) fn with_worker<T>(act: impl FnOnce(&mut Worker) -> T) -> Option<T> {
    WORKER.with(|worker| match worker.try_borrow_mut() {
        Ok(mut worker) => Some(act(&mut worker)),
        Err(_) => {
            log::error!("the worker's state is in use: this is a bug in idleguard");
            None
        }
    })
}

/// Does something with one destination.
pub(super) fn with_destination<T>(id: DestinationId, act: impl FnOnce(&mut Destination) -> T) -> Option<T> {
    with_worker(|worker| worker.get(id).map(act)).flatten()
}

/// Registers what the filter with root context `root` wants for the destination called `name`.
pub(super) fn register(root: u32, name: &str, policy: &Policy, is_guard: bool) -> Option<DestinationId> {
    let now = host::now();
    let plugin = if is_guard { host::property(PLUGIN_NAME).map_err(host::report).ok().flatten() } else { None };
    let registered = with_worker(|worker| {
        let (id, is_new) = worker.destination(name, now)?;
        for older in plugin.map(|plugin| superseded(Guard { plugin, destination: id, root })).unwrap_or_default() {
            worker.get(id).iter_mut().for_each(|destination| destination.remove_policy(older, now));
        }
        let differing = worker.get(id).map(|destination| destination.add_policy(root, policy.clone(), is_guard, now));
        Some((id, is_new, differing.unwrap_or_default()))
    })?;
    let Some((id, is_new, differing)) = registered else {
        if !HAS_WARNED_OF_NUMBER.replace(true) {
            log::warn!(
                "there are {MAX_DESTINATIONS} destinations already, or a cluster's name is longer than {MAX_NAME} bytes: \
                 further ones are left alone"
            );
        }
        return None;
    };
    for key in differing {
        log::warn!("{name}: the filters' policies differ in {key}; the lower idle limit holds for both");
    }
    if is_new {
        define_metrics(id, name);
    }
    report_limit(id);
    Some(id)
}

/// Notes a connection filter, and returns the root contexts whose place it takes: those of the same plugin for the same
/// destination. When Envoy discovers a new configuration, the old root context lives on as long as any connection that was
/// opened under it, which may be for ever; its policy must not.
fn superseded(guard: Guard) -> Vec<u32> {
    GUARDS.with(|guards| {
        let Ok(mut guards) = guards.try_borrow_mut() else { return Vec::new() };
        let is_older = |other: &mut Guard| other.plugin == guard.plugin && other.destination == guard.destination;
        let older = guards.extract_if(.., is_older).map(|other| other.root).collect();
        guards.push(guard);
        older
    })
}

/// The filter with root context `root` is gone.
pub(super) fn unregister(root: u32) {
    GUARDS.with(|guards| {
        if let Ok(mut guards) = guards.try_borrow_mut() {
            guards.retain(|guard| guard.root != root);
        }
    });
    let now = host::now();
    with_worker(|worker| worker.destinations().for_each(|(_, destination)| destination.remove_policy(root, now)));
}

fn define_metrics(id: DestinationId, name: &str) {
    let defined: Metrics = DestinationMetric::ALL
        .iter()
        .filter_map(|metric| {
            let full_name = format!("idleguard.destination.{name}.{}", metric.name());
            match host::define_metric(metric.kind(), &full_name) {
                Ok(defined) => Some((*metric, defined)),
                Err(error) => {
                    host::report(error);
                    None
                }
            }
        })
        .collect();
    METRICS.with(|metrics| {
        if let Ok(mut metrics) = metrics.try_borrow_mut() {
            metrics.push((id, defined));
        }
    });
}

/// Tells Envoy the limit in force and what has been learnt.
pub(super) fn report_limit(id: DestinationId) {
    let known = with_destination(id, |destination| (destination.idle_limit(), destination.learned()));
    let Some((limit, learned)) = known else { return };
    let values = vec![
        (DestinationMetric::IdleLimit, millis(limit)),
        (DestinationMetric::LearnedLbIdleTimeout, learned.map_or(0, millis)),
    ];
    report(id, values, (0, 0));
}

/// The same as a connection filter does in its ticks, for destinations that have none.
pub(super) fn share_unseen() {
    for (id, name) in with_worker(|worker| worker.unseen()).unwrap_or_default() {
        exchange_knowledge(id, &shared_key(&name));
        report_limit(id);
        tell_news(id, &name);
    }
}

/// Where workers exchange what they learnt of the destination called `name`.
pub(super) fn shared_key(name: &str) -> Vec<u8> {
    [b"idleguard.learner.", name.as_bytes()].concat()
}

/// Logs what is new, unless another worker has.
pub(super) fn tell_news(id: DestinationId, name: &str) {
    let now = host::now();
    for news in with_destination(id, |destination| destination.take_news(now)).unwrap_or_default() {
        match news {
            News::Verdict(verdict) => {
                let key = [b"idleguard.told.", name.as_bytes()].concat();
                if is_first_to_tell(&key, &verdict.to_tell()) {
                    log::info!("{name}: {news}");
                }
            }
            News::StaleFailures { .. } => log::warn!("{name}: {news}"),
        }
    }
}

/// Takes in what the other workers know of a destination's idle timeout, and tells them what this one knows.
pub(super) fn exchange_knowledge(id: DestinationId, key: &[u8]) {
    let now = host::now();
    let exchanged = host::shared_data(key).and_then(|(stored, version)| {
        match with_destination(id, |destination| destination.exchange_knowledge(&stored, now)).flatten() {
            // If another worker was faster, its knowledge is taken in the next time.
            Some(own) => host::set_shared_data(key, &own, version).map(drop),
            None => Ok(()),
        }
    });
    exchanged.unwrap_or_else(host::report);
}

/// Whether this worker is the first to tell the log `news`; what was told is stored under `key`.
fn is_first_to_tell(key: &[u8], news: &Told) -> bool {
    let first = host::shared_data(key).and_then(|(told, version)| match shared::tell(&told, news) {
        Some(own) => host::set_shared_data(key, &own, version),
        None => Ok(false),
    });
    first.unwrap_or_else(|error| {
        host::report(error);
        true // better twice than never
    })
}

/// Tells Envoy what this worker has counted at all destinations.
pub(super) fn report_counts() {
    if with_worker(|worker| worker.has_counted()) != Some(true) {
        return;
    }
    let mut from = DestinationId::default();
    // One at a time: the worker is not in use while the host is called.
    while let Some((id, values, gauges)) = with_worker(|worker| worker.take_counts(from)).flatten() {
        report(id, values, gauges);
        from = id.next();
    }
}

fn report(id: DestinationId, values: Vec<(DestinationMetric, u64)>, (open, idle): (i64, i64)) {
    let gauges = [(DestinationMetric::ConnectionsActive, open), (DestinationMetric::ConnectionsIdle, idle)];
    METRICS.with(|metrics| {
        let Ok(metrics) = metrics.try_borrow() else { return };
        let Some((_, defined)) = metrics.iter().find(|(of, _)| *of == id) else { return };
        let find = |metric| defined.iter().find(|(of, _)| *of == metric).map(|(_, id)| *id);
        for (metric, value) in values {
            let Some(id) = find(metric) else { continue };
            let told = match metric.kind() {
                Kind::Counter => host::add_to_metric(id, i64::try_from(value).unwrap_or(i64::MAX)),
                Kind::Gauge | Kind::Histogram => host::record_metric(id, value),
            };
            told.unwrap_or_else(host::report);
        }
        for (metric, change) in gauges {
            let Some(id) = find(metric).filter(|_| change != 0) else { continue };
            host::add_to_metric(id, change).unwrap_or_else(host::report);
        }
    });
}

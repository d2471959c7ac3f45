//! The worker that both filters share, and its metrics in Envoy.

use std::cell::RefCell;

use crate::destination::Destination;
use crate::host::{self, MetricId};
use crate::learner::Told;
use crate::learning::News;
use crate::metrics::{DestinationMetric, Kind};
use crate::policy::Policy;
use crate::shared;
use crate::time::millis;
use crate::worker::{DestinationId, Worker};

type Metrics = Vec<(DestinationMetric, MetricId)>;

thread_local! {
    static WORKER: RefCell<Worker> = RefCell::new(Worker::new(host::random()));
    /// By destination: what a worker counts, under the ids that Envoy gave.
    static METRICS: RefCell<Vec<(DestinationId, Metrics)>> = const { RefCell::new(Vec::new()) };
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
    let (id, is_new, differing) = with_worker(|worker| {
        let (id, is_new) = worker.destination(name, now);
        let differing = worker.get(id).map(|destination| destination.add_policy(root, policy.clone(), is_guard, now));
        (id, is_new, differing.unwrap_or_default())
    })?;
    for key in differing {
        log::warn!("{name}: the filters' policies differ in {key}; the lower idle limit holds for both");
    }
    if is_new {
        define_metrics(id, name);
    }
    report_limit(id);
    Some(id)
}

/// The filter with root context `root` is gone.
pub(super) fn unregister(root: u32) {
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
    let counted = with_worker(|worker| {
        worker
            .destinations()
            .map(|(id, destination)| (id, destination.tally.take(), destination.take_gauges()))
            .collect()
    });
    let counted: Vec<_> = counted.unwrap_or_default();
    for (id, values, gauges) in counted {
        report(id, values, gauges);
    }
}

fn report(id: DestinationId, values: Vec<(DestinationMetric, u64)>, (open, idle): (i64, i64)) {
    let gauges = [(DestinationMetric::ConnectionsActive, open), (DestinationMetric::ConnectionsIdle, idle)];
    if values.is_empty() && (open, idle) == (0, 0) {
        return;
    }
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

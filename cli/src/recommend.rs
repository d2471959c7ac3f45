//! Which `idle_timeout` should each cluster have, by what was measured? And how is that written?
//!
//! What Envoy uses is in its config dump, what its scouts and destinations have measured in its statistics.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use idleguard_core::time::{DurationText, millis};
use idleguard_core::timeout::{Finding, Margin};
use serde_json::{Map, Value, json};

use crate::bootstrap::{self, items, message, text};
use crate::document::yaml;
use crate::inject::lanes::set_idle_timeout;
use crate::path::Step;

/// How a patch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// What to put into the cluster of a bootstrap, or of CDS.
    Envoy,
    /// A `DestinationRule`.
    Istio,
    /// A `BackendTrafficPolicy`.
    EnvoyGateway,
}

/// One cluster, what it uses, and what was measured.
#[derive(Clone, Debug)]
pub struct Recommendation {
    /// As Envoy calls it.
    pub cluster: String,
    /// By this name it was measured.
    pub destination: String,
    /// The `idle_timeout` in use: the cluster's, or that of the lane in force. [`Duration::MAX`] is none.
    pub in_use: Duration,
    /// Whether that is a lane's.
    pub is_lane: bool,
    /// The far end's idle timeout, the smallest that anybody knows of: a lower bound where it is silent, and what it announces by
    /// `Keep-Alive: timeout`.
    pub measured: Duration,
    /// The `idle_timeout` to use.
    pub limit: Duration,
    /// The cluster's configuration.
    config: Value,
}

impl Recommendation {
    /// Whether connections are reused that the far end may have dropped: what is in use is above what was measured.
    pub fn is_unsafe(&self) -> bool {
        self.in_use > self.measured
    }

    /// Whether what is in use leaves less than the margin.
    pub fn is_to_change(&self) -> bool {
        self.in_use > self.limit
    }
}

/// What the statistics say, by destination and metric, such as `scout.lb_idle_timeout_ms`. Reads both `/stats` and
/// `/stats/prometheus`.
pub fn measurements(stats: &str) -> BTreeMap<String, BTreeMap<String, u64>> {
    let mut found: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for line in stats.lines() {
        let Some((destination, metric, value)) = plain(line).or_else(|| prometheus(line)) else { continue };
        found.entry(destination).or_default().insert(metric, value);
    }
    found
}

/// `wasmcustom.idleguard.scout.payments.lb_idle_timeout_ms: 60000`
fn plain(line: &str) -> Option<(String, String, u64)> {
    let (name, value) = line.trim().rsplit_once(": ")?;
    let name = name.strip_prefix("wasmcustom.idleguard.")?;
    let (kind, rest) = name.split_once('.').filter(|(kind, _)| matches!(*kind, "scout" | "destination"))?;
    let (destination, metric) = rest.rsplit_once('.')?;
    Some((destination.to_owned(), format!("{kind}.{metric}"), value.parse().ok()?))
}

/// `idleguard_scout_lb_idle_timeout_ms{idleguard_destination="payments"} 60000`, with the rule of `stats_tags` that `inject` writes.
fn prometheus(line: &str) -> Option<(String, String, u64)> {
    let (name, rest) = line.trim().strip_prefix("idleguard_")?.split_once('{')?;
    let (labels, value) = rest.rsplit_once('}')?;
    let (kind, metric) = name.split_once('_').filter(|(kind, _)| matches!(*kind, "scout" | "destination"))?;
    let (_, label) = labels.split_once("idleguard_destination=\"")?;
    let (destination, _) = label.split_once('"')?;
    Some((destination.to_owned(), format!("{kind}.{metric}"), value.trim().parse().ok()?))
}

/// What follows for each cluster whose far end has been measured, with notes about those that can't be judged.
///
/// # Errors
/// If the dump is none, or nothing has been measured.
pub fn recommend(dump: &Value, stats: &str, margin: Margin) -> Result<(Vec<Recommendation>, Vec<String>)> {
    let root = as_bootstrap(dump)?;
    let measurements = measurements(stats);
    if measurements.is_empty() {
        bail!(
            "the statistics have no idleguard.scout and no idleguard.destination: is there a scout (`idleguard inject --scout`)?"
        );
    }
    let (mut found, mut notes) = (Vec::new(), Vec::new());
    for (destination, metrics) in measurements {
        let of = |metric: &str| metrics.get(metric).copied().filter(|value| *value > 0).map(Duration::from_millis);
        let by_scout = of("scout.lb_idle_timeout_ms");
        let Some(measured) = by_scout.into_iter().chain(of("destination.lb_idle_timeout_ms")).min() else {
            let bound = of("scout.lower_bound_ms")
                .map_or_else(String::new, |age| format!(", but at least {}", DurationText(age)));
            notes.push(format!("{destination}: the far end's idle timeout is not known (yet){bound}"));
            continue;
        };
        let name = cluster_of(&root, &destination);
        let Some((_, config)) = bootstrap::cluster(&root, &name) else {
            notes.push(format!("{destination}: was measured, but the config dump has no cluster {name:?}"));
            continue;
        };
        let base =
            bootstrap::idle_timeout(config).with_context(|| format!("{name}: its idle_timeout is no duration"))?;
        let lane = of("destination.lane_idle_timeout_ms").filter(|lane| *lane < base);
        // What a scout has seen to end is its lower bound, too; a `Keep-Alive: timeout` below that, or before, is announced only.
        let is_seen =
            metrics.get("scout.lower_bound_ms").is_none_or(|bound| by_scout == Some(Duration::from_millis(*bound)));
        let announced = Finding { keep_alive: by_scout.filter(|_| !is_seen), ..Finding::default() };
        let limit = margin.limit(measured).min(announced.limit(margin).unwrap_or(Duration::MAX));
        found.push(Recommendation {
            in_use: lane.unwrap_or(base),
            is_lane: lane.is_some(),
            measured,
            limit: rounded(limit),
            config: config.clone(),
            cluster: name,
            destination,
        });
    }
    Ok((found, notes))
}

/// Down to what people write: whole seconds from 10 s on, tenths of a second from 1 s on.
fn rounded(limit: Duration) -> Duration {
    let millis = millis(limit);
    let step = match millis {
        10_000.. => 1_000,
        1_000.. => 100,
        _ => 10,
    };
    Duration::from_millis(millis.saturating_sub(millis % step).max(1))
}

/// The clusters and listeners of a config dump, at the places where a bootstrap has them.
fn as_bootstrap(dump: &Value) -> Result<Value> {
    let configs = items(dump, "configs");
    if configs.is_empty() {
        bail!("this is no config dump: take that of http://ADMIN/config_dump");
    }
    let (mut clusters, mut listeners, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    for config in configs {
        let Some((kind, _)) = message(config) else { continue };
        match kind.rsplit('.').next() {
            Some("ClustersConfigDump") => {
                for key in ["static_clusters", "dynamic_active_clusters", "dynamic_warming_clusters"] {
                    clusters.extend(items(config, key).iter().filter_map(|one| one.get("cluster").cloned()));
                }
            }
            Some("ListenersConfigDump") => {
                listeners
                    .extend(items(config, "static_listeners").iter().filter_map(|one| one.get("listener").cloned()));
                let active = |one: &Value| one.pointer("/active_state/listener").cloned();
                listeners.extend(items(config, "dynamic_listeners").iter().filter_map(active));
            }
            Some("EcdsConfigDump") => rest.push(config.clone()),
            _ => {}
        }
    }
    if clusters.is_empty() {
        bail!("the config dump has no clusters");
    }
    Ok(json!({ "static_resources": { "clusters": clusters, "listeners": listeners }, "extensions": rest }))
}

/// The base of a destination: what a plugin says, or what is behind its scout's listener, or the cluster of this name.
fn cluster_of(root: &Value, destination: &str) -> String {
    let plugins = bootstrap::plugins(root);
    let mut policies = plugins.iter().filter_map(|plugin| plugin.http()).flat_map(|http| &http.destinations);
    if let Some((_, policy)) = policies.find(|(name, _)| name.as_str() == destination) {
        return policy.cluster.clone();
    }
    let mut scouts = plugins.iter().filter_map(|plugin| Some((&plugin.path, plugin.scout()?)));
    let behind = scouts.find(|(_, scout)| scout.destination == destination).and_then(|(path, _)| {
        let listeners = items(root, "static_resources.listeners").iter().enumerate();
        let mut listeners = listeners.map(|(at, listener)| (bootstrap::resources("listeners").then(at), listener));
        let (place, listener) = listeners.find(|(place, _)| path.is_within(place))?;
        let filters = bootstrap::network_filters(&place, listener);
        let proxy = filters.iter().find(|(_, filter)| bootstrap::is_type(filter, bootstrap::TCP_PROXY))?;
        text(bootstrap::fields(proxy.1), "cluster").map(str::to_owned)
    });
    behind.unwrap_or_else(|| destination.to_owned())
}

// === what is printed ===

/// One line about a cluster, and the patch if it needs one. YAML, in which the line is a comment.
pub fn written(one: &Recommendation, style: Style) -> String {
    let in_use = match one.in_use {
        Duration::MAX => "no idle_timeout at all".to_owned(),
        in_use => DurationText(in_use).to_string(),
    };
    let whose = if one.is_lane { " (its lane in force)" } else { "" };
    let verdict = match (one.is_unsafe(), one.is_to_change()) {
        (true, _) => "stale connections are reused",
        (false, true) => "less than the margin",
        (false, false) => "fine",
    };
    let mut out = format!(
        "# {}: {in_use} in use{whose}, {} measured, {} to use: {verdict}\n",
        one.cluster,
        DurationText(one.measured),
        DurationText(one.limit)
    );
    if one.is_to_change() {
        let patch = match style {
            Style::Envoy => {
                json!({ "name": one.cluster.clone() }).as_object().map(|name| envoy(one, name)).unwrap_or_default()
            }
            Style::Istio => istio(one),
            Style::EnvoyGateway => envoy_gateway(one, &mut out),
        };
        out.push_str(&yaml(&patch));
        out.push('\n');
    }
    out
}

/// What the cluster has for HTTP already, with the new timeout: it replaces that.
fn envoy(one: &Recommendation, name: &Map<String, Value>) -> Value {
    let mut config = one.config.clone();
    set_idle_timeout(&mut config, &bootstrap::duration_text(one.limit));
    let options = bootstrap::common_options(&config);
    let mut cluster = name.clone();
    if let Some(Step::Key(key)) = options.0.first()
        && let Some(value) = config.get(key)
    {
        cluster.insert(key.clone(), value.clone());
    }
    cluster.into()
}

/// `outbound|443|v1|api.example.com` is what Istio calls the cluster of a host, a port and a subset.
fn istio(one: &Recommendation) -> Value {
    let parts: Vec<&str> = one.cluster.split('|').collect();
    let (subset, host) = match parts.as_slice() {
        [_, _, subset, host] => (*subset, *host),
        _ => ("", one.cluster.as_str()),
    };
    let policy = json!({ "connectionPool": { "http": { "idleTimeout": bootstrap::duration_text(one.limit) } } });
    let spec = if subset.is_empty() {
        json!({ "host": host, "trafficPolicy": policy })
    } else {
        json!({ "host": host, "subsets": [{ "name": subset, "trafficPolicy": policy }] })
    };
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": { "name": resource_name(host) },
        "spec": spec,
    })
}

/// `httproute/shop/payments/rule/0` is what Envoy Gateway calls the cluster of a route's rule.
fn envoy_gateway(one: &Recommendation, out: &mut String) -> Value {
    let parts: Vec<&str> = one.cluster.split('/').collect();
    let (kind, namespace, route) = match parts.as_slice() {
        ["httproute", namespace, route, ..] => ("HTTPRoute", Some(*namespace), *route),
        ["grpcroute", namespace, route, ..] => ("GRPCRoute", Some(*namespace), *route),
        _ => {
            out.push_str("# The cluster's name says no route: write the one that leads to it into targetRefs.\n");
            ("HTTPRoute", None, one.cluster.as_str())
        }
    };
    let mut metadata = json!({ "name": resource_name(route) });
    if let (Some(metadata), Some(namespace)) = (metadata.as_object_mut(), namespace) {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    json!({
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "BackendTrafficPolicy",
        "metadata": metadata,
        "spec": {
            "targetRefs": [{ "group": "gateway.networking.k8s.io", "kind": kind, "name": route }],
            "timeout": { "http": { "connectionIdleTimeout": DurationText(one.limit).to_string() } },
        },
    })
}

/// A name that Kubernetes takes (RFC 1123).
fn resource_name(of: &str) -> String {
    let plain = of.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' });
    let plain: String = plain.take(50).collect();
    format!("{}-idle-timeout", plain.trim_matches('-'))
}

/// The same for programs.
pub fn as_json(one: &Recommendation) -> Value {
    json!({
        "cluster": one.cluster,
        "destination": one.destination,
        "in_use_ms": if one.in_use == Duration::MAX { Value::Null } else { millis(one.in_use).into() },
        "is_lane": one.is_lane,
        "measured_ms": millis(one.measured),
        "idle_timeout_ms": millis(one.limit),
        "is_unsafe": one.is_unsafe(),
        "is_to_change": one.is_to_change(),
        "patch": if one.is_to_change() { json!({ "name": one.cluster }).as_object().map(|name| envoy(one, name)) } else { None },
    })
}

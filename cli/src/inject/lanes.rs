//! The lanes: which there are, and how a copy of a cluster becomes one.

use std::time::Duration;

use anyhow::{Context, Result};
use idleguard_core::time::{DurationText, parse_duration};
use serde_json::{Map, Value, json};

use super::{Destination, LANES, Request, find_cluster};
use crate::bootstrap::{self, CLUSTER_TYPES, HTTP_OPTIONS, duration_text, items, text};
use crate::document::{Document, spelling, yaml};
use crate::path::{Path, Step, spelled, walk};

pub(super) const COMMENT: &str =
    "# idleguard: the lanes of the cluster above, the same but for the name and the idle_timeout.";

/// The `idle_timeout`s that are asked for, the longest first. Where the far end's timeout is known, the longest is the limit that
/// follows from it, with the filter's own margin.
pub(super) fn choose(request: &Request) -> Vec<String> {
    let mut lanes: Vec<String> = match &request.lanes {
        Some(lanes) => lanes.clone(),
        None => {
            let known = request.lb_idle_timeout.as_deref().and_then(parse_duration);
            let limit = known.map(|timeout| idleguard_core::timeout::Margin::Share(0.1).limit(timeout));
            let below = |text: &&str| limit.is_none_or(|limit| parse_duration(text).is_some_and(|lane| lane < limit));
            let limit = limit.map(|limit| DurationText(limit).to_string());
            limit.into_iter().chain(LANES.into_iter().filter(|text| below(text)).map(str::to_owned)).collect()
        }
    };
    lanes.sort_by_key(|text| std::cmp::Reverse(parse_duration(text)));
    lanes
}

/// Puts in the clusters that are missing, behind the base.
pub(super) fn ensure(document: &mut Document, destination: &Destination) -> Result<()> {
    let mut is_first = true;
    for (at, lane) in destination.lanes.iter().enumerate() {
        if bootstrap::cluster(document.value(), &lane.cluster).is_some() {
            continue;
        }
        let (path, _) = find_cluster(document.value(), &destination.cluster)?;
        let base = path.get(document.raw()).context("no cluster")?;
        let copy = yaml(&copy(base, &lane.cluster, &duration_text(lane.idle_timeout)));
        let (list, Step::Index(index)) = path.split_last().context("no list")? else { continue };
        let place = if document.is_flow(&list) { *index } else { index + 1 + at };
        let lead = if is_first { format!("{COMMENT}\n") } else { String::new() };
        is_first = false;
        document.insert_item(&list, place, &format!("{lead}{copy}"))?;
    }
    Ok(())
}

/// The copy of a cluster that is its lane of this name and `idle_timeout`.
///
/// Beside these two it differs in what keeps it the same: the base's statistics, EDS service, and name in health checks.
pub fn copy(base: &Value, name: &str, idle_timeout: &str) -> Value {
    let base_name = text(base, "name").unwrap_or_default().to_owned();
    let canonical = spelling::canonical(base);
    let mut lane = Map::new();
    for (key, value) in base.as_object().into_iter().flatten() {
        if spelling::is_same(key, "name") {
            lane.insert(key.clone(), name.into());
            if canonical.get("alt_stat_name").is_none() {
                lane.insert("alt_stat_name".to_owned(), base_name.clone().into());
            }
        } else {
            lane.insert(key.clone(), value.clone());
        }
    }
    let mut lane = Value::Object(lane);
    if bootstrap::word(&canonical, "type", CLUSTER_TYPES) == Some("EDS") {
        let config = entry(&mut lane, "eds_cluster_config");
        if text(config, "service_name").is_none_or(str::is_empty) {
            *entry(config, "service_name") = base_name.clone().into();
        }
    }
    for at in 0..items(&canonical, "health_checks").len() {
        for (kind, key) in [("http_health_check", "host"), ("grpc_health_check", "authority")] {
            let check =
                Path::of("health_checks").then(at).then(kind).get_mut(&mut lane).filter(|check| check.is_object());
            if let Some(check) = check.filter(|check| text(check, key).is_none_or(str::is_empty)) {
                *entry(check, key) = base_name.clone().into(); // Envoy would say the lane's name
            }
        }
    }
    set_idle_timeout(&mut lane, idle_timeout);
    lane
}

const FORWARD_PROXY: &str = "clusters.dynamic_forward_proxy.v3.ClusterConfig";

/// Gives a cluster this `idle_timeout`.
pub fn set_idle_timeout(cluster: &mut Value, idle_timeout: &str) {
    let canonical = spelling::canonical(cluster);
    let common = bootstrap::common_options(&canonical);
    let has_none = bootstrap::http_options(&canonical).is_none() && common.0.len() > 1;
    if has_none {
        let options = entry(entry(cluster, "typed_extension_protocol_options"), HTTP_OPTIONS);
        *options = json!({
            "@type": format!("type.googleapis.com/{HTTP_OPTIONS}"),
            "common_http_protocol_options": { "idle_timeout": idle_timeout },
            "explicit_http_config": { "http_protocol_options": {} },
        });
        if bootstrap::is_type(canonical.get("cluster_type").unwrap_or(&Value::Null), FORWARD_PROXY) {
            // What Envoy gives such a cluster where it has no HTTP options, and wants in them where it has some.
            options["upstream_http_protocol_options"] = json!({ "auto_sni": true, "auto_san_validation": true });
        }
        return;
    }
    let mut place = cluster;
    for step in &common.then("idle_timeout").0 {
        if let Step::Key(key) = step {
            place = entry(place, key);
        }
    }
    *place = idle_timeout.into();
}

/// The value of a key, however it is spelled; both it and the mapping are made if they aren't there.
pub(super) fn entry<'a>(map: &'a mut Value, key: &str) -> &'a mut Value {
    if !map.is_object() {
        *map = json!({});
    }
    let key = spelled(map, key).unwrap_or(key).to_owned();
    &mut map[key.as_str()]
}

/// What a copy for each lane costs.
pub(super) fn tell_costs(root: &Value, cluster: &Value, destination: &Destination, notes: &mut Vec<String>) {
    let (base, count) = (&destination.cluster, destination.lanes.len());
    let times = count + 1;
    let checks = items(cluster, "health_checks").len();
    if checks > 0 {
        notes.push(format!("health checks: each lane checks every host of {base}, too: {times} times as many in all"));
    }
    if matches!(bootstrap::word(cluster, "type", CLUSTER_TYPES), Some("STRICT_DNS" | "LOGICAL_DNS"))
        || text(cluster, "cluster_type.name").is_some_and(|name| name.contains("dns"))
    {
        notes.push(format!("DNS: each lane looks up the names of {base} itself: {times} times as many look-ups"));
    }
    if cluster.get("outlier_detection").is_some() {
        notes.push(format!("outlier detection: each lane of {base} finds bad hosts itself, anew at a change of lane"));
    }
    let breakers =
        if items(cluster, "circuit_breakers.thresholds").is_empty() { "Envoy's defaults" } else { "those it has" };
    notes.push(format!(
        "circuit breakers: each lane of {base} counts for itself, with the same limits ({breakers}); traffic is on one at a time but \
         for a moment"
    ));
    let hcms = bootstrap::hcms(root);
    let routes = hcms.iter().flat_map(bootstrap::Hcm::routes).filter(|route| route.leads_to(base));
    if routes
        .map(|route| route.config)
        .any(|route| holds(route, &|_, value| bootstrap::is_message(value, "local_ratelimit.v3.LocalRateLimit")))
    {
        notes.push(format!("local_ratelimit of routes to {base}: each copy of a route has a bucket of its own"));
    }
    let by_name = |path: &Path, _: &Value| path.0.last() == Some(&"destination_cluster".into());
    if hcms.iter().any(|hcm| hcm.routes_to(base) == Some(true) && holds(hcm.config, &by_name)) {
        notes.push(format!(
            "rate limits by destination_cluster: a request on a lane of {base} says the lane's name; its descriptors must allow for that"
        ));
    }
}

fn holds(value: &Value, what: &dyn Fn(&Path, &Value) -> bool) -> bool {
    let mut found = false;
    walk(value, &mut |path, value| found |= what(path, value));
    found
}

/// Whether the two say the same duration.
pub(crate) fn is_duration(cluster: &Value, wanted: Duration) -> bool {
    // Envoy counts milliseconds.
    bootstrap::idle_timeout(cluster).is_some_and(|given| given.abs_diff(wanted) < Duration::from_millis(1))
}

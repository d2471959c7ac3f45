//! The lanes: what the plugin configuration says of them, and what the clusters and routes are.

use std::time::Duration;

use idleguard_core::time::DurationText;
use idleguard_core::timeout::{Lane, Policy};
use serde_json::Value;

use super::rules::{
    ALL_REQUESTS, CLIENT_CHOSEN_LANE, CLUSTER_HEADER_ROUTE, EDS_SERVICE_NAME, LANE_BELOW_CONNECT_TIMEOUT, LANE_DIFFERS,
    LANE_HEADER_KEPT, LANE_IDLE_TIMEOUT, LANE_ROUTE_DIFFERS, LANE_ROUTE_ORDER, MISSING_LANE_ROUTE, SHARED_POOL,
    UNKNOWN_DESTINATION,
};
use super::{Finding, Findings, HttpFilter, Setup, Surroundings, quoted};
use crate::bootstrap::{self, CLUSTER_TYPES, Hcm, Route, common_options, protobuf_duration, text};
use crate::inject::lanes::{copy, is_duration, set_idle_timeout};
use crate::inject::routes;
use crate::path::{Path, walk};

/// The first version of Envoy whose pool begins to count when the connection is there.
const COUNTS_CONNECTED: (u32, u32) = (1, 38);

pub(super) fn check(setup: &Setup<'_>, surroundings: Surroundings, findings: &mut Findings<'_>) {
    let mut seen: Vec<&str> = Vec::new();
    for filter in &setup.http_filters {
        for (name, policy) in &filter.config.destinations {
            names(setup, filter, policy, findings);
            if let Some(hcm) = filter.hcm {
                in_hcm(setup, filter, hcm, (name, policy), findings);
            }
            if !seen.contains(&policy.cluster.as_str()) {
                seen.push(&policy.cluster);
                clusters(setup, policy, surroundings, findings);
                shared(setup, policy, findings);
            }
        }
    }
}

fn names(setup: &Setup<'_>, filter: &HttpFilter<'_>, policy: &Policy, findings: &mut Findings<'_>) {
    if filter.hcm.is_none() || setup.has_dynamic("cds_config") {
        return;
    }
    for name in policy.clusters().filter(|name| bootstrap::cluster(setup.root, name).is_none()) {
        let path = filter.plugin.path.keys("config.configuration");
        findings.add(&UNKNOWN_DESTINATION, &path, format!("there is no cluster {name:?}"));
    }
}

/// The base and its lanes, as clusters.
fn clusters(setup: &Setup<'_>, policy: &Policy, surroundings: Surroundings, findings: &mut Findings<'_>) {
    let Some((path, base)) = bootstrap::cluster(setup.root, &policy.cluster) else { return };
    let at = |path: &Path, cluster: &Value| path.join(&common_options(cluster).then("idle_timeout"));
    // A week is the most that the plugin configuration can say.
    let week = Duration::from_secs(7 * 24 * 3600);
    let is_above = policy.idle_timeout == week && bootstrap::idle_timeout(base).is_some_and(|given| given > week);
    if !is_above && !is_duration(base, policy.idle_timeout) {
        let what = differing(&policy.cluster, base, policy.idle_timeout);
        findings.add(&LANE_IDLE_TIMEOUT, &at(&path, base), what);
    }
    let connect_timeout = text(base, "connect_timeout").and_then(protobuf_duration).unwrap_or(Duration::from_secs(5));
    for Lane { cluster: name, idle_timeout, .. } in &policy.lanes {
        let Some((path, lane)) = bootstrap::cluster(setup.root, name) else { continue };
        if !is_duration(lane, *idle_timeout) {
            findings.add(&LANE_IDLE_TIMEOUT, &at(&path, lane), differing(name, lane, *idle_timeout));
        }
        if surroundings.envoy.is_some_and(|version| version < COUNTS_CONNECTED) && *idle_timeout < connect_timeout {
            let what = format!(
                "{name:?} has an idle_timeout of {}, below the connect_timeout of {}",
                DurationText(*idle_timeout),
                DurationText(connect_timeout)
            );
            findings.add(&LANE_BELOW_CONNECT_TIMEOUT, &at(&path, lane), what);
        }
        let service = |cluster: &Value| {
            let own = text(cluster, "eds_cluster_config.service_name").filter(|name| !name.is_empty());
            own.or(text(cluster, "name")).map(str::to_owned)
        };
        let is_eds = bootstrap::word(base, "type", CLUSTER_TYPES) == Some("EDS");
        if is_eds && service(base) != service(lane) {
            let what = format!(
                "{name:?} asks EDS for {:?}, and {:?} for {:?}",
                service(lane).unwrap_or_default(),
                policy.cluster,
                service(base).unwrap_or_default()
            );
            findings.add(&EDS_SERVICE_NAME, &path, what);
        }
        let keys = differing_keys(base, lane, name);
        if !keys.is_empty() {
            let what = format!("{name:?} differs from {:?} in {}", policy.cluster, keys.join(", "));
            findings.add(&LANE_DIFFERS, &path, what);
        }
    }
}

fn differing(name: &str, cluster: &Value, said: Duration) -> String {
    let given = match common_options(cluster).then("idle_timeout").get(cluster) {
        None => "1 h, Envoy's default".to_owned(),
        Some(given) => given.as_str().map_or_else(|| given.to_string(), str::to_owned),
    };
    let said = if said == Duration::MAX { "0s".to_owned() } else { DurationText(said).to_string() };
    format!("{name:?} has an idle_timeout of {given}, and the plugin configuration says {said}")
}

/// The keys in which a lane is something else than the base's copy.
fn differing_keys(base: &Value, lane: &Value, name: &str) -> Vec<String> {
    let own = common_options(lane).then("idle_timeout");
    let given = own.get(lane).and_then(Value::as_str).unwrap_or("1s").to_owned();
    let mut expected = copy(base, name, &given);
    let mut actual = lane.clone();
    set_idle_timeout(&mut actual, &given);
    for cluster in [&mut expected, &mut actual] {
        if let Some(Value::Object(assignment)) = cluster.get_mut("load_assignment") {
            assignment.remove("cluster_name");
        }
        if let Some(Value::Object(eds)) = cluster.get_mut("eds_cluster_config") {
            eds.remove("service_name"); // a rule of its own
        }
    }
    let (Value::Object(expected), Value::Object(actual)) = (&expected, &actual) else { return Vec::new() };
    let mut keys: Vec<String> =
        expected.iter().filter(|(key, value)| actual.get(*key) != Some(*value)).map(|(key, _)| key.clone()).collect();
    keys.extend(actual.keys().filter(|key| !expected.contains_key(*key)).cloned());
    keys
}

/// The routes of the connection manager that a filter is in.
fn in_hcm(
    setup: &Setup<'_>,
    filter: &HttpFilter<'_>,
    hcm: &Hcm<'_>,
    (name, policy): (&str, &Policy),
    findings: &mut Findings<'_>,
) {
    let all = hcm.routes();
    let names: Vec<&str> = policy.clusters().collect();
    if policy.all_requests {
        all_requests(filter, hcm, &all, &names, findings);
    }
    if policy.lanes.is_empty() {
        return;
    }
    for route in all.iter().filter(|route| route.token().is_none() && route.leads_to(&policy.cluster)) {
        copies(&all, route, policy, findings);
    }
    for path in hcm.lone_routes(setup.root, &policy.cluster) {
        let what = format!("this route is a matcher's only one, so none beside it leads to a lane of {name:?}");
        findings.add(&MISSING_LANE_ROUTE, &path, what);
    }
    for route in all
        .iter()
        .filter(|route| route.token().is_some_and(|token| policy.lanes.iter().any(|lane| lane.token == token)))
    {
        let is_removed =
            [route.config, route.virtual_host, route.configuration].into_iter().any(bootstrap::removes_lane_header);
        if !is_removed {
            let what = format!("the route to a lane of {name:?} does not remove {}", bootstrap::LANE_HEADER);
            findings.add(&LANE_HEADER_KEPT, &route.path, what);
        }
    }
    let leads = all.iter().any(|route| route.leads_to(&policy.cluster));
    if leads && !bootstrap::removes_early(hcm.config) {
        let what =
            format!("clients can choose a lane of {name:?} with a header {} of their own", bootstrap::LANE_HEADER);
        findings.add(&CLIENT_CHOSEN_LANE, &hcm.path, what);
    }
    by_header(hcm, findings);
}

fn all_requests(
    filter: &HttpFilter<'_>,
    hcm: &Hcm<'_>,
    all: &[Route<'_>],
    names: &[&str],
    findings: &mut Findings<'_>,
) {
    if hcm.leads_only_to(names) || hcm.config.get("rds").is_some() {
        return; // or the routes are not in the file
    }
    let others: Vec<&str> = all.iter().flat_map(|route| route.clusters()).filter(|one| !names.contains(one)).collect();
    let what = match others.as_slice() {
        [] => "all_requests is true, but some routes lead where only a request can tell".to_owned(),
        others => format!("all_requests is true, but routes lead to {}, too", quoted(others)),
    };
    findings.add(&ALL_REQUESTS, &filter.plugin.path.keys("config.configuration"), what);
}

/// The copies of one of the base's routes.
fn copies(all: &[Route<'_>], route: &Route<'_>, policy: &Policy, findings: &mut Findings<'_>) {
    for lane in &policy.lanes {
        let wanted = routes::copy(route.config, &policy.cluster, &lane.cluster, &lane.token);
        let found = routes::siblings(all, route)
            .find(|other| routes::is_same_match(other.config, &wanted) && other.leads_to(&lane.cluster));
        let Some(found) = found else {
            let what = format!("no copy of this route leads to the lane {:?} ({})", lane.cluster, lane.token);
            findings.add(&MISSING_LANE_ROUTE, &route.path, what);
            continue;
        };
        if found.path > route.path {
            let what = format!("the route to {:?} stands behind that to {:?}", lane.cluster, policy.cluster);
            findings.add(&LANE_ROUTE_ORDER, &found.path, what);
        }
        let keys: Vec<&str> = differing_fields(&wanted, found.config);
        if !keys.is_empty() {
            let what = format!(
                "the route to {:?} differs from that to {:?} in {}",
                lane.cluster,
                policy.cluster,
                keys.join(", ")
            );
            findings.add(&LANE_ROUTE_DIFFERS, &found.path, what);
        }
    }
}

fn differing_fields<'a>(wanted: &'a Value, found: &'a Value) -> Vec<&'a str> {
    let (Value::Object(wanted), Value::Object(found)) = (wanted, found) else { return Vec::new() };
    let is_told = |key: &str| !["match", "name", "request_headers_to_remove"].contains(&key);
    let differs = |key: &&String| is_told(key) && wanted.get(*key) != found.get(*key);
    let both = wanted.keys().chain(found.keys().filter(|key| !wanted.contains_key(*key)));
    both.filter(differs).map(String::as_str).collect()
}

/// Routes whose cluster a header names.
fn by_header(hcm: &Hcm<'_>, findings: &mut Findings<'_>) {
    walk(hcm.config, &mut |below, value| {
        let path = hcm.path.join(below);
        let is_known = |finding: &Finding| finding.id == CLUSTER_HEADER_ROUTE.id && finding.path == path.to_string();
        // Several destinations have one connection manager.
        if bootstrap::is_cluster_header(below) && !findings.list.iter().any(is_known) {
            let what = format!("the cluster of this route is what the header {value} says");
            findings.add(&CLUSTER_HEADER_ROUTE, &path, what);
        }
    });
}

/// Users of the pool that the filter does not see.
fn shared(setup: &Setup<'_>, policy: &Policy, findings: &mut Findings<'_>) {
    for cluster in policy.clusters() {
        for reference in bootstrap::references(setup.root, cluster).into_iter().filter(|reference| !reference.is_route)
        {
            let keys = reference.path.to_string();
            let is_ours = setup.plugins.iter().any(|plugin| reference.path.is_within(&plugin.path));
            let holder = reference.path.split_last().map(|(holder, _)| holder).unwrap_or_default();
            // TCP has a pool of its own.
            let is_tcp =
                holder.get(setup.root).is_some_and(|config| bootstrap::is_message(config, bootstrap::TCP_PROXY));
            if !is_ours && !is_tcp && !keys.contains("local_cluster_name") {
                let what = format!("{cluster:?} is used by more than the routes that idleguard sees");
                findings.add(&SHARED_POOL, &reference.path, what);
            }
        }
    }
}

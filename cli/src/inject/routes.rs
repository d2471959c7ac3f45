//! The routes: a copy for each lane, before the base's own, behind a header match.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::lanes::entry;
use super::{Destination, append, filters};
use crate::bootstrap::{self, LANE_HEADER, Route, hcms, items};
use crate::document::{Document, Spot, spelling, yaml};
use crate::path::{Path, Step};

pub(super) const COMMENT: &str = "# idleguard: a copy of the route below for each lane; the header chooses.";
pub(super) const RETRY_COMMENT: &str =
    "# idleguard: what a reset cut off is sent once more, if its method allows that.";
pub(super) const REMOVE_COMMENT: &str = "# idleguard: the application never sees the header that chooses a lane.";

/// # Errors
/// If no route in the file leads to the cluster.
pub(super) fn is_possible(root: &Value, base: &str) -> Result<()> {
    let all = hcms(root);
    if all.iter().any(|hcm| hcm.routes_to(base) == Some(true)) {
        return Ok(());
    }
    let mut lone = all.iter().flat_map(|hcm| hcm.lone_routes(root, base));
    if let Some(path) = lone.next() {
        bail!("the route at {path} is a matcher's only one: make it a RouteList, so that its copies have a place");
    }
    let elsewhere = all.iter().any(|hcm| hcm.routes_to(base).is_none());
    let hint = if elsewhere {
        "; routes that come by RDS get their copies there (docs/cli.md), and those whose cluster a header or an extension names have none"
    } else {
        ""
    };
    bail!("no HTTP route in this file leads to {base}{hint}")
}

/// Puts in the copies that are missing, and has the header removed.
pub(super) fn ensure(document: &mut Document, destination: &Destination, notes: &mut Vec<String>) -> Result<()> {
    let mut last = None;
    while let Some((place, copy)) = missing(document, destination) {
        let (list, Step::Index(index)) = place.split_last().context("no list")? else { bail!("no list") };
        // One comment for the copies of a route, above the first.
        let next_to = index.checked_sub(1).map(|before| list.then(before));
        let lead = if last.is_some() && last == next_to { String::new() } else { format!("{COMMENT}\n") };
        document.insert_item(&list, *index, &format!("{lead}{}", yaml(&copy)))?;
        last = Some(place);
    }
    while let Some(path) = keeping(document, destination) {
        let list = path.then("request_headers_to_remove");
        append(document, &list, Spot::Before("virtual_hosts"), REMOVE_COMMENT, LANE_HEADER)?;
    }
    for hcm in hcms(document.value()) {
        if hcm.routes_to(&destination.cluster).is_none() {
            notes.push(format!("{}: its routes are not in this file; they get their copies at their source", hcm.path));
        }
        let lone = hcm.lone_routes(document.value(), &destination.cluster).into_iter();
        notes.extend(lone.map(|path| {
            format!("{path}: a matcher's only route, which has no copies; they would have a place in a RouteList")
        }));
    }
    filters::ensure_early_removal(document, destination)
}

/// A route configuration that leads to the destination, and does not remove the header.
fn keeping(document: &Document, destination: &Destination) -> Option<Path> {
    hcms(document.value()).iter().find_map(|hcm| {
        let routes = hcm.routes();
        let leads =
            |path: &Path| routes.iter().any(|route| route.leads_to(&destination.cluster) && route.path.is_within(path));
        let mut all = hcm.route_configurations().into_iter();
        all.find(|(path, one)| leads(path) && !bootstrap::removes_lane_header(one)).map(|(path, _)| path)
    })
}

/// The first copy that is missing, and where it goes.
fn missing(document: &Document, destination: &Destination) -> Option<(Path, Value)> {
    for hcm in hcms(document.value()) {
        let routes = hcm.routes();
        for route in routes.iter().filter(|route| route.token().is_none() && route.leads_to(&destination.cluster)) {
            for lane in &destination.lanes {
                let token = lane.token(&destination.name);
                let wanted = copy(route.config, &destination.cluster, &lane.cluster, &token);
                if !siblings(&routes, route).any(|other| is_same_match(other.config, &wanted)) {
                    let raw = route.path.get(document.raw())?;
                    return Some((route.path.clone(), copy(raw, &destination.cluster, &lane.cluster, &token)));
                }
            }
        }
    }
    None
}

/// The routes of the same virtual host.
pub(crate) fn siblings<'a, 'b>(routes: &'b [Route<'a>], route: &Route<'a>) -> impl Iterator<Item = &'b Route<'a>> {
    let host = route.path.split_last().map(|(list, _)| list);
    routes.iter().filter(move |other| other.path.split_last().map(|(list, _)| list) == host)
}

/// The copy of a route that leads to a lane: everything else that stands in it stays, the other weighted clusters included.
pub fn copy(route: &Value, base: &str, lane: &str, token: &str) -> Value {
    let mut copy = route.clone();
    push(
        entry(entry(&mut copy, "match"), "headers"),
        json!({ "name": LANE_HEADER, "string_match": { "exact": token } }),
    );
    let action = entry(&mut copy, "route");
    if bootstrap::text(action, "cluster") == Some(base) {
        *entry(action, "cluster") = lane.into();
    }
    let weighted = Path::of("weighted_clusters.clusters").get_mut(action);
    let weighted: Vec<&mut Value> = match weighted {
        Some(Value::Array(items)) => items.iter_mut().collect(),
        Some(one) => vec![one],
        None => Vec::new(),
    };
    for cluster in weighted {
        if bootstrap::text(cluster, "name") == Some(base) {
            *entry(cluster, "name") = lane.into();
        }
    }
    if !bootstrap::removes_lane_header(&spelling::canonical(&copy)) {
        push(entry(&mut copy, "request_headers_to_remove"), LANE_HEADER.into());
    }
    copy
}

/// Whether two routes match the same requests, as far as spelling goes: the case of headers' names, their order, and the older
/// way to write an exact match.
pub(crate) fn is_same_match(one: &Value, other: &Value) -> bool {
    let normal = |route: &Value| {
        let mut rule = route.get("match").cloned().unwrap_or_default();
        if let Some(Value::Array(headers)) = rule.get_mut("headers") {
            for header in headers.iter_mut().filter_map(Value::as_object_mut) {
                if let Some(name) = header.get("name").and_then(Value::as_str).map(str::to_ascii_lowercase) {
                    header.insert("name".to_owned(), name.into());
                }
                if let Some(exact) = header.remove("exact_match") {
                    header.insert("string_match".to_owned(), json!({ "exact": exact }));
                }
            }
            headers.sort_by_key(Value::to_string);
        }
        rule
    };
    normal(one) == normal(other)
}

/// Adds to a list, which may not be there, or be written as its one item.
fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        Value::Null => *list = json!([item]),
        one => *one = json!([one.take(), item]),
    }
}

/// Envoy's own way to repeat a request that met a connection which the far end had dropped.
pub(super) fn retry_policy() -> Value {
    json!({
        "retry_on": "reset",
        "num_retries": 1,
        "retriable_request_headers": [
            { "name": ":method", "string_match": { "safe_regex": { "regex": "GET|HEAD|OPTIONS|TRACE|PUT|DELETE" } } }
        ]
    })
}

/// Puts the retry policy into every route to the destination that has none.
pub(super) fn ensure_retries(
    document: &mut Document,
    destination: &Destination,
    notes: &mut Vec<String>,
) -> Result<()> {
    let mut done = 0_usize;
    while let Some(path) = without_retries(document, destination) {
        let snippet = format!("{RETRY_COMMENT}\n{}", yaml(&retry_policy()));
        document.insert_key(&path.then("route"), "retry_policy", Spot::End, &snippet)?;
        done += 1;
    }
    let breakers = find_thresholds(document.value(), &destination.cluster);
    if done > 0 && !breakers.iter().any(|threshold| threshold.get("max_retries").is_some()) {
        notes.push(format!(
            "retries: Envoy allows 3 at a time for {}; after a burst more are needed: circuit_breakers, max_retries",
            destination.cluster
        ));
    }
    Ok(())
}

fn find_thresholds<'a>(root: &'a Value, cluster: &str) -> &'a [Value] {
    bootstrap::cluster(root, cluster).map_or(&[], |(_, cluster)| items(cluster, "circuit_breakers.thresholds"))
}

fn without_retries(document: &Document, destination: &Destination) -> Option<Path> {
    let lanes = destination.lanes.iter().map(|lane| &lane.cluster);
    let clusters: Vec<&String> = std::iter::once(&destination.cluster).chain(lanes).collect();
    let all = hcms(document.value());
    let mut routes = all.iter().flat_map(bootstrap::Hcm::routes);
    let without = routes.find(|route| {
        let has_one = route.virtual_host.get("retry_policy").is_some()
            || Path::of("route.retry_policy").get(route.config).is_some()
            || Path::of("route.retry_policy_typed_config").get(route.config).is_some();
        !has_one && clusters.iter().any(|cluster| route.leads_to(cluster))
    })?;
    Some(without.path)
}

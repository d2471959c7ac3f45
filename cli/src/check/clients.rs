//! The side of the clients, and clusters without idleguard.

use std::time::Duration;

use serde_json::Value;

use super::rules::{
    ADDED_CLIENT_HEADER, APPENDED_FORWARDED_FOR, FAILS_OPEN, FRONT_LB_IDLE_TIMEOUT, IDLE_TIMEOUT_DEFAULT,
    INTERNAL_ADDRESS, UNRECORDED_PEER,
};
use super::{Findings, HttpFilter, Setup, Surroundings};
use crate::bootstrap::{
    self, FAILURE_POLICIES, Hcm, clusters, common_options, is_type, items, protobuf_duration, text,
};
use crate::inject::records;
use crate::path::walk;

pub(super) fn check(setup: &Setup<'_>, surroundings: Surroundings, findings: &mut Findings<'_>) {
    for filter in setup.http_filters.iter().filter(|filter| filter.config.client_ip.is_some()) {
        fails_open(filter, findings);
        if let Some(hcm) = filter.hcm {
            recorded_peer(setup, filter, hcm, findings);
            appended(hcm, findings);
            added(filter, hcm, findings);
            internal(hcm, findings);
        }
    }
    if let Some(front) = surroundings.front_lb_idle_timeout {
        front_lb(setup, front, findings);
    }
    unguarded_clusters(setup, findings);
}

fn recorded_peer(setup: &Setup<'_>, filter: &HttpFilter<'_>, hcm: &Hcm<'_>, findings: &mut Findings<'_>) {
    let Some(client_ip) = &filter.config.client_ip else { return };
    let uses_remote_address = hcm.config.get("use_remote_address") == Some(&Value::Bool(true));
    let key = client_ip.peer_filter_state();
    let is_recorded = hcm.filters.get(setup.root).is_some_and(|chain| records(chain, hcm.index, key));
    if !is_recorded && !uses_remote_address {
        let what = format!(
            "client_ip is configured, but no filter before this connection manager records the peer as {key:?}"
        );
        findings.add(&UNRECORDED_PEER, &hcm.path, what);
    }
}

/// Ways in which Envoy adds to `x-forwarded-for` before any filter runs.
fn appended(hcm: &Hcm<'_>, findings: &mut Findings<'_>) {
    let skips = hcm.config.get("skip_xff_append") == Some(&Value::Bool(true));
    if hcm.config.get("use_remote_address") == Some(&Value::Bool(true)) {
        if !skips {
            let what = "use_remote_address is true, and skip_xff_append is not".to_owned();
            findings.add(&APPENDED_FORWARDED_FOR, &hcm.path.then("use_remote_address"), what);
        }
        return; // Envoy asks no extension then
    }
    for (at, extension) in items(hcm.config, "original_ip_detection_extensions").iter().enumerate() {
        let fields = bootstrap::fields(extension);
        if is_type(extension, "xff.v3.XffConfig") && fields.get("skip_xff_append") == Some(&Value::Bool(false)) {
            let path = hcm.path.then("original_ip_detection_extensions").then(at);
            let what = "this detection of the client's address adds the peer to x-forwarded-for".to_owned();
            findings.add(&APPENDED_FORWARDED_FOR, &path, what);
        }
    }
}

/// Headers that Envoy adds behind the filter, under a name that the filter protects.
fn added(filter: &HttpFilter<'_>, hcm: &Hcm<'_>, findings: &mut Findings<'_>) {
    let Some(client_ip) = &filter.config.client_ip else { return };
    walk(hcm.config, &mut |below, value| {
        if !below.0.iter().any(|step| *step == "request_headers_to_add".into()) {
            return;
        }
        if let Some(name) = text(value, "header.key")
            && client_ip.protects(name.as_bytes())
        {
            let what = format!("{name:?} is added to requests behind idleguard, which writes or removes it");
            findings.add(&ADDED_CLIENT_HEADER, &hcm.path.join(below), what);
        }
    });
}

fn internal(hcm: &Hcm<'_>, findings: &mut Findings<'_>) {
    let uses_remote_address = hcm.config.get("use_remote_address") == Some(&Value::Bool(true));
    if !uses_remote_address && hcm.config.get("internal_address_config").is_some() {
        let what = "internal_address_config is there, and use_remote_address is not true".to_owned();
        findings.add(&INTERNAL_ADDRESS, &hcm.path.then("internal_address_config"), what);
    }
}

fn fails_open(filter: &HttpFilter<'_>, findings: &mut Findings<'_>) {
    let plugin = filter.plugin.plugin;
    let is_open = bootstrap::word(plugin, "failure_policy", FAILURE_POLICIES) == Some("FAIL_OPEN");
    if is_open || plugin.get("fail_open") == Some(&Value::Bool(true)) {
        let key = if is_open { "failure_policy" } else { "fail_open" };
        let what = "client_ip is configured, but the filter lets requests pass when it fails".to_owned();
        findings.add(&FAILS_OPEN, &filter.plugin.path.then("config").then(key), what);
    }
}

fn front_lb(setup: &Setup<'_>, front: Duration, findings: &mut Findings<'_>) {
    for hcm in setup.hcms {
        let given = text(hcm.config, "common_http_protocol_options.idle_timeout");
        let timeout = given.map_or(Some(Duration::from_secs(3600)), protobuf_duration);
        // Zero switches it off. What can't be read is for Envoy to refuse.
        if timeout.is_some_and(|timeout| !timeout.is_zero() && timeout <= front) {
            let what = format!(
                "clients' connections are closed after {} idle, but the load balancer in front keeps them for {} s",
                given.unwrap_or("1 h (the default)"),
                front.as_secs_f64(),
            );
            findings.add(&FRONT_LB_IDLE_TIMEOUT, &hcm.path.keys("common_http_protocol_options.idle_timeout"), what);
        }
    }
}

/// Clusters with keep-alive, Envoy's default idle timeout or none at all, and no lanes.
fn unguarded_clusters(setup: &Setup<'_>, findings: &mut Findings<'_>) {
    for (at, cluster) in clusters(setup.root).iter().enumerate() {
        let name = text(cluster, "name").unwrap_or_default();
        // What a filter that is refused says is not known.
        let leads = |hcm: &&Hcm<'_>| hcm.routes().iter().any(|route| route.leads_to(name));
        let is_routed = setup.hcms.iter().filter(leads).any(|hcm| !setup.has_refused(&hcm.path));
        let is_known = setup.http_filters.iter().any(|filter| filter.knows(name));
        if is_known || bootstrap::internal_listener_of(cluster).is_some() || !is_routed {
            continue;
        }
        let path = bootstrap::resources("clusters").then(at);
        let options = common_options(cluster);
        let once = |options: Option<&Value>| {
            options.and_then(|options| options.get("max_requests_per_connection")) == Some(&Value::from(1))
        };
        if once(options.get(cluster)) || once(Some(cluster)) {
            continue;
        }
        let timeout = options.then("idle_timeout");
        let kept = match bootstrap::idle_timeout(cluster) {
            Some(Duration::MAX) => "for ever: its idle_timeout is 0s, which switches it off",
            _ if timeout.get(cluster).is_none() => "for 1 h, Envoy's default",
            _ => continue,
        };
        let what = format!("the cluster {name:?} keeps idle connections {kept}, and has no lanes");
        findings.add(&IDLE_TIMEOUT_DEFAULT, &path, what);
    }
}

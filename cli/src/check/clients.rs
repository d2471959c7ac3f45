//! The side of the clients, and clusters without idleguard.

use std::time::Duration;

use serde_json::Value;

use super::rules::{APPENDED_FORWARDED_FOR, FAILS_OPEN, FRONT_LB_IDLE_TIMEOUT, IDLE_TIMEOUT_DEFAULT, UNRECORDED_PEER};
use super::{Findings, Setup, Surroundings};
use crate::bootstrap::{self, HTTP_OPTIONS, items, text};
use crate::inject::records;

pub(super) fn check(setup: &Setup<'_>, surroundings: Surroundings, findings: &mut Findings<'_>) {
    recorded_peer(setup, findings);
    fails_open(setup, findings);
    if let Some(front) = surroundings.front_lb_idle_timeout {
        front_lb(setup, front, findings);
    }
    unguarded_clusters(setup, findings);
}

fn recorded_peer(setup: &Setup<'_>, findings: &mut Findings<'_>) {
    for filter in &setup.http_filters {
        let (Some(client_ip), Some(hcm)) = (&filter.config.client_ip, filter.hcm) else { continue };
        let uses_remote_address = hcm.config.get("use_remote_address") == Some(&Value::Bool(true));
        let key = client_ip.peer_filter_state();
        let is_recorded = hcm.filters.get(setup.root).is_some_and(|chain| records(chain, hcm.index, key));
        if !is_recorded && !uses_remote_address {
            let what = format!(
                "client_ip is configured, but no filter before this connection manager records the peer as {key:?}"
            );
            findings.add(&UNRECORDED_PEER, &hcm.path, what);
        }
        if uses_remote_address && hcm.config.get("skip_xff_append") != Some(&Value::Bool(true)) {
            let what = "use_remote_address is true, and skip_xff_append is not".to_owned();
            findings.add(&APPENDED_FORWARDED_FOR, &hcm.path.then("use_remote_address"), what);
        }
    }
}

fn fails_open(setup: &Setup<'_>, findings: &mut Findings<'_>) {
    for filter in setup.http_filters.iter().filter(|filter| filter.config.client_ip.is_some()) {
        let plugin = filter.plugin.plugin;
        let is_open = bootstrap::word(plugin, "failure_policy").is_some_and(|policy| policy == "FAIL_OPEN");
        if is_open || plugin.get("fail_open") == Some(&Value::Bool(true)) {
            let key = if is_open { "failure_policy" } else { "fail_open" };
            let what = "client_ip is configured, but the filter lets requests pass when it fails".to_owned();
            findings.add(&FAILS_OPEN, &filter.plugin.path.then("config").then(key), what);
        }
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

/// A duration in protobuf's JSON: `"3600s"`, `"0.5s"`.
fn protobuf_duration(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.strip_suffix('s')?.parse().ok()?).ok()
}

/// Clusters with keep-alive, Envoy's default idle timeout, and no idleguard.
fn unguarded_clusters(setup: &Setup<'_>, findings: &mut Findings<'_>) {
    for (at, cluster) in items(setup.root, "static_resources.clusters").iter().enumerate() {
        let name = text(cluster, "name").unwrap_or_default();
        let is_routed = || bootstrap::references(setup.root, name).iter().any(|reference| reference.is_route);
        let is_seen = setup.is_guarded(name) || setup.http_filters.iter().any(|filter| filter.policy(name).is_some());
        if is_seen || bootstrap::internal_listener_of(cluster).is_some() || !is_routed() {
            continue;
        }
        let options = cluster.pointer(&format!("/typed_extension_protocol_options/{HTTP_OPTIONS}"));
        let common = [options, Some(cluster)]
            .map(|options| options.and_then(|options| options.get("common_http_protocol_options")));
        let is_set = |key: &str| common.iter().flatten().any(|options| options.get(key).is_some());
        let once = |options: &Value| options.get("max_requests_per_connection") == Some(&Value::from(1));
        if !is_set("idle_timeout") && !common.iter().flatten().any(|options| once(options)) && !once(cluster) {
            let what = format!(
                "the cluster {name:?} keeps idle connections for 1 h, Envoy's default, and nothing guards them"
            );
            findings.add(&IDLE_TIMEOUT_DEFAULT, &bootstrap::resources("clusters").then(at), what);
        }
    }
}

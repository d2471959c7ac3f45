//! The filters, and what ties them together.

use idleguard::config::Config;
use serde_json::Value;

use super::rules::{
    CONFIGURATION_WARNING, DIFFERENT_VMS, DIFFERING_POLICIES, FENCE_ON_TLS, INVALID_CONFIGURATION,
    MISSING_BOOTSTRAP_EXTENSION, NOT_LAST_FILTER, TCP_PROXY_IDLE_TIMEOUT, UNFILTERED_ROUTE, UNGUARDED_DESTINATION,
    UNKNOWN_DESTINATION,
};
use super::{Findings, Guard, HttpFilter, Setup};
use crate::bootstrap::{self, HTTP_SET_FILTER_STATE, TCP_PROXY, is_type, items, text};
use crate::path::{Path, Step};

pub(super) fn check(setup: &Setup<'_>, findings: &mut Findings<'_>) {
    configurations(setup, findings);
    for guard in &setup.guards {
        same_vm(setup, guard, findings);
        destination(setup, guard, findings);
        tcp_proxy(setup, guard, findings);
        if let Some((path, cluster)) = bootstrap::cluster(setup.root, &guard.config.destination)
            && bootstrap::does_tls(cluster)
        {
            let what = format!("the guarded cluster {:?} does TLS itself", guard.config.destination);
            findings.add(&FENCE_ON_TLS, &path.then("transport_socket"), what);
        }
    }
    for filter in &setup.http_filters {
        policies(setup, filter, findings);
        last(filter, findings);
    }
    bootstrap_extension(setup, findings);
}

fn configurations(setup: &Setup<'_>, findings: &mut Findings<'_>) {
    for plugin in setup.plugins {
        let path = plugin.path.keys("config.configuration");
        let kind = if plugin.is_http { "an HTTP filter" } else { "a network filter" };
        match &plugin.checked {
            Err(error) => findings.add(&INVALID_CONFIGURATION, &path, error.to_string()),
            Ok(checked) if matches!(checked.config, Config::Http(_)) != plugin.is_http => {
                let what = format!("\"filter\" does not fit: this is {kind}");
                findings.add(&INVALID_CONFIGURATION, &path, what);
            }
            Ok(checked) => {
                for warning in &checked.warnings {
                    findings.add(&CONFIGURATION_WARNING, &path, warning.clone());
                }
            }
        }
    }
}

fn same_vm(setup: &Setup<'_>, guard: &Guard<'_>, findings: &mut Findings<'_>) {
    let name = &guard.config.destination;
    let mut partners = setup.http_filters.iter().filter(|filter| filter.policy(name).is_some()).peekable();
    if partners.peek().is_some() && partners.all(|partner| partner.plugin.vm() != guard.plugin.vm()) {
        let what = format!("the connection filter of {name:?} and its HTTP filter run in different VMs");
        findings.add(&DIFFERENT_VMS, &guard.plugin.path.keys("config.vm_config"), what);
    }
}

/// The name in a connection filter, and the routes to the cluster before it.
fn destination(setup: &Setup<'_>, guard: &Guard<'_>, findings: &mut Findings<'_>) {
    let Some(listener) = guard.listener else { return }; // plain TCP: the name is for the metrics alone
    let name = guard.config.destination.as_str();
    let path = guard.plugin.path.keys("config.configuration");
    let clusters = setup.clusters_before(listener);
    if !clusters.is_empty() && !clusters.contains(&name) {
        let what = format!(
            "the destination {name:?} is not the cluster that leads to {listener:?}, which is {}",
            quoted(&clusters)
        );
        findings.add(&UNKNOWN_DESTINATION, &path, what);
        return;
    }
    for hcm in setup.hcms {
        let routes = clusters.iter().any(|cluster| hcm.routes_to(setup.root, cluster) == Some(true));
        let mut own = setup.http_filters.iter().filter(|filter| filter.plugin.path.is_within(&hcm.path));
        let is_hidden = hcm.has_discovered_filter() || setup.has_refused(&hcm.path);
        if routes && !is_hidden && !own.any(|filter| filter.policy(name).is_some()) {
            let what = format!(
                "a route leads to {name:?}, whose connections are guarded, but no HTTP filter here has a policy for it"
            );
            findings.add(&UNFILTERED_ROUTE, &hcm.path, what);
        }
    }
}

fn tcp_proxy(setup: &Setup<'_>, guard: &Guard<'_>, findings: &mut Findings<'_>) {
    let Some(listener) = guard.listener else { return };
    for (path, config) in bootstrap::filters_of(setup.root, listener) {
        if bootstrap::is_message(&config, TCP_PROXY) && text(&config, "idle_timeout") != Some("0s") {
            let given = text(&config, "idle_timeout").unwrap_or("1 h by default");
            findings.add(&TCP_PROXY_IDLE_TIMEOUT, &path, format!("the idle timeout of tcp_proxy is {given}"));
        }
    }
}

/// The names in an HTTP filter.
fn policies(setup: &Setup<'_>, filter: &HttpFilter<'_>, findings: &mut Findings<'_>) {
    let path = filter.plugin.path.keys("config.configuration");
    let mut named: Vec<&str> = filter.config.destinations.iter().map(|(name, _)| name.as_str()).collect();
    if let (Some(_), Some(hcm)) = (&filter.config.any_destination, filter.hcm) {
        let all = items(setup.root, "static_resources.clusters").iter().filter_map(|cluster| text(cluster, "name"));
        let routed: Vec<&str> = all.filter(|name| hcm.routes_to(setup.root, name) == Some(true)).collect();
        named.extend(routed.into_iter().filter(|name| !filter.config.destinations.iter().any(|(own, _)| own == name)));
    }
    for name in named {
        let Some((_, cluster)) = bootstrap::cluster(setup.root, name) else {
            if filter.hcm.is_some() && !setup.has_dynamic("cds_config") && !setup.has_dynamic("ads_config") {
                findings.add(&UNKNOWN_DESTINATION, &path, format!("there is no cluster {name:?}"));
            }
            continue;
        };
        if !setup.is_guarded(name) {
            let listener = bootstrap::internal_listener_of(cluster);
            let guard = listener.and_then(|listener| bootstrap::listener(setup.root, listener));
            let is_hidden = guard.is_some_and(|(path, _)| setup.has_refused(&path)) || setup.has_dynamic("lds_config");
            if filter.hcm.is_some() && !divides_pool(filter) && !is_hidden {
                findings.add(&UNGUARDED_DESTINATION, &path, format!("nothing guards the connections of {name:?}"));
            }
        } else {
            for guard in setup.guards.iter().filter(|guard| guard.config.destination == name) {
                let Some(policy) = filter.policy(name) else { continue };
                let differing = policy.differing_keys(&guard.config.policy);
                if !differing.is_empty() {
                    let what = format!("the policies of {name:?} differ in {}", differing.join(", "));
                    findings.add(&DIFFERING_POLICIES, &guard.plugin.path.keys("config.configuration"), what);
                }
            }
        }
    }
}

/// The filters behind idleguard in its connection manager, the router aside.
fn behind<'a>(filter: &HttpFilter<'a>) -> impl Iterator<Item = &'a Value> {
    let (filters, at) = match filter.hcm {
        Some(hcm) => {
            let at = match filter.plugin.path.0.get(hcm.path.0.len() + 1) {
                Some(Step::Index(at)) => *at,
                _ => usize::MAX,
            };
            (items(hcm.config, "http_filters"), at)
        }
        None => (&[][..], 0),
    };
    filters.iter().skip(at.saturating_add(1)).filter(|filter| !is_type(filter, bootstrap::ROUTER))
}

/// Whether Envoy's own filter divides the pool by idleguard's generations.
fn divides_pool(filter: &HttpFilter<'_>) -> bool {
    behind(filter).filter(|other| is_type(other, HTTP_SET_FILTER_STATE)).any(|other| {
        items(other, "typed_config.on_request_headers").iter().any(|entry| {
            text(entry, "format_string.text_format_source.inline_string")
                .is_some_and(|format| format.contains("wasm.idleguard.generation"))
                && text(entry, "shared_with_upstream").is_some_and(|shared| shared != "NONE")
        })
    })
}

/// Filters that decide at once.
const PROMPT: [&str; 8] = [
    "set_filter_state.v3.Config",
    "rbac.v3.RBAC",
    "local_ratelimit.v3.LocalRateLimit",
    "header_mutation.v3.HeaderMutation",
    "header_to_metadata.v3.Config",
    "cors.v3.Cors",
    "grpc_stats.v3.FilterConfig",
    "health_check.v3.HealthCheck",
];

fn last(filter: &HttpFilter<'_>, findings: &mut Findings<'_>) {
    if filter.config.destinations.is_empty() && filter.config.any_destination.is_none() {
        return; // it decides nothing about connections
    }
    let later: Vec<&str> = behind(filter)
        .filter(|other| !PROMPT.iter().any(|prompt| is_type(other, prompt)))
        .map(|other| text(other, "name").unwrap_or("one without a name"))
        .collect();
    if !later.is_empty() {
        let what =
            format!("filters stand between idleguard and the router that may hold requests back: {}", quoted(&later));
        findings.add(&NOT_LAST_FILTER, &filter.plugin.path, what);
    }
}

fn bootstrap_extension(setup: &Setup<'_>, findings: &mut Findings<'_>) {
    let extensions = items(setup.root, "bootstrap_extensions");
    if extensions.iter().any(|extension| is_type(extension, "internal_listener.v3.InternalListener")) {
        return;
    }
    let listeners = items(setup.root, "static_resources.listeners").iter().enumerate();
    for (at, listener) in listeners.filter(|(_, listener)| listener.get("internal_listener").is_some()) {
        let name = text(listener, "name").unwrap_or_default();
        let path: Path = bootstrap::resources("listeners").then(at).then("internal_listener");
        let what = format!("{name:?} is an internal listener, but the bootstrap extension is not there");
        findings.add(&MISSING_BOOTSTRAP_EXTENSION, &path, what);
    }
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

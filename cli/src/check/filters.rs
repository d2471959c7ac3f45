//! The filters: their configurations, their places, and the scout's listener.

use idleguard_core::plugin::Config;
use serde_json::Value;

use super::rules::{
    CONFIGURATION_WARNING, DIFFERENT_VMS, FIRST_DESIGN, INVALID_CONFIGURATION, MISSING_BOOTSTRAP_EXTENSION,
    NOT_LAST_FILTER, TCP_PROXY_IDLE_TIMEOUT, UNFILTERED_ROUTE, UNKNOWN_DESTINATION,
};
use super::{Findings, HttpFilter, Scout, Setup, quoted};
use crate::bootstrap::{self, Hcm, INTERNAL_LISTENER, TCP_PROXY, is_type, items, text};
use crate::path::{Path, Step};

pub(super) fn check(setup: &Setup<'_>, findings: &mut Findings<'_>) {
    configurations(setup, findings);
    for scout in &setup.scouts {
        same_vm(setup, scout, findings);
        scout_cluster(setup, scout, findings);
        tcp_proxy(scout, findings);
    }
    for filter in &setup.http_filters {
        last(filter, findings);
    }
    for hcm in setup.hcms {
        bypassed(setup, hcm, findings);
    }
    bootstrap_extension(setup, findings);
}

fn configurations(setup: &Setup<'_>, findings: &mut Findings<'_>) {
    for plugin in setup.plugins {
        let path = plugin.path.keys("config.configuration");
        let kind = if plugin.is_http { "an HTTP filter" } else { "a network filter" };
        match &plugin.checked {
            Err(_) if plugin.is_first_design() => {
                let json = plugin.json();
                let name = text(&json, "destination").unwrap_or_default();
                let what =
                    format!("the connection filter of {name:?} is of version 0.1, which split the cluster in two");
                findings.add(&FIRST_DESIGN, &path, what);
            }
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

fn same_vm(setup: &Setup<'_>, scout: &Scout<'_>, findings: &mut Findings<'_>) {
    let name = scout.config.destination.as_str();
    let knows = |filter: &&HttpFilter<'_>| filter.config.destinations.iter().any(|(own, _)| own == name);
    let mut partners = setup.http_filters.iter().filter(knows).peekable();
    if partners.peek().is_some() && partners.all(|partner| partner.plugin.vm() != scout.plugin.vm()) {
        let what = format!("the scout of {name:?} and its HTTP filter run in different VMs");
        findings.add(&DIFFERENT_VMS, &scout.plugin.path.keys("config.vm_config"), what);
    }
}

/// The cluster that leads to the scout.
fn scout_cluster(setup: &Setup<'_>, scout: &Scout<'_>, findings: &mut Findings<'_>) {
    let Some((_, listener)) = &scout.listener else { return };
    let (wanted, name) = (text(listener, "name"), scout.config.cluster.as_str());
    let what = match bootstrap::cluster(setup.root, name) {
        Some((_, cluster)) if bootstrap::internal_listener_of(cluster) == wanted => return,
        Some(_) => {
            format!("{name:?} does not lead to the listener {:?}, on which this scout is", wanted.unwrap_or_default())
        }
        None if setup.has_dynamic("cds_config") => return,
        None => format!("there is no cluster {name:?}, through which the scout would ask"),
    };
    findings.add(&UNKNOWN_DESTINATION, &scout.plugin.path.keys("config.configuration"), what);
}

fn tcp_proxy(scout: &Scout<'_>, findings: &mut Findings<'_>) {
    let Some((path, listener)) = &scout.listener else { return };
    for (path, filter) in bootstrap::network_filters(path, listener) {
        let config = bootstrap::fields(filter);
        if is_type(filter, TCP_PROXY) && text(config, "idle_timeout") != Some("0s") {
            let given = text(config, "idle_timeout").unwrap_or("1 h by default");
            let what = format!("the idle timeout of tcp_proxy is {given}");
            findings.add(&TCP_PROXY_IDLE_TIMEOUT, &path.keys("typed_config"), what);
        }
    }
}

/// The filters behind idleguard in its list, the router aside.
fn behind<'a>(filter: &HttpFilter<'a>) -> Vec<&'a Value> {
    let Some(hcm) = filter.hcm else { return Vec::new() };
    for (list, filters) in hcm.filter_lists() {
        if filter.plugin.path.is_within(&list)
            && let Some(Step::Index(at)) = filter.plugin.path.0.get(list.0.len())
        {
            return filters.iter().skip(at + 1).filter(|filter| !is_type(filter, bootstrap::ROUTER)).collect();
        }
    }
    Vec::new()
}

/// Filters that decide at once, and sign nothing.
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
    if filter.config.destinations.is_empty() {
        return; // it decides nothing about connections
    }
    let later: Vec<&str> = behind(filter)
        .into_iter()
        .filter(|other| !PROMPT.iter().any(|prompt| is_type(other, prompt)))
        .map(|other| text(other, "name").unwrap_or("one without a name"))
        .collect();
    if !later.is_empty() {
        let what = format!(
            "filters stand between idleguard and the router that may hold requests back, or sign them: {}",
            quoted(&later)
        );
        findings.add(&NOT_LAST_FILTER, &filter.plugin.path, what);
    }
}

/// Ways around the filter within its connection manager, and connection managers without it.
fn bypassed(setup: &Setup<'_>, hcm: &Hcm<'_>, findings: &mut Findings<'_>) {
    let own: Vec<&HttpFilter<'_>> =
        setup.http_filters.iter().filter(|filter| filter.plugin.path.is_within(&hcm.path)).collect();
    if own.is_empty() {
        let lanes = |name: &&&str| setup.http_filters.iter().any(|filter| filter.knows(name));
        let targets: Vec<&str> = hcm.routes().iter().flat_map(|route| route.clusters()).collect();
        if let Some(name) = targets.iter().find(lanes)
            && !hcm.has_discovered_filter()
            && !setup.has_refused(&hcm.path)
        {
            let what =
                format!("routes lead to {name:?}, which is a destination elsewhere, but there is no idleguard here");
            findings.add(&UNFILTERED_ROUTE, &hcm.path, what);
        }
        return;
    }
    for (list, filters) in hcm.filter_lists().iter().skip(1) {
        if !own.iter().any(|filter| filter.plugin.path.is_within(list)) && !filters.iter().any(is_discovered) {
            findings.add(
                &UNFILTERED_ROUTE,
                list,
                "these upgrades have filters of their own, without idleguard".to_owned(),
            );
        }
    }
    for filter in &own {
        let Some((extension, _)) = outermost(&filter.plugin.path, hcm) else { continue };
        let Some(entry) = extension.get(setup.root) else { continue };
        if entry.get("disabled") == Some(&Value::Bool(true)) {
            let what = "idleguard is disabled: no request passes it, unless its route says otherwise".to_owned();
            findings.add(&UNFILTERED_ROUTE, &extension.then("disabled"), what);
        }
        let name = text(entry, "name").unwrap_or_default();
        crate::path::walk(hcm.config, &mut |below, value| {
            let is_here = below.0.iter().any(|step| *step == Step::from("typed_per_filter_config"));
            if is_here && below.0.last() == Some(&Step::from(name)) && value.get("disabled") == Some(&Value::Bool(true))
            {
                let what = format!("the filter {name:?} is disabled for these requests");
                findings.add(&UNFILTERED_ROUTE, &hcm.path.join(below), what);
            }
        });
    }
}

fn is_discovered(filter: &Value) -> bool {
    filter.get("config_discovery").is_some()
}

/// The entry in a list of HTTP filters within which a plugin is.
fn outermost(plugin: &Path, hcm: &Hcm<'_>) -> Option<(Path, usize)> {
    hcm.filter_lists().into_iter().find_map(|(list, _)| match plugin.0.get(list.0.len()) {
        Some(Step::Index(at)) if plugin.is_within(&list) => Some((list.then(*at), *at)),
        _ => None,
    })
}

fn bootstrap_extension(setup: &Setup<'_>, findings: &mut Findings<'_>) {
    let extensions = items(setup.root, "bootstrap_extensions");
    let count = extensions.iter().filter(|extension| is_type(extension, INTERNAL_LISTENER)).count();
    if count > 1 {
        let what = format!("the bootstrap extension for internal listeners is there {count} times");
        findings.add(&MISSING_BOOTSTRAP_EXTENSION, &Path::of("bootstrap_extensions"), what);
    }
    if count > 0 {
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

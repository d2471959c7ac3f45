//! Finds the mistakes in a bootstrap that cost people days.
//!
//! A finding has an id; what it means, why it matters and what to do is in [`rules`] and, at length, in `docs/findings.md`.

mod clients;
mod filters;
pub mod rules;

use std::time::Duration;

use idleguard::config::{Config, ConnectionConfig, HttpConfig};
use idleguard::policy::Policy;
use serde::Serialize;
use serde_json::Value;

pub use self::rules::{RULES, Rule, Severity};
use crate::bootstrap::{self, Hcm, Plugin};
use crate::document::Document;
use crate::path::Path;

/// What is known beside the file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Surroundings {
    /// The idle timeout of the load balancer in front of this Envoy.
    pub front_lb_idle_timeout: Option<Duration>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The rule's id.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Where, as keys and indices.
    pub path: String,
    /// Where, as a line of the file.
    pub line: Option<usize>,
    /// The column in it.
    pub column: Option<usize>,
    /// What was found.
    pub what: String,
    /// Why it matters.
    pub why: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

/// A connection filter.
struct Guard<'a> {
    plugin: &'a Plugin<'a>,
    config: &'a ConnectionConfig,
    /// The internal listener that it is on; none for one on the network.
    listener: Option<&'a str>,
}

/// An HTTP filter, and the connection manager that it is in.
struct HttpFilter<'a> {
    plugin: &'a Plugin<'a>,
    config: &'a HttpConfig,
    hcm: Option<&'a Hcm<'a>>,
}

/// What the rules look at.
struct Setup<'a> {
    root: &'a Value,
    plugins: &'a [Plugin<'a>],
    hcms: &'a [Hcm<'a>],
    guards: Vec<Guard<'a>>,
    http_filters: Vec<HttpFilter<'a>>,
}

/// Everything that is wrong with a file, in the order of its lines.
pub fn check(document: &Document, surroundings: Surroundings) -> Vec<Finding> {
    let root = document.value();
    let (plugins, hcms) = (bootstrap::plugins(root), bootstrap::hcms(root));
    let setup = Setup::new(root, &plugins, &hcms);
    let mut findings = Findings { document, list: Vec::new() };
    filters::check(&setup, &mut findings);
    clients::check(&setup, surroundings, &mut findings);
    let mut list = findings.list;
    list.sort_by_key(|finding| (finding.line, finding.column));
    list
}

/// What was found so far.
struct Findings<'a> {
    document: &'a Document,
    list: Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, rule: &'static Rule, path: &Path, what: String) {
        let place = self.document.place(path);
        self.list.push(Finding {
            id: rule.id,
            severity: rule.severity,
            path: path.to_string(),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            what,
            why: rule.why,
            remedy: rule.remedy,
        });
    }
}

impl<'a> Setup<'a> {
    fn new(root: &'a Value, plugins: &'a [Plugin<'a>], hcms: &'a [Hcm<'a>]) -> Self {
        let listeners = bootstrap::items(root, "static_resources.listeners");
        let internal = |plugin: &Plugin<'_>| {
            let at =
                (0..listeners.len()).find(|at| plugin.path.is_within(&bootstrap::resources("listeners").then(*at)))?;
            let listener = listeners.get(at)?;
            listener.get("internal_listener").and_then(|_| bootstrap::text(listener, "name"))
        };
        let guards = plugins.iter().filter_map(|plugin| match plugin.config() {
            Some(Config::Connection(config)) => Some(Guard { plugin, config, listener: internal(plugin) }),
            _ => None,
        });
        let http_filters = plugins.iter().filter_map(|plugin| match plugin.config() {
            Some(Config::Http(config)) => {
                Some(HttpFilter { plugin, config, hcm: hcms.iter().find(|hcm| plugin.path.is_within(&hcm.path)) })
            }
            _ => None,
        });
        Self { root, plugins, hcms, guards: guards.collect(), http_filters: http_filters.collect() }
    }

    /// The names of the clusters that lead to an internal listener.
    fn clusters_before(&self, listener: &str) -> Vec<&'a str> {
        bootstrap::items(self.root, "static_resources.clusters")
            .iter()
            .filter(|cluster| bootstrap::internal_listener_of(cluster) == Some(listener))
            .filter_map(|cluster| bootstrap::text(cluster, "name"))
            .collect()
    }

    fn is_guarded(&self, destination: &str) -> bool {
        self.guards.iter().any(|guard| guard.config.destination == destination)
    }

    /// Whether a filter within is idleguard's with a configuration that it refuses, which is a finding of its own.
    fn has_refused(&self, within: &Path) -> bool {
        self.plugins.iter().any(|plugin| plugin.checked.is_err() && plugin.path.is_within(within))
    }

    /// Whether parts of the configuration come from elsewhere, so that what isn't here may be there.
    fn has_dynamic(&self, keys: &str) -> bool {
        Path::of("dynamic_resources").keys(keys).get(self.root).is_some()
    }
}

impl HttpFilter<'_> {
    /// The policy for a destination, its own or that of the rest.
    fn policy(&self, destination: &str) -> Option<&Policy> {
        let own = self.config.destinations.iter().find(|(name, _)| name == destination).map(|(_, policy)| policy);
        own.or(self.config.any_destination.as_ref())
    }
}

impl Hcm<'_> {
    /// Whether a filter of it comes by discovery: it may be idleguard.
    fn has_discovered_filter(&self) -> bool {
        bootstrap::items(self.config, "http_filters").iter().any(|filter| filter.get("config_discovery").is_some())
    }
}

//! Finds the mistakes in a bootstrap that cost people days.
//!
//! A finding has an id; what it means, why it matters and what to do is in [`rules`] and, at length, in `docs/findings.md`.

mod clients;
mod filters;
mod lanes;
pub mod rules;

use std::time::Duration;

use idleguard_core::plugin::{HttpConfig, ScoutConfig};
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
    /// The version of this Envoy: major and minor.
    pub envoy: Option<(u32, u32)>,
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

/// A scout's connection filter.
struct Scout<'a> {
    plugin: &'a Plugin<'a>,
    config: &'a ScoutConfig,
    /// The internal listener that it is on, if it is on one.
    listener: Option<(Path, &'a Value)>,
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
    scouts: Vec<Scout<'a>>,
    http_filters: Vec<HttpFilter<'a>>,
}

/// Everything that is wrong with a file, in the order of its lines.
pub fn check(document: &Document, surroundings: Surroundings) -> Vec<Finding> {
    let root = document.value();
    let (plugins, hcms) = (bootstrap::plugins(root), bootstrap::hcms(root));
    let setup = Setup::new(root, &plugins, &hcms);
    let mut findings = Findings { document, list: Vec::new() };
    filters::check(&setup, &mut findings);
    lanes::check(&setup, surroundings, &mut findings);
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
            let mut places = (0..listeners.len()).map(|at| bootstrap::resources("listeners").then(at));
            let path = places.find(|path| plugin.path.is_within(path))?;
            let listener = path.get(root)?;
            listener.get("internal_listener").map(|_| (path, listener))
        };
        let scouts = plugins
            .iter()
            .filter_map(|plugin| plugin.scout().map(|config| Scout { plugin, config, listener: internal(plugin) }));
        let http_filters = plugins.iter().filter_map(|plugin| {
            let hcm = hcms.iter().find(|hcm| plugin.path.is_within(&hcm.path));
            plugin.http().map(|config| HttpFilter { plugin, config, hcm })
        });
        Self { root, plugins, hcms, scouts: scouts.collect(), http_filters: http_filters.collect() }
    }

    /// Whether a filter within is idleguard's with a configuration that it refuses, which is a finding of its own.
    fn has_refused(&self, within: &Path) -> bool {
        self.plugins.iter().any(|plugin| plugin.checked.is_err() && plugin.path.is_within(within))
    }

    /// Whether parts of the configuration come from elsewhere, so that what isn't here may be there.
    fn has_dynamic(&self, keys: &str) -> bool {
        let dynamic = Path::of("dynamic_resources");
        [keys, "ads_config"].iter().any(|keys| dynamic.keys(keys).get(self.root).is_some())
    }
}

impl HttpFilter<'_> {
    /// Whether this cluster is the base or a lane of a destination of its.
    fn knows(&self, cluster: &str) -> bool {
        self.config.destinations.iter().any(|(_, policy)| policy.clusters().any(|known| known == cluster))
    }
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

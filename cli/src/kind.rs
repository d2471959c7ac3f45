//! What a file is, if it is no bootstrap: people hand over what they have.

use anyhow::{Result, bail};
use serde_json::Value;

use crate::bootstrap::{items, message, text};
use crate::document::Document;

/// Keys of Envoy's `Bootstrap`, by which one is known.
const BOOTSTRAP: &[&str] = &[
    "admin",
    "bootstrap_extensions",
    "cluster_manager",
    "default_config_source",
    "dynamic_resources",
    "flags_path",
    "hds_config",
    "layered_runtime",
    "node",
    "overload_manager",
    "static_resources",
    "stats_config",
    "stats_sinks",
    "tracing",
    "watchdog",
    "watchdogs",
];

/// # Errors
/// If the file is something else: what it is, and what to do.
pub fn expect_bootstrap(document: &Document) -> Result<()> {
    let root = document.value();
    if BOOTSTRAP.iter().any(|key| root.get(*key).is_some()) && root.get("kind").is_none() {
        return Ok(());
    }
    bail!("{}", what_it_is(root))
}

/// The same for `check`, which also reads what extension discovery serves.
///
/// # Errors
/// If the file is something else: what it is, and what to do.
pub fn expect_checkable(document: &Document) -> Result<()> {
    let resources = items(document.value(), "resources");
    let is_extension = |one: &Value| message(one).is_some_and(|(name, _)| name.ends_with("TypedExtensionConfig"));
    if !resources.is_empty() && resources.iter().all(is_extension) {
        return Ok(());
    }
    expect_bootstrap(document)
}

fn what_it_is(root: &Value) -> String {
    if let (Some(kind), Some(_)) = (text(root, "kind"), text(root, "api_version")) {
        return match kind {
            "ConfigMap" | "Secret" => format!(
                "this is a Kubernetes {kind}, not an Envoy bootstrap: take the bootstrap out of it (`kubectl get configmap NAME -o \
                 jsonpath='{{.data.envoy\\.yaml}}'`), and put the result back"
            ),
            "Deployment" | "DaemonSet" | "StatefulSet" | "Pod" | "List" => format!(
                "this is a Kubernetes {kind}, not an Envoy bootstrap: find the file that its container hands to `envoy -c`, mostly in a \
                 ConfigMap"
            ),
            _ => format!(
                "this is a Kubernetes {kind}, not an Envoy bootstrap: for Istio and Envoy Gateway see deploy/, whose resources are \
                 applied beside it"
            ),
        };
    }
    if !items(root, "configs").is_empty() {
        return "this is a config dump of Envoy's admin interface, not a bootstrap: take the file that Envoy was started with \
                (/config_dump?resource=bootstrap shows what was in it)"
            .to_owned();
    }
    if let Some(first) = items(root, "resources").first() {
        let name = message(first).map_or("?", |(name, _)| name.rsplit('.').next().unwrap_or(name)).to_owned();
        return format!(
            "this is a file of discovered resources ({name}), not a bootstrap: lanes, routes and the filter belong into what serves \
             them (docs/cli.md, \"What a control plane serves\")"
        );
    }
    if root.get("virtual_hosts").is_some()
        || root.get("filter_chains").is_some()
        || root.get("load_assignment").is_some()
    {
        return "this is one resource (a route configuration, a listener or a cluster), not a bootstrap: put it where it belongs, \
                under static_resources"
            .to_owned();
    }
    "this is no Envoy bootstrap: none of its keys is one (static_resources, dynamic_resources, admin, …)".to_owned()
}

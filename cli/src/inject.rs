//! Puts idleguard into a bootstrap.
//!
//! The cluster is split in two: the one that the routes name keeps its name and the pool, and leads in-process to an
//! internal listener with the connection filter; the one behind it keeps everything that concerns the far end. The order of
//! the work is: refuse what can't be split safely, then put in what is missing, piece by piece. A second run finds nothing
//! missing.

mod filters;
mod split;
mod suitability;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::bootstrap::{self, items, text};
use crate::document::{Document, Spot, yaml};
use crate::path::Path;

pub(crate) use self::filters::records;

/// What to put in.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The cluster, as the routes name it.
    pub cluster: String,
    /// The far end's idle timeout; none leaves a policy that is there, and learns in a new one.
    pub lb_idle_timeout: Option<String>,
    /// Whose forwarding headers are believed; none leaves the headers alone.
    pub trusted_proxies: Option<Vec<String>>,
    /// Where Envoy finds the filter; none takes that of the idleguard that is there, or `idleguard.wasm`.
    pub wasm: Option<String>,
}

/// Puts idleguard in for one cluster, and returns what the operator should know.
///
/// # Errors
/// If it can't be done safely, with the reason.
pub fn inject(document: &mut Document, request: &Request) -> Result<Vec<String>> {
    let name = request.cluster.as_str();
    let mut notes = Vec::new();
    if bootstrap::cluster(document.value(), name).is_none() {
        let names: Vec<&str> =
            items(document.value(), "static_resources.clusters").iter().filter_map(|one| text(one, "name")).collect();
        bail!(
            "there is no cluster {name:?} among the static ones ({}); clusters from CDS can't be split here",
            if names.is_empty() { "there are none".to_owned() } else { names.join(", ") }
        );
    }
    check_request(request)?;
    if let Some(filename) = &request.wasm {
        filters::set_wasm(document, filename)?;
    }
    let guard = guard_of(document.value(), name)?;
    if guard.is_none() {
        let (path, cluster) = bootstrap::cluster(document.value(), name).context("no cluster")?;
        suitability::check(document.value(), name, cluster)?;
        extension(document)?;
        stats_tag(document)?;
        let names = split::Names::choose(document.value(), name);
        let vm = filters::vm_config(document.value(), request);
        split::split(document, &path, &names, &mut notes)?;
        filters::insert_guard(document, &names, request, &vm)?;
    } else {
        filters::update_guard(document, name, request)?;
    }
    filters::ensure_http_filters(document, request, &mut notes)?;
    if Path::of("dynamic_resources.lds_config").get(document.value()).is_some() {
        notes.push(format!("listeners come from LDS, too: those that route to {name} need the HTTP filter as well"));
    }
    Ok(notes)
}

/// Lets the filter's own code judge what the request brings.
fn check_request(request: &Request) -> Result<()> {
    let mut http = json!({ "filter": "http", "destinations": { (request.cluster.clone()): filters::policy(request) } });
    if let (Some(proxies), Some(http)) = (&request.trusted_proxies, http.as_object_mut()) {
        http.insert("client_ip".to_owned(), json!({ "trusted_proxies": proxies }));
    }
    idleguard::config::parse(http.to_string().as_bytes()).map(drop).map_err(anyhow::Error::new)
}

/// The internal listener with the connection filter, if the cluster is split already.
fn guard_of(root: &Value, name: &str) -> Result<Option<String>> {
    let (_, cluster) = bootstrap::cluster(root, name).context("no cluster")?;
    let Some(listener) = bootstrap::internal_listener_of(cluster) else { return Ok(None) };
    let plugins = bootstrap::plugins(root);
    let guards = bootstrap::listener(root, listener)
        .is_some_and(|(path, _)| plugins.iter().any(|plugin| !plugin.is_http && plugin.path.is_within(&path)));
    if !guards {
        bail!(
            "{name} leads to the internal listener {listener:?}, which is not idleguard's: put the connection filter there"
        );
    }
    Ok(Some(listener.to_owned()))
}

/// Lets in-process connections be made.
fn extension(document: &mut Document) -> Result<()> {
    const SNIPPET: &str = "\
name: envoy.bootstrap.internal_listener
typed_config:
  \"@type\": type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener";
    let list = Path::of("bootstrap_extensions");
    let existing = items(document.value(), "bootstrap_extensions");
    if existing.iter().any(|extension| bootstrap::is_type(extension, "internal_listener.v3.InternalListener")) {
        return Ok(());
    }
    append(document, &list, existing.len(), "# Makes in-process connections possible.", SNIPPET)
}

/// Makes the destination a label in Prometheus.
fn stats_tag(document: &mut Document) -> Result<()> {
    const SNIPPET: &str = r"tag_name: idleguard_destination
regex: '^wasmcustom\.idleguard\.destination\.((.+)\.)\w+$'";
    let config = Path::of("stats_config");
    let tags = items(document.value(), "stats_config.stats_tags");
    if tags.iter().any(|tag| text(tag, "tag_name") == Some("idleguard_destination")) {
        return Ok(());
    }
    let comment = "# The destination becomes a label in Prometheus.";
    if config.get(document.value()).is_some_and(Value::is_object) {
        return append(document, &config.then("stats_tags"), tags.len(), comment, SNIPPET);
    }
    let nested = format!("stats_tags:\n{comment}\n{}", list_of(SNIPPET));
    document.insert_key(&Path::default(), "stats_config", Spot::Before("static_resources"), &nested)
}

/// Adds an item to a list, which is made if it isn't there.
fn append(document: &mut Document, list: &Path, at: usize, comment: &str, item: &str) -> Result<()> {
    if list.get(document.value()).is_some_and(Value::is_array) {
        return document.insert_item(list, at, &format!("{comment}\n{item}"));
    }
    let (parent, key) = list.split_last().context("no list")?;
    let key = match key {
        crate::path::Step::Key(key) => key.clone(),
        crate::path::Step::Index(_) => bail!("no list"),
    };
    document.insert_key(&parent, &key, Spot::Before("static_resources"), &format!("{comment}\n{}", list_of(item)))
}

/// A list with this one item.
fn list_of(item: &str) -> String {
    let lines = item.lines().enumerate();
    lines.map(|(at, line)| format!("{}{line}\n", if at == 0 { "- " } else { "  " })).collect()
}

/// A value as lines to put into a template, each with this indentation but for the first.
fn indented(value: &Value, by: usize) -> String {
    yaml(value).replace('\n', &format!("\n{}", " ".repeat(by)))
}

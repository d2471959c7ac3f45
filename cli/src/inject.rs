//! Puts idleguard into a bootstrap, and takes it out again.
//!
//! A cluster gets lanes: copies of it that differ in the name and the `idle_timeout`. Each route that leads to it gets a copy for
//! each lane, before it and behind a header match; the HTTP filter, last before the router, sets that header. Nothing that stands
//! in the file changes, so what works, works as before. Every step puts in what is missing and leaves what is there, so a second
//! run finds nothing to do.

mod filters;
pub mod lanes;
mod remove;
pub mod routes;
mod scout;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use idleguard_core::plugin;
use idleguard_core::time::{DURATION_FORMS, DurationText, parse_duration};
use serde_json::{Map, Value, json};

pub(crate) use self::filters::records;
pub use self::remove::remove;
use crate::bootstrap::{self, clusters, items, text};
use crate::document::{Document, Spot, yaml};
use crate::path::{Path, Step};

/// The lanes unless others are asked for: safe for far ends that drop connections from 60 s, 5 s and 1 s on.
pub const LANES: [&str; 3] = ["54s", "4s", "900ms"];

/// What to put in.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The cluster, as the routes name it.
    pub cluster: String,
    /// The `idle_timeout`s of its lanes; none for [`LANES`], or those that are there.
    pub lanes: Option<Vec<String>>,
    /// The far end's idle timeout; none leaves what is there, and learns otherwise.
    pub lb_idle_timeout: Option<String>,
    /// Whose forwarding headers are believed; none leaves the headers alone.
    pub trusted_proxies: Option<Vec<String>>,
    /// Where Envoy finds the filter; none takes that of the idleguard that is there, or `idleguard.wasm`.
    pub wasm: Option<String>,
    /// Whether routes without a retry policy get one, for idempotent methods.
    pub retries: bool,
    /// A scout; then lanes come only if they are asked for.
    pub scout: Option<ScoutRequest>,
}

/// How a scout asks.
#[derive(Clone, Debug, Default)]
pub struct ScoutRequest {
    /// The path of its requests.
    pub path: Option<String>,
    /// Their authority.
    pub host: Option<String>,
}

/// A destination as `inject` sees it.
struct Destination {
    /// Its name in the plugin configuration.
    name: String,
    /// The base.
    cluster: String,
    /// The base's `idle_timeout` in Envoy, if that is not the default.
    idle_timeout: Option<String>,
    lanes: Vec<Lane>,
}

struct Lane {
    cluster: String,
    /// As the plugin configuration has it.
    text: String,
    idle_timeout: Duration,
}

impl Lane {
    fn token(&self, destination: &str) -> String {
        format!("{destination}={}", self.text)
    }
}

/// Puts idleguard in for one cluster, and returns what the operator should know.
///
/// # Errors
/// If it can't be done, with the reason.
pub fn inject(document: &mut Document, request: &Request) -> Result<Vec<String>> {
    let mut changed = document.clone(); // all or nothing
    let notes = put_in(&mut changed, request)?;
    *document = changed;
    Ok(notes)
}

fn put_in(document: &mut Document, request: &Request) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    check_request(request)?;
    let (_, cluster) = find_cluster(document.value(), &request.cluster)?;
    is_suitable(document.value(), &request.cluster, cluster)?;
    if let Some(filename) = &request.wasm {
        filters::set_wasm(document, filename)?;
    }
    let wants_lanes = request.scout.is_none() || request.lanes.is_some();
    if wants_lanes {
        put_in_lanes(document, request, &mut notes)?;
    }
    if request.scout.is_some() {
        scout::ensure(document, request, &mut notes)?;
    }
    stats_tag(document)?;
    Ok(notes)
}

fn put_in_lanes(document: &mut Document, request: &Request, notes: &mut Vec<String>) -> Result<()> {
    let (_, cluster) = find_cluster(document.value(), &request.cluster)?;
    let cluster = cluster.clone();
    let destination = destination(document.value(), request, &cluster, notes)?;
    routes::is_possible(document.value(), &request.cluster)?;
    lanes::ensure(document, &destination)?;
    if request.retries {
        routes::ensure_retries(document, &destination, notes)?;
    }
    routes::ensure(document, &destination, notes)?;
    filters::ensure(document, request, &destination, notes)?;
    lanes::tell_costs(document.value(), &cluster, &destination, notes);
    if Path::of("dynamic_resources.lds_config").get(document.value()).is_some() {
        notes.push(format!(
            "listeners come from LDS, too: those that route to {} need the routes and the HTTP filter as well",
            request.cluster
        ));
    }
    Ok(())
}

fn find_cluster<'a>(root: &'a Value, name: &str) -> Result<(Path, &'a Value)> {
    bootstrap::cluster(root, name).with_context(|| {
        let names: Vec<&str> = clusters(root).iter().filter_map(|one| text(one, "name")).collect();
        let names = if names.is_empty() { "there are none".to_owned() } else { names.join(", ") };
        format!("there is no cluster {name:?} among the static ones ({names}); clusters from CDS get their lanes there")
    })
}

/// Lets the filter's own code judge what the request brings.
fn check_request(request: &Request) -> Result<()> {
    let mut policy = filters::policy(request);
    let mut lanes = Map::new();
    for lane in request.lanes.iter().flatten() {
        if parse_duration(lane).is_none() {
            bail!("--lanes: {lane:?} is not allowed: {DURATION_FORMS}");
        }
        lanes.insert(format!("{}-{lane}", request.cluster), lane.as_str().into());
    }
    policy.insert("lanes".to_owned(), lanes.into());
    let mut http = json!({ "filter": "http", "destinations": { (request.cluster.clone()): policy } });
    if let (Some(proxies), Some(http)) = (&request.trusted_proxies, http.as_object_mut()) {
        http.insert("client_ip".to_owned(), json!({ "trusted_proxies": proxies }));
    }
    plugin::parse(http.to_string().as_bytes()).map(drop).map_err(anyhow::Error::new)?;
    match &request.scout {
        Some(scout) => {
            let scout = scout::configuration(&request.cluster, "scout", scout);
            plugin::parse(scout.to_string().as_bytes()).map(drop).map_err(anyhow::Error::new)
        }
        None => Ok(()),
    }
}

/// What has no pool of its own has no lanes.
fn is_suitable(root: &Value, name: &str, cluster: &Value) -> Result<()> {
    let custom = cluster.get("cluster_type").unwrap_or(&Value::Null);
    for kind in ["aggregate", "composite"] {
        let is_kind = bootstrap::is_type(custom, &format!("clusters.{kind}.v3.ClusterConfig"));
        if is_kind || text(custom, "name").is_some_and(|name| name.contains(kind)) {
            bail!("{name} is made of other clusters ({kind}), and its connections are theirs: give those lanes");
        }
    }
    let plugins = bootstrap::plugins(root);
    let mut known = plugins.iter().filter_map(|plugin| plugin.http()).flat_map(|http| &http.destinations);
    if let Some((_, policy)) = known.find(|(_, policy)| policy.lanes.iter().any(|lane| lane.cluster == name)) {
        bail!("{name} is a lane of {}", policy.cluster);
    }
    let listener = bootstrap::internal_listener_of(cluster).and_then(|name| bootstrap::listener(root, name));
    if let Some((path, listener)) = listener
        && plugins.iter().any(|plugin| !plugin.is_http && plugin.path.is_within(&path))
    {
        let listener = text(listener, "name").unwrap_or_default();
        bail!(
            "{name} leads to the internal listener {listener:?} of idleguard: a split of version 0.1, or a scout. A split goes first: \
             take out {listener:?} and this cluster, and give the cluster behind them the name {name:?}"
        );
    }
    Ok(())
}

/// The destination that is there for this cluster, or a new one.
fn destination(root: &Value, request: &Request, cluster: &Value, notes: &mut Vec<String>) -> Result<Destination> {
    let base = request.cluster.as_str();
    let plugins = bootstrap::plugins(root);
    let mut known = plugins.iter().filter_map(|plugin| plugin.http()).flat_map(|http| &http.destinations);
    let known = known.find(|(_, policy)| policy.cluster == base && !policy.lanes.is_empty());
    let idle_timeout = base_idle_timeout(base, cluster)?;
    if let Some((name, policy)) = known {
        let there: Vec<String> = policy.lanes.iter().map(|lane| text_of(&lane.token)).collect();
        let own = bootstrap::idle_timeout(cluster).unwrap_or(Duration::MAX);
        let wanted =
            lanes::choose(request).into_iter().filter_map(|lane| parse_duration(&lane)).filter(|lane| *lane < own);
        if request.lanes.is_some() && !wanted.eq(policy.lanes.iter().map(|lane| lane.idle_timeout)) {
            bail!("{base} has lanes already ({}): take them out first, with --remove", there.join(", "));
        }
        let lanes = policy.lanes.iter().zip(there);
        let lanes = lanes
            .map(|(lane, text)| Lane { cluster: lane.cluster.clone(), text, idle_timeout: lane.idle_timeout })
            .collect();
        return Ok(Destination { name: name.clone(), cluster: base.to_owned(), idle_timeout, lanes });
    }
    let mut lanes: Vec<Lane> = Vec::new();
    for text in lanes::choose(request) {
        let idle_timeout = parse_duration(&text).with_context(|| format!("{text:?} is no duration"))?;
        if bootstrap::idle_timeout(cluster).is_some_and(|own| own <= idle_timeout) {
            notes.push(format!("no lane of {text}: {base} itself lets go no later"));
            continue;
        }
        let name = free(&format!("{base}-{text}"), &|name| bootstrap::cluster(root, name).is_some());
        lanes.push(Lane { cluster: name, text, idle_timeout });
    }
    if lanes.is_empty() {
        bail!("every lane's idle_timeout would be that of {base} or above: it needs none, or shorter --lanes");
    }
    Ok(Destination { name: base.to_owned(), cluster: base.to_owned(), idle_timeout, lanes })
}

/// The `idle_timeout` in a token.
fn text_of(token: &str) -> String {
    token.rsplit_once('=').map_or(token, |(_, text)| text).to_owned()
}

/// The base's `idle_timeout` for the plugin configuration; none where it is Envoy's default.
fn base_idle_timeout(name: &str, cluster: &Value) -> Result<Option<String>> {
    let place = bootstrap::common_options(cluster).then("idle_timeout");
    if place.get(cluster).is_none() {
        return Ok(None);
    }
    Ok(match bootstrap::idle_timeout(cluster) {
        None => bail!("{name}: {place} is no duration"),
        Some(Duration::MAX) => Some("0s".to_owned()),
        Some(timeout) if timeout == Duration::from_secs(3600) => None,
        Some(timeout) => Some(DurationText(timeout.min(Duration::from_secs(7 * 24 * 3600))).to_string()),
    })
}

/// A name that nothing has.
fn free(name: &str, is_taken: &dyn Fn(&str) -> bool) -> String {
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    std::iter::once(name.to_owned()).chain(numbered).find(|name| !is_taken(name)).unwrap_or_default()
}

// === what stands in the bootstrap itself ===

const EXTENSION_COMMENT: &str = "# idleguard: makes in-process connections possible, for the scout.";
const EXTENSION: &str = "\
name: envoy.bootstrap.internal_listener
typed_config:
  \"@type\": type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener";

/// Lets in-process connections be made.
fn extension(document: &mut Document) -> Result<()> {
    let existing = items(document.value(), "bootstrap_extensions");
    if existing.iter().any(|extension| bootstrap::is_type(extension, bootstrap::INTERNAL_LISTENER)) {
        return Ok(()); // a second one would make every in-process connection fail
    }
    append(document, &Path::of("bootstrap_extensions"), Spot::Before("static_resources"), EXTENSION_COMMENT, EXTENSION)
}

const TAG_COMMENT: &str = "# idleguard: the destination becomes a label in Prometheus.";
const TAG: &str = r"tag_name: idleguard_destination
regex: '^wasmcustom\.idleguard\.(?:destination|scout)\.((.+)\.)\w+$'";

/// Makes the destination a label in Prometheus.
fn stats_tag(document: &mut Document) -> Result<()> {
    let tags = items(document.value(), "stats_config.stats_tags");
    if tags.iter().any(|tag| text(tag, "tag_name") == Some("idleguard_destination")) {
        return Ok(());
    }
    let config = Path::of("stats_config");
    if config.get(document.value()).is_some_and(Value::is_object) {
        return append(document, &config.then("stats_tags"), Spot::End, TAG_COMMENT, TAG);
    }
    let nested = format!("{TAG_COMMENT}\nstats_tags:\n{}", list_of(TAG));
    document.insert_key(&Path::default(), "stats_config", Spot::Before("static_resources"), &nested)
}

/// Adds an item to a list whose order means nothing; the list is made if it isn't there.
fn append(document: &mut Document, list: &Path, spot: Spot<'_>, comment: &str, item: &str) -> Result<()> {
    let lead = if comment.is_empty() { String::new() } else { format!("{comment}\n") };
    if list.get(document.value()).is_some_and(Value::is_array) {
        return document.add_item(list, &format!("{lead}{item}"));
    }
    let (parent, Step::Key(key)) = list.split_last().context("no list")? else { bail!("no list") };
    document.insert_key(&parent, key, spot, &format!("{lead}{}", list_of(item)))
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

/// A name as a YAML scalar.
fn plain(name: &str) -> String {
    yaml(&name.into())
}

/// Every comment line that is put in above a key or an item.
const COMMENTS: &[&str] = &[
    EXTENSION_COMMENT,
    TAG_COMMENT,
    lanes::COMMENT,
    routes::COMMENT,
    routes::RETRY_COMMENT,
    routes::REMOVE_COMMENT,
    filters::EARLY_COMMENT,
    filters::FILTER_COMMENT,
    filters::APPEND_COMMENT,
    filters::PEER_COMMENT,
    filters::PEER_COMMENT_2,
    scout::CLUSTER_COMMENT,
    scout::LISTENER_COMMENT,
];

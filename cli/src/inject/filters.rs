//! The HTTP filter and what it needs: the header removed early, the recorded peer, and headers that Envoy leaves alone.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::{Destination, Request, append, indented};
use crate::bootstrap::{self, RECORDER, hcms, is_message, items, text};
use crate::document::{Document, Spot};
use crate::path::Path;

/// Where Envoy looks for the filter unless told otherwise: in its working directory.
const DEFAULT_WASM: &str = "idleguard.wasm";
const PEER: &str = "idleguard.peer";

pub(super) const FILTER_COMMENT: &str =
    "# idleguard: the last filter before the router, for idle ages end when that gets a request.";
pub(super) const EARLY_COMMENT: &str = "# idleguard: what a client sends under this name never counts.";
pub(super) const APPEND_COMMENT: &str = "# idleguard writes x-forwarded-for; Envoy must not add to it before.";
pub(super) const PEER_COMMENT: &str =
    "# idleguard: the true peer, recorded before the connection manager can replace it by what the client wrote into";
pub(super) const PEER_COMMENT_2: &str = "# x-forwarded-for.";

/// What the request says about the destination, lanes aside.
pub(super) fn policy(request: &Request) -> Map<String, Value> {
    let timeout = request.lb_idle_timeout.iter();
    timeout.map(|timeout| ("lb_idle_timeout".to_owned(), timeout.as_str().into())).collect()
}

/// The same, of a destination that isn't there yet.
fn whole_policy(request: &Request, destination: &Destination, is_only: bool) -> Value {
    let mut policy = Map::new();
    if destination.name != destination.cluster {
        policy.insert("cluster".to_owned(), destination.cluster.as_str().into());
    }
    policy.extend(self::policy(request));
    if let Some(timeout) = &destination.idle_timeout {
        policy.insert("idle_timeout".to_owned(), timeout.as_str().into());
    }
    let lanes = destination.lanes.iter().map(|lane| (lane.cluster.clone(), lane.text.as_str().into()));
    policy.insert("lanes".to_owned(), Value::Object(lanes.collect()));
    if is_only {
        policy.insert("all_requests".to_owned(), true.into());
    }
    policy.into()
}

/// The VM of the idleguard that is there, or a new one. Equal ones share what they know.
pub(super) fn vm_config(document: &Document, request: &Request) -> Value {
    let plugins = bootstrap::plugins(document.value());
    let existing = plugins.iter().find_map(|found| found.path.keys("config.vm_config").get(document.raw()).cloned());
    existing.unwrap_or_else(|| {
        json!({
            "vm_id": "idleguard",
            "runtime": "envoy.wasm.runtime.v8",
            "code": { "local": { "filename": request.wasm.as_deref().unwrap_or(DEFAULT_WASM) } },
        })
    })
}

/// Lets every idleguard that is there be loaded from this file.
pub(super) fn set_wasm(document: &mut Document, filename: &str) -> Result<()> {
    let paths: Vec<Path> = bootstrap::plugins(document.value())
        .iter()
        .map(|found| found.path.keys("config.vm_config.code.local.filename"))
        .filter(|path| path.get(document.value()).is_some_and(|old| old != filename))
        .collect();
    paths.iter().try_for_each(|path| document.set(path, filename))
}

/// Has the header removed before routes are looked at, where routes to the destination are.
pub(super) fn ensure_early_removal(document: &mut Document, destination: &Destination) -> Result<()> {
    let without = |document: &Document| {
        let all = hcms(document.value());
        let mut without = all.iter().filter(|hcm| hcm.routes_to(&destination.cluster) == Some(true));
        without.find(|hcm| !bootstrap::removes_early(hcm.config)).map(|hcm| hcm.path.clone())
    };
    while let Some(path) = without(document) {
        append(
            document,
            &path.then("early_header_mutation_extensions"),
            Spot::Before("route_config"),
            EARLY_COMMENT,
            EARLY,
        )?;
    }
    Ok(())
}

pub(super) const EARLY: &str = "\
name: idleguard-lane
typed_config:
  \"@type\": type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation
  mutations: [{ remove: x-idleguard-lane }]";

/// Sees to it that every connection manager that routes to the base has the HTTP filter, and the filter the destination.
pub(super) fn ensure(
    document: &mut Document,
    request: &Request,
    destination: &Destination,
    notes: &mut Vec<String>,
) -> Result<()> {
    // By their order: each edit moves what stands behind it.
    for at in 0..hcms(document.value()).len() {
        let lists = {
            let all = hcms(document.value());
            let hcm = all.get(at).context("a connection manager has vanished")?;
            if hcm.routes_to(&destination.cluster) != Some(true) {
                continue;
            }
            hcm.filter_lists().len()
        };
        for list in 0..lists {
            ensure_in_list(document, request, destination, at, list)?;
        }
    }
    // An alias may have brought the filter to others, too.
    for at in 0..hcms(document.value()).len() {
        if request.trusted_proxies.is_some() && has_client_ip(document.value(), at) {
            record_peer(document, at, notes)?;
        }
    }
    Ok(())
}

fn has_client_ip(root: &Value, hcm: usize) -> bool {
    let all = hcms(root);
    let within = |path: &Path| all.get(hcm).is_some_and(|hcm| path.is_within(&hcm.path));
    bootstrap::plugins(root)
        .iter()
        .any(|found| within(&found.path) && found.http().is_some_and(|http| http.client_ip.is_some()))
}

/// One list of HTTP filters: the connection manager's own, or an upgrade's.
fn ensure_in_list(
    document: &mut Document,
    request: &Request,
    destination: &Destination,
    hcm: usize,
    list: usize,
) -> Result<()> {
    let all = hcms(document.value());
    let lists = all.get(hcm).context("a connection manager has vanished")?.filter_lists();
    let (path, filters) = lists.get(list).context("a list of filters has vanished")?;
    if filters.last().is_none_or(|last| !bootstrap::is_type(last, bootstrap::ROUTER)) {
        bail!("{path}: the last HTTP filter is not the router");
    }
    let plugins = bootstrap::plugins(document.value());
    let is_ours = |(at, filter): &(usize, &Value)| {
        let is_called = text(filter, "name").is_some_and(|name| name.contains("idleguard"));
        is_called || plugins.iter().any(|plugin| plugin.path.is_within(&path.then(*at)))
    };
    let mut discovered = filters.iter().enumerate().filter(|(_, filter)| filter.get("config_discovery").is_some());
    if let Some((at, _)) = discovered.find(is_ours) {
        bail!("{}: this filter is discovered, so the destination must be added at its source", path.then(at));
    }
    let mut own = plugins.iter().filter(|plugin| plugin.is_http && plugin.path.is_within(path));
    // One with client_ip alone may stand anywhere; the destination goes where destinations are.
    let holder = own.rfind(|plugin| plugin.http().is_none_or(|http| !http.destinations.is_empty()));
    let clusters: Vec<&str> =
        destination.lanes.iter().map(|lane| lane.cluster.as_str()).chain([destination.cluster.as_str()]).collect();
    let twins = document.twins(path);
    let mut sharing = all.iter().filter(|hcm| twins.iter().any(|list| list.is_within(&hcm.path)));
    let is_only = sharing.all(|hcm| hcm.leads_only_to(&clusters));
    let client_ip = plugins.iter().find(|plugin| {
        plugin.is_http && plugin.path.is_within(path) && plugin.http().is_some_and(|http| http.client_ip.is_some())
    });
    let client_ip = client_ip.map(|plugin| plugin.path.clone());
    match holder {
        None => {
            let (path, before) = (path.clone(), filters.len() - 1);
            let proxies = request.trusted_proxies.as_ref().filter(|_| client_ip.is_none());
            let configuration = configuration(request, destination, is_only, proxies);
            let vm = vm_config(document, request);
            let snippet = filter(&vm, &pretty(&configuration));
            let updated = client_ip.filter(|_| request.trusted_proxies.is_some());
            document.insert_item(&path, before, &format!("{FILTER_COMMENT}\n{snippet}"))?;
            updated.map_or(Ok(()), |plugin| set_proxies(document, &plugin, request))
        }
        Some(plugin) => {
            if let Err(error) = &plugin.checked {
                bail!("{}: {error}", plugin.path);
            }
            let known =
                plugin.http().is_some_and(|http| http.destinations.iter().any(|(name, _)| *name == destination.name));
            let path = plugin.path.clone();
            let destinations = Path::of("destinations");
            let own = destinations.then(destination.name.as_str());
            edit(document, &path, |inner, root| {
                if !known {
                    let policy = whole_policy(request, destination, is_only).to_string();
                    return inner.insert_key(&root.join(&destinations), &destination.name, Spot::End, &policy);
                }
                for (key, value) in policy(request) {
                    set_or_insert(inner, &root.join(&own), &key, &value)?;
                }
                Ok(())
            })?;
            match &request.trusted_proxies {
                Some(_) => set_proxies(document, client_ip.as_ref().unwrap_or(&path), request),
                None => Ok(()),
            }
        }
    }
}

fn configuration(request: &Request, destination: &Destination, is_only: bool, proxies: Option<&Vec<String>>) -> Value {
    let policy = whole_policy(request, destination, is_only);
    let mut configuration = json!({ "filter": "http", "destinations": { (destination.name.clone()): policy } });
    if let (Some(proxies), Value::Object(entries)) = (proxies, &mut configuration) {
        entries.insert("client_ip".to_owned(), json!({ "trusted_proxies": proxies }));
    }
    configuration
}

fn set_or_insert(inner: &mut Document, map: &Path, key: &str, value: &Value) -> Result<()> {
    let place = map.then(key);
    match place.get(inner.value()) {
        Some(old) if old == value => Ok(()),
        Some(_) if value.is_array() => {
            inner.remove(&place, &[])?;
            inner.insert_key(map, key, Spot::End, &value.to_string())
        }
        Some(_) => inner.set(&place, value.clone()),
        None => inner.insert_key(map, key, Spot::End, &value.to_string()),
    }
}

fn set_proxies(document: &mut Document, plugin: &Path, request: &Request) -> Result<()> {
    let proxies = json!(request.trusted_proxies);
    edit(document, plugin, |inner, root| {
        let client_ip = root.then("client_ip");
        if client_ip.get(inner.value()).is_some() {
            return set_or_insert(inner, &client_ip, "trusted_proxies", &proxies);
        }
        inner.insert_key(root, "client_ip", Spot::End, &json!({ "trusted_proxies": proxies }).to_string())
    })
}

/// The HTTP filter with this configuration.
pub(super) fn filter(vm: &Value, configuration: &str) -> String {
    format!(
        "\
name: idleguard
typed_config:
  \"@type\": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
  config:
    name: idleguard
    # If the filter's VM ends, requests fail, and a second later there is a new one.
    failure_policy: FAIL_RELOAD
    vm_config:
      {vm}
    configuration:
      \"@type\": type.googleapis.com/google.protobuf.StringValue
      value: |
        {json}
",
        vm = indented(vm, 6),
        json = configuration.trim_end().replace('\n', "\n        "),
    )
}

/// Records the true peer before the connection manager, and keeps Envoy from writing `x-forwarded-for` itself.
fn record_peer(document: &mut Document, at: usize, notes: &mut Vec<String>) -> Result<()> {
    let all = hcms(document.value());
    let hcm = all.get(at).context("a connection manager has vanished")?;
    let (filters, index, path) = (hcm.filters.clone(), hcm.index, hcm.path.clone());
    let appends = hcm.config.get("use_remote_address") == Some(&Value::Bool(true));
    let skip = hcm.config.get("skip_xff_append").cloned();
    let is_recorded = filters.get(document.value()).is_some_and(|chain| records(chain, index, PEER));
    match (appends, skip) {
        (true, None) => document.insert_key(
            &path,
            "skip_xff_append",
            Spot::After("use_remote_address"),
            &format!("{APPEND_COMMENT}\ntrue"),
        )?,
        (true, Some(Value::Bool(false))) => {
            notes.push(format!("{path}: skip_xff_append is false; it must be true, or trusted_hops are one off"));
        }
        _ => {}
    }
    if is_recorded {
        return Ok(());
    }
    document.insert_item(&filters, index, &format!("{PEER_COMMENT}\n{PEER_COMMENT_2}\n{PEER_FILTER}"))
}

pub(super) const PEER_FILTER: &str = "\
name: idleguard-peer
typed_config:
  \"@type\": type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config
  on_new_connection:
  - object_key: idleguard.peer
    factory_key: envoy.string
    format_string: { text_format_source: { inline_string: \"%DOWNSTREAM_REMOTE_ADDRESS%\" } }
";

/// Whether a filter chain records the peer under this key before its filter at `index`.
pub(crate) fn records(chain: &Value, index: usize, key: &str) -> bool {
    let before = chain.as_array().into_iter().flatten().take(index);
    before.filter(|filter| bootstrap::is_type(filter, RECORDER)).any(|filter| {
        let config = bootstrap::fields(filter);
        ["on_new_connection", "on_downstream_tls_handshake", "on_downstream_data"]
            .iter()
            .any(|event| items(config, event).iter().any(|entry| text(entry, "object_key") == Some(key)))
    })
}

/// Changes a plugin configuration, text or `Struct`: `change` gets the document that holds it, and its path there.
pub(super) fn edit(
    document: &mut Document,
    plugin: &Path,
    change: impl Fn(&mut Document, &Path) -> Result<()>,
) -> Result<()> {
    let message = plugin.keys("config.configuration");
    let place = message.then("value");
    if !message.get(document.value()).is_some_and(|message| is_message(message, "StringValue")) {
        return change(document, &place);
    }
    let old = place.get(document.value()).and_then(Value::as_str).context("a plugin without a configuration")?;
    let mut inner = Document::parse(old).with_context(|| place.to_string())?;
    change(&mut inner, &Path::default())?;
    if inner.text() == old {
        return Ok(());
    }
    document.set(&place, inner.text())
}

/// JSON in which what is small stays in one line.
pub(super) fn pretty(json: &Value) -> String {
    const WIDEST: usize = 100;
    fn write(json: &Value, indent: usize, depth: usize) -> String {
        let line = spaced(json);
        match json {
            Value::Object(entries) if !entries.is_empty() && (depth < 2 || line.len() + indent > WIDEST) => {
                let blank = " ".repeat(indent + 2);
                let lines = entries.iter().map(|(key, value)| {
                    format!(
                        "{blank}{}: {}",
                        Value::from(key.as_str()),
                        write(value, indent + 2, depth + usize::from(key == "destinations" || depth > 0))
                    )
                });
                format!("{{\n{}\n{}}}", lines.collect::<Vec<_>>().join(",\n"), " ".repeat(indent))
            }
            _ => line,
        }
    }
    write(json, 0, 0)
}

/// JSON in one line, with blanks as one writes it by hand.
pub(super) fn spaced(json: &Value) -> String {
    match json {
        Value::Object(entries) if !entries.is_empty() => {
            let entries =
                entries.iter().map(|(key, value)| format!("{}: {}", Value::from(key.as_str()), spaced(value)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(spaced).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

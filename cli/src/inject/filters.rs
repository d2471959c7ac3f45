//! The two filters and what they need: the recorded peer, and headers that Envoy leaves alone.

use anyhow::{Context, Result, bail};
use idleguard::config::Config;
use serde_json::{Value, json};

use super::split::Names;
use super::{Request, indented};
use crate::bootstrap::{self, Hcm, NETWORK_WASM, RECORDER, is_message, items, text};
use crate::document::{Document, Spot};
use crate::path::Path;

/// Where Envoy looks for the filter unless told otherwise: in its working directory.
const DEFAULT_WASM: &str = "idleguard.wasm";
const PEER: &str = "idleguard.peer";

/// The policy that the request asks for.
pub(super) fn policy(request: &Request) -> Value {
    match &request.lb_idle_timeout {
        Some(timeout) => json!({ "lb_idle_timeout": timeout }),
        None => json!({}),
    }
}

/// The VM of the idleguard that is there, or a new one. Both filters need the same, to the letter, or they share nothing.
pub(super) fn vm_config(root: &Value, request: &Request) -> Value {
    let existing = bootstrap::plugins(root).into_iter().find_map(|found| found.plugin.get("vm_config").cloned());
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

/// The internal listener with the connection filter.
pub(super) fn insert_guard(document: &mut Document, names: &Names, request: &Request, vm: &Value) -> Result<()> {
    let configuration = json!({ "filter": "connection", "destination": names.cluster, "policy": policy(request) });
    let snippet = format!(
        "\
# Not on the network: cluster {cluster} connects to it in-process, on the same worker. One connection here is one
# connection to the far end.
name: {guard}
internal_listener: {{}}
filter_chains:
- filters:
  - name: idleguard
    typed_config:
      \"@type\": type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm
      config:
        name: {plugin}
        # As the HTTP filter's: both live and die with the same VM.
        failure_policy: FAIL_RELOAD
        # The same VM as the HTTP filter's, so that they share what they know: equal vm_id, code and VM configuration.
        vm_config:
          {vm}
        configuration:
          \"@type\": type.googleapis.com/google.protobuf.StringValue
          value: '{configuration}'
  - name: tcp
    typed_config:
      \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: {guard}
      cluster: {inner}
      idle_timeout: 0s # off: idle connections are idleguard's business
",
        cluster = names.cluster,
        guard = plain(&names.guard),
        inner = plain(&names.inner),
        plugin = plain(&format!("idleguard-{}", names.cluster)),
        vm = indented(vm, 10),
        configuration = spaced(&configuration).replace('\'', "''"),
    );
    let listeners = bootstrap::resources("listeners");
    let count = items(document.value(), "static_resources.listeners").len();
    document.insert_item(&listeners, count, &snippet)
}

/// Brings the policy of the connection filter up to date.
pub(super) fn update_guard(document: &mut Document, name: &str, request: &Request) -> Result<()> {
    if request.lb_idle_timeout.is_none() {
        return Ok(());
    }
    let found: Vec<Path> = bootstrap::plugins(document.value())
        .iter()
        .filter(|found| matches!(found.config(), Some(Config::Connection(config)) if config.destination == name))
        .map(|found| found.path.clone())
        .collect();
    found.iter().try_for_each(|path| edit(document, path, |json| merge(json, &["policy"], &policy(request))))
}

/// Sees to it that every connection manager that may route to the cluster has the HTTP filter, and the filter the
/// destination.
pub(super) fn ensure_http_filters(document: &mut Document, request: &Request, notes: &mut Vec<String>) -> Result<()> {
    let name = request.cluster.as_str();
    // By the statistics prefix of their order: each edit moves what stands behind it.
    let count = bootstrap::hcms(document.value()).len();
    for at in 0..count {
        let hcms = bootstrap::hcms(document.value());
        let hcm = hcms.get(at).context("a connection manager has vanished")?;
        match hcm.routes_to(document.value(), name) {
            Some(false) => continue,
            Some(true) => {}
            None => {
                notes.push(format!("{}: its routes are not in this file; it gets the HTTP filter in case", hcm.path))
            }
        }
        let (path, existing) = (hcm.path.clone(), http_filter(document.value(), hcm)?);
        match existing {
            Some(plugin) => {
                update_http_filter(document, &plugin, request)?;
            }
            None => insert_http_filter(document, &path, request)?,
        }
        if request.trusted_proxies.is_some() {
            record_peer(document, at)?;
        }
    }
    Ok(())
}

/// The idleguard filter of a connection manager that is next to the router.
fn http_filter(root: &Value, hcm: &Hcm<'_>) -> Result<Option<Path>> {
    let filters = hcm.path.then("http_filters");
    let plugins = bootstrap::plugins(root);
    let last = plugins.into_iter().rfind(|plugin| plugin.is_http && plugin.path.is_within(&filters));
    let Some(plugin) = last else { return Ok(None) };
    if let Err(error) = &plugin.checked {
        bail!("{}: {error}", plugin.path);
    }
    if plugin.path.to_string().contains("config_discovery") {
        bail!(
            "{}: this filter's configuration is discovered, so the destination must be added at its source",
            plugin.path
        );
    }
    Ok(Some(plugin.path))
}

fn insert_http_filter(document: &mut Document, hcm: &Path, request: &Request) -> Result<()> {
    let vm = vm_config(document.value(), request);
    let mut configuration = json!({ "filter": "http", "destinations": { (request.cluster.clone()): policy(request) } });
    let comment = match &request.trusted_proxies {
        None => "If the filter's VM ends, requests fail, and a second later there is a new one.",
        Some(proxies) => {
            merge(&mut configuration, &["client_ip"], &json!({ "trusted_proxies": proxies }));
            "If the filter's VM ends, requests fail, and a second later there is a new one. Letting them pass would let\n    \
             # clients choose their own address."
        }
    };
    let snippet = format!(
        "\
# The last filter before the router: what it decides must hold when the pool picks a connection.
name: idleguard
typed_config:
  \"@type\": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
  config:
    name: idleguard
    # {comment}
    failure_policy: FAIL_RELOAD
    vm_config:
      {vm}
    configuration:
      \"@type\": type.googleapis.com/google.protobuf.StringValue
      value: |
        {json}
",
        vm = indented(&vm, 6),
        json = pretty(&configuration).replace('\n', "\n        "),
    );
    let filters = hcm.then("http_filters");
    let count = filters.get(document.value()).and_then(Value::as_array).map_or(0, Vec::len);
    document.insert_item(&filters, count.saturating_sub(1), &snippet)
}

fn update_http_filter(document: &mut Document, plugin: &Path, request: &Request) -> Result<()> {
    edit(document, plugin, |json| {
        merge(json, &["destinations", &request.cluster], &policy(request));
        if let Some(proxies) = &request.trusted_proxies {
            merge(json, &["client_ip"], &json!({ "trusted_proxies": proxies }));
        }
    })?;
    let failure = plugin.keys("config.failure_policy");
    if request.trusted_proxies.is_some() && failure.get(document.value()).is_some_and(|old| old == "FAIL_OPEN") {
        document.set(&failure, "FAIL_RELOAD")?; // closed meanwhile: nobody chooses his own address
    }
    Ok(())
}

/// Records the true peer before the connection manager, and keeps Envoy from writing `x-forwarded-for` itself.
fn record_peer(document: &mut Document, at: usize) -> Result<()> {
    let hcms = bootstrap::hcms(document.value());
    let hcm = hcms.get(at).context("a connection manager has vanished")?;
    let (filters, index, path) = (hcm.filters.clone(), hcm.index, hcm.path.clone());
    let appends = hcm.config.get("use_remote_address") == Some(&Value::Bool(true));
    let skip = hcm.config.get("skip_xff_append").cloned();
    let is_recorded = filters.get(document.value()).is_some_and(|chain| records(chain, index, PEER));
    match (appends, skip) {
        (true, None) => document.insert_key(
            &path,
            "skip_xff_append",
            Spot::After("use_remote_address"),
            "# idleguard writes x-forwarded-for; Envoy must not add to it before.\ntrue",
        )?,
        (true, Some(Value::Bool(false))) => document.set(&path.then("skip_xff_append"), true)?,
        _ => {}
    }
    if is_recorded {
        return Ok(());
    }
    document.insert_item(
        &filters,
        index,
        "\
# The true peer, recorded before the connection manager can replace it by what the client wrote into x-forwarded-for.
name: idleguard-peer
typed_config:
  \"@type\": type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config
  on_new_connection:
  - object_key: idleguard.peer
    factory_key: envoy.string
    format_string: { text_format_source: { inline_string: \"%DOWNSTREAM_REMOTE_ADDRESS%\" } }
",
    )
}

/// Whether a filter chain records the peer under this key before its filter at `index`.
pub(crate) fn records(chain: &Value, index: usize, key: &str) -> bool {
    let before = chain.as_array().into_iter().flatten().take(index);
    before.filter(|filter| bootstrap::is_type(filter, RECORDER)).any(|filter| {
        let config = filter.get("typed_config").unwrap_or(&Value::Null);
        ["on_new_connection", "on_downstream_tls_handshake", "on_downstream_data"]
            .iter()
            .any(|event| items(config, event).iter().any(|entry| text(entry, "object_key") == Some(key)))
    })
}

/// Changes a plugin configuration, text or `Struct`, if it changes at all.
fn edit(document: &mut Document, plugin: &Path, change: impl Fn(&mut Value)) -> Result<()> {
    let message = plugin.keys("config.configuration");
    let place = message.then("value");
    let old = place.get(document.value()).context("a plugin without a configuration")?.clone();
    let is_text = message.get(document.value()).is_some_and(|message| is_message(message, "StringValue"));
    let old_json = match old.as_str().filter(|_| is_text) {
        Some(text) => serde_json::from_str(text)?,
        None => old.clone(),
    };
    let mut json = old_json.clone();
    change(&mut json);
    if json == old_json {
        return Ok(());
    }
    if is_text {
        let several_lines = old.as_str().is_some_and(|text| text.trim_end().contains('\n'));
        let is_http = plugin.get(document.value()).is_none_or(|filter| !is_message(filter, NETWORK_WASM));
        let ending = if old.as_str().is_some_and(|text| text.ends_with('\n')) { "\n" } else { "" };
        let text = if several_lines || is_http { pretty(&json) + "\n" } else { spaced(&json) + ending };
        return document.set(&place, text);
    }
    document.set(&place, json)
}

/// Sets the keys of `new` in the object at `keys`, which is made if it isn't there.
fn merge(json: &mut Value, keys: &[&str], new: &Value) {
    let target = keys.iter().fold(json, |value, key| {
        if !value.is_object() {
            *value = json!({});
        }
        // An object by now, so the key can be made.
        match value {
            Value::Object(entries) => entries.entry((*key).to_owned()).or_insert_with(|| json!({})),
            other => other,
        }
    });
    if let (Value::Object(target), Value::Object(new)) = (target, new) {
        new.iter().for_each(|(key, value)| drop(target.insert(key.clone(), value.clone())));
    }
}

fn plain(name: &str) -> String {
    crate::document::yaml(&name.into())
}

/// JSON in which what is small stays in one line.
fn pretty(json: &Value) -> String {
    let Value::Object(entries) = json else { return spaced(json) };
    let lines: Vec<String> =
        entries.iter().map(|(key, value)| format!("  {}: {}", Value::from(key.as_str()), spaced(value))).collect();
    format!("{{\n{}\n}}", lines.join(",\n"))
}

/// JSON in one line, with blanks as one writes it by hand.
fn spaced(json: &Value) -> String {
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

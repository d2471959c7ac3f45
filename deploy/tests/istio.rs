//! Istio's control plane, as far as the manifests need it: an `EnvoyFilter` is applied to generated resources, and a
//! `WasmPlugin` becomes a filter. After pilot/pkg/networking/core/envoyfilter and pilot/pkg/model/extensions.go, Istio 1.30.3.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::proto::merge;
use super::xds::{Resources, list, manager};

const ROUTER: &str = "envoy.filters.http.router";

/// Adds the filter of a `WasmPlugin` without a phase: after authorization, before everything else that Istio adds.
pub(crate) fn add_wasm_plugin(xds: &mut Resources, plugin: &Value) -> Result<()> {
    let spec = &plugin["spec"];
    ensure!(spec["type"] == "HTTP" && spec.get("phase").is_none(), "other plugins are not implemented: {spec}");
    let (namespace, name) = (text(plugin, "/metadata/namespace")?, text(plugin, "/metadata/name")?);
    let resource = format!("extensions.istio.io/wasmplugin/{namespace}.{name}");
    for listener in &mut xds.listeners {
        for filters in network_filters(listener) {
            let Some(manager) = filters.iter_mut().find_map(manager) else { continue };
            let filters = list(manager, "http_filters");
            let place =
                filters.iter().position(|filter| filter["name"] != "istio.metadata_exchange").unwrap_or_default();
            let discovery = json!({
                "config_source": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
                "type_urls": [
                    "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                    "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                ],
            });
            filters.insert(place, json!({"name": resource, "config_discovery": discovery}));
        }
    }
    let failure_policy = match spec["failStrategy"].as_str() {
        Some("FAIL_OPEN") => "FAIL_OPEN",
        Some("FAIL_CLOSE") => "FAIL_CLOSED",
        Some("FAIL_RELOAD") => "FAIL_RELOAD",
        other => bail!("failStrategy {other:?} is not implemented"),
    };
    let typed_config = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
        "config": {
            "name": format!("{namespace}.{name}"),
            "failure_policy": failure_policy,
            "configuration": {
                "@type": "type.googleapis.com/google.protobuf.StringValue",
                "value": spec["pluginConfig"].to_string(),
            },
            "vm_config": {
                "runtime": "envoy.wasm.runtime.v8",
                "code": {"remote": {"http_uri": {"uri": text(plugin, "/spec/url")?, "cluster": "_", "timeout": "30s"}}},
                // The agent strips what concerns itself alone.
                "environment_variables": {"key_values": {"ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION": "4711"}},
            },
        },
    });
    xds.extensions.push(json!({"name": resource, "typed_config": typed_config}));
    Ok(())
}

/// Applies an `EnvoyFilter` in this context. A patch that finds nothing to change is an error here: Istio would say nothing.
pub(crate) fn apply_envoy_filter(xds: &mut Resources, filter: &Value, context: &str) -> Result<()> {
    for patch in filter["spec"]["configPatches"].as_array().context("configPatches")? {
        let selector = &patch["match"];
        if selector["context"] != context && selector["context"] != "ANY" {
            continue;
        }
        let value = &patch["patch"]["value"];
        let (applies_to, operation) = (text(patch, "/applyTo")?, text(patch, "/patch/operation")?);
        let applied = match (applies_to, operation) {
            ("EXTENSION_CONFIG", "ADD") => add(&mut xds.extensions, value),
            ("CLUSTER", "ADD") => add(&mut xds.clusters, value),
            ("LISTENER", "ADD") => add(&mut xds.listeners, value),
            ("NETWORK_FILTER", "INSERT_BEFORE") => {
                let wanted = text(selector, "/listener/filterChain/filter/name")?;
                xds.listeners
                    .iter_mut()
                    .flat_map(network_filters)
                    .map(|filters| insert_before(filters, wanted, value))
                    .sum()
            }
            ("NETWORK_FILTER", "MERGE") => {
                let wanted = text(selector, "/listener/filterChain/filter/name")?;
                let filters = xds.listeners.iter_mut().flat_map(network_filters).flatten();
                let merged = filters.filter(|filter| filter["name"] == wanted).map(|filter| {
                    merge(filter, value);
                    1
                });
                merged.sum()
            }
            ("HTTP_FILTER", "INSERT_BEFORE") => {
                let wanted = text(selector, "/listener/filterChain/filter/subFilter/name")?;
                let managers = xds.listeners.iter_mut().flat_map(network_filters).flatten().filter_map(manager);
                managers.map(|manager| insert_before(list(manager, "http_filters"), wanted, value)).sum()
            }
            ("HTTP_ROUTE", "MERGE") => merge_routes(&mut xds.routes, &selector["routeConfiguration"], value),
            other => bail!("{other:?} is not implemented"),
        };
        ensure!(applied > 0, "nothing to apply this to: {patch:#}");
    }
    Ok(())
}

/// Istio's order of things has the router last, and ours right before it or with only harmless filters between.
pub(crate) fn is_router_last(xds: &mut Resources) -> bool {
    let mut managers = xds.listeners.iter_mut().flat_map(network_filters).flatten().filter_map(manager);
    managers.all(|manager| list(manager, "http_filters").last().is_some_and(|filter| filter["name"] == ROUTER))
}

fn add(to: &mut Vec<Value>, value: &Value) -> usize {
    to.push(value.clone());
    1
}

fn insert_before(filters: &mut Vec<Value>, wanted: &str, value: &Value) -> usize {
    let Some(place) = filters.iter().position(|filter| filter["name"] == wanted) else { return 0 };
    filters.insert(place, value.clone());
    1
}

fn merge_routes(configurations: &mut [Value], selector: &Value, value: &Value) -> usize {
    let wanted = |key: &str, found: &Value| selector.pointer(key).is_none_or(|name| name == found);
    let mut merged = 0;
    for configuration in configurations {
        for host in list(configuration, "virtual_hosts").iter_mut().filter(|host| wanted("/vhost/name", &host["name"]))
        {
            for route in list(host, "routes") {
                let has_action = match selector.pointer("/vhost/route/action").and_then(Value::as_str) {
                    None | Some("ANY") => true,
                    Some(action) => route.get(action.to_ascii_lowercase()).is_some(),
                };
                if has_action && wanted("/vhost/route/name", &route["name"]) {
                    merge(route, value);
                    merged += 1;
                }
            }
        }
    }
    merged
}

fn network_filters(listener: &mut Value) -> Vec<&mut Vec<Value>> {
    list(listener, "filter_chains").iter_mut().map(|chain| list(chain, "filters")).collect()
}

fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer} in {value}"))
}

//! Envoy Gateway's control plane, as far as the manifests need it: the patches of an `EnvoyProxy` and an `EnvoyPatchPolicy`
//! are applied, and an `EnvoyExtensionPolicy` becomes a filter. After internal/xds/translator, Envoy Gateway 1.9.0.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use serde_json_path::JsonPath;

use super::xds::{Resources, list, manager};

/// Adds the filters of an `EnvoyExtensionPolicy` for the whole Gateway: disabled, and enabled by each route.
pub(crate) fn add_extension_policy(xds: &mut Resources, policy: &Value) -> Result<()> {
    let (namespace, name) = (text(policy, "/metadata/namespace")?, text(policy, "/metadata/name")?);
    for (index, wasm) in policy["spec"]["wasm"].as_array().context("wasm")?.iter().enumerate() {
        let id = format!("envoyextensionpolicy/{namespace}/{name}/wasm/{index}");
        let filter = format!("envoy.filters.http.wasm/{id}");
        let typed_config = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {
                "name": text(wasm, "/name")?,
                "fail_open": wasm["failOpen"],
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": wasm["config"].to_string(),
                },
                "vm_config": {
                    "vm_id": id,
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": {"remote": {
                        "http_uri": {
                            "cluster": "wasm_cluster",
                            "timeout": "10s",
                            "uri": "https://envoy-gateway.envoy-gateway-system.svc.cluster.local:18002/5c90b9a82642ce00.wasm",
                        },
                        "sha256": "746df05c8f3a0b07a46c0967cfbc5cbe5b9d48d0f79b6177eeedf8be6c8b34b5",
                    }},
                },
            },
        });
        for listener in &mut xds.listeners {
            let filters = listener.pointer_mut("/default_filter_chain/filters").and_then(Value::as_array_mut);
            let Some(manager) = filters.into_iter().flatten().find_map(manager) else { continue };
            let filters = list(manager, "http_filters");
            let before_router = filters.len().saturating_sub(1);
            filters.insert(before_router, json!({"name": filter, "disabled": true, "typed_config": typed_config}));
        }
        for configuration in &mut xds.routes {
            for route in list(configuration, "virtual_hosts").iter_mut().flat_map(|host| list(host, "routes")) {
                route["typed_per_filter_config"][&filter] =
                    json!({"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}});
            }
        }
    }
    Ok(())
}

/// Applies an `EnvoyPatchPolicy`. What Envoy Gateway would report in the policy's status is an error here.
pub(crate) fn apply_patch_policy(xds: &mut Resources, policy: &Value) -> Result<()> {
    for patch in policy["spec"]["jsonPatches"].as_array().context("jsonPatches")? {
        let resources = match text(patch, "/type")? {
            "type.googleapis.com/envoy.config.listener.v3.Listener" => &mut xds.listeners,
            "type.googleapis.com/envoy.config.route.v3.RouteConfiguration" => &mut xds.routes,
            "type.googleapis.com/envoy.config.cluster.v3.Cluster" => &mut xds.clusters,
            other => bail!("{other} is not implemented"),
        };
        let (name, operation) = (text(patch, "/name")?, &patch["operation"]);
        let is_new = operation["op"] == "add" && operation["path"] == "" && operation.get("jsonPath").is_none();
        if is_new {
            ensure!(operation["value"]["name"] == name, "the new resource is not called {name}");
            resources.push(operation["value"].clone());
            continue;
        }
        let resource = resources.iter_mut().find(|resource| resource["name"] == name);
        apply(resource.with_context(|| format!("no {name}"))?, operation)?;
    }
    Ok(())
}

/// Applies the bootstrap patch of an `EnvoyProxy`.
pub(crate) fn patch_bootstrap(bootstrap: &mut Value, proxy: &Value) -> Result<()> {
    ensure!(proxy["spec"]["bootstrap"]["type"] == "JSONPatch", "only JSON patches are implemented");
    let patches = proxy.pointer("/spec/bootstrap/jsonPatches").and_then(Value::as_array).context("jsonPatches")?;
    patches.iter().try_for_each(|operation| apply(bootstrap, operation))
}

/// Applies an operation at its path, or at every place that its JSON path finds.
fn apply(document: &mut Value, operation: &Value) -> Result<()> {
    let path = operation["path"].as_str().unwrap_or_default();
    let pointers = match operation["jsonPath"].as_str() {
        None => vec![path.to_owned()],
        Some(json_path) => {
            let found = JsonPath::parse(json_path)?.query_located(document);
            found.locations().map(|location| format!("{}{path}", location.to_json_pointer())).collect()
        }
    };
    ensure!(!pointers.is_empty(), "nothing is found by {operation}");
    for pointer in pointers {
        let mut operation = operation.clone();
        operation["path"] = pointer.into();
        operation.as_object_mut().context("an operation")?.remove("jsonPath");
        let patch: json_patch::Patch = serde_json::from_value(json!([operation]))?;
        json_patch::patch(document, &patch).with_context(|| operation.to_string())?;
    }
    Ok(())
}

fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer} in {value}"))
}

//! The scouts, as their control planes hand them to Envoy: what the manifests say, put into a bootstrap, in a real Envoy, which measures.

use std::time::Duration;

use idleguard_harness::envoy::{Config, Envoy, Options};
use idleguard_harness::project;
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::{Value, json};

use super::kustomize::{SCOUTS, kubectl, render};

/// What stands in a bootstrap of the control plane's, as far as the patches ask for it.
fn bootstrap(cluster: &str) -> Value {
    json!({
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
        "stats_config": { "stats_tags": [] },
        "static_resources": {
            "listeners": [],
            "clusters": [{
                "name": cluster,
                "type": "STATIC",
                "load_assignment": { "cluster_name": cluster, "endpoints": [{ "lb_endpoints": [
                    { "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 8080 } } } }
                ] }] },
            }],
        },
    })
}

/// RFC 6902's `add`, as far as it is used: a key, or the end of a list.
fn add(bootstrap: &mut Value, path: &str, value: &Value) {
    let (parent, key) = path.rsplit_once('/').expect("a path");
    let parent = bootstrap.pointer_mut(parent).unwrap_or_else(|| panic!("{path}"));
    match parent {
        Value::Array(list) if key == "-" => list.push(value.clone()),
        parent => parent[key] = value.clone(),
    }
}

/// What Istio's agent makes of the patches: what comes by extension discovery stands in the listener.
fn by_istio(bootstrap: &mut Value, document: &Value) {
    let patches = document["spec"]["configPatches"].as_array().expect("patches");
    let of = |kind: &str| {
        let patch = patches.iter().find(|patch| patch["applyTo"] == kind).expect("a patch");
        assert_eq!(patch["patch"]["operation"], "ADD", "{patch}");
        patch["patch"]["value"].clone()
    };
    let (extension, mut listener) = (of("EXTENSION_CONFIG"), of("LISTENER"));
    let filter = &mut listener["filter_chains"][0]["filters"][0];
    assert_eq!(filter["name"], extension["name"], "it is found by its name");
    assert_eq!(filter["config_discovery"]["type_urls"][0], extension["typed_config"]["@type"]);
    *filter = extension;
    add(bootstrap, "/static_resources/listeners/-", &listener);
    add(bootstrap, "/static_resources/clusters/-", &of("CLUSTER"));
    // Istio's bootstraps have it, in this form.
    let name = "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener";
    let typed = json!({ "@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": name, "value": { "buffer_size_kb": 64 } });
    let extensions = json!([{ "name": "envoy.bootstrap.internal_listener", "typed_config": typed }]);
    add(bootstrap, "/bootstrap_extensions", &extensions);
}

fn by_envoy_gateway(bootstrap: &mut Value, document: &Value) {
    for patch in document["spec"]["bootstrap"]["jsonPatches"].as_array().expect("patches") {
        assert_eq!(patch["op"], "add");
        add(bootstrap, patch["path"].as_str().expect("a path"), &patch["value"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shipped_measures_in_a_real_envoy() {
    let Some(kubectl) = project::or_skip(kubectl()) else { return };
    let (Some(_), Some(wasm)) = (project::or_skip(project::envoy()), project::or_skip(project::wasm())) else { return };
    for directory in SCOUTS {
        let manifests = render(&kubectl, directory, &[]).expect("manifests");
        let document = manifests.last().expect("a document");
        let is_istio = document["kind"] == "EnvoyFilter";
        let cluster = if is_istio { "outbound|443||api.example.com" } else { "httproute/default/api/rule/0" };
        let mut bootstrap = bootstrap(cluster);
        if is_istio {
            by_istio(&mut bootstrap, document)
        } else {
            by_envoy_gateway(&mut bootstrap, document)
        }
        let filter = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/config";
        let code = json!({ "local": { "filename": wasm.to_str().expect("UTF-8") } });
        bootstrap.pointer_mut(filter).expect("a plugin")["vm_config"]["code"] = code;
        let lb = StubLb::start(Mode::FinAt(Duration::from_secs(1)));
        let text =
            bootstrap.to_string().replace("\"port_value\":8080", &format!("\"port_value\":{}", lb.address().port()));
        let config = Config::parse(&text).expect("a bootstrap");
        let envoy =
            Envoy::start(&config, Options::default()).await.unwrap_or_else(|error| panic!("{directory}: {error:#}"));
        let name = "wasmcustom.idleguard.scout.external-api.lb_idle_timeout_ms";
        let found =
            envoy.wait_for(Duration::from_secs(20), name, |stats| stats.get(name).is_some_and(|found| *found > 0));
        found.await.unwrap_or_else(|error| panic!("{directory}: {error:#}\n{}", envoy.log_tail()));
        let found = envoy.stat(name).await.expect("a gauge");
        assert!((950..=1_050).contains(&found), "{directory}: {found}");
    }
}

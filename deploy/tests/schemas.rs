//! The manifests against the schemas of the custom resource definitions, by Python's `jsonschema`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use idleguard_cli::recommend::{Style, recommend, written};
use idleguard_core::timeout::Margin;
use idleguard_harness::project;
use serde_json::{Value, json};

use super::kustomize::{DIRECTORIES, SCOUTS, documents, kubectl, render};

/// Reads `[[schema, document], …]` and prints what is wrong with each document, as `[[…], …]`.
const VALIDATE: &str = "import json, sys; from jsonschema import Draft7Validator as V; \
    print(json.dumps([[f'{e.json_path}: {e.message}' for e in V(s).iter_errors(d)] \
    for s, d in json.load(open(sys.argv[1]))]))";

/// Python with `jsonschema`: the project's `.venv`, or the one on the `PATH`.
fn python() -> Result<PathBuf> {
    let own = Some(project::root().join(".venv/bin/python")).filter(|path| path.is_file());
    let found = own.into_iter().chain(project::program("python3")).find(|python| {
        let import = Command::new(python).args(["-c", "import jsonschema"]).output();
        import.is_ok_and(|output| output.status.success())
    });
    found.context("there is no Python with jsonschema: run `make clients`")
}

/// The schema of a document's kind. `Service` is no custom resource, and has none.
fn schema(document: &Value) -> Result<Value> {
    let kind = document["kind"].as_str().context("a kind")?;
    let path = project::root().join("deploy/tests/schemas").join(format!("{kind}.json"));
    Ok(serde_json::from_str(&fs::read_to_string(&path).with_context(|| path.display().to_string())?)?)
}

/// What is wrong with each document.
fn complaints(python: &PathBuf, documents: &[Value]) -> Result<Vec<Vec<String>>> {
    let pairs = documents.iter().map(|document| Ok(json!([schema(document)?, document]))).collect::<Result<Value>>()?;
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), pairs.to_string())?;
    let output = Command::new(python).args(["-c", VALIDATE]).arg(file.path()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn manifests_are_valid() {
    let Some(kubectl) = project::or_skip(kubectl()) else { return };
    let Some(python) = project::or_skip(python()) else { return };
    for directory in DIRECTORIES.into_iter().chain(SCOUTS) {
        let mut documents = render(&kubectl, directory, &[]).expect("manifests");
        assert!(documents.len() >= if SCOUTS.contains(&directory) { 1 } else { 3 }, "{directory}: {documents:?}");
        assert!(documents.iter().all(|document| document["kind"] != "Settings"), "settings are not for the cluster");
        documents.retain(|document| document["kind"] != "Service");
        let found = complaints(&python, &documents).expect("a verdict");
        assert!(found.iter().all(Vec::is_empty), "{directory}: {found:#?}");
        let mut misspelt = documents.clone();
        misspelt.iter_mut().for_each(|document| document["spec"]["selektor"] = "idleguard".into());
        let found = complaints(&python, &misspelt).expect("a verdict");
        assert!(found.iter().all(|of_one| !of_one.is_empty()), "{directory}: the schemas are closed");
    }
}

/// The patches for Istio and Envoy Gateway, for each form of a cluster's name and for timeouts of any length.
#[test]
fn what_is_recommended_is_valid() {
    let Some(python) = project::or_skip(python()) else { return };
    let (mut found, mut timeouts) = (Vec::new(), Vec::new());
    for (style, key, clusters) in [
        (
            Style::Istio,
            "/spec/trafficPolicy/connectionPool/http/idleTimeout",
            &["outbound|443||api.example.com", "outbound|80||*.example.com", "payments", "Payments_API"][..],
        ),
        (
            Style::Istio,
            "/spec/subsets/0/trafficPolicy/connectionPool/http/idleTimeout",
            &["outbound|443|v1|api.example.com"],
        ),
        (
            Style::EnvoyGateway,
            "/spec/timeout/http/connectionIdleTimeout",
            &["httproute/shop/payments/rule/0", "grpcroute/shop/payments/rule/0", "payments"],
        ),
    ] {
        for (&cluster, millis) in clusters.iter().zip([250, 3_007, 60_007, 90_000].iter().cycle()) {
            let dump = json!({ "configs": [{
                "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
                "dynamic_active_clusters": [{ "cluster": { "name": cluster } }],
            }]});
            let stats = format!("wasmcustom.idleguard.scout.{cluster}.lb_idle_timeout_ms: {millis}\n");
            let (all, notes) = recommend(&dump, &stats, Margin::Share(0.1)).expect("a recommendation");
            let [one] = all.as_slice() else { panic!("{cluster}: {notes:?}") };
            let text = written(one, style);
            let [document] = <[Value; 1]>::try_from(documents(&text).expect("YAML")).expect("one document");
            let timeout = document.pointer(key).unwrap_or_else(|| panic!("{text}"));
            timeouts.push(timeout.as_str().expect("a duration").to_owned());
            found.push(document);
        }
    }
    let complaints_of = |documents: &[Value]| complaints(&python, documents).expect("a verdict");
    assert!(complaints_of(&found).iter().all(Vec::is_empty), "{:#?}\n{found:#?}", complaints_of(&found));
    assert_eq!(timeouts, ["0.22s", "2.7s", "54s", "81s", "0.22s", "220ms", "2700ms", "54s"]);
    let kinds: Vec<_> = found.iter().filter_map(|document| document.pointer("/spec/targetRefs/0/kind")).collect();
    assert_eq!(kinds, ["HTTPRoute", "GRPCRoute", "HTTPRoute"]);
    for document in &mut found {
        document["spec"]["idle"] = "1s".into();
    }
    assert!(complaints_of(&found).iter().all(|of_one| !of_one.is_empty()), "the schemas are closed");
}

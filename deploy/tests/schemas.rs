//! The manifests against the schemas of the custom resource definitions, by Python's `jsonschema`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use idleguard_harness::project;
use serde_json::{Value, json};

use super::kustomize::{DIRECTORIES, SCOUTS, kubectl, render};

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

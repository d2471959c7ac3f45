//! Renders a directory of `deploy/` as `kubectl kustomize` does, with settings of one's own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use idleguard_harness::project;
use serde_json::Value;

/// The directories with manifests.
pub(crate) const DIRECTORIES: [&str; 4] =
    ["istio/egress-gateway", "istio/sidecar", "istio/ingress-gateway", "envoy-gateway"];

/// `kubectl`: `KUBECTL`, or the project's `.venv`, or the one on the `PATH`.
pub(crate) fn kubectl() -> Result<PathBuf> {
    let own = || Some(project::root().join(".venv/bin/kubectl")).filter(|path| path.is_file());
    let found = std::env::var_os("KUBECTL").filter(|path| !path.is_empty()).map(PathBuf::from);
    found
        .or_else(own)
        .or_else(|| project::program("kubectl"))
        .context("there is no kubectl: set KUBECTL to its path, or run `make clients`")
}

/// The manifests of a directory with these settings changed.
pub(crate) fn render(kubectl: &Path, directory: &str, settings: &[(&str, &str)]) -> Result<Vec<Value>> {
    let source = project::root().join("deploy").join(directory);
    let copy = tempfile::tempdir()?;
    for entry in fs::read_dir(&source)? {
        let entry = entry?;
        fs::copy(entry.path(), copy.path().join(entry.file_name()))?;
    }
    let path = copy.path().join("settings.yaml");
    let mut file = documents(&fs::read_to_string(&path)?)?.pop().context("settings")?;
    for (key, value) in settings {
        let setting = file.pointer_mut(&format!("/data/{key}")).with_context(|| format!("no setting {key}"))?;
        *setting = (*value).into();
    }
    fs::write(&path, file.to_string())?;
    let output = Command::new(kubectl).arg("kustomize").arg(copy.path()).output()?;
    ensure!(output.status.success(), "{directory}: {}", String::from_utf8_lossy(&output.stderr));
    documents(&String::from_utf8(output.stdout)?)
}

/// The settings of a directory, as they are shipped.
pub(crate) fn settings(directory: &str) -> Result<Vec<(String, String)>> {
    let path = project::root().join("deploy").join(directory).join("settings.yaml");
    let file = documents(&fs::read_to_string(path)?)?.pop().context("settings")?;
    let data = file["data"].as_object().context("data")?;
    Ok(data.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect())
}

/// The documents of a YAML stream.
pub(crate) fn documents(yaml: &str) -> Result<Vec<Value>> {
    use serde::Deserialize;
    serde_norway::Deserializer::from_str(yaml).map(|document| Ok(Value::deserialize(document)?)).collect()
}

/// The document of this kind.
pub(crate) fn of_kind<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

/// The words of every text in a document, but for what another setting says: Envoy Gateway's names are made of several.
fn words(value: &Value, other_settings: &[&str], into: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            let own = other_settings.iter().fold(text.clone(), |text, other| text.replace(other, ""));
            into.extend(own.split(['/', '\'']).map(str::to_owned));
            into.insert(own);
        }
        Value::Array(list) => list.iter().for_each(|value| words(value, other_settings, into)),
        Value::Object(object) => object.values().for_each(|value| words(value, other_settings, into)),
        _ => {}
    }
}

/// A setting that someone changes is changed everywhere.
#[test]
fn every_setting_reaches_all_its_places() {
    let Some(kubectl) = project::or_skip(kubectl()) else { return };
    for directory in DIRECTORIES {
        let shipped = settings(directory).expect("settings");
        for (key, default) in &shipped {
            let documents = render(&kubectl, directory, &[(key.as_str(), "changed")]).expect("manifests");
            let mut found = BTreeSet::new();
            let others: Vec<_> = shipped.iter().filter(|(of, _)| of == "cluster" && of != key).collect();
            let others: Vec<_> = others.iter().map(|(_, value)| value.as_str()).collect();
            documents.iter().for_each(|document| words(document, &others, &mut found));
            assert!(found.contains("changed"), "{directory}: {key} reaches nothing");
            // "http" is also what the filter is called.
            assert!(key == "listener" || !found.contains(default), "{directory}: {key} does not reach every {default}");
        }
    }
}

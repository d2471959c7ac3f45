//! Renders a directory of `deploy/` as `kubectl kustomize` does, with settings of one's own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use idleguard_harness::project;
use serde_json::{Value, json};

/// The directories with manifests.
pub(crate) const DIRECTORIES: [&str; 5] =
    ["istio/egress-gateway", "istio/sidecar", "istio/ingress-gateway", "istio/ingress-gateway-api", "envoy-gateway"];

/// Those with a scout, which has no lanes.
pub(crate) const SCOUTS: [&str; 2] = ["istio/scout", "envoy-gateway/scout"];

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
pub(crate) fn render(kubectl: &Path, directory: &str, settings: &[(&str, Value)]) -> Result<Vec<Value>> {
    let source = project::root().join("deploy").join(directory);
    let copy = tempfile::tempdir()?;
    for entry in fs::read_dir(&source)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            continue; // a directory of its own
        }
        fs::copy(entry.path(), copy.path().join(entry.file_name()))?;
    }
    let path = copy.path().join("settings.yaml");
    let mut file = documents(&fs::read_to_string(&path)?)?.pop().context("settings")?;
    for (key, value) in settings {
        let setting = file.pointer_mut(&format!("/data/{key}")).with_context(|| format!("no setting {key}"))?;
        *setting = value.clone();
    }
    fs::write(&path, file.to_string())?;
    let output = Command::new(kubectl).arg("kustomize").arg(copy.path()).output()?;
    ensure!(output.status.success(), "{directory}: {}", String::from_utf8_lossy(&output.stderr));
    documents(&String::from_utf8(output.stdout)?)
}

/// The settings of a directory, as they are shipped.
pub(crate) fn settings(directory: &str) -> Result<Vec<(String, Value)>> {
    let path = project::root().join("deploy").join(directory).join("settings.yaml");
    let file = documents(&fs::read_to_string(path)?)?.pop().context("settings")?;
    let data = file["data"].as_object().context("data")?;
    Ok(data.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// The documents of a YAML stream.
pub(crate) fn documents(yaml: &str) -> Result<Vec<Value>> {
    use serde::Deserialize;
    serde_norway::Deserializer::from_str(yaml).map(|document| Ok(Value::deserialize(document)?)).collect()
}

/// The documents of this kind.
pub(crate) fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a Value> {
    documents.iter().filter(|document| document["kind"] == kind).collect()
}

/// Everything that a document says: its keys, values, and the parts of which they are made.
fn words(value: &Value, into: &mut BTreeSet<String>) {
    let mut text = |text: &str| {
        into.extend(text.split(['/', '.', '|']).flat_map(|part| part.split("-idle-")).map(str::to_owned));
        into.insert(text.to_owned());
    };
    match value {
        Value::String(string) => text(string),
        Value::Number(number) => text(&number.to_string()),
        Value::Array(list) => list.iter().for_each(|value| words(value, into)),
        Value::Object(object) => {
            object.keys().for_each(|key| text(key));
            object.values().for_each(|value| words(value, into));
        }
        _ => {}
    }
}

/// A setting that someone changes is changed everywhere. Names that share their words are all changed to tell them apart.
#[test]
fn every_setting_reaches_all_its_places() {
    let Some(kubectl) = project::or_skip(kubectl()) else { return };
    for directory in DIRECTORIES.into_iter().chain(SCOUTS) {
        let shipped = settings(directory).expect("settings");
        let marked: Vec<(&str, Value)> = shipped
            .iter()
            .map(|(key, value)| match value {
                Value::Number(_) => (key.as_str(), json!(4711)),
                Value::Object(_) => (key.as_str(), json!({"changed-lanes": "4s"})),
                _ => (key.as_str(), format!("changed{key}").into()),
            })
            .collect();
        let documents = render(&kubectl, directory, &marked).expect("manifests");
        let mut found = BTreeSet::new();
        documents.iter().for_each(|document| {
            let mut document = document.clone();
            // Names that are the project's own, in the words of which a default may be.
            document.as_object_mut().expect("an object").retain(|key, _| key == "metadata" || key == "spec");
            words(&document, &mut found);
        });
        for ((key, default), (_, marker)) in shipped.iter().zip(&marked) {
            let mut of_marker = BTreeSet::new();
            words(marker, &mut of_marker);
            assert!(of_marker.is_subset(&found), "{directory}: {key} reaches nothing");
            let defaults: Vec<String> = match default {
                Value::Object(lanes) => lanes.keys().cloned().collect(),
                Value::Number(number) => vec![number.to_string()],
                // "http" is also a name of the project's, "shop" that of its example's destination and labels.
                _ => default
                    .as_str()
                    .filter(|text| !["http", "shop"].contains(text))
                    .map(str::to_owned)
                    .into_iter()
                    .collect(),
            };
            for default in defaults {
                assert!(!found.contains(&default), "{directory}: {key} does not reach every {default}");
            }
        }
    }
}

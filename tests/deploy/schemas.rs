//! The manifests against the schemas of the custom resource definitions.

use std::fs;

use idleguard_harness::project;
use serde_json::Value;

use super::kustomize::{DIRECTORIES, kubectl, render};

/// What is wrong with a document.
fn complaints(document: &Value) -> Vec<String> {
    let kind = document["kind"].as_str().expect("a kind");
    let path = project::root().join("tests/deploy/schemas").join(format!("{kind}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let schema = serde_json::from_str(&text).expect("a schema");
    let validator = jsonschema::draft7::new(&schema).expect("a schema");
    validator.iter_errors(document).map(|error| format!("{kind} {}: {error}", error.instance_path())).collect()
}

#[test]
fn manifests_are_valid() {
    let Some(kubectl) = project::or_skip(kubectl()) else { return };
    for directory in DIRECTORIES {
        let documents = render(&kubectl, directory, &[]).expect("manifests");
        assert!(documents.len() >= 2, "{directory}: {documents:?}");
        for document in &documents {
            assert_ne!(document["kind"], "ConfigMap", "{directory}: settings are not for the cluster");
            assert_eq!(complaints(document), Vec::<String>::new(), "{directory}");
            let mut misspelt = document.clone();
            misspelt["spec"]["selektor"] = "idleguard".into();
            assert!(!complaints(&misspelt).is_empty(), "the schema of {} is closed", document["kind"]);
        }
    }
}

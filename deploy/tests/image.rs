//! The OCI image, read by skopeo and by the rules of those who fetch it.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use idleguard_harness::project;
use serde_json::Value;

/// What stands for the module: it is not run here.
const MODULE: &[u8] = b"\0asm\x01\0\0\0 and the rest of a module";

fn skopeo(arguments: &[&str]) -> Result<String> {
    let program = project::program("skopeo").context("skopeo is not installed")?;
    // Debian keeps its policy in /etc/containers, others have none: this accepts what is not signed.
    let output = Command::new(program).arg("--insecure-policy").args(arguments).output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn manifest(directory: &Path) -> Value {
    serde_json::from_slice(&fs::read(directory.join("manifest.json")).expect("a manifest")).expect("JSON")
}

/// A blob of skopeo's `dir:` form.
fn blob(directory: &Path, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().expect("a digest").trim_start_matches("sha256:");
    fs::read(directory.join(digest)).expect("a blob")
}

#[test]
fn a_client_reads_both_forms() {
    if project::or_skip(project::program("skopeo").context("skopeo is not installed")).is_none() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let layout = directory.path().join("image");
    let written = idleguard_image::write(MODULE, "0.1.0", &layout).expect("an image");
    for (tag, digest) in [("compat", &written.compat), ("artifact", &written.artifact)] {
        let source = format!("oci:{}:{tag}", layout.display());
        let raw = skopeo(&["inspect", "--raw", &source]).expect("a manifest");
        fs::write(directory.path().join("raw"), raw).expect("a file");
        let found =
            skopeo(&["manifest-digest", &directory.path().join("raw").display().to_string()]).expect("a digest");
        assert_eq!(found.trim(), format!("sha256:{digest}"));
        // skopeo verifies every digest and size on the way.
        let copy = directory.path().join(tag);
        skopeo(&["copy", "--preserve-digests", &source, &format!("dir:{}", copy.display())]).expect("a copy");
    }

    // Istio and Envoy Gateway: the last layer is a compressed archive, and holds `plugin.wasm`.
    let compat = directory.path().join("compat");
    let layer = &manifest(&compat)["layers"].as_array().and_then(|layers| layers.last().cloned()).expect("a layer");
    assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    let bytes = blob(&compat, layer);
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
    let mut entry = archive.entries().expect("entries").next().expect("an entry").expect("an entry");
    assert_eq!(entry.path().expect("a path"), Path::new("plugin.wasm"));
    let mut module = Vec::new();
    entry.read_to_end(&mut module).expect("a module");
    assert_eq!(module, MODULE);

    // … or there are two layers, one of them the module.
    let artifact = directory.path().join("artifact");
    let manifest = manifest(&artifact);
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.module.wasm.config.v1+json");
    let layers = manifest["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 2);
    let is_module = |layer: &&Value| layer["mediaType"] == "application/vnd.module.wasm.content.layer.v1+wasm";
    assert_eq!(blob(&artifact, layers.iter().find(is_module).expect("a module")), MODULE);
}

#[test]
fn the_same_module_makes_the_same_image() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("image");
    let index = |module: &[u8]| {
        idleguard_image::write(module, "0.1.0", &image).expect("an image");
        fs::read(image.join("index.json")).expect("an index")
    };
    let first = index(MODULE);
    let other = index(b"another");
    assert!(first != other && first == index(MODULE));
    assert_eq!(fs::read_dir(image.join("blobs/sha256")).expect("blobs").count(), 6, "nothing is left of the others");
}

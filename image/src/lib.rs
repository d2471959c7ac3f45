//! The filter as an OCI image layout, in the two forms that Istio and Envoy Gateway fetch.
//!
//! | tag | what it is |
//! | --- | --- |
//! | `compat` | an ordinary image with `plugin.wasm` in its one layer, which every registry takes |
//! | `artifact` | an artifact with the module itself as a layer of type `application/vnd.module.wasm.content.layer.v1+wasm` |
//!
//! Both are defined by the Wasm Image Specification (<https://github.com/solo-io/wasm/tree/master/spec>), and read by Istio's
//! `pkg/wasm/imagefetcher.go` and Envoy Gateway's `internal/wasm/imagefetcher.go`. Nothing in them depends on when or where
//! they were made: the same module gives the same digests.

use std::io::{self, Write};
use std::path::Path;
use std::{fmt, fs};

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const WASM_CONFIG: &str = "application/vnd.module.wasm.config.v1+json";
const WASM_LAYER: &str = "application/vnd.module.wasm.content.layer.v1+wasm";

/// A SHA-256, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sha(String);

impl Sha {
    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl fmt::Display for Sha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The digests of what was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Of the module itself.
    pub module: Sha,
    /// Of the manifest tagged `compat`.
    pub compat: Sha,
    /// Of the manifest tagged `artifact`.
    pub artifact: Sha,
}

/// Writes the layout into a directory, which is emptied first if it holds an older one.
pub fn write(module: &[u8], version: &str, directory: &Path) -> io::Result<Written> {
    if directory.join("oci-layout").is_file() {
        fs::remove_dir_all(directory)?;
    }
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let put = |bytes: &[u8], media_type: &str| -> io::Result<Value> {
        let digest = Sha::of(bytes);
        fs::write(blobs.join(&digest.0), bytes)?;
        Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
    };
    let annotations = json!({
        "org.opencontainers.image.title": "idleguard",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "Apache-2.0",
    });

    let archive = archive(module)?;
    let layer = put(&compressed(&archive)?, LAYER)?;
    let config = json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": "wasm",
        "os": "wasip1",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", Sha::of(&archive))]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "idleguard-image"}],
    });
    let config = put(config.to_string().as_bytes(), CONFIG)?;
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
        "annotations": annotations});
    let mut compat = put(manifest.to_string().as_bytes(), MANIFEST)?;

    // Those who fetch it want two layers, the second of which they do not read.
    let config = put(
        json!({"type": "envoy_proxy", "abiVersions": ["0.2.1"], "config": {}}).to_string().as_bytes(),
        WASM_CONFIG,
    )?;
    let layers = [put(module, WASM_LAYER)?, config.clone()];
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        "annotations": annotations});
    let mut artifact = put(manifest.to_string().as_bytes(), MANIFEST)?;

    let written = Written { module: Sha::of(module), compat: digest(&compat), artifact: digest(&artifact) };
    for (manifest, tag) in [(&mut compat, "compat"), (&mut artifact, "artifact")] {
        if let Some(manifest) = manifest.as_object_mut() {
            manifest.insert("annotations".to_owned(), json!({"org.opencontainers.image.ref.name": tag}));
        }
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [compat, artifact]});
    fs::write(directory.join("index.json"), index.to_string())?;
    fs::write(directory.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    Ok(written)
}

fn digest(descriptor: &Value) -> Sha {
    let text = descriptor.get("digest").and_then(Value::as_str).unwrap_or_default();
    Sha(text.trim_start_matches("sha256:").to_owned())
}

/// `plugin.wasm`, readable by all, owned by root, of 1970.
fn archive(module: &[u8]) -> io::Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_size(module.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, "plugin.wasm", module)?;
    builder.into_inner()
}

fn compressed(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

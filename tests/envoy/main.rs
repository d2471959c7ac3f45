//! End to end: real Envoys with the project's own `envoy.yaml`, one file a promise.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects, missing_docs)]
#![allow(clippy::disallowed_methods)] // real Envoys need real time

mod client_ip_docs;
mod client_ip_kinds;
mod configuration;
mod far_end;
mod lanes;
mod next_hop;
mod no_stale_reuse;
#[path = "../../core/tests/reference/mod.rs"]
mod reference;
mod request;
mod scout;
mod true_client;
mod watching;

use std::time::Duration;

use idleguard_harness::envoy::{Config, Envoy, Options};
use idleguard_harness::project;
use tokio::sync::{RwLock, RwLockReadGuard};

/// Tests that need the whole machine run alone: with two cores, one's load is another's stall.
static MACHINE: RwLock<()> = RwLock::const_new(());

async fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().await
}

/// The project's `envoy.yaml` on free ports, or `None` (said, or a failure, see `IDLEGUARD_NO_SKIP`) if there is no Envoy or no
/// filter.
fn project_config() -> Option<Config> {
    project::or_skip(project::envoy())?;
    project::or_skip(project::wasm())?;
    Some(Config::project().expect("envoy.yaml").free_ports())
}

async fn start(config: &Config, workers: u32) -> Envoy {
    let options = Options { concurrency: workers, ..Options::default() };
    Envoy::start(config, options).await.expect("a running Envoy")
}

/// A metric of the destination `payments`.
async fn metric(envoy: &Envoy, name: &str) -> i64 {
    let stat = format!("wasmcustom.idleguard.destination.payments.{name}");
    i64::try_from(envoy.stat(&stat).await.expect("statistics")).expect("a number")
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A listener that Envoy reads from a file, again whenever that changes.
struct ByFile {
    directory: tempfile::TempDir,
    listener: std::cell::RefCell<Config>,
}

/// Moves the listener `ingress` into a file.
fn by_file(mut config: Config) -> (Config, ByFile) {
    const LISTENERS: &str = "static_resources/listeners";
    let directory = tempfile::tempdir().expect("a folder");
    let listener = config.get(&format!("{LISTENERS}/ingress")).expect("the listener").clone();
    let rest = config.get_mut(LISTENERS).and_then(serde_json::Value::as_array_mut).expect("listeners");
    rest.retain(|listener| listener["name"] != "ingress");
    let file = directory.path().join("listeners.json");
    let config = config
        .set("node", serde_json::json!({"id": "test", "cluster": "test"}))
        .set(
            "dynamic_resources/lds_config",
            serde_json::json!({"resource_api_version": "V3", "path_config_source": {"path": file, "watched_directory": {"path": directory.path()}}}),
        );
    let only = serde_json::json!({"static_resources": {"listeners": [listener]}});
    let file = ByFile { directory, listener: std::cell::RefCell::new(Config::parse(&only.to_string()).expect("JSON")) };
    file.write();
    (config, file)
}

impl ByFile {
    /// Changes the configuration of the HTTP filter while Envoy runs.
    fn http_filter(&self, edit: impl FnMut(&mut serde_json::Value)) {
        let edited = self.listener.borrow().clone().edit_http_filter(edit);
        self.listener.replace(edited);
        self.write();
    }

    /// Renamed into place, so that Envoy never reads half of it.
    fn write(&self) {
        let mut listener = self.listener.borrow().get("static_resources/listeners/0").expect("one").clone();
        listener["@type"] = "type.googleapis.com/envoy.config.listener.v3.Listener".into();
        let new = self.directory.path().join("new.json");
        std::fs::write(&new, serde_json::json!({"resources": [listener]}).to_string()).expect("a file");
        std::fs::rename(new, self.directory.path().join("listeners.json")).expect("a file renamed");
    }
}

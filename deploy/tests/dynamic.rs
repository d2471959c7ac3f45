//! `deploy/dynamic`: a policy that changes while everything runs takes effect, closes nothing and forgets nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use idleguard_harness::envoy::{Config, Envoy, Options};
use idleguard_harness::load::{Load, Pattern};
use idleguard_harness::project;
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use super::kustomize::documents;

/// The example as it is shipped, with everything in a directory of its own.
struct Example {
    envoy: Envoy,
    directory: TempDir,
}

impl Example {
    async fn start(lb: &StubLb, lb_idle_timeout: &str) -> Option<Self> {
        project::or_skip(project::envoy())?;
        let wasm = project::or_skip(project::wasm())?;
        let directory = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink(wasm, directory.path().join("idleguard.wasm")).expect("a link");
        change(directory.path(), lb_idle_timeout).expect("a file");
        let config = Config::parse(&shipped("envoy.yaml", directory.path()).expect("envoy.yaml")).expect("envoy.yaml");
        let envoy = Envoy::start(&config.free_ports().upstream(lb.address()), Options::default()).await.expect("Envoy");
        Some(Self { envoy, directory })
    }

    /// Changes the policy, and waits until Envoy has taken it.
    async fn change(&self, lb_idle_timeout: &str) {
        let reloads = |stats: &BTreeMap<String, u64>| {
            stats.iter().filter(|(name, _)| name.ends_with(".config_reload")).map(|(_, count)| count).sum::<u64>()
        };
        let before = reloads(&self.envoy.stats().await.expect("statistics"));
        change(self.directory.path(), lb_idle_timeout).expect("a file");
        let taken = |stats: &BTreeMap<String, u64>| reloads(stats) > before;
        self.envoy.wait_for(Duration::from_secs(10), "extension_config", taken).await.expect("a new configuration");
    }

    /// Waits until requests go to the lane with this idle timeout.
    async fn is_on_lane(&self, idle_timeout: Duration) {
        let wanted = u64::try_from(idle_timeout.as_millis()).expect("milliseconds");
        let metric = "wasmcustom.idleguard.destination.payments.lane_idle_timeout_ms";
        let found = |stats: &BTreeMap<String, u64>| stats.get(metric) == Some(&wanted);
        self.envoy.wait_for(Duration::from_secs(10), "idleguard", found).await.expect("the lane");
    }
}

fn shipped(file: &str, directory: &Path) -> Result<String> {
    let text = fs::read_to_string(project::root().join("deploy/dynamic").join(file))?;
    Ok(text.replace("/etc/idleguard", &directory.display().to_string()))
}

/// Writes the file anew, at once.
fn change(directory: &Path, lb_idle_timeout: &str) -> Result<()> {
    let mut response: Value = documents(&shipped("http.yaml", directory)?)?.remove(0);
    let plugin = "/resources/0/typed_config/config/configuration/value/destinations/payments/lb_idle_timeout";
    *response.pointer_mut(plugin).expect("the configuration of the filter") = json!(lb_idle_timeout);
    let new = directory.join("new");
    fs::write(&new, response.to_string())?;
    Ok(fs::rename(new, directory.join("http.yaml"))?)
}

/// The load balancer forgets after 5 s, which is said only when requests run already: the next change of lane is down, at once.
#[tokio::test]
async fn a_changed_timeout_takes_effect_under_traffic() {
    let lb = StubLb::start(Mode::SilentRst(Duration::from_secs(5)));
    let Some(example) = Example::start(&lb, "60s").await else { return };
    example.is_on_lane(Duration::from_secs(54)).await;
    // No pause comes near the far end's timeout: nothing has a reason to fail, before, while and after.
    let gap = (Duration::ZERO, Duration::from_secs(2));
    let load = Load::post(example.envoy.ingress(), Pattern::Scattered { gap }).clients(20).run(Duration::from_secs(8));
    let changes = async {
        sleep(Duration::from_secs(2)).await;
        example.change("5s").await;
        example.is_on_lane(Duration::from_secs(4)).await;
        sleep(Duration::from_secs(2)).await;
        example.change("2s").await;
        example.is_on_lane(Duration::from_millis(900)).await;
    };
    let (report, ()) = tokio::join!(load, changes);
    assert!(report.ok > 50 && report.failed() == 0, "{report}");
    // Nobody waits for the idle timeout on a lane that is left: 900 ms are far below what the load balancer allows.
    let gap = (Duration::ZERO, Duration::from_secs(10));
    let report =
        Load::post(example.envoy.ingress(), Pattern::Scattered { gap }).clients(40).run(Duration::from_secs(12)).await;
    assert!(report.ok > 50 && report.failed() == 0, "{report}");
}

/// A configuration that is refused changes nothing.
#[tokio::test]
async fn a_refused_policy_leaves_the_old_one_in_force() {
    let lb = StubLb::start(Mode::Stable);
    let Some(example) = Example::start(&lb, "5s").await else { return };
    example.is_on_lane(Duration::from_secs(4)).await;
    change(example.directory.path(), "soon").expect("a file");
    let refused =
        |stats: &BTreeMap<String, u64>| stats.iter().any(|(name, count)| name.ends_with(".config_fail") && *count > 0);
    example.envoy.wait_for(Duration::from_secs(10), "extension_config", refused).await.expect("a refusal");
    example.is_on_lane(Duration::from_secs(4)).await;
}

//! `deploy/dynamic`: a policy that changes while everything runs takes effect, closes nothing and forgets nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use idleguard_harness::envoy::{Config, Envoy, Options};
use idleguard_harness::load::{Load, Pattern};
use idleguard_harness::stub_lb::{Mode, StubLb};
use idleguard_harness::{http, project};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use super::kustomize::documents;

const FILES: [&str; 2] = ["http.yaml", "connection.yaml"];

/// The example as it is shipped, with everything in a directory of its own.
struct Example {
    envoy: Envoy,
    directory: TempDir,
}

impl Example {
    async fn start(lb: &StubLb, policy: &Value) -> Option<Self> {
        project::or_skip(project::envoy())?;
        let wasm = project::or_skip(project::wasm())?;
        let directory = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink(wasm, directory.path().join("idleguard.wasm")).expect("a link");
        change(directory.path(), policy).expect("files");
        let config = Config::parse(&shipped("envoy.yaml", directory.path()).expect("envoy.yaml")).expect("envoy.yaml");
        let envoy = Envoy::start(&config.free_ports().upstream(lb.address()), Options::default()).await.expect("Envoy");
        Some(Self { envoy, directory })
    }

    /// Changes the policy of both filters, and waits until Envoy has taken it.
    async fn change(&self, policy: &Value) {
        let reloads = |stats: &BTreeMap<String, u64>| {
            stats.iter().filter(|(name, _)| name.ends_with(".config_reload")).map(|(_, count)| count).sum::<u64>()
        };
        let before = reloads(&self.envoy.stats().await.expect("statistics"));
        change(self.directory.path(), policy).expect("files");
        let both = |stats: &BTreeMap<String, u64>| reloads(stats) >= before + 2;
        self.envoy.wait_for(Duration::from_secs(10), "extension_config", both).await.expect("a new configuration");
    }

    async fn stat(&self, name: &str) -> u64 {
        self.envoy.stat(name).await.expect("statistics")
    }

    async fn metric(&self, name: &str) -> u64 {
        self.stat(&format!("wasmcustom.idleguard.destination.payments.{name}")).await
    }

    /// Connections that were closed by idleguard, and those that were closed under a request. A sentinel that the load balancer
    /// closes is neither.
    async fn closed(&self) -> (u64, u64, u64) {
        (
            self.metric("connections_closed_idle").await,
            self.metric("connections_closed_lifetime").await,
            self.stat("cluster.payments.upstream_cx_destroy_with_active_rq").await,
        )
    }
}

fn shipped(file: &str, directory: &Path) -> Result<String> {
    let text = fs::read_to_string(project::root().join("deploy/dynamic").join(file))?;
    Ok(text.replace("/etc/idleguard", &directory.display().to_string()))
}

/// Writes both files anew, each at once.
fn change(directory: &Path, policy: &Value) -> Result<()> {
    for file in FILES {
        let mut response = documents(&shipped(file, directory)?)?.remove(0);
        let plugin = "/resources/0/typed_config/config/configuration/value";
        let configuration = response.pointer_mut(plugin).expect("the configuration of the filter");
        match configuration.get_mut("policy") {
            Some(own) => *own = policy.clone(),
            None => configuration["destinations"]["payments"] = policy.clone(),
        }
        let new = directory.join("new");
        fs::write(&new, response.to_string())?;
        fs::rename(new, directory.join(file))?;
    }
    Ok(())
}

/// The load balancer closes after 1 s, which nobody has told the filters.
#[tokio::test]
async fn what_was_learnt_stays_and_nothing_is_closed() {
    let lb = StubLb::start(Mode::FinAt(Duration::from_secs(1)));
    let learn = |margin: &str| json!({"lb_idle_timeout": "learn", "initial_limit": "500ms", "margin": margin, "retry_stale": "off"});
    let Some(example) = Example::start(&lb, &learn("10%")).await else { return };
    let near = |value: u64, wanted: u64| value.abs_diff(wanted) * 100 <= wanted * 5;
    let learning = async {
        let learnt = "wasmcustom.idleguard.destination.payments.learned_lb_idle_timeout_ms";
        let known =
            example.envoy.wait_for(Duration::from_secs(20), "idleguard", |stats| near(stats[learnt], 1_000)).await;
        known.expect("the timeout");
    };
    let gap = (Duration::ZERO, Duration::from_secs(2));
    let scattered = Load::post(example.envoy.ingress(), Pattern::Scattered { gap }).clients(20);
    let (report, ()) = tokio::join!(scattered.run(Duration::from_secs(8)), learning);
    assert!(report.ok > 50 && report.failed() == 0, "{report}");

    // Four connections with a request in flight at almost any time: none of them is ever idle for long.
    let busy = Load::post(example.envoy.ingress(), Pattern::Scattered { gap: (Duration::ZERO, Duration::ZERO) });
    let busy = busy.clients(4).path("/slow?ms=150").run(Duration::from_secs(5));
    let changes = async {
        sleep(Duration::from_secs(2)).await;
        let before = example.closed().await;
        let open = example.stat("cluster.payments.upstream_cx_active").await;
        assert!(open >= 4, "{open}");
        example.change(&learn("40%")).await;
        sleep(Duration::from_secs(1)).await;
        let (learnt, limit) =
            (example.metric("learned_lb_idle_timeout_ms").await, example.metric("idle_limit_ms").await);
        assert!(near(learnt, 1_000) && near(limit, 600), "{learnt} {limit}");
        (before, example.closed().await)
    };
    let (report, (before, after)) = tokio::join!(busy, changes);
    assert!(report.ok > 50 && report.failed() == 0 && report.connections == 4, "{report}");
    assert_eq!(before, after, "connections were closed");
}

/// A connection that is busy since before the change keeps its filter's old configuration alive, but not in force.
#[tokio::test]
async fn a_longer_timeout_is_in_force_beside_old_connections() {
    let lb = StubLb::start(Mode::Stable);
    let Some(example) = Example::start(&lb, &json!({"lb_idle_timeout": "1s"})).await else { return };
    let ingress = example.envoy.ingress();
    let at_once = Pattern::Scattered { gap: (Duration::ZERO, Duration::ZERO) };
    let busy = tokio::spawn(Load::post(ingress, at_once).path("/slow?ms=150").run(Duration::from_secs(8)));
    sleep(Duration::from_millis(500)).await;
    example.change(&json!({"lb_idle_timeout": "10s"})).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(example.metric("idle_limit_ms").await, 9_000);
    // One more connection than the busy one needs.
    let slow = || http::get(ingress, "/slow?ms=400");
    slow().await.expect("an answer");
    let opened = example.stat("cluster.payments-lb.upstream_cx_total").await;
    for _ in 0..2 {
        sleep(Duration::from_millis(1_700)).await;
        slow().await.expect("an answer");
    }
    assert_eq!(example.stat("cluster.payments-lb.upstream_cx_total").await, opened, "idle connections are used again");
    assert_eq!(example.stat("cluster.payments.upstream_cx_destroy").await, 0, "and none has been closed");
    assert!(!busy.is_finished(), "an old connection is busy all the time");
    let report = busy.await.expect("a task");
    assert!(report.ok > 20 && report.failed() == 0, "{report}");
}

//! The manifests at work: behind the same load balancer, which forgets idle connections silently and answers with RST, the
//! generated configuration fails as it is, and does not fail with the patches.

use std::time::Duration;

use anyhow::Result;
use idleguard_harness::envoy::{Envoy, Options};
use idleguard_harness::load::{Load, Pattern, Report};
use idleguard_harness::stub_lb::{self, Mode, StubLb};
use idleguard_harness::{http, project};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::kustomize::{kubectl, of_kind, render};
use super::xds::{Resources, fixture, list};
use super::{envoy_gateway, istio};

const LB_IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Added to requests by the tests' routes.
const GENERATION: &str = "x-generation";

/// Two cases at a time: on two cores more would be each other's stalls.
static TURN: Semaphore = Semaphore::const_new(2);

/// A running Envoy, its load balancer, and the files it reads.
struct Running {
    envoy: Envoy,
    lb: StubLb,
    listener: &'static str,
    _directory: TempDir,
}

impl Running {
    async fn start(mut xds: Resources, bootstrap: Value, listener: &'static str, tls: bool) -> Result<Self> {
        let mode = Mode::SilentRst(LB_IDLE_TIMEOUT);
        let tls = tls.then(|| vec!["http/1.1"]);
        let lb = StubLb::with(stub_lb::Options { mode, tls, ..stub_lb::Options::default() })?;
        let directory = tempfile::tempdir()?;
        let value = "%FILTER_STATE(wasm.idleguard.generation:PLAIN)%";
        for host in xds.routes.iter_mut().flat_map(|routes| list(routes, "virtual_hosts")) {
            host["request_headers_to_add"] = json!([{"header": {"key": GENERATION, "value": value}}]);
        }
        let config = xds.start_here(bootstrap, lb.address(), directory.path())?;
        let envoy = Envoy::start(&config, Options::default()).await?;
        Ok(Self { envoy, lb, listener, _directory: directory })
    }

    /// Ten seconds of requests that nothing on the way may repeat, after pauses of up to twice the timeout.
    async fn load(&self, host: &str) -> Report {
        let address = self.envoy.listener(self.listener).expect("the listener");
        let gap = (Duration::ZERO, 2 * LB_IDLE_TIMEOUT);
        let mut report = Report::default();
        for pattern in [Pattern::Bursts { gap }, Pattern::Scattered { gap }] {
            let load = Load::post(address, pattern).clients(25).header("host", host).timeout(Duration::from_secs(5));
            report.add(load.run(Duration::from_secs(6)).await);
        }
        report
    }

    /// The headers that the application behind gets.
    async fn headers(&self, host: &str, sent: &[(&str, &str)]) -> Vec<(String, String)> {
        let address = self.envoy.listener(self.listener).expect("the listener");
        let host = [("host", host)];
        let sent: Vec<_> = host.iter().chain(sent).map(|(name, value)| (*name, value.as_bytes())).collect();
        let answer = http::send(address, "GET", "/headers", &sent, "").await.expect("an answer");
        serde_json::from_str(&answer.text()).expect("a list of headers")
    }

    async fn metric(&self, name: &str) -> Option<u64> {
        let stats = self.envoy.stats().await.expect("statistics");
        stats.get(&format!("wasmcustom.idleguard.destination.{name}")).copied()
    }
}

/// The bootstrap of Istio's proxies has this since 1.16.
fn istio_bootstrap() -> Value {
    let internal_listener = json!({
        "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
        "buffer_size_kb": 64,
    });
    json!({"bootstrap_extensions": [{"name": "envoy.bootstrap.internal_listener", "typed_config": internal_listener}]})
}

/// What istiod sends, as it is and with the manifests of a directory.
fn istio_resources(
    case: &str,
    context: &str,
    settings: &[(&str, &str)],
    plugin: impl FnOnce(&mut Value),
) -> Option<[Resources; 2]> {
    let kubectl = project::or_skip(kubectl())?;
    project::or_skip(project::envoy())?;
    project::or_skip(project::wasm())?;
    let plain = Resources::fixture(&format!("istio/{case}.yaml")).expect("a fixture");
    let documents = render(&kubectl, &format!("istio/{case}"), settings).expect("manifests");
    let mut guarded = plain.clone();
    let mut wasm_plugin = of_kind(&documents, "WasmPlugin").clone();
    plugin(&mut wasm_plugin);
    istio::add_wasm_plugin(&mut guarded, &wasm_plugin).expect("a plugin");
    istio::apply_envoy_filter(&mut guarded, of_kind(&documents, "EnvoyFilter"), context).expect("patches");
    assert!(istio::is_router_last(&mut guarded), "{guarded:#?}");
    Some([plain, guarded])
}

/// Only what is generated, without the patches, fails.
async fn only_plain_fails(plain: &Running, guarded: &Running, host: &str) {
    let (without, with) = {
        let _turn = TURN.acquire().await;
        tokio::join!(plain.load(host), guarded.load(host))
    };
    println!("{host}, {}: plain {without}; guarded {with}", guarded.listener);
    assert!(without.failed() > 0, "the load balancer does not do what it should: {without}");
    assert!(with.ok > 50 && with.failed() == 0, "{with}\n{}", guarded.envoy.log_tail());
}

/// Both filters are in one VM, and the connection filter sees the connections.
async fn is_guarded(running: &Running, host: &str) {
    assert_eq!(generation(running, host).await, None);
    assert_eq!(running.metric("external-api.stale_failures").await, Some(0));
    let opened = running.metric("external-api.connections_opened").await.unwrap_or_default();
    assert!(opened > 0 && running.lb.counters().opened >= opened, "{opened} {:?}", running.lb.counters());
}

/// The generation that the HTTP filter leaves to `set_filter_state`, as it does for a destination of which no connection filter
/// in the same VM has told.
async fn generation(running: &Running, host: &str) -> Option<String> {
    let headers = running.headers(host, &[]).await;
    let found = headers.into_iter().find(|(name, _)| name == GENERATION).map(|(_, value)| value);
    found.filter(|value| value.chars().any(|character| character.is_ascii_alphanumeric()))
}

async fn istio_guards(case: &str, context: &str, listener: &'static str, tls: bool) {
    let resources = istio_resources(case, context, &[("lbIdleTimeout", "2s")], |_| {});
    let Some([plain, guarded]) = resources else { return };
    let plain = Running::start(plain, istio_bootstrap(), listener, tls).await.expect("Envoy");
    let guarded = Running::start(guarded, istio_bootstrap(), listener, tls).await.expect("Envoy");
    only_plain_fails(&plain, &guarded, "api.example.com").await;
    is_guarded(&guarded, "api.example.com").await;
}

#[tokio::test]
async fn an_istio_egress_gateway() {
    istio_guards("egress-gateway", "GATEWAY", "0.0.0.0_8080", true).await;
}

#[tokio::test]
async fn an_istio_sidecar() {
    istio_guards("sidecar", "SIDECAR_OUTBOUND", "0.0.0.0_80", false).await;
}

#[tokio::test]
async fn an_istio_ingress_gateway() {
    let resources = istio_resources("ingress-gateway", "GATEWAY", &[], |plugin| {
        plugin["spec"]["pluginConfig"]["destinations"]["*"]["lb_idle_timeout"] = "2s".into();
        plugin["spec"]["pluginConfig"]["client_ip"]["trusted_proxies"] = json!(["127.0.0.0/8"]);
    });
    let Some([plain, guarded]) = resources else { return };
    let plain = Running::start(plain, istio_bootstrap(), "0.0.0.0_8080", false).await.expect("Envoy");
    let guarded = Running::start(guarded, istio_bootstrap(), "0.0.0.0_8080", false).await.expect("Envoy");
    only_plain_fails(&plain, &guarded, "shop.example.com").await;
    assert!(generation(&guarded, "shop.example.com").await.is_some());
    gets_the_client(&guarded, "shop.example.com").await;
}

#[tokio::test]
async fn envoy_gateway_behind_a_load_balancer() {
    let Some(kubectl) = project::or_skip(kubectl()) else { return };
    if project::or_skip(project::envoy()).is_none() || project::or_skip(project::wasm()).is_none() {
        return;
    }
    let documents = render(&kubectl, "envoy-gateway", &[("lbIdleTimeout", "2s")]).expect("manifests");
    let mut policy = of_kind(&documents, "EnvoyExtensionPolicy").clone();
    policy["spec"]["wasm"][0]["config"]["client_ip"]["trusted_proxies"] = json!(["127.0.0.0/8"]);
    let bootstrap = fixture("envoy-gateway/bootstrap.yaml").expect("a bootstrap");
    let plain = Resources::fixture("envoy-gateway/xds.yaml").expect("a fixture");
    let (mut patched, mut guarded) = (bootstrap.clone(), plain.clone());
    envoy_gateway::patch_bootstrap(&mut patched, of_kind(&documents, "EnvoyProxy")).expect("a bootstrap");
    envoy_gateway::add_extension_policy(&mut guarded, &policy).expect("a filter");
    envoy_gateway::apply_patch_policy(&mut guarded, of_kind(&documents, "EnvoyPatchPolicy")).expect("patches");
    let plain = Running::start(plain, bootstrap, "default/eg/http", false).await.expect("Envoy");
    let guarded = Running::start(guarded, patched, "default/eg/http", false).await.expect("Envoy");
    only_plain_fails(&plain, &guarded, "www.example.com").await;
    is_guarded(&guarded, "www.example.com").await;
    gets_the_client(&guarded, "www.example.com").await;
    let metrics = guarded.envoy.prometheus().await.expect("metrics");
    assert!(metrics.contains(r#"idleguard_destination="external-api""#), "{metrics}");
}

/// The application gets the address that the trusted proxy wrote, and nothing that the client wrote.
async fn gets_the_client(running: &Running, host: &str) {
    let sent =
        [("x-forwarded-for", "192.0.2.1, 203.0.113.7"), ("x-real-ip", "192.0.2.1"), ("true-client-ip", "192.0.2.1")];
    let headers = running.headers(host, &sent).await;
    let values = |name: &str| -> Vec<_> {
        headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    };
    assert_eq!(values("x-forwarded-for"), ["203.0.113.7, 127.0.0.1"], "{headers:?}");
    assert_eq!(values("x-real-ip"), ["203.0.113.7"], "{headers:?}");
    assert_eq!(values("true-client-ip"), Vec::<&str>::new(), "{headers:?}");
}

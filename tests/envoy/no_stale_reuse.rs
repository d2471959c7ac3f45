//! No request is sent on a connection that the LB has dropped, whichever way it drops it.

use std::time::Duration;

use idleguard_harness::envoy::Config;
use idleguard_harness::load::{Load, Pattern, Report};
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::json;

use super::{beside_others, metric, ms, project_config, start, with_policy};

const LB_IDLE_TIMEOUT: Duration = ms(2_000);

fn known() -> serde_json::Value {
    json!({"lb_idle_timeout": "2s", "retry_stale": "off"})
}

/// 60 clients that are silent for up to twice the LB's timeout, through `config`, half of the seconds for each pattern.
async fn load(config: &Config, mode: Mode, workers: u32, seconds: u64) -> (Report, i64) {
    let _turn = beside_others().await;
    let lb = StubLb::start(mode);
    let envoy = start(&config.clone().upstream(lb.address()), workers).await;
    let steady = Pattern::Scattered { gap: (ms(0), ms(4_000)) };
    let bursts = Pattern::Bursts { gap: (ms(0), ms(4_000)) };
    let mut report = Report::default();
    for pattern in [bursts, steady] {
        let clients = Load::post(envoy.ingress(), pattern).clients(60).timeout(ms(5_000));
        report.add(clients.run(ms(seconds * 500)).await);
    }
    println!("{mode:?}, {workers} workers: {report}");
    let stale = match config.to_string().contains("idleguard-payments") {
        true => metric(&envoy, "stale_failures").await,
        false => 0,
    };
    (report, stale)
}

/// Plain Envoy fails against this LB, and idleguard does not.
async fn only_plain_envoy_fails(mode: Mode, seconds: u64) {
    let Some(config) = project_config() else { return };
    let (plain, _) = load(&config.clone().without_idleguard(), mode, 1, 16).await;
    assert!(plain.failed() > 0, "{plain}");
    for workers in [1, 2] {
        let (guarded, stale) = load(&with_policy(config.clone(), &known()), mode, workers, seconds).await;
        assert!(guarded.ok > 100 && guarded.failed() == 0 && stale == 0, "{workers} workers: {guarded}");
    }
}

#[tokio::test]
async fn an_lb_that_forgets_silently_and_resets() {
    only_plain_envoy_fails(Mode::SilentRst(LB_IDLE_TIMEOUT), 30).await;
}

#[tokio::test]
async fn an_lb_that_forgets_silently_and_swallows() {
    only_plain_envoy_fails(Mode::SilentSwallow(LB_IDLE_TIMEOUT), 30).await;
}

/// With FIN or RST at the timeout only a request that is under way at that moment fails, so plain Envoy may get away.
#[tokio::test]
async fn an_lb_that_closes() {
    let Some(config) = project_config() else { return };
    for mode in [Mode::FinAt(LB_IDLE_TIMEOUT), Mode::RstAt(LB_IDLE_TIMEOUT)] {
        let (guarded, stale) = load(&with_policy(config.clone(), &known()), mode, 2, 12).await;
        assert!(guarded.ok > 100 && guarded.failed() == 0 && stale == 0, "{guarded}");
    }
}

#[tokio::test]
async fn a_response_may_take_longer_than_the_limit() {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let lb = StubLb::start(Mode::SilentRst(ms(1_000)));
    let policy = json!({"lb_idle_timeout": "1s", "retry_stale": "off"});
    let envoy = start(&with_policy(config, &policy).upstream(lb.address()), 1).await;
    let pattern = Pattern::Scattered { gap: (ms(0), ms(500)) };
    let slow = Load::post(envoy.ingress(), pattern).clients(10).path("/slow?ms=2700").timeout(ms(10_000));
    let report = slow.run(ms(9_000)).await;
    assert!(report.ok >= 20 && report.failed() == 0, "{report}");
    assert_eq!(metric(&envoy, "stale_failures").await, 0);
}

/// The far end drops connections earlier than we were told: the first failure ends the generation, and a request that may be
/// sent twice is.
#[tokio::test]
async fn an_idempotent_request_that_met_a_stale_connection_is_retried() {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let lb = StubLb::start(Mode::SilentRst(ms(500)));
    let policy = json!({"lb_idle_timeout": "60s"});
    let envoy = start(&with_policy(config, &policy).upstream(lb.address()), 1).await;
    let get = |method: &'static str| {
        let ingress = envoy.ingress();
        async move { idleguard_harness::http::send(ingress, method, "/", &[], "").await.expect("an answer").status }
    };
    assert_eq!(get("GET").await, 200);
    tokio::time::sleep(ms(900)).await;
    assert_eq!(get("GET").await, 200, "retried");
    assert_eq!(get("GET").await, 200, "of a new generation");
    tokio::time::sleep(ms(900)).await;
    assert_eq!(get("POST").await, 503, "never sent twice");
    tokio::time::sleep(ms(200)).await;
    assert_eq!(metric(&envoy, "stale_failures").await, 2);
}

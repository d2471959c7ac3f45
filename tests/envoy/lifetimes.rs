//! Connections end with their lifetime, while they are in use, and nobody notices.

use idleguard_harness::envoy::Config;
use idleguard_harness::load::{Load, Pattern, Report};
use idleguard_harness::project;
use idleguard_harness::servers::Server;
use idleguard_harness::stub_lb::{Mode, StubLb};
use idleguard_harness::{envoy::Envoy, http};
use serde_json::{Value, json};

use super::{beside_others, metric, ms, project_config, start, with_policy};

const SHORT_LIVED: &str = "1s";

fn policy() -> Value {
    json!({"lb_idle_timeout": "60s", "max_lifetime": SHORT_LIVED, "lifetime_jitter": "50%", "retry_stale": "off"})
}

async fn load(envoy: &Envoy, path: &str) -> Report {
    let pattern = Pattern::Scattered { gap: (ms(0), ms(50)) };
    Load::post(envoy.ingress(), pattern).clients(20).path(path).run(ms(4_000)).await
}

/// Whatever the response looks like, its connection ends behind it, and the others stay.
async fn retired(config: &Config, paths: &[&str]) {
    let envoy = start(&with_policy(config.clone(), &policy()), 2).await;
    for path in paths {
        let before = metric(&envoy, "connections_closed_lifetime").await;
        let report = load(&envoy, path).await;
        tokio::time::sleep(ms(200)).await;
        let closed = metric(&envoy, "connections_closed_lifetime").await - before;
        println!("{path}: {closed} retired, {report}");
        assert!(report.failed() == 0 && report.ok > 200 && closed >= 20, "{path}: {closed} retired, {report}");
    }
    let stats = envoy.stats().await.expect("statistics");
    // The pool was told; no other connection had to go with one that ended.
    assert!(stats["cluster.payments.upstream_cx_close_notify"] >= 20, "{stats:#?}");
    let steered = metric(&envoy, "fenced").await;
    let closed = metric(&envoy, "connections_closed_lifetime").await;
    assert!(steered * 10 <= closed, "{steered} generations for {closed} connections");
    assert_eq!(metric(&envoy, "stale_failures").await, 0);
}

#[tokio::test]
async fn behind_responses_of_every_kind() {
    let _turn = beside_others().await;
    let Some(config) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    retired(&config.upstream(lb.address()), &["/", "/drip?n=3&ms=5", "/bytes?n=200000", "/status?code=204"]).await;
}

/// They say `Connection: keep-alive`, which must not win.
#[tokio::test]
async fn behind_servers_that_say_keep_alive() {
    let _turn = beside_others().await;
    let Some(config) = project_config() else { return };
    let Some(nginx) = project::or_skip(Server::nginx(ms(60_000)).await) else { return };
    let Some(node) = project::or_skip(Server::node(ms(60_000), false).await) else { return };
    for server in [nginx, node] {
        retired(&config.clone().upstream(server.address()), &["/"]).await;
    }
}

/// What is said to the pool is not for the client, whose connection is another one.
#[tokio::test]
async fn the_clients_connection_stays() {
    let _turn = beside_others().await;
    let Some(config) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let policy = json!({"lb_idle_timeout": "60s", "max_lifetime": "100ms", "lifetime_jitter": "0%"});
    let envoy = start(&with_policy(config, &policy).upstream(lb.address()), 1).await;
    let response = http::get(envoy.ingress(), "/slow?ms=300").await.expect("an answer");
    assert_eq!((response.status.as_u16(), response.header("connection")), (200, None), "{:?}", response.headers);
    assert!(lb.wait_for(ms(2_000), |counters| counters.open == 0).await, "closed with its response");
    envoy
        .wait_for(ms(2_000), "idleguard", |stats| {
            stats["wasmcustom.idleguard.destination.payments.connections_closed_lifetime"] == 1
        })
        .await
        .expect("a retired connection");
}

/// A connection of HTTP/2 that always has a stream gets no more of them, and ends with its last one.
#[tokio::test]
async fn http2_that_is_never_idle() {
    let _turn = beside_others().await;
    let Some(config) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let envoy = start(&with_policy(config.http2("payments"), &policy()).upstream(lb.address()), 1).await;
    let report = load(&envoy, "/slow?ms=60").await;
    tokio::time::sleep(ms(400)).await;
    let closed = metric(&envoy, "connections_closed_lifetime").await;
    println!("{closed} retired, {report}");
    assert!(report.failed() == 0 && report.ok > 200, "{report}");
    assert!(closed >= 3, "{closed}");
    assert_eq!(metric(&envoy, "stale_failures").await, 0);
}

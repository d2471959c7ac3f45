//! The LB closes all connections at once, as in a restart: whoever sends a GET then doesn't notice.

use idleguard_harness::envoy::Envoy;
use idleguard_harness::http;
use idleguard_harness::stub_lb::{Mode, Options, StubLb};
use serde_json::json;
use tokio::task::JoinSet;

use super::{beside_others, metric, ms, project_config, start, with_policy};

/// An LB at some distance, so that its closes are under way for a while, and an Envoy.
async fn begin() -> Option<(StubLb, Envoy)> {
    let config = project_config()?;
    let lb = StubLb::with(Options { mode: Mode::Stable, delay: ms(25), ..Options::default() }).expect("a free port");
    let envoy = start(&with_policy(config, &json!({"lb_idle_timeout": "60s"})).upstream(lb.address()), 1).await;
    Some((lb, envoy))
}

/// So many requests at once; returns their statuses.
fn requests(envoy: &Envoy, method: &'static str, count: usize, answer_after_ms: u64) -> JoinSet<u16> {
    let ingress = envoy.ingress();
    let path = format!("/slow?ms={answer_after_ms}");
    let request = |path: String| async move {
        http::send(ingress, method, &path, &[], "").await.expect("an answer").status.as_u16()
    };
    (0..count).map(|_| request(path.clone())).collect()
}

#[tokio::test]
async fn a_retry_never_meets_another_connection_that_the_restart_has_closed() {
    let _turn = beside_others().await;
    let Some((lb, envoy)) = begin().await else { return };
    for round in 0..40 {
        // Sixteen connections in the pool, six of them under a request that has reached the LB.
        assert_eq!(requests(&envoy, "GET", 16, 20).join_all().await, [200; 16], "{round}");
        tokio::time::sleep(ms(30)).await;
        let in_flight = requests(&envoy, "GET", 6, 150);
        tokio::time::sleep(ms(80)).await;
        lb.close_all();
        assert_eq!(in_flight.join_all().await, [200; 6], "{round}");
    }
    assert!(metric(&envoy, "stale_failures").await > 0, "there was something to retry");
    assert!(!envoy.log().contains("Envoy refused"), "closes from whichever callback: {}", envoy.log_tail());
}

#[tokio::test]
async fn a_fresh_connection_is_trusted_until_the_lb_restarts() {
    let _turn = beside_others().await;
    let Some((lb, envoy)) = begin().await else { return };
    let broken_on_a_fresh_one = async |method| {
        let opened = lb.counters().opened;
        let in_flight = requests(&envoy, method, 1, 150);
        tokio::time::sleep(ms(80)).await;
        assert_eq!(lb.counters().opened, opened + 1, "on a connection of its own");
        lb.close_all();
        in_flight.join_all().await
    };
    // The request itself may be what ends the connection: it isn't sent twice.
    assert_eq!(broken_on_a_fresh_one("GET").await, [503]);
    assert_eq!(broken_on_a_fresh_one("GET").await, [503]);
    // Several at once: the LB restarts, and fresh connections are no better than others.
    assert_eq!(requests(&envoy, "GET", 8, 20).join_all().await, [200; 8]);
    lb.close_all();
    tokio::time::sleep(ms(100)).await;
    assert_eq!(broken_on_a_fresh_one("GET").await, [200]);
    // What a retry may not repeat still isn't.
    lb.close_all();
    tokio::time::sleep(ms(100)).await;
    assert_eq!(broken_on_a_fresh_one("POST").await, [503]);
}

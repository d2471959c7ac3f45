//! A request goes to the lane in force, and nobody but Envoy's router notices.

use std::net::SocketAddr;

use idleguard_harness::envoy::{Config, Envoy};
use idleguard_harness::http;
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::json;

use super::{ms, project_config, start};

pub(crate) const ROUTES: &str =
    "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config/route_config/virtual_hosts/0/routes";

/// Requests that went to a cluster, whose counters are the base's.
pub(crate) async fn requests_of(envoy: &Envoy, cluster: &str) -> u64 {
    let text = http::get(envoy.admin(), "/clusters").await.expect("an answer").text();
    let counts = text.lines().filter(|line| line.starts_with(&format!("{cluster}::")));
    counts.filter_map(|line| line.split_once("::rq_total::")?.1.parse::<u64>().ok()).sum()
}

/// Where five requests to this path go: `payments`, and each of its lanes.
async fn where_five_go(config: &Config, lb: SocketAddr, path: &str, headers: &[(&str, &[u8])]) -> (String, [u64; 4]) {
    let envoy = start(&config.clone().without_scout().upstream(lb), 1).await;
    let mut text = String::new();
    for _ in 0..5 {
        let answer = http::send(envoy.ingress(), "GET", path, headers, "").await.expect("an answer");
        assert_eq!(answer.status, 200);
        text = answer.text();
    }
    let mut counts = [0; 4];
    for (count, cluster) in counts.iter_mut().zip(["payments", "payments-54s", "payments-4s", "payments-900ms"]) {
        *count = requests_of(&envoy, cluster).await;
    }
    (text, counts)
}

#[tokio::test]
async fn the_longest_lane_within_the_limit_serves_and_the_application_sees_no_header() {
    let Some(config) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    for (timeout, expected) in
        [("learn", [0, 0, 5, 0]), ("60s", [0, 5, 0, 0]), ("1s", [0, 0, 0, 5]), ("2h", [5, 0, 0, 0])]
    {
        let (headers, counts) =
            where_five_go(&config.clone().lb_idle_timeout(timeout), lb.address(), "/headers", &[]).await;
        assert_eq!(counts, expected, "{timeout}");
        assert!(!headers.to_lowercase().contains("idleguard"), "{headers}");
    }
}

#[tokio::test]
async fn a_client_does_not_choose_its_lane() {
    let Some(config) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    for (timeout, expected) in [("60s", [0, 5, 0, 0]), ("2h", [5, 0, 0, 0])] {
        let config = config.clone().lb_idle_timeout(timeout);
        let claim = [("x-idleguard-lane", b"payments=900ms".as_slice())];
        let (headers, counts) = where_five_go(&config, lb.address(), "/headers", &claim).await;
        assert_eq!(counts, expected, "{timeout}");
        assert!(!headers.to_lowercase().contains("idleguard"), "{headers}");
    }
}

#[tokio::test]
async fn requests_that_go_elsewhere_are_left_alone() {
    let Some(config) = project_config() else { return };
    let (lb, other) = (StubLb::start(Mode::Stable), StubLb::start(Mode::Stable));
    let mut cluster = config.get("static_resources/clusters/payments").expect("the base").clone();
    cluster["name"] = "other".into();
    let config = config
        .policy("all_requests", false)
        .lb_idle_timeout("60s")
        .insert("static_resources/clusters", None, cluster)
        .endpoint("other", "127.0.0.1", other.address().port())
        .insert(ROUTES, Some(0), json!({"match": {"path": "/elsewhere"}, "route": {"cluster": "other"}}));
    let (_, counts) = where_five_go(&config, lb.address(), "/headers", &[]).await;
    assert_eq!(counts, [0, 5, 0, 0]);
    let envoy = start(&config.without_scout().upstream(lb.address()), 1).await;
    let answer = http::get(envoy.ingress(), "/elsewhere").await.expect("an answer");
    assert_eq!((answer.status.as_u16(), other.counters().requests), (200, 1));
}

#[tokio::test]
async fn a_retry_stays_on_its_lane() {
    let Some(mut config) = project_config() else { return };
    let lb = StubLb::start(Mode::SilentRst(ms(300)));
    let routes = config.get_mut(ROUTES).and_then(serde_json::Value::as_array_mut).expect("routes");
    for route in routes {
        route["route"]["retry_policy"] = json!({"retry_on": "reset", "num_retries": 1});
    }
    let envoy = start(&config.without_scout().lb_idle_timeout("60s").upstream(lb.address()), 1).await;
    for expected in [0, 1] {
        let answer = http::get(envoy.ingress(), "/").await.expect("an answer");
        assert_eq!(answer.status, 200);
        envoy
            .wait_for(ms(5_000), "retried", |stats| {
                stats.get("wasmcustom.idleguard.destination.payments.retried").copied().unwrap_or(0) == expected
            })
            .await
            .expect("retries counted");
        tokio::time::sleep(ms(700)).await;
    }
    assert_eq!(requests_of(&envoy, "payments-54s").await, 3);
    assert_eq!(requests_of(&envoy, "payments").await, 0);
}

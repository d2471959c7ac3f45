//! TLS and HTTP/2 towards the LB belong on the inner cluster: the connection filter sees plaintext, and works as without.

use idleguard_harness::envoy::{Config, Envoy};
use idleguard_harness::http;
use idleguard_harness::project;
use idleguard_harness::servers::Server;
use idleguard_harness::stub_lb::{Mode, Options, StubLb};
use serde_json::json;

use super::{beside_others, metric, ms, project_config, start, with_policy};

const CLOSED_IDLE: &str = "wasmcustom.idleguard.destination.payments.connections_closed_idle";

/// TLS on the inner cluster with this protocol; HTTP/2 must be told to the outer cluster, too, whose pool speaks it.
fn with_tls(config: Config, protocol: &str) -> Config {
    let config = config.upstream_tls_alpn("payments-lb", "lb.example", &[protocol]);
    if protocol == "h2" { config.http2("payments") } else { config }
}

async fn get(envoy: &Envoy, path: &str) -> http::Response {
    let response = http::get(envoy.ingress(), path).await.expect("an answer");
    assert_eq!(response.status, 200);
    response
}

/// If it saw ciphertext, the last byte of each drip would count as the end, and the limit would break the response.
#[tokio::test]
async fn a_response_in_tls_is_followed() {
    let _turn = beside_others().await;
    let Some(config) = project_config() else { return };
    for protocol in ["http/1.1", "h2"] {
        let options = Options { mode: Mode::Stable, tls: Some(vec![protocol]), ..Options::default() };
        let lb = StubLb::with(options).expect("an LB");
        let config = with_policy(config.clone(), &json!({"lb_idle_timeout": "1s", "retry_stale": "off"}));
        let envoy = start(&with_tls(config, protocol).upstream(lb.address()), 1).await;
        let response = get(&envoy, "/drip?n=3&ms=1350").await;
        assert_eq!(response.text(), "drip 0\ndrip 1\ndrip 2\n", "{protocol}");
        assert!(lb.wait_for(ms(6_000), |counters| counters.open == 0).await, "{protocol}");
        let records = lb.records();
        assert!(records.len() == 1 && records[0].sni.as_deref() == Some("lb.example"), "{protocol}: {records:?}");
        let age = records[0].close.and_then(|close| close.idle_age).expect("no exchange in flight");
        assert!(age >= ms(900), "{protocol}: {age:?}");
        envoy.wait_for(ms(2_000), "idleguard", |stats| stats[CLOSED_IDLE] == 1).await.expect("a reap");
    }
}

/// Two requests on one connection, which is reaped before the server would close it.
async fn reaped_in_time(envoy: &Envoy) {
    for _ in 0..2 {
        get(envoy, "/").await;
    }
    envoy.wait_for(ms(8_000), "idleguard", |stats| stats[CLOSED_IDLE] == 1).await.expect("a reap");
    assert_eq!(metric(envoy, "connections_opened").await, 1);
    assert_eq!(metric(envoy, "connections_closed_by_peer_idle").await, 0);
}

/// nginx announces its timeout of 4 s in plaintext: the hint is the only thing that idleguard is told.
#[tokio::test]
async fn the_hint_of_nginx_is_read_inside_tls() {
    let _turn = beside_others().await;
    let Some(server) = project::or_skip(Server::nginx_tls(4).await) else { return };
    let Some(config) = project_config() else { return };
    let config = with_policy(config, &json!({"lb_idle_timeout": "1h"}));
    reaped_in_time(&start(&with_tls(config, "http/1.1").upstream(server.address()), 1).await).await;
}

#[tokio::test]
async fn http2_to_nginx() {
    let _turn = beside_others().await;
    let Some(server) = project::or_skip(Server::nginx_tls(4).await) else { return };
    let Some(config) = project_config() else { return };
    let config = with_policy(config, &json!({"lb_idle_timeout": "4s"}));
    reaped_in_time(&start(&with_tls(config, "h2").upstream(server.address()), 1).await).await;
}

#[tokio::test]
async fn http2_to_nghttpd() {
    let _turn = beside_others().await;
    let Some(server) = project::or_skip(Server::nghttpd().await) else { return };
    let Some(config) = project_config() else { return };
    let config = with_policy(config, &json!({"lb_idle_timeout": "1s"}));
    reaped_in_time(&start(&with_tls(config, "h2").upstream(server.address()), 1).await).await;
}

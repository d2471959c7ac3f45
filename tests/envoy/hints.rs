//! What the far end says about its connections is kept, and clients are told in turn.

use idleguard_harness::envoy::Envoy;
use idleguard_harness::http;
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::json;
use tokio::net::TcpStream;

use super::{beside_others, lacks, metric, ms, project_config, start, with_policy};

async fn get(envoy: &Envoy, path: &str) {
    assert_eq!(http::get(envoy.ingress(), path).await.expect("an answer").status, 200);
}

#[tokio::test]
async fn after_max_more_responses_no_request_goes_there() {
    let _turn = beside_others().await;
    let Some(config) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let envoy = start(&with_policy(config, &json!({"lb_idle_timeout": "1h"})).upstream(lb.address()), 1).await;
    let requests = |lb: &StubLb| lb.records().iter().map(|record| record.requests).collect::<Vec<_>>();
    get(&envoy, "/keep-alive?timeout=100&max=2").await;
    for _ in 0..4 {
        get(&envoy, "/").await;
    }
    assert_eq!(requests(&lb), [3, 2], "the first, and two more");
    get(&envoy, "/keep-alive?max=0").await;
    for _ in 0..3 {
        get(&envoy, "/keep-alive?max=1").await;
    }
    get(&envoy, "/").await;
    get(&envoy, "/").await;
    assert_eq!(requests(&lb), [3, 3, 4, 1], "what the last response said counts");
    // Nobody had to wait for a fence: the pool closed them by itself, and the far end's connections beside them stay.
    assert!(lb.wait_for(ms(2_000), |counters| counters.open == 1).await, "{:?}", lb.records());
    tokio::time::sleep(ms(200)).await;
    assert_eq!(metric(&envoy, "connections_closed_lifetime").await, 3);
    assert_eq!(metric(&envoy, "fenced").await, 0);
}

/// HTTP/2 has no such header (RFC 9113 §8.2.2), and clients that see it may refuse the response.
#[tokio::test]
async fn http1_clients_are_told_how_long_envoy_keeps_their_connection() {
    let _turn = beside_others().await;
    let Some(config) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let config = config.upstream(lb.address()).http_filter(&json!({
        "filter": "http", "destinations": {"payments": {"lb_idle_timeout": "60s"}}, "advertise_keep_alive": "55s"
    }));
    let envoy = start(&config, 1).await;
    // Older ones remove the header on the way to the client.
    let is_lacking = lacks(&envoy, (1, 38), "the `keep-alive` header of `advertise_keep_alive`").await;
    let expected: &[&str] = if is_lacking { &[] } else { &["timeout=55"] };
    // The far end's own header is not passed on.
    for path in ["/", "/keep-alive?timeout=5"] {
        let response = http::get(envoy.ingress(), path).await.expect("an answer");
        let values: Vec<_> = response.headers.get_all("keep-alive").iter().collect();
        assert_eq!(values, expected, "{path}");
    }
    let tcp = TcpStream::connect(envoy.ingress()).await.expect("a connection");
    let (mut client, connection) = h2::client::handshake(tcp).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let request = ::http::Request::get("http://example/").body(()).expect("a request");
    let response = client.send_request(request, true).expect("a stream").0.await.expect("a response");
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("keep-alive"), "{:?}", response.headers());
    connection.abort();
}

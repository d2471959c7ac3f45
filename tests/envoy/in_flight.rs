//! An exchange in flight is never idle, however long it is silent; and when it ends, the connection's idle age begins.
//!
//! The LB keeps idle connections for ever here: whatever closes one is idleguard.

use std::time::{Duration, Instant};

use bytes::Bytes;
use idleguard_harness::envoy::{Config, Envoy};
use idleguard_harness::stub_lb::{By, Mode, Record, StubLb};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::raw::Raw;
use super::{beside_others, metric, ms, project_config, start, with_policy};

/// An LB's timeout of 1 s, less the margin of 10 %.
const LIMIT: Duration = ms(900);
/// One and a half times the limit.
const PAUSE: Duration = ms(1_350);

const HTTP_MANAGER: &str = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config";

fn limit_of_900_ms(config: Config) -> Config {
    with_policy(config, &json!({"lb_idle_timeout": "1s", "retry_stale": "off"}))
}

async fn start_with(edit: impl FnOnce(Config) -> Config) -> Option<(StubLb, Envoy)> {
    let config = project_config()?;
    let lb = StubLb::start(Mode::Stable);
    let envoy = start(&limit_of_900_ms(edit(config)).upstream(lb.address()), 1).await;
    Some((lb, envoy))
}

/// The only connection that the LB saw, once it is closed.
async fn the_closed_one(lb: &StubLb) -> Record {
    assert!(lb.wait_for(ms(6_000), |counters| counters.open == 0).await, "{:?}", lb.records());
    let mut records = lb.records();
    assert_eq!(records.len(), 1, "{records:?}");
    records.remove(0)
}

/// The connection of the exchange that has just ended is reaped at the limit, and not before.
async fn reaped_at_the_limit(lb: &StubLb, envoy: &Envoy) {
    let record = the_closed_one(lb).await;
    let close = record.close.expect("closed");
    println!("reaped at an idle age of {:?}", close.idle_age);
    assert_eq!(close.by, By::Peer);
    let age = close.idle_age.expect("no exchange in flight");
    assert!(age >= LIMIT && age < LIMIT + ms(2_000), "{age:?}");
    sleep(ms(200)).await;
    assert_eq!(metric(envoy, "connections_closed_idle").await, 1);
    assert_eq!(metric(envoy, "stale_failures").await, 0);
}

#[tokio::test]
async fn a_response_that_drips() {
    let _turn = beside_others().await;
    let Some((lb, envoy)) = start_with(|config| config).await else { return };
    let mut client = Raw::connect(envoy.ingress()).await;
    client.send(format!("GET /drip?n=4&ms={} HTTP/1.1\r\nhost: example\r\n\r\n", PAUSE.as_millis())).await;
    let response = client.until("\r\n0\r\n\r\n").await;
    assert!((0..4).all(|piece| response.contains(&format!("drip {piece}\n"))), "{response}");
    reaped_at_the_limit(&lb, &envoy).await;
}

#[tokio::test]
async fn a_stream_of_server_sent_events() {
    let _turn = beside_others().await;
    let Some((lb, envoy)) = start_with(|config| config).await else { return };
    let mut client = Raw::connect(envoy.ingress()).await;
    let path = format!("/drip?n=3&ms={}&type=text/event-stream", PAUSE.as_millis());
    client.send(format!("GET {path} HTTP/1.1\r\nhost: example\r\naccept: text/event-stream\r\n\r\n")).await;
    let begun = Instant::now();
    for event in 0..3 {
        // Each arrives when it is sent, and not at the end.
        client.until(&format!("drip {event}\n")).await;
        assert_eq!(lb.counters().open, 1, "event {event} after {:?}", begun.elapsed());
    }
    client.until("0\r\n\r\n").await;
    reaped_at_the_limit(&lb, &envoy).await;
}

#[tokio::test]
async fn a_response_that_takes_three_times_the_limit() {
    let _turn = beside_others().await;
    let Some((lb, envoy)) = start_with(|config| config).await else { return };
    let mut client = Raw::connect(envoy.ingress()).await;
    let begun = Instant::now();
    client.send("GET /slow?ms=2700 HTTP/1.1\r\nhost: example\r\n\r\n").await;
    client.until("slow\n").await;
    assert!(begun.elapsed() >= LIMIT * 3);
    reaped_at_the_limit(&lb, &envoy).await;
}

#[tokio::test]
async fn an_upload_that_waits_to_be_continued() {
    let _turn = beside_others().await;
    let continued = |config: Config| config.set(&format!("{HTTP_MANAGER}/proxy_100_continue"), true);
    let Some((lb, envoy)) = start_with(continued).await else { return };
    let mut client = Raw::connect(envoy.ingress()).await;
    client.send("POST / HTTP/1.1\r\nhost: example\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n").await;
    assert!(client.until("\r\n\r\n").await.starts_with("HTTP/1.1 100"));
    for part in ["abc", "def", "ghi"] {
        sleep(PAUSE).await;
        client.send(part).await;
    }
    client.until("read 9 bytes\n").await;
    reaped_at_the_limit(&lb, &envoy).await;
}

/// Nobody knows what the silence of a WebSocket means: it is left alone.
#[tokio::test]
async fn a_websocket_that_is_silent_in_both_directions() {
    let _turn = beside_others().await;
    let upgrades = json!([{ "upgrade_type": "websocket" }]);
    let Some((lb, envoy)) = start_with(|config| config.set(&format!("{HTTP_MANAGER}/upgrade_configs"), upgrades)).await
    else {
        return;
    };
    let mut client = Raw::connect(envoy.ingress()).await;
    client
        .send(
            "GET /upgrade HTTP/1.1\r\nhost: example\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await;
    assert!(client.until("\r\n\r\n").await.starts_with("HTTP/1.1 101"));
    for message in ["one", "two"] {
        sleep(LIMIT * 3).await; // the last byte came from the far end
        client.send(message).await;
        client.until(message).await;
    }
    assert_eq!(lb.counters().open, 1);
    drop(client);
    the_closed_one(&lb).await;
    assert_eq!(metric(&envoy, "connections_closed_idle").await, 0);
}

/// Messages in both directions with longer pauses than the limit, then trailers, as a gRPC stream has them.
#[tokio::test]
async fn a_grpc_stream_over_http2() {
    let _turn = beside_others().await;
    let Some((lb, envoy)) = start_with(|config| config.http2("payments")).await else { return };
    let tcp = TcpStream::connect(envoy.ingress()).await.expect("a connection");
    let (mut client, connection) = h2::client::handshake(tcp).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let request = http::Request::post("http://example/echo")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a request");
    let (response, mut messages) = client.send_request(request, false).expect("a stream");
    let exchange = async {
        messages.send_data(Bytes::from_static(b"\0\0\0\0\x01a"), false).expect("an open stream");
        let mut answers = response.await.expect("a response").into_body();
        let mut count = 0;
        while let Some(answer) = answers.data().await {
            let answer = answer.expect("an open stream");
            assert_eq!(answer[..5], *b"\0\0\0\0\x01");
            answers.flow_control().release_capacity(answer.len()).expect("what was received");
            sleep(PAUSE).await;
            count += 1;
            if count < 3 {
                messages.send_data(Bytes::from_static(b"\0\0\0\0\x01b"), count == 2).expect("an open stream");
            }
        }
        let trailers = answers.trailers().await.expect("an open stream").expect("trailers");
        (count, trailers["grpc-status"].clone())
    };
    let (count, status) = timeout(ms(12_000), exchange).await.expect("the end of the stream");
    assert!(count == 3 && status == "0", "{count} {status:?}");
    reaped_at_the_limit(&lb, &envoy).await;
    connection.abort();
}

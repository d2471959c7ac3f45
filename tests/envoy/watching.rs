//! The idle age of every reuse and every failure is known, and what is not known is not guessed.

use std::net::SocketAddr;
use std::time::Duration;

use idleguard_harness::envoy::{Config, Envoy};
use idleguard_harness::http;
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::json;

use super::{metric, ms, project_config, start};

const MANAGER: &str = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config";

/// One filter and nothing else: no lane, no scout.
fn watch_only(config: Config) -> Config {
    config.without_scout().lanes(&[]).http_filter(&json!({"filter": "http", "destinations": {"payments": {}}}))
}

async fn status(address: SocketAddr, method: &str, path: &str) -> u16 {
    http::send(address, method, path, &[], "").await.expect("an answer").status.as_u16()
}

/// The longest idle age at a reuse in milliseconds, once the histogram has been flushed with so many reuses.
async fn longest_age(envoy: &Envoy, reuses: i64) -> Option<f64> {
    let mut last = None;
    for _ in 0..200 {
        if metric(envoy, "reuses").await == reuses {
            tokio::time::sleep(ms(6_000)).await; // Envoy merges histograms every 5 s
            let name = "wasmcustom.idleguard.destination.payments.reuse_idle_age_ms";
            last = envoy.histogram(name).await.expect("statistics");
            break;
        }
        tokio::time::sleep(ms(50)).await;
    }
    let text = last?;
    text.rsplit_once("P100(")?.1.split_once(',')?.1.trim_end_matches(')').parse().ok()
}

#[tokio::test]
async fn watch_only_tells_connection_far_end_and_idle_age_of_a_stale_failure() {
    let Some(config) = project_config() else { return };
    let lb = StubLb::start(Mode::SilentRst(ms(1_500)));
    let directory = tempfile::tempdir().expect("a folder");
    let log = directory.path().join("access.log");
    let access_log = json!([{
        "name": "file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": log,
            "log_format": {"text_format_source": {"inline_string": "%RESPONSE_CODE% [%FILTER_STATE(wasm.idleguard.idle_age_ms:PLAIN)%]\n"}},
        },
    }]);
    let envoy =
        start(&watch_only(config).set(&format!("{MANAGER}/access_log"), access_log).upstream(lb.address()), 1).await;
    assert_eq!(status(envoy.ingress(), "POST", "/").await, 200);
    tokio::time::sleep(ms(2_000)).await;
    assert_eq!(status(envoy.ingress(), "POST", "/").await, 503);
    envoy
        .wait_for(ms(5_000), "stale", |stats| {
            stats.get("wasmcustom.idleguard.destination.payments.stale_failures") == Some(&1)
        })
        .await
        .expect("one");
    let said = envoy.log();
    let line = said
        .lines()
        .find(|line| line.contains("a request to payments failed on connection 127.0.0.1:"))
        .expect("a line");
    assert!(line.contains(&format!("to {}, which had been idle for 2", lb.address())), "{line}");
    let logged = loop {
        let text = std::fs::read_to_string(&log).expect("an access log");
        if text.lines().count() == 2 {
            break text;
        }
        tokio::time::sleep(ms(100)).await; // Envoy flushes it every second
    };
    let (first, second) = logged.split_once('\n').expect("two lines");
    assert_eq!(first, "200 [-]");
    let age: u64 = second.trim().trim_start_matches("503 [").trim_end_matches(']').parse().expect("a number");
    assert!((2_000..20_000).contains(&age), "{logged}");
}

#[tokio::test]
async fn a_reuse_has_its_idle_age_and_a_new_connection_none() {
    let Some(config) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let envoy = start(&watch_only(config).upstream(lb.address()), 1).await;
    assert_eq!(status(envoy.ingress(), "GET", "/").await, 200);
    tokio::time::sleep(ms(1_200)).await;
    assert_eq!(status(envoy.ingress(), "GET", "/slow?ms=900").await, 200);
    let age = longest_age(&envoy, 1).await.expect("an age");
    assert!((1_100.0..60_000.0).contains(&age), "{age}");
    assert_eq!(metric(&envoy, "stale_failures").await, 0);
}

/// HTTP/2 towards the LB, with a stream that has no answer while the connection seems idle.
#[tokio::test]
async fn while_a_stream_has_no_answer_the_connection_may_be_busy() {
    let Some(config) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let envoy = start(&watch_only(config).http2("payments").upstream(lb.address()), 1).await;
    let ingress = envoy.ingress();
    assert_eq!(status(ingress, "GET", "/").await, 200);
    let long = tokio::spawn(async move { status(ingress, "GET", "/slow?ms=4000").await });
    tokio::time::sleep(ms(2_000)).await;
    assert_eq!(status(ingress, "GET", "/").await, 200);
    assert_eq!(long.await.expect("an answer"), 200);
    assert_eq!(lb.counters().opened, 1, "all on one connection");
    let age = longest_age(&envoy, 2).await.unwrap_or_default();
    assert!(age < 1_500.0, "the connection was in use: {age}");
}

/// A client that goes away resets its stream, and the connection lives on: until then it was in use.
#[tokio::test]
async fn an_aborted_request_was_on_its_connection_until_it_ended() {
    let Some(config) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let envoy = start(&watch_only(config).http2("payments").upstream(lb.address()), 1).await;
    let ingress = envoy.ingress();
    assert_eq!(status(ingress, "GET", "/").await, 200);
    let aborted = tokio::time::timeout(ms(3_000), status(ingress, "GET", "/slow?ms=20000")).await;
    assert!(aborted.is_err(), "given up");
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(status(ingress, "GET", "/").await, 200);
    assert_eq!(lb.counters().opened, 1, "all on one connection");
    let age = longest_age(&envoy, 1).await.unwrap_or_default();
    assert!(age < 2_900.0, "the connection was in use: {age}");
}

/// Where the far end is in the same process all connections have one address.
#[tokio::test]
async fn an_address_that_all_connections_share_tells_nothing() {
    let Some(config) = project_config() else { return };
    let directory = tempfile::tempdir().expect("a folder");
    let socket = directory.path().join("lb.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut stream, mut bytes) = (stream, [0; 4096]);
                while stream.read(&mut bytes).is_ok_and(|size| size > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").expect("sent");
                }
            });
        }
    });
    let endpoint = json!({"cluster_name": "payments", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": socket}}}}]}]});
    let config = watch_only(config).set("static_resources/clusters/payments/load_assignment", endpoint);
    let envoy = start(&config, 1).await;
    for _ in 0..3 {
        assert_eq!(status(envoy.ingress(), "GET", "/").await, 200);
        tokio::time::sleep(ms(600)).await;
    }
    assert_eq!(metric(&envoy, "reuses").await, 0);
}

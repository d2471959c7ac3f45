//! The connection filter alone, on a plain TCP listener in front of `tcp_proxy`: the very example of docs/connections.md.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use idleguard_harness::envoy::{Config, Envoy};
use idleguard_harness::project;
use idleguard_harness::stub_lb::{Mode, Options, StubLb};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use super::raw::Raw;
use super::{beside_others, ms, project_config, start};

/// An LB's timeout of 1 s, less the margin of 10 %.
const LIMIT: Duration = ms(900);

/// The first YAML block of the documentation, in front of `lb`, which drops connections after a second.
fn documented(lb: SocketAddr) -> Option<Config> {
    project_config()?;
    let page = std::fs::read_to_string(project::root().join("docs/connections.md")).expect("docs/connections.md");
    let example = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block of YAML");
    let config = Config::parse(example).expect("YAML").wasm(&project::wasm().expect("the filter"));
    let listener = "static_resources/listeners/tcp-ingress/address/socket_address/port_value";
    let endpoint = "static_resources/clusters/database/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address";
    Some(
        config
            .admin_port(0)
            .set(listener, 0)
            .set(&format!("{endpoint}/socket_address/port_value"), lb.port())
            .edit_connection_filter(|filter| filter["policy"]["lb_idle_timeout"] = "1s".into()),
    )
}

fn listener(envoy: &Envoy) -> SocketAddr {
    envoy.listener("tcp-ingress").expect("the example's listener")
}

/// Metrics go out with a tick, and the first is waited for.
async fn closed_idle(envoy: &Envoy) -> u64 {
    const METRIC: &str = "wasmcustom.idleguard.destination.database.connections_closed_idle";
    let counted = |stats: &BTreeMap<String, u64>| stats.get(METRIC).is_some_and(|count| *count > 0);
    let _ = envoy.wait_for(ms(10_000), "connections_closed_idle", counted).await; // what it is then is judged by the caller
    envoy.stat(METRIC).await.expect("statistics")
}

/// A far end that speaks nothing in particular: it answers each of two messages after three limits, and tells the idle age
/// at which the connection was closed.
async fn slow_far_end(listener: TcpListener, greeting: &str) -> Duration {
    let (mut stream, _) = listener.accept().await.expect("a connection");
    stream.write_all(greeting.as_bytes()).await.expect("an open connection");
    let mut buffer = [0; 64];
    for _ in 0..2 {
        assert!(stream.read(&mut buffer).await.expect("an open connection") > 0, "closed too early");
        sleep(LIMIT * 3).await;
        stream.write_all(b"answer;").await.expect("an open connection");
    }
    let since = Instant::now();
    assert!(matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)), "nobody sends anything");
    since.elapsed()
}

/// Words, lines and bytes that are no HTTP; a far end that speaks first.
#[tokio::test]
async fn raw_tcp_is_busy_while_the_far_end_owes_an_answer_and_then_reaped() {
    let _turn = beside_others().await;
    for (greeting, message) in
        [("", &b"no line end"[..]), ("", b"PING\r\n"), ("", b"\x16\x03\x01\x00\x00"), ("220 hello\r\n", b"EHLO\r\n")]
    {
        let far_end = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let Some(config) = documented(far_end.local_addr().expect("bound")) else { return };
        let envoy = start(&config, 1).await;
        let far_end = tokio::spawn(slow_far_end(far_end, greeting));
        let mut client = Raw::connect(listener(&envoy)).await;
        if !greeting.is_empty() {
            client.until(greeting).await;
        }
        for _ in 0..2 {
            client.send(message).await;
            client.until("answer;").await;
            sleep(ms(300)).await;
        }
        client.closed().await;
        let age = timeout(ms(8_000), far_end).await.expect("a close").expect("no panic");
        println!("{message:?}: reaped at an idle age of {age:?}");
        assert!(age >= LIMIT && age < LIMIT + ms(2_000), "{message:?}: {age:?}");
        assert_eq!(closed_idle(&envoy).await, 1, "{message:?}");
    }
}

/// Ciphertext, from another Envoy. The first exchange is a short one: see the numbered limits in docs/connections.md.
#[tokio::test]
async fn tls_that_passes_through() {
    let _turn = beside_others().await;
    let Some(plain) = project_config() else { return };
    let options = Options { mode: Mode::Stable, tls: Some(vec!["http/1.1"]), ..Options::default() };
    let lb = StubLb::with(options).expect("an LB");
    let Some(config) = documented(lb.address()) else { return };
    let envoy = start(&config, 1).await;
    let client = plain.without_idleguard().upstream(listener(&envoy)).upstream_tls("payments", "lb.example");
    let client = start(&client, 1).await;
    for path in ["/", "/slow?ms=2700"] {
        let response = idleguard_harness::http::get(client.ingress(), path).await.expect("an answer");
        assert_eq!(response.status, 200, "{path}");
    }
    assert!(lb.wait_for(ms(6_000), |counters| counters.open == 0).await);
    let records = lb.records();
    assert!(records.len() == 1 && records[0].requests == 2, "{records:?}");
    let age = records[0].close.and_then(|close| close.idle_age).expect("no exchange in flight");
    assert!(age >= LIMIT && age < LIMIT + ms(2_000), "{age:?}");
    assert_eq!(closed_idle(&envoy).await, 1);
}

/// HTTP is followed here, too: a response may pause, and a WebSocket is left alone.
#[tokio::test]
async fn http_and_its_upgrades() {
    let _turn = beside_others().await;
    let lb = StubLb::start(Mode::Stable);
    let Some(config) = documented(lb.address()) else { return };
    let envoy = start(&config, 1).await;
    let mut client = Raw::connect(listener(&envoy)).await;
    client.send("GET /drip?n=3&ms=1350 HTTP/1.1\r\nhost: example\r\n\r\n").await;
    client.until("0\r\n\r\n").await;
    client.closed().await;
    assert!(lb.wait_for(ms(2_000), |counters| counters.open == 0).await);
    let close = lb.records()[0].close.expect("closed");
    assert!(close.idle_age.is_some_and(|age| age >= LIMIT), "{close:?}");
    assert_eq!(closed_idle(&envoy).await, 1);

    let mut client = Raw::connect(listener(&envoy)).await;
    client.send("GET /upgrade HTTP/1.1\r\nhost: example\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert!(client.until("\r\n\r\n").await.starts_with("HTTP/1.1 101"));
    for message in ["one", "two"] {
        sleep(LIMIT * 3).await;
        client.send(message).await;
        client.until(message).await;
    }
    assert_eq!(closed_idle(&envoy).await, 1);
}

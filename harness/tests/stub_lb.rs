//! The scripted load balancer, seen from a raw client.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use idleguard_harness::{
    http,
    stub_lb::{By, How, Mode, Options, StubLb},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

const T: Duration = Duration::from_millis(300);
const BEFORE: Duration = Duration::from_millis(150);
const AFTER: Duration = Duration::from_millis(450);

/// How the far end ended the connection.
#[derive(Debug, PartialEq)]
enum End {
    Fin,
    Rst,
}

async fn ask(tcp: &mut TcpStream, path: &str) -> Result<String, End> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: lb\r\nX-Odd: \u{e9}\r\nx-odd: 2\r\nContent-Length: 2\r\n\r\nhi");
    tcp.write_all(head.as_bytes()).await.map_err(|_| End::Rst)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match tcp.read(&mut buffer).await {
            Ok(0) => return Err(End::Fin),
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Err(End::Rst),
            Err(error) => panic!("{error}"),
        }
        let text = String::from_utf8_lossy(&answer).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if length.map_or_else(|| body.ends_with("0\r\n\r\n"), |length: usize| body.len() >= length) {
            return Ok(text);
        }
    }
}

async fn end(tcp: &mut TcpStream) -> End {
    match timeout(AFTER, tcp.read(&mut [0; 16])).await.expect("an end") {
        Ok(0) => End::Fin,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => End::Rst,
        other => panic!("{other:?}"),
    }
}

async fn connect(lb: &StubLb) -> TcpStream {
    TcpStream::connect(lb.address()).await.expect("a connection")
}

async fn stays_silent(tcp: &mut TcpStream, time: Duration) {
    assert!(timeout(time, tcp.read(&mut [0; 16])).await.is_err());
}

#[tokio::test]
async fn a_stable_one_keeps_connections() {
    let lb = StubLb::start(Mode::Stable);
    let mut tcp = connect(&lb).await;
    for _ in 0..2 {
        assert!(ask(&mut tcp, "/").await.expect("an answer").contains("read 2 bytes"));
        stays_silent(&mut tcp, AFTER).await;
    }
    let (record, counters) = (lb.records().remove(0), lb.counters());
    assert_eq!((counters.opened, counters.open, counters.requests, counters.idle_drops), (1, 1, 2, 0));
    // Arrival times are exact to a few milliseconds.
    assert!(record.idle_ages[1] + Duration::from_millis(10) >= AFTER && record.close.is_none(), "{record:?}");
}

#[tokio::test]
async fn fin_and_rst_come_at_the_timeout_counted_from_the_last_byte() {
    for (mode, expected, how) in [(Mode::FinAt(T), End::Fin, How::Fin), (Mode::RstAt(T), End::Rst, How::Rst)] {
        let lb = StubLb::start(mode);
        let mut tcp = connect(&lb).await;
        for _ in 0..3 {
            ask(&mut tcp, "/").await.expect("in time");
            sleep(BEFORE).await;
        }
        ask(&mut tcp, "/").await.expect("in time");
        let idle = Instant::now();
        assert_eq!(end(&mut tcp).await, expected);
        assert!(idle.elapsed() + Duration::from_millis(5) >= T && idle.elapsed() < AFTER, "{:?}", idle.elapsed());
        assert!(lb.wait_for(AFTER, |counters| counters.open == 0).await);
        let close = lb.records()[0].close.expect("an end");
        assert_eq!((close.by, close.how), (By::Lb, how));
        assert!(close.idle_age.expect("idle") >= T);
    }
}

#[tokio::test]
async fn the_timer_starts_at_accept() {
    let lb = StubLb::start(Mode::FinAt(T));
    let mut tcp = connect(&lb).await;
    assert_eq!(end(&mut tcp).await, End::Fin);
}

#[tokio::test]
async fn silent_rst_says_nothing_until_the_next_packet() {
    let lb = StubLb::start(Mode::SilentRst(T));
    let mut tcp = connect(&lb).await;
    ask(&mut tcp, "/").await.expect("in time");
    sleep(BEFORE).await;
    ask(&mut tcp, "/").await.expect("in time");
    stays_silent(&mut tcp, AFTER).await;
    assert_eq!((lb.counters().idle_drops, lb.counters().stale_arrivals), (1, 0));
    assert_eq!(ask(&mut tcp, "/").await, Err(End::Rst));
    assert_eq!((lb.counters().requests, lb.counters().stale_arrivals), (2, 1));
}

#[tokio::test]
async fn silent_swallow_never_answers_and_never_closes() {
    let lb = StubLb::start(Mode::SilentSwallow(T));
    let mut tcp = connect(&lb).await;
    ask(&mut tcp, "/").await.expect("in time");
    sleep(AFTER).await;
    for _ in 0..2 {
        assert!(timeout(AFTER, ask(&mut tcp, "/")).await.is_err(), "no answer, no end");
    }
    let counters = lb.counters();
    assert_eq!((counters.requests, counters.stale_arrivals, counters.open), (1, 1, 1));
}

#[tokio::test]
async fn an_exchange_in_flight_is_not_idle() {
    for mode in [Mode::FinAt(T), Mode::RstAt(T), Mode::SilentRst(T), Mode::SilentSwallow(T)] {
        let lb = StubLb::start(mode);
        let mut tcp = connect(&lb).await;
        ask(&mut tcp, "/slow?ms=900").await.expect("a slow answer");
        sleep(BEFORE).await;
        let dripped = ask(&mut tcp, "/drip?n=2&ms=500").await.expect("a slow answer");
        assert!(dripped.contains("drip 1"), "{mode:?}: {dripped}");
        assert_eq!(lb.counters().idle_drops, 0, "{mode:?}");
    }
}

#[tokio::test]
async fn the_mode_changes_under_open_connections() {
    let lb = StubLb::start(Mode::Stable);
    let mut tcp = connect(&lb).await;
    ask(&mut tcp, "/").await.expect("an answer");
    stays_silent(&mut tcp, AFTER).await;
    lb.set(Mode::RstAt(T));
    assert_eq!(end(&mut tcp).await, End::Rst);
}

#[tokio::test]
async fn a_restart_closes_everything_and_accepts_again() {
    let lb = StubLb::start(Mode::Stable);
    let (mut one, mut two) = (connect(&lb).await, connect(&lb).await);
    ask(&mut one, "/").await.expect("an answer");
    ask(&mut two, "/").await.expect("an answer");
    lb.close_all();
    assert_eq!((end(&mut one).await, end(&mut two).await), (End::Fin, End::Fin));
    ask(&mut connect(&lb).await, "/").await.expect("an answer");
}

#[tokio::test]
async fn closes_by_the_peer_are_told_apart() {
    let lb = StubLb::start(Mode::SilentRst(T));
    let mut tcp = connect(&lb).await;
    ask(&mut tcp, "/").await.expect("an answer");
    sleep(BEFORE).await;
    drop(tcp);
    assert!(lb.wait_for(AFTER, |counters| counters.open == 0).await);
    let close = lb.records()[0].close.expect("an end");
    assert_eq!((close.by, close.how), (By::Peer, How::Fin));
    assert!(close.idle_age.expect("idle") >= BEFORE);
}

#[tokio::test]
async fn delay_applies_to_bytes_and_closes_each_way() {
    let delay = Duration::from_millis(60);
    for (mode, expected) in [(Mode::FinAt(T), End::Fin), (Mode::RstAt(T), End::Rst)] {
        let lb = StubLb::with(Options { mode, delay, ..Options::default() }).expect("a load balancer");
        let mut tcp = connect(&lb).await;
        let begun = Instant::now();
        ask(&mut tcp, "/").await.expect("an answer");
        assert!(begun.elapsed() >= delay * 2);
        let idle = Instant::now();
        assert_eq!(end(&mut tcp).await, expected);
        assert!(idle.elapsed() + Duration::from_millis(10) >= T, "{:?}", idle.elapsed());
    }
}

#[tokio::test]
async fn headers_come_back_as_they_came() {
    let lb = StubLb::start(Mode::Stable);
    let answer = ask(&mut connect(&lb).await, "/headers").await.expect("an answer");
    let list = answer.split_once("\r\n\r\n").expect("a body").1;
    assert_eq!(list, r#"[["Host","lb"],["X-Odd","Ã©"],["x-odd","2"],["Content-Length","2"]]"#);
}

#[tokio::test]
async fn paths_do_what_they_say() {
    let lb = StubLb::with(Options { keep_alive: Some(7), ..Options::default() }).expect("a load balancer");
    let root = http::get(lb.address(), "/").await.expect("an answer");
    assert_eq!((root.text().as_str(), root.header("keep-alive")), ("hello\n", Some("timeout=7")));
    assert_eq!(http::get(lb.address(), "/bytes?n=100000").await.expect("an answer").body.len(), 100_000);
    assert_eq!(http::get(lb.address(), "/status?code=418").await.expect("an answer").status, 418);
    let echo = http::send(lb.address(), "POST", "/echo", &[], "once more").await.expect("an answer");
    assert_eq!(echo.text(), "once more");
    lb.set_keep_alive(None);
    let hints = http::get(lb.address(), "/keep-alive?timeout=9&max=3").await.expect("an answer");
    assert_eq!(hints.header("keep-alive"), Some("timeout=9, max=3"));
    assert_eq!(http::get(lb.address(), "/lb").await.expect("an answer").status, 400);
    assert_eq!(http::get(lb.address(), "/lb?idle_timeout_ms=9000").await.expect("an answer").status, 200);
    assert_eq!(lb.mode(), Mode::SilentRst(Duration::from_secs(9)));
    assert_eq!(ask(&mut connect(&lb).await, "/abort?how=fin").await, Err(End::Fin));
    assert_eq!(ask(&mut connect(&lb).await, "/abort?how=rst&ms=20").await, Err(End::Rst));
}

#[tokio::test]
async fn an_upgraded_connection_echoes_and_is_idle_between_bytes() {
    let lb = StubLb::start(Mode::FinAt(T));
    let mut tcp = connect(&lb).await;
    tcp.write_all(b"GET /upgrade HTTP/1.1\r\nHost: lb\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
        .await
        .expect("sent");
    let mut buffer = [0; 4096];
    let length = tcp.read(&mut buffer).await.expect("a response");
    assert!(buffer[..length].starts_with(b"HTTP/1.1 101"));
    for _ in 0..3 {
        sleep(BEFORE).await;
        tcp.write_all(b"ping").await.expect("sent");
        let length = tcp.read(&mut buffer).await.expect("an echo");
        assert_eq!(&buffer[..length], b"ping");
    }
    assert_eq!(end(&mut tcp).await, End::Fin);
}

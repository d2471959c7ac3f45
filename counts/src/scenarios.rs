//! What is counted, and held against `counts/baseline.json`: a request, an event on a connection, a tick, a connection's
//! memory, each in a filter that is configured as its users would.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::{Buffer, Filter, Map, Vm};

/// What one scenario costs, by measure: `instructions`, `host calls`, `bytes` (both ways across the border) or `memory bytes`.
pub type Counts = BTreeMap<String, BTreeMap<String, u64>>;

const POLICY: &str = r#"{"lb_idle_timeout": "60s", "retry_stale": "off"}"#;
const RETRYING: &str = r#"{"lb_idle_timeout": "60s"}"#;
const CLIENT_IP: &str = r#"{"trusted_proxies": ["10.0.0.0/8"]}"#;

/// The headers of a request from a browser, behind an LB.
const HEADERS: [(&str, &str); 21] = [
    (":authority", "app.example"),
    (":path", "/v1/payments/4711?expand=customer"),
    (":method", "GET"),
    (":scheme", "https"),
    ("accept", "application/json"),
    ("accept-encoding", "gzip, deflate, br"),
    ("accept-language", "en-GB,en;q=0.9"),
    ("authorization", "Bearer eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9"),
    ("cache-control", "no-cache"),
    ("content-length", "321"),
    ("content-type", "application/json"),
    ("cookie", "session=6f1c1fd2c0ff4d6e8f3e"),
    ("origin", "https://shop.example"),
    ("referer", "https://shop.example/checkout"),
    ("sec-fetch-mode", "cors"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    ("x-forwarded-proto", "https"),
    ("x-request-id", "8d6f5c9e-5b7a-4f0e-9c36-0a8a1a2b3c4d"),
    ("x-tenant", "blue"),
    ("x-forwarded-for", "203.0.113.5"),
];

const REQUEST: &[u8] =
    b"GET /v1/payments/4711?expand=customer HTTP/1.1\r\nhost: app.example\r\naccept: application/json\r\n\
    accept-encoding: gzip, deflate, br\r\nuser-agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0)\r\n\
    x-forwarded-for: 203.0.113.5, 10.0.0.1\r\nx-request-id: 8d6f5c9e-5b7a-4f0e-9c36-0a8a1a2b3c4d\r\n\r\n";

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5\r\n\
    date: Sun, 22 Nov 2026 20:00:00 GMT\r\n\r\nhello";

/// Time between two events.
const MILLISECOND: u64 = 1_000_000;

/// Runs everything.
///
/// # Errors
/// If the filter traps, or refuses a configuration.
pub fn count_all(filter: &Filter) -> Result<Counts> {
    let mut counts = Counts::new();
    requests(filter, &mut counts)?;
    connection_events(filter, &mut counts)?;
    ticks(filter, &mut counts)?;
    Ok(counts)
}

fn http(destinations: Option<&str>, client_ip: bool, keep_alive: bool) -> String {
    let mut parts = vec![r#""filter": "http""#.to_owned()];
    parts.extend(destinations.map(|policy| format!(r#""destinations": {{"payments": {policy}}}"#)));
    parts.extend(client_ip.then(|| format!(r#""client_ip": {CLIENT_IP}"#)));
    parts.extend(keep_alive.then(|| r#""advertise_keep_alive": "55s""#.to_owned()));
    format!("{{{}}}", parts.join(", "))
}

fn guard(policy: &str) -> String {
    format!(r#"{{"filter": "connection", "destination": "payments", "policy": {policy}}}"#)
}

/// A VM with a connection filter and an HTTP filter, and a host that knows what they ask for.
fn worker(filter: &Filter, guarded: &str, http: &str) -> Result<(Vm, i32, i32)> {
    let mut vm = filter.start()?;
    let host = vm.host();
    host.set_property(&["plugin_name"], "idleguard.payments");
    host.set_property(&["filter_state", "idleguard.peer"], "10.0.0.1:41000");
    host.set_property(&["xds", "cluster_name"], "payments");
    host.set_property(&["destination", "address"], "envoy://payments-guard/");
    host.set_property(&["request", "protocol"], "HTTP/1.1");
    host.set_property(&["request", "method"], "GET");
    host.set_property(&["response", "flags"], [0_u8; 8]);
    let guard_root = vm.configure(&guard(guarded))?;
    let http_root = vm.configure(http)?;
    Ok((vm, guard_root, http_root))
}

fn record(counts: &mut Counts, name: &str, measures: &[(&str, u64)]) {
    let measures = measures.iter().map(|(measure, count)| ((*measure).to_owned(), *count)).collect();
    counts.insert(name.to_owned(), measures);
}

/// One request through the HTTP filter, from its context to the end of it, each feature alone and all together.
fn requests(filter: &Filter, counts: &mut Counts) -> Result<()> {
    for (name, configuration) in [
        ("request: no feature", http(None, false, false)),
        ("request: client_ip", http(None, true, false)),
        ("request: fence", http(Some(POLICY), false, false)),
        ("request: fence and retry", http(Some(RETRYING), false, false)),
        ("request: client_ip, fence and retry", http(Some(RETRYING), true, false)),
        ("request: everything", http(Some(RETRYING), true, true)),
    ] {
        let policy = if configuration.contains("off") { POLICY } else { RETRYING };
        let (mut vm, guard_root, http_root) = worker(filter, policy, &configuration)?;
        let mut connection = None;
        let mut last = None;
        for _ in 0..50 {
            vm.host().set_headers(Map::Request, &HEADERS);
            vm.host().set_headers(Map::Response, &[(":status", "200")]);
            let mut request = 0;
            let begun = vm.count(|vm| {
                request = vm.stream(http_root)?;
                vm.on_request_headers(request)
            })?;
            let connection = match connection {
                Some(connection) => connection,
                None => {
                    let opened = vm.stream(guard_root)?;
                    vm.on_new_connection(opened)?;
                    *connection.insert(opened)
                }
            };
            vm.host().advance(MILLISECOND);
            vm.on_data(connection, Buffer::Downstream, REQUEST)?;
            vm.on_data(connection, Buffer::Upstream, RESPONSE)?;
            let ended = vm.count(|vm| {
                vm.on_response_headers(request)?;
                vm.end(request)
            })?;
            last = Some((begun, ended));
        }
        let Some((begun, ended)) = last else { continue };
        record(
            counts,
            name,
            &[
                ("instructions", begun.instructions + ended.instructions),
                ("host calls", begun.calls() + ended.calls()),
                ("bytes", begun.bytes + ended.bytes),
            ],
        );
    }
    // A million requests take minutes on an interpreter of counts; whoever leaks a byte a request has grown by pages after these.
    let (mut vm, _, http_root) = worker(filter, RETRYING, &http(Some(RETRYING), true, true))?;
    let send = |vm: &mut Vm, times: u32| {
        for _ in 0..times {
            vm.host().set_headers(Map::Request, &HEADERS);
            let request = vm.stream(http_root)?;
            vm.on_request_headers(request)?;
            vm.end(request)?;
        }
        vm.memory()
    };
    let before = send(&mut vm, 1_000)?;
    let after = send(&mut vm, 20_000)?;
    record(counts, "20,000 requests: growth", &[("memory bytes", (after - before) as u64)]);
    Ok(())
}

/// Data on one connection, in the connection filter.
fn connection_events(filter: &Filter, counts: &mut Counts) -> Result<()> {
    let (mut vm, root, _) = worker(filter, POLICY, &http(Some(POLICY), false, false))?;
    let connection = vm.stream(root)?;
    vm.on_new_connection(connection)?;
    let mut event = |vm: &mut Vm, name: &str, from: Buffer, bytes: &[u8]| {
        vm.host().advance(MILLISECOND);
        let cost = vm.count(|vm| vm.on_data(connection, from, bytes))?;
        let measures = [("instructions", cost.instructions), ("host calls", cost.calls()), ("bytes", cost.bytes)];
        record(counts, name, &measures);
        anyhow::Ok(())
    };
    let body = [b'x'; 16 * 1024];
    for _ in 0..3 {
        event(&mut vm, "connection: head of a request", Buffer::Downstream, REQUEST)?;
        event(&mut vm, "connection: small response", Buffer::Upstream, RESPONSE)?;
    }
    vm.on_data(connection, Buffer::Downstream, REQUEST)?;
    vm.on_data(connection, Buffer::Upstream, b"HTTP/1.1 200 OK\r\ncontent-length: 81920\r\n\r\n")?;
    for _ in 0..4 {
        event(&mut vm, "connection: 16 KiB of a body", Buffer::Upstream, &body)?;
    }
    event(&mut vm, "connection: the last 16 KiB of a body", Buffer::Upstream, &body)?;
    vm.on_data(connection, Buffer::Downstream, REQUEST)?;
    vm.on_data(connection, Buffer::Upstream, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
    let chunk = [b"4000\r\n".as_slice(), &body, b"\r\n"].concat();
    for _ in 0..3 {
        event(&mut vm, "connection: a chunk of 16 KiB", Buffer::Upstream, &chunk)?;
    }
    Ok(())
}

/// A connection that has served one exchange, and idles.
fn open(vm: &mut Vm, root: i32) -> Result<()> {
    let connection = vm.stream(root)?;
    vm.on_new_connection(connection)?;
    vm.on_data(connection, Buffer::Downstream, REQUEST)?;
    vm.on_data(connection, Buffer::Upstream, RESPONSE)?;
    Ok(())
}

/// Ticks, with so many idle connections of which none or a hundred are due; and what a connection takes.
fn ticks(filter: &Filter, counts: &mut Counts) -> Result<()> {
    const PERIOD: u64 = 100 * MILLISECOND;
    const LIMIT: u64 = 54_000 * MILLISECOND;
    let (mut vm, root, _) = worker(filter, POLICY, &http(Some(POLICY), false, false))?;
    let tick = |vm: &mut Vm| {
        vm.host().advance(PERIOD);
        vm.count(|vm| vm.on_tick(root))
    };
    let mut connections = 0;
    let first = vm.memory()?;
    for (wanted, name) in [(0, "0"), (1_000, "1,000"), (100_000, "100,000")] {
        while connections < wanted {
            open(&mut vm, root)?;
            connections += 1;
        }
        if wanted == 100_000 {
            let each = (vm.memory()? - first) as u64 / wanted;
            record(counts, "a connection, of 100,000", &[("memory bytes", each)]);
        }
        let mut quiet = Vec::new();
        for _ in 0..12 {
            quiet.push(tick(&mut vm)?);
        }
        quiet.drain(..2); // they report what was counted
        let calls = quiet.iter().map(crate::Cost::calls).max().unwrap_or_default();
        let usual = quiet.iter().map(|cost| cost.instructions).min().unwrap_or_default();
        let all = quiet.iter().map(|cost| cost.instructions).sum();
        let name = format!("tick: {name} idle connections, none due");
        record(counts, &name, &[("instructions", usual), ("host calls, at most", calls), ("instructions of ten", all)]);
    }
    for (idle, name) in [(1_000, "1,000"), (100_000, "100,000")] {
        let (mut vm, root, _) = worker(filter, POLICY, &http(Some(POLICY), false, false))?;
        for _ in 0..100 {
            open(&mut vm, root)?;
        }
        vm.host().advance(LIMIT / 2);
        for _ in 100..idle {
            open(&mut vm, root)?;
        }
        vm.host().advance(LIMIT / 2 - 2 * PERIOD);
        let mut instructions = 0;
        let mut calls = 0;
        for _ in 0..10 {
            vm.host().advance(PERIOD);
            let cost = vm.count(|vm| vm.on_tick(root))?;
            instructions += cost.instructions;
            calls += cost.calls();
        }
        let name = format!("ten ticks: {name} idle connections, 100 due");
        record(counts, &name, &[("instructions", instructions), ("host calls", calls)]);
    }
    Ok(())
}

//! Random callbacks, also such as no host makes, on a host whose calls fail and whose answers are garbage: the filter never
//! traps, and never runs for ever. The same seed does the same; a find prints its seed.
//!
//! `make test` runs a few thousand; `make fuzz-module` goes on for `FUZZ_SECONDS`, from a seed of the clock's or `FUZZ_SEED`.
//! What is outside: a host that hands over memory which it did not allocate through the module, or writes beyond it. Nothing
//! within the VM could tell.
#![allow(clippy::disallowed_methods, clippy::expect_used, missing_docs)] // the long form runs for a time

mod support;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use idleguard_vm_tests::{Buffer, Faults, Filter, Map, Vm};
use support::Random;

/// Steps on one VM.
const STEPS: u64 = 1_500;
/// What one callback may take; the dearest, a request with headers of 64 KB, takes a hundredth of it.
const INSTRUCTIONS: u64 = 2_000_000_000;

struct Chaos {
    random: Random,
    /// Of a hundred calls, so many fail, and of as many answers that many are spoilt.
    failing: u64,
    spoilt: u64,
}

impl Faults for Chaos {
    fn status(&mut self, _call: &'static str) -> Option<i32> {
        (self.random.below(100) < self.failing).then(|| match self.random.below(16) {
            13 => -1,
            14 => i32::MAX,
            15 => i32::from(self.random.next() as u16),
            status => status as i32, // 0: the host says that it did what it didn't do
        })
    }

    fn spoil(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        if self.random.below(100) >= self.spoilt {
            return bytes;
        }
        match self.random.below(4) {
            0 => bytes.clear(),
            1 => bytes.truncate(self.random.below(bytes.len() as u64 + 1) as usize),
            2 => bytes.extend(self.random.bytes(40)),
            _ => {
                for _ in 0..=self.random.below(4) {
                    let at = self.random.below(bytes.len().max(1) as u64) as usize;
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = self.random.next() as u8;
                    }
                }
            }
        }
        bytes
    }
}

const CONFIGURATIONS: &[&str] = &[
    r#"{"filter": "http", "destinations": {"payments": {"lb_idle_timeout": "5s", "lanes": {"payments-4s": "4s", "payments-900ms": "900ms"}}, "other": {}}, "client_ip": {"trusted_proxies": ["10.0.0.0/8"]}}"#,
    r#"{"filter": "http", "destinations": {"payments": {"lanes": {"payments-4s": "4s"}, "all_requests": true}}, "client_ip": {"trusted_hops": 2, "on_invalid": "reject", "on_missing": "reject", "sources": ["forwarded", "x-real-ip"]}}"#,
    r#"{"filter": "scout", "destination": "payments", "cluster": "payments-scout", "path": "/"}"#,
    r#"{"filter": "scout", "destination": "other", "cluster": "other-scout", "path": "/healthz", "max_wait": "2s"}"#,
    r#"{"filter": "http", "destinations": {"payments": {"margin": "120%"}}}"#,
    r#"{"filter": "tcp"}"#,
    "",
    "\u{0}\u{1}{",
];

const PROPERTIES: &[(&[&str], &[&[u8]])] = &[
    (&["xds", "cluster_name"], &[b"payments", b"payments-4s", b"other", b"a.b|c", b"\xff\xfe", b""]),
    (&["upstream", "local_address"], &[b"10.0.0.1:1", b"10.0.0.1:2", b"[::1]:3", b"envoy://payments-scout/", b""]),
    (&["upstream", "address"], &[b"10.0.0.8:443", b"10.0.0.9:443", b"envoy://payments-scout/", b""]),
    (&["upstream", "request_attempt_count"], &[&[1, 0, 0, 0, 0, 0, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0], b"x", b""]),
    (
        &["response", "code_details"],
        &[
            b"via_upstream",
            b"upstream_reset_before_response_started{connection_termination}",
            b"upstream_reset_before_response_started{connection_timeout}",
            b"upstream_response_timeout",
            b"\xc0",
        ],
    ),
    (&["source", "address"], &[b"10.0.0.1:41000", b"[::1]:0", b"garbage", b""]),
    (&["filter_state", "idleguard.peer"], &[b"10.0.0.1:41000", b"203.0.113.9:1", b"\xff", b""]),
];

const STREAM: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nkeep-alive: timeout=5, max=2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=18446744073709551615, max=0\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x82",
    b"\x00\x00\x01\x01\x05\x00\x00\x00\x03\x88",
    b"\xff\xff\xff\x00\x01\x00\x00\x00\x01",
    b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08",
    b"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00",
];

const NAMES: &[&str] = &[
    ":method",
    ":path",
    "x-forwarded-for",
    "X-Forwarded-For",
    "x_forwarded_for",
    "forwarded",
    "x-real-ip",
    "x-real_ip",
    "cookie",
    "x-envoy-original-url",
    "x-idleguard-lane",
    "",
];

const VALUES: &[&[u8]] = &[
    b"GET",
    b"POST",
    b"10.0.0.2",
    b"6.6.6.6, 203.0.113.5",
    b"for=\"[2001:db8::1]:443\";proto=https, for=_x",
    b"\"",
    b",,,,",
    b"\xff\x00\xfe",
    b"::ffff:10.0.0.1",
    b"999.1.1.1:99999999",
];

/// One step: its text tells a find.
fn step(vm: &mut Vm, random: &mut Random) -> (String, Result<()>) {
    // Few ids, so that most mean something, in every state.
    let id = if random.one_in(40) { random.next() as i32 } else { random.below(14) as i32 };
    let size = if random.one_in(8) { random.next() as i32 } else { random.below(200) as i32 };
    let flag = random.below(3) as i32;
    let done = |result: Result<i32>| result.map(drop);
    match random.below(21) {
        0..=2 => {
            let parent = if random.one_in(5) { 0 } else { random.below(5) as i32 };
            (format!("create {id} of {parent}"), vm.call("proxy_on_context_create", (id, parent)))
        }
        3 => {
            let text = random.of(CONFIGURATIONS).as_bytes();
            vm.host().set_buffer(Buffer::PluginConfiguration, text);
            let size = if random.one_in(6) { size } else { text.len() as i32 };
            (format!("configure {id} ({size})"), done(vm.call("proxy_on_configure", (id, size))))
        }
        4..=6 => {
            let longest = if random.one_in(30) { u64::MAX / 4 } else { 700_000_000 };
            vm.host().advance(random.below(longest));
            (format!("tick {id}"), vm.on_tick(id))
        }
        7 => {
            let (path, values) = *random.of(PROPERTIES);
            let value = if random.one_in(6) { random.bytes(80) } else { random.of(values).to_vec() };
            vm.host().set_property(path, &value);
            if random.one_in(4) {
                let key = *random.of(&[&b"idleguard.destination.payments"[..], b"idleguard.scout.payments"]);
                let value = random.bytes(120);
                vm.host().set_shared(key, &value);
            }
            (format!("property {path:?}"), Ok(()))
        }
        8 | 9 => {
            let lines = (0..random.below(6)).map(|_| {
                let value = match random.below(30) {
                    0 => random.bytes(300),
                    1 => b"10.0.0.1, ".repeat(6_000),
                    _ => random.of(VALUES).to_vec(),
                };
                (random.of(NAMES).as_bytes().to_vec(), value)
            });
            let lines = lines.collect();
            vm.host().set_raw_headers(Map::Request, lines);
            (format!("request {id}"), done(vm.call("proxy_on_request_headers", (id, size, flag))))
        }
        10 => (format!("response {id}"), done(vm.call("proxy_on_response_headers", (id, size, flag)))),
        11 => (format!("connection {id}"), done(vm.on_new_connection(id))),
        12..=15 => {
            let (from, name) = *random
                .of(&[(Buffer::Downstream, "proxy_on_downstream_data"), (Buffer::Upstream, "proxy_on_upstream_data")]);
            let mut bytes = match random.below(12) {
                0 => random.bytes(400),
                1 => b"x-long: y\r\n".repeat(7_000),
                _ => (0..=random.below(3)).flat_map(|_| random.of(STREAM).to_vec()).collect(),
            };
            if random.one_in(3) {
                bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
            }
            vm.host().set_buffer(from, &bytes);
            let size = if random.one_in(12) { size } else { bytes.len() as i32 };
            (format!("{name} {id} ({size})"), done(vm.call(name, (id, size, flag))))
        }
        16 => {
            let peer = if random.one_in(4) { random.next() as i32 } else { flag };
            (format!("close {id} by {peer}"), vm.call("proxy_on_downstream_connection_close", (id, peer)))
        }
        17 => (format!("delete {id}"), vm.call("proxy_on_delete", id)),
        18 => (format!("trailers {id}"), done(vm.call("proxy_on_request_trailers", (id, size)))),
        19 => (format!("answer {id}"), vm.call("proxy_on_http_call_response", (id, 7, size, size, size))),
        _ => {
            let size = *random.of(&[0, 1, 8, 4_096, 100_000]);
            (format!("allocate {size}"), done(vm.call("proxy_on_memory_allocate", size)))
        }
    }
}

/// A life of one VM; the number of callbacks that it took.
fn life(filter: &Filter, seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut vm = filter.start().expect("a VM");
    // Every second life begins as in Envoy, so that the rest has something to break.
    if random.one_in(2) {
        for json in [CONFIGURATIONS[0], CONFIGURATIONS[2]] {
            vm.configure(json).expect("a configuration");
        }
    }
    let (failing, spoilt) = (*random.of(&[0, 2, 10, 50, 100]), *random.of(&[0, 0, 5, 50]));
    vm.host().set_faults(Some(Box::new(Chaos { random: Random(random.next()), failing, spoilt })));
    let mut told = Vec::new();
    for _ in 0..STEPS {
        vm.allow(INSTRUCTIONS).expect("fuel");
        let (text, result) = step(&mut vm, &mut random);
        told.push(text);
        if let Err(error) = result {
            let last = &told[told.len().saturating_sub(12)..];
            panic!("FUZZ_SEED={seed}, {failing} % fail, {spoilt} % spoilt: {error:#}\nthe last steps: {last:#?}");
        }
        vm.host().forget_log();
    }
    // Nothing that was thrown at it is kept: what the host allocated itself is all that may be left.
    let memory = vm.memory().expect("memory");
    assert!(memory < 64 << 20, "FUZZ_SEED={seed}: {memory} bytes of memory");
    STEPS
}

#[test]
fn no_sequence_of_callbacks_traps() {
    let Some(filter) = support::filter() else { return };
    let steps: u64 = (1..=24).map(|seed| life(&filter, seed)).sum();
    println!("{steps} callbacks");
}

#[test]
#[ignore = "runs for FUZZ_SECONDS: `make fuzz-module`"]
fn no_sequence_of_callbacks_traps_for_long() {
    let Some(filter) = support::filter() else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("FUZZ_SEED") {
        life(&filter, seed);
        return;
    }
    let end = Instant::now() + Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(60));
    let first = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs() << 24;
    let mut steps = 0;
    for seed in first.. {
        if Instant::now() >= end {
            println!("{steps} callbacks in {} lives, the first with FUZZ_SEED={first}: no trap", seed - first);
            return;
        }
        steps += life(&filter, seed);
    }
}

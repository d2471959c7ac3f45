//! What the connection filter costs: bytes copied, host calls, instructions.
#![allow(clippy::expect_used, missing_docs)]

mod support;

use idleguard_counts::{Buffer, Vm};
use serde_json::json;

fn vm() -> Option<(Vm, i32)> {
    let mut vm = support::filter()?.start().expect("a VM");
    let policy = json!({"lb_idle_timeout": "60s"});
    let json = json!({"filter": "connection", "destination": "payments", "policy": policy}).to_string();
    let root = vm.configure(&json).expect("a configuration");
    vm.host().set_property(&["destination", "address"], "envoy://payments-guard/");
    Some((vm, root))
}

const REQUEST: &[u8] = b"GET /video HTTP/1.1\r\nhost: app.example\r\naccept: */*\r\n\r\n";

fn connection(vm: &mut Vm, root: i32) -> i32 {
    let connection = vm.stream(root).expect("a context");
    vm.on_new_connection(connection).expect("an answer");
    vm.on_data(connection, Buffer::Downstream, REQUEST).expect("an answer");
    connection
}

const EVENT: usize = 64 * 1024;
const DOWNLOAD: usize = 100 * 1024 * 1024;

#[test]
fn of_a_download_with_a_length_only_the_head_is_copied() {
    let Some((mut vm, root)) = vm() else { return };
    let before = vm.host().buffer_bytes();
    let connection = connection(&mut vm, root);
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: video/mp4\r\ncontent-length: {DOWNLOAD}\r\n\r\n");
    vm.on_data(connection, Buffer::Upstream, head.as_bytes()).expect("an answer");
    let copied = vm.host().buffer_bytes();
    assert!(copied - before <= (REQUEST.len() + head.len()) as u64, "{copied}");
    let body = vec![b'x'; EVENT];
    let cost = vm
        .count(|vm| (0..DOWNLOAD / EVENT).try_for_each(|_| vm.on_data(connection, Buffer::Upstream, &body).map(drop)));
    let cost = cost.expect("a cost");
    assert_eq!(vm.host().buffer_bytes(), copied, "no byte of the body");
    let events = (DOWNLOAD / EVENT) as u64;
    println!("a body event: {} instructions, {} host calls", cost.instructions / events, cost.calls() / events);
    assert!(cost.instructions / events <= 1_700 && cost.calls() <= 2 * events, "{cost:?}");
}

#[test]
fn of_a_chunked_download_only_the_chunk_lines_are_copied() {
    let Some((mut vm, root)) = vm() else { return };
    let connection = connection(&mut vm, root);
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    vm.on_data(connection, Buffer::Upstream, head).expect("an answer");
    let before = vm.host().buffer_bytes();
    let chunk = [b"10000\r\n".to_vec(), vec![b'x'; EVENT], b"\r\n".to_vec()].concat();
    let chunks = DOWNLOAD / EVENT;
    for _ in 0..chunks {
        vm.on_data(connection, Buffer::Upstream, &chunk).expect("an answer");
    }
    let copied = vm.host().buffer_bytes() - before;
    println!("{} bytes copied a chunk of {EVENT}", copied / chunks as u64);
    assert!(copied <= 128 * chunks as u64, "{copied}");
}

/// Connections are looked at when they could be due, and not before.
#[test]
fn a_tick_is_constant_work_however_many_connections_idle() {
    let Some((mut vm, root)) = vm() else { return };
    let mut costs = Vec::new();
    let mut open = 0;
    for connections in [1, 1_000, 100_000] {
        while open < connections {
            let connection = connection(&mut vm, root);
            let response = b"HTTP/1.1 204 No Content\r\n\r\n";
            vm.on_data(connection, Buffer::Upstream, response).expect("an answer");
            open += 1;
        }
        let mut tick = || {
            vm.host().advance(100_000_000);
            vm.count(|vm| vm.on_tick(root)).expect("a cost").instructions
        };
        (0..3).for_each(|_| assert!(tick() > 0)); // reports what was counted
        costs.push(tick());
        println!("{connections} idle connections: {} instructions a tick", costs[costs.len() - 1]);
    }
    assert!(costs.iter().all(|cost| *cost <= costs[0] + costs[0] / 10), "{costs:?}");
}

//! What a worker's memory is bounded by.
#![allow(clippy::expect_used, missing_docs)]

mod support;

use idleguard_counts::{Buffer, Filter, Map, Vm};

const REQUEST: &[u8] = b"GET /video HTTP/1.1\r\nhost: app.example\r\naccept: */*\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

fn configured(filter: &Filter, json: &str) -> (Vm, i32) {
    let mut vm = filter.start().expect("a VM");
    let root = vm.configure(json).expect("a configuration");
    vm.host().set_property(&["destination", "address"], "envoy://payments-guard/");
    (vm, root)
}

/// Opens connections that have carried an exchange and are idle.
fn open(vm: &mut Vm, root: i32, count: usize) -> Vec<i32> {
    let open = |_| {
        let stream = vm.stream(root).expect("a context");
        vm.on_new_connection(stream).expect("an answer");
        vm.on_data(stream, Buffer::Downstream, REQUEST).expect("an answer");
        vm.on_data(stream, Buffer::Upstream, RESPONSE).expect("an answer");
        stream
    };
    (0..count).map(open).collect()
}

fn close(vm: &mut Vm, root: i32, streams: &[i32]) {
    for stream in streams {
        vm.call::<(i32, i32), ()>("proxy_on_downstream_connection_close", (*stream, 2)).expect("a close");
        vm.end(*stream).expect("an end");
    }
    for _ in 0..10 {
        vm.host().advance(100_000_000);
        vm.on_tick(root).expect("a tick");
    }
}

/// 14,337 and 114,689 are where a table that doubles has just done so, the worst that can be.
#[test]
fn a_tracked_connection_costs_few_bytes_and_gives_them_back() {
    let Some(filter) = support::filter() else { return };
    let policy = r#"{"filter": "connection", "destination": "payments", "max_tracked_connections": 200000,
        "policy": {"lb_idle_timeout": "60s", "max_lifetime": "5m"}}"#;
    for count in [1_000, 10_000, 14_337, 100_000, 114_689] {
        let (mut vm, root) = configured(&filter, policy);
        let streams = open(&mut vm, root, 100);
        close(&mut vm, root, &streams);
        let before = vm.memory().expect("memory");
        let streams = open(&mut vm, root, count);
        let grown = vm.memory().expect("memory") - before;
        println!("{count} connections: {grown} bytes more, {} a connection", grown / count);
        assert!(grown / count <= PER_CONNECTION, "{grown} bytes for {count} connections");
        vm.host().advance(54_000_000_000);
        for _ in 0..10 {
            vm.host().advance(100_000_000);
            vm.on_tick(root).expect("a tick");
        }
        let grown = vm.memory().expect("memory") - before;
        println!("{count} fenced connections: {grown} bytes more, {} a connection", grown / count);
        assert!(grown / count <= PER_FENCED_CONNECTION, "{grown} bytes for {count} fenced connections");
        close(&mut vm, root, &streams);
        let before = vm.memory().expect("memory");
        let streams = open(&mut vm, root, count);
        close(&mut vm, root, &streams);
        assert_eq!(vm.memory().expect("memory"), before, "what was closed is used again");
    }
}

/// The growth of tables included.
const PER_CONNECTION: usize = 160;
/// The same where all of them have been fenced and wait for their close.
const PER_FENCED_CONNECTION: usize = 200;

#[test]
fn above_the_cap_connections_pass_and_are_counted() {
    let Some(filter) = support::filter() else { return };
    let json = r#"{"filter": "connection", "destination": "payments", "max_tracked_connections": 1000,
        "policy": {"lb_idle_timeout": "60s"}}"#;
    let (mut vm, root) = configured(&filter, json);
    let streams = open(&mut vm, root, 1_000);
    let more = open(&mut vm, root, 200);
    vm.host().advance(100_000_000);
    vm.on_tick(root).expect("a tick");
    let metric = |vm: &mut Vm, name: &str| {
        let name = format!("idleguard.destination.payments.{name}");
        vm.host().metric(&name).expect("a metric").value
    };
    assert_eq!(metric(&mut vm, "connections_opened"), 1_000);
    assert_eq!(metric(&mut vm, "connections_unguarded"), 200);
    close(&mut vm, root, &more);
    close(&mut vm, root, &streams);
    assert_eq!(metric(&mut vm, "connections_active"), 0);
}

/// A route can take its cluster from a header that the client writes.
#[test]
fn clusters_without_end_cost_neither_memory_nor_metrics_without_end() {
    let Some(filter) = support::filter() else { return };
    let (mut vm, root) = configured(&filter, r#"{"filter": "http", "destinations": {"*": {}}}"#);
    let request = |vm: &mut Vm, cluster: &str| {
        vm.host().set_headers(Map::Request, &[(":method", "GET")]);
        vm.host().set_property(&["xds", "cluster_name"], cluster);
        let stream = vm.stream(root).expect("a context");
        assert_eq!(vm.on_request_headers(stream).expect("an answer"), 0);
        vm.end(stream).expect("an end");
    };
    for number in 0..1_100 {
        request(&mut vm, &format!("cluster-{number}"));
    }
    let before = vm.memory().expect("memory");
    for number in 0..3_000 {
        request(&mut vm, &format!("another-{number}"));
        request(&mut vm, &format!("{number}").repeat(1_000));
    }
    assert_eq!(vm.memory().expect("memory"), before);
    assert!(vm.host().metric("idleguard.destination.cluster-999.fenced").is_some());
    assert!(vm.host().metric("idleguard.destination.another-1.fenced").is_none());
    let warnings = vm.host().log().iter().filter(|line| line.contains("destinations already")).count();
    assert_eq!(warnings, 1, "{:?}", vm.host().log());
}

//! A host of which one call fails, each in turn and with each status: traffic goes on, no header that a client wrote gets
//! through the client-address rules, and one warning names the call.
#![allow(clippy::expect_used, missing_docs)]

mod support;

use idleguard_vm_tests::{Buffer, Faults, Filter, Map, Vm};

/// The statuses of the ABI (`proxy_status_t`, 0 is success), and one that it doesn't know.
const STATUSES: [i32; 13] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 99];

const HTTP: &str = r#"{"filter": "http",
    "destinations": {"payments": {"lb_idle_timeout": "5s", "lanes": {"payments-4s": "4s"}}},
    "client_ip": {"trusted_proxies": ["10.0.0.0/8"]}}"#;
/// The same, for a request that is answered with 400.
const REJECTING: &str = r#"{"filter": "http",
    "destinations": {"payments": {"lb_idle_timeout": "5s", "lanes": {"payments-4s": "4s"}}},
    "client_ip": {"trusted_proxies": ["10.0.0.0/8"], "on_missing": "reject"}}"#;
const SCOUT: &str = r#"{"filter": "scout", "destination": "payments", "cluster": "payments-scout", "path": "/"}"#;

const SPOOFED: &str = "6.6.6.6";

struct Failing {
    call: String,
    status: i32,
}

impl Faults for Failing {
    fn status(&mut self, call: &'static str) -> Option<i32> {
        (call == self.call).then_some(self.status)
    }
}

/// What no callback may leave behind: a trap, a request that waits, a header that a client wrote.
fn traffic(vm: &mut Vm, http: i32, scout: i32) -> anyhow::Result<()> {
    for (path, value) in [
        (&["filter_state", "idleguard.peer"][..], "10.0.0.1:41000"),
        (&["xds", "cluster_name"], "payments"),
        (&["upstream", "local_address"], "10.0.0.9:1"),
        (&["upstream", "address"], "10.0.0.8:443"),
        (&["response", "code_details"], "via_upstream"),
    ] {
        vm.host().set_property(path, value);
    }
    for round in 0..3 {
        let stream = vm.stream(scout)?;
        let mut actions = vec![vm.on_new_connection(stream)?];
        // The second request of a round gets the connection of the first, at once or when it has been idle for a while.
        for details in ["via_upstream", "upstream_reset_before_response_started{connection_termination}"] {
            let request = request(vm, http)?;
            actions.push(vm.on_data(stream, Buffer::Downstream, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?);
            actions.push(vm.on_data(stream, Buffer::Upstream, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")?);
            vm.host().set_property(&["response", "code_details"], details);
            vm.host().set_headers(Map::Response, &[(":status", "200")]);
            actions.push(vm.on_response_headers(request)?);
            vm.end(request)?;
            ticks(vm, http, scout, if round == 1 { 0 } else { 15 })?;
        }
        anyhow::ensure!(actions.iter().all(|action| *action == 0), "round {round}: held back: {actions:?}");
        ticks(vm, http, scout, 50)?;
        vm.call::<(i32, i32, i32, i32, i32), ()>("proxy_on_http_call_response", (scout, 7, 0, 0, 0))?;
        if round < 2 {
            vm.call::<(i32, i32), ()>("proxy_on_downstream_connection_close", (stream, 1))?;
            vm.end(stream)?;
        }
    }
    Ok(())
}

/// A request whose client tries to choose its address; its context.
fn request(vm: &mut Vm, http: i32) -> anyhow::Result<i32> {
    vm.host().set_headers(
        Map::Request,
        &[(":method", "GET"), ("x-client-ip", SPOOFED), ("forwarded", "for=6.6.6.6"), ("x-real-ip", SPOOFED)],
    );
    let request = vm.stream(http)?;
    let before = vm.host().responses().len();
    let action = vm.on_request_headers(request)?;
    let answered = vm.host().responses().len() > before;
    let headers = vm.host().headers(Map::Request).to_vec();
    let is_spoofed = headers.iter().any(|(_, value)| String::from_utf8_lossy(value).contains(SPOOFED));
    // A request goes on, without what the client wrote; or it is answered. If both are impossible it waits.
    anyhow::ensure!(action == 1 || !is_spoofed, "the application gets {headers:?}");
    anyhow::ensure!(action == 0 || answered || is_spoofed, "a sound request waits for ever");
    Ok(request)
}

fn ticks(vm: &mut Vm, http: i32, scout: i32, count: u32) -> anyhow::Result<()> {
    for _ in 0..count {
        vm.host().advance(100_000_000);
        vm.on_tick(scout)?;
        vm.on_tick(http)?;
    }
    Ok(())
}

/// Runs traffic on a host whose `call` fails, from before the configuration on or after it. Returns what was logged; `None` if
/// the configuration was refused.
fn run(filter: &Filter, http: &str, call: &str, status: i32, early: bool) -> Option<Vec<String>> {
    let context = format!("{call} fails with {status}, {}", if early { "always" } else { "once configured" });
    let mut vm = filter.start().expect("a VM");
    let faults = || Some(Box::new(Failing { call: call.to_owned(), status }) as Box<dyn Faults>);
    if early {
        vm.host().set_faults(faults());
    }
    let roots: Vec<_> = [http, SCOUT].into_iter().map(|json| vm.configure(json)).collect();
    let [Ok(http), Ok(scout)] = roots[..] else {
        assert!(early && call == "proxy_get_buffer_bytes", "{context}: refused, {:?}", vm.host().log());
        return None;
    };
    vm.host().set_faults(faults());
    traffic(&mut vm, http, scout).unwrap_or_else(|error| panic!("{context}: {error:#}"));
    Some(vm.host().log().to_vec())
}

#[test]
fn whichever_call_fails_traffic_goes_on_and_one_warning_names_it() {
    let Some(filter) = support::filter() else { return };
    let mut told = Vec::new();
    for call in filter.imports() {
        let early = STATUSES.iter().step_by(6).map(|status| (*status, true));
        for (status, early) in STATUSES.iter().map(|status| (*status, false)).chain(early) {
            for http in [HTTP, REJECTING] {
                let Some(log) = run(&filter, http, &call, status, early) else { continue };
                let naming = log.iter().filter(|line| line.contains(&call)).count();
                assert!(naming <= 1, "{call} with {status}, in 24 seconds: {log:?}");
                if naming == 1 && !told.contains(&call) {
                    told.push(call.clone());
                }
            }
        }
    }
    println!("named in a warning: {told:?}");
    for call in [
        "proxy_get_header_map_pairs",
        "proxy_replace_header_map_value",
        "proxy_remove_header_map_value",
        "proxy_add_header_map_value",
        "proxy_send_local_response",
        "proxy_get_property",
        "proxy_set_property",
        "proxy_call_foreign_function",
        "proxy_get_buffer_bytes",
        "proxy_set_tick_period_milliseconds",
        "proxy_define_metric",
        "proxy_increment_metric",
        "proxy_record_metric",
        "proxy_get_shared_data",
        "proxy_set_shared_data",
    ] {
        assert!(told.iter().any(|told| told == call), "no warning names {call}");
    }
}

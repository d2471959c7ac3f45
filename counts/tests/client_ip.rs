//! What the client-address rules cost a request.
#![allow(clippy::expect_used, missing_docs)]

mod support;

use idleguard_counts::{Cost, Map, Vm};
use serde_json::{Value, json};

/// The filter with these rules, and a peer.
fn vm(client_ip: &Value) -> Option<(Vm, i32)> {
    let mut vm = support::filter()?.start().expect("a VM");
    let root = vm.configure(&json!({"filter": "http", "client_ip": client_ip}).to_string()).expect("a configuration");
    vm.host().set_property(&["filter_state", "idleguard.peer"], "10.0.0.1:41000");
    Some((vm, root))
}

/// What a request costs whose headers are these, and twenty that don't matter. The first one in a VM fills caches.
fn cost(vm: &mut Vm, root: i32, headers: &[(&str, &str)]) -> Cost {
    let others = [
        (":authority", "app.example"),
        (":path", "/v1/payments/4711?expand=customer"),
        (":method", "POST"),
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
    ];
    let lines: Vec<(&str, &str)> = others.iter().chain(headers).copied().collect();
    let mut costs = Vec::new();
    for _ in 0..2 {
        vm.host().set_headers(Map::Request, &lines);
        let request = vm.stream(root).expect("a context");
        costs.push(vm.count(|vm| vm.on_request_headers(request)).expect("an answer"));
        vm.end(request).expect("an end");
    }
    costs.pop().expect("two")
}

const LONG: usize = 100_000;

/// What a byte of a list that trusted proxies wrote may take.
const BAR: f64 = 40.0;

/// Forms that take more, and why. To ask for an element, compare it with the trusted blocks and copy it takes some 150
/// instructions, and a group of IPv6 some 100, however few digits it has: so the shortest take most, byte for byte. In the forms
/// below "a mix of forms" no canonical text is among what was read, so it is made anew; proxies don't write these, and the last
/// two can't come from beyond a link.
fn bar(form: &str) -> f64 {
    match form {
        "IPv4 with a port of one digit" => 45.0,
        "short IPv6" | "short IPv6 without a blank" | "IPv6 that ends in zeros" => 58.0,
        "the shortest IPv6" => 83.0,
        "a mix of forms" => 48.0, // a fifth of them the shortest
        "IPv6 with leading zeros" => 75.0,
        "IPv6 with its zeros" | "IPv4 inside IPv6" => 95.0,
        "upper-case IPv6" | "IPv6 with a zone and a port" => 182.0,
        "IPv6 with a zone" => 220.0,
        _ => BAR,
    }
}

/// A list of 100 KB whose n-th element from the left is made by `element`, commas and blanks included.
fn long(element: impl Fn(u32) -> String) -> String {
    let mut list = String::new();
    for n in 0.. {
        if list.len() >= LONG {
            break;
        }
        list.push_str(&element(n));
    }
    list
}

/// Writes the n-th element of a list.
type Element = Box<dyn Fn(u32) -> String>;

/// Every form of an address, with the comma and blank that it is written with; no two neighbours are equal but the loopbacks.
fn forms() -> Vec<(&'static str, Element)> {
    fn form(name: &'static str, element: impl Fn(u32) -> String + 'static) -> (&'static str, Element) {
        (name, Box::new(element))
    }
    /// One of the groups that make up an address without zero groups.
    fn group(n: u32, place: u32) -> u32 {
        (n.wrapping_mul(2_654_435_761).rotate_left(place * 4) & 0xffff).max(1)
    }
    let octet = |n: u32, place: u32| group(n, place) & 0xff;
    vec![
        form("the longest IPv4", |n| format!(", 10.200.100.{}", 100 + n % 156)),
        form("usual IPv4", move |n| format!(", 10.{}.{}.{}", octet(n, 0), octet(n, 1), octet(n, 2))),
        form("the shortest IPv4", |n| format!(",10.0.0.{}", n % 10)),
        form("IPv4 with a port", |n| format!(", 10.1.20.{}:{}", n % 256, 32_768 + n % 30_000)),
        form("IPv4 with a port of one digit", |n| format!(",10.0.0.{}:{}", n % 10, n % 10)),
        form("IPv4-mapped IPv6", |n| format!(", ::ffff:10.1.20.{}", n % 256)),
        form("IPv4-mapped IPv6 with a port", |n| format!(", [::ffff:10.1.20.{}]:{}", n % 256, 1 + n % 65_535)),
        form("full IPv6", |n| {
            let groups: Vec<String> = (0..6).map(|place| format!("{:x}", group(n, place))).collect();
            format!(", 2001:db8:{}", groups.join(":"))
        }),
        form("usual IPv6", |n| format!(", 2001:db8::{:x}:{:x}:{:x}", group(n, 0), group(n, 1), group(n, 2))),
        form("IPv6 of a subnet", |n| format!(", 2001:db8:0:{:x}::{:x}", 1 + n % 4095, 1 + n % 9)),
        form("IPv6 in brackets", |n| format!(", [2001:db8::{:x}:{:x}]", group(n, 0), group(n, 1))),
        form("IPv6 with a port", |n| format!(", [2001:db8::{:x}:{:x}]:{}", group(n, 0), group(n, 1), 1 + n % 65_535)),
        form("short IPv6", |n| format!(", fd00::{:x}", 1 + n % 15)),
        form("short IPv6 without a blank", |n| format!(",fd00::{:x}", 1 + n % 15)),
        form("loopback IPv6", |_| ",::1".to_owned()),
        form("the shortest IPv6", |n| format!(",::{:x}", 1 + n % 15)),
        form("IPv6 that ends in zeros", |n| format!(",fd0{:x}::", n % 16)),
        form("a mix of forms", |n| match n % 5 {
            0 => format!(", 10.1.20.{}", n % 256),
            1 => format!(",[2001:db8::{:x}]:443", group(n, 0)),
            2 => format!(", 10.1.20.{}:{}", n % 256, 1 + n % 65_535),
            3 => format!(",::{:x}", 1 + n % 15),
            _ => format!(", ::ffff:10.1.20.{}", n % 256),
        }),
        form("blanks and tabs", |n| format!("\t , 10.1.20.{}", n % 256)),
        form("upper-case IPv6", |n| format!(", 2001:DB8::{:X}:{:X}:{:X}", group(n, 0), group(n, 1), group(n, 2))),
        form("IPv6 with leading zeros", |n| {
            let groups: Vec<String> = (0..6).map(|place| format!("{:04x}", group(n, place) & 0xfff)).collect();
            format!(", 2001:0db8:{}", groups.join(":"))
        }),
        form("IPv6 with its zeros", |n| format!(", 2001:db8:0:0:0:0:0:{:x}", group(n, 0))),
        form("IPv4 inside IPv6", |n| format!(", 2001:db8::10.1.20.{}", n % 256)),
        form("IPv6 with a zone", |n| format!(", fd00::{:x}%eth0", 1 + n % 15)),
        form("IPv6 with a zone and a port", |n| format!(", [fd00::{:x}:{:x}%eth0]:443", group(n, 0), group(n, 1))),
    ]
}

/// What nobody trusted wrote costs nothing.
#[test]
fn what_stands_left_of_the_client_is_free() {
    let Some((mut vm, root)) = vm(&json!({"trusted_proxies": ["10.0.0.0/8"]})) else { return };
    for (kind, list) in [
        ("a spoofed prefix", format!("{}203.0.113.5", long(|_| "6.6.6.6, ".to_owned()))),
        ("garbage", long(|_| "unknown,".to_owned())),
        ("commas", format!("{}203.0.113.5", long(|_| ",".to_owned()))),
    ] {
        let per_byte = cost(&mut vm, root, &[("x-forwarded-for", &list)]).per_byte(list.len());
        println!("{kind}: {per_byte:.1} instructions per byte");
        assert!(per_byte <= 1.0, "{kind}: {per_byte:.1} instructions per byte");
    }
}

/// However the list is trusted, and in however many lines it comes.
#[test]
fn counted_hops_and_many_lines_cost_no_more() {
    let element = |n| format!(", 10.1.20.{}", n % 256);
    let list = format!("203.0.113.5{}", long(element));
    let elements = list.split(',').count();
    if let Some((mut vm, root)) = vm(&json!({"trusted_hops": elements})) {
        let cost = cost(&mut vm, root, &[("x-forwarded-for", &list)]);
        assert!(cost.per_byte(list.len()) <= BAR, "{cost:?}");
    }
    let lines: Vec<&str> = list.split(", ").collect();
    let lines: Vec<String> = lines.chunks(100).map(|line| line.join(", ")).collect();
    let headers: Vec<(&str, &str)> = lines.iter().map(|line| ("x-forwarded-for", line.as_str())).collect();
    if let Some((mut vm, root)) = vm(&json!({"trusted_proxies": ["10.0.0.0/8"]})) {
        let cost = cost(&mut vm, root, &headers);
        assert!(cost.per_byte(list.len()) <= BAR, "{cost:?}");
    }
}

#[test]
fn the_work_for_a_long_list_is_linear_and_the_host_calls_are_few() {
    let trusted = json!({"trusted_proxies": ["10.0.0.0/8", "fd00::/8", "::/124", "2001:db8::/32"]});
    let Some((mut vm, root)) = vm(&trusted) else { return };
    let short = cost(&mut vm, root, &[("x-forwarded-for", "203.0.113.5")]);
    let mut over = Vec::new();
    for (form, element) in forms() {
        let list = format!("203.0.113.5{}", long(element));
        let cost = cost(&mut vm, root, &[("x-forwarded-for", &list)]);
        let per_byte = cost.per_byte(list.len());
        println!("{form}: {per_byte:.1} instructions per byte, {} host calls", cost.calls());
        if per_byte > bar(form) {
            over.push(format!("{form}: {per_byte:.1} instructions per byte, more than {}", bar(form)));
        }
        assert_eq!(cost.calls_by_name, short.calls_by_name, "{form}");
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}

/// `forwarded` (RFC 7239) is read byte by byte for its quotes, and its addresses are written anew, so it may cost more.
#[test]
fn a_long_forwarded_list_is_linear_work_too() {
    let section = json!({
        "trusted_proxies": ["10.0.0.0/8", "2001:db8::/32"],
        "sources": ["forwarded"],
        "set": ["x-real-ip"],
    });
    let Some((mut vm, root)) = vm(&section) else { return };
    let short = cost(&mut vm, root, &[("forwarded", "for=203.0.113.5")]);
    let forms: [(&str, Element, f64); 4] = [
        ("IPv4", Box::new(|n| format!(", for=10.1.20.{}", n % 256)), 90.0),
        (
            "IPv4 with a port and more",
            Box::new(|n| format!(", for=\"10.1.20.{}:{}\";proto=https;by=10.0.0.1", n % 256, 1 + n % 65_535)),
            58.0,
        ),
        ("IPv6", Box::new(|n| format!(", for=\"[2001:db8::8a2e:{:x}]\"", 1 + n % 65_535)), 120.0),
        ("IPv6 with a port", Box::new(|n| format!(", for=\"[2001:db8::8a2e:{:x}]:443\"", 1 + n % 65_535)), 110.0),
    ];
    for (form, element, most) in forms {
        let list = format!("for=203.0.113.5{}", long(element));
        let cost = cost(&mut vm, root, &[("forwarded", &list)]);
        let per_byte = cost.per_byte(list.len());
        println!("forwarded, {form}: {per_byte:.1} instructions per byte");
        assert!(per_byte <= most, "{form}: {per_byte:.1} instructions per byte");
        assert_eq!(cost.calls_by_name, short.calls_by_name, "{form}");
    }
}

#[test]
fn a_usual_request_is_cheap() {
    let Some((mut vm, root)) = vm(&json!({"trusted_proxies": ["10.0.0.0/8"]})) else { return };
    for (kind, headers, instructions, calls) in [
        ("one element", &[("x-forwarded-for", "203.0.113.5")][..], 18_000, 6),
        ("no source", &[], 18_000, 6),
        ("a spoofed one, too", &[("x-forwarded-for", "6.6.6.6, 203.0.113.5"), ("x-real-ip", "6.6.6.6")], 18_000, 6),
    ] {
        let cost = cost(&mut vm, root, headers);
        println!("{kind}: {} instructions, {:?}", cost.instructions, cost.calls_by_name);
        assert!(cost.instructions <= instructions, "{kind}: {cost:?}");
        assert!(cost.calls() <= calls, "{kind}: {cost:?}");
        assert_eq!(vm.host().log(), &[] as &[String]);
    }
}

/// No cost may grow from one request to the next.
#[test]
fn a_worker_forgets_its_requests() {
    let Some((mut vm, root)) = vm(&json!({"trusted_proxies": ["10.0.0.0/8"]})) else { return };
    let headers = [("x-forwarded-for", "203.0.113.5, 10.0.0.2")];
    let first = cost(&mut vm, root, &headers);
    for _ in 0..1_000 {
        cost(&mut vm, root, &headers);
    }
    let last = cost(&mut vm, root, &headers);
    assert_eq!(last.calls_by_name, first.calls_by_name);
    assert!(last.instructions <= first.instructions * 11 / 10, "{first:?}, then {last:?}");
}

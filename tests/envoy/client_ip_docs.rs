//! The examples of `docs/client-ip.md` do what the page says: they are read from there and run in a real Envoy.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use idleguard_core::metrics::ClientIpMetric;
use idleguard_harness::envoy::{Config, Envoy, Options};
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::{Value, json};

use tokio::net::UnixStream;

use super::request::{CLAIMS, ask_behind, ask_from, exchange};
use super::{ms, project_config, start};

const PAGE: &str = include_str!("../../docs/client-ip.md");
const MARK: &str = "<!-- test: ";

const INGRESS: &str = "static_resources/listeners/ingress";
const FILTERS: &str = "static_resources/listeners/ingress/filter_chains/0/filters";
const MANAGER: &str = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config";

/// The block of code behind its mark.
pub(crate) fn example(name: &str) -> Value {
    let (_, after) = PAGE.split_once(&format!("{MARK}{name} -->\n```")).expect("an example of that name");
    let (_, code) = after.split_once('\n').expect("a block of code");
    let (code, _) = code.split_once("```").expect("its end");
    serde_json::from_str(&Config::parse(code).expect("YAML").to_string()).expect("JSON")
}

fn with_client_ip(config: Config, rules: &Value) -> Config {
    config.edit_http_filter(|http| http["client_ip"] = rules.clone())
}

/// The project's Envoy, where the peer of a connection is whatever a PROXY header says: a network to play with.
pub(crate) fn anywhere(config: Config) -> Config {
    let listener_filters = example("proxy-protocol-listener")["listener_filters"].clone();
    config.set(&format!("{INGRESS}/listener_filters"), listener_filters)
}

/// Begins a connection from this address (PROXY protocol, version 1).
pub(crate) fn from(peer: &str) -> Vec<u8> {
    let (family, to) = if peer.contains(':') { ("TCP6", "2001:db8::1") } else { ("TCP4", "192.0.2.1") };
    format!("PROXY {family} {peer} {to} 41000 443\r\n").into_bytes()
}

/// The same in version 2.
fn from_v2(peer: IpAddr) -> Vec<u8> {
    let (family, addresses) = match peer {
        IpAddr::V4(peer) => (0x11, [peer.octets(), [192, 0, 2, 1]].concat()),
        IpAddr::V6(peer) => (0x21, [peer.octets(), [0x20; 16]].concat()),
    };
    let length = u16::try_from(addresses.len() + 4).expect("a short header").to_be_bytes();
    let ports = [0xa0, 0x28, 0x01, 0xbb];
    [b"\r\n\r\n\0\r\nQUIT\n\x21", &[family][..], &length, &addresses, &ports].concat()
}

const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

const LB: &str = "10.0.0.1";
const CLIENT: &str = "203.0.113.5";
const ATTACKER: &str = "203.0.113.66";

/// What the application sees: `x-forwarded-for` and `x-real-ip`. `None`: the answer is 400.
type Seen<'a> = Option<(&'a str, &'a str)>;

async fn check(envoy: &Envoy, before: &[u8], headers: &[(&str, &str)], seen: Seen<'_>) {
    let answer = ask_behind(envoy.ingress(), before, headers).await;
    match seen {
        None => assert_eq!((answer.status, answer.headers), (400, vec![]), "{headers:?}"),
        Some((list, client)) => {
            assert_eq!(answer.status, 200, "{headers:?}");
            assert_eq!(answer.values("x-forwarded-for"), [list], "{headers:?}");
            assert_eq!(answer.values("x-real-ip"), [client], "{headers:?}");
            assert!(!answer.mentions("6.6.6.6"), "{answer:?}");
            for gone in ["forwarded", "ns-client-ip", "cip", "true-client-ip", "cf-connecting-ip", "x_real_ip"] {
                assert!(answer.values(gone).is_empty(), "{answer:?}");
            }
        }
    }
}

/// All that an attacker may claim, and what an LB adds to it.
fn claims<'a>(added: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&CLAIMS[..], added].concat()
}

#[test]
fn every_example_has_a_test_and_every_metric_exists() {
    let tested = include_str!("client_ip_docs.rs");
    let names: BTreeSet<&str> =
        PAGE.split(MARK).skip(1).filter_map(|after| Some(after.split_once(" -->\n```")?.0)).collect();
    assert_eq!(names.len(), PAGE.matches("\n```json\n").count() + PAGE.matches("\n```yaml\n").count());
    for name in names {
        assert!(tested.contains(&format!("example(\"{name}\")")), "{name}");
        example(name);
    }
    for metric in ClientIpMetric::ALL {
        assert!(PAGE.contains(&format!("\n| `{}` | ", metric.name())), "{metric:?}");
    }
}

async fn https_lb(envoy: &Envoy) {
    let through = ("203.0.113.5, 10.0.0.1", CLIENT);
    check(envoy, &from(LB), &[("x-forwarded-for", CLIENT)], Some(through)).await;
    check(envoy, &from(LB), &[("x-forwarded-for", "6.6.6.6, 203.0.113.5")], Some(through)).await;
    check(envoy, &from(LB), &[], Some((LB, LB))).await;
    // Attacks: through the LB, past it.
    let seen = Some(("203.0.113.66, 10.0.0.1", ATTACKER));
    check(envoy, &from(LB), &claims(&[("x-forwarded-for", ATTACKER)]), seen).await;
    check(envoy, &from(ATTACKER), &claims(&[]), Some((ATTACKER, ATTACKER))).await;
    check(envoy, &from(ATTACKER), &claims(&[("x-forwarded-for", LB)]), Some((ATTACKER, ATTACKER))).await;
}

/// With the recorded peer both settings of `use_remote_address` give the same result.
#[tokio::test]
async fn recipe_https_lb_and_the_trap() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    assert_eq!(project.get(&format!("{FILTERS}/peer")), Some(&example("recorder")[0]));
    let config = with_client_ip(anywhere(project.upstream(lb.address())), &example("https-lb"));
    for use_remote_address in [true, false] {
        https_lb(&start(&config.clone().set(&format!("{MANAGER}/use_remote_address"), use_remote_address), 1).await)
            .await;
    }
}

#[tokio::test]
async fn recipe_proxy_protocol() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let listener = example("proxy-protocol-listener");
    let mut only_the_lb = listener["filter_chains"][0]["filter_chain_match"].clone();
    let block = &mut only_the_lb["direct_source_prefix_ranges"][0];
    assert_eq!(*block, json!({"address_prefix": "10.0.0.0", "prefix_len": 8}));
    *block = json!({"address_prefix": "127.0.0.1", "prefix_len": 32}); // where the test's LB is
    let config = with_client_ip(anywhere(project.upstream(lb.address())), &example("proxy-protocol-rules"))
        .set(&format!("{INGRESS}/filter_chains/0/filter_chain_match"), only_the_lb);
    let envoy = start(&config, 1).await;
    let v6 = "2001:db8::5";
    for (before, client) in [
        (from(CLIENT), CLIENT),
        (from(v6), v6),
        (from_v2(CLIENT.parse().expect("an address")), CLIENT),
        (from_v2(v6.parse().expect("an address")), v6),
        (LOCAL.to_vec(), "127.0.0.1"),
    ] {
        check(&envoy, &before, &[], Some((client, client))).await;
        check(&envoy, &before, &claims(&[("x-forwarded-for", "10.0.0.1")]), Some((client, client))).await;
    }
    // Past the LB, with a PROXY header of the attacker's own.
    let elsewhere: SocketAddr = ([127, 0, 0, 2], 0).into();
    assert_eq!(ask_from(elsewhere, envoy.ingress(), &from("6.6.6.6"), &[]).await, None);
    let lb_itself: SocketAddr = ([127, 0, 0, 1], 0).into();
    let answer = ask_from(lb_itself, envoy.ingress(), &from(CLIENT), &[]).await.expect("an answer");
    assert_eq!(answer.values("x-real-ip"), [CLIENT]);
}

#[tokio::test]
async fn recipe_cdn() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let envoy = start(&with_client_ip(anywhere(project.upstream(lb.address())), &example("cdn")), 1).await;
    let list = "203.0.113.5, 198.51.100.7";
    check(&envoy, &from(LB), &[("x-forwarded-for", list)], Some(("203.0.113.5, 198.51.100.7, 10.0.0.1", CLIENT))).await;
    let list = "203.0.113.5, 2001:db8:cd::7";
    check(&envoy, &from(LB), &[("x-forwarded-for", list)], Some(("203.0.113.5, 2001:db8:cd::7, 10.0.0.1", CLIENT)))
        .await;
    let list = "6.6.6.6, 203.0.113.9";
    check(&envoy, &from(LB), &[("x-forwarded-for", list)], Some(("203.0.113.9, 10.0.0.1", "203.0.113.9"))).await;
    // Attacks: through the CDN, past it, past both.
    let through_both = claims(&[("x-forwarded-for", "203.0.113.66, 198.51.100.7")]);
    check(&envoy, &from(LB), &through_both, Some(("203.0.113.66, 198.51.100.7, 10.0.0.1", ATTACKER))).await;
    let past_the_cdn = claims(&[("x-forwarded-for", ATTACKER)]);
    check(&envoy, &from(LB), &past_the_cdn, Some(("203.0.113.66, 10.0.0.1", ATTACKER))).await;
    check(&envoy, &from(ATTACKER), &claims(&[]), Some((ATTACKER, ATTACKER))).await;
}

#[tokio::test]
async fn recipe_netscaler() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let config = anywhere(project.upstream(lb.address()));
    let envoy = start(&with_client_ip(config.clone(), &example("netscaler")), 1).await;
    let through =
        |client| Some((if client == CLIENT { "203.0.113.5, 10.0.0.1" } else { "203.0.113.66, 10.0.0.1" }, client));
    check(&envoy, &from(LB), &[("ns-client-ip", CLIENT)], through(CLIENT)).await;
    check(&envoy, &from(LB), &[("ns-client-ip", "6.6.6.6"), ("ns-client-ip", CLIENT)], None).await;
    let health_check = ask_behind(envoy.ingress(), &from(LB), &[]).await;
    assert_eq!((health_check.status, health_check.mentions(LB)), (200, false), "{health_check:?}");
    // Attacks: an LB that adds, one that replaces, past the LB.
    check(&envoy, &from(LB), &claims(&[("ns-client-ip", "6.6.6.6"), ("ns-client-ip", ATTACKER)]), None).await;
    check(&envoy, &from(LB), &claims(&[("ns-client-ip", ATTACKER)]), through(ATTACKER)).await;
    check(&envoy, &from(ATTACKER), &claims(&[("ns-client-ip", "6.6.6.6")]), Some((ATTACKER, ATTACKER))).await;

    let envoy = start(&with_client_ip(config, &example("netscaler-set")), 1).await;
    let answer = ask_behind(envoy.ingress(), &from(LB), &[("CIP", CLIENT)]).await;
    assert_eq!(answer.values("cip"), [CLIENT]);
    assert_eq!(answer.values("x-forwarded-for"), ["203.0.113.5, 10.0.0.1"]);
    let answer = ask_behind(envoy.ingress(), &from(ATTACKER), &[("cip", "6.6.6.6")]).await;
    assert_eq!(answer.values("cip"), [ATTACKER]);
}

#[tokio::test]
async fn recipe_unix() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("ingress.sock");
    let config = with_client_ip(project.upstream(lb.address()), &example("unix"))
        .set(&format!("{INGRESS}/address"), json!({"pipe": {"path": socket}}));
    let _envoy = start(&config, 1).await;
    for (headers, seen) in
        [(claims(&[("x-forwarded-for", "6.6.6.6, 203.0.113.5")]), Some(CLIENT)), (vec![("x-real-ip", "6.6.6.6")], None)]
    {
        let lines: Vec<_> = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let unix = UnixStream::connect(&socket).await.expect("a connection");
        let answer = exchange(unix, b"", &lines).await.expect("an answer");
        assert!(!answer.mentions("6.6.6.6"), "{answer:?}");
        let seen: Vec<&str> = seen.into_iter().collect();
        assert_eq!(answer.values("x-forwarded-for"), seen, "{answer:?}");
        assert_eq!(answer.values("x-real-ip"), seen, "{answer:?}");
    }
}

/// The listener as Istio makes it, and its two operations on network filters.
#[tokio::test]
async fn recipe_istio() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let mut config = with_client_ip(anywhere(project.upstream(lb.address())), &example("https-lb"))
        .set(&format!("{MANAGER}/use_remote_address"), true)
        .set(&format!("{MANAGER}/skip_xff_append"), false);
    let filters = config.get_mut(FILTERS).and_then(Value::as_array_mut).expect("filters");
    filters.retain(|filter| filter["name"] == "http");
    for patch in example("istio")["spec"]["configPatches"].as_array().expect("patches") {
        let value = &patch["patch"]["value"];
        config = match patch["patch"]["operation"].as_str() {
            Some("INSERT_BEFORE") => config.insert(FILTERS, Some(0), value.clone()),
            Some("MERGE") => {
                let typed = value["typed_config"].as_object().expect("a typed configuration");
                let manager = config.get(MANAGER).expect("the manager");
                assert_eq!(typed["@type"], manager["@type"]);
                typed
                    .iter()
                    .fold(config.clone(), |config, (key, value)| config.set(&format!("{MANAGER}/{key}"), value.clone()))
            }
            other => panic!("{other:?}"),
        };
    }
    https_lb(&start(&config, 1).await).await;
}

fn insert_filters(mut config: Config, filters: &Value) -> Config {
    let list = config.get_mut(&format!("{MANAGER}/http_filters")).and_then(Value::as_array_mut).expect("filters");
    let router = list.len() - 1;
    list.splice(router..router, filters.as_array().expect("a list").iter().cloned());
    config
}

async fn status(envoy: &Envoy, client: &str) -> u16 {
    ask_behind(envoy.ingress(), &from(LB), &[("x-forwarded-for", client)]).await.status
}

#[tokio::test]
async fn the_client_is_in_access_logs() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let config = with_client_ip(anywhere(project.upstream(lb.address())), &example("https-lb"))
        .set(&format!("{MANAGER}/access_log"), example("access-log")["access_log"].clone());
    let arguments = ["--file-flush-interval-msec", "50"].map(str::to_owned).to_vec();
    let envoy = Envoy::start(&config, Options { arguments, ..Options::default() }).await.expect("a running Envoy");
    assert_eq!(status(&envoy, "6.6.6.6, 203.0.113.5").await, 200);
    let logged = || {
        let lines = envoy.log();
        let line = lines.lines().find(|line| line.starts_with("{\"") && line.contains("\"client\""))?;
        serde_json::from_str::<Value>(line).ok()
    };
    for _ in 0..200 {
        if logged().is_some() {
            break;
        }
        tokio::time::sleep(ms(50)).await;
    }
    assert_eq!(logged(), Some(json!({"client": CLIENT, "peer": "10.0.0.1:41000", "status": 200})));
}

#[tokio::test]
async fn the_client_decides_in_rbac() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let config = with_client_ip(anywhere(project.upstream(lb.address())), &example("https-lb"));
    let envoy = start(&insert_filters(config, &example("rbac")), 1).await;
    for (client, expected) in
        [(CLIENT, 200), ("198.51.100.1", 403), ("203.0.113.5, 198.51.100.1", 403), ("6.6.6.6, 203.0.113.9", 200)]
    {
        assert_eq!(status(&envoy, client).await, expected, "{client}");
    }
    let past_the_lb = ask_behind(envoy.ingress(), &from("198.51.100.1"), &[("x-forwarded-for", CLIENT)]).await;
    assert_eq!(past_the_lb.status, 403);
}

#[tokio::test]
async fn each_client_has_a_rate_limit_of_its_own() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let config = with_client_ip(anywhere(project.upstream(lb.address())), &example("https-lb"));
    let envoy = start(&insert_filters(config, &example("rate-limit")), 1).await;
    for (client, expected) in [
        (CLIENT, 200),
        (CLIENT, 200),
        (CLIENT, 200),
        (CLIENT, 429),
        ("6.6.6.6, 203.0.113.5", 429), // claiming to be another doesn't help
        ("203.0.113.6", 200),
    ] {
        assert_eq!(status(&envoy, client).await, expected, "{client}");
    }
}

/// Filters that wait stand between the rules for addresses and the destinations.
#[tokio::test]
async fn idleguard_may_be_there_twice() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let config = anywhere(project.upstream(lb.address()));
    let list = format!("{MANAGER}/http_filters");
    let of = |rules: Value| {
        let config = config.clone().edit_http_filter(|http| *http = rules.clone());
        config.get(&format!("{list}/idleguard")).expect("the filter").clone()
    };
    let router = config.get(&format!("{list}/router")).expect("the router").clone();
    let mut last = of(example("last-filter"));
    last["name"] = "idleguard-destinations".into();
    let filters = json!([of(example("first-filter")), last, router]);
    let envoy = start(&config.clone().set(&list, filters), 1).await;
    https_lb(&envoy).await;
    let limit = "wasmcustom.idleguard.destination.payments.idle_limit_ms";
    let is_there = |stats: &std::collections::BTreeMap<String, u64>| stats.get(limit) == Some(&54_000);
    envoy.wait_for(ms(10_000), "payments", is_there).await.expect("the destination's metrics");
}

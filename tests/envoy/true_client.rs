//! The application sees the real client, and no client chooses its own address.

use std::collections::BTreeMap;
use std::path::Path;

use idleguard_core::client_ip::Peer;
use idleguard_harness::envoy::{Config, Envoy};
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixStream};

use super::reference::{Line, bytes, configured_names, folded, is_trusted_peer, lines, vectors};
use super::request::{Answer, CLAIMS, ask, exchange};
use super::{ms, project_config, start};

const INGRESS: &str = "static_resources/listeners/ingress";
const CHAIN: &str = "static_resources/listeners/ingress/filter_chains/0/filters";
const MANAGER: &str = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config";

fn with_client_ip(config: Config, client_ip: &Value) -> Config {
    config.edit_http_filter(|http| http["client_ip"] = client_ip.clone())
}

/// Nothing records the peer.
fn without_recorded_peer(mut config: Config) -> Config {
    let filters = config.get_mut(CHAIN).and_then(Value::as_array_mut).expect("filters");
    filters.retain(|filter| filter["name"] != "peer");
    config
}

/// The listener `ingress` under another name: the filter with these rules, and this text recorded as the peer. Without a
/// text the listener is a Unix socket, so that `source.address` is none, either, whatever the headers say.
fn listener(project: &Config, name: &str, client_ip: &Value, peer: Option<&str>, socket: &Path) -> Value {
    let config = with_client_ip(project.clone(), client_ip).set(&format!("{INGRESS}/name"), name).set(
        &format!("static_resources/listeners/{name}/filter_chains/0/filters/http/typed_config/use_remote_address"),
        false,
    );
    let renamed = format!("static_resources/listeners/{name}");
    let mut listener = config.get(&renamed).expect("the listener").clone();
    let filters = listener["filter_chains"][0]["filters"].as_array_mut().expect("filters");
    match peer {
        Some(text) => {
            let format = "/0/typed_config/on_new_connection/0/format_string/text_format_source/inline_string";
            let mut first = Value::Array(std::mem::take(filters));
            *first.pointer_mut(format).expect("the recorded peer") = text.replace('%', "%%").into();
            *filters = first.as_array().expect("filters").clone();
        }
        None => {
            filters.retain(|filter| filter["name"] != "peer");
            listener["address"] = json!({"pipe": {"path": socket}});
        }
    }
    listener
}

/// What becomes of a vector on its listener, if it isn't what it says.
fn failure(vector: &Value, answer: &Answer) -> Option<String> {
    let expect = &vector["expect"];
    if expect["status"] == "rejected" {
        let silent = answer.status == 400 && answer.headers.is_empty();
        return (!silent).then(|| format!("{answer:?}"));
    }
    let ours = configured_names(&vector["config"]);
    let is_ours = |(name, _): &Line| ours.contains(&folded(name));
    let (written, others): (Vec<Line>, Vec<Line>) = answer.headers.iter().cloned().partition(is_ours);
    let sent = lines(&vector["headers"]).into_iter().filter(|line| !is_ours(line));
    let mut untouched: Vec<Line> = sent.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    untouched.sort();
    let added = |name: &[u8]| {
        [&b"host"[..], b"x-seen-client-ip", b"x-request-id", b"x-envoy-retry-on"].contains(&name)
            || name.starts_with(b"x-forwarded-proto")
            || name.starts_with(b"x-envoy-expected-rq-timeout-ms")
    };
    let others: Vec<Line> = others.into_iter().filter(|(name, _)| !added(name)).collect();
    let right = answer.status == 200
        && written == lines(&expect["headers"])
        && others == untouched
        && answer.value("x-seen-client-ip").as_deref() == expect["client_ip"].as_str();
    (!right).then(|| format!("{answer:?}, not {expect}"))
}

/// All of them reach Envoy as HTTP/1.1, none has to be left out: blank lines, repeated names, bytes that are not UTF-8.
#[tokio::test]
async fn every_vector_holds_in_one_envoy() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let directory = tempfile::tempdir().expect("a directory");
    let project = project.upstream(lb.address()).set(
        &format!("{MANAGER}/route_config/request_headers_to_add"),
        json!([{"header": {"key": "x-seen-client-ip", "value": "%FILTER_STATE(wasm.idleguard.client_ip:PLAIN)%"}}]),
    );

    let vectors = vectors();
    let mut settings: Vec<(&Value, &Value)> = Vec::new();
    for vector in &vectors {
        if !settings.contains(&(&vector["config"], &vector["peer"])) {
            settings.push((&vector["config"], &vector["peer"]));
        }
    }
    let name = |vector: &Value| {
        let at = settings.iter().position(|setting| *setting == (&vector["config"], &vector["peer"]));
        format!("setting-{}", at.expect("a listener"))
    };
    let socket = |name: &str| directory.path().join(name);
    let mut config = project.clone();
    for vector in &vectors {
        let name = name(vector);
        if config.get(&format!("static_resources/listeners/{name}")).is_none() {
            let listener = listener(&project, &name, &vector["config"], vector["peer"].as_str(), &socket(&name));
            config = config.insert("static_resources/listeners", None, listener);
        }
    }

    let envoy = start(&config, 1).await;
    let mut failures = Vec::new();
    for vector in &vectors {
        let name = name(vector);
        let headers = lines(&vector["headers"]);
        let answer = match envoy.listener(&name) {
            Some(address) => exchange(TcpStream::connect(address).await.expect("a connection"), b"", &headers).await,
            None => exchange(UnixStream::connect(socket(&name)).await.expect("a connection"), b"", &headers).await,
        };
        failures.extend(failure(vector, &answer.expect("an answer")).map(|why| format!("{}: {why}", vector["name"])));
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), vectors.len(), failures.join("\n"));

    let count = |wanted: fn(&Value) -> bool| vectors.iter().filter(|vector| wanted(vector)).count() as u64;
    let rejected = count(|vector| vector["expect"]["status"] == "rejected");
    let unknown = count(|vector| {
        let peer = vector["peer"].as_str().map_or(Peer::Unknown, |peer| Peer::from_filter_state(peer.as_bytes()));
        !matches!(peer, Peer::Known(_)) && !is_trusted_peer(&vector["config"], peer)
    });
    assert!(rejected > 0 && unknown > 0);
    let total = vectors.len() as u64;
    counted(&envoy, &[("rejected", rejected), ("unknown_peer", unknown)], Some(total)).await;
}

/// The metrics of `client_ip` have these values, within a few ticks; the outcomes sum up to the number of requests.
async fn counted(envoy: &Envoy, expected: &[(&str, u64)], requests: Option<u64>) {
    let name = |metric: &str| format!("wasmcustom.idleguard.client_ip.{metric}");
    let outcomes = ["rewritten", "untrusted_peer", "unknown_peer", "invalid", "missing"];
    let are_right = |stats: &BTreeMap<String, u64>| {
        let value = |metric: &str| stats.get(&name(metric)).copied().unwrap_or(0);
        expected.iter().all(|(metric, count)| value(metric) == *count)
            && requests.is_none_or(|requests| outcomes.iter().map(|outcome| value(outcome)).sum::<u64>() == requests)
    };
    envoy.wait_for(ms(10_000), "client_ip", are_right).await.expect("the counts");
}

#[tokio::test]
async fn nothing_that_an_untrusted_peer_claims_reaches_the_application() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let project = with_client_ip(project.upstream(lb.address()), &json!({"trusted_proxies": ["10.0.0.0/8"]}));
    for use_remote_address in [true, false] {
        for skip_xff_append in [true, false] {
            let config = project
                .clone()
                .set(&format!("{MANAGER}/use_remote_address"), use_remote_address)
                .set(&format!("{MANAGER}/skip_xff_append"), skip_xff_append);
            let envoy = start(&config, 1).await;
            // The second one claims to be trusted, too.
            for claims in [&CLAIMS[..], &[("X-Forwarded-For", "6.6.6.6, 10.0.0.1"), ("X-Real-IP", "6.6.6.6")]] {
                let answer = ask(envoy.ingress(), claims).await;
                assert_eq!(answer.status, 200);
                assert!(!answer.mentions("6.6.6.6"), "{use_remote_address}, {skip_xff_append}: {answer:?}");
                assert_eq!(answer.values("x-forwarded-for"), ["127.0.0.1"], "{answer:?}");
                assert_eq!(answer.values("x-real-ip"), ["127.0.0.1"], "{answer:?}");
            }
            counted(&envoy, &[("untrusted_peer", 2), ("rewritten", 0)], Some(2)).await;
        }
    }
}

/// `use_remote_address: false` and no recorded peer: Envoy takes the client's word for the address of the peer.
#[tokio::test]
async fn an_unknown_peer_is_warned_of_once_and_nothing_is_believed() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let project = with_client_ip(project.upstream(lb.address()), &json!({"trusted_proxies": ["10.0.0.0/8"]}));
    let config = without_recorded_peer(project).set(&format!("{MANAGER}/use_remote_address"), false);
    let envoy = start(&config, 1).await;
    for _ in 0..3 {
        let answer = ask(envoy.ingress(), &[("X-Forwarded-For", "6.6.6.6, 10.0.0.1"), ("X-Real-IP", "6.6.6.6")]).await;
        assert_eq!(answer.status, 200);
        assert!(!answer.mentions("6.6.6.6"), "{answer:?}");
        assert_eq!((answer.values("x-forwarded-for"), answer.values("x-real-ip")), (vec![], vec![]), "{answer:?}");
    }
    counted(&envoy, &[("unknown_peer", 3)], Some(3)).await;
    let log = envoy.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("the peer of a request is unknown")).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("set_filter_state") && warnings[0].contains("docs/client-ip.md"), "{warnings:?}");
}

#[tokio::test]
async fn without_a_recorded_peer_the_connection_s_own_address_does() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let project = with_client_ip(project.upstream(lb.address()), &json!({"trusted_proxies": ["127.0.0.1"]}));
    let envoy = start(&without_recorded_peer(project), 1).await; // use_remote_address: true
    let answer = ask(envoy.ingress(), &[("X-Forwarded-For", "6.6.6.6, 203.0.113.5")]).await;
    assert_eq!(answer.values("x-forwarded-for"), ["203.0.113.5, 127.0.0.1"], "{answer:?}");
    counted(&envoy, &[("rewritten", 1)], Some(1)).await;
}

#[tokio::test]
async fn each_outcome_is_counted() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let rules = json!({"trusted_proxies": ["127.0.0.1"], "on_invalid": "reject", "on_missing": "omit"});
    let envoy = start(&with_client_ip(project.upstream(lb.address()), &rules), 1).await;
    for (list, status) in [(Some("203.0.113.5"), 200), (Some("203.0.113.5"), 200), (Some("unknown"), 400), (None, 200)]
    {
        let headers: Vec<(&str, &str)> = list.map(|list| ("x-forwarded-for", list)).into_iter().collect();
        assert_eq!(ask(envoy.ingress(), &headers).await.status, status, "{list:?}");
    }
    counted(&envoy, &[("rewritten", 2), ("invalid", 1), ("rejected", 1), ("missing", 1)], Some(4)).await;
}

/// Envoy's default limit is 60 KB for all headers; raised, a list of 100 KB is no danger, whoever wrote it.
#[tokio::test]
async fn a_list_longer_than_any_chain_of_proxies_is_malformed() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let rules = json!({"trusted_proxies": ["10.0.0.0/8", "127.0.0.1"], "set": ["x-real-ip"], "on_invalid": "reject"});
    let config =
        with_client_ip(project.upstream(lb.address()), &rules).set(&format!("{MANAGER}/max_request_headers_kb"), 200);
    let envoy = start(&config, 1).await;
    let by_proxies = format!("6.6.6.6, 203.0.113.5{}", ", 10.0.0.2".repeat(10_000));
    assert_eq!(ask(envoy.ingress(), &[("x-forwarded-for", &by_proxies)]).await.status, 400);
    let by_the_client = format!("{}203.0.113.5, 10.0.0.2", "6.6.6.6, ".repeat(10_000));
    let answer = ask(envoy.ingress(), &[("x-forwarded-for", &by_the_client)]).await;
    assert_eq!((answer.status, answer.values("x-real-ip")), (200, vec!["203.0.113.5".to_owned()]));
    assert!(!answer.mentions("6.6.6.6"));
}

/// One header byte above 0x7F must not stop the filter: the next request is served as well.
#[tokio::test]
async fn bytes_that_are_no_text_are_no_danger() {
    let Some(project) = project_config() else { return };
    let lb = StubLb::start(Mode::Stable);
    let envoy =
        start(&with_client_ip(project.upstream(lb.address()), &json!({"trusted_proxies": ["127.0.0.1"]})), 1).await;
    for value in ["\u{ff}\u{fe}", "203.0.113.5\u{a0}"] {
        let headers = [(b"x-forwarded-for".to_vec(), bytes(value)), (b"x-other".to_vec(), bytes(value))];
        let tcp = TcpStream::connect(envoy.ingress()).await.expect("a connection");
        let answer = exchange(tcp, b"", &headers).await.expect("an answer");
        assert_eq!(answer.values("x-forwarded-for"), ["127.0.0.1"], "{answer:?}");
        assert!(answer.headers.contains(&(b"x-other".to_vec(), bytes(value))), "{answer:?}");
    }
    assert_eq!(ask(envoy.ingress(), &[("x-forwarded-for", "203.0.113.5")]).await.values("x-real-ip"), ["203.0.113.5"]);
}

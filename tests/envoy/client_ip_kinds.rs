//! Nobody's address but the client's: the kinds of ways past the rules, each closed as a whole.

use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{HeaderMap, HeaderValue};
use hyper_util::rt::{TokioExecutor, TokioIo};
use idleguard_core::client_ip::STRIPPED;
use idleguard_harness::envoy::{Config, Envoy};
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixStream};

use super::client_ip_docs::{anywhere, example, from};
use super::reference::{Line, lines};
use super::request::{Answer, ask, exchange, exchange_bytes};
use super::{far_end, project_config, start};

const INGRESS: &str = "static_resources/listeners/ingress";
const MANAGER: &str = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config";

/// What a client claims.
const CLAIMED: &str = "6.6.6.6";
const CLIENT: &str = "203.0.113.5";

fn with_client_ip(config: Config, rules: &Value) -> Config {
    config.edit_http_filter(|http| http["client_ip"] = rules.clone())
}

/// The project's Envoy before this application, with these rules.
async fn before(application: std::net::SocketAddr, rules: &Value) -> Option<Config> {
    Some(with_client_ip(project_config()?.upstream(application), rules))
}

/// Sends the lines, some at a time: Envoy takes a hundred.
async fn ask_in_parts(envoy: &Envoy, lines: &[Line]) -> Vec<Answer> {
    let mut answers = Vec::new();
    for part in lines.chunks(80) {
        let part = [&[(b"x-forwarded-for".to_vec(), CLIENT.into())], part].concat();
        let tcp = TcpStream::connect(envoy.ingress()).await.expect("a connection");
        answers.push(exchange(tcp, b"", &part).await.expect("an answer"));
    }
    answers
}

fn names_nobody_but(answer: &Answer, client: &str) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.mentions(CLAIMED), "{answer:?}");
    assert_eq!(answer.values("x-real-ip"), [client], "{answer:?}");
    let list = if client == CLIENT { "203.0.113.5, 127.0.0.1" } else { client };
    assert_eq!(answer.values("x-forwarded-for"), [list], "{answer:?}");
}

/// Every byte that may stand in a header's name, as the separator in every name that has one.
#[tokio::test]
async fn no_separator_makes_a_name_another() {
    let application = far_end::http1().await;
    for (trusted, client) in [("127.0.0.1", CLIENT), ("192.0.2.1", "127.0.0.1")] {
        let Some(config) = before(application, &json!({"trusted_proxies": [trusted]})).await else { return };
        let envoy = start(&config, 1).await;
        let mut passed = String::new();
        for separator in 0x21..=0x7e_u8 {
            // What Envoy makes of such a byte in the name of any other header.
            let neutral = [b"x", &[separator][..], b"other"].concat();
            let tcp = TcpStream::connect(envoy.ingress()).await.expect("a connection");
            let line = [(neutral.clone(), b"1".to_vec())];
            let answer = exchange(tcp, b"", &line).await.filter(|answer| answer.status == 200);
            let Some(answer) = answer else { continue };
            if !answer.headers.contains(&(neutral.to_ascii_lowercase(), b"1".to_vec())) {
                continue; // a colon ends the name
            }
            passed.push(char::from(separator));
            if separator.is_ascii_alphanumeric() {
                continue; // the name is another one to everybody
            }
            let spelled = |name: &&str| -> Line {
                let byte = |byte: u8| if byte.is_ascii_alphanumeric() { byte } else { separator };
                (name.bytes().map(byte).collect(), CLAIMED.into())
            };
            // The exact name of the source is no other spelling.
            let is_source = |(name, _): &Line| name == b"x-forwarded-for" && client == CLIENT;
            let lines: Vec<Line> = STRIPPED.iter().map(spelled).filter(|line| !is_source(line)).collect();
            for answer in ask_in_parts(&envoy, &lines).await {
                names_nobody_but(&answer, client);
            }
        }
        for needed in "!#$%&'*+-.^_`|~".chars() {
            assert!(passed.contains(needed), "{needed} was not tried: {passed}");
        }
    }
}

/// The names of the default, with Envoy's own ways to write one of them.
#[tokio::test]
async fn no_name_that_applications_read_reaches_them() {
    let application = far_end::http1().await;
    let Some(config) = before(application, &json!({"trusted_proxies": ["127.0.0.1"]})).await else { return };
    for use_remote_address in [true, false] {
        let envoy = start(&config.clone().set(&format!("{MANAGER}/use_remote_address"), use_remote_address), 1).await;
        let lines: Vec<Line> = STRIPPED
            .iter()
            .filter(|name| **name != "x-forwarded-for")
            .map(|name| (name.as_bytes().to_vec(), CLAIMED.into()))
            .collect();
        for answer in ask_in_parts(&envoy, &lines).await {
            names_nobody_but(&answer, CLIENT);
            for name in STRIPPED.iter().filter(|name| !["x-forwarded-for", "x-real-ip"].contains(name)) {
                assert_eq!(answer.values(name), Vec::<String>::new(), "{name}, {use_remote_address}");
            }
        }
    }
}

/// A request whose route is one of these redirects passes the filter once more on what it wrote itself.
#[tokio::test]
async fn internal_redirects_change_nothing() {
    let application = far_end::http1().await;
    let Some(project) = project_config() else { return };
    let mut config = anywhere(project.upstream(application));
    let routes = config.get_mut(&format!("{MANAGER}/route_config/virtual_hosts/0/routes"));
    for route in routes.and_then(Value::as_array_mut).expect("routes") {
        route["route"]["internal_redirect_policy"] = json!({
            "max_internal_redirects": 5, "redirect_response_codes": [302], "allow_cross_scheme_redirect": true,
        });
    }
    let mut rules: Vec<Value> =
        ["https-lb", "proxy-protocol-rules", "cdn", "netscaler", "netscaler-set", "unix"].map(example).to_vec();
    let trusted = json!(["10.0.0.0/8"]);
    rules.extend([
        json!({"trusted_hops": 1}),
        json!({"trusted_proxies": trusted, "trusted_hops": 2}),
        json!({"trusted_proxies": trusted, "sources": ["forwarded"]}),
        json!({"trusted_proxies": trusted, "sources": ["forwarded"], "set": ["forwarded"]}),
        json!({"trusted_proxies": trusted, "sources": ["forwarded", "x-forwarded-for"], "set": ["forwarded", "x-real-ip"]}),
        json!({"trusted_proxies": trusted, "set": ["x-real-ip"]}),
        json!({"trusted_proxies": trusted, "set": []}),
        json!({"trusted_proxies": trusted, "sources": ["cf-connecting-ip"], "on_missing": "reject"}),
        json!({"trusted_proxies": trusted, "on_invalid": "omit", "on_missing": "omit"}),
    ]);
    let requests: [&[(&str, &str)]; 6] = [
        &[("x-forwarded-for", CLIENT)],
        &[
            ("x-forwarded-for", "6.6.6.6, 203.0.113.5, 10.0.0.7, 10.0.0.8"),
            ("forwarded", "for=203.0.113.5, for=10.0.0.9"),
        ],
        &[("x-forwarded-for", "203.0.113.5, unknown")],
        &[("ns-client-ip", CLIENT), ("cip", "203.0.113.9"), ("cf-connecting-ip", "203.0.113.10")],
        &[("x-forwarded-for", "10.0.0.1"), ("x-envoy-original-url", "http://app.example/")],
        &[],
    ];
    for rules in rules {
        let envoy = start(&with_client_ip(config.clone(), &rules), 1).await;
        let mut status = Vec::new();
        for headers in requests {
            for peer in ["10.0.0.1", "203.0.113.66"] {
                let through = async |redirects: u32| {
                    let mut request = from(peer);
                    request.extend(format!("GET /redirect/{redirects} HTTP/1.1\r\nHost: app.example\r\n").into_bytes());
                    for (name, value) in headers {
                        request.extend(format!("{name}: {value}\r\n").into_bytes());
                    }
                    request.extend(b"Connection: close\r\n\r\n");
                    let tcp = TcpStream::connect(envoy.ingress()).await.expect("a connection");
                    let mut answer = exchange_bytes(tcp, &request).await.expect("an answer");
                    // Envoy's own, and different for each request.
                    answer.headers.retain(|(name, _)| !name.starts_with(b"x-envoy-") && name != b"x-request-id");
                    answer
                };
                let without = through(0).await;
                for redirects in [1, 3] {
                    assert_eq!(through(redirects).await, without, "{redirects}, {rules}, {peer}, {headers:?}");
                }
                status.push(without.status);
            }
        }
        assert!(status.contains(&200), "{rules}");
    }
}

/// What a route writes before a redirect is not taken for the client's or a proxy's word.
#[tokio::test]
async fn what_a_route_adds_before_a_redirect_is_no_source() {
    let application = far_end::http1().await;
    let rules = json!({"trusted_proxies": ["127.0.0.1"], "sources": ["ns-client-ip"], "on_missing": "reject"});
    let Some(mut config) = before(application, &rules).await else { return };
    let routes = config.get_mut(&format!("{MANAGER}/route_config/virtual_hosts/0/routes"));
    for route in routes.and_then(Value::as_array_mut).expect("routes") {
        route["route"]["internal_redirect_policy"] =
            json!({"redirect_response_codes": [302], "allow_cross_scheme_redirect": true});
        route["request_headers_to_add"] = json!([{"header": {"key": "ns-client-ip", "value": CLAIMED}}]);
        route["request_headers_to_remove"] = json!(["x-idleguard-lane", "x-real-ip"]);
    }
    let envoy = start(&config, 1).await;
    let request = format!("GET /redirect/1 HTTP/1.1\r\nHost: a\r\nns-client-ip: {CLIENT}\r\nConnection: close\r\n\r\n");
    let tcp = TcpStream::connect(envoy.ingress()).await.expect("a connection");
    let answer = exchange_bytes(tcp, request.as_bytes()).await.expect("an answer");
    assert_eq!((answer.status, answer.values("x-forwarded-for")), (200, vec!["203.0.113.5, 127.0.0.1".to_owned()]));
}

#[tokio::test]
async fn an_upgrade_can_t_have_the_next_hop_remove_what_is_written() {
    let application = far_end::http1().await;
    let Some(config) = before(application, &json!({"trusted_proxies": ["127.0.0.1"]})).await else { return };
    let config = config.set(&format!("{MANAGER}/upgrade_configs"), json!([{"upgrade_type": "websocket"}]));
    let envoy = start(&config, 1).await;
    for (connection, expected) in [
        ("Connection: Upgrade", "Upgrade"),
        ("Connection: Upgrade, X-Real-IP", "Upgrade"),
        ("Connection: x.forwarded~for,Upgrade , keep-alive,CF-Connecting-IP", "Upgrade, keep-alive"),
        ("Connection: Upgrade\r\nConnection: x_real_ip", "Upgrade"),
    ] {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: app.example\r\nX-Forwarded-For: {CLIENT}\r\n{connection}\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n"
        );
        let tcp = TcpStream::connect(envoy.ingress()).await.expect("a connection");
        let answer = exchange_bytes(tcp, request.as_bytes()).await.expect("an answer");
        assert_eq!((answer.status, answer.values("connection")), (101, vec![expected.to_owned()]), "{connection}");
        assert_eq!(answer.values("x-real-ip"), [CLIENT]);
    }
}

#[tokio::test]
async fn trailers_name_no_client() {
    let application = far_end::http1().await;
    let Some(mut config) = before(application, &json!({"trusted_proxies": ["127.0.0.1"]})).await else { return };
    config = config.set(&format!("{MANAGER}/http_protocol_options"), json!({"enable_trailers": true})).edit_clusters(
        |cluster| {
            cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"] = json!({
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http_protocol_options": {"enable_trailers": true}},
            });
        },
    );
    let envoy = start(&config, 1).await;
    let request = format!(
        "POST / HTTP/1.1\r\nHost: app.example\r\nX-Forwarded-For: {CLIENT}\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n2\r\nhi\r\n0\r\nX-Forwarded-For: {CLAIMED}\r\nX.Real~IP: {CLAIMED}\r\n\
         True-Client-IP: {CLAIMED}\r\nX-Checksum: 7\r\n\r\n"
    );
    let tcp = TcpStream::connect(envoy.ingress()).await.expect("a connection");
    let answer = exchange_bytes(tcp, request.as_bytes()).await.expect("an answer");
    names_nobody_but(&answer, CLIENT);
    assert_eq!(answer.values("x-checksum"), ["7"], "{answer:?}");
}

/// There trailers pass by Envoy's defaults.
#[tokio::test]
async fn trailers_name_no_client_from_http2_to_http2() {
    let application = far_end::http2().await;
    let Some(mut config) = before(application, &json!({"trusted_proxies": ["127.0.0.1"]})).await else { return };
    for name in config.clusters() {
        if config.get(&format!("static_resources/clusters/{name}/typed_extension_protocol_options")).is_some()
            || name == "payments"
        {
            config = config.http2(&name);
        }
    }
    let envoy = start(&config, 1).await;
    let tcp = TcpStream::connect(envoy.ingress()).await.expect("a connection");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.expect("HTTP/2");
    tokio::spawn(connection);
    let mut trailers = HeaderMap::new();
    for name in ["x-forwarded-for", "x-real-ip", "x_real_ip", "forwarded", "x.client~ip"] {
        trailers.insert(name, HeaderValue::from_static(CLAIMED));
    }
    trailers.insert("x-checksum", HeaderValue::from_static("7"));
    let body = Full::new(Bytes::from_static(b"hi")).with_trailers(std::future::ready(Some(Ok(trailers))));
    let request = hyper::Request::post("http://app.example/").header("x-forwarded-for", CLIENT).body(body);
    let response = sender.send_request(request.expect("a request")).await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let answer = Answer { status, headers: lines(&serde_json::from_slice(&body).expect("JSON")) };
    names_nobody_but(&answer, CLIENT);
    assert_eq!(answer.values("x-checksum"), ["7"], "{answer:?}");
}

/// The peer as Envoy itself records it, with and without the network filter.
#[tokio::test]
async fn a_proxy_on_a_unix_socket_can_be_trusted() {
    let application = far_end::http1().await;
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("ingress.sock");
    for (trusted, is_recorded, expected) in
        [(json!(["unix"]), true, vec![CLIENT]), (json!(["127.0.0.1"]), true, vec![]), (json!([]), true, vec![])]
    {
        let Some(mut config) = before(application, &json!({"trusted_proxies": trusted})).await else { return };
        config = config
            .set(&format!("{INGRESS}/address"), json!({"pipe": {"path": socket}}))
            .set(&format!("{MANAGER}/use_remote_address"), false);
        let envoy = start(&config, 1).await;
        let answer = ask_unix(&socket, &[("x-forwarded-for", "6.6.6.6, 203.0.113.5"), ("X-Real-IP", CLAIMED)]).await;
        assert_eq!(answer.status, 200, "{trusted}, {is_recorded}");
        assert!(!answer.mentions(CLAIMED), "{trusted}: {answer:?}");
        assert_eq!(answer.values("x-real-ip"), expected, "{trusted}: {answer:?}");
        assert_eq!(answer.values("x-forwarded-for"), expected, "{trusted}: {answer:?}");
        drop(envoy);
    }
}

async fn ask_unix(socket: &Path, headers: &[(&str, &str)]) -> Answer {
    let headers: Vec<Line> = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    exchange(UnixStream::connect(socket).await.expect("a connection"), b"", &headers).await.expect("an answer")
}

/// By default whoever sends a single-address header himself, beside that of an LB which only adds, is not the LB.
#[tokio::test]
async fn who_doubles_a_single_address_is_nobody() {
    let application = far_end::http1().await;
    let rules = json!({"trusted_proxies": ["127.0.0.1"], "sources": ["ns-client-ip"]});
    let Some(config) = before(application, &rules).await else { return };
    let envoy = start(&config, 1).await;
    for headers in [[("ns-client-ip", CLAIMED), ("ns-client-ip", CLIENT)].as_slice(), &[("ns-client-ip", "x")], &[]] {
        let answer = ask(envoy.ingress(), headers).await;
        assert_eq!(answer.status, 200);
        assert!(!answer.mentions(CLAIMED) && !answer.mentions("127.0.0.1"), "{answer:?}");
    }
}

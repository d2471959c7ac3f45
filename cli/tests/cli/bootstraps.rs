//! Bootstraps as strangers have them: injected, validated, and run against a load balancer that forgets silently.
//!
//! They run side by side, and without the filter and with it at the same time, so that all of them take as long as one.

use std::net::SocketAddr;
use std::time::Duration;

use idleguard_cli::check::{Surroundings, check};
use idleguard_cli::document::Format;
use idleguard_cli::inject::Request;
use idleguard_harness::envoy::{Config, Envoy, Options};
use idleguard_harness::load::{Load, Pattern, Report};
use idleguard_harness::project;
use idleguard_harness::stub_lb::{Mode, Options as LbOptions, StubLb};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{injected, read, request};

/// What the operator says. The LB drops connections a little later, so that a stall of a busy machine is no failure.
const LB_IDLE_TIMEOUT: &str = "2s";
const DROPPED_AFTER: Duration = Duration::from_millis(2_300);

/// The file, the clusters to guard, and what its load balancers speak by TLS.
const FILES: [(&str, &[&str], Option<&str>); 10] = [
    ("static.yaml", &["payments"], None),
    ("dns.yaml", &["payments"], None),
    ("endpoints.yaml", &["payments"], None),
    ("tls.yaml", &["payments"], Some("http/1.1")),
    ("tls-http2.yaml", &["payments"], Some("h2")),
    ("http2.yaml", &["payments"], None),
    ("listeners.yaml", &["payments"], None),
    ("bootstrap.json", &["payments"], None),
    ("weighted.yaml", &["payments", "orders"], None),
    ("wasm.yaml", &["payments"], None),
];

fn requests(clusters: &[&str]) -> Vec<Request> {
    let wasm = project::wasm().ok().and_then(|path| path.to_str().map(str::to_owned));
    let each = |cluster: &&str| Request {
        lb_idle_timeout: Some(LB_IDLE_TIMEOUT.to_owned()),
        trusted_proxies: Some(vec!["10.0.0.0/8".to_owned()]),
        wasm: wasm.clone(),
        ..request(cluster)
    };
    clusters.iter().map(each).collect()
}

fn with_idleguard(text: &str, clusters: &[&str]) -> String {
    requests(clusters).iter().fold(text.to_owned(), |text, request| injected(&text, request).text().to_owned())
}

/// Files as they are, nothing started.
#[test]
fn what_is_put_in_once_is_not_put_in_twice_and_no_comment_is_lost() {
    for (file, clusters, _) in FILES {
        let original = read(&format!("bootstraps/{file}"));
        let mut document = injected(&original, &requests(clusters)[0]);
        for request in &requests(clusters)[1..] {
            document = injected(document.text(), request);
        }
        assert_eq!(document.comments_lost(), None, "{file}");
        assert_eq!(
            with_idleguard(document.text(), clusters),
            document.text(),
            "{file}: a second run changes something"
        );
        let bare = |cluster: &&str| injected(document.text(), &request(cluster)).text() == document.text();
        assert!(clusters.iter().all(bare), "{file}: a run without options changes something");
        let findings = check(&document, Surroundings::default());
        // `orders` is not guarded in listeners.yaml.
        let expected: &[&str] = if file == "listeners.yaml" { &["idle-timeout-default"] } else { &[] };
        let ids: Vec<&str> = findings.iter().map(|finding| finding.id).collect();
        assert_eq!(ids, expected, "{file}: {findings:#?}");
        if document.format() == Format::Json {
            let json: serde_json::Value = serde_json::from_str(document.text()).expect("JSON stays JSON");
            assert_eq!(&json, document.value());
            continue;
        }
        let mut kept =
            document.text().lines().map(|line| line.trim_start().trim_start_matches("- ")).collect::<Vec<_>>();
        for line in original.lines().filter(|line| line.contains(" # ") || line.trim_start().starts_with("# ")) {
            let comment = line.split_once('#').map_or("", |(_, comment)| comment);
            let at = kept.iter().position(|kept| kept.ends_with(comment));
            kept.remove(at.unwrap_or_else(|| panic!("{file}: #{comment} is lost:\n{}", document.text())));
        }
    }
}

/// One bootstrap in two Envoys, each with load balancers of its own.
struct Pair {
    file: &'static str,
    plain: Side,
    guarded: Side,
}

struct Side {
    envoy: Envoy,
    _lbs: [StubLb; 2],
}

async fn side(text: &str, tls: Option<&'static str>) -> Side {
    let lb = || {
        let options = LbOptions {
            mode: Mode::SilentRst(DROPPED_AFTER),
            tls: tls.map(|protocol| vec![protocol]),
            ..LbOptions::default()
        };
        StubLb::with(options).expect("a load balancer")
    };
    let lbs = [lb(), lb()];
    let mut text = text.to_owned();
    for (from, to) in
        [(8080, lbs[0].address().port()), (8081, lbs[1].address().port()), (9901, 0), (10_000, 0), (10_001, 0)]
    {
        for style in ["port_value: ", "\"port_value\": "] {
            text = text.replace(&format!("{style}{from}"), &format!("{style}{to}"));
        }
    }
    let config = Config::parse(&text).expect("a bootstrap");
    let envoy = Envoy::start(&config, Options::default()).await.unwrap_or_else(|error| panic!("{error:#}\n{text}"));
    Side { envoy, _lbs: lbs }
}

async fn pair((file, clusters, tls): (&'static str, &'static [&'static str], Option<&'static str>)) -> Pair {
    // Two at a time: an Envoy compiles the filter when it starts.
    static TURNS: Semaphore = Semaphore::const_new(2);
    let _turn = TURNS.acquire().await.expect("open");
    let plain = read(&format!("bootstraps/{file}"));
    let guarded = with_idleguard(&plain, clusters);
    let said = Envoy::validate(&Config::parse(&guarded).expect("a bootstrap"), &Options::default()).expect("a verdict");
    assert!(said.accepted, "{file}: {}", said.output);
    Pair { file, plain: side(&plain, tls).await, guarded: side(&guarded, tls).await }
}

/// Bursts, so that HTTP/2 connections are idle, too: nothing on the way may repeat a POST.
async fn load(addresses: Vec<SocketAddr>) -> Report {
    let pattern = Pattern::Bursts { gap: (Duration::from_millis(1_500), Duration::from_millis(3_500)) };
    let mut running = JoinSet::new();
    for (seed, address) in addresses.into_iter().enumerate() {
        running.spawn(Load::post(address, pattern).clients(4).seed(seed as u64 + 1).run(Duration::from_secs(11)));
    }
    let mut report = Report::default();
    while let Some(part) = running.join_next().await {
        report.add(part.expect("a report"));
    }
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn the_failures_stop_in_every_one() {
    let Some(_) = project::or_skip(project::envoy().and(project::wasm())) else { return };
    let mut starting: JoinSet<Pair> = FILES.into_iter().map(pair).collect();
    let mut pairs = Vec::new();
    while let Some(pair) = starting.join_next().await {
        pairs.push(pair.expect("two Envoys"));
    }
    let mut running = JoinSet::new();
    for (at, pair) in pairs.iter().enumerate() {
        let addresses =
            |side: &Side| ["ingress", "second"].iter().filter_map(|name| side.envoy.listener(name)).collect();
        let (plain, guarded) = (addresses(&pair.plain), addresses(&pair.guarded));
        running.spawn(async move { (at, tokio::join!(load(plain), load(guarded))) });
    }
    let mut wrong = Vec::new();
    while let Some(done) = running.join_next().await {
        let (at, (plain, guarded)) = done.expect("reports");
        let Pair { file, .. } = pairs[at];
        println!(
            "{file}: plain {} of {} failed, with idleguard {} of {}",
            plain.failed(),
            plain.requests,
            guarded.failed(),
            guarded.requests
        );
        if plain.failed() == 0 || plain.ok == 0 || guarded.failed() > 0 || guarded.ok < 10 {
            wrong.push(format!(
                "{file}\nplain: {plain}\nwith idleguard: {guarded}\n{}",
                pairs[at].guarded.envoy.log_tail()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for pair in &pairs {
        let stats = pair.guarded.envoy.stats().await.expect("statistics");
        let metric = |name: &str| stats.get(&format!("wasmcustom.idleguard.{name}")).copied().unwrap_or(0);
        assert!(metric("destination.payments.connections_closed_idle") > 0, "{}: nothing was guarded", pair.file);
        // The recorded peer is loopback, which is no trusted proxy.
        assert!(metric("client_ip.untrusted_peer") > 0, "{}: the peer is not known", pair.file);
        assert_eq!(metric("client_ip.unknown_peer"), 0, "{}", pair.file);
    }
}

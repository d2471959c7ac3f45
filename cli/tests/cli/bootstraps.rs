//! Bootstraps as strangers have them: injected, validated, and run against a load balancer that forgets silently.
//!
//! They run side by side, and without the filter and with it at the same time, so that all of them take as long as one.

use std::net::SocketAddr;
use std::time::Duration;

use idleguard_cli::inject::Request;
use idleguard_harness::envoy::{Config, Envoy, Options};
use idleguard_harness::load::{Load, Pattern, Report};
use idleguard_harness::project;
use idleguard_harness::stub_lb::{Mode, Options as LbOptions, StubLb};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{injected, read, request};

/// What the operator says. The LB drops connections a little later, so that a stall of a busy machine is no failure.
const LB_IDLE_TIMEOUT: &str = "2s";
const DROPPED_AFTER: Duration = Duration::from_millis(2_300);

/// The file, the clusters to guard, and what its load balancers speak by TLS.
const FILES: [(&str, &[&str], Option<&str>); 18] = [
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
    // What the first design refused: with endpoints.yaml (health checks, outlier detection) and weighted.yaml these are all.
    ("eds.yaml", &["payments"], None),
    ("two-addresses.yaml", &["payments"], None),
    ("auto-config.yaml", &["payments"], Some("h2")),
    ("ring-hash.yaml", &["payments"], None),
    ("subsets.yaml", &["payments"], None),
    ("stat-name.yaml", &["payments"], None),
    // What is written in other ways than most.
    ("matcher.yaml", &["payments"], None),
    ("shared.yaml", &["payments"], None),
];

/// What discovery serves for eds.yaml.
const ENDPOINTS: &str = "resources:
- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: payments
  endpoints:
  - lb_endpoints:
    - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 8080 } } }
";

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

/// One bootstrap in two Envoys, each with load balancers of its own.
struct Pair {
    file: &'static str,
    plain: Side,
    guarded: Side,
}

struct Side {
    envoy: Envoy,
    _lbs: [StubLb; 2],
    _directory: TempDir,
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
    let with_ports = |text: &str| {
        let ports =
            [(8080, lbs[0].address().port()), (8081, lbs[1].address().port()), (9901, 0), (10_000, 0), (10_001, 0)];
        ports.iter().fold(text.to_owned(), |text, (from, to)| {
            let styles = ["port_value: ", "\"port_value\": "];
            styles.iter().fold(text, |text, style| text.replace(&format!("{style}{from}"), &format!("{style}{to}")))
        })
    };
    let directory = tempfile::tempdir().expect("a directory");
    let endpoints = directory.path().join("endpoints.yaml");
    std::fs::write(&endpoints, with_ports(ENDPOINTS)).expect("written");
    let text = with_ports(text).replace("/etc/envoy/endpoints.yaml", endpoints.to_str().expect("UTF-8"));
    let config = Config::parse(&text).expect("a bootstrap");
    let envoy = Envoy::start(&config, Options::default()).await.unwrap_or_else(|error| panic!("{error:#}\n{text}"));
    Side { envoy, _lbs: lbs, _directory: directory }
}

async fn pair((file, clusters, tls): (&'static str, &'static [&'static str], Option<&'static str>)) -> Pair {
    // Two at a time: an Envoy compiles the filter when it starts.
    static TURNS: Semaphore = Semaphore::const_new(2);
    let _turn = TURNS.acquire().await.expect("open");
    let plain = read(&format!("bootstraps/{file}"));
    let guarded = with_idleguard(&plain, clusters);
    let validated = guarded.replace("/etc/envoy/endpoints.yaml", "/dev/null");
    let said =
        Envoy::validate(&Config::parse(&validated).expect("a bootstrap"), &Options::default()).expect("a verdict");
    assert!(said.accepted, "{file}: {}", said.output);
    Pair { file, plain: side(&plain, tls).await, guarded: side(&guarded, tls).await }
}

/// Bursts, so that HTTP/2 connections are idle, too: nothing on the way may repeat a POST.
async fn load(addresses: Vec<SocketAddr>) -> Report {
    let pattern = Pattern::Bursts { gap: (Duration::from_millis(1_500), Duration::from_millis(3_500)) };
    let mut running = JoinSet::new();
    for (seed, address) in addresses.into_iter().enumerate() {
        running.spawn(
            Load::post(address, pattern)
                .header("x-user", "7")
                .clients(4)
                .seed(seed as u64 + 1)
                .run(Duration::from_secs(11)),
        );
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
        let lane = metric("destination.payments.lane_idle_timeout_ms");
        assert_eq!(lane, 1_800, "{}: no lane is in force\n{}", pair.file, pair.guarded.envoy.log_tail());
        let base = if pair.file == "stat-name.yaml" { "shop" } else { "payments" };
        let requests = |name: &str| stats.get(&format!("cluster.{name}.upstream_rq_completed")).copied().unwrap_or(0);
        assert!(
            requests(base) > 0 && requests("payments-1800ms") == 0,
            "{}: the lanes' counters are not the base's",
            pair.file
        );
        // The recorded peer is loopback, which is no trusted proxy.
        assert!(metric("client_ip.untrusted_peer") > 0, "{}: the peer is not known", pair.file);
        assert_eq!(metric("client_ip.unknown_peer"), 0, "{}", pair.file);
    }
}

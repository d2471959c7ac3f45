//! No request is sent on a connection that the LB has dropped, whichever way it drops it, and no more connections are opened than the best
//! static `idle_timeout` opens.

use std::sync::Arc;
use std::time::Duration;

use idleguard_harness::envoy::Config;
use idleguard_harness::load::{Live, Load, Pattern, Report};
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::json;

use super::lanes::requests_of;
use super::{metric, ms, project_config, start};

const MODES: [fn(Duration) -> Mode; 4] = [Mode::FinAt, Mode::RstAt, Mode::SilentRst, Mode::SilentSwallow];

/// What came of a load, and the connections that were opened for it.
type Outcome = (Report, u64);

/// Clients whose silences reach from nothing to twice the LB's timeout.
async fn load(config: Config, mode: Mode, bursty: bool, seconds: u64) -> Outcome {
    let lb = StubLb::start(mode);
    let envoy = start(&config.upstream(lb.address()), 1).await;
    let gap = (ms(0), mode.timeout().expect("a timeout") * 2);
    let pattern = if bursty { Pattern::Bursts { gap } } else { Pattern::Scattered { gap } };
    let clients = Load::post(envoy.ingress(), pattern).clients(16).timeout(ms(20_000));
    let report = clients.run(Duration::from_secs(seconds)).await;
    (report, lb.counters().opened)
}

/// Every mode, steady and bursty, beside a static `idle_timeout`.
async fn beside_static(config: Config, static_timeout: &str, timeout: Duration, seconds: u64) {
    let plain = config.clone().without_idleguard().envoy_idle_timeout("payments", static_timeout);
    for bursty in [false, true] {
        let (mut requests, mut opened, mut best) = (0, 0, 0);
        for mode in MODES.map(|mode| mode(timeout)) {
            let (ours, theirs) =
                tokio::join!(load(config.clone(), mode, bursty, seconds), load(plain.clone(), mode, bursty, seconds));
            println!(
                "{mode:?}, bursty {bursty}: idleguard {} ({} opened), static {} ({} opened)",
                ours.0, ours.1, theirs.0, theirs.1
            );
            assert!(ours.0.ok > 30 && ours.0.failed() == 0, "{mode:?}, bursty {bursty}: {}", ours.0);
            assert_eq!(theirs.0.failed(), 0, "static, {mode:?}, bursty {bursty}: {}", theirs.0);
            requests += ours.0.requests;
            opened += ours.1;
            best += theirs.1;
        }
        // The clients' silences are random, so no two runs open the same number; a twentieth more would be many.
        println!("bursty {bursty}: {opened} opened for {requests} requests, by a static timeout {best}");
        assert!(opened * 100 <= best * 105 + 100 * 16, "bursty {bursty}: {opened} opened, by a static timeout {best}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_timeout_is_known() {
    let Some(config) = project_config() else { return };
    let config = config.without_scout().lanes(&["54s", "1800ms", "900ms"]).lb_idle_timeout("2s");
    beside_static(config, "1.8s", ms(2_000), 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_timeout_nobody_knows() {
    let Some(config) = project_config() else { return };
    beside_static(config.without_scout(), "4s", ms(5_000), 12).await;
}

#[tokio::test]
async fn a_response_may_take_longer_than_the_limit() {
    let Some(config) = project_config() else { return };
    let lb = StubLb::start(Mode::SilentRst(ms(1_000)));
    let envoy = start(&config.without_scout().lb_idle_timeout("1s").upstream(lb.address()), 1).await;
    let pattern = Pattern::Scattered { gap: (ms(0), ms(500)) };
    let slow = Load::post(envoy.ingress(), pattern).clients(10).path("/slow?ms=2700").timeout(ms(10_000));
    let report = slow.run(ms(9_000)).await;
    assert!(report.ok >= 20 && report.failed() == 0, "{report}");
    assert_eq!(metric(&envoy, "stale_failures").await, 0);
}

/// How long the tests of a timeout that falls go on after it: `IDLEGUARD_FALL_SECONDS=3600` makes it the hour of the promise.
fn fall_seconds(short: u64) -> u64 {
    std::env::var("IDLEGUARD_FALL_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(short)
}

/// The far end's timeout falls from 60 s, which everybody was told, to 3 s. Four workers, one request a second.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_that_falls_costs_a_few_requests_and_no_more() {
    let Some(config) = project_config() else { return };
    let seconds = fall_seconds(40);
    let lb = StubLb::start(Mode::SilentRst(ms(60_000)));
    let envoy = start(&config.without_scout().lb_idle_timeout("60s").upstream(lb.address()), 4).await;
    let one_a_second = Load::post(envoy.ingress(), Pattern::Scattered { gap: (ms(7_000), ms(9_000)) }).clients(8);
    let (report, _) = one_a_second
        .run_while(Duration::from_secs(seconds + 10), async {
            tokio::time::sleep(ms(10_000)).await;
            lb.set(Mode::SilentRst(ms(3_000)));
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        })
        .await;
    let lane = metric(&envoy, "lane_idle_timeout_ms").await;
    println!("{report}; {} stale failures, lane {lane}\n{}", metric(&envoy, "stale_failures").await, envoy.log());
    assert!((2..=6).contains(&report.failed()), "{report}");
    // Of 4 s where both were idle for longer than 4.4 s, until a third one fails.
    assert!([900, 4_000].contains(&lane), "{lane}");
}

/// The same with a far end that says nothing, so that a failure is known when Envoy gives up waiting.
#[tokio::test(flavor = "multi_thread")]
async fn once_two_failures_are_known_nothing_is_sent_into_silence() {
    let Some(config) = project_config() else { return };
    let seconds = fall_seconds(25);
    let lb = StubLb::start(Mode::SilentSwallow(ms(60_000)));
    let config = config.without_scout().lb_idle_timeout("60s").upstream(lb.address());
    // A client for each worker: idle ages of 3.3 to 4.3 s, of which follows the lane of 900 ms.
    let config =
        config.set("static_resources/listeners/ingress/connection_balance_config", json!({"exact_balance": {}}));
    let envoy = start(&config, 4).await;
    let one_a_second = |seed| {
        Load::post(envoy.ingress(), Pattern::Scattered { gap: (ms(3_300), ms(4_300)) })
            .clients(4)
            .seed(seed)
            .timeout(ms(20_000))
    };
    let (before, _) = one_a_second(1)
        .run_while(ms(90_000), async {
            tokio::time::sleep(ms(9_000)).await;
            lb.set(Mode::SilentSwallow(ms(3_000)));
            envoy.wait_for(ms(60_000), "stale_failures", |stats| lane_of(stats) == 900).await.expect("a shorter lane");
        })
        .await;
    assert!(before.failed() >= 2, "{before}");
    let after = one_a_second(2).run(Duration::from_secs(seconds)).await;
    println!("before {before}\nafter {after}; {} stale failures", metric(&envoy, "stale_failures").await);
    println!("{}", envoy.log());
    // The pair counts for 10 minutes, then for 20, 40, …: one look at each expiry.
    let expiries = u64::from((seconds / 600 + 1).ilog2());
    assert!(after.ok > 20 && after.failed() <= expiries, "{expiries} looks; {after}");
}

fn lane_of(stats: &std::collections::BTreeMap<String, u64>) -> u64 {
    stats.get("wasmcustom.idleguard.destination.payments.lane_idle_timeout_ms").copied().unwrap_or_default()
}

/// The lane changes every second while many clients send, whose silences end where the pools' timers do, and the far end forgets what is
/// idle for longer.
async fn lanes_change_under_load(clients: usize, requests: u64) {
    let Some(config) = project_config() else { return };
    let lb = StubLb::start(Mode::SilentRst(ms(3_500)));
    let config = config.without_scout().lanes(&["2s", "900ms"]).lb_idle_timeout("2400ms").upstream(lb.address());
    let (config, file) = super::by_file(config);
    let envoy = start(&config, 2).await;
    let live = Arc::new(Live::default());
    // A new connection for each request: one that is kept stays with the listener that it was accepted by.
    let load = Load::post(envoy.ingress(), Pattern::Bursts { gap: (ms(0), ms(1_200)) }).clients(clients);
    let load = load.near(ms(850), ms(950)).header("connection", "close").live(live.clone());
    let (report, changes) = load
        .run_while(ms(600_000), async {
            for second in 0_u32.. {
                if live.counts().0 >= requests {
                    return second;
                }
                file.http_filter(|http| {
                    let timeout = if second % 2 == 0 { "1s" } else { "2400ms" };
                    http["destinations"]["payments"]["lb_idle_timeout"] = timeout.into();
                });
                tokio::time::sleep(ms(1_000)).await;
            }
            unreachable!("it has been long enough before")
        })
        .await;
    let by_lane = [requests_of(&envoy, "payments-2s").await, requests_of(&envoy, "payments-900ms").await];
    println!("{report}; {changes:?} changes; requests by lane: {by_lane:?}");
    assert!(report.ok >= requests && report.failed() == 0, "{report}");
    assert!(by_lane.iter().all(|count| *count > requests / 20), "{by_lane:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_lane_fails_nothing() {
    lanes_change_under_load(100, 1_500).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute or two: the numbers of the promise"]
async fn a_change_of_lane_fails_none_of_sixteen_thousand() {
    lanes_change_under_load(400, 16_000).await;
}

/// One URL's requests are dropped by the far end, as many as somebody likes.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_dropped_requests_is_its_senders_alone() {
    let Some(config) = project_config() else { return };
    let users_beside = async |config: Config| {
        let lb = StubLb::start(Mode::Stable);
        let envoy = start(&config.upstream(lb.address()), 2).await;
        let users = Load::post(envoy.ingress(), Pattern::Bursts { gap: (ms(0), ms(800)) }).clients(20);
        // Their connections have been idle when they are dropped: the far end looks like one that forgets.
        let dropped = Load::post(envoy.ingress(), Pattern::Bursts { gap: (ms(300), ms(900)) }).clients(20).seed(7);
        let (users, dropped) = tokio::join!(users.run(ms(15_000)), dropped.path("/abort?how=rst").run(ms(14_000)));
        (users, dropped, lb.counters().opened, envoy)
    };
    let plain = config.clone().without_idleguard().envoy_idle_timeout("payments", "4s");
    let (ours, theirs) = tokio::join!(users_beside(config.without_scout()), users_beside(plain));
    println!("idleguard: {}\n{} opened; dropped {}", ours.0, ours.2, ours.1);
    println!("plain: {}\n{} opened; dropped {}", theirs.0, theirs.2, theirs.1);
    println!(
        "{} stale failures, lane {}",
        metric(&ours.3, "stale_failures").await,
        metric(&ours.3, "lane_idle_timeout_ms").await
    );
    assert!(metric(&ours.3, "stale_failures").await >= 2, "it looks like something to follow");
    assert!(ours.1.failed() > 100 && ours.0.ok > 300 && ours.0.failed() == 0, "{}", ours.0);
    // Of as many requests: the machine may have been slower for one of the two.
    let connections = |(users, dropped, opened, _): &(Report, Report, u64, _)| {
        *opened as f64 / (users.requests + dropped.requests) as f64
    };
    assert!(connections(&ours) <= 1.2 * connections(&theirs), "{} opened, by plain Envoy {}", ours.2, theirs.2);
    // Nobody waits: a reconnect is a millisecond or two.
    let median = |report: &Report| report.latency(0.5);
    assert!(median(&ours.0) <= 3 * median(&theirs.0) + ms(20), "{}, plain {}", ours.0, theirs.0);
}

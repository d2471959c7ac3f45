//! An LB that forgets silently is asked for its timeout, and no user's request is risked for it.

use std::time::{Duration, Instant};

use idleguard_harness::load::{Load, Pattern};
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::{Value, json};

use super::{beside_others, metric, ms, project_config, start, with_policy};

fn policy(initial_limit: &str) -> Value {
    json!({"probe": {"path": "/healthz"}, "initial_limit": initial_limit, "retry_stale": "off"})
}

/// What is learnt is below the timeout by at most 10 %, with no failure, and then the probe rests.
async fn finds(mode: fn(Duration) -> Mode, timeout: Duration, initial_limit: &str, within: Duration) {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let lb = StubLb::start(mode(timeout));
    let envoy = start(&with_policy(config, &policy(initial_limit)).upstream(lb.address()), 2).await;
    let clients = Load::post(envoy.ingress(), Pattern::Scattered { gap: (ms(0), timeout * 2) }).clients(40);
    let begun = Instant::now();
    let learned = "wasmcustom.idleguard.destination.payments.learned_lb_idle_timeout_ms";
    let (load, known) =
        clients.run_while(within + ms(5_000), envoy.wait_for(within, "idleguard", |stats| stats[learned] > 0)).await;
    println!("{load}\nknown after {:?}\n{}", begun.elapsed(), news(&envoy.log()));
    known.expect("an end").expect("a timeout");
    let learned =
        Duration::from_millis(u64::try_from(metric(&envoy, "learned_lb_idle_timeout_ms").await).expect("a time"));
    assert!(learned <= timeout && learned * 10 >= timeout * 9, "{learned:?}");
    assert!(load.ok > 50 && load.failed() == 0, "{load}");

    // With the higher limit in force, bursts grow the pool to what will be old.
    let bursts = Load::post(envoy.ingress(), Pattern::Bursts { gap: (ms(0), timeout * 2) }).clients(40);
    let load = bursts.run(timeout * 3).await;
    assert!(load.ok >= 40 && load.failed() == 0, "{load}");
    assert_eq!(metric(&envoy, "stale_failures").await, 0);

    // What stays open are the sentinels, one a worker.
    assert!(lb.wait_for(timeout + ms(3_000), |counters| counters.open <= 2).await, "{:?}", lb.counters());
    let asked = lb.counters().requests;
    tokio::time::sleep(timeout).await;
    assert_eq!(lb.counters().requests, asked, "nothing is left to be asked");
}

fn news(log: &str) -> String {
    log.lines().filter(|line| line.contains("idleguard: ")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn an_lb_that_forgets_silently_and_resets() {
    finds(Mode::SilentRst, ms(2_000), "1s", ms(90_000)).await;
}

#[tokio::test]
async fn an_lb_that_forgets_silently_and_swallows() {
    finds(Mode::SilentSwallow, ms(2_000), "1s", ms(120_000)).await;
}

#[tokio::test]
#[ignore = "takes two minutes; the others show the same with a shorter timeout"]
async fn six_seconds_with_the_default_policy() {
    tokio::join!(
        finds(Mode::SilentRst, ms(6_000), "4s", ms(180_000)),
        finds(Mode::SilentSwallow, ms(6_000), "4s", ms(180_000))
    );
}

/// Requests that pass no HTTP filter could meet the probe's connection: then there are no probes.
#[tokio::test]
async fn nothing_where_requests_are_not_fenced() {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let lb = StubLb::start(Mode::Stable);
    let config = with_policy(config, &policy("1s")).http_filter(&json!({"filter": "http"})).upstream(lb.address());
    let envoy = start(&config, 1).await;
    let clients = Load::post(envoy.ingress(), Pattern::Scattered { gap: (ms(0), ms(300)) }).clients(4);
    let load = clients.run(ms(3_000)).await;
    assert!(load.ok > 10 && load.failed() == 0, "{load}");
    assert_eq!(lb.counters().requests, load.ok, "{}", envoy.log_tail());
}

/// The worker that began goes on; the others leave it alone.
#[tokio::test]
async fn by_one_worker_at_a_time() {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let lb = StubLb::start(Mode::Stable);
    let envoy = start(&with_policy(config, &policy("1s")).upstream(lb.address()), 4).await;
    let clients = Load::post(envoy.ingress(), Pattern::Scattered { gap: (ms(0), ms(300)) }).clients(40);
    // Envoy counts what doesn't come from a listener as internal.
    let probes = "cluster.payments.internal.upstream_rq_completed";
    let counted = async {
        envoy.wait_for(ms(5_000), "internal", |stats| stats.get(probes) == Some(&1)).await.expect("a probe");
        tokio::time::sleep(ms(4_500)).await;
        envoy.stat(probes).await.expect("statistics")
    };
    let (load, counted) = clients.run_while(ms(12_000), counted).await;
    assert_eq!(counted, Some(3), "at first, after 1 s, and 2 s later");
    assert!(load.ok > 100 && load.failed() == 0, "{load}");
}

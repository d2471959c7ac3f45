//! Nobody has to know the LB's idle timeout.

use std::time::{Duration, Instant};

use idleguard_harness::envoy::Envoy;
use idleguard_harness::load::{Load, Pattern};
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::json;

use super::{beside_others, metric, ms, project_config, start, with_policy};

/// The same, without a retry that would hide a failure.
fn learn() -> serde_json::Value {
    json!({"retry_stale": "off"})
}

fn clients(envoy: &Envoy) -> Load {
    Load::post(envoy.ingress(), Pattern::Scattered { gap: (ms(0), ms(12_000)) }).clients(40)
}

fn is_about(value: i64, wanted: i64) -> bool {
    (value - wanted).abs() * 100 <= wanted * 3
}

async fn wait_for_timeout(envoy: &Envoy, within: Duration, timeout: i64) {
    let learnt = "wasmcustom.idleguard.destination.payments.learned_lb_idle_timeout_ms";
    let is_learnt = |stats: &std::collections::BTreeMap<String, u64>| {
        i64::try_from(stats[learnt]).is_ok_and(|value| is_about(value, timeout))
    };
    let known = envoy.wait_for(within, "the timeout", is_learnt).await;
    if let Err(error) = known {
        let stats = envoy.stats().await.expect("statistics");
        let own: Vec<_> = stats.iter().filter(|(name, _)| name.starts_with("wasmcustom")).collect();
        let log: Vec<String> = envoy.log().lines().filter(|line| line.contains("wasm")).map(str::to_owned).collect();
        assert!(own.is_empty(), "{error:#}: {own:#?} {log:#?}");
    }
}

async fn learns(mode: fn(Duration) -> Mode) {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let lb = StubLb::start(mode(ms(6_000)));
    let envoy = start(&with_policy(config, &learn()).upstream(lb.address()), 2).await;
    assert_eq!(metric(&envoy, "idle_limit_ms").await, 4_000, "a safe start");
    let load = clients(&envoy).run(ms(40_000));
    let (load, ()) = tokio::join!(load, wait_for_timeout(&envoy, ms(30_000), 6_000));
    println!("{load}");
    assert!(load.ok > 100 && load.failed() == 0, "{load}");
    let limit = metric(&envoy, "idle_limit_ms").await;
    assert!(is_about(limit, 5_400), "{limit}");
    assert!(
        envoy.log().contains("payments: the far end closes idle connections after about 6.0 s ("),
        "{}",
        envoy.log_tail()
    );
}

#[tokio::test]
async fn from_an_lb_that_sends_fin() {
    learns(Mode::FinAt).await;
}

#[tokio::test]
async fn from_an_lb_that_sends_rst() {
    learns(Mode::RstAt).await;
}

/// Nothing is seen of an LB that forgets silently but the failures: they lower the limit, and then there are none.
#[tokio::test]
async fn failures_lower_the_limit() {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let lb = StubLb::start(Mode::SilentRst(ms(2_000)));
    let envoy = start(&with_policy(config, &learn()).upstream(lb.address()), 1).await;
    let bursts = || Load::post(envoy.ingress(), Pattern::Bursts { gap: (ms(0), ms(4_000)) }).clients(60);
    let first = bursts().run(ms(12_000)).await;
    assert!(first.failed() <= 60, "at most one burst: {first}");
    let later = bursts().seed(2).run(ms(15_000)).await;
    assert!(later.ok > 100 && later.failed() == 0, "{later}");
    let limit = metric(&envoy, "idle_limit_ms").await;
    assert!((100..2_000).contains(&limit), "{limit}");
}

/// All connections at once, at whatever idle age, say nothing of a timeout.
#[tokio::test]
async fn not_from_an_lb_that_restarts() {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let lb = StubLb::start(Mode::Stable);
    let envoy = start(&with_policy(config, &learn()).upstream(lb.address()), 2).await;
    let restarts = async {
        for _ in 0..20 {
            tokio::time::sleep(ms(3_000)).await;
            lb.close_all();
        }
    };
    let (load, ()) = tokio::join!(clients(&envoy).run(ms(62_000)), restarts);
    println!("{load}");
    assert_eq!(metric(&envoy, "learned_lb_idle_timeout_ms").await, 0);
}

/// The setting is changed while everything runs. Only what was under way when it fell, or is found out by it, may fail.
async fn learns_changes(mode: fn(Duration) -> Mode) {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let lb = StubLb::start(mode(ms(6_000)));
    let envoy = start(&with_policy(config, &learn()).upstream(lb.address()), 2).await;
    let begun = Instant::now();
    let changes = async {
        wait_for_timeout(&envoy, ms(30_000), 6_000).await;
        println!("6 s learnt after {:?}", begun.elapsed());
        lb.set(mode(ms(3_000)));
        let fell_at = Instant::now();
        wait_for_timeout(&envoy, ms(30_000), 3_000).await;
        println!("3 s learnt after {:?}", fell_at.elapsed());
        lb.set(mode(ms(6_000)));
        let rose_at = Instant::now();
        wait_for_timeout(&envoy, ms(60_000), 6_000).await;
        println!("6 s learnt again after {:?}", rose_at.elapsed());
        fell_at
    };
    let (load, fell_at) = clients(&envoy).run_while(ms(125_000), changes).await;
    let fell_at = fell_at.expect("the changes take at most two minutes");
    let under_way = load.failed_between(fell_at, fell_at + ms(3_000));
    println!("{load}\n{under_way} failed in the first 3 s of the lower timeout");
    assert!(load.ok > 100, "{load}");
    assert_eq!(load.failed(), under_way as u64, "none but in the first 3 s of the lower timeout: {load}");
}

#[tokio::test]
async fn anew_when_the_timeout_changes() {
    learns_changes(Mode::FinAt).await;
}

#[tokio::test]
async fn anew_when_the_timeout_changes_and_the_lb_sends_rst() {
    learns_changes(Mode::RstAt).await;
}

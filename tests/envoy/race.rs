//! Our own closes never meet a request. The LB is stable here: whatever fails, idleguard did it.

use idleguard_harness::load::{Load, Pattern, Report};
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::json;

use super::{alone, metric, ms, project_config, start, with_policy};

/// 400 clients around an idle limit of 300 ms.
async fn run(pattern: Pattern, fenced: bool, seconds: u64, seed: u64) -> Option<(Report, i64)> {
    let _turn = alone().await;
    let config = project_config()?;
    let lb = StubLb::start(Mode::Stable);
    let policy = json!({"lb_idle_timeout": "333ms", "margin": "33ms", "retry_stale": "off"});
    let mut config = with_policy(config, &policy).upstream(lb.address());
    if !fenced {
        config = config.http_filter(&json!({"filter": "http"}));
    }
    let envoy = start(&config, 2).await;
    let load = Load::post(envoy.ingress(), pattern).clients(400).seed(seed).run(ms(seconds * 1000)).await;
    println!("{load}");
    // Nothing is idle for longer than the limit, the fence's delay and a late tick allow.
    tokio::time::sleep(ms(800)).await;
    assert_eq!(lb.counters().open, 0, "fenced connections are gone within half a second");
    let closed = metric(&envoy, "connections_closed_idle").await;
    Some((load, closed))
}

const GAP: (std::time::Duration, std::time::Duration) = (ms(260), ms(340));

#[tokio::test]
async fn scattered_clients_around_the_limit_see_no_failure() {
    for seed in 1..=3 {
        let Some((load, closed)) = run(Pattern::Scattered { gap: GAP }, true, 15, seed).await else { return };
        assert!(load.ok > 2_000 && load.failed() == 0, "{load}");
        assert!(closed > 0);
    }
}

#[tokio::test]
async fn bursts_around_the_limit_see_no_failure() {
    for seed in 1..=3 {
        let Some((load, closed)) = run(Pattern::Bursts { gap: GAP }, true, 15, seed).await else { return };
        assert!(load.ok > 2_000 && load.failed() == 0, "{load}");
        assert!(closed > 0);
    }
}

#[tokio::test]
async fn without_the_fence_the_same_load_fails() {
    let Some((load, _)) = run(Pattern::Bursts { gap: GAP }, false, 15, 1).await else { return };
    assert!(load.failed() > 0, "{load}");
}

//! The scout finds out what the far end does with idle connections, without a request of a user's.

use std::time::{Duration, Instant};

use idleguard_harness::envoy::{Config, Envoy};
use idleguard_harness::stub_lb::{Mode, StubLb};

use super::{beside_others, ms, project_config, start};

async fn scout(envoy: &Envoy, name: &str) -> u64 {
    envoy.stat(&format!("wasmcustom.idleguard.scout.payments.{name}")).await.expect("statistics")
}

/// Waits until the scout's metric `name` satisfies the condition, and tells after how long.
async fn when(envoy: &Envoy, within: Duration, name: &str, condition: impl Fn(u64) -> bool) -> (Duration, u64) {
    let begin = Instant::now();
    let name = format!("wasmcustom.idleguard.scout.payments.{name}");
    let value = |stats: &std::collections::BTreeMap<String, u64>| stats.get(&name).copied().unwrap_or(0);
    let stats = envoy.wait_for(within, "idleguard.scout", |stats| condition(value(stats))).await;
    let stats = stats.unwrap_or_else(|error| panic!("{error:#}\n{}", envoy.log_tail()));
    (begin.elapsed(), value(&stats))
}

fn near(found: u64, expected: Duration) -> bool {
    let expected = u64::try_from(expected.as_millis()).expect("a short time");
    found.abs_diff(expected) * 20 <= expected
}

fn with_scout(lb: &StubLb) -> Option<Config> {
    Some(project_config()?.upstream(lb.address()))
}

#[tokio::test]
async fn the_far_ends_fin_and_rst_are_known_after_three_timeouts() {
    let timeout = ms(2_000);
    for (mode, kind) in [(Mode::FinAt(timeout), "kind_fin"), (Mode::RstAt(timeout), "kind_rst")] {
        let _guard = beside_others().await;
        let lb = StubLb::start(mode);
        let Some(config) = with_scout(&lb) else { return };
        let envoy = start(&config, 2).await;
        let (took, found) = when(&envoy, 3 * timeout + ms(3_000), "lb_idle_timeout_ms", |found| found > 0).await;
        println!("{mode:?}: {found} ms, after {took:?}");
        assert!(near(found, timeout), "{mode:?}: {found}");
        assert_eq!(scout(&envoy, kind).await, 1, "{mode:?}");
        assert_eq!(scout(&envoy, "failures").await, 2, "the main thread's attempt");
        println!("{}", envoy.log().lines().filter(|line| line.contains("idleguard")).collect::<Vec<_>>().join("\n"));
    }
}

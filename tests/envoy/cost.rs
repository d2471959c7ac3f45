//! What the fence costs in connections, against Envoy's own `idle_timeout` in the same minute.

use idleguard_harness::envoy::Config;
use idleguard_harness::load::{Load, Pattern};
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::json;

use super::{alone, ms, project_config, start, with_policy};

/// Connections opened per 1,000 requests.
async fn opened(config: &Config, pattern: Pattern, clients: usize, seconds: u64) -> f64 {
    let lb = StubLb::start(Mode::Stable);
    let envoy = start(&config.clone().upstream(lb.address()), 1).await;
    let load = Load::post(envoy.ingress(), pattern).clients(clients).run(ms(seconds * 1_000)).await;
    assert_eq!(load.failed(), 0, "{load}");
    let opened = 1_000.0 * lb.counters().opened as f64 / load.requests as f64;
    println!("{pattern:?}: {opened:.1} connections per 1,000 requests; {load}");
    opened
}

#[tokio::test]
async fn the_fence_opens_few_connections_more_than_a_static_idle_timeout() {
    let Some(config) = project_config() else { return };
    let _turn = alone().await;
    let around = (ms(260), ms(340));
    let wide = (ms(0), ms(600));
    for (pattern, clients) in [
        (Pattern::Scattered { gap: around }, 400),
        (Pattern::Bursts { gap: around }, 400),
        (Pattern::Scattered { gap: wide }, 60),
        (Pattern::Bursts { gap: wide }, 60),
    ] {
        let plain = config.clone().without_idleguard().envoy_idle_timeout("payments", "0.3s");
        let policy = json!({"lb_idle_timeout": "333ms", "margin": "33ms", "retry_stale": "off"});
        let fixed = opened(&plain, pattern, clients, 10).await;
        let guarded = opened(&with_policy(config.clone(), &policy), pattern, clients, 10).await;
        println!("ratio {:.2}", guarded / fixed);
        assert!(guarded <= 1.5 * fixed, "{pattern:?}: {guarded:.1} against {fixed:.1} per 1,000 requests");
    }
}

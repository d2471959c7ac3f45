//! What operators see: metrics, with the destination as a label.

use idleguard_harness::http;
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::json;

use super::{beside_others, metric, ms, project_config, start, with_policy};

#[tokio::test]
async fn metrics_follow_the_connections() {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let lb = StubLb::start(Mode::Stable);
    let envoy = start(&with_policy(config, &json!({"lb_idle_timeout": "1s"})).upstream(lb.address()), 1).await;
    for _ in 0..2 {
        assert_eq!(http::get(envoy.ingress(), "/").await.expect("an answer").status, 200);
        tokio::time::sleep(ms(300)).await;
    }
    for (name, value) in [
        ("connections_opened", 1),
        ("connections_active", 1),
        ("connections_idle", 1),
        ("connections_closed_idle", 0),
        ("idle_limit_ms", 900),
        ("learned_lb_idle_timeout_ms", 0),
    ] {
        assert_eq!(metric(&envoy, name).await, value, "{name}");
    }
    let closed = "wasmcustom.idleguard.destination.payments.connections_closed_idle";
    envoy.wait_for(ms(5_000), "the reap", |stats| stats[closed] == 1).await.expect("a reap");
    tokio::time::sleep(ms(200)).await;
    assert_eq!((metric(&envoy, "connections_active").await, metric(&envoy, "connections_idle").await), (0, 0));

    // Envoy merges histograms every five seconds.
    let count = r#"idleguard_destination_reuse_idle_age_ms_count{idleguard_destination="payments"} 1"#;
    let mut prometheus = String::new();
    for _ in 0..100 {
        prometheus = envoy.prometheus().await.expect("statistics");
        if prometheus.contains(count) {
            break;
        }
        tokio::time::sleep(ms(100)).await;
    }
    for line in [
        r#"idleguard_destination_connections_closed_idle{idleguard_destination="payments"} 1"#,
        r#"idleguard_destination_idle_limit_ms{idleguard_destination="payments"} 900"#,
        count,
    ] {
        assert!(prometheus.contains(line), "{line}: {prometheus}");
    }
}

#[tokio::test]
async fn connections_are_retired_at_their_lifetime() {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let lb = StubLb::start(Mode::Stable);
    let policy = json!({"lb_idle_timeout": "60s", "max_lifetime": "1s"});
    let envoy = start(&with_policy(config, &policy).upstream(lb.address()), 1).await;
    for _ in 0..30 {
        assert_eq!(http::get(envoy.ingress(), "/").await.expect("an answer").status, 200);
        tokio::time::sleep(ms(100)).await;
    }
    assert!(metric(&envoy, "connections_closed_lifetime").await >= 2);
    assert_eq!(metric(&envoy, "stale_failures").await, 0);
}

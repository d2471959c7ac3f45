//! Where no connection filter shows the connections, requests alone tell of the LB's timeout.

use idleguard_harness::load::{Load, Pattern};
use idleguard_harness::stub_lb::{Mode, Options, StubLb};
use serde_json::json;

use super::tls_destination::{fence, refuses_fence, straight};
use super::{beside_others, ms, project_config, start};

/// T is below the safe start: what fails lowers the limit of all workers, and then nothing fails.
#[tokio::test]
async fn failures_lower_the_limit_of_all_workers() {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let options = Options { mode: Mode::SilentRst(ms(2_000)), tls: Some(vec!["http/1.1"]), ..Options::default() };
    let lb = StubLb::with(options).expect("an LB");
    let config = fence(straight(config, &lb, &json!({"retry_stale": "off"})));
    if refuses_fence(&config).await {
        return;
    }
    let envoy = start(&config, 2).await;
    let stat = |name: &str| format!("wasmcustom.idleguard.destination.payments-lb.{name}");
    let (limit, failures) = (stat("idle_limit_ms"), stat("stale_failures"));

    let pattern = Pattern::Bursts { gap: (ms(0), ms(4_000)) };
    let clients = Load::post(envoy.ingress(), pattern).clients(40);
    let lowered = envoy
        .wait_for(ms(20_000), "idleguard", |stats| stats.get(&limit).is_some_and(|limit| (1..2_000).contains(limit)));
    let (first, lowered) = clients.clone().run_while(ms(21_000), lowered).await;
    lowered.expect("an end").expect("a lower limit");
    println!("{first}");
    assert!((1..=40).contains(&first.failed()), "at most one burst: {first}");

    tokio::time::sleep(ms(2_500)).await; // the other worker hears of it within two seconds
    let later = clients.seed(2).run(ms(10_000)).await;
    println!("{later}");
    assert!(later.ok > 80 && later.failed() == 0, "{later}");
    let stats = envoy.stats().await.expect("statistics");
    assert!((100..2_000).contains(&stats[&limit]) && stats[&failures] > 0, "{stats:#?}");
    assert!(envoy.log().contains("payments-lb: "), "{}", envoy.log_tail());
}

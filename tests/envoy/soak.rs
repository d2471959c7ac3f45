//! A minute of everything at once: `make soak` in small.

use std::time::Duration;

use idleguard_harness::soak;

use super::{beside_others, project_config};

/// `SOAK_SECONDS`, or a minute.
fn seconds() -> u64 {
    std::env::var("SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(60)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_but_what_the_lb_breaks() {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let report = soak::run(config, Duration::from_secs(seconds()), 1).await.expect("a soak");
    println!("{report}");
    if report.kept_by_envoy > 0 {
        println!("this Envoy lacks: the end of in-process connections whose client went away");
    }
    assert_eq!(report.faults(), Vec::<String>::new());
    let (restarts, modes, updates) = report.happened;
    assert!(restarts > 0 && modes > 3 && updates > 3, "{:?}", report.happened);
    assert!(report.done.len() == 10 && report.done.values().all(|count| *count > 3), "{:?}", report.done);
}

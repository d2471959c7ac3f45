//! The table and some random combinations: never worse than plain Envoy.

use idleguard_differential::{cases, suite};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_case_is_worse_than_plain() {
    let outcome = suite::run(cases::all(), false).await.expect("a run");
    let worse: Vec<String> = outcome.worse.iter().map(ToString::to_string).collect();
    assert!(worse.is_empty(), "{}", worse.join("\n"));
    assert!(outcome.ran >= 60, "{}", outcome.ran);
}

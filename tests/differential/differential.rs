//! The table, the events and some random combinations: never worse than plain Envoy. And faults put in on purpose are found.

use std::{collections::BTreeMap, fs};

use idleguard_differential::{cases, docs, events, mutations, random, suite, verdict::Worse};
use idleguard_harness::project;

/// Random combinations in `make test`; `make differential` runs 2,000.
const RANDOM: u64 = 100;

fn none(worse: &[Worse]) {
    let worse: Vec<String> = worse.iter().map(ToString::to_string).collect();
    assert!(worse.is_empty(), "{}", worse.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_case_and_no_random_combination_is_worse_than_plain() {
    let table = cases::all();
    let names: BTreeMap<&str, ()> = table.iter().map(|case| (case.name.as_str(), ())).collect();
    assert_eq!(names.len(), table.len(), "two cases of one name");
    assert!(table.len() >= 60, "{}", table.len());
    let all = table.into_iter().chain(random::cases(1, RANDOM)).collect();
    let outcome = suite::run(all, false).await.expect("a run");
    none(&outcome.worse);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_costs_more_than_with_plain() {
    let rows = events::run(events::all(), 3).await.expect("a run");
    let worse: Vec<Worse> = rows.iter().flat_map(events::Row::worse).collect();
    none(&worse);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_put_in_on_purpose_is_found() {
    for mutation in mutations::all() {
        let found = mutation.found().await.expect("a run");
        assert!(found.contains(&"lane"), "{}: not found by {}", mutation.what, mutation.case);
    }
    let found = mutations::lane_without_health_check().await.expect("a run");
    assert!(found.contains(&"lane") && !found.contains(&"base"), "a lane without the base's health check: {found:?}");
}

#[test]
fn the_documentation_lists_every_case_and_every_event() {
    let text = fs::read_to_string(project::root().join("docs/differential.md")).expect("docs/differential.md");
    for name in docs::names() {
        assert!(text.contains(&format!("| `{name}` |")), "`{name}` is missing: make differential-docs");
    }
}

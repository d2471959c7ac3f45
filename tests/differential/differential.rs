//! The table, the events and some random combinations: never worse than plain Envoy. And faults put in on purpose are found.

use std::{collections::BTreeSet, fs};

use idleguard_differential::{breaks, cases, docs, events, random, suite, verdict::Worse};
use idleguard_harness::project;

/// Random combinations in `make test`; `make differential` runs 2,000.
const RANDOM: u64 = 100;

fn none(worse: &[Worse]) {
    let worse: Vec<String> = worse.iter().map(ToString::to_string).collect();
    assert!(worse.is_empty(), "{}", worse.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_case_and_no_random_combination_is_worse_than_plain() {
    let all = cases::all().into_iter().chain(random::cases(1, RANDOM)).collect();
    let outcome = suite::run(all, None, false).await.expect("a run");
    none(&outcome.worse);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_costs_more_than_with_plain() {
    let rows = events::run(events::all(), None).await.expect("a run");
    let worse: Vec<Worse> = rows.iter().flat_map(events::Row::worse).collect();
    none(&worse);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_put_in_on_purpose_is_found() {
    for fault in breaks::in_exchanges() {
        let found = fault.run().await.expect("a run");
        assert_eq!(fault.missed(&found), [""; 0]);
    }
}

/// With nothing but the seed: the verdict, and a smaller combination that has it, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_seed_of_a_failure_reproduces_it() {
    let header = breaks::all().into_iter().find(|fault| fault.name == "header").expect("the fault").edit;
    let among_others = format!("{:?}", random::cases(1, 3)[1]);
    let alone = random::cases(2, 1);
    assert_eq!(format!("{:?}", alone[0]), among_others);
    let worse = suite::run(alone, Some(header), false).await.expect("a run").worse;
    assert!(worse.iter().any(|worse| worse.case == "seed 2" && worse.subject == "lane"), "{worse:?}");
    let smallest = random::minimise(2, Some(header)).await.expect("a run");
    assert!(
        smallest.contains(r#"requests: 1, method: "GET", up: 0"#) && smallest.contains("who: Nobody"),
        "{smallest}"
    );
}

#[test]
fn each_case_event_and_fault_has_a_name_of_its_own_and_each_event_a_fault_that_it_finds() {
    let names = docs::names();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "two of one name");
    assert!(cases::all().len() >= 60);
    let found_by: BTreeSet<&str> = breaks::all().iter().flat_map(|fault| fault.found_by).copied().collect();
    for event in events::all() {
        assert!(found_by.contains(event.name), "no fault is known that `{}` finds", event.name);
    }
}

#[test]
fn the_documentation_lists_every_case_event_and_fault() {
    let text = fs::read_to_string(project::root().join("docs/differential.md")).expect("docs/differential.md");
    for name in docs::names() {
        assert!(text.contains(&format!("| `{name}` |")), "`{name}` is missing: make differential-docs");
    }
}

//! Nothing costs more than 5 % more than `baseline.json` says. Whoever makes it cost more on purpose runs `make counts-baseline`, and
//! commits the file with the change.
#![allow(clippy::expect_used, missing_docs)]

mod support;

use idleguard_counts::baseline::{self, grown};
use idleguard_counts::scenarios::{Counts, count_all};

#[test]
fn nothing_costs_more_than_the_baseline_says() {
    let Some(filter) = support::filter() else { return };
    let committed = std::fs::read_to_string(baseline::PATH).expect("a baseline");
    let committed: Counts = serde_json::from_str(&committed).expect("counts");
    let counts = count_all(&filter).expect("counts");
    println!("{}", baseline::table(&counts));
    let worse = grown(&committed, &counts);
    assert!(worse.is_empty(), "{}\n`make counts-baseline` accepts that", worse.join("\n"));
}

/// Counts that hold for any machine, whatever the baseline says: the budgets.
#[test]
fn the_baseline_keeps_the_budgets() {
    let committed = std::fs::read_to_string(baseline::PATH).expect("a baseline");
    let counts: Counts = serde_json::from_str(&committed).expect("counts");
    let at_most = |scenario: &str, measure: &str, most: u64| {
        let count = counts[scenario][measure];
        assert!(count <= most, "{scenario}: {count} {measure}, more than {most}");
    };
    // The SDK of proxy-wasm takes 1,400 instructions for a request of which a filter wants nothing.
    at_most("request: client_ip, fence and retry", "instructions", 9_000 + 1_400);
    at_most("request: client_ip, fence and retry", "host calls", 12);
    at_most("connection: 16 KiB of a body", "instructions", 1_500);
    at_most("connection: 16 KiB of a body", "host calls", 2);
    at_most("tick: 100,000 idle connections, none due", "instructions", 500);
    at_most("20,000 requests: growth", "memory bytes", 0);
    at_most("a connection, of 100,000", "memory bytes", 160);
}

#[test]
fn growth_by_more_than_a_twentieth_is_noticed() {
    let counts = |instructions: u64| Counts::from([("a".into(), [("instructions".into(), instructions)].into())]);
    assert!(grown(&counts(100), &counts(105)).is_empty());
    assert_eq!(grown(&counts(100), &counts(106)).len(), 1);
    assert_eq!(grown(&counts(0), &counts(1)).len(), 1);
    assert_eq!(grown(&Counts::new(), &counts(1)).len(), 1);
    assert_eq!(grown(&counts(1), &Counts::new()).len(), 1);
}

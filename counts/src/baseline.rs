//! The committed counts, and what counts as worse.

use std::fmt::Write as _;

use crate::scenarios::Counts;

/// Where the baseline is.
pub const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/baseline.json");

/// What grew by more than 5 %, is new, or is no longer there; one line each.
pub fn grown(committed: &Counts, counts: &Counts) -> Vec<String> {
    let mut lines = Vec::new();
    for (scenario, measures) in counts {
        for (measure, now) in measures {
            match committed.get(scenario).and_then(|measures| measures.get(measure)) {
                Some(before) if *now * 100 <= *before * 105 => {}
                Some(before) => lines.push(format!("{scenario}: {now} {measure}, more than 5 % above {before}")),
                None => lines.push(format!("{scenario}: {measure} is not in the baseline")),
            }
        }
    }
    lines.extend(committed.keys().filter(|known| !counts.contains_key(*known)).map(|gone| format!("{gone}: is gone")));
    lines
}

/// The counts as a Markdown table.
pub fn table(counts: &Counts) -> String {
    let mut text = String::from("| | |\n| --- | --- |\n");
    for (scenario, measures) in counts {
        let measures: Vec<String> = measures.iter().map(|(measure, count)| format!("{count} {measure}")).collect();
        let _ = writeln!(text, "| {scenario} | {} |", measures.join(", "));
    }
    text
}

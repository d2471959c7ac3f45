//! `docs/differential.md`: the table, and what lanes have of their own with its figures.

use std::fmt::Write;

use crate::{
    breaks, cases,
    events::{self, Row},
    setup::Setup,
};

const BEGIN: &str = "<!-- made by `make differential-docs` -->\n";
const END: &str = "<!-- end -->\n";

/// The text with new tables.
pub fn with_tables(text: &str, tables: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{tables}{END}{after}"))
}

/// The names that the tables should hold, one each.
pub fn names() -> Vec<String> {
    let events = events::all().into_iter().map(|event| event.name.to_owned());
    let faults = breaks::all().into_iter().map(|fault| fault.name.to_owned());
    cases::all().into_iter().map(|case| case.name).chain(events).chain(faults).collect()
}

/// The tables, with these figures.
pub fn tables(rows: &[Row], versions: &str) -> String {
    let mut text = format!("\nFigures: plain / base in force / lane in force, Envoy {versions}.\n\n");
    let of = |name: &str| rows.iter().find(|row| row.event.name == name).map(ToString::to_string).unwrap_or_default();
    let (own, common): (Vec<_>, Vec<_>) = events::all().into_iter().partition(|event| event.own.is_some());
    text += "## What lanes have of their own\n\nThe whole list of exceptions.\n\n| event | what happens | why | figures |\n| --- | --- | --- | --- |\n";
    for event in own {
        let why = event.own.unwrap_or_default();
        let _ = writeln!(text, "| `{}` | {} | {why} | {} |", event.name, event.about, of(event.name)); // a String takes it
    }
    text +=
        "\n## Events\n\nNo figure is worse than plain's.\n\n| event | what happens | figures |\n| --- | --- | --- |\n";
    for event in common {
        let _ = writeln!(text, "| `{}` | {} | {} |", event.name, event.about, of(event.name)); // as above
    }
    text += "\n## Cases\n\nThe same as plain Envoy, for the client and for the far end, with the base and with a lane in force.\n\n\
             | case | what happens | setup |\n| --- | --- | --- |\n";
    for case in cases::all() {
        let setup = match case.setup {
            Setup::Usual => "",
            Setup::Lenient => "HTTP/1.0, trailers and `100 Continue` pass",
            Setup::Http2 => "HTTP/2 to the far end",
            Setup::Retries => "retries",
        };
        let _ = writeln!(text, "| `{}` | {} | {setup} |", case.name, case.about); // as above
    }
    text += "\n## Faults that are found\n\n`make differential-breaks` puts each into the configuration with a lane in force.\n\n\
             | fault | what is wrong | found by |\n| --- | --- | --- |\n";
    for fault in breaks::all() {
        let found_by: Vec<String> = fault.found_by.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(text, "| `{}` | {} | {} |", fault.name, fault.what, found_by.join(", ")); // as above
    }
    text + "\n"
}

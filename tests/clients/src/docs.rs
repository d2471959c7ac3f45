//! The tables: docs/clients.md as a whole, and the short one in the README.

use std::fs;

use anyhow::{Context, Result};
use idleguard_harness::project;

use crate::{Outcome, Row, clients::Client, run::Report};

const HEAD: &str = "\
# What clients say, and through idleguard

<!-- Written by `make test-clients`; edit tests/clients/src. -->

Each client as it is by default, with one pool, in waves of 10 requests; two thirds of the pauses between the waves are around the idle timeout (2 s) of a
load balancer (LB) that is 20 ms away, so that a connection is reused just before or just after the LB drops it: by FIN, by RST, or silently (the next packet is
answered by RST). *Straight* is the client's own connection to the LB; *through idleguard* the client talks to Envoy, and idleguard knows the timeout
(`lb_idle_timeout: 2s`). The pauses are chosen to fail; with real traffic it is a few requests a day, and the same error.

A `0` straight means that the client sends the request again by itself (what a `GET` allows, and some do with a `POST`), or looks at the connection before. What a client sends
again may be executed twice.

";

const MARKS: [&str; 2] = ["<!-- clients: written by `make test-clients` -->\n", "<!-- /clients -->"];

pub(crate) fn write(outcomes: &[(&Client, Outcome)]) -> Result<()> {
    let root = project::root();
    let mut text = HEAD.to_owned();
    text.push_str(&summary(outcomes));
    for (client, outcome) in outcomes {
        text.push_str(&section(client, outcome));
    }
    fs::write(root.join("docs/clients.md"), text)?;

    let path = root.join("README.md");
    let readme = fs::read_to_string(&path)?;
    let (before, rest) = readme.split_once(MARKS[0]).context("README.md has no place for the clients' table")?;
    let (_, after) = rest.split_once(MARKS[1]).context("README.md: where does the clients' table end?")?;
    fs::write(&path, format!("{before}{}{}{}{after}", MARKS[0], summary(outcomes), MARKS[1]))?;
    Ok(())
}

/// A line for each client.
fn summary(outcomes: &[(&Client, Outcome)]) -> String {
    let mut text = String::from(
        "| client | what it says | `POST`s failed, straight | `GET`s failed, straight | through idleguard |\n\
         | --- | --- | ---: | ---: | ---: |\n",
    );
    for (client, outcome) in outcomes {
        let line = match outcome {
            Outcome::NotTried { why } => format!("| {} | not tried here: {why} | | | |\n", client.title),
            Outcome::Tried { rows, .. } => {
                let of = |method| sum(rows.iter().filter(|row| row.method == method).map(|row| &row.straight));
                let (post, get, through) = (of("POST"), of("GET"), sum(rows.iter().map(|row| &row.through)));
                let mut straight = post.clone();
                straight.add(&get);
                let said = straight.texts().first().map_or_else(|| "nothing".to_owned(), |text| code(text));
                format!(
                    "| {} | {said} | {} | {} | {} |\n",
                    client.title,
                    figures(&post),
                    figures(&get),
                    figures(&through)
                )
            }
        };
        text.push_str(&line);
    }
    text
}

fn sum<'a>(reports: impl Iterator<Item = &'a Report>) -> Report {
    reports.fold(Report::default(), |mut sum, report| {
        sum.add(report);
        sum
    })
}

fn figures(report: &Report) -> String {
    format!("{} of {}", report.failed(), report.sent)
}

fn section(client: &Client, outcome: &Outcome) -> String {
    let mut text = format!("\n## {}\n\n", client.title);
    match outcome {
        Outcome::NotTried { why } => text.push_str(&format!("Not tried here: {why}.\n\n")),
        Outcome::Tried { version, rows } => {
            text.push_str(&format!(
                "{version}.\n\n| | straight | through idleguard | what it says |\n| --- | ---: | ---: | --- |\n"
            ));
            for Row { method, drop, straight, through } in rows {
                let said: Vec<_> = straight.texts().into_iter().map(code).collect();
                let said = said.join("<br>");
                text.push_str(&format!(
                    "| `{method}`, {drop} | {} | {} | {said} |\n",
                    figures(straight),
                    figures(through)
                ));
            }
            text.push('\n');
        }
    }
    text.push_str(&format!("Its own setting, for an LB with an idle timeout of 60 s: {}\n", client.setting));
    text
}

/// As code in a cell of a table.
fn code(text: &str) -> String {
    format!("`{}`", text.replace('|', "\\|").replace('`', "'"))
}

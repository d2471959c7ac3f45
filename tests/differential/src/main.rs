//! `make differential`: the table and random combinations; `make differential-breaks`: faults put in on purpose.

use std::{collections::BTreeSet, fs, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use idleguard_differential::{
    breaks::{self, Break},
    cases, docs, events, random, suite,
};
use idleguard_harness::project;

/// Is Envoy with idleguard ever worse than plain Envoy?
#[derive(Debug, Parser)]
struct Arguments {
    /// Only cases and events whose names contain this.
    #[arg(long)]
    only: Option<String>,
    /// As many random combinations, and no table unless `--only` asks for some of it.
    #[arg(long)]
    random: Option<u64>,
    /// The first one's seed; the others' follow.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Puts this fault in on purpose; `all` puts in one after the other. Those that have to find it run, or what `--only` and `--random` say.
    #[arg(long = "break")]
    fault: Option<String>,
    /// Writes the table, with figures, into docs/differential.md.
    #[arg(long)]
    docs: bool,
    /// Envoy's version, for the documentation.
    #[arg(long, default_value = "")]
    version: String,
    /// Says what plain Envoy gives.
    #[arg(long)]
    verbose: bool,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut faults = breaks::all();
    if let Some(name) = &arguments.fault {
        faults.retain(|fault| name == "all" || fault.name == name);
        ensure!(!faults.is_empty(), "no fault is named `{name}`");
        if arguments.only.is_none() && arguments.random.is_none() {
            return find(faults).await;
        }
    }
    let edit = arguments.fault.as_ref().and_then(|_| faults.first()).map(|fault| fault.edit);
    let has_table = arguments.random.is_none() || arguments.only.is_some();
    let is_asked = |name: &str| has_table && arguments.only.as_ref().is_none_or(|only| name.contains(only));
    let table = cases::all().into_iter().filter(|case| is_asked(&case.name));
    let random = random::cases(arguments.seed, arguments.random.unwrap_or(0));
    let events: Vec<_> = events::all().into_iter().filter(|event| is_asked(event.name)).collect();
    let mut outcome = suite::run(table.chain(random).collect(), edit, arguments.verbose).await?;
    let rows = events::run(events, edit).await?;
    for row in &rows {
        println!("{}: {row}", row.event.name);
        outcome.ran += 1;
        outcome.worse.extend(row.worse());
    }
    if arguments.docs {
        let path = project::root().join("docs/differential.md");
        let text = fs::read_to_string(&path)?;
        let tables = docs::tables(&rows, &arguments.version);
        fs::write(
            &path,
            docs::with_tables(&text, &tables).context("docs/differential.md has no place for the tables")?,
        )?;
    }
    for worse in &outcome.worse {
        println!("{worse}");
    }
    let seed = |case: &str| case.strip_prefix("seed ")?.parse::<u64>().ok();
    let seeds: BTreeSet<u64> = outcome.worse.iter().filter_map(|worse| seed(&worse.case)).collect();
    for seed in seeds.into_iter().take(3) {
        println!("seed {seed}, as small as it gets: {}", random::minimise(seed, edit).await?);
    }
    println!("{} cases, {} worse than plain", outcome.ran, outcome.worse.len());
    Ok(if outcome.worse.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says how each fault shows, and fails if one does not.
async fn find(faults: Vec<Break>) -> Result<ExitCode> {
    let mut missed = Vec::new();
    for fault in &faults {
        println!("--- {}: {}", fault.name, fault.what);
        let found = fault.run().await?;
        found.iter().for_each(|worse| println!("{worse}"));
        missed.extend(fault.missed(&found));
    }
    missed.iter().for_each(|missed| println!("{missed}"));
    println!("{} faults, {} not found where they should be", faults.len(), missed.len());
    Ok(if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! `make differential`: the table and random combinations.

use std::fs;

use anyhow::{Context, Result};
use clap::Parser;
use idleguard_differential::{cases, docs, events, random, setup::Setup, suite};
use idleguard_harness::project;

/// Is Envoy with idleguard ever worse than plain Envoy?
#[derive(Debug, Parser)]
struct Arguments {
    /// Only cases whose names contain this.
    #[arg(long)]
    only: Option<String>,
    /// As many random combinations, and no table unless `--only` asks for some of it.
    #[arg(long)]
    random: Option<u64>,
    /// The first one's seed; the others' follow.
    #[arg(long, default_value_t = 1)]
    seed: u64,
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
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut run = Vec::new();
    if arguments.random.is_none() || arguments.only.is_some() {
        run.extend(cases::all());
    }
    if let Some(only) = &arguments.only {
        run.retain(|case| case.name.contains(only));
    }
    let mut happening = if arguments.random.is_some() { Vec::new() } else { events::all() };
    if let Some(only) = &arguments.only {
        happening.retain(|event| event.name.contains(only));
    }
    run.extend(random::cases(arguments.seed, arguments.random.unwrap_or(0)));
    let mut outcome = suite::run(run, arguments.verbose).await?;
    let rows = events::run(happening, 3).await?;
    for row in &rows {
        println!("{}: {}", row.name, suite::figures(row));
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
    let mut seeds: Vec<u64> =
        outcome.worse.iter().filter_map(|worse| worse.case.strip_prefix("seed ")?.parse().ok()).collect();
    seeds.dedup();
    for seed in seeds.into_iter().take(3) {
        let middles = suite::start(seed_setup(seed)).await?;
        println!("seed {seed}, as small as it gets: {}", random::minimise(seed, &middles).await?);
    }
    println!("{} cases, {} worse than plain", outcome.ran, outcome.worse.len());
    std::process::exit(i32::from(!outcome.worse.is_empty()));
}

fn seed_setup(seed: u64) -> Setup {
    random::cases(seed, 1)[0].setup
}

//! `make differential`: the table and random combinations.

use anyhow::Result;
use clap::Parser;
use idleguard_differential::{cases, events, random, setup::Setup, suite};

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
    for row in events::run(happening, 3).await? {
        println!("{}: {}", row.name, suite::figures(&row));
        outcome.ran += 1;
        outcome.worse.extend(row.worse());
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

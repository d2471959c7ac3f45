//! `make bench`: idleguard beside what there is today. Measures section by section, then draws tables and pictures.

mod clients;
mod copies;
mod correctness;
mod cost;
mod cpu;
mod far_end;
mod latency;
mod pools;
mod process_cost;
mod report;
mod results;
mod scale;
mod statistics;
mod subjects;
mod variants;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use idleguard_harness::{process, project};

use crate::{
    correctness::{LbMode, Plan},
    results::{Section, Setting},
    subjects::Subject,
    variants::Variant,
};

/// Measure idleguard beside what there is today
#[derive(Parser)]
struct Arguments {
    /// A few minutes instead of twenty: a look, no result
    #[arg(long)]
    quick: bool,
    /// What to measure; results of the others stay as they are [default: everything]
    #[arg(long, value_delimiter = ',', value_enum)]
    sections: Vec<Part>,
    /// Measure nothing, draw what has been measured
    #[arg(long)]
    draw: bool,
    /// Where results go [default: bench/results, and into the documentation; with --quick .run/bench]
    #[arg(long)]
    results: Option<PathBuf>,
    /// Only these load-balancer modes
    #[arg(long, value_delimiter = ',', value_enum)]
    modes: Vec<LbMode>,
    /// Only these variants, of the section `cost`
    #[arg(long, value_delimiter = ',', value_enum)]
    variants: Vec<Variant>,
    /// The section `cost` fails if something has grown by more than 2 % over bench/results/cost.json
    #[arg(long)]
    check: bool,
    /// Only these proxies
    #[arg(long, value_delimiter = ',', value_enum)]
    subjects: Vec<Subject>,
}

/// A section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Copies,
    Correctness,
    Cost,
    Cpu,
    Latency,
    Pools,
    Scale,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tokio::select! {
        result = bench(&arguments) => match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bench: {error:#}");
                ExitCode::FAILURE
            }
        },
        () = process::stop_signal() => ExitCode::FAILURE,
    }
}

async fn bench(arguments: &Arguments) -> Result<()> {
    let official = !arguments.quick && arguments.results.is_none();
    let default = if arguments.quick { ".run/bench" } else { "bench/results" };
    let directory = arguments.results.clone().unwrap_or_else(|| project::root().join(default));
    let parts = if arguments.sections.is_empty() { Part::value_variants() } else { &arguments.sections };
    for &part in parts.iter().filter(|_| !arguments.draw) {
        measure(arguments, part, &directory).await.with_context(|| part.name())?;
        report::write(&directory, official)?; // what has been measured is kept, whatever becomes of the next section
    }
    report::write(&directory, official)?;
    println!("{}", directory.join("results.md").display());
    Ok(())
}

async fn measure(arguments: &Arguments, part: Part, directory: &Path) -> Result<()> {
    let quick = arguments.quick;
    let pick = |full: u64, short: u64| if quick { short } else { full };
    let setting = Setting::now(quick);
    eprintln!("{} (load average {})", part.name(), setting.load_average);
    let begun = Instant::now();
    let results = match part {
        Part::Copies => {
            let plan = copies::Plan {
                clusters: if quick { &[1, 10] } else { &[1, 10, 100] },
                hosts: if quick { &[1, 10] } else { &[1, 10, 1_000] },
                rounds: pick(5, 1),
                counted: Duration::from_secs(pick(20, 10)),
            };
            serde_json::to_value(copies::run(&plan).await?)?
        }
        Part::Correctness => serde_json::to_value(correctness::run(&plan(arguments)).await?)?,
        Part::Cost => {
            let costs = cost::run(quick, &arguments.variants).await?;
            if arguments.check {
                cost::check(&costs, &project::root().join("bench/results"))?;
            }
            serde_json::to_value(costs)?
        }
        Part::Cpu => serde_json::to_value(cpu::run(pick(25, 5) as usize).await?)?,
        Part::Latency => {
            let slice = Duration::from_millis(pick(1_500, 500));
            serde_json::to_value(latency::run(&[1_000, 10_000], pick(8, 2) as usize, slice, 1_000.0).await?)?
        }
        Part::Pools => serde_json::to_value(pools::run(pick(20_000, 2_000)))?,
        Part::Scale => {
            let counts: &[u64] = if quick { &[1_000, 5_000] } else { &[1_000, 5_000, 10_000, 20_000, 50_000] };
            serde_json::to_value(scale::run(counts, Duration::from_secs(pick(10, 3))).await?)?
        }
    };
    let took = begun.elapsed();
    eprintln!("{}: {:.0} s", part.name(), took.as_secs_f64());
    results::save(directory, part.name(), &Section { setting, took_s: took.as_secs(), results })
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Copies => "copies",
            Self::Correctness => "correctness",
            Self::Cost => "cost",
            Self::Cpu => "cpu",
            Self::Latency => "latency",
            Self::Pools => "pools",
            Self::Scale => "scale",
        }
    }
}

fn plan(arguments: &Arguments) -> Plan {
    let all = |modes: &[LbMode]| if modes.is_empty() { LbMode::ALL.to_vec() } else { modes.to_vec() };
    let quick = arguments.quick;
    Plan {
        timeout_ms: if quick { 2_000 } else { 6_000 },
        delay_ms: 25,
        clients: 30,
        warm_up_s: if quick { 20 } else { 60 },
        counted_s: if quick { 30 } else { 120 },
        modes: all(&arguments.modes),
        subjects: if arguments.subjects.is_empty() { Subject::ALL.to_vec() } else { arguments.subjects.clone() },
        modes_at_once: 5,
    }
}

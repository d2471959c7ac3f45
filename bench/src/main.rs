//! `make bench`: idleguard beside what there is today. Measures section by section, then draws tables and pictures.

mod correctness;
mod results;
mod subjects;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use idleguard_harness::{process, project};
use serde::Serialize;

use crate::results::{Section, Setting};

/// Measure idleguard beside what there is today
#[derive(Parser)]
struct Arguments {
    /// A few minutes instead of twenty: a look, no result
    #[arg(long)]
    quick: bool,
    /// What to measure
    #[arg(long, value_delimiter = ',', default_values_t = Part::value_variants().to_vec(), value_enum)]
    sections: Vec<Part>,
    /// Where results go [default: bench/results, or .run/bench when quick]
    #[arg(long)]
    results: Option<PathBuf>,
}

/// A section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Correctness,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", format!("{self:?}").to_lowercase())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tokio::select! {
        result = bench(arguments) => match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("bench: {error:#}");
                ExitCode::FAILURE
            }
        },
        () = process::stop_signal() => ExitCode::FAILURE,
    }
}

async fn bench(arguments: Arguments) -> Result<()> {
    let directory = arguments.results.clone().unwrap_or_else(|| {
        project::root().join(if arguments.quick { ".run/bench" } else { "bench/results" })
    });
    for &part in &arguments.sections {
        eprintln!("{part}");
        let setting = Setting::now(arguments.quick);
        let begun = Instant::now();
        match part {
            Part::Correctness => {
                let plan = correctness_plan(arguments.quick);
                let cells = correctness::run(&plan).await?;
                for cell in &cells { eprintln!("{:?} {:?} {:?} {:?} {:?} opened {} learnt {}..{} warmup {:?} {:?}", cell.mode, cell.shape, cell.subject, cell.methods, cell.kinds, cell.opened_per_1_000(), cell.learnt_ms, cell.learnt_at_end_ms, cell.warm_up, cell.examples); }
                save(&directory, part, setting, begun, &cells)?;
            }
        }
    }
    Ok(())
}

fn save<T: Serialize>(directory: &std::path::Path, part: Part, setting: Setting, begun: Instant, results: T) -> Result<()> {
    let section = Section { setting, took_s: begun.elapsed().as_secs(), results };
    results::save(directory, &part.to_string(), &section)
}

fn correctness_plan(quick: bool) -> correctness::Plan {
    use correctness::LbMode;
    let pick = |name: &str| std::env::var(name).ok();
    let _ = pick;
    correctness::Plan {
        timeout_ms: if quick { 2_000 } else { 6_000 },
        delay_ms: 25,
        clients: 30,
        warm_up_s: if quick { 20 } else { 60 },
        counted_s: if quick { 30 } else { 120 },
        modes: LbMode::ALL.to_vec(),
        subjects: subjects::Subject::ALL.to_vec(),
        modes_at_once: 5,
    }
}

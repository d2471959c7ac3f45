//! Mixed traffic through idleguard for a long time; then a report and a plot. Fails if anything was lost.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;
use idleguard_harness::{arguments, process, soak};

/// Soak idleguard.
#[derive(Parser)]
struct Arguments {
    /// How long to send
    #[arg(long, default_value_t = 1_800)]
    seconds: u64,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write the plot
    #[arg(long, default_value = "soak.svg")]
    plot: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tokio::select! {
        result = soak(arguments) => match result {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("soak: {error:#}");
                ExitCode::FAILURE
            }
        },
        () = process::stop_signal() => ExitCode::FAILURE,
    }
}

async fn soak(arguments: Arguments) -> Result<bool> {
    let config = arguments::configuration(None, None)?;
    let report = soak::run(config, Duration::from_secs(arguments.seconds), arguments.seed).await?;
    fs::write(&arguments.plot, report.plot()).with_context(|| arguments.plot.display().to_string())?;
    println!("{report}The plot is in {}", arguments.plot.display());
    Ok(report.faults().is_empty())
}

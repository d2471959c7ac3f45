//! `idleguard-counts [--write]`: counts everything, says where it differs from `counts/baseline.json`, and with `--write` makes
//! that the new baseline.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use idleguard_counts::scenarios::{Counts, count_all};
use idleguard_counts::{Filter, baseline};

fn main() -> Result<ExitCode> {
    let writes = std::env::args().any(|argument| argument == "--write");
    let wasm = std::env::var_os("IDLEGUARD_WASM")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../idleguard.wasm"), Into::into);
    let counts = count_all(&Filter::load(wasm)?)?;
    print!("{}", baseline::table(&counts));
    if writes {
        let json = serde_json::to_string_pretty(&counts)? + "\n";
        std::fs::write(baseline::PATH, json).context(baseline::PATH)?;
        return Ok(ExitCode::SUCCESS);
    }
    let committed: Counts = serde_json::from_str(&std::fs::read_to_string(baseline::PATH).context(baseline::PATH)?)?;
    let worse = baseline::grown(&committed, &counts);
    for line in &worse {
        eprintln!("{line}");
    }
    Ok(if worse.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

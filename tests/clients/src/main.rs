//! Runs the HTTP clients that people have, each as it is by default, straight to a load balancer that drops idle connections and
//! through Envoy with idleguard, and writes what came of it into the documentation.

mod clients;
mod docs;
mod run;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use idleguard_harness::{
    envoy::{Config, Envoy, Options},
    project,
    stub_lb::{self, Mode, StubLb},
};

use crate::{
    clients::{CLIENTS, Client},
    run::{Report, TIMEOUT, run},
};

/// Run clients straight to a load balancer, and through idleguard.
#[derive(Parser)]
struct Arguments {
    /// Only these (`reactor-netty`, `requests`, …), and nothing is written
    #[arg(long)]
    only: Vec<String>,
    /// Waves of 10 requests, for each client, method and way in which connections are dropped
    #[arg(long, default_value_t = 24)]
    waves: usize,
}

/// The ways in which a load balancer drops idle connections.
const DROPS: [(&str, Mode); 3] =
    [("FIN", Mode::FinAt(TIMEOUT)), ("RST", Mode::RstAt(TIMEOUT)), ("silent", Mode::SilentRst(TIMEOUT))];

const METHODS: [&str; 2] = ["POST", "GET"];

/// As far away as another region is: what the load balancer does is seen this much later.
const DELAY: Duration = Duration::from_millis(20);

/// What one client saw of one way to drop connections.
struct Row {
    method: &'static str,
    drop: &'static str,
    straight: Report,
    through: Report,
}

/// What became of a client.
enum Outcome {
    Tried { version: String, rows: Vec<Row> },
    NotTried { why: String },
}

fn main() -> ExitCode {
    match all(&Arguments::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("clients: {failed} requests failed through idleguard");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("clients: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn all(arguments: &Arguments) -> Result<usize> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut failed = 0;
    let mut outcomes = Vec::new();
    for client in CLIENTS {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|only| only == client.name) {
            continue;
        }
        let folder = project::root().join("tests/clients").join(client.folder);
        let outcome = match build(client, &folder) {
            Ok(version) => Outcome::Tried { version, rows: rows(&runtime, client, &folder, arguments.waves)? },
            Err(_) if std::env::var_os("IDLEGUARD_NO_SKIP").is_some() => bail!("{} can't be tried", client.title),
            Err(error) => Outcome::NotTried { why: error.to_string() },
        };
        match &outcome {
            Outcome::NotTried { why } => println!("{}: not tried: {why}", client.title),
            Outcome::Tried { version, rows } => {
                for row in rows {
                    let texts = row.straight.texts().join(" | ");
                    println!(
                        "{} {version}: {} {}: straight {} of {} failed, through idleguard {} of {}; {texts}",
                        client.title,
                        row.method,
                        row.drop,
                        row.straight.failed(),
                        row.straight.sent,
                        row.through.failed(),
                        row.through.sent,
                    );
                    for text in row.through.texts() {
                        println!("  through idleguard: {text}");
                    }
                    failed += row.through.failed();
                }
            }
        }
        outcomes.push((client, outcome));
    }
    if arguments.only.is_empty() {
        docs::write(&outcomes)?;
    }
    Ok(failed)
}

/// Has the folder's `build` get the client; its version.
fn build(client: &Client, folder: &Path) -> Result<String> {
    let output = Command::new(folder.join("build")).output().context("build")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{}", said.trim().lines().next_back().unwrap_or("build failed"));
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = said.lines().find_map(|line| line.strip_prefix(client.name)?.strip_prefix(' '));
    Ok(version.with_context(|| format!("{}/build does not name {}", folder.display(), client.name))?.to_owned())
}

/// Everything that is tried of one client, at once: it is idle most of the time.
fn rows(runtime: &tokio::runtime::Runtime, client: &Client, folder: &Path, waves: usize) -> Result<Vec<Row>> {
    let wasm: PathBuf = project::wasm()?;
    thread::scope(|scope| {
        let mut started = Vec::new();
        for (index, (drop, mode)) in DROPS.into_iter().enumerate() {
            for method in METHODS {
                let lb = || StubLb::with(stub_lb::Options { mode, delay: DELAY, ..Default::default() });
                let (near, behind) = (lb()?, lb()?);
                let config = Config::project()?.free_ports().wasm(&wasm).without_scout();
                let config = config.upstream(behind.address()).lb_idle_timeout("2s");
                let envoy = runtime.block_on(Envoy::start(&config, Options::default()))?;
                let seed = index as u64;
                let straight =
                    scope.spawn(move || run(client, folder, method, &near.address().to_string(), waves, seed));
                let through = scope.spawn(move || {
                    let _behind = behind;
                    run(client, folder, method, &envoy.ingress().to_string(), waves, seed)
                });
                started.push((method, drop, straight, through));
            }
        }
        let mut rows = Vec::new();
        for (method, drop, straight, through) in started {
            let [straight, through] = [straight, through].map(|ended| ended.join().expect("it does not panic"));
            rows.push(Row { method, drop, straight: straight?, through: through? });
        }
        rows.sort_by_key(|row| METHODS.iter().position(|method| *method == row.method));
        Ok(rows)
    })
}

//! Results on disk: one JSON file a section, with where and when they were measured.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use idleguard_harness::project;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Where and when something was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Date and time, UTC.
    pub date: String,
    /// The processor.
    pub processor: String,
    /// How many cores the benchmark may use.
    pub cores: usize,
    /// Megabytes of memory.
    pub memory_mb: u64,
    /// The kernel.
    pub kernel: String,
    /// Envoy's version.
    pub envoy: String,
    /// HAProxy's version.
    pub haproxy: String,
    /// nginx' version.
    pub nginx: String,
    /// idleguard's version and commit.
    pub idleguard: String,
    /// Load average of the last minute when the section began: what else the machine was doing.
    pub load_average: String,
    /// A quick run: a look, no result.
    pub quick: bool,
}

/// A section's results.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Section<T> {
    /// Where and when.
    pub setting: Setting,
    /// How long it took, in seconds.
    pub took_s: u64,
    /// What came of it.
    pub results: T,
}

impl Setting {
    /// This machine, now.
    pub fn now(quick: bool) -> Self {
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = field(&file("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let memory_kb: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        let root = project::root();
        let git = |arguments: &[&str]| output(Command::new("git").current_dir(&root).args(arguments));
        let changed = if git(&["status", "--porcelain", "--", "src"]).is_empty() { "" } else { ", changed" };
        Self {
            date: output(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
            processor: field(&file("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mb: memory_kb / 1024,
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            envoy: project::envoy().map_or_else(|_| "none".to_owned(), |envoy| envoy_version(&envoy)),
            haproxy: program("haproxy", "-v").split_whitespace().nth(2).unwrap_or("none").to_owned(),
            nginx: program("nginx", "-v").rsplit('/').next().unwrap_or("none").to_owned(),
            idleguard: format!("{} ({}{changed})", env!("CARGO_PKG_VERSION"), git(&["rev-parse", "--short", "HEAD"])),
            load_average: file("/proc/loadavg").split_whitespace().next().unwrap_or("?").to_owned(),
            quick,
        }
    }
}

/// From `/path/to/envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`.
fn envoy_version(envoy: &Path) -> String {
    let text = output(Command::new(envoy).arg("--version"));
    let build = text.split_once("version: ").map_or("", |(_, build)| build);
    build.split('/').nth(1).unwrap_or("unknown").to_owned()
}

fn program(name: &str, argument: &str) -> String {
    project::program(name).map_or_else(String::new, |path| output(Command::new(path).arg(argument)))
}

fn output(command: &mut Command) -> String {
    let Ok(output) = command.output() else { return String::new() };
    // nginx tells its version on the standard error.
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&text).trim().to_owned()
}

fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.json"))
}

/// Writes a section.
pub fn save<T: Serialize>(directory: &Path, name: &str, section: &Section<T>) -> Result<()> {
    fs::create_dir_all(directory)?;
    let path = path(directory, name);
    fs::write(&path, serde_json::to_string_pretty(section)? + "\n").with_context(|| path.display().to_string())
}

/// Reads a section; none if it has not been measured.
pub fn load<T: DeserializeOwned>(directory: &Path, name: &str) -> Result<Option<Section<T>>> {
    let path = path(directory, name);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path)?;
    serde_json::from_str(&text).map(Some).with_context(|| format!("{}: not a result of this version", path.display()))
}

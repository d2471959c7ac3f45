//! A real Envoy, started from an edited configuration on free ports.
//!
//! ```no_run
//! use idleguard_harness::{envoy::{Config, Envoy, Options}, stub_lb::{Mode, StubLb}};
//!
//! # async fn example() -> anyhow::Result<()> {
//! let lb = StubLb::start(Mode::Stable);
//! let config = Config::project()?.free_ports().upstream(lb.address()).lb_idle_timeout("2s");
//! let envoy = Envoy::start(&config, Options::default()).await?;
//! println!("{} {}", envoy.ingress(), envoy.stat("cluster.payments.upstream_cx_total").await?);
//! # Ok(())
//! # }
//! ```

mod config;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::sleep;

pub use self::config::Config;
use crate::{http, process::Process, project};

/// How Envoy is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Worker threads.
    pub concurrency: u32,
    /// `trace`, `debug`, `info`, `warning`, `error`.
    pub log_level: String,
    /// More arguments.
    pub arguments: Vec<String>,
    /// The binary; none finds one, see [`project::envoy`].
    pub binary: Option<PathBuf>,
    /// A base id and an epoch: this Envoy can be restarted hot, or takes over from the one of the epoch before.
    pub hot_restart: Option<(u32, u32)>,
    /// A program, and its arguments, that runs the binary: valgrind.
    pub under: Vec<OsString>,
    /// How long the start may take. Compiling the filter is part of it.
    pub start_within: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            concurrency: 1,
            log_level: "info".to_owned(),
            arguments: Vec::new(),
            binary: None,
            hot_restart: None,
            under: Vec::new(),
            start_within: Duration::from_secs(40),
        }
    }
}

/// A running Envoy. It is killed when this is dropped.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    admin: SocketAddr,
    listeners: BTreeMap<String, SocketAddr>,
    _directory: TempDir,
}

/// What `--mode validate` said.
#[derive(Debug, Clone)]
pub struct Validation {
    /// Whether the configuration was accepted.
    pub accepted: bool,
    /// Everything that was printed.
    pub output: String,
}

impl Envoy {
    /// Starts Envoy and waits until it serves. If it refuses the configuration, the error holds its log.
    pub async fn start(config: &Config, options: Options) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let admin_path = directory.path().join("admin");
        let mut command = command(config, &options, &directory)?;
        command.arg("--admin-address-path").arg(&admin_path);
        let mut process = Process::start(command, &directory.path().join("envoy.log"))?;
        let end = Instant::now() + options.start_within;
        loop {
            if let Some(status) = process.ended() {
                bail!("Envoy has ended ({status}):\n{}", tail(&process.output()));
            }
            if let Some(admin) = ready(&admin_path).await {
                let listeners = listeners(admin).await?;
                return Ok(Self { process, admin, listeners, _directory: directory });
            }
            if Instant::now() > end {
                bail!("Envoy is not ready after {:?}:\n{}", options.start_within, tail(&process.output()));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs `--mode validate`.
    pub fn validate(config: &Config, options: &Options) -> Result<Validation> {
        let directory = tempfile::tempdir()?;
        let mut command = command(config, options, &directory)?;
        command.args(["--mode", "validate"]);
        let mut process = Process::start(command, &directory.path().join("envoy.log"))?;
        let status = process.wait(options.start_within).context("Envoy takes too long to validate")?;
        Ok(Validation { accepted: status.success(), output: process.output() })
    }

    /// The address of the listener `ingress`.
    pub fn ingress(&self) -> SocketAddr {
        self.listener("ingress").expect("a listener named `ingress`")
    }

    /// The address of the listener of this name.
    pub fn listener(&self, name: &str) -> Option<SocketAddr> {
        self.listeners.get(name).copied()
    }

    /// The address of the admin interface.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Envoy's version: major, minor, patch.
    pub async fn version(&self) -> Result<(u32, u32, u32)> {
        let text = http::get(self.admin, "/server_info").await?.text();
        let info: Value = serde_json::from_str(&text).context("/server_info")?;
        // <commit>/1.40.0/Clean/RELEASE/BoringSSL
        let version = info["version"].as_str().and_then(|version| version.split('/').nth(1)).unwrap_or_default();
        let mut numbers = version.split(['.', '-']).map_while(|part| part.parse().ok());
        let mut next = || numbers.next().with_context(|| format!("no version in {text}"));
        Ok((next()?, next()?, next()?))
    }

    /// Counters and gauges by name.
    pub async fn stats(&self) -> Result<BTreeMap<String, u64>> {
        let text = http::get(self.admin, "/stats").await?.text();
        let number = |line: &str| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Ok(text.lines().filter_map(number).collect())
    }

    /// One counter or gauge; 0 if there is none of this name.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        Ok(self.stats().await?.get(name).copied().unwrap_or(0))
    }

    /// Waits until the statistics satisfy the condition; the error shows those that contain `about`.
    pub async fn wait_for(
        &self,
        within: Duration,
        about: &str,
        condition: impl Fn(&BTreeMap<String, u64>) -> bool,
    ) -> Result<BTreeMap<String, u64>> {
        let end = Instant::now() + within;
        loop {
            let stats = self.stats().await?;
            if condition(&stats) {
                return Ok(stats);
            }
            if Instant::now() > end {
                let some: Vec<_> = stats.iter().filter(|(name, _)| name.contains(about)).collect();
                bail!("not within {within:?}: {some:#?}");
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// A histogram's quantiles, as `/stats` prints them once it has been flushed (within 5 s).
    pub async fn histogram(&self, name: &str) -> Result<Option<String>> {
        let text = http::get(self.admin, "/stats?type=Histograms").await?.text();
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned));
        Ok(found)
    }

    /// `/stats/prometheus`.
    pub async fn prometheus(&self) -> Result<String> {
        Ok(http::get(self.admin, "/stats/prometheus").await?.text())
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// The warnings and errors among the last lines of the log.
    pub fn log_tail(&self) -> String {
        tail(&self.log())
    }

    /// Whether it still runs: a crash under load shows here.
    pub fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Begins to drain the listeners, gracefully.
    pub async fn drain(&self) -> Result<()> {
        http::send(self.admin, "POST", "/drain_listeners?graceful", &[], "").await.map(drop)
    }

    /// Asks Envoy to end, and waits for it.
    pub fn quit(mut self) -> Option<ExitStatus> {
        self.process.terminate(Duration::from_secs(10))
    }
}

fn command(config: &Config, options: &Options, directory: &TempDir) -> Result<Command> {
    let binary = options.binary.clone().map_or_else(project::envoy, Ok)?;
    let path = directory.path().join("envoy.json");
    fs::write(&path, config.to_string())?;
    let mut words = options.under.iter().cloned().chain([binary.into_os_string()]);
    let mut command = Command::new(words.next().context("a program")?);
    command.args(words).arg("--config-path").arg(path);
    command.arg("--concurrency").arg(options.concurrency.to_string());
    command.args(["--log-level", &options.log_level]);
    match options.hot_restart {
        Some((base_id, epoch)) => {
            command.args(["--base-id", &base_id.to_string(), "--restart-epoch", &epoch.to_string()])
        }
        None => command.arg("--disable-hot-restart"),
    };
    command.args(&options.arguments);
    Ok(command)
}

async fn ready(admin_path: &PathBuf) -> Option<SocketAddr> {
    let admin = fs::read_to_string(admin_path).ok()?.trim().parse().ok()?;
    let response = http::get(admin, "/ready").await.ok()?;
    (response.status == 200).then_some(admin)
}

async fn listeners(admin: SocketAddr) -> Result<BTreeMap<String, SocketAddr>> {
    let text = http::get(admin, "/listeners?format=json").await?.text();
    let json: Value = serde_json::from_str(&text).context("/listeners")?;
    let listeners = json["listener_statuses"].as_array().cloned().unwrap_or_default();
    let address = |listener: &Value| {
        let socket = listener.pointer("/local_address/socket_address")?;
        let ip = socket["address"].as_str()?.parse().ok()?;
        let port = u16::try_from(socket["port_value"].as_u64()?).ok()?;
        Some((listener["name"].as_str()?.to_owned(), SocketAddr::new(ip, port)))
    };
    Ok(listeners.iter().filter_map(address).collect())
}

/// The end of a log; without the hundreds of lines in which Envoy introduces itself, if there is anything else.
fn tail(log: &str) -> String {
    let telling = |line: &&str| !["][trace][", "][debug][", "][info]["].iter().any(|level| line.contains(level));
    let mut lines: Vec<_> = log.lines().filter(telling).collect();
    if lines.is_empty() {
        lines = log.lines().collect();
    }
    lines[lines.len().saturating_sub(40)..].join("\n")
}

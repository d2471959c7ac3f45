//! A real Prometheus, if it is installed, and what a Grafana dashboard would ask it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{http, process::Process, project};

/// A running Prometheus that scrapes one Envoy every second. It is killed when this is dropped.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    _process: Process,
    _directory: TempDir,
}

impl Prometheus {
    /// Starts it, and waits until it has scraped the Envoy with this admin address. It loads these rules, too.
    pub async fn start(envoy: SocketAddr, rules: &Path) -> Result<Self> {
        let program = project::program("prometheus").context("prometheus is not installed")?;
        let directory = tempfile::tempdir()?;
        let config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n- job_name: envoy\n  metrics_path: /stats/prometheus\n  \
             static_configs: [{{ targets: ['{envoy}'] }}]\n",
            rules.display()
        );
        let path = directory.path().join("prometheus.yml");
        fs::write(&path, config)?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", path.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        let mut process = Process::start(command, &directory.path().join("output.log"))?;
        let end = Instant::now() + Duration::from_secs(40);
        while !is_scraped(address).await {
            if let Some(status) = process.ended() {
                bail!("Prometheus has ended ({status}): {}", process.output());
            }
            ensure!(Instant::now() < end, "Prometheus does not scrape: {}", process.output());
            sleep(Duration::from_millis(100)).await;
        }
        Ok(Self { address, _process: process, _directory: directory })
    }

    /// The series that a query has now. An error holds Prometheus' own words.
    pub async fn query(&self, query: &str) -> Result<Vec<Value>> {
        ask(self.address, &format!("query?query={}", percent(query))).await
    }
}

async fn is_scraped(address: SocketAddr) -> bool {
    let up = ask(address, "query?query=up").await.unwrap_or_default();
    up.first().and_then(|series| series.pointer("/value/1")).is_some_and(|value| value == "1")
}

async fn ask(address: SocketAddr, path: &str) -> Result<Vec<Value>> {
    let text = http::get(address, &format!("/api/v1/{path}")).await?.text();
    let json: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    json.pointer("/data/result").and_then(Value::as_array).cloned().with_context(|| text)
}

fn percent(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// One panel of a Grafana dashboard.
#[derive(Debug, Clone)]
pub struct Panel {
    /// What stands above it.
    pub title: String,
    /// Its queries, with values for the variables.
    pub queries: Vec<String>,
}

/// The panels of a dashboard, with the variables in their queries replaced as Grafana would: any `$job` and `$destination`,
/// and these `$__rate_interval` and `$__range`, durations such as `10s`.
pub fn panels(dashboard: &Value, rate_interval: &str, range: &str) -> Result<Vec<Panel>> {
    let panels = dashboard["panels"].as_array().context("no panels")?;
    panels
        .iter()
        .filter(|panel| panel["type"] != "row" && panel["type"] != "text")
        .map(|panel| {
            let title = panel["title"].as_str().context("a panel without a title")?.to_owned();
            let target = |target: &Value| {
                let query = target["expr"].as_str().with_context(|| format!("{title}: a target without expr"))?;
                let query = query
                    .replace("$__rate_interval", rate_interval)
                    .replace("$__range", range)
                    .replace("$job", ".*")
                    .replace("$destination", ".*");
                ensure!(!query.contains('$'), "{title}: an unknown variable in {query}");
                Ok(query)
            };
            let targets = panel["targets"].as_array().with_context(|| format!("{title}: no targets"))?;
            Ok(Panel { queries: targets.iter().map(target).collect::<Result<_>>()?, title })
        })
        .collect()
}

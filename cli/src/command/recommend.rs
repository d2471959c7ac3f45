//! `idleguard recommend`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use idleguard_cli::recommend::{Style, as_json, recommend, written};
use idleguard_core::timeout::Margin;
use tokio::net::TcpStream;

use super::margin;

/// Say which idle_timeout each measured cluster should have, and print the patch
///
/// For each cluster whose far end a scout (or a destination that learns) has measured: the idle_timeout in use, what was measured,
/// what to use, and the patch. The output is YAML, in which all but the patches is a comment.
///
/// The exit code is 1 if a timeout in use is above the measured one (a gate for a pipeline), 0 if none is, 2 if what is read makes no
/// sense or nothing has been measured.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  idleguard recommend --admin http://127.0.0.1:9901
  idleguard recommend --admin http://127.0.0.1:9901 --format istio | kubectl apply -f -
  idleguard recommend --config-dump dump.json --metrics stats.txt")]
pub(crate) struct Arguments {
    /// Envoy's admin interface
    #[arg(long, value_name = "URL", required_unless_present_all = ["config_dump", "metrics"])]
    admin: Option<String>,
    /// A saved /config_dump instead
    #[arg(long, value_name = "FILE")]
    config_dump: Option<PathBuf>,
    /// Saved /stats or /stats/prometheus instead
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// What to take off the timeout
    #[arg(long, value_name = "MARGIN", value_parser = margin, default_value = "10%")]
    margin: Margin,
    /// How to write the patches
    #[arg(long, value_enum, default_value_t = Format::Envoy)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// What to put into the cluster
    Envoy,
    /// `DestinationRule`s
    Istio,
    /// `BackendTrafficPolicy`s
    EnvoyGateway,
    /// For programs: a list
    Json,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let read = |file: &Option<PathBuf>, path: &str| match (file, &arguments.admin) {
        (Some(file), _) => read_file(file),
        (None, Some(admin)) => fetch(admin, path),
        (None, None) => bail!("--admin, or both --config-dump and --metrics"),
    };
    let dump = read(&arguments.config_dump, "/config_dump")?;
    let dump = serde_json::from_str(&dump).context("the config dump is no JSON")?;
    let (found, notes) = recommend(&dump, &read(&arguments.metrics, "/stats?filter=idleguard")?, arguments.margin)?;
    let mut out = io::stdout().lock();
    let style = match arguments.format {
        Format::Json => {
            writeln!(out, "{:#}", serde_json::Value::from_iter(found.iter().map(as_json)))?;
            notes.iter().for_each(|note| anstream::eprintln!("{note}"));
            None
        }
        Format::Envoy => Some(Style::Envoy),
        Format::Istio => Some(Style::Istio),
        Format::EnvoyGateway => Some(Style::EnvoyGateway),
    };
    if let Some(style) = style {
        notes.iter().try_for_each(|note| writeln!(out, "# {note}"))?;
        for (at, one) in found.iter().enumerate() {
            write!(out, "{}{}", if at > 0 { "---\n" } else { "" }, written(one, style))?;
        }
    }
    Ok(if found.iter().any(|one| one.is_unsafe()) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn read_file(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// More than this is no answer of Envoy's.
const LARGEST: usize = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(60);

fn fetch(admin: &str, path: &str) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let whole = async { tokio::time::timeout(PATIENCE, get(admin, path)).await.context("no answer")? };
    runtime.block_on(whole).with_context(|| format!("{}{path}", admin.trim_end_matches('/')))
}

async fn get(admin: &str, path: &str) -> Result<String> {
    let uri: Uri = admin.parse()?;
    let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else { bail!("want http://HOST:PORT") };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
    let driven = tokio::spawn(connection);
    let request = Request::get(path).header("host", authority.as_str()).body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    if answer.status() != StatusCode::OK {
        bail!("{}", answer.status());
    }
    let body = Limited::new(answer.into_body(), LARGEST).collect().await.map_err(anyhow::Error::from_boxed)?;
    driven.abort();
    Ok(String::from_utf8(body.to_bytes().into())?)
}

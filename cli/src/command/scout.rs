//! `idleguard scout`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use idleguard_cli::scout::{Options, measure};
use idleguard_core::timeout::Margin;

use super::{duration, margin};

/// Measure a load balancer's idle timeout from here, without an Envoy
///
/// Two connections are opened and asked (HEAD; any answer will do). One then waits, the other is asked in between, until the far end
/// has let go of an idle connection twice in a way that only an idle timeout explains. That takes up to three times the timeout, or
/// 25 times where the far end forgets without a word. Standard error says what is being waited for; standard output is the result.
///
/// The exit code is 0 if it is known what becomes of an idle connection, 1 if it could not be found out, 2 if the far end can't be
/// reached or an argument is wrong.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  idleguard scout https://api.example.com/healthz
  idleguard scout http://10.0.9.1:8080/ --max-wait 10m
  idleguard scout https://api.example.com/ --format json | jq .lb_idle_timeout_ms")]
pub(crate) struct Arguments {
    /// http:// or https://, a host, and the path of the requests
    url: String,
    /// Don't wait longer than this on one connection
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1h")]
    max_wait: Duration,
    /// Stop after this, whatever is known [default: never]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    max_time: Option<Duration>,
    /// What to take off the timeout for the idle_timeout to use
    #[arg(long, value_name = "MARGIN", value_parser = margin, default_value = "10%")]
    margin: Margin,
    /// Connect to another host and port than the URL's
    #[arg(long, value_name = "HOST:PORT")]
    connect_to: Option<String>,
    /// Speak HTTP/2: by ALPN, or to http:// with prior knowledge
    #[arg(long)]
    http2: bool,
    /// Trust the certificate authorities in this PEM file instead of the system's
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Take any certificate: nothing secret is sent
    #[arg(long, conflicts_with = "cacert")]
    insecure: bool,
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Don't say what is being waited for
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs: one object, with lb_idle_timeout_ms and kind
    Json,
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let options = Options {
        url: arguments.url,
        connect_to: arguments.connect_to,
        is_http2: arguments.http2,
        ca_file: arguments.cacert,
        is_insecure: arguments.insecure,
        max_wait: arguments.max_wait,
        max_time: arguments.max_time,
    };
    let mut progress = Progress::new(arguments.quiet);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await // no signals here: it ends by them as any program does
        }
    };
    let report = runtime.block_on(measure(&options, interrupt, |line, known| progress.show(line, known)));
    progress.clear();
    let report = report?;
    let result = match arguments.format {
        Format::Text => report.text(arguments.margin),
        Format::Json => format!("{:#}", report.json(arguments.margin)),
    };
    writeln!(io::stdout(), "{result}")?;
    Ok(if report.unknown_for.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// On a terminal one line that is written over; elsewhere a line whenever something new is known.
struct Progress {
    is_quiet: bool,
    is_terminal: bool,
    told: String,
}

impl Progress {
    fn new(is_quiet: bool) -> Self {
        Self { is_quiet, is_terminal: io::stderr().is_terminal(), told: String::new() }
    }

    fn show(&mut self, line: &str, known: &str) {
        let now = if self.is_terminal { line } else { known };
        if self.is_quiet || self.told == now {
            return;
        }
        now.clone_into(&mut self.told);
        // What can't be shown is not worth failing for.
        let _ = if self.is_terminal {
            write!(io::stderr(), "\r\u{1b}[2K{line}").and_then(|()| io::stderr().flush())
        } else {
            writeln!(io::stderr(), "{line}")
        };
    }

    fn clear(&self) {
        if self.is_terminal && !self.told.is_empty() {
            let _ = write!(io::stderr(), "\r\u{1b}[2K");
        }
    }
}

//! The command-line tool `idleguard`.

mod command;

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{fs, io};

use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use idleguard_cli::check::{Finding, Severity, Surroundings, check};
use idleguard_cli::document::Document;
use idleguard_cli::explain::Library;
use idleguard_cli::inject::{Request, ScoutRequest, inject, remove};
use idleguard_cli::{kind, schema};
use similar::TextDiff;

use self::command::{duration, recommend, scout};

const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const NOTE: Style = AnsiColor::Cyan.on_default().bold();
const BOLD: Style = Style::new().bold();

/// Finds out a load balancer's idle timeout, puts idleguard into an Envoy bootstrap, and finds the mistakes in one
#[derive(Parser)]
#[command(name = "idleguard", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  idleguard scout https://api.example.com/healthz
  idleguard inject envoy.yaml --cluster payments --output guarded.yaml
  envoy -c guarded.yaml
  idleguard check guarded.yaml")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Inject(InjectArguments),
    Check(CheckArguments),
    Scout(scout::Arguments),
    Recommend(recommend::Arguments),
    /// Print the JSON Schema of the plugin configuration
    Schema,
    /// Explain idleguard's options to those who know a client library's
    #[command(after_help = "Examples:
  idleguard explain reactor-netty
  idleguard explain --error 'NoHttpResponseException: api.example.com:443 failed to respond'")]
    Explain {
        /// The library
        #[arg(required_unless_present = "error")]
        library: Option<Library>,
        /// An error's text, instead: of the libraries that say so when a connection is stale
        #[arg(long, value_name = "TEXT", conflicts_with = "library")]
        error: Option<String>,
    },
    /// Print a shell's completions
    #[command(after_help = "Examples:
  idleguard completions bash > /etc/bash_completion.d/idleguard
  idleguard completions zsh > \"${fpath[1]}/_idleguard\"
  idleguard completions fish > ~/.config/fish/completions/idleguard.fish")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Put idleguard into a bootstrap, for the given clusters, or take it out
///
/// The result goes to standard output, or where --output says. What stands in the file stays as it is, comments, order and style
/// included; where that is impossible (a YAML alias stands where something goes), the file is written anew without comments, and
/// a warning says so. JSON stays JSON. Running it twice changes nothing.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  idleguard inject envoy.yaml --cluster payments --diff
  idleguard inject envoy.yaml --cluster payments --cluster orders --lb-idle-timeout 60s --output guarded.yaml
  idleguard inject envoy.yaml --cluster payments --trusted-proxies 10.0.0.0/8 --wasm /etc/envoy/idleguard.wasm
  idleguard inject envoy.yaml --cluster payments --scout --scout-path /healthz
  idleguard inject guarded.yaml --remove")]
struct InjectArguments {
    /// The bootstrap, YAML or JSON; - for standard input
    file: PathBuf,
    /// The cluster to guard, as the routes name it; may be given several times
    #[arg(long, value_name = "NAME", required_unless_present = "remove")]
    cluster: Vec<String>,
    /// The idle_timeouts of its lanes [default: 54s,4s,900ms; with --lb-idle-timeout that less 10 %, and those below]
    #[arg(long, value_name = "DURATION", value_delimiter = ',')]
    lanes: Option<Vec<String>>,
    /// The far end's idle timeout, such as 60s [default: learn it]
    #[arg(long, value_name = "DURATION")]
    lb_idle_timeout: Option<String>,
    /// Addresses and blocks of the proxies in front, whose forwarding headers are believed [default: headers are left alone]
    #[arg(long, value_name = "BLOCK", value_delimiter = ',')]
    trusted_proxies: Option<Vec<String>>,
    /// Where Envoy finds the filter [default: the one that is configured, or idleguard.wasm in Envoy's working directory]
    #[arg(long, value_name = "PATH")]
    wasm: Option<String>,
    /// Give routes to the cluster that have no retry policy one: once, after a reset, for idempotent methods
    #[arg(long)]
    retries: bool,
    /// Put in a scout alone, which finds out the far end's idle timeout; with --lanes both
    #[arg(long)]
    scout: bool,
    /// The path of the scout's requests [default: /]
    #[arg(long, value_name = "PATH", requires = "scout")]
    scout_path: Option<String>,
    /// The authority of the scout's requests [default: the cluster's name]
    #[arg(long, value_name = "HOST", requires = "scout")]
    scout_host: Option<String>,
    /// Take out what inject has put in, for the given clusters or for all
    #[arg(long, conflicts_with_all = ["lanes", "lb_idle_timeout", "trusted_proxies", "wasm", "retries", "scout"])]
    remove: bool,
    /// Print a unified diff instead of the result
    #[arg(long, conflicts_with = "output")]
    diff: bool,
    /// Write the result to this file; it may be the input
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Find the mistakes in a bootstrap
///
/// Checks every idleguard configuration with the filter's own code, and what ties the filters, clusters and listeners together.
/// The exit code is 1 if there are errors, 2 if a file can't be read. Each id is explained in docs/findings.md.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  idleguard check envoy.yaml
  idleguard check envoy.yaml --front-lb-idle-timeout 60s
  idleguard check envoy.yaml --format json | jq '.findings[].id'")]
struct CheckArguments {
    /// The bootstrap, or a file of discovered extensions; - for standard input
    file: PathBuf,
    /// The idle timeout of the load balancer in front of this Envoy
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    front_lb_idle_timeout: Option<Duration>,
    /// The version of this Envoy, such as 1.36: some findings are of older ones only
    #[arg(long, value_name = "VERSION", value_parser = version)]
    envoy_version: Option<(u32, u32)>,
    /// How to print the findings
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs: {"findings": [...], "errors": N, "warnings": N}
    Json,
}

fn version(text: &str) -> Result<(u32, u32), String> {
    let mut numbers = text.trim_start_matches('v').splitn(3, '.').map(|part| part.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => Ok((major, minor)),
        _ => Err("want a version such as 1.36 or 1.36.4".to_owned()),
    }
}

/// More than this is no configuration that a person wrote.
const LARGEST: u64 = 64 * 1024 * 1024;

fn main() -> ExitCode {
    let run = match Arguments::parse().command {
        Command::Inject(arguments) => run_inject(&arguments),
        Command::Check(arguments) => run_check(&arguments),
        Command::Scout(arguments) => scout::run(arguments),
        Command::Recommend(arguments) => recommend::run(&arguments),
        Command::Schema => print_schema(),
        Command::Explain { library, error } => explain(library, error.as_deref()),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "idleguard", &mut io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    run.unwrap_or_else(|error| {
        // A reader who has seen enough (`| head`) is no failure.
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        anstream::eprintln!("{ERROR}error{ERROR:#}: {error:#}");
        ExitCode::from(2)
    })
}

fn read(file: &Path) -> Result<Document> {
    let (mut text, name) = (String::new(), file.display().to_string());
    let reader: Box<dyn Read> = match file == Path::new("-") {
        true => Box::new(io::stdin()),
        false => Box::new(fs::File::open(file).with_context(|| format!("cannot read {name}"))?),
    };
    reader.take(LARGEST + 1).read_to_string(&mut text).with_context(|| format!("cannot read {name}"))?;
    if text.len() as u64 > LARGEST {
        bail!("{name} is larger than {} MiB", LARGEST / 1024 / 1024);
    }
    let document = Document::parse(&text).with_context(|| name.clone())?;
    if let Some(line) = document.ignored_from() {
        anstream::eprintln!(
            "{WARNING}warning{WARNING:#}: {name}:{line}: a second document; Envoy reads the first alone"
        );
    }
    Ok(document)
}

// === inject ===

fn run_inject(arguments: &InjectArguments) -> Result<ExitCode> {
    let original = read(&arguments.file)?;
    kind::expect_bootstrap(&original).with_context(|| arguments.file.display().to_string())?;
    let mut document = original.clone();
    let mut notes = Vec::new();
    if arguments.remove && arguments.cluster.is_empty() {
        notes.extend(remove(&mut document, None)?);
    }
    for cluster in &arguments.cluster {
        if arguments.remove {
            notes.extend(remove(&mut document, Some(cluster))?);
        } else {
            notes.extend(inject(&mut document, &request(arguments, cluster))?);
        }
    }
    let changed = document.text() != original.text();
    if changed && let Some(reason) = document.comments_lost() {
        let same = arguments.output.as_ref().is_some_and(|output| is_same_file(output, &arguments.file));
        if same {
            bail!(
                "comments would be lost ({reason}), so {} is not overwritten: choose another --output",
                arguments.file.display()
            );
        }
        anstream::eprintln!("{WARNING}warning{WARNING:#}: the file was written anew, without its comments: {reason}");
    }
    if changed {
        for note in &notes {
            anstream::eprintln!("{NOTE}note{NOTE:#}: {note}");
        }
    } else {
        anstream::eprintln!("{NOTE}note{NOTE:#}: nothing to change");
    }
    warn_of_findings(&document);
    if arguments.diff {
        print_diff(&arguments.file.display().to_string(), original.text(), document.text())?;
    } else if let Some(output) = &arguments.output {
        write_whole(output, &arguments.file, document.text())
            .with_context(|| format!("cannot write {}", output.display()))?;
    } else {
        io::stdout().write_all(document.text().as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn request(arguments: &InjectArguments, cluster: &str) -> Request {
    let scout = ScoutRequest { path: arguments.scout_path.clone(), host: arguments.scout_host.clone() };
    Request {
        cluster: cluster.to_owned(),
        lanes: arguments.lanes.clone(),
        lb_idle_timeout: arguments.lb_idle_timeout.clone(),
        trusted_proxies: arguments.trusted_proxies.clone(),
        wasm: arguments.wasm.clone(),
        retries: arguments.retries,
        scout: arguments.scout.then_some(scout),
    }
}

/// The result may hold mistakes that were there before.
fn warn_of_findings(document: &Document) {
    for finding in check(document, Surroundings::default()) {
        anstream::eprintln!("{WARNING}warning{WARNING:#}: {}: {} [{}]", finding.path, finding.what, finding.id);
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// All or nothing: a full disk must not leave half a configuration. A symlink stays one, and what it leads to is written. A new
/// file gets the input's mode: there may be secrets in it. What is no file (`/dev/null`, `/dev/stdout`, a pipe) is written to, not replaced.
fn write_whole(path: &Path, input: &Path, text: &str) -> Result<()> {
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        return Ok(fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())?);
    }
    let target = match fs::symlink_metadata(path) {
        Ok(_) => fs::canonicalize(path)?,
        Err(_) => path.to_owned(),
    };
    let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut beside = tempfile::NamedTempFile::new_in(directory)?;
    beside.write_all(text.as_bytes())?;
    if let Ok(like) = fs::metadata(&target).or_else(|_| fs::metadata(input)).map(|metadata| metadata.permissions()) {
        beside.as_file().set_permissions(like)?;
    }
    beside.as_file().sync_all()?;
    beside.persist(&target)?;
    Ok(())
}

fn print_diff(name: &str, old: &str, new: &str) -> Result<()> {
    let diff = TextDiff::from_lines(old, new);
    let text = diff.unified_diff().context_radius(3).header(&format!("a/{name}"), &format!("b/{name}")).to_string();
    let mut out = anstream::stdout().lock();
    for line in text.lines() {
        let style = match line.chars().next() {
            _ if line.starts_with("+++") || line.starts_with("---") => BOLD,
            Some('+') => AnsiColor::Green.on_default(),
            Some('-') => AnsiColor::Red.on_default(),
            Some('@') => AnsiColor::Cyan.on_default(),
            _ => Style::new(),
        };
        writeln!(out, "{style}{line}{style:#}")?;
    }
    Ok(())
}

// === check ===

fn run_check(arguments: &CheckArguments) -> Result<ExitCode> {
    let document = read(&arguments.file)?;
    kind::expect_checkable(&document).with_context(|| arguments.file.display().to_string())?;
    let surroundings =
        Surroundings { front_lb_idle_timeout: arguments.front_lb_idle_timeout, envoy: arguments.envoy_version };
    let findings = check(&document, surroundings);
    let count = |severity: Severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    match arguments.format {
        Format::Json => {
            let json = serde_json::json!({ "findings": findings, "errors": errors, "warnings": warnings });
            writeln!(io::stdout(), "{json:#}")?;
        }
        Format::Text => {
            let mut out = anstream::stdout().lock();
            for finding in &findings {
                print_finding(&mut out, &arguments.file, finding)?;
            }
            if !findings.is_empty() {
                writeln!(out, "{}, {}", counted(errors, "error"), counted(warnings, "warning"))?;
            } else if io::stdout().is_terminal() {
                writeln!(out, "nothing found")?;
            }
        }
    }
    Ok(if errors > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_finding(out: &mut impl Write, file: &Path, finding: &Finding) -> io::Result<()> {
    let (style, word) = match finding.severity {
        Severity::Error => (ERROR, "error"),
        Severity::Warning => (WARNING, "warning"),
    };
    let place = match (finding.line, finding.column) {
        (Some(line), Some(column)) => format!("{}:{line}:{column}", file.display()),
        _ => file.display().to_string(),
    };
    writeln!(out, "{place}: {style}{word}{style:#} {BOLD}[{}]{BOLD:#} {}", finding.id, finding.what)?;
    writeln!(out, "  at   {}", finding.path)?;
    writeln!(out, "  why  {}", finding.why)?;
    writeln!(out, "  do   {}\n", finding.remedy)
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

// === the rest ===

fn print_schema() -> Result<ExitCode> {
    writeln!(io::stdout(), "{:#}", schema::schema())?;
    Ok(ExitCode::SUCCESS)
}

fn explain(library: Option<Library>, error: Option<&str>) -> Result<ExitCode> {
    let said = error.map(Library::that_say).unwrap_or_default();
    if let (Some(text), true) = (error, said.is_empty()) {
        bail!("no library here says {text:?} when a connection is stale; docs/clients.md has what was seen");
    }
    let mut out = anstream::stdout().lock();
    for library in library.into_iter().chain(said) {
        let explanation = library.explanation();
        writeln!(out, "{BOLD}{}{BOLD:#}\n{}\n", explanation.title, explanation.source)?;
        match explanation.errors {
            [] => writeln!(out, "A stale connection does not show: the request is sent again\n")?,
            errors => writeln!(out, "A stale connection shows as: {}\n", errors.join("; "))?,
        }
        writeln!(
            out,
            "{}\nIn the application, whose pool leads to Envoy now: {}",
            explanation.table(),
            explanation.then
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

//! The scripted load balancer on its own, for tests in other languages: says its address, then takes a new mode a line from the
//! standard input, and ends with it.
//!
//! `stub_lb --mode fin:4s`, and then `stable`, `rst:900ms`, `silent-rst:4s`, `swallow:4s` or `close` (every connection, by FIN); it
//! answers each line with `ok`, or what is wrong with it.

use std::{
    io::{BufRead, Write},
    net::SocketAddr,
    process::ExitCode,
};

use clap::Parser;
use idleguard_harness::{
    arguments,
    stub_lb::{Mode, Options, StubLb},
};

/// A load balancer that drops idle connections.
#[derive(Parser)]
struct Arguments {
    /// stable, or fin, rst, silent-rst or swallow with the idle timeout, such as fin:4s
    #[arg(long, value_parser = mode, default_value = "stable")]
    mode: Mode,
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Speak TLS, with a certificate of its own for localhost
    #[arg(long)]
    tls: bool,
}

fn mode(text: &str) -> Result<Mode, String> {
    let (name, timeout) = text.split_once(':').unwrap_or((text, ""));
    let timeout = || arguments::duration(timeout);
    match name {
        "stable" => Ok(Mode::Stable),
        "fin" => Ok(Mode::FinAt(timeout()?)),
        "rst" => Ok(Mode::RstAt(timeout()?)),
        "silent-rst" => Ok(Mode::SilentRst(timeout()?)),
        "swallow" => Ok(Mode::SilentSwallow(timeout()?)),
        _ => Err(format!("{name:?} is none of stable, fin, rst, silent-rst, swallow")),
    }
}

fn run(arguments: Arguments) -> std::io::Result<()> {
    let tls = arguments.tls.then(|| vec!["http/1.1"]);
    let lb = StubLb::with(Options { mode: arguments.mode, listen: arguments.listen, tls, ..Options::default() })?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", lb.address())?;
    for line in std::io::stdin().lock().lines() {
        match line?.trim() {
            "close" => {
                lb.close_all();
                writeln!(out, "ok")?;
            }
            text => match mode(text) {
                Ok(mode) => {
                    lb.set(mode);
                    writeln!(out, "ok")?;
                }
                Err(wrong) => writeln!(out, "{wrong}")?,
            },
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

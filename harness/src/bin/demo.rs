//! The same load through plain Envoy and through idleguard, in the same seconds, to load balancers that forget idle
//! connections silently; then a table.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;
use idleguard_harness::{
    arguments,
    envoy::{Config, Envoy, Options},
    load::{Load, Pattern, Report},
    process,
    stub_lb::{Counters, Mode, StubLb},
};

/// Compare plain Envoy with idleguard.
#[derive(Parser)]
struct Arguments {
    /// How long to send
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Clients on each side
    #[arg(long, default_value_t = 60)]
    clients: usize,
    /// The idle age at which the load balancers forget a connection
    #[arg(long, default_value = "2s", value_parser = arguments::duration)]
    lb_idle_timeout: Duration,
    /// Envoy's configuration [default: the project's envoy.yaml]
    #[arg(long)]
    envoy_yaml: Option<PathBuf>,
    /// The filter [default: the project's idleguard.wasm]
    #[arg(long)]
    wasm: Option<PathBuf>,
}

/// One side of the comparison: an Envoy, and a load balancer of its own, so that connections can be told apart.
struct Side {
    lb: StubLb,
    envoy: Envoy,
}

/// What came of it.
struct Outcome {
    report: Report,
    lb: Counters,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tokio::select! {
        result = demo(arguments) => match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("demo: {error:#}");
                ExitCode::FAILURE
            }
        },
        () = process::stop_signal() => ExitCode::FAILURE,
    }
}

async fn demo(arguments: Arguments) -> Result<()> {
    let timeout = arguments.lb_idle_timeout;
    let config = arguments::configuration(arguments.envoy_yaml, arguments.wasm)?.free_ports();
    let told = config.clone().lb_idle_timeout(&format!("{}ms", timeout.as_millis()));
    let plain = Side::start(config.without_idleguard(), timeout).await?;
    let guarded = Side::start(told, timeout).await?;

    println!(
        "{} clients on each side send POST requests for {} s, half of them in bursts with silences of up to {:?},",
        arguments.clients,
        arguments.seconds,
        timeout * 2
    );
    println!("half of them each at its own random times.");
    println!(
        "The LB forgets connections that were idle for {timeout:?}: it says nothing, and resets them when used.\n"
    );
    let duration = Duration::from_secs(arguments.seconds);
    let (plain, guarded) = tokio::join!(
        plain.measure(arguments.clients, timeout, duration),
        guarded.measure(arguments.clients, timeout, duration)
    );
    print!("{}", table(&plain, &guarded));
    Ok(())
}

impl Side {
    async fn start(config: Config, timeout: Duration) -> Result<Self> {
        let lb = StubLb::start(Mode::SilentRst(timeout));
        let envoy = Envoy::start(&config.upstream(lb.address()), Options::default()).await?;
        Ok(Self { lb, envoy })
    }

    async fn measure(&self, clients: usize, timeout: Duration, duration: Duration) -> Outcome {
        let gap = (Duration::ZERO, timeout * 2);
        let bursts = Load::post(self.envoy.ingress(), Pattern::Bursts { gap }).clients(clients.div_ceil(2));
        let scattered = Load::post(self.envoy.ingress(), Pattern::Scattered { gap }).clients(clients / 2);
        let (mut report, other) = tokio::join!(bursts.run(duration), scattered.run(duration));
        report.add(other);
        Outcome { report, lb: self.lb.counters() }
    }
}

fn table(plain: &Outcome, guarded: &Outcome) -> String {
    let mut rows = vec![("requests".to_owned(), plain.report.requests, guarded.report.requests)];
    rows.push(("failed".to_owned(), plain.report.failed(), guarded.report.failed()));
    let mut kinds: Vec<_> = plain.report.failures.keys().chain(guarded.report.failures.keys()).copied().collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        rows.push((format!("  {kind}"), plain.report.count(kind), guarded.report.count(kind)));
    }
    rows.push(("connections opened to the LB".to_owned(), plain.lb.opened, guarded.lb.opened));
    let mut text = format!("{:<30}{:>14}{:>14}\n", "", "plain Envoy", "idleguard");
    for (what, plain, guarded) in rows {
        text.push_str(&format!("{what:<30}{plain:>14}{guarded:>14}\n"));
    }
    if let Some(example) = plain.report.examples.first() {
        text.push_str(&format!("\nA failure through plain Envoy: {}\n", example.detail.trim()));
    }
    if let Some(example) = guarded.report.examples.first() {
        text.push_str(&format!("\nA failure through idleguard: {}\n", example.detail.trim()));
    }
    text
}

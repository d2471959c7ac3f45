//! Runs the project's Envoy with idleguard in front of a load balancer: yours, or an embedded one that drops idle
//! connections in the worst way.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, bail};
use clap::Parser;
use idleguard_harness::{
    arguments,
    envoy::{Config, Envoy, Options},
    http, process,
    stub_lb::{Mode, StubLb},
};
use tokio::time::sleep;

/// Run Envoy with idleguard until Ctrl-C.
#[derive(Parser)]
struct Arguments {
    /// Your load balancer (plain HTTP); without it, an embedded one is started
    #[arg(long, value_parser = arguments::host_port)]
    upstream: Option<(String, u16)>,
    /// The load balancer's idle timeout [default: the one in the configuration; 3s for the embedded one]
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    lb_idle_timeout: Option<String>,
    /// Envoy's configuration [default: the project's envoy.yaml]
    #[arg(long)]
    envoy_yaml: Option<PathBuf>,
    /// The filter [default: the project's idleguard.wasm]
    #[arg(long)]
    wasm: Option<PathBuf>,
    /// Envoy's worker threads
    #[arg(long, default_value_t = 2)]
    concurrency: u32,
    /// Envoy's log level
    #[arg(long, default_value = "info")]
    log_level: String,
}

/// `learn` is the filter's to understand or to refuse.
fn timeout(text: &str) -> Result<String, String> {
    if text != "learn" {
        arguments::duration(text)?;
    }
    Ok(text.to_owned())
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tokio::select! {
        result = run(arguments) => match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("run: {error:#}");
                ExitCode::FAILURE
            }
        },
        // What `run` has started is ended as it is dropped.
        () = process::stop_signal() => {
            println!("\nstopped");
            ExitCode::SUCCESS
        }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    let mut config = arguments::configuration(arguments.envoy_yaml, arguments.wasm)?;
    must_be_free(&config)?;

    let mut embedded = None;
    let lb = match &arguments.upstream {
        Some((host, port)) => {
            config = config.upstream_name(host, *port);
            if let Some(timeout) = &arguments.lb_idle_timeout {
                config = config.lb_idle_timeout(timeout);
            }
            format!("{host}:{port}")
        }
        None => {
            let text = arguments.lb_idle_timeout.as_deref().unwrap_or("3s");
            let timeout = arguments::duration(text).unwrap_or(Duration::from_secs(3));
            let lb = StubLb::start(Mode::SilentRst(timeout));
            config = config.upstream(lb.address()).lb_idle_timeout(text);
            let told =
                format!("{} (embedded; forgets idle connections after {timeout:?} without a word)", lb.address());
            embedded = Some(lb);
            told
        }
    };

    let options = Options { concurrency: arguments.concurrency, log_level: arguments.log_level, ..Options::default() };
    let mut envoy = Envoy::start(&config, options).await?;
    println!("idleguard is running.\n");
    println!("  listening  http://{}/", envoy.ingress());
    println!("  admin      http://{}/", envoy.admin());
    println!("  LB         {lb}\n");
    match http::get(envoy.ingress(), "/").await {
        Ok(answer) if answer.status.is_server_error() => {
            println!("  It serves, but the LB does not answer well: {} {}\n", answer.status, answer.text().trim());
        }
        Ok(answer) => println!("  It serves: GET / answers {}\n", answer.status),
        Err(error) => bail!("Envoy does not serve: {error:#}\n{}", envoy.log_tail()),
    }
    println!("Try in another terminal:\n{}", suggestions(&envoy, embedded.is_some()));
    println!("Ctrl-C ends it.");
    while envoy.is_running() {
        sleep(Duration::from_millis(200)).await;
    }
    bail!("Envoy has ended by itself:\n{}", envoy.log_tail())
}

/// Envoy shares its ports with other Envoys (`SO_REUSEPORT`), so a second one would take half of the first one's traffic
/// instead of failing.
fn must_be_free(config: &Config) -> Result<()> {
    for (what, path) in [
        ("Envoy's listener", "static_resources/listeners/ingress/address/socket_address"),
        ("Envoy's admin interface", "admin/address/socket_address"),
    ] {
        let Some(socket) = config.get(path) else { continue };
        let (host, port) = (socket["address"].as_str().unwrap_or_default(), socket["port_value"].as_u64().unwrap_or(0));
        let Ok(address) = format!("{host}:{port}").parse::<SocketAddr>() else { continue };
        if let Err(error) = TcpListener::bind(address) {
            bail!("{address}, for {what}, is taken ({error}): is another `make run` running? End it with Ctrl-C first");
        }
    }
    Ok(())
}

fn suggestions(envoy: &Envoy, embedded: bool) -> String {
    let (ingress, admin) = (envoy.ingress(), envoy.admin());
    let mut text = format!("  curl -i http://{ingress}/\n");
    if embedded {
        text.push_str(&format!(
            "  curl -s http://{ingress}/headers -H 'X-Forwarded-For: 6.6.6.6'    # what the application gets to see\n  \
             for i in 1 2 3; do curl -s -d hi http://{ingress}/; sleep 3.5; done   # each meets a dead connection without idleguard\n"
        ));
    }
    text.push_str(&format!(
        "  curl -s 'http://{admin}/stats?filter=idleguard'\n  \
         curl -s http://{admin}/stats/prometheus | grep idleguard\n"
    ));
    text
}

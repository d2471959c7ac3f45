//! Runs the project's Envoy with idleguard in front of a load balancer: yours, or an embedded one that drops idle
//! connections in the worst way, at an idle age that a request can change. Says which lane is in force whenever that changes.

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

/// The embedded load balancer's idle timeout, unless another is wanted, and what the suggestions make it fall to.
const EMBEDDED: Duration = Duration::from_secs(6);
const FALLS_TO: Duration = Duration::from_secs(2);

/// How often it is looked which lane is in force.
const LOOK: Duration = Duration::from_millis(500);

/// Run Envoy with idleguard until Ctrl-C.
#[derive(Parser)]
struct Arguments {
    /// Your load balancer (plain HTTP); without it, an embedded one is started
    #[arg(long, value_parser = arguments::host_port)]
    upstream: Option<(String, u16)>,
    /// The load balancer's idle timeout [default: the one in the configuration; the embedded one has 6s, and nobody is told]
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
            let timeout = arguments.lb_idle_timeout.as_deref().map(arguments::duration);
            let timeout = timeout.and_then(Result::ok).unwrap_or(EMBEDDED);
            let lb = StubLb::start(Mode::SilentRst(timeout));
            config = config.upstream(lb.address());
            if let Some(timeout) = &arguments.lb_idle_timeout {
                config = config.lb_idle_timeout(timeout);
            }
            let told =
                format!("{} (embedded; forgets idle connections after {timeout:?} without a word)", lb.address());
            embedded = Some((lb, timeout));
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
    println!("Try in another terminal:\n{}", suggestions(&envoy, embedded.as_ref().map(|(_, timeout)| *timeout)));
    println!("Ctrl-C ends it.\n");
    let mut last = None;
    while envoy.is_running() {
        let now = lane_in_force(&envoy).await;
        if now.is_some() && now != last {
            println!("{}", now.as_deref().unwrap_or_default());
            last = now;
        }
        sleep(LOOK).await;
    }
    bail!("Envoy has ended by itself:\n{}", envoy.log_tail())
}

/// What idleguard says of the destination, in words; none where it says nothing.
async fn lane_in_force(envoy: &Envoy) -> Option<String> {
    let stats = envoy.stats().await.ok()?;
    let millis = |name: &str| stats.get(&format!("wasmcustom.idleguard.destination.payments.{name}")).copied();
    let (limit, lane, timeout) =
        (millis("idle_limit_ms")?, millis("lane_idle_timeout_ms")?, millis("lb_idle_timeout_ms")?);
    let known = match timeout {
        0 => "the LB's idle timeout is not known".to_owned(),
        timeout => format!("the LB's idle timeout is {:?}", Duration::from_millis(timeout)),
    };
    let [limit, lane] = [limit, lane].map(Duration::from_millis);
    Some(format!("idleguard: {known}, the idle limit {limit:?}; in force: the lane of {lane:?}"))
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

fn suggestions(envoy: &Envoy, embedded: Option<Duration>) -> String {
    let (ingress, admin) = (envoy.ingress(), envoy.admin());
    let mut text = format!("  curl -i http://{ingress}/\n");
    if let Some(timeout) = embedded {
        let longer = timeout.as_secs_f64() + 0.5;
        text.push_str(&format!(
            "  curl -s http://{ingress}/headers -H 'X-Forwarded-For: 6.6.6.6'    # what the application gets to see\n  \
             for i in 1 2 3; do curl -s -d hi http://{ingress}/; sleep {longer}; done   # each meets a dead connection without idleguard\n"
        ));
        if timeout > FALLS_TO {
            text.push_str(&format!(
                "  curl -s 'http://{ingress}/lb?idle_timeout_ms={}'    # the LB's timeout falls; and now, a request now and then:\n  \
                 for i in 1 2 3 4 5 6; do curl -s -d hi http://{ingress}/; sleep 3; done\n",
                FALLS_TO.as_millis()
            ));
        }
    }
    text.push_str(&format!(
        "  curl -s 'http://{admin}/stats?filter=idleguard'\n  \
         curl -s http://{admin}/stats/prometheus | grep idleguard\n"
    ));
    text
}

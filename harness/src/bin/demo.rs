//! The same load through plain Envoy and through idleguard, in the same seconds: a live page, and then a table.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::Parser;
use idleguard_harness::{
    arguments,
    demo::{Comparison, Demo, LONGEST, Timeouts, page::Page},
    process,
};
use tokio::time::{interval, sleep};

/// How often the page is told what there is to see.
const FRAME: Duration = Duration::from_millis(200);

/// Compare plain Envoy with idleguard.
#[derive(Parser)]
struct Arguments {
    /// How long to send; as long as a browser looks on, again and again
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Clients on each side
    #[arg(long, default_value_t = 60)]
    clients: usize,
    /// The idle age at which the load balancers drop a connection, at first
    #[arg(long, default_value = "6s", value_parser = arguments::duration)]
    lb_idle_timeout: Duration,
    /// And what that falls to
    #[arg(long, default_value = "2s", value_parser = arguments::duration)]
    falls_to: Duration,
    /// The page's port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Envoy's configuration [default: the project's envoy.yaml]
    #[arg(long)]
    envoy_yaml: Option<PathBuf>,
    /// The filter [default: the project's idleguard.wasm]
    #[arg(long)]
    wasm: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match demo(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo(arguments: Arguments) -> Result<()> {
    let timeouts = Timeouts { first: arguments.lb_idle_timeout, then: arguments.falls_to };
    let config = arguments::configuration(arguments.envoy_yaml, arguments.wasm)?.free_ports();
    let (page, mut chosen) = Page::start(arguments.port).await?;
    let demo = tokio::select! {
        demo = Demo::start(&config, timeouts, arguments.clients) => demo?,
        () = process::stop_signal() => bail!("stopped"),
    };

    println!("Watch it live: http://{}/\n", page.address());
    println!(
        "{} clients on each side send POST requests, a quarter in bursts with silences of up to {:?}, the others each at its",
        arguments.clients,
        timeouts.first.mul_f64(LONGEST)
    );
    println!(
        "own random times. The LB forgets connections that were idle for {:?} without a word, and later for {:?}.",
        timeouts.first, timeouts.then
    );
    println!("idleguard is told neither. A table follows in {} s.\n", arguments.seconds);
    let show = async {
        let mut frames = interval(FRAME);
        loop {
            frames.tick().await;
            if page.viewers() > 0 {
                page.publish(&demo.snapshot().await);
            }
        }
    };
    let choose = async {
        while let Some(mode) = chosen.recv().await {
            demo.choose(&mode);
        }
    };
    tokio::select! {
        () = rounds(&demo, &page, Duration::from_secs(arguments.seconds)) => {}
        () = show => {}
        () = choose => {}
        () = process::stop_signal() => {}
    }
    page.publish(&demo.snapshot().await);
    page.end();
    sleep(FRAME).await; // for the last event to leave
    Ok(())
}

async fn rounds(demo: &Demo, page: &Page, duration: Duration) {
    let mut sum = Comparison::default();
    loop {
        sum.add(demo.round(duration).await);
        println!("{sum}");
        if page.viewers() == 0 {
            break;
        }
        println!("It goes on as long as the page is open; Ctrl-C ends it.\n");
    }
}

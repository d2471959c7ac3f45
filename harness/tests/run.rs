//! `run` serves, says when it is running already, and leaves nothing behind.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use idleguard_harness::{envoy::Config, http, process::Process, project};
use tokio::time::sleep;

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).expect("a free port").port()
}

fn run(directory: &Path, output: &str) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_run"));
    command.arg("--envoy-yaml").arg(directory.join("envoy.yaml"));
    Process::start(command, &directory.join(output)).expect("a process")
}

/// Waits until the port serves, or until nobody listens on it.
async fn becomes(address: SocketAddr, serving: bool) -> bool {
    let end = Instant::now() + Duration::from_secs(40);
    while Instant::now() < end {
        let served = http::get(address, "/").await.is_ok_and(|answer| answer.status == 200);
        let free = TcpListener::bind(address).is_ok();
        if (serving && served) || (!serving && free) {
            return true;
        }
        sleep(Duration::from_millis(100)).await;
    }
    false
}

#[tokio::test]
async fn one_runs_the_second_says_so_and_nothing_is_left() {
    let Some(_) = project::or_skip(project::envoy().and(project::wasm())) else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let (ingress, admin) = (free_port(), free_port());
    let config = Config::project().expect("envoy.yaml").ingress_port(ingress).admin_port(admin);
    std::fs::write(directory.path().join("envoy.yaml"), config.to_string()).expect("written");
    let address = (Ipv4Addr::LOCALHOST, ingress).into();

    let mut first = run(directory.path(), "first.log");
    assert!(becomes(address, true).await, "{}", first.output());
    let mut second = run(directory.path(), "second.log");
    assert!(!second.wait(Duration::from_secs(10)).expect("its end").success());
    assert!(second.output().contains("is another `make run` running?"), "{}", second.output());
    assert!(http::get(address, "/").await.is_ok(), "the first one is not disturbed");
    assert!(first.terminate(Duration::from_secs(10)).expect("its end").success());
    assert!(first.output().contains(&format!("curl -i http://127.0.0.1:{ingress}/")), "{}", first.output());
    assert!(becomes(address, false).await, "Envoy has ended with it");

    let killed = run(directory.path(), "killed.log");
    assert!(becomes(address, true).await, "{}", killed.output());
    drop(killed); // by SIGKILL: it has no chance to clean up
    assert!(becomes(address, false).await, "the kernel has ended Envoy");
}

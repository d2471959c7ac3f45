//! `make soak` in small, and `make load`: what they do is done, and nothing is lost.

use std::{process::Command, time::Duration};

use idleguard_harness::{envoy::Config, project, soak};

#[tokio::test]
async fn everything_at_once_for_half_a_minute() {
    let Some(_) = project::or_skip(project::envoy().and(project::wasm())) else { return };
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    let config = Config::project().expect("envoy.yaml");
    let report = soak::run(config, Duration::from_secs(seconds), 1).await.expect("a soak");
    println!("{report}");
    assert_eq!(report.faults(), Vec::<String>::new());
    assert!(report.happened.0 > 0 && report.happened.1 > 0 && report.happened.2 > 1, "{report}");
    assert!(report.done.values().sum::<u64>() > 100 && report.done.len() == 10, "{report}");
}

#[test]
fn hundreds_of_connections_at_once_lose_nothing() {
    let Some(_) = project::or_skip(project::envoy().and(project::wasm())) else { return };
    let output = Command::new(env!("CARGO_BIN_EXE_load")).args(["--connections", "600"]).output().expect("the load");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
    assert!(said.contains("| plain Envoy | 0 |") && said.contains("| idleguard | 0 |"), "{said}");
}

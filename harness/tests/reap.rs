//! `make load` in small: nothing fails beside a reap, and the far end drops nothing first. How long requests wait depends on
//! the machine, and is not judged here.

use std::process::Command;

use idleguard_harness::project;

#[test]
fn a_reap_of_hundreds_loses_nothing() {
    let Some(_) = project::or_skip(project::envoy().and(project::wasm())) else { return };
    let arguments = ["--connections", "600", "--reaped", "300", "--rounds", "1", "--bar", "1000", "--no-control"];
    let output = Command::new(env!("CARGO_BIN_EXE_load")).args(arguments).output().expect("the load");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
    assert!(said.contains("600 exchanges at once"), "all at once");
    assert!(said.lines().any(|line| line.starts_with("| 3") || line.starts_with("| 2")), "hundreds were reaped");
}

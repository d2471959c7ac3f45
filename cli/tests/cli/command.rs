//! The binary: what goes where, and with which exit code.

use std::fs;
use std::process::{Command, Output};

use super::path;

fn idleguard(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_idleguard")).args(arguments).output().expect("the tool runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn file(name: &str) -> String {
    path(name).to_str().expect("UTF-8").to_owned()
}

#[test]
fn inject_prints_the_result_or_a_diff_or_writes_a_file() {
    let input = file("bootstraps/static.yaml");
    let printed = idleguard(&["inject", &input, "--cluster", "payments"]);
    assert!(printed.status.success());
    let result = text(&printed.stdout);
    assert!(result.starts_with("# The edge of the shop.") && result.contains("payments-guard"), "{result}");
    assert!(text(&printed.stderr).contains("note: "), "what changes for the operator is told, without colours here");

    let diff = text(&idleguard(&["inject", &input, "--cluster", "payments", "--diff"]).stdout);
    assert!(diff.starts_with(&format!("--- a/{input}\n+++ b/{input}\n@@ ")) && !diff.contains('\u{1b}'), "{diff}");
    assert!(diff.contains("\n+    - name: payments-lb") || diff.contains("payments-lb"), "{diff}");

    let directory = tempfile::tempdir().expect("a directory");
    let output = directory.path().join("envoy.yaml");
    fs::copy(&input, &output).expect("a copy");
    let own = output.to_str().expect("UTF-8");
    for told in ["note: ", "nothing to change"] {
        let done = idleguard(&["inject", own, "--cluster", "payments", "--output", own]);
        assert!(done.status.success() && done.stdout.is_empty() && text(&done.stderr).contains(told), "{done:?}");
        assert_eq!(fs::read_to_string(&output).expect("written"), result);
    }
    assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 1, "nothing else is left there");
    assert!(idleguard(&["inject", own, "--cluster", "payments", "--diff"]).stdout.is_empty());
}

#[test]
fn comments_that_would_be_lost_are_not_overwritten() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("envoy.yaml");
    let aliased = fs::read_to_string(file("bootstraps/weighted.yaml"))
        .expect("read")
        .replace("          http_filters:\n", "          # kept?\n          http_filters: &filters\n");
    let extra = "!ignore copy: { http_filters: &a [x] }\n";
    fs::write(
        &path,
        format!("{extra}{aliased}").replace("clusters:\n  - name: payments", "clusters: &all\n  - name: payments"),
    )
    .expect("written");
    let own = path.to_str().expect("UTF-8");
    let done = idleguard(&["inject", own, "--cluster", "payments", "--output", own]);
    // An anchor at a list is no obstacle by itself: the text is edited in place.
    assert!(done.status.success(), "{done:?}");
    let text_now = fs::read_to_string(&path).expect("read");
    assert!(text_now.contains("# kept?") && text_now.contains("&filters"), "{text_now}");

    let shared = "b: &shared\n- name: x\n";
    let in_the_way = fs::read_to_string(file("bootstraps/static.yaml"))
        .expect("read")
        .replace("static_resources:", &format!("bootstrap_extensions: &none []\nflags_path: ''\nlayered_runtime: {{ layers: *none }}\n# {shared}static_resources:").replace("\n- name: x\n", "\n"));
    fs::write(&path, in_the_way).expect("written");
    let done = idleguard(&["inject", own, "--cluster", "payments", "--output", own]);
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(text(&done.stderr).contains("comments would be lost"), "{done:?}");
    let printed = idleguard(&["inject", own, "--cluster", "payments"]);
    assert!(printed.status.success() && text(&printed.stderr).contains("without its comments"), "{printed:?}");
}

#[test]
fn check_tells_by_its_exit_code() {
    for (name, code) in [("fine.yaml", 0), ("mistakes/differing-policies.yaml", 0), ("mistakes/different-vms.yaml", 1)]
    {
        let done = idleguard(&["check", &file(name)]);
        assert_eq!(done.status.code(), Some(code), "{name}: {done:?}");
    }
    assert!(idleguard(&["check", &file("fine.yaml")]).stdout.is_empty(), "silent");
    let told = text(&idleguard(&["check", &file("mistakes/different-vms.yaml")]).stdout);
    assert!(
        told.contains(": error [different-vms] ") && told.contains("\n  at   static_resources.listeners[1]."),
        "{told}"
    );
    assert!(told.ends_with("\n1 error, 0 warnings\n"), "{told}");
    let front = idleguard(&["check", &file("mistakes/front-lb-idle-timeout.yaml"), "--front-lb-idle-timeout", "60s"]);
    assert_eq!(front.status.code(), Some(1));
    let json = idleguard(&["check", &file("mistakes/different-vms.yaml"), "--format", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((&json["errors"], &json["findings"][0]["id"]), (&1.into(), &"different-vms".into()));
    assert!(json["findings"][0]["line"].is_u64(), "{json}");
    let missing = idleguard(&["check", "/nowhere.yaml"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("cannot read /nowhere.yaml"));
}

#[test]
fn the_rest_prints() {
    for (arguments, told) in [
        (&["--version"][..], "idleguard 0.1.0"),
        (&["inject", "--help"], "Examples:\n  idleguard inject envoy.yaml"),
        (&["schema"], "\"$schema\""),
        (&["explain", "reactor-netty"], "maxIdleTime"),
        (&["explain", "apache-httpclient"], "setTimeToLive"),
        (&["explain", "go"], "IdleConnTimeout"),
        (&["explain", "node"], "keepAliveTimeout"),
        (&["completions", "bash"], "_idleguard()"),
        (&["completions", "zsh"], "#compdef idleguard"),
    ] {
        let done = idleguard(arguments);
        assert!(done.status.success() && text(&done.stdout).contains(told), "{arguments:?}: {done:?}");
    }
}

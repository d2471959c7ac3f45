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
    assert!(result.starts_with("# The edge of the shop.") && result.contains("payments-54s"), "{result}");
    assert!(text(&printed.stderr).contains("note: "), "what changes for the operator is told, without colours here");

    let diff = text(&idleguard(&["inject", &input, "--cluster", "payments", "--diff"]).stdout);
    assert!(diff.starts_with(&format!("--- a/{input}\n+++ b/{input}\n@@ ")) && !diff.contains('\u{1b}'), "{diff}");
    assert!(diff.contains("\n+    - name: payments-54s"), "{diff}");

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
    let removed = idleguard(&["inject", own, "--remove"]);
    assert_eq!(text(&removed.stdout), fs::read_to_string(&input).expect("read"));
}

/// A new file beside the old one, with its mode; a symlink stays one.
#[cfg(unix)]
#[test]
fn the_output_is_written_as_a_whole_and_where_a_link_leads() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let directory = tempfile::tempdir().expect("a directory");
    let (target, link) = (directory.path().join("target.yaml"), directory.path().join("envoy.yaml"));
    fs::copy(file("bootstraps/static.yaml"), &target).expect("a copy");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).expect("set");
    symlink("target.yaml", &link).expect("a link");
    let own = link.to_str().expect("UTF-8");
    // What somebody else has put there under the name that an earlier version used.
    let trap = directory.path().join("envoy.yaml.idleguard-new");
    let victim = directory.path().join("victim");
    symlink(&victim, &trap).expect("a link");
    let done = idleguard(&["inject", own, "--cluster", "payments", "--output", own]);
    assert!(done.status.success(), "{done:?}");
    assert!(fs::symlink_metadata(&link).expect("there").is_symlink() && !victim.exists());
    assert!(fs::read_to_string(&target).expect("read").contains("payments-54s"));
    assert_eq!(fs::metadata(&target).expect("there").permissions().mode() & 0o777, 0o640);
    let new = directory.path().join("new.yaml");
    let done = idleguard(&["inject", own, "--cluster", "payments", "--output", new.to_str().expect("UTF-8")]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(fs::metadata(&new).expect("there").permissions().mode() & 0o777, 0o640, "the input's");
}

/// Devices and pipes: with a file in place of `/dev/null` much of a machine no longer works.
#[cfg(unix)]
#[test]
fn an_output_that_is_no_file_is_written_to_and_stays_what_it_is() {
    use std::io::Read;
    use std::os::unix::fs::FileTypeExt;
    let input = file("bootstraps/static.yaml");
    let inject = |output: &str| idleguard(&["inject", &input, "--cluster", "payments", "--output", output]);
    let result = text(&idleguard(&["inject", &input, "--cluster", "payments"]).stdout);
    assert_eq!(text(&inject("/dev/stdout").stdout), result);
    let directory = tempfile::tempdir().expect("a directory");
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    // Open for both, so that nobody waits for another end.
    let mut reader = fs::File::options().read(true).write(true).open(&pipe).expect("a pipe");
    let done = inject(pipe.to_str().expect("UTF-8"));
    assert!(done.status.success(), "{done:?}");
    assert!(fs::metadata(&pipe).expect("there").file_type().is_fifo(), "it is a pipe still");
    let mut got = vec![0; result.len()];
    reader.read_exact(&mut got).expect("the result");
    assert_eq!(text(&got), result);
}

#[test]
fn what_is_no_bootstrap_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file.yaml");
    let own = path.to_str().expect("UTF-8");
    for (content, told) in [
        ("apiVersion: v1\nkind: ConfigMap\ndata: { envoy.yaml: 'static_resources: {}' }\n", "a Kubernetes ConfigMap"),
        ("apiVersion: apps/v1\nkind: Deployment\nspec: {}\n", "a Kubernetes Deployment"),
        ("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nspec: {}\n", "see deploy/"),
        (
            "resources:\n- \"@type\": x/envoy.config.listener.v3.Listener\n  name: x\n",
            "discovered resources (Listener)",
        ),
        ("resources:\n- \"@type\": x/envoy.config.cluster.v3.Cluster\n  name: x\n", "discovered resources (Cluster)"),
        ("{\"configs\": [{\"@type\": \"x/envoy.admin.v3.BootstrapConfigDump\"}]}", "a config dump"),
        ("name: all\nvirtual_hosts: []\n", "one resource"),
        ("a: 1\n", "no Envoy bootstrap"),
        ("", "the file is empty"),
        ("a: &x [*x]\n", "line 1"),
    ] {
        fs::write(&path, content).expect("written");
        for arguments in [&["check", own][..], &["inject", own, "--cluster", "payments"]] {
            let done = idleguard(arguments);
            let said = text(&done.stderr);
            assert!(done.status.code() == Some(2) && done.stdout.is_empty(), "{content}: {done:?}");
            assert!(said.contains(told) || told == "line 1", "{content}: {said}");
        }
    }
    fs::write(&path, "static_resources: {}\n---\nb: 1\n").expect("written");
    let second = idleguard(&["check", own]);
    assert!(second.status.success() && text(&second.stderr).contains(":3: a second document"), "{second:?}");
}

#[test]
fn comments_that_would_be_lost_are_not_overwritten() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("envoy.yaml");
    let own = path.to_str().expect("UTF-8");
    let anchored = fs::read_to_string(file("bootstraps/weighted.yaml"))
        .expect("read")
        .replace("          http_filters:\n", "          # kept?\n          http_filters: &filters\n");
    fs::write(&path, anchored.replace("  clusters:\n  - name: payments", "  clusters: &all\n  - name: payments"))
        .expect("written");
    let done = idleguard(&["inject", own, "--cluster", "payments", "--output", own]);
    // An anchor at a list is no obstacle by itself: the text is edited in place.
    assert!(done.status.success(), "{done:?}");
    let text_now = fs::read_to_string(&path).expect("read");
    assert!(text_now.contains("# kept?") && text_now.contains("&filters"), "{text_now}");

    // A key in a style of its own is one.
    let plain = fs::read_to_string(file("bootstraps/eds.yaml")).expect("read");
    let routes = "              routes:\n              - match: { prefix: / }\n                route";
    assert!(plain.contains(routes), "{plain}");
    let complex = "              ? routes # kept?\n              : - match: { prefix: / }\n                  route";
    let aliased = plain.replace(routes, complex);
    fs::write(&path, aliased).expect("written");
    let done = idleguard(&["inject", own, "--cluster", "payments", "--output", own]);
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(text(&done.stderr).contains("comments would be lost"), "{done:?}");
    let printed = idleguard(&["inject", own, "--cluster", "payments"]);
    assert!(printed.status.success() && text(&printed.stderr).contains("without its comments"), "{printed:?}");
}

#[test]
fn check_tells_by_its_exit_code() {
    for (name, code) in [("fine.yaml", 0), ("bootstraps/static.yaml", 0), ("first-design.yaml", 1)] {
        let done = idleguard(&["check", &file(name)]);
        assert_eq!(done.status.code(), Some(code), "{name}: {done:?}");
    }
    assert!(idleguard(&["check", &file("fine.yaml")]).stdout.is_empty(), "silent");
    let told = text(&idleguard(&["check", &file("first-design.yaml")]).stdout);
    assert!(
        told.contains(": error [first-design] ") && told.contains("\n  at   static_resources.listeners[1]."),
        "{told}"
    );
    assert!(told.ends_with("\n1 error, 0 warnings\n"), "{told}");
    let front = idleguard(&["check", &file("fine.yaml"), "--front-lb-idle-timeout", "900s"]);
    assert_eq!(front.status.code(), Some(1));
    let oldest = idleguard(&["check", &file("../../envoy.yaml"), "--envoy-version", "1.36.4"]);
    assert!(text(&oldest.stdout).contains("[lane-below-connect-timeout]"), "{oldest:?}");
    let json = idleguard(&["check", &file("first-design.yaml"), "--format", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((&json["errors"], &json["findings"][0]["id"]), (&1.into(), &"first-design".into()));
    assert!(json["findings"][0]["line"].is_u64(), "{json}");
    let missing = idleguard(&["check", "/nowhere.yaml"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("cannot read /nowhere.yaml"));
}

#[test]
fn the_rest_prints() {
    for (arguments, told) in [
        (&["--version"][..], "idleguard 0.2.0"),
        (&["inject", "--help"], "Examples:\n  idleguard inject envoy.yaml"),
        (&["schema"], "\"$schema\""),
        (&["explain", "reactor-netty"], "maxIdleTime"),
        (&["explain", "apache-httpclient"], "setTimeToLive"),
        (&["explain", "go"], "IdleConnTimeout"),
        (&["explain", "node"], "keepAliveTimeout"),
        (
            &["explain", "--error", "java.io.IOException: HTTP/1.1 header parser received no bytes"],
            "jdk.httpclient.keepalive.timeout",
        ),
        (&["completions", "bash"], "_idleguard()"),
        (&["completions", "zsh"], "#compdef idleguard"),
    ] {
        let done = idleguard(arguments);
        assert!(done.status.success() && text(&done.stdout).contains(told), "{arguments:?}: {done:?}");
    }
}

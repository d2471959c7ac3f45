//! `idleguard recommend`: what follows from what a scout has measured, and whether that is enough.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use idleguard_harness::envoy::{Config, Envoy, Options};
use idleguard_harness::load::{Load, Pattern};
use idleguard_harness::project;
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::{Value, json};
use tempfile::TempDir;

fn recommend(arguments: &[&str]) -> (Option<i32>, String, String) {
    let done: Output =
        Command::new(env!("CARGO_BIN_EXE_idleguard")).arg("recommend").args(arguments).output().expect("the tool runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (done.status.code(), text(&done.stdout), text(&done.stderr))
}

/// A config dump and statistics as files, and what follows.
fn saved(clusters: &Value, stats: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let directory = TempDir::new().expect("a directory");
    let (dump, metrics) = (directory.path().join("dump.json"), directory.path().join("stats.txt"));
    let clusters: Vec<Value> =
        clusters.as_array().expect("a list").iter().map(|cluster| json!({ "cluster": cluster })).collect();
    let all = json!({ "configs": [
        { "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {} },
        { "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "dynamic_active_clusters": clusters },
    ]});
    fs::write(&dump, all.to_string()).expect("written");
    fs::write(&metrics, stats).expect("written");
    let files = ["--config-dump", dump.to_str().expect("UTF-8"), "--metrics", metrics.to_str().expect("UTF-8")];
    recommend(&[&files, more].concat())
}

fn with_timeout(name: &str, timeout: &str) -> Value {
    let options = json!({ "common_http_protocol_options": { "idle_timeout": timeout }, "auto_config": {} });
    json!({ "name": name, "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options } })
}

const MEASURED: &str = "wasmcustom.idleguard.scout.payments.lb_idle_timeout_ms: 60007\n";

#[test]
fn a_timeout_above_the_measured_one_is_told_by_the_exit_code() {
    for (timeout, code, told) in [
        (None, 1, "# payments: 1h in use, 60007ms measured, 54s to use: stale connections are reused"),
        (Some("0s"), 1, "no idle_timeout at all in use"),
        (Some("60.1s"), 1, "stale connections"),
        (Some("60.007s"), 0, "less than the margin"),
        (Some("54.001s"), 0, "less than the margin"),
        (Some("54s"), 0, "fine"),
        (Some("4s"), 0, "fine"),
    ] {
        let cluster =
            timeout.map_or_else(|| json!({ "name": "payments" }), |timeout| with_timeout("payments", timeout));
        let (exit, out, said) = saved(&json!([cluster]), MEASURED, &[]);
        assert_eq!((exit, said.as_str()), (Some(code), ""), "{timeout:?}: {out}");
        assert!(out.contains(told), "{timeout:?}: {out}");
        assert_eq!(out.contains("idle_timeout: 54s"), told != "fine", "{timeout:?}: {out}");
    }
    // Lanes: what counts is the one in force.
    let stats = format!("{MEASURED}wasmcustom.idleguard.destination.payments.lane_idle_timeout_ms: 54000\n");
    let (exit, out, _) = saved(&json!([{ "name": "payments" }]), &stats, &[]);
    assert!(exit == Some(0) && out.contains("54s in use (its lane in force)"), "{out}");
    let (exit, out, _) = saved(&json!([{ "name": "payments" }]), MEASURED, &["--margin", "5s"]);
    assert!(exit == Some(1) && out.contains("55s to use"), "{out}");
}

/// `Keep-Alive: timeout=N` is heeded with a second to spare, a close that was seen with the margin, and of two the smaller counts.
#[test]
fn of_what_is_announced_measured_and_learnt_the_smallest_safe_one_is_used() {
    for (announced_or_seen, lower_bound, learnt, told) in [
        (5_000, Some(0), 0, "5s measured, 4s to use"), // announced, nothing seen yet
        (5_000, Some(3_200), 0, "5s measured, 4s to use"), // and answered since
        (5_000, Some(6_004), 5_000, "5s measured, 4s to use"), // Node waits a second more than it announces
        (2_004, Some(2_004), 2_004, "2004ms measured, 1.8s to use"), // announced was more
        (1_000, Some(990), 0, "1s measured, 0.5s to use"),
        (60_000, Some(60_004), 0, "60s measured, 54s to use"), // the margin is more than a second
        (60_007, None, 0, "60007ms measured, 54s to use"),
        (60_007, Some(60_007), 20_000, "20s measured, 18s to use"), // requests have failed at less
        (0, Some(9_000), 20_000, "20s measured, 18s to use"),
    ] {
        let mut stats = format!("wasmcustom.idleguard.scout.payments.lb_idle_timeout_ms: {announced_or_seen}\n");
        for (name, value) in
            [("scout.payments.lower_bound_ms", lower_bound), ("destination.payments.lb_idle_timeout_ms", Some(learnt))]
        {
            stats += &value.map_or_else(String::new, |value| format!("wasmcustom.idleguard.{name}: {value}\n"));
        }
        let (exit, out, said) = saved(&json!([{ "name": "payments" }]), &stats, &[]);
        assert!(
            exit == Some(1) && out.contains(&told.replace("0.5s", "500ms").replace("1.8s", "1800ms")),
            "{stats}{out}{said}"
        );
    }
}

#[test]
fn what_makes_no_sense_is_exit_code_2() {
    let payments = json!([{ "name": "payments" }]);
    for (clusters, stats, told) in [
        (&payments, "cluster.payments.upstream_cx_total: 1\n", "is there a scout"),
        (&json!([]), MEASURED, "has no clusters"),
    ] {
        let (exit, out, said) = saved(clusters, stats, &[]);
        assert_eq!((exit, out.as_str()), (Some(2), ""), "{said}");
        assert!(said.contains(told), "{said}");
    }
    for (arguments, told) in [
        (&["--admin", "http://127.0.0.1:1"][..], "http://127.0.0.1:1/config_dump"),
        (&["--admin", "https://127.0.0.1:1"], "want http://HOST:PORT"),
        (&["--config-dump", "/nowhere", "--metrics", "/nowhere"], "cannot read /nowhere"),
        (&["--metrics", "/nowhere"], "--admin"),
        (&[], "--admin"),
    ] {
        let (exit, out, said) = recommend(arguments);
        assert_eq!((exit, out.as_str()), (Some(2), ""), "{arguments:?}: {said}");
        assert!(said.contains(told), "{arguments:?}: {said}");
    }
    // Not known yet is no mistake of anybody's, and a cluster that is gone is not judged.
    let stats = "wasmcustom.idleguard.scout.payments.lb_idle_timeout_ms: 0\nwasmcustom.idleguard.scout.payments.lower_bound_ms: 9000\n";
    let (exit, out, _) = saved(&payments, stats, &[]);
    assert!(exit == Some(0) && out.contains("not known (yet), but at least 9s"), "{out}");
    let (exit, out, _) = saved(&json!([{ "name": "orders" }]), MEASURED, &[]);
    assert!(exit == Some(0) && out.contains("has no cluster \"payments\""), "{out}");
}

#[test]
fn the_patch_keeps_what_the_cluster_has_and_is_written_as_each_control_plane_wants_it() {
    let cluster = with_timeout("outbound|443|v1|api.example.com", "3600s");
    let stats = "idleguard_scout_lb_idle_timeout_ms{idleguard_destination=\"outbound|443|v1|api.example.com\"} 2000\n";
    let (exit, envoy, _) = saved(&json!([cluster]), stats, &[]);
    assert!(exit == Some(1) && envoy.contains("idle_timeout: 1.8s") && envoy.contains("auto_config"), "{envoy}");
    let (_, istio, _) = saved(&json!([cluster]), stats, &["--format", "istio"]);
    assert!(istio.contains("connectionPool") && istio.contains("idleTimeout: 1.8s"), "{istio}");
    let istio = parsed(&istio);
    assert_eq!(istio["kind"], "DestinationRule");
    assert_eq!(istio["metadata"]["name"], "api-example-com-idle-timeout");
    assert_eq!(
        (&istio["spec"]["host"], &istio["spec"]["subsets"][0]["name"]),
        (&"api.example.com".into(), &"v1".into())
    );
    let pool = "/spec/subsets/0/traffic_policy/connection_pool/http/idle_timeout";
    assert_eq!(istio.pointer(pool), Some(&"1.8s".into()));
    let route = json!([with_timeout("httproute/shop/payments/rule/0", "3600s")]);
    let stats = "wasmcustom.idleguard.scout.httproute/shop/payments/rule/0.lb_idle_timeout_ms: 2000\n";
    let (_, gateway, _) = saved(&route, stats, &["--format", "envoy-gateway"]);
    assert!(gateway.contains("targetRefs") && gateway.contains("connectionIdleTimeout: \"1800ms\""), "{gateway}");
    let gateway = parsed(&gateway);
    assert_eq!((&gateway["kind"], &gateway["metadata"]["namespace"]), (&"BackendTrafficPolicy".into(), &"shop".into()));
    assert_eq!(gateway["spec"]["target_refs"][0]["name"], "payments");
    assert_eq!(gateway["spec"]["timeout"]["http"]["connection_idle_timeout"], "1800ms");
    let (_, json, _) = saved(&route, stats, &["--format", "json"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json[0]["in_use_ms"], &json[0]["is_unsafe"]), (&3_600_000.into(), &true.into()), "{json}");
    // Older keys stand at the cluster itself.
    let older = json!([{ "name": "payments", "common_http_protocol_options": { "idle_timeout": "90s", "max_headers_count": 50 } }]);
    let (exit, out, _) = saved(&older, MEASURED, &[]);
    let patch = parsed(&out);
    assert_eq!(exit, Some(1));
    assert_eq!(
        patch["common_http_protocol_options"],
        json!({ "idle_timeout": "54s", "max_headers_count": 50 }),
        "{out}"
    );
}

/// YAML as the tool prints it, read by the tool's own reader, which knows keys in snake_case.
fn parsed(text: &str) -> Value {
    idleguard_cli::document::Document::parse(text).unwrap_or_else(|error| panic!("{error:#}\n{text}")).value().clone()
}

/// A scout measures, `recommend` is asked at Envoy's admin interface, its patch goes into a plain Envoy, and none of the requests of a bursty
/// load fails there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_recommended_is_enough_for_a_bursty_load_in_every_mode() {
    let timeout = Duration::from_millis(1_500);
    let check = async |mode: Mode, kind: &'static str| {
        let (Some(config), Some(wasm)) = (
            Config::project().ok().filter(|_| project::or_skip(project::envoy()).is_some()),
            project::or_skip(project::wasm()),
        ) else {
            return;
        };
        let lb = StubLb::start(mode);
        let config = config.free_ports().wasm(&wasm).lanes(&[]).upstream(lb.address());
        let envoy = Envoy::start(&config, Options::default()).await.expect("Envoy");
        let known = |stats: &std::collections::BTreeMap<String, u64>| {
            let of = |metric: &str| {
                stats.get(&format!("wasmcustom.idleguard.scout.payments.{metric}")).copied().unwrap_or(0)
            };
            of(kind) == 1 && of("lb_idle_timeout_ms") >= 1_350
        };
        envoy.wait_for(Duration::from_secs(80), "the scout", known).await.expect("measured");
        let admin = format!("http://{}", envoy.admin());
        let ask = async |format: &'static str| {
            let admin = admin.clone();
            tokio::task::spawn_blocking(move || recommend(&["--admin", &admin, "--format", format]))
                .await
                .expect("done")
        };
        let (exit, out, said) = ask("envoy").await;
        assert_eq!(exit, Some(1), "{mode:?}: {out} {said}");
        let patch = parsed(&out);
        println!("{mode:?}: {}", out.lines().next().unwrap_or_default());
        drop(envoy);
        let plain = config.without_idleguard().edit_clusters(|cluster| {
            if cluster["name"] == patch["name"] {
                for (key, value) in patch.as_object().expect("a cluster") {
                    cluster[key] = value.clone();
                }
            }
        });
        let lb = StubLb::start(mode);
        let envoy = Envoy::start(&plain.upstream(lb.address()), Options::default()).await.expect("Envoy");
        let gap = (Duration::ZERO, timeout * 2);
        let load = Load::post(envoy.ingress(), Pattern::Bursts { gap }).clients(16).timeout(Duration::from_secs(20));
        let report = load.run(Duration::from_secs(15)).await;
        assert!(report.ok > 50 && report.failed() == 0, "{mode:?}: {report}");
        assert!(lb.counters().opened > 16, "{mode:?}: no silence was longer than the timeout");
    };
    tokio::join!(
        check(Mode::FinAt(timeout), "kind_fin"),
        check(Mode::RstAt(timeout), "kind_rst"),
        check(Mode::SilentRst(timeout), "kind_silent"),
        check(Mode::SilentSwallow(timeout), "kind_silent"),
    );
}

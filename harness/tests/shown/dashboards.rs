//! The dashboard and the alerts in `deploy/` speak of metrics that are there.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use idleguard_harness::envoy::{Config, Envoy, Options};
use idleguard_harness::load::{Load, Pattern};
use idleguard_harness::project;
use idleguard_harness::prometheus::{Prometheus, panels};
use idleguard_harness::stub_lb::{Mode, StubLb};
use serde_json::Value;

use super::{ms, project_config};

fn deploy(path: &str) -> PathBuf {
    project::root().join("deploy").join(path)
}

fn promtool(arguments: [&str; 2], file: &str) {
    let Some(program) = project::or_skip(project::program("promtool").context("promtool is not installed")) else {
        return;
    };
    let output = Command::new(program).args(arguments).arg(deploy(file)).output().expect("promtool runs");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_alerts_are_well_formed_and_pass_their_tests() {
    promtool(["check", "rules"], "prometheus/rules.yaml");
    promtool(["test", "rules"], "prometheus/rules.test.yaml");
}

/// A panel whose query has a typing error, a metric that was renamed or a label that does not exist would be empty for ever.
#[tokio::test]
async fn every_query_of_the_dashboard_and_every_alert_finds_data() {
    let Some(config) = project_config() else { return };
    if project::or_skip(project::program("prometheus").context("prometheus is not installed")).is_none() {
        return;
    }
    let lb = StubLb::start(Mode::FinAt(ms(2_000)));
    let config = config.upstream(lb.address());
    let envoy = Envoy::start(&config, Options::default()).await.expect("a running Envoy");
    let rules = deploy("prometheus/rules.yaml");
    let prometheus = Prometheus::start(envoy.admin(), &rules).await.expect("a running Prometheus");
    let load = Load::post(envoy.ingress(), Pattern::Scattered { gap: (ms(0), ms(4_000)) }).clients(20);
    let ready = async {
        // Until the scout has found the timeout out, and has been scraped.
        let found_out = "idleguard_destination_lb_idle_timeout_ms > 0 and idleguard_scout_lb_idle_timeout_ms > 0";
        while prometheus.query(found_out).await.expect("an answer").is_empty() {
            tokio::time::sleep(ms(250)).await;
        }
        tokio::time::sleep(ms(7_000)).await; // the alerts look back, and Envoy merges histograms every 5 s
    };
    let (_, done) = load.run_while(ms(60_000), ready).await;
    assert!(done.is_some(), "{:?}", envoy.stats().await);

    let dashboard: Value =
        serde_json::from_slice(&std::fs::read(deploy("grafana/idleguard.json")).expect("a dashboard")).expect("JSON");
    let queries = panels(&dashboard, "10s", "60s").expect("panels with queries").into_iter().flat_map(|panel| {
        let title = panel.title;
        panel.queries.into_iter().map(move |query| (title.clone(), query))
    });
    let mut queries: Vec<_> = queries.collect();
    assert!(queries.len() > 20, "{queries:?}");
    // What an alert compares, without the comparison: the alert itself should find nothing.
    let alerts = Config::load(&rules).expect("YAML");
    for alert in alerts.get("groups/0/rules").and_then(Value::as_array).expect("rules") {
        let expression = alert["expr"].as_str().expect("an expression").replace("offset 1h", "offset 1s");
        let (compared, _) = expression.rsplit_once(['<', '>']).expect("a comparison");
        // Of a share each part: a scout that has just nothing to ask makes it no number.
        queries.extend(compared.split("\n/").map(|part| (alert["alert"].to_string(), part.to_owned())));
    }
    for (title, query) in queries {
        let found = prometheus.query(&query).await.unwrap_or_else(|error| panic!("{title}: {query}: {error:#}"));
        let number =
            |series: &Value| series.pointer("/value/1").and_then(Value::as_str).is_some_and(|value| value != "NaN");
        assert!(!found.is_empty() && found.iter().all(number), "{title}: nothing for {query}");
    }
}

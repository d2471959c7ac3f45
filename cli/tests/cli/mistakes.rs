//! Each rule finds the mistake that is planted for it, and nothing else is found.

use std::time::Duration;

use idleguard_cli::check::{Finding, RULES, Severity, Surroundings, check};
use idleguard_cli::document::Document;

use super::{path, project_file, read};

const SURROUNDINGS: Surroundings = Surroundings { front_lb_idle_timeout: Some(Duration::from_secs(60)) };

fn findings(text: &str) -> Vec<Finding> {
    check(&Document::parse(text).expect("a file"), SURROUNDINGS)
}

#[test]
fn every_rule_finds_its_mistake_and_only_that() {
    for rule in RULES {
        let found = findings(&read(&format!("mistakes/{}.yaml", rule.id)));
        assert!(!found.is_empty(), "{} finds nothing", rule.id);
        assert!(found.iter().all(|finding| finding.id == rule.id && finding.line.is_some()), "{}: {found:#?}", rule.id);
    }
    let files = std::fs::read_dir(path("mistakes")).expect("a directory").count();
    assert_eq!(files, RULES.len(), "each file is of a rule");
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    for text in [read("fine.yaml"), project_file("envoy.yaml")] {
        let found = findings(&text);
        assert!(found.is_empty(), "{found:#?}");
    }
}

#[test]
fn a_configuration_is_judged_in_the_filters_own_words_wherever_it_stands() {
    let found = findings(&read("discovered.yaml"));
    let [finding] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!((finding.id, finding.severity), ("invalid-configuration", Severity::Error));
    assert_eq!(finding.what, "destinations.payments.retry_stale: \"always\" is not allowed: \"idempotent\" or \"off\"");
    assert_eq!(finding.path, "resources[0].typed_config.config.configuration");

    // The HTTP filter's alone, no second finding that the route has none.
    let refused = read("fine.yaml").replace("\"destinations\"", "\"destination\"");
    let ids: Vec<&str> = findings(&refused).iter().map(|finding| finding.id).collect();
    assert_eq!(ids, ["invalid-configuration"]);

    let connection = read("fine.yaml").replace("filter: connection", "filter: tcp");
    let found = findings(&connection);
    let told = found.iter().find(|finding| finding.id == "invalid-configuration").expect("a finding");
    assert_eq!(told.what, "filter: \"tcp\" is not allowed: \"http\" or \"connection\"");
    assert!(
        findings(&read("fine.yaml").replace("filter: connection", "filter: http"))
            .iter()
            .any(|finding| { finding.id == "invalid-configuration" })
    );
}

/// The fence by Envoy's own filter, as in docs/configuration.md.
#[test]
fn a_cluster_without_a_connection_filter_may_be_fenced_by_envoy() {
    let text = read("mistakes/unguarded-destination.yaml");
    let docs = project_file("docs/configuration.md");
    let (_, fence) = docs.split_once("```yaml\n- name: fence").expect("the fence in the docs");
    let (fence, _) = fence.split_once("```").expect("its end");
    let fence: String = format!("- name: fence{fence}").lines().map(|line| format!("          {line}\n")).collect();
    let fenced = text.replace("          - name: router\n", &format!("{fence}          - name: router\n"));
    assert_ne!(fenced, text);
    assert!(findings(&fenced).is_empty(), "{:#?}", findings(&fenced));
}

#[test]
fn a_front_load_balancer_is_compared_with_every_listener() {
    let fine = read("fine.yaml");
    let ids = |text: &str| findings(text).iter().map(|finding| finding.id).collect::<Vec<_>>();
    assert_eq!(ids(&fine.replace("idle_timeout: 900s", "idle_timeout: 60s")), ["front-lb-idle-timeout"]);
    assert!(ids(&fine.replace("idle_timeout: 900s", "idle_timeout: 61s")).is_empty());
    assert!(ids(&fine.replace("idle_timeout: 900s", "idle_timeout: 0s")).is_empty(), "0 is off");
    assert!(
        ids(&fine.replace("          common_http_protocol_options: { idle_timeout: 900s }\n", "")).is_empty(),
        "1 h"
    );
}

//! A wrong configuration stops Envoy's start, and the log says which key, what was given and what is allowed.

use idleguard_harness::envoy::{Config, Envoy, Options};
use serde_json::{Value, json};

use super::project_config;

fn refusal(config: &Config) -> String {
    let said = Envoy::validate(config, &Options::default()).expect("a verdict");
    assert!(!said.accepted, "{}", said.output);
    said.output
}

#[tokio::test]
async fn a_wrong_key_or_value_is_named() {
    let Some(config) = project_config() else { return };
    let payments = |policy: Value| json!({"filter": "http", "destinations": {"payments": policy}});
    for (http, message) in [
        (
            payments(json!({"lb_idle_timeout": "60s", "margin": "120%"})),
            "idleguard: destinations.payments.margin: \"120%\" is not allowed: a percentage below 50% or a duration below half \
             of lb_idle_timeout",
        ),
        (
            payments(json!({"lb_timeout": "60s"})),
            "idleguard: destinations.payments.lb_timeout: \"60s\" is not allowed: an unknown",
        ),
        (
            json!({"filter": "http", "client_ip": {"trusted_hops": 0}}),
            "idleguard: client_ip.trusted_hops: 0 is not allowed: a whole number from 1 up",
        ),
        (json!({"filter": "tcp"}), "idleguard: filter: \"tcp\" is not allowed: \"http\" or \"connection\""),
    ] {
        let output = refusal(&config.clone().http_filter(&http));
        assert!(output.contains(message), "{message}: {output}");
        let error = Envoy::start(&config.clone().http_filter(&http), Options::default()).await.expect_err("a refusal");
        assert!(format!("{error:#}").contains(message), "{error:#}");
    }
    let connection = json!({"filter": "connection", "destination": "payments", "policy": {"lb_idle_timeout": 60}});
    let output = refusal(&config.clone().scout_filter(&connection));
    assert!(
        output.contains("idleguard: policy.lb_idle_timeout: 60 is not allowed: \"learn\", or a duration"),
        "{output}"
    );
}

/// Envoy turns a Struct into JSON; both ways of writing the configuration are the same.
#[tokio::test]
async fn a_struct_does_as_well_as_a_string() {
    let Some(config) = project_config() else { return };
    let as_struct = |value: Value| json!({"@type": "type.googleapis.com/google.protobuf.Struct", "value": value});
    let http = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config/http_filters/idleguard/typed_config/\
                config/configuration";
    let good = json!({"filter": "http", "client_ip": {"trusted_hops": 2}, "destinations": {"payments": {}}});
    let accepted = Envoy::validate(&config.clone().set(http, as_struct(good)), &Options::default()).expect("a verdict");
    assert!(accepted.accepted, "{}", accepted.output);
    let bad = json!({"filter": "http", "destinations": {"payments": {"honor_keep_alive": "yes"}}});
    let output = refusal(&config.set(http, as_struct(bad)));
    assert!(
        output.contains("destinations.payments.honor_keep_alive: \"yes\" is not allowed: true or false"),
        "{output}"
    );
}

#[tokio::test]
async fn what_is_allowed_but_hardly_meant_is_warned_of() {
    let Some(config) = project_config() else { return };
    let http = json!({"filter": "http", "client_ip": {"trusted_proxies": ["0.0.0.0/0"]},
        "destinations": {"payments": {"lb_idle_timeout": "60s"}}});
    let connection = json!({"filter": "connection", "destination": "payments", "policy": {"lb_idle_timeout": "50s"}});
    let config = config.http_filter(&http).scout_filter(&connection);
    let said = Envoy::validate(&config, &Options::default()).expect("a verdict");
    assert!(said.accepted, "{}", said.output);
    assert!(said.output.contains("idleguard: client_ip.trusted_proxies[0]"), "{}", said.output);
    assert!(said.output.contains("payments: the filters' policies differ in lb_idle_timeout"), "{}", said.output);
}

//! A wrong configuration stops Envoy's start, and the log says which key, what was given and what is allowed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use idleguard_harness::envoy::{Config, Envoy, Options};
use idleguard_harness::stub_lb::{Mode, StubLb};
use idleguard_harness::{http, project};
use serde_json::{Value, json};

use super::lanes::requests_of;
use super::{project_config, start};

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
        (
            payments(json!({"lanes": {"payments-4s": "4"}})),
            "idleguard: destinations.payments.lanes.payments-4s: \"4\" is not allowed: the idle_timeout that this lane has in Envoy",
        ),
        (
            payments(json!({"max_lifetime": "60s"})), // a key of the first design
            "max_connection_duration of the cluster's common_http_protocol_options does this",
        ),
        (json!({"filter": "http"}), "idleguard: "),
        (json!({"filter": "tcp"}), "idleguard: filter: \"tcp\" is not allowed: \"http\" or \"scout\""),
    ] {
        let output = refusal(&config.clone().http_filter(&http));
        assert!(output.contains(message), "{message}: {output}");
        let error = Envoy::start(&config.clone().http_filter(&http), Options::default()).await.expect_err("a refusal");
        assert!(format!("{error:#}").contains(message), "{error:#}");
    }
    for (scout, message) in [
        (
            json!({"filter": "scout", "destination": "payments", "cluster": "payments-scout", "path": 1}),
            "idleguard: path: 1 is not allowed: ",
        ),
        (json!({"filter": "connection", "destination": "payments"}), "The connection filter of idleguard 0.1 is gone"),
    ] {
        let output = refusal(&config.clone().scout_filter(&scout));
        assert!(output.contains(message), "{message}: {output}");
    }
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
    let bad = json!({"filter": "http", "destinations": {"payments": {"all_requests": "yes"}}});
    let output = refusal(&config.set(http, as_struct(bad)));
    assert!(output.contains("destinations.payments.all_requests: \"yes\" is not allowed: true or false"), "{output}");
}

#[tokio::test]
async fn what_is_allowed_but_hardly_meant_is_warned_of() {
    let Some(config) = project_config() else { return };
    let http = json!({"filter": "http", "client_ip": {"trusted_proxies": ["0.0.0.0/0"]}});
    let said = Envoy::validate(&config.http_filter(&http), &Options::default()).expect("a verdict");
    assert!(said.accepted, "{}", said.output);
    assert!(said.output.contains("idleguard: client_ip.trusted_proxies[0]"), "{}", said.output);
}

/// `make build` takes out of it what Envoy need not call; without that it costs more, and does the same.
#[tokio::test]
async fn the_module_of_a_plain_cargo_build_does_all_that_the_finished_one_does() {
    let Some(config) = project_config() else { return };
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| project::root().join("target"), Into::into);
    let built = project::root().join(target).join("wasm32-wasip1/release/idleguard.wasm");
    let wasm = built.canonicalize().with_context(|| format!("{}: `make build` makes it", built.display()));
    let Some(wasm) = project::or_skip(wasm) else { return };
    let lb = StubLb::start(Mode::Stable);
    let envoy = start(&config.lb_idle_timeout("60s").wasm(&wasm).upstream(lb.address()), 1).await;
    let claim = [("x-real-ip", b"198.51.100.9".as_slice())];
    let answer = http::send(envoy.ingress(), "POST", "/headers", &claim, "a body").await.expect("an answer");
    assert_eq!(answer.status, 200);
    let headers = answer.text().to_lowercase();
    assert!(headers.contains(r#"["x-real-ip","127.0.0.1"]"#) && !headers.contains("198.51.100.9"), "{headers}");
    assert_eq!(requests_of(&envoy, "payments-54s").await, 1);
    let asked = "wasmcustom.idleguard.scout.payments.requests";
    let scouted = |stats: &BTreeMap<String, u64>| stats.get(asked).is_some_and(|asked| *asked >= 2);
    envoy.wait_for(Duration::from_secs(60), "the scout", scouted).await.expect("a scout that asks");
}

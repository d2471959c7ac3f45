//! Real Envoys: started, asked, ended; and plain Envoy fails where it must.

use std::time::Duration;

use idleguard_harness::{
    envoy::{Config, Envoy, Options},
    http,
    load::{Failure, Load, Pattern},
    project,
    stub_lb::{Mode, Options as LbOptions, StubLb},
};
use serde_json::json;

fn project_config() -> Config {
    Config::project().expect("envoy.yaml")
}

fn plain() -> Config {
    project_config().without_idleguard().free_ports()
}

#[test]
fn editing_reaches_both_filters_the_base_and_every_lane() {
    let config = project_config()
        .lb_idle_timeout("2s")
        .edit_scout_filter(|scout| scout["path"] = "/healthz".into())
        .wasm("/somewhere/filter.wasm".as_ref())
        .upstream_name("lb.example", 443);
    let text = config.to_string();
    assert_eq!(text.matches("/somewhere/filter.wasm").count(), 2, "{text}");
    assert_eq!(text.matches(r#"\"lb_idle_timeout\":\"2s\""#).count(), 1, "{text}");
    assert_eq!(text.matches(r#"\"path\":\"/healthz\""#).count(), 1, "{text}");
    assert_eq!(config.clusters(), ["payments", "payments-54s", "payments-4s", "payments-900ms"]);
    for cluster in config.clusters() {
        assert_eq!(config.get(&format!("static_resources/clusters/{cluster}/type")), Some(&json!("STRICT_DNS")));
    }
}

#[test]
fn lanes_are_clusters_routes_before_the_bases_and_a_key_of_the_plugin() {
    let config = project_config().lanes(&["2s", "500ms"]);
    assert_eq!(config.clusters(), ["payments", "payments-2s", "payments-500ms"]);
    let text = config.to_string();
    assert!(text.contains(r#"\"lanes\":{\"payments-2s\":\"2s\",\"payments-500ms\":\"500ms\"}"#), "{text}");
    assert!(text.contains("\"idle_timeout\": \"0.5s\"") && !text.contains("payments-54s"), "{text}");
    let routes = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config/route_config/virtual_hosts/0/routes";
    let leads_to = |at: usize| config.get(&format!("{routes}/{at}/route/cluster")).cloned();
    assert_eq!([0, 1, 2].map(leads_to), ["payments-2s", "payments-500ms", "payments"].map(|name| Some(json!(name))));
}

#[test]
fn without_idleguard_nothing_of_it_is_left_and_the_limits_stay() {
    let config = plain().upstream("127.0.0.1:7".parse().expect("an address"));
    let text = config.to_string();
    for word in ["wasm.v3", "internal", "x-idleguard", "payments-"] {
        assert!(!text.contains(word), "{word}: {text}");
    }
    let limit = "static_resources/clusters/payments/circuit_breakers/thresholds/0/max_connections";
    assert_eq!(config.get(limit), Some(&json!(1024)));
    assert!(text.contains("\"port_value\": 7") && text.contains("5s"), "{text}");
}

#[tokio::test]
async fn an_envoy_serves_tells_and_ends() {
    let Some(_) = project::or_skip(project::envoy()) else { return };
    let lb = StubLb::start(Mode::Stable);
    let mut envoy = Envoy::start(&plain().upstream(lb.address()), Options::default()).await.expect("a running Envoy");
    let answer = http::send(envoy.ingress(), "GET", "/headers", &[("x-odd", b"\xe9")], "").await.expect("an answer");
    assert!(answer.text().contains("[\"x-odd\",\"é\"]"), "{}", answer.text());
    assert_eq!(envoy.stat("cluster.payments.upstream_rq_total").await.expect("statistics"), 1);
    envoy
        .wait_for(Duration::from_secs(1), "cluster", |stats| stats["cluster.payments.upstream_cx_active"] == 1)
        .await
        .expect("one connection");
    assert!(envoy.prometheus().await.expect("statistics").contains("envoy_cluster_upstream_rq_total"));
    assert!(envoy.log().contains("starting main dispatch loop"));
    assert!(envoy.is_running() && envoy.quit().expect("its end").success());
}

#[tokio::test]
async fn a_refused_configuration_is_told_with_its_reason() {
    let Some(_) = project::or_skip(project::envoy()) else { return };
    let wrong = plain().set("static_resources/clusters/payments/connect_timeout", "soon");
    let error = Envoy::start(&wrong, Options::default()).await.expect_err("a refusal").to_string();
    assert!(error.contains("soon") || error.contains("connect_timeout"), "{error}");
    let said = Envoy::validate(&wrong, &Options::default()).expect("a verdict");
    assert!(!said.accepted && said.output.contains("connect_timeout"), "{}", said.output);
    assert!(Envoy::validate(&plain(), &Options::default()).expect("a verdict").accepted);
}

#[tokio::test]
async fn plain_envoy_fails_where_the_load_balancer_forgets_silently() {
    let Some(_) = project::or_skip(project::envoy()) else { return };
    let lb = StubLb::start(Mode::SilentRst(Duration::from_millis(500)));
    let envoy = Envoy::start(&plain().upstream(lb.address()), Options::default()).await.expect("a running Envoy");
    let gap = (Duration::ZERO, Duration::from_secs(1));
    let report = Load::post(envoy.ingress(), Pattern::Scattered { gap }).clients(20).run(Duration::from_secs(4)).await;
    assert!(report.ok > 0 && report.count(Failure::Status(503)) > 0, "{report}");
    assert_eq!(report.failed(), report.count(Failure::Status(503)), "{report}");
    assert_eq!(report.connections, 20, "Envoy keeps its clients' connections: {report}");
    assert!(report.examples[0].detail.contains("reset"), "{report}");
}

#[tokio::test]
async fn nothing_fails_between_four_hundred_clients_plain_envoy_and_a_stable_load_balancer() {
    let Some(_) = project::or_skip(project::envoy()) else { return };
    let lb = StubLb::start(Mode::Stable);
    let envoy = Envoy::start(
        &plain().upstream(lb.address()).set("static_resources/clusters/payments/circuit_breakers", json!({})),
        Options::default(),
    )
    .await
    .expect("a running Envoy");
    let gap = (Duration::from_millis(260), Duration::from_millis(340));
    for pattern in [Pattern::Scattered { gap }, Pattern::Bursts { gap }] {
        let report = Load::post(envoy.ingress(), pattern).clients(400).run(Duration::from_secs(3)).await;
        assert_eq!((report.failed(), report.connections), (0, 400), "{report}");
    }
}

#[tokio::test]
async fn a_cluster_that_does_tls_shows_its_server_name() {
    let Some(_) = project::or_skip(project::envoy()) else { return };
    let tls = Some(vec!["h2", "http/1.1"]);
    let lb = StubLb::with(LbOptions { tls, ..LbOptions::default() }).expect("a load balancer");
    let config = plain().upstream(lb.address()).upstream_tls("payments", "lb.example");
    let envoy = Envoy::start(&config, Options::default()).await.expect("a running Envoy");
    let answer = http::get(envoy.ingress(), "/").await.expect("an answer");
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "hello\n"));
    assert_eq!(lb.records()[0].sni.as_deref(), Some("lb.example"));
}

#[tokio::test]
async fn http2_streams_in_flight_are_not_idle_and_then_the_timeout_counts() {
    let Some(_) = project::or_skip(project::envoy()) else { return };
    let timeout = Duration::from_millis(400);
    let lb = StubLb::start(Mode::FinAt(timeout));
    let http2 = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    }});
    let config = plain()
        .upstream(lb.address())
        .set("static_resources/clusters/payments/typed_extension_protocol_options", http2);
    let envoy = Envoy::start(&config, Options::default()).await.expect("a running Envoy");
    for path in ["/slow?ms=1000", "/drip?n=3&ms=500", "/"] {
        assert_eq!(http::get(envoy.ingress(), path).await.expect("an answer").status, 200, "{path}");
    }
    assert_eq!((lb.counters().opened, lb.counters().requests, lb.counters().idle_drops), (1, 3, 0));
    assert!(lb.wait_for(Duration::from_secs(2), |counters| counters.idle_drops == 1 && counters.open == 0).await);
}

/// Envoy before 1.38 counts it all the same (envoyproxy/envoy#42753): there a handshake that takes longer than a lane fails.
#[tokio::test]
async fn an_idle_timeout_does_not_count_while_a_connection_is_made() {
    let Some(_) = project::or_skip(project::envoy()) else { return };
    let delay = Duration::from_millis(600);
    let tls = Some(vec!["http/1.1"]);
    let lb = StubLb::with(LbOptions { tls, delay, ..LbOptions::default() }).expect("a load balancer");
    let config =
        plain().upstream(lb.address()).envoy_idle_timeout("payments", "0.9s").upstream_tls("payments", "lb.example");
    let envoy = Envoy::start(&config, Options::default()).await.expect("a running Envoy");
    let begun = std::time::Instant::now();
    let answer = http::get(envoy.ingress(), "/").await.expect("an answer");
    if envoy.version().await.expect("a version") < (1, 38, 0) {
        println!("this Envoy lacks: connects that may take longer than a lane's idle_timeout");
        assert_eq!(answer.status, 503);
        return;
    }
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "hello\n"));
    assert!(begun.elapsed() > Duration::from_secs(2), "a handshake and an exchange, 1.2 s each");
}

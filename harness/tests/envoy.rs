//! Real Envoys: started, asked, ended; and plain Envoy fails where it must.

use std::time::Duration;

use idleguard_harness::{
    envoy::{Config, Envoy, Options},
    http,
    load::{Failure, Load, Pattern},
    project,
    stub_lb::{Mode, StubLb},
};
use serde_json::json;

/// The parts of a bootstrap that the harness knows by name; the project's own `envoy.yaml` has its tests elsewhere.
const GUARDED: &str = r#"
admin: { address: { socket_address: { address: 127.0.0.1, port_value: 9901 } } }
bootstrap_extensions:
- name: envoy.bootstrap.internal_listener
  typed_config: { "@type": type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener }
static_resources:
  listeners:
  - name: ingress
    address: { socket_address: { address: 127.0.0.1, port_value: 10000 } }
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          route_config:
            virtual_hosts: [{ name: all, domains: ["*"], routes: [{ match: { prefix: / }, route: { cluster: payments } }] }]
          http_filters:
          - name: idleguard
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
              config:
                vm_config: &vm { vm_id: idleguard, runtime: envoy.wasm.runtime.v8, code: { local: { filename: idleguard.wasm } } }
                configuration: { "@type": type.googleapis.com/google.protobuf.StringValue, value: '{"filter": "http"}' }
          - name: router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
  - name: payments-guard
    internal_listener: {}
    filter_chains:
    - filters:
      - name: idleguard
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm
          config:
            vm_config: *vm
            configuration: { "@type": type.googleapis.com/google.protobuf.StringValue, value: '{"filter": "connection"}' }
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: payments-guard
          cluster: payments-lb
  clusters:
  - name: payments
    circuit_breakers: { thresholds: [{ max_connections: 77 }] }
    transport_socket:
      name: internal
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport
        transport_socket:
          name: raw
          typed_config: { "@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer }
    load_assignment:
      cluster_name: payments
      endpoints: [{ lb_endpoints: [{ endpoint: { address: { envoy_internal_address: { server_listener_name: payments-guard } } } }] }]
  - name: payments-lb
    connect_timeout: 5s
    load_assignment:
      cluster_name: payments-lb
      endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 8080 } } } }] }]
"#;

fn plain() -> Config {
    Config::parse(GUARDED).expect("a bootstrap").without_idleguard().free_ports()
}

#[test]
fn editing_reaches_both_filters_and_every_reference_to_the_vm() {
    let config = Config::parse(GUARDED)
        .expect("a bootstrap")
        .http_filter(&json!({ "filter": "http", "destinations": {} }))
        .lb_idle_timeout("2s")
        .wasm("/somewhere/filter.wasm".as_ref())
        .upstream_name("lb.example", 443);
    let text = config.to_string();
    assert_eq!(text.matches("/somewhere/filter.wasm").count(), 2, "{text}");
    assert_eq!(text.matches(r#"\"lb_idle_timeout\":\"2s\""#).count(), 2, "{text}");
    assert_eq!(config.get("static_resources/clusters/payments-lb/type"), Some(&json!("STRICT_DNS")));
}

#[test]
fn without_idleguard_nothing_of_it_is_left_and_the_limits_stay() {
    let config = plain().upstream("127.0.0.1:7".parse().expect("an address"));
    let text = config.to_string();
    for word in ["wasm", "internal", "payments-lb", "payments-guard"] {
        assert!(!text.contains(word), "{word}: {text}");
    }
    assert!(text.contains("77") && text.contains("\"port_value\": 7") && text.contains("5s"), "{text}");
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

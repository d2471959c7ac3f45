//! What `inject` refuses, and why; and what it does to a file that has idleguard already.

use idleguard_cli::document::Document;
use idleguard_cli::inject::{Request, inject};
use serde_json::json;

use super::{injected, project_file, read, request};

fn refusal(text: &str) -> String {
    let mut document = Document::parse(text).expect("a file");
    match inject(&mut document, &request("payments")) {
        Ok(_) => panic!("not refused:\n{text}"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn what_cannot_be_done_safely_is_refused_with_the_reason() {
    let plain = read("bootstraps/dns.yaml");
    let tls = read("bootstraps/tls.yaml");
    let options = |inner: &str| {
        format!(
            "respect_dns_ttl: true\n    typed_extension_protocol_options: {{ \
             envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {{ {inner} }} }}"
        )
    };
    let with = |key: &str| plain.replace("respect_dns_ttl: true", &format!("respect_dns_ttl: true\n    {key}"));
    for (text, reason) in [
        (plain.replace("name: payments", "name: orders"), "there is no cluster \"payments\" among the static ones (orders)"),
        (plain.replace("type: STRICT_DNS", "type: EDS"), "control plane (EDS)"),
        (plain.replace("type: STRICT_DNS", "type: original_dst"), "ORIGINAL_DST"),
        (
            plain.replace("type: STRICT_DNS", "cluster_type: { name: envoy.clusters.dynamic_forward_proxy }"),
            "dynamic forward proxy",
        ),
        (plain.replace("type: STRICT_DNS", "cluster_type: { name: envoy.clusters.redis }"), "does not know its type"),
        (with("lb_subset_config: {}"), "the key lb_subset_config"),
        (
            plain.replace("{ cluster: payments,", "{ cluster: payments, request_mirror_policies: [{ cluster: payments }],"),
            "used by more than HTTP routes (static_resources.listeners[0].filter_chains[0].filters[0].typed_config.route_config.",
        ),
        (
            format!("{plain}cluster_manager: {{ local_cluster_name: payments }}\n"),
            "used by more than HTTP routes (cluster_manager.local_cluster_name)",
        ),
        (plain.replace("{ cluster: payments,", "{ cluster: others,"), "no HTTP route in this file leads to payments"),
        (plain.replace("respect_dns_ttl: true", &options("auto_config: {}")), "ALPN"),
        (
            plain.replace("respect_dns_ttl: true", &options("upstream_http_protocol_options: { auto_sni: true }")),
            "server name from each request (auto_sni)",
        ),
        (
            plain.replace("respect_dns_ttl: true", &options("explicit_http_config: { http3_protocol_options: {} }")),
            "HTTP/3",
        ),
        (tls.replace("tls.v3.UpstreamTlsContext", "proxy_protocol.v3.ProxyProtocolUpstreamTransport"), "PROXY protocol"),
        (
            read("bootstraps/endpoints.yaml").replace("LEAST_REQUEST", "RING_HASH"),
            "balanced by RING_HASH, which looks at each request",
        ),
        (
            read("bootstraps/endpoints.yaml").replace("{ cluster: payments }", "{ cluster: payments, auto_host_rewrite: true }"),
            "auto_host_rewrite",
        ),
        (
            tls.replace("sni: lb", "x: y\n        sni: lb").replace("connect_timeout: 2s", "connect_timeout: 2s\n    health_checks: [{ http_health_check: { path: /, codec_client_type: HTTP2 } }]"),
            "another HTTP version",
        ),
        (plain.replace("- name: router", "- name: lua").replace("router.v3.Router", "lua.v3.Lua"), "is not the router"),
        ("static_resources: {}\n".to_owned(), "there are none"),
    ] {
        let told = refusal(&text);
        assert!(told.contains(reason), "{reason:?} is not in {told:?}\n{text}");
    }
}

#[test]
fn what_the_filter_would_refuse_is_refused_before_anything_changes() {
    let text = read("bootstraps/static.yaml");
    for (request, reason) in [
        (
            Request { lb_idle_timeout: Some("60".into()), ..request("payments") },
            "destinations.payments.lb_idle_timeout",
        ),
        (Request { trusted_proxies: Some(vec!["ten".into()]), ..request("payments") }, "client_ip.trusted_proxies[0]"),
    ] {
        let mut document = Document::parse(&text).expect("a file");
        let error = inject(&mut document, &request).expect_err("a refusal").to_string();
        assert!(error.contains(reason), "{error}");
        assert_eq!(document.text(), text);
    }
}

#[test]
fn the_projects_own_envoy_yaml_has_all_that_is_needed() {
    let text = project_file("envoy.yaml");
    assert_eq!(injected(&text, &request("payments")).text(), text);
}

/// New values reach both filters, and nothing else moves.
#[test]
fn a_file_with_idleguard_is_brought_up_to_date() {
    let text = project_file("envoy.yaml");
    let request = Request {
        lb_idle_timeout: Some("350s".into()),
        trusted_proxies: Some(vec!["10.0.0.0/8".into()]),
        wasm: Some("/etc/envoy/idleguard.wasm".into()),
        ..request("payments")
    };
    let document = injected(&text, &request);
    let text = document.text();
    assert_eq!(text.matches("\"lb_idle_timeout\": \"350s\"").count(), 2, "{text}");
    assert!(
        text.contains("\"trusted_proxies\": [\"10.0.0.0/8\"]") && !text.contains("filename: idleguard.wasm"),
        "{text}"
    );
    assert_eq!(injected(text, &request).text(), text);
}

/// TLS goes inside, HTTP/2 stays outside, and the pool's protocol is offered by ALPN.
#[test]
fn each_part_of_a_cluster_goes_where_it_works() {
    let document = injected(&read("bootstraps/tls-http2.yaml"), &request("payments"));
    let clusters = document.value()["static_resources"]["clusters"].clone();
    let (outer, inner) = (&clusters[0], &clusters[1]);
    assert_eq!((&outer["name"], &inner["name"]), (&json!("payments"), &json!("payments-lb")));
    assert_eq!(inner["transport_socket"]["typed_config"]["sni"], "lb.example");
    assert_eq!(inner["transport_socket"]["typed_config"]["common_tls_context"]["alpn_protocols"], json!(["h2"]));
    assert!(
        inner.get("typed_extension_protocol_options").is_none()
            && outer["typed_extension_protocol_options"].is_object()
    );
    assert_eq!(outer["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["hostname"], "localhost");

    let document = injected(&read("bootstraps/endpoints.yaml"), &request("payments"));
    let clusters = document.value()["static_resources"]["clusters"].clone();
    let (outer, inner) = (&clusters[0], &clusters[1]);
    for key in ["health_checks", "outlier_detection", "lb_policy", "common_lb_config", "upstream_connection_options"] {
        assert!(outer.get(key).is_none() && inner.get(key).is_some(), "{key}");
    }
    // Envoy would name the cluster, which has another name now.
    assert_eq!(inner["health_checks"][0]["http_health_check"]["host"], "payments");
    assert_eq!(inner["circuit_breakers"], json!({"thresholds": [{"max_connections": 500}]}));
    assert_eq!(outer["circuit_breakers"]["thresholds"][0]["max_retries"], 20);
}

/// The second cluster joins the filter and the VM of the first.
#[test]
fn clusters_share_one_filter() {
    let text = read("bootstraps/weighted.yaml");
    let first = injected(&text, &Request { wasm: Some("/a.wasm".into()), ..request("payments") });
    let both = injected(first.text(), &request("orders"));
    assert_eq!(both.text().matches("filters.http.wasm.v3.Wasm").count(), 1);
    assert_eq!(both.text().matches("filename: /a.wasm").count(), 3);
    assert!(both.text().contains("\"destinations\": { \"payments\": {}, \"orders\": {} }"), "{}", both.text());
}

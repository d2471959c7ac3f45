//! A destination under `"*"` whose cluster does TLS itself, and has no connection filter.

use idleguard_harness::envoy::{Config, Envoy, Options as EnvoyOptions};
use idleguard_harness::http;
use idleguard_harness::load::{Load, Pattern};
use idleguard_harness::stub_lb::{Mode, Options, StubLb};
use serde_json::json;

use super::{beside_others, lacks, ms, project_config, start};

const FENCE: &str = "`set_filter_state` as the fence of a cluster without a connection filter";

/// The route leads straight to the LB's cluster, which does TLS with the server name `lb.example`.
pub(super) fn straight(config: Config, lb: &StubLb, policy: &serde_json::Value) -> Config {
    let route = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config/route_config/virtual_hosts/all/\
                 routes/0/route/cluster";
    config
        .upstream(lb.address())
        .upstream_tls("payments-lb", "lb.example")
        .set(route, "payments-lb")
        .http_filter(&json!({"filter": "http", "destinations": {"*": policy}}))
}

/// Puts Envoy's own filter, by which a generation takes effect on such a cluster, behind idleguard.
pub(super) fn fence(config: Config) -> Config {
    let filters = "static_resources/listeners/ingress/filter_chains/0/filters/http/typed_config/http_filters";
    let fence = json!({
        "name": "fence",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config",
            "on_request_headers": [{
                "object_key": "idleguard.generation",
                "factory_key": "envoy.hashable_string",
                "shared_with_upstream": "ONCE",
                "format_string": {
                    "text_format_source": { "inline_string": "%FILTER_STATE(wasm.idleguard.generation:PLAIN)%" }
                }
            }]
        }
    });
    config.insert(filters, Some(1), fence)
}

fn tls(mode: Mode) -> StubLb {
    StubLb::with(Options { mode, tls: Some(vec!["http/1.1"]), ..Options::default() }).expect("an LB")
}

#[tokio::test]
async fn it_keeps_its_server_name() {
    let Some(config) = project_config() else { return };
    let lb = tls(Mode::Stable);
    let envoy = start(&straight(config, &lb, &json!({"lb_idle_timeout": "400ms"})), 1).await;
    for _ in 0..4 {
        assert_eq!(http::get(envoy.ingress(), "/").await.expect("an answer").status, 200);
        tokio::time::sleep(ms(250)).await;
    }
    let names: Vec<_> = lb.records().into_iter().map(|record| record.sni).collect();
    assert!(!names.is_empty() && names.iter().all(|name| name.as_deref() == Some("lb.example")), "{names:?}");
}

/// Whether this Envoy is older than `factory_key` of `set_filter_state`: then it refuses the configuration, and nothing else.
pub(super) async fn refuses_fence(config: &Config) -> bool {
    let validation = Envoy::validate(config, &EnvoyOptions::default()).expect("a validation");
    if validation.accepted {
        return false;
    }
    assert!(validation.output.contains("does not have an object factory"), "{}", validation.output);
    println!("this Envoy lacks: {FENCE}");
    true
}

/// Envoy's own `set_filter_state` behind idleguard divides the pool of such a cluster, too.
#[tokio::test]
async fn set_filter_state_fences_its_pool() {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let policy = json!({"lb_idle_timeout": "1s", "retry_stale": "off"});
    let pattern = Pattern::Bursts { gap: (ms(0), ms(2_000)) };
    let mut failed = Vec::new();
    let mut is_lacking = false;
    for fenced in [false, true] {
        let lb = tls(Mode::SilentRst(ms(1_000)));
        let mut config = straight(config.clone(), &lb, &policy);
        if fenced {
            config = fence(config);
        }
        if fenced && is_lacking {
            let error = Envoy::start(&config, EnvoyOptions::default()).await.expect_err("no `factory_key` yet");
            assert!(format!("{error:#}").contains("does not have an object factory"), "{error:#}");
            return assert!(failed[0] > 0, "{failed:?}");
        }
        let envoy = start(&config, 1).await;
        is_lacking |= lacks(&envoy, (1, 38), FENCE).await;
        let report = Load::post(envoy.ingress(), pattern).clients(20).run(ms(12_000)).await;
        println!("fenced {fenced}: {report}");
        assert!(report.ok > 50, "{report}");
        failed.push(report.failed());
    }
    assert!(failed[0] > 0 && failed[1] == 0, "{failed:?}");
}

//! Real servers with short keep-alive timeouts, behind a network with some latency: a FIN is under way while requests leave.

use idleguard_harness::delay::DelayRelay;
use idleguard_harness::envoy::Config;
use idleguard_harness::load::{Load, Pattern, Report};
use idleguard_harness::project;
use idleguard_harness::servers::Server;
use serde_json::json;

use super::{beside_others, metric, ms, project_config, start, with_policy};

/// Bursts whose silence ends around the server's timeout of 2 s.
async fn load(config: Config, server: &Server, seconds: u64) -> Report {
    let relay = DelayRelay::start(([127, 0, 0, 1], 0).into(), server.address(), ms(60)).expect("a relay");
    let envoy = start(&config.upstream(relay.address()), 1).await;
    let pattern = Pattern::Bursts { gap: (ms(1_850), ms(2_050)) };
    let report = Load::post(envoy.ingress(), pattern).clients(30).run(ms(seconds * 1_000)).await;
    println!("{report}");
    report
}

async fn only_plain_envoy_fails(server: Server) {
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let plain = load(config.clone().without_idleguard(), &server, 24).await;
    assert!(plain.failed() > 0, "{plain}");
    let policy = json!({"lb_idle_timeout": "2s", "retry_stale": "off"});
    let guarded = load(with_policy(config, &policy), &server, 24).await;
    assert!(guarded.ok > 100 && guarded.failed() == 0, "{guarded}");
}

#[tokio::test]
async fn nginx() {
    let Some(server) = project::or_skip(Server::nginx(ms(2_000)).await) else { return };
    only_plain_envoy_fails(server).await;
}

#[tokio::test]
async fn haproxy() {
    let Some(server) = project::or_skip(Server::haproxy(ms(2_000)).await) else { return };
    only_plain_envoy_fails(server).await;
}

/// Node announces `Keep-Alive: timeout=5` and closes a little later.
#[tokio::test]
async fn node_tells_its_timeout() {
    let Some(server) = project::or_skip(Server::node(ms(5_000), false).await) else { return };
    let Some(config) = project_config() else { return };
    let _turn = beside_others().await;
    let envoy = start(&with_policy(config, &json!({"lb_idle_timeout": "1h"})).upstream(server.address()), 1).await;
    assert_eq!(idleguard_harness::http::get(envoy.ingress(), "/").await.expect("an answer").status, 200);
    let closed = "wasmcustom.idleguard.destination.payments.connections_closed_idle";
    envoy.wait_for(ms(4_900), "the reap at the hinted limit", |stats| stats[closed] == 1).await.expect("a reap");
    assert_eq!(metric(&envoy, "connections_closed_by_peer_idle").await, 0);
}

/// Bursts of posts, whose silence ends around the 6 s after which Node closes (it announces 5). What was sent while Node's FIN was under way
/// has failed.
async fn load_on_node(
    policy: &serde_json::Value,
    gap: (std::time::Duration, std::time::Duration),
    seconds: u64,
) -> Option<Report> {
    let server = project::or_skip(Server::node(ms(5_000), false).await)?;
    let config = project_config()?;
    // Distance: for 600 ms around its close, Node and the clients don't know of each other.
    let relay = DelayRelay::start(([127, 0, 0, 1], 0).into(), server.address(), ms(300)).expect("a relay");
    let envoy = start(&with_policy(config, policy).upstream(relay.address()), 1).await;
    let report = Load::post(envoy.ingress(), Pattern::Bursts { gap }).clients(12).run(ms(seconds * 1_000)).await;
    println!("{policy} {gap:?}: {report}");
    let stale = metric(&envoy, "stale_failures").await;
    assert_eq!(stale > 0, report.failed() > 0, "{stale}");
    Some(report)
}

#[tokio::test]
async fn nodes_own_timeout_is_kept_without_being_configured() {
    let _turn = beside_others().await;
    let honoured = json!({"lb_idle_timeout": "1h", "retry_stale": "off"});
    let ignored = json!({"lb_idle_timeout": "1h", "retry_stale": "off", "honor_keep_alive": false});
    // A request leaves Envoy before Node's FIN arrives, and arrives after Node's close.
    let around = (ms(5_450), ms(5_900));
    let (without, with, wide) = tokio::join!(
        load_on_node(&ignored, around, 30),
        load_on_node(&honoured, around, 30),
        load_on_node(&honoured, (ms(4_000), ms(6_000)), 40),
    );
    let (Some(without), Some(with), Some(wide)) = (without, with, wide) else { return };
    assert!(without.failed() > 0, "{without}");
    assert!(with.ok > 40 && with.failed() == 0, "{with}");
    assert!(wide.ok > 40 && wide.failed() == 0, "{wide}");
}

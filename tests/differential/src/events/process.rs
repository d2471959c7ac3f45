//! What happens to Envoy itself: a hot restart, a VM that dies, a scout at work.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use idleguard_harness::{
    envoy::{Config, Envoy},
    http, project,
};
use tokio::net::TcpStream;

use super::{Event, Figure, broken, failures, figure};
use crate::{
    drive::{http1::Http1, wire::Wire},
    middle,
    passage::Side,
    script::{Do, Framing, Signals},
    setup::{HTTP_MANAGER, Subject, for_subject, own},
    stage::{Host, Mood, Stage, Traffic, ask, requests_of},
};

/// The rows.
pub(super) fn all() -> Vec<Event> {
    vec![
        Event {
            name: "own-hot-restart",
            about: "a second Envoy takes over under load (`--restart-epoch 1`), the first one drains and ends",
            own: Some("while the first one lives, Envoy adds up the gauges of both, and so those of a Wasm module"),
            run: |s| Box::pin(hot_restart(s)),
        },
        Event {
            name: "scout",
            about: "a scout at work under load, before a far end that closes the scout's connections when they have been idle for a second",
            own: None,
            run: |s| Box::pin(scout(s)),
        },
        Event {
            name: "own-vm-dies",
            about: "the worker's VM traps on a request, `failure_policy: FAIL_RELOAD`",
            own: Some(
                "a Wasm VM that dies takes its worker's requests with it until there is a new one: letting them pass would let clients choose their own address",
            ),
            run: |s| Box::pin(vm_dies(s)),
        },
    ]
}

async fn hot_restart(subject: Subject) -> Result<Vec<Figure>> {
    let host = Host::start(Mood::Good).await?;
    let mut stage = Stage::restartable(subject, &[&host]).await?;
    let mut traffic = Traffic::start(stage.ingress, 4);
    traffic.more(100).await?;
    let mut first = stage.hot_restart().await?;
    let name = stage.in_force();
    stage.until("traffic through the second Envoy", |clusters| requests_of(clusters, name) > 0).await?;
    let mut most = 0;
    let end = Instant::now() + Duration::from_secs(60);
    while first.is_running() {
        anyhow::ensure!(Instant::now() < end, "the first Envoy does not end: {}", first.log_tail());
        most = most.max(stage.envoy.stat(middle::LANE).await?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let names = stage.cluster_names();
    let elsewhere = |clusters: &str| -> u64 {
        names.iter().filter(|other| *other != name).map(|other| requests_of(clusters, other)).sum()
    };
    let before = elsewhere(&stage.clusters_text().await?);
    traffic.more(200).await?;
    let after = elsewhere(&stage.clusters_text().await?);
    let answers = traffic.stop().await;
    Ok(vec![
        failures("failed requests", &answers),
        figure("on another lane afterwards", after - before),
        // Plain has no gauge of this name.
        figure("idle timeouts in the gauge of the lane in force", most / subject.idle_timeout_ms()).or_more(2),
    ])
}

/// The project's own configuration, whole.
fn with_scout(subject: Subject, host: &Host) -> Result<Config> {
    let config = Config::project()?.free_ports().upstream(host.address);
    let config = config.edit_scout_filter(|scout| scout["path"] = "/healthz".into());
    Ok(match subject {
        Subject::Plain => config.without_idleguard(),
        Subject::Base => config.lb_idle_timeout("2h"),
        Subject::Lane => config.lb_idle_timeout("60s"),
    })
}

async fn scout(subject: Subject) -> Result<Vec<Figure>> {
    let host = Host::start(Mood::ClosesScouts).await?;
    let envoy = middle::start(&broken(subject, with_scout(subject, &host)?), Subject::Plain).await?;
    let mut traffic = Traffic::start(envoy.ingress(), 4);
    traffic.more(100).await?;
    if subject != Subject::Plain {
        let found = "wasmcustom.idleguard.scout.payments.lb_idle_timeout_ms";
        let within = Duration::from_secs(60);
        envoy.wait_for(within, "scout", |stats| stats.get(found).is_some_and(|found| *found > 0)).await?;
    }
    traffic.more(200).await?;
    Ok(vec![failures("failed requests", &traffic.stop().await)])
}

/// The module, but that request trailers make it trap.
fn trapping() -> Result<Vec<u8>> {
    let mut module = walrus::ModuleConfig::new().parse_file(project::wasm()?)?;
    let callback = module.exports.get_func("proxy_on_request_trailers")?;
    module.replace_exported_func(callback, |(body, _)| {
        body.unreachable();
    })?;
    Ok(module.emit_wasm())
}

/// A request with trailers, on a connection of its own.
async fn with_trailers(envoy: &Envoy) -> Result<()> {
    let stream = TcpStream::connect(envoy.ingress()).await?;
    let mut http = Http1::new(Wire::new(stream), Side::Client, "case.example");
    let steps = [Do::request("POST", Framing::Chunked), Do::Data(1), Do::Trailers(&[("x-up", "1")]), Do::ExpectEnd];
    http.run(&steps, "/", &Signals::default()).await;
    Ok(())
}

async fn vm_dies(subject: Subject) -> Result<Vec<Figure>> {
    let host = Host::start(Mood::Good).await?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("trapping.wasm");
    std::fs::write(&path, trapping()?)?;
    let config = own()?
        .upstream(host.address)
        .set(&format!("{HTTP_MANAGER}/http_protocol_options"), serde_json::json!({ "enable_trailers": true }));
    let envoy = middle::start(&broken(subject, for_subject(config, subject).wasm(&path)), subject).await?;
    let mut client = None;
    let mut good = ask(envoy.ingress(), &mut client).await == 200;
    anyhow::ensure!(good, "no answer before: {}", envoy.log_tail());
    with_trailers(&envoy).await?;
    let dead = Instant::now();
    let mut failed = 0;
    loop {
        good = ask(envoy.ingress(), &mut client).await == 200;
        if good {
            break;
        }
        failed += 1;
        anyhow::ensure!(dead.elapsed() < Duration::from_secs(60), "no new VM: {}", envoy.log_tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let seconds = if failed == 0 { 0 } else { dead.elapsed().as_secs() + 1 };
    let name = if subject == Subject::Lane { "payments-54s" } else { "payments" };
    let sent = requests_of(&http::get(envoy.admin(), "/clusters").await?.text(), name);
    let mut traffic = Traffic::start(envoy.ingress(), 4);
    traffic.more(200).await?;
    let answers = traffic.stop().await;
    let more = requests_of(&http::get(envoy.admin(), "/clusters").await.context("/clusters")?.text(), name) - sent;
    Ok(vec![
        figure("seconds until requests are answered again, rounded up", seconds).or_more(10),
        failures("failed afterwards", &answers),
        figure("on another lane afterwards", answers.good().saturating_sub(more)),
    ])
}

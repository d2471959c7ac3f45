//! Hosts come, go, fall ill and are slow.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::server;
use idleguard_harness::envoy::Config;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::TcpListener,
    time::{sleep, timeout},
};

use super::{
    Event, Figure, broken, failures, figure,
    limits::{ask_many, until_in_flight},
};
use crate::{
    middle,
    setup::{BASE, LANES, ROUTES, Subject, for_subject, own, protocol},
    stage::{Host, Mood, Stage, Traffic, ask, load},
};

/// The rows.
pub(super) fn all() -> Vec<Event> {
    vec![
        Event {
            name: "host-removed",
            about: "one of two hosts is taken out by EDS",
            own: None,
            run: |s| Box::pin(removed(s)),
        },
        Event { name: "host-added", about: "a second host comes by EDS", own: None, run: |s| Box::pin(added(s)) },
        Event {
            name: "host-unhealthy",
            about: "one of two hosts fails its active health check",
            own: None,
            run: |s| Box::pin(unhealthy(s)),
        },
        Event {
            name: "host-ejected",
            about: "one of two hosts answers 503, outlier detection on",
            own: None,
            run: |s| Box::pin(ejected(s)),
        },
        Event {
            name: "host-refuses",
            about: "one of two hosts refuses connections, with retries",
            own: None,
            run: |s| Box::pin(refuses(s)),
        },
        Event {
            name: "host-restarts",
            about: "one of two hosts is restarted five times under load, with retries",
            own: None,
            run: |s| Box::pin(restarts(s)),
        },
        Event {
            name: "host-drops-one",
            about: "60 idle connections; the far end resets the next request's",
            own: None,
            run: |s| Box::pin(drops_one(s)),
        },
        Event {
            name: "http2-ping",
            about: "HTTP/2 with PINGs every 200 ms, before a far end that closes what had no stream for three seconds, which is known",
            own: None,
            run: |s| Box::pin(pinged(s)),
        },
        Event {
            name: "host-slow",
            about: "two hosts of different speed, least request",
            own: None,
            run: |s| Box::pin(slow(s)),
        },
        Event {
            name: "host-forgets",
            about: "a far end resets connections that were idle for a second",
            own: None,
            run: |s| Box::pin(forgets(s)),
        },
        Event {
            name: "own-ejections",
            about: "as host-ejected, and then the lane changes",
            own: Some("ejections are forgotten at a change of lane: 5 requests more to a bad host"),
            run: |s| Box::pin(ejected_again(s)),
        },
        Event {
            name: "own-health-checks",
            about: "active health checks of one host",
            own: Some("each lane checks the health of each host"),
            run: |s| Box::pin(health_checks(s)),
        },
    ]
}

async fn pair() -> Result<(Host, Host)> {
    Ok((Host::start(Mood::Good).await?, Host::start(Mood::Good).await?))
}

async fn removed(subject: Subject) -> Result<Vec<Figure>> {
    let (stays, goes) = pair().await?;
    let mut stage = Stage::start(subject, &[&stays, &goes], |config| config).await?;
    let mut traffic = Traffic::start(stage.ingress, 4);
    traffic.more(100).await?;
    stage.set_hosts(&[&stays]).await?;
    traffic.more(8).await?; // those that were under way
    let before = goes.requests();
    traffic.more(300).await?;
    let answers = traffic.stop().await;
    Ok(vec![
        figure("requests to the host that is gone", goes.requests() - before),
        failures("failed requests", &answers),
    ])
}

async fn added(subject: Subject) -> Result<Vec<Figure>> {
    let (first, second) = pair().await?;
    let mut stage = Stage::start(subject, &[&first], |config| config).await?;
    let mut traffic = Traffic::start(stage.ingress, 4);
    traffic.more(100).await?;
    stage.set_hosts(&[&first, &second]).await?;
    traffic.more(300).await?;
    let answers = traffic.stop().await;
    let is_left_out = second.requests() < 50;
    Ok(vec![failures("failed requests", &answers), figure("the new host is left out", is_left_out.into())])
}

fn checked(config: Config) -> Config {
    config.set(&format!("{BASE}/health_checks"), json!([{
        "timeout": "20s", "interval": "0.1s", "no_traffic_interval": "0.1s", "unhealthy_threshold": 1, "healthy_threshold": 1,
        "http_health_check": { "path": "/healthz" },
    }]))
}

async fn unhealthy(subject: Subject) -> Result<Vec<Figure>> {
    let (good, bad) = pair().await?;
    let stage = Stage::start(subject, &[&good, &bad], checked).await?;
    let healthy = |clusters: &str, host: &Host| {
        clusters.contains(&format!("{}::{}::health_flags::healthy", stage.in_force(), host.address))
    };
    stage.until("both are healthy", |clusters| healthy(clusters, &good) && healthy(clusters, &bad)).await?;
    let mut traffic = Traffic::start(stage.ingress, 4);
    traffic.more(100).await?;
    bad.set(Mood::Bad(503));
    // Plain's own word, so that a lane that does not check is found, not waited for.
    stage
        .until("the base knows", |clusters| {
            clusters.contains(&format!("payments::{}::health_flags::/failed_active_hc", bad.address))
        })
        .await?;
    let checks = good.health_checkers();
    for _ in 0..20 {
        // The lanes check as often as the base: they know when it has been long enough for ten rounds.
        sleep(Duration::from_millis(50)).await;
    }
    traffic.more(8).await?;
    let (before, failed) = (bad.requests(), traffic.answers().failed());
    traffic.more(300).await?;
    let answers = traffic.stop().await;
    Ok(vec![
        figure("requests to the unhealthy host", bad.requests() - before),
        figure("failed requests, once it is known", answers.failed() - failed),
        figure("nobody checks", u64::from(checks == 0)),
    ])
}

fn detected(config: Config) -> Config {
    config.set(&format!("{BASE}/outlier_detection"), json!({
        "consecutive_5xx": 5, "base_ejection_time": "300s", "max_ejection_time": "300s", "max_ejection_percent": 100,
    }))
}

/// Requests one after the other until the bad host has had so many, or there were 60; how many failed.
async fn until_bad(stage: &Stage, bad: &Host, requests: u64) -> u64 {
    let (mut client, mut failed) = (None, 0);
    for _ in 0..60 {
        if bad.requests() < requests {
            failed += u64::from(ask(stage.ingress, &mut client).await != 200);
        }
    }
    failed
}

/// That a host is out reaches the worker a moment after the fifth failure: what fails in that moment is chance, with plain, too.
async fn until_out(stage: &Stage) {
    let (mut client, mut good_in_a_row) = (None, 0);
    for _ in 0..400 {
        good_in_a_row = if ask(stage.ingress, &mut client).await == 200 { good_in_a_row + 1 } else { 0 };
        if good_in_a_row == 20 {
            return;
        }
    }
}

async fn ejected(subject: Subject) -> Result<Vec<Figure>> {
    let (good, bad) = pair().await?;
    bad.set(Mood::Bad(503));
    let stage = Stage::start(subject, &[&good, &bad], detected).await?;
    let failed = until_bad(&stage, &bad, 5).await;
    until_out(&stage).await;
    let before = bad.requests();
    let answers = load(stage.ingress, 1, 300).await?;
    Ok(vec![
        figure("failed requests until it is out", failed),
        failures("failed requests of 300 afterwards", &answers),
        figure("requests to it afterwards", bad.requests() - before),
    ])
}

async fn ejected_again(subject: Subject) -> Result<Vec<Figure>> {
    let (good, bad) = pair().await?;
    bad.set(Mood::Bad(503));
    let mut stage = Stage::start(subject, &[&good, &bad], detected).await?;
    let mut failed = until_bad(&stage, &bad, 5).await;
    until_out(&stage).await;
    let mut traffic = Traffic::start(stage.ingress, 1);
    let before = bad.requests();
    stage.change_lane().await?;
    traffic.more(60).await?;
    until_out(&stage).await;
    failed += (bad.requests() - before).min(5); // more is chance, as above
    let after = bad.requests();
    traffic.more(200).await?;
    traffic.stop().await;
    Ok(vec![
        figure("failed requests", failed).or_more(5),
        figure("requests to the bad host of the last 200", bad.requests() - after),
    ])
}

fn retried(config: Config) -> Config {
    config.set(&format!("{}/1/route/retry_policy", ROUTES), json!({
        "retry_on": "connect-failure,reset", "num_retries": 5, "retry_host_predicate": [{
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate" },
        }], "host_selection_retry_max_attempts": 5,
    }))
}

async fn refuses(subject: Subject) -> Result<Vec<Figure>> {
    let (good, gone) = pair().await?;
    let address = gone.address;
    let stage = Stage::start(subject, &[&good, &gone], retried).await?;
    drop(gone); // nobody listens there any more
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        sleep(Duration::from_millis(5)).await;
    }
    let before = good.connections();
    let answers = load(stage.ingress, 4, 300).await?;
    Ok(vec![
        failures("failed requests of 300", &answers),
        figure("connections to the healthy host", good.connections() - before).or_more(4),
    ])
}

async fn restarts(subject: Subject) -> Result<Vec<Figure>> {
    let (stays, mut restarts) = pair().await?;
    let stage = Stage::start(subject, &[&stays, &restarts], retried).await?;
    let mut traffic = Traffic::start(stage.ingress, 4);
    traffic.more(100).await?;
    for _ in 0..5 {
        restarts.restart().await?;
        traffic.more(60).await?;
    }
    let answers = traffic.stop().await;
    Ok(vec![
        failures("failed requests", &answers),
        figure("connections to the other host, with four clients", stays.connections()).or_more(4),
    ])
}

async fn drops_one(subject: Subject) -> Result<Vec<Figure>> {
    const IDLE: usize = 60;
    let host = Host::start(Mood::Held).await?;
    let stage = Stage::start(subject, &[&host], |config| config).await?;
    let all_at_once = async |count: usize| -> Result<u64> {
        host.set(Mood::Held);
        let mut asking = ask_many(&stage, count);
        until_in_flight(&host, count as u64).await?;
        host.set(Mood::Good);
        let mut failed = 0;
        while let Some(status) = asking.join_next().await {
            failed += u64::from(status? != 200);
        }
        Ok(failed)
    };
    let mut failed = all_at_once(IDLE).await?;
    host.set(Mood::Resets);
    let dropped = ask(stage.ingress, &mut None).await;
    ensure!(dropped == 503, "the request that the far end drops was answered with {dropped}");
    let before = host.connections();
    failed += all_at_once(IDLE - 1).await?;
    Ok(vec![
        figure("idle connections closed with it, of 59", host.connections() - before),
        figure("failed requests but that one", failed),
    ])
}

/// Closes a connection that has had no stream for three seconds. Whether it did, and what came on it since the last answer.
async fn closes_without_streams(listener: TcpListener) -> Result<(bool, usize)> {
    let (stream, _) = listener.accept().await?;
    let (near, far) = duplex(64 * 1024);
    let (mut from_envoy, mut to_envoy) = stream.into_split();
    let (mut from_far, mut to_far) = tokio::io::split(far);
    let (count, counted) = tokio::sync::watch::channel(0);
    let coming = tokio::spawn(async move {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = from_envoy.read(&mut bytes).await {
            count.send_modify(|count| *count += length);
            if to_far.write_all(&bytes[..length]).await.is_err() {
                break;
            }
        }
        let _ = to_far.shutdown().await; // the far end may have closed
    });
    let going = tokio::spawn(async move { tokio::io::copy(&mut from_far, &mut to_envoy).await });
    let mut connection = server::handshake(near).await?;
    let mut before = 0;
    let by_far_end = loop {
        match timeout(Duration::from_secs(3), connection.accept()).await {
            Err(_) => break true,
            Ok(Some(Ok((_, mut respond)))) => {
                respond.send_response(http::Response::new(()), true)?;
                before = *counted.borrow();
            }
            Ok(_) => break false,
        }
    };
    let since = *counted.borrow() - before;
    drop::<server::Connection<_, Bytes>>(connection);
    coming.abort();
    going.abort();
    Ok((by_far_end, since))
}

async fn pinged(subject: Subject) -> Result<Vec<Figure>> {
    /// The length of a PING.
    const PING: usize = 17;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let keepalive =
        json!({ "http2_protocol_options": { "connection_keepalive": { "interval": "0.2s", "timeout": "20s" } } });
    let config = for_subject(protocol(own()?.upstream(listener.local_addr()?), keepalive), subject);
    let config = broken(subject, config);
    let envoy = match subject {
        Subject::Lane => {
            let envoy = middle::start(&config.policy("lb_idle_timeout", "3s"), Subject::Plain).await?;
            envoy
                .wait_for(Duration::from_secs(30), "destination", |stats| stats.get(middle::LANE) == Some(&900))
                .await?;
            envoy
        }
        _ => middle::start(&config, subject).await?,
    };
    let far_end = tokio::spawn(closes_without_streams(listener));
    let failed = u64::from(ask(envoy.ingress(), &mut None).await != 200);
    let (by_far_end, bytes) = timeout(Duration::from_secs(30), far_end).await.context("nobody closes")???;
    ensure!(bytes >= PING, "{bytes} bytes came on the idle connection: no PINGs");
    // Plain can't know; a lane is there for it.
    let is_late = subject == Subject::Lane && by_far_end;
    Ok(vec![
        figure("closed by the far end first", by_far_end.into()),
        figure("by the far end first, though a lane is in force", is_late.into()),
        figure("failed requests", failed),
    ])
}

async fn slow(subject: Subject) -> Result<Vec<Figure>> {
    let fast = Host::start(Mood::Good).await?;
    let slow = Host::start(Mood::Late(Duration::from_millis(100))).await?;
    let stage =
        Stage::start(subject, &[&fast, &slow], |config| config.set(&format!("{BASE}/lb_policy"), "LEAST_REQUEST"))
            .await?;
    let answers = load(stage.ingress, 8, 400).await?;
    let share = 100 * slow.requests() / (slow.requests() + fast.requests());
    Ok(vec![
        failures("failed requests", &answers),
        figure("% of the requests at the slow host (±15 from run to run)", share).or_more(15),
    ])
}

/// Each request finds its connection idle for 1.2 s. Plain fails every other one: those between are on new connections.
async fn forgets(subject: Subject) -> Result<Vec<Figure>> {
    let host = Host::start(Mood::Forgetful).await?;
    let stage = Stage::start(subject, &[&host], |config| config).await?;
    let (mut client, mut failed) = (None, 0);
    for _ in 0..8 {
        failed += u64::from(ask(stage.ingress, &mut client).await != 200);
        sleep(Duration::from_millis(1_200)).await;
    }
    Ok(vec![figure("failed requests of 8", failed)])
}

async fn health_checks(subject: Subject) -> Result<Vec<Figure>> {
    let host = Host::start(Mood::Good).await?;
    let _stage = Stage::start(subject, &[&host], checked).await?;
    let checked = async {
        while host.health_checks() < 40 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), checked).await.context("no health checks")?;
    Ok(vec![figure("health checkers of one host", host.health_checkers()).or_more(LANES.len() as u64)])
}

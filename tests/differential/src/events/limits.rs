//! Circuit breakers, rate limits, and what is asked for clusters.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::Result;
use idleguard_harness::envoy::Config;
use serde_json::json;
use tokio::{net::UdpSocket, task::JoinSet};

use super::{Event, Figure, broken, figure};
use crate::{
    middle,
    setup::{BASE, HTTP_MANAGER, LANES, ROUTES, Subject, for_subject, own},
    stage::{Host, Mood, Stage, Traffic, ask, load},
};

/// The rows.
pub(super) fn all() -> Vec<Event> {
    vec![
        Event {
            name: "breaker",
            about: "20 requests at once where 5 may be under way",
            own: None,
            run: |s| Box::pin(breaker(s)),
        },
        Event {
            name: "own-breaker",
            about: "5 requests under way where 5 may be, a change of lane, and 10 more",
            own: Some(
                "circuit breakers count for each lane: after a change twice as many can be under way, until the old ones are done",
            ),
            run: |s| Box::pin(breaker_twice(s)),
        },
        Event {
            name: "own-rate-limit",
            about: "a route's local rate limit of 10, 50 requests, a change of lane, 50 more",
            own: Some("a route's local rate limit counts for each lane"),
            run: |s| Box::pin(rate_limit(s)),
        },
        Event {
            name: "own-signatures",
            about: "`aws_request_signing` between idleguard and the router, ten requests",
            own: Some(
                "what stands behind idleguard sees its header, and signs it; the router takes it out: put it in front",
            ),
            run: |s| Box::pin(signatures(s)),
        },
        Event {
            name: "own-dns",
            about: "a cluster whose endpoint is a name, at the start",
            own: Some("each lane looks up the name for itself"),
            run: |s| Box::pin(dns(s)),
        },
    ]
}

fn limited(config: Config) -> Config {
    config.set(
        &format!("{BASE}/circuit_breakers"),
        json!({ "thresholds": [{ "max_requests": 5, "max_pending_requests": 5, "max_connections": 5 }] }),
    )
}

pub(super) fn ask_many(stage: &Stage, count: usize) -> JoinSet<u16> {
    let address = stage.ingress;
    let mut asking = JoinSet::new();
    for _ in 0..count {
        asking.spawn(async move { ask(address, &mut None).await });
    }
    asking
}

pub(super) async fn until_in_flight(host: &Host, count: u64) -> Result<()> {
    let wait = async {
        while host.in_flight() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    Ok(tokio::time::timeout(Duration::from_secs(30), wait).await?)
}

async fn breaker(subject: Subject) -> Result<Vec<Figure>> {
    let host = Host::start(Mood::Held).await?;
    let stage = Stage::start(subject, &[&host], limited).await?;
    let first = ask_many(&stage, 5);
    until_in_flight(&host, 5).await?;
    let mut more = ask_many(&stage, 15);
    // All but those that may wait are turned away at once.
    let mut refused = 0;
    while refused < 10 {
        match more.join_next().await {
            Some(status) => refused += u64::from(status? == 503),
            None => break,
        }
    }
    let most = host.most_in_flight();
    host.set(Mood::Good);
    let mut good = 0;
    for mut asking in [first, more] {
        while let Some(status) = asking.join_next().await {
            good += u64::from(status? == 200);
        }
    }
    Ok(vec![
        figure("requests under way at once", most),
        figure("refused of 20", refused),
        figure("not answered of 20", 20 - good - refused),
    ])
}

async fn breaker_twice(subject: Subject) -> Result<Vec<Figure>> {
    let host = Host::start(Mood::Good).await?;
    let mut stage = Stage::start(subject, &[&host], limited).await?;
    host.set(Mood::Held);
    let mut first = ask_many(&stage, 5);
    until_in_flight(&host, 5).await?;
    if subject != Subject::Plain {
        stage.edit_plugin(|json| json["destinations"]["payments"]["lb_idle_timeout"] = "5s".into()).await?;
        // Envoy counts the change before its worker has it.
        let within = Duration::from_secs(30);
        stage.envoy.wait_for(within, "destination", |stats| stats.get(middle::LANE) == Some(&4_000)).await?;
    }
    let mut second = ask_many(&stage, 10);
    // Plain lets five wait and refuses five; a new lane sends five, and refuses up to five while they connect.
    let wait = stage.envoy.wait_for(Duration::from_secs(30), "upstream_rq_pending", |stats| {
        let count = |name| stats.get(&format!("cluster.payments.upstream_rq_pending_{name}")).copied().unwrap_or(0);
        host.in_flight() + count("active") + count("overflow") >= 15
    });
    wait.await?;
    let most = host.most_in_flight();
    host.set(Mood::Good);
    let mut failed = 0;
    for asking in [&mut first, &mut second] {
        while let Some(status) = asking.join_next().await {
            failed += u64::from(status? != 200);
        }
    }
    Ok(vec![figure("requests under way at once", most).or_more(5), figure("failed of 15", failed)])
}

async fn rate_limit(subject: Subject) -> Result<Vec<Figure>> {
    let host = Host::start(Mood::Good).await?;
    let limit = json!({ "envoy.filters.http.local_ratelimit": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "limit",
        "token_bucket": { "max_tokens": 10, "tokens_per_fill": 1, "fill_interval": "3600s" },
        "filter_enabled": { "default_value": { "numerator": 100 } },
        "filter_enforced": { "default_value": { "numerator": 100 } },
    }});
    let mut stage = Stage::start(subject, &[&host], |config| {
        config.set(&format!("{ROUTES}/1/typed_per_filter_config"), limit).insert(
            &format!("{HTTP_MANAGER}/http_filters"),
            Some(1),
            json!({ "name": "envoy.filters.http.local_ratelimit", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit", "stat_prefix": "limit",
            }}),
        )
    })
    .await?;
    let first = load(stage.ingress, 1, 50).await?.good();
    let mut traffic = Traffic::start(stage.ingress, 1);
    stage.change_lane().await?;
    traffic.more(50).await?;
    let second = traffic.stop().await.good();
    Ok(vec![figure("passed of 50", first), figure("passed of 50 more", second).or_more(10)])
}

async fn signatures(subject: Subject) -> Result<Vec<Figure>> {
    let host = Host::start(Mood::Good).await?;
    let signing = json!({ "name": "aws", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.aws_request_signing.v3.AwsRequestSigning",
        "service_name": "s3", "region": "eu-central-1", "use_unsigned_payload": true,
        "credential_provider": { "inline_credential": { "access_key_id": "differential", "secret_access_key": "none" } },
    }});
    let filters = format!("{HTTP_MANAGER}/http_filters");
    let stage = Stage::start(subject, &[&host], |config| config.insert(&filters, Some(1), signing)).await?;
    let (mut client, mut failed) = (None, 0);
    for _ in 0..10 {
        failed += u64::from(ask(stage.ingress, &mut client).await != 200);
    }
    Ok(vec![
        figure("signed headers that do not arrive", host.lost_signed_headers()).or_more(10),
        figure("failed requests of 10", failed),
    ])
}

/// A name server that knows one address, for every name; it ends with the task.
async fn name_server(count: Arc<AtomicU64>) -> Result<(u16, tokio::task::JoinHandle<()>)> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = socket.local_addr()?.port();
    let task = tokio::spawn(async move {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query).await {
            count.fetch_add(1, SeqCst);
            // The header, and the question up to its type and class; what may follow (EDNS) is left out.
            let Some(name) = query[12..length].iter().position(|byte| *byte == 0) else { continue };
            let mut answer = query[..(12 + name + 5).min(length)].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            // A pointer to the name, A, IN, an hour, four bytes.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 127, 0, 0, 1]);
            let _ = socket.send_to(&answer, from).await; // it asks again
        }
    });
    Ok((port, task))
}

async fn dns(subject: Subject) -> Result<Vec<Figure>> {
    let host = Host::start(Mood::Good).await?;
    let asked = Arc::<AtomicU64>::default();
    let (port, server) = name_server(Arc::clone(&asked)).await?;
    let resolver = json!({ "name": "envoy.network.dns_resolver.cares", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        "resolvers": [{ "socket_address": { "address": "127.0.0.1", "port_value": port } }],
        "dns_resolver_options": { "no_default_search_domain": true },
    }});
    let config = own()?
        .upstream_name("far.example", host.address.port())
        .set(&format!("{BASE}/dns_lookup_family"), "V4_ONLY")
        .set(&format!("{BASE}/dns_refresh_rate"), "3600s")
        .set(&format!("{BASE}/typed_dns_resolver_config"), resolver);
    // Envoy is ready when all its clusters have been looked up.
    let envoy = middle::start(&broken(subject, for_subject(config, subject)), subject).await?;
    let failed = load(envoy.ingress(), 1, 10).await?.failed();
    server.abort();
    Ok(vec![
        figure("look-ups of one name", asked.load(SeqCst)).or_more(LANES.len() as u64),
        figure("failed requests of 10", failed),
    ])
}

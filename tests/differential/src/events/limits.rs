//! Circuit breakers and rate limits.

use anyhow::Result;
use serde_json::json;
use tokio::task::JoinSet;

use super::{Event, Figure, figure};
use crate::{
    setup::{BASE, HTTP_MANAGER, ROUTES, Subject},
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
            about: "5 requests under way where 5 may be, a change of lane, and 5 more",
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
    ]
}

fn limited(config: idleguard_harness::envoy::Config) -> idleguard_harness::envoy::Config {
    config.set(
        &format!("{BASE}/circuit_breakers"),
        json!({ "thresholds": [{ "max_requests": 5, "max_pending_requests": 5, "max_connections": 5 }] }),
    )
}

fn ask_many(stage: &Stage, count: usize) -> JoinSet<u16> {
    let address = stage.ingress;
    let mut asking = JoinSet::new();
    for _ in 0..count {
        asking.spawn(async move { ask(address, &mut None).await });
    }
    asking
}

async fn until_in_flight(host: &Host, count: u64) -> Result<()> {
    let wait = async {
        while host.in_flight() < count {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    Ok(tokio::time::timeout(std::time::Duration::from_secs(30), wait).await?)
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
    }
    let mut second = ask_many(&stage, 5);
    // Plain lets five wait; a new lane sends them.
    if subject == Subject::Plain {
        let wait = stage.envoy.wait_for(std::time::Duration::from_secs(30), "payments", |stats| {
            stats.get("cluster.payments.upstream_rq_pending_active").copied().unwrap_or(0) >= 5
        });
        wait.await?;
    } else {
        until_in_flight(&host, 10).await?;
    }
    let most = host.most_in_flight();
    host.set(Mood::Good);
    let mut failed = 0;
    for asking in [&mut first, &mut second] {
        while let Some(status) = asking.join_next().await {
            failed += u64::from(status? != 200);
        }
    }
    Ok(vec![Figure { what: "requests under way at once", count: most, more: 5 }, figure("failed of 10", failed)])
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
    Ok(vec![figure("passed of 50", first), Figure { what: "passed of 50 more", count: second, more: 10 }])
}

//! Clusters, routes, listeners and the plugin's configuration are replaced under load; lanes come and go.

use anyhow::Result;
use idleguard_harness::envoy::Config;
use serde_json::{Value, json};

use super::{Event, Figure, failures, figure};
use crate::{
    setup::{LANES, Subject, lane, lane_route},
    stage::{Host, Mood, Stage, Traffic, requests_of},
};

/// The rows.
pub(super) fn all() -> Vec<Event> {
    vec![
        Event {
            name: "own-lane-change",
            about: "the lane changes under load, and back",
            own: Some("each connection in use is opened anew once, in the lane's pool"),
            run: |s| Box::pin(lane_change(s)),
        },
        Event {
            name: "cluster-changed",
            about: "all clusters are replaced by CDS under load",
            own: None,
            run: |s| Box::pin(cluster(s)),
        },
        Event {
            name: "routes-changed",
            about: "the routes are replaced by RDS under load",
            own: None,
            run: |s| Box::pin(routes(s)),
        },
        Event {
            name: "listener-changed",
            about: "the listener is replaced by LDS under load",
            own: None,
            run: |s| Box::pin(listener(s)),
        },
        Event {
            name: "plugin-changed",
            about: "the plugin's configuration is replaced by ECDS ten times under load",
            own: None,
            run: |s| Box::pin(plugin(s)),
        },
        Event {
            name: "plugin-refused",
            about: "a plugin configuration comes that Envoy must refuse",
            own: None,
            run: |s| Box::pin(plugin_refused(s)),
        },
        Event {
            name: "lanes-added",
            about: "lanes come: clusters, routes, plugin",
            own: None,
            run: |s| Box::pin(lanes_added(s)),
        },
        Event {
            name: "lanes-added-plugin-first",
            about: "lanes come: plugin, clusters, routes",
            own: None,
            run: |s| Box::pin(plugin_first(s)),
        },
        Event {
            name: "lanes-removed",
            about: "lanes go: plugin, routes, clusters",
            own: None,
            run: |s| Box::pin(lanes_removed(s)),
        },
        Event {
            name: "lanes-validated",
            about: "routes to lanes come before their clusters, with validate_clusters",
            own: None,
            run: |s| Box::pin(validated(s)),
        },
        Event {
            name: "own-lanes-without-clusters",
            about: "lanes come: plugin, routes, clusters; 100 requests before the clusters are there",
            own: Some(
                "a token that leads to a cluster which isn't there is a 503: clusters first, or `validate_clusters`",
            ),
            run: |s| Box::pin(wrong_order(s)),
        },
        Event {
            name: "own-lanes-removed-clusters-first",
            about: "lanes go: clusters, 100 requests, then plugin and routes",
            own: Some("as above: plugin first, then routes, then clusters"),
            run: |s| Box::pin(removed_clusters_first(s)),
        },
        Event {
            name: "own-lanes-without-service-name",
            about: "lanes come whose EDS has no `service_name`, and 100 requests; then lanes that have it",
            own: Some(
                "a copy without the base's `service_name` asks EDS for its own name, which nobody knows; `check` finds it",
            ),
            run: |s| Box::pin(without_service_name(s)),
        },
        Event { name: "drain", about: "the listeners drain under load", own: None, run: |s| Box::pin(drain(s)) },
    ]
}

async fn begun(subject: Subject) -> Result<(Host, Stage, Traffic)> {
    let host = Host::start(Mood::Good).await?;
    let stage = Stage::start(subject, &[&host], |config| config).await?;
    let mut traffic = Traffic::start(stage.ingress, 4);
    traffic.more(100).await?;
    Ok((host, stage, traffic))
}

async fn ended(mut traffic: Traffic) -> Result<Vec<Figure>> {
    traffic.more(200).await?;
    Ok(vec![failures("failed requests", &traffic.stop().await)])
}

/// Of the next 100 requests, those under way not counted.
async fn failed_of_100(traffic: &mut Traffic) -> Result<u64> {
    traffic.more(8).await?;
    let before = traffic.answers().failed();
    traffic.more(100).await?;
    Ok((traffic.answers().failed() - before).min(100))
}

async fn lane_change(subject: Subject) -> Result<Vec<Figure>> {
    let (host, mut stage, mut traffic) = begun(subject).await?;
    let before = host.connections();
    stage.change_lane().await?;
    traffic.more(200).await?;
    let opened = host.connections() - before;
    stage.edit_plugin(|json| json["destinations"]["payments"]["lb_idle_timeout"] = "2h".into()).await?;
    let mut figures = ended(traffic).await?;
    figures.push(figure("connections opened by a change, with four clients", opened).or_more(4));
    Ok(figures)
}

async fn cluster(subject: Subject) -> Result<Vec<Figure>> {
    let (_host, mut stage, traffic) = begun(subject).await?;
    stage.edit_clusters(|cluster| cluster["connect_timeout"] = "6s".into()).await?;
    ended(traffic).await
}

async fn routes(subject: Subject) -> Result<Vec<Figure>> {
    let (_host, mut stage, traffic) = begun(subject).await?;
    stage
        .edit_routes(|routes| {
            if let Some(list) = routes.pointer_mut("/virtual_hosts/0/routes").and_then(Value::as_array_mut) {
                list.iter_mut().for_each(|route| route["route"]["timeout"] = "14s".into());
            }
        })
        .await?;
    ended(traffic).await
}

async fn listener(subject: Subject) -> Result<Vec<Figure>> {
    let (_host, mut stage, traffic) = begun(subject).await?;
    stage.edit_listener(|listener| listener["per_connection_buffer_limit_bytes"] = 65_536.into()).await?;
    ended(traffic).await
}

async fn plugin(subject: Subject) -> Result<Vec<Figure>> {
    let (_host, mut stage, mut traffic) = begun(subject).await?;
    for round in 0..10 {
        let margin = format!("{}%", 10 + round % 2);
        stage.edit_plugin(|json| json["destinations"]["payments"]["margin"] = margin.into()).await?;
        traffic.more(20).await?;
    }
    ended(traffic).await
}

async fn plugin_refused(subject: Subject) -> Result<Vec<Figure>> {
    let (_host, mut stage, mut traffic) = begun(subject).await?;
    stage.refuse_plugin(|json| json["destinations"]["payments"]["margin"] = "lots".into()).await?;
    traffic.more(50).await?;
    ended(traffic).await
}

fn add_routes(routes: &mut Value) {
    let Some(list) = routes.pointer_mut("/virtual_hosts/0/routes").and_then(Value::as_array_mut) else { return };
    let mut all: Vec<Value> = LANES
        .iter()
        .flat_map(|text| list.iter().filter_map(|route| lane_route(route, text)).collect::<Vec<_>>())
        .collect();
    all.append(list);
    *list = all;
}

fn remove_routes(routes: &mut Value) {
    if let Some(list) = routes.pointer_mut("/virtual_hosts/0/routes").and_then(Value::as_array_mut) {
        list.retain(|route| route["route"]["cluster"] == "payments");
    }
}

/// The base, and its lanes.
fn with_lanes(stage: &Stage) -> Vec<Value> {
    let base = stage.clusters().swap_remove(0);
    let lanes: Vec<Value> = LANES.iter().map(|text| lane(&base, text)).collect();
    [vec![base], lanes].concat()
}

async fn add_clusters(stage: &mut Stage) -> Result<()> {
    let clusters = with_lanes(stage);
    stage.set_clusters(clusters).await?;
    let host = stage.in_force();
    stage.until("the lanes are warm", |clusters| clusters.contains(&format!("{host}::127."))).await
}

/// The plugin learns of lanes, of which one is then in force.
async fn add_to_plugin(stage: &mut Stage) -> Result<()> {
    let timeout = stage.subject.lb_idle_timeout();
    stage
        .edit_plugin(|json| {
            let payments = &mut json["destinations"]["payments"];
            payments["lb_idle_timeout"] = timeout.into();
            payments["lanes"] = LANES.iter().map(|text| (format!("payments-{text}"), Value::from(*text))).collect();
        })
        .await
}

/// Watching only: neither lanes nor routes.
async fn without_lanes(subject: Subject) -> Result<(Host, Stage, Traffic)> {
    let host = Host::start(Mood::Good).await?;
    let configured = |config: Config| match subject {
        Subject::Plain => config.without_idleguard(),
        _ => config.lanes(&[]).policy("lb_idle_timeout", "2h"),
    };
    let stage = Stage::start_with(subject, &[&host], configured, false).await?;
    let mut traffic = Traffic::start(stage.ingress, 4);
    traffic.more(100).await?;
    Ok((host, stage, traffic))
}

async fn in_force(stage: &Stage) -> Result<()> {
    let name = stage.in_force();
    stage.until("traffic on the lane in force", |clusters| requests_of(clusters, name) > 0).await
}

async fn lanes_added(subject: Subject) -> Result<Vec<Figure>> {
    let (_host, mut stage, traffic) = without_lanes(subject).await?;
    if subject != Subject::Plain {
        add_clusters(&mut stage).await?;
        stage.edit_routes(add_routes).await?;
        add_to_plugin(&mut stage).await?;
        in_force(&stage).await?;
    }
    ended(traffic).await
}

async fn plugin_first(subject: Subject) -> Result<Vec<Figure>> {
    let (_host, mut stage, mut traffic) = without_lanes(subject).await?;
    if subject != Subject::Plain {
        add_to_plugin(&mut stage).await?;
        traffic.more(100).await?;
        add_clusters(&mut stage).await?;
        stage.edit_routes(add_routes).await?;
        in_force(&stage).await?;
    }
    ended(traffic).await
}

async fn lanes_removed(subject: Subject) -> Result<Vec<Figure>> {
    let (_host, mut stage, mut traffic) = begun(subject).await?;
    if subject != Subject::Plain {
        stage
            .edit_plugin(|json| {
                json["destinations"]["payments"]["lanes"] = json!({});
            })
            .await?;
        traffic.more(50).await?;
        stage.edit_routes(remove_routes).await?;
        traffic.more(50).await?;
        stage.set_clusters(stage.clusters().into_iter().take(1).collect()).await?;
    }
    ended(traffic).await
}

async fn validated(subject: Subject) -> Result<Vec<Figure>> {
    let (_host, mut stage, mut traffic) = without_lanes(subject).await?;
    if subject != Subject::Plain {
        add_to_plugin(&mut stage).await?;
        stage.edit_routes(|routes| routes["validate_clusters"] = true.into()).await?;
        stage.refuse_routes(add_routes).await?;
        traffic.more(100).await?;
    }
    ended(traffic).await
}

async fn wrong_order(subject: Subject) -> Result<Vec<Figure>> {
    let (_host, mut stage, mut traffic) = without_lanes(subject).await?;
    if subject != Subject::Plain {
        add_to_plugin(&mut stage).await?;
        stage.edit_routes(add_routes).await?;
    }
    let failed = failed_of_100(&mut traffic).await?;
    if subject != Subject::Plain {
        add_clusters(&mut stage).await?;
        in_force(&stage).await?;
    }
    let after = failed_of_100(&mut traffic).await?;
    Ok(vec![
        figure("failed of 100, before the clusters are there", failed).or_more(100),
        figure("failed afterwards", after),
    ])
}

async fn without_service_name(subject: Subject) -> Result<Vec<Figure>> {
    let (_host, mut stage, mut traffic) = without_lanes(subject).await?;
    if subject != Subject::Plain {
        let mut clusters = with_lanes(&stage);
        // What Envoy takes where there is none.
        clusters.iter_mut().skip(1).for_each(|lane| lane["eds_cluster_config"]["service_name"] = lane["name"].clone());
        stage.set_clusters(clusters).await?;
        stage.edit_routes(add_routes).await?;
        add_to_plugin(&mut stage).await?;
    }
    let failed = failed_of_100(&mut traffic).await?;
    if subject != Subject::Plain {
        add_clusters(&mut stage).await?;
        in_force(&stage).await?;
    }
    let after = failed_of_100(&mut traffic).await?;
    Ok(vec![figure("failed of 100, without it", failed).or_more(100), figure("failed afterwards", after)])
}

async fn removed_clusters_first(subject: Subject) -> Result<Vec<Figure>> {
    let (_host, mut stage, mut traffic) = begun(subject).await?;
    if subject != Subject::Plain {
        stage.set_clusters(stage.clusters().into_iter().take(1).collect()).await?;
        stage.until("the lanes are gone", |clusters| !clusters.contains("payments-54s::")).await?;
    }
    let failed = failed_of_100(&mut traffic).await?;
    if subject != Subject::Plain {
        stage.edit_plugin(|json| json["destinations"]["payments"]["lanes"] = json!({})).await?;
        stage.edit_routes(remove_routes).await?;
    }
    let after = failed_of_100(&mut traffic).await?;
    Ok(vec![
        figure("failed of 100, after the clusters have gone", failed).or_more(100),
        figure("failed afterwards", after),
    ])
}

async fn drain(subject: Subject) -> Result<Vec<Figure>> {
    let host = Host::start(Mood::Good).await?;
    let stage = Stage::start(subject, &[&host], |config| config).await?;
    let mut traffic = Traffic::start(stage.ingress, 4);
    traffic.more(100).await?;
    stage.envoy.drain().await?;
    ended(traffic).await
}

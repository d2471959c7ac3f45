//! Lanes as they stand in three resources: what the filter's configuration says, the clusters have, and the routes lead to.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use idleguard_harness::project;
use serde_json::Value;

use super::kustomize::{DIRECTORIES, kubectl, of_kind, render};

/// Names the lane.
const HEADER: &str = "x-idleguard-lane";

/// What the manifests say about a lane.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lane {
    /// In the filter's configuration, in milliseconds.
    told: u64,
    /// In the cluster, in milliseconds.
    real: Option<u64>,
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value} is no text"))
}

/// `4s`, `0.9s` or `900ms`, in milliseconds.
fn milliseconds(duration: &str) -> Result<u64> {
    if let Some(whole) = duration.strip_suffix("ms") {
        return Ok(whole.parse()?);
    }
    let seconds = duration.strip_suffix('s').with_context(|| duration.to_owned())?;
    let (whole, tenths) = seconds.split_once('.').unwrap_or((seconds, "0"));
    ensure!(tenths.len() == 1, "{duration}");
    Ok(whole.parse::<u64>()? * 1_000 + tenths.parse::<u64>()? * 100)
}

/// The name and the configuration of the one destination.
fn destination(documents: &[Value]) -> Result<(&str, &Value)> {
    let config = match (of_kind(documents, "WasmPlugin").first(), of_kind(documents, "EnvoyExtensionPolicy").first()) {
        (Some(plugin), _) => &plugin["spec"]["pluginConfig"],
        (_, Some(policy)) => &policy["spec"]["wasm"][0]["config"],
        _ => bail!("no filter"),
    };
    let destinations = config["destinations"].as_object().context("destinations")?;
    let (name, policy) = destinations.iter().next().context("a destination")?;
    Ok((name, policy))
}

/// The `idle_timeout`s that clusters get, in milliseconds, by the names which the control planes give them.
fn idle_timeouts(documents: &[Value]) -> Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    let pool = |policy: &Value| -> Result<Option<u64>> {
        policy["connectionPool"]["http"]["idleTimeout"].as_str().map(milliseconds).transpose()
    };
    for rule in of_kind(documents, "DestinationRule") {
        let host = text(&rule["spec"]["host"])?;
        let port = routes(documents)?.iter().find(|route| route.host == host).map(|route| route.port);
        let port = port.with_context(|| format!("no route leads to {host}"))?;
        if let Some(timeout) = pool(&rule["spec"]["trafficPolicy"])? {
            found.insert(format!("outbound|{port}||{host}"), timeout);
        }
        for subset in rule["spec"]["subsets"].as_array().into_iter().flatten() {
            let timeout = pool(&subset["trafficPolicy"])?.context("an idle timeout")?;
            found.insert(format!("outbound|{port}|{}|{host}", text(&subset["name"])?), timeout);
        }
    }
    for policy in of_kind(documents, "BackendTrafficPolicy") {
        let target = &policy["spec"]["targetRefs"][0];
        let route =
            routes(documents)?.into_iter().find(|route| Some(route.rule.as_str()) == target["sectionName"].as_str());
        let route = route.with_context(|| format!("no rule {target}"))?;
        ensure!(target["name"] == route.of.as_str(), "{target}");
        found.insert(route.cluster, milliseconds(text(&policy["spec"]["timeout"]["http"]["connectionIdleTimeout"])?)?);
    }
    Ok(found)
}

/// A route, however it is written.
#[derive(Debug)]
struct Route {
    of: String,
    rule: String,
    token: Option<String>,
    removes_the_header: bool,
    cluster: String,
    host: String,
    port: u64,
}

fn routes(documents: &[Value]) -> Result<Vec<Route>> {
    let mut found = Vec::new();
    for service in of_kind(documents, "VirtualService") {
        for route in service["spec"]["http"].as_array().context("routes")? {
            let to = &route["route"][0]["destination"];
            let (host, port) = (text(&to["host"])?, to["port"]["number"].as_u64().context("a port")?);
            let token = route["match"][0]["headers"].get(HEADER).map(|value| text(&value["exact"])).transpose()?;
            found.push(Route {
                of: text(&service["metadata"]["name"])?.into(),
                rule: String::new(),
                token: token.map(str::to_owned),
                removes_the_header: route["headers"]["request"]["remove"][0] == HEADER,
                cluster: format!("outbound|{port}|{}|{host}", to["subset"].as_str().unwrap_or_default()),
                host: host.into(),
                port,
            });
        }
    }
    let is_istio = !of_kind(documents, "WasmPlugin").is_empty();
    for route in of_kind(documents, "HTTPRoute") {
        let (namespace, name) = (text(&route["metadata"]["namespace"])?, text(&route["metadata"]["name"])?);
        for (index, rule) in route["spec"]["rules"].as_array().context("rules")?.iter().enumerate() {
            let backend = &rule["backendRefs"][0];
            let port = backend["port"].as_u64().context("a port")?;
            let host = format!("{}.{namespace}.svc.cluster.local", text(&backend["name"])?);
            let header = rule["matches"][0]["headers"].get(0);
            ensure!(header.is_none_or(|header| header["name"] == HEADER), "{rule}");
            found.push(Route {
                of: name.into(),
                rule: text(&rule["name"])?.into(),
                token: header.map(|header| text(&header["value"])).transpose()?.map(str::to_owned),
                removes_the_header: rule["filters"][0]["requestHeaderModifier"]["remove"][0] == HEADER,
                cluster: if is_istio {
                    format!("outbound|{port}||{host}")
                } else {
                    format!("httproute/{namespace}/{name}/rule/{index}")
                },
                host,
                port,
            });
        }
    }
    Ok(found)
}

/// What is wrong with the lanes of these manifests.
fn verify(documents: &[Value]) -> Result<()> {
    let (name, policy) = destination(documents)?;
    let base = text(&policy["cluster"])?;
    let timeouts = idle_timeouts(documents)?;
    let routes = routes(documents)?;
    let lanes = policy["lanes"].as_object().context("lanes")?;
    ensure!(lanes.len() == 3 && timeouts.len() == 3, "{lanes:?} {timeouts:?}");
    for (cluster, idle_timeout) in lanes {
        let idle_timeout = text(idle_timeout)?;
        let lane = Lane { told: milliseconds(idle_timeout)?, real: timeouts.get(cluster).copied() };
        ensure!(lane.real == Some(lane.told), "{cluster}: {lane:?}, {timeouts:?}");
        let token = format!("{name}={idle_timeout}");
        let route = routes.iter().find(|route| route.token.as_deref() == Some(&token));
        let route = route.with_context(|| format!("no route for {token}"))?;
        ensure!(route.cluster == *cluster, "{token} leads to {}", route.cluster);
    }
    ensure!(routes.len() == 4 && routes.iter().all(|route| route.removes_the_header), "{routes:#?}");
    for policy in of_kind(documents, "ClientTrafficPolicy") {
        ensure!(policy["spec"]["headers"]["earlyRequestHeaders"]["remove"][0] == HEADER, "{policy}");
    }
    let others: Vec<_> = routes.iter().filter(|route| route.token.is_none()).collect();
    ensure!(others.len() == 1 && others[0].cluster == base, "{others:?} instead of {base}");
    // Istio's own routes are tried in order, those of the Gateway API by how much they match.
    let is_ordered =
        of_kind(documents, "VirtualService").is_empty() || routes.last().is_some_and(|last| last.token.is_none());
    ensure!(is_ordered, "the base's route takes every request");
    Ok(())
}

/// The manifests of a directory, as they are shipped.
fn shipped(kubectl: &Path, directory: &str) -> Vec<Value> {
    render(kubectl, directory, &[]).expect("manifests")
}

#[test]
fn what_the_filter_is_told_clusters_have_and_routes_lead_to() {
    let Some(kubectl) = project::or_skip(kubectl()) else { return };
    for directory in DIRECTORIES {
        if let Err(error) = verify(&shipped(&kubectl, directory)) {
            panic!("{directory}: {error:#}");
        }
    }
}

/// A word in a manifest's text, and what breaks it.
#[test]
fn a_broken_lane_is_found() {
    let Some(kubectl) = project::or_skip(kubectl()) else { return };
    for directory in DIRECTORIES {
        let documents = shipped(&kubectl, directory);
        let text = serde_json::to_string(&documents).expect("JSON");
        let token = |idle_timeout: &str| {
            let (name, _) = destination(&documents).expect("a destination");
            format!("\"{name}={idle_timeout}\"")
        };
        for (word, instead) in [
            (token("4s"), token("5s")),
            (token("900ms"), token("0.9s")),
            (":\"4s\"".to_owned(), ":\"5s\"".to_owned()),
            ("\"remove\":[\"x-idleguard-lane\"]".to_owned(), "\"remove\":[\"x-idleguard-lanes\"]".to_owned()),
        ] {
            let broken = text.replacen(&word, &instead, 1);
            assert_ne!(broken, text, "{directory}: {word}");
            let broken: Vec<Value> = serde_json::from_str(&broken).expect("JSON");
            assert!(verify(&broken).is_err(), "{directory}: {word} may be {instead}");
        }
    }
}

/// `kubectl apply -k` keeps the order: clusters, routes, filter.
#[test]
fn the_filter_is_applied_last() {
    let Some(kubectl) = project::or_skip(kubectl()) else { return };
    const ORDER: [&[&str]; 4] = [
        &["EnvoyFilter", "EnvoyProxy", "ClientTrafficPolicy"],
        &["Service", "DestinationRule", "BackendTrafficPolicy"],
        &["VirtualService", "HTTPRoute"],
        &["EnvoyPatchPolicy", "WasmPlugin", "EnvoyExtensionPolicy"],
    ];
    for directory in DIRECTORIES {
        let documents = shipped(&kubectl, directory);
        let ranks: Vec<_> = documents
            .iter()
            .map(|document| {
                let kind = document["kind"].as_str().unwrap_or_default();
                ORDER.iter().position(|kinds| kinds.contains(&kind)).unwrap_or_else(|| panic!("{kind} has no place"))
            })
            .collect();
        assert!(ranks.is_sorted(), "{directory}: {ranks:?}");
    }
}

/// What a patch changes that no resource of the control plane's own can say; none of anything else.
fn patched(value: &Value) -> Option<&'static str> {
    let config = &value["typed_config"];
    let is_type = |name: &str| config["@type"].as_str().is_some_and(|full| full.ends_with(name));
    let keys = config.as_object().map_or(0, serde_json::Map::len);
    if is_type("set_filter_state.v3.Config") && config["on_new_connection"][0]["object_key"] == "idleguard.peer" {
        Some("the recorded peer")
    } else if is_type("HttpConnectionManager") && config["skip_xff_append"] == true && keys == 2 {
        Some("x-forwarded-for")
    } else {
        None
    }
}

/// What is wrong with the patches of these manifests: lanes and the filter need none, the recorded peer does.
fn verify_patches(documents: &[Value]) -> Result<()> {
    for filter in of_kind(documents, "EnvoyFilter") {
        for patch in filter["spec"]["configPatches"].as_array().context("patches")? {
            ensure!(patch["applyTo"] == "NETWORK_FILTER" && patched(&patch["patch"]["value"]).is_some(), "{patch}");
        }
    }
    for policy in of_kind(documents, "EnvoyPatchPolicy") {
        for patch in policy["spec"]["jsonPatches"].as_array().context("patches")? {
            let operation = &patch["operation"];
            let path = operation["path"].as_str().unwrap_or_default();
            let is_known = path.ends_with("/skip_xff_append") && operation["value"] == true
                || path == "failure_policy" && operation["value"] == "FAIL_RELOAD"
                || patched(&operation["value"]).is_some();
            ensure!(is_known, "{patch}");
            // The filter's name depends on how Envoy Gateway runs; its plugin's does not.
            let by = operation["jsonPath"].as_str().unwrap_or("typed_config.config.name");
            ensure!(by.contains("typed_config.config.name"), "{by}");
        }
    }
    Ok(())
}

#[test]
fn only_the_recorded_peer_and_what_goes_with_it_is_patched() {
    let Some(kubectl) = project::or_skip(kubectl()) else { return };
    let mut patches = 0;
    for directory in DIRECTORIES {
        let documents = shipped(&kubectl, directory);
        if let Err(error) = verify_patches(&documents) {
            panic!("{directory}: {error:#}");
        }
        let text = serde_json::to_string(&documents).expect("JSON");
        for (word, instead) in [
            ("idleguard.peer", "other.peer"),
            ("\"applyTo\":\"NETWORK_FILTER\"", "\"applyTo\":\"CLUSTER\""),
            ("/skip_xff_append", "/route_config"),
            ("@.typed_config.config.name", "@.name"),
        ] {
            let is_patch = text.contains("configPatches") || text.contains("jsonPatches\":[{\"name");
            if is_patch && text.contains(word) {
                let broken: Vec<Value> = serde_json::from_str(&text.replace(word, instead)).expect("JSON");
                assert!(verify_patches(&broken).is_err(), "{directory}: {word} may be {instead}");
                patches += 1;
            }
        }
    }
    assert!(patches >= 6, "only {patches} tried");
}

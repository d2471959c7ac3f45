//! Takes out what `inject` puts in: what is as `inject` writes it, or bears its comment, and nothing else.

use anyhow::{Context, Result};
use serde_json::Value;

use super::scout::LISTENER_COMMENT;
use super::{COMMENTS, EXTENSION, EXTENSION_COMMENT, TAG, TAG_COMMENT, filters, routes};
use crate::bootstrap::{self, INTERNAL_LISTENER, LANE_HEADER, hcms, items};
use crate::document::Document;
use crate::path::{Path, Step};

/// Takes idleguard out for one cluster, or for all. Returns what stays, and why.
///
/// # Errors
/// If the file can't be changed so.
pub fn remove(document: &mut Document, cluster: Option<&str>) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let mut destinations: Vec<(String, Vec<String>)> = Vec::new();
    for (name, policy) in
        bootstrap::plugins(document.value()).iter().filter_map(|one| one.http()).flat_map(|http| &http.destinations)
    {
        let is_meant = cluster.is_none_or(|cluster| policy.cluster == cluster) && !policy.lanes.is_empty();
        if is_meant && !destinations.iter().any(|(known, _)| known == name) {
            destinations.push((name.clone(), policy.lanes.iter().map(|lane| lane.cluster.clone()).collect()));
        }
    }
    remove_scouts(document, cluster)?;
    for (name, lanes) in &destinations {
        remove_routes(document, name)?;
        remove_destination(document, name, &mut notes)?;
        for lane in lanes {
            if let Some((path, _)) = bootstrap::cluster(document.value(), lane) {
                document.remove(&path, COMMENTS)?;
            }
        }
    }
    remove_retries(document, cluster)?;
    remove_what_serves_all(document)?;
    Ok(notes)
}

/// The scouts' listeners and clusters.
fn remove_scouts(document: &mut Document, cluster: Option<&str>) -> Result<()> {
    let found = |document: &Document| {
        let root = document.value();
        let plugins = bootstrap::plugins(root);
        let mut http = plugins.iter().filter_map(|plugin| plugin.http()).flat_map(|http| &http.destinations);
        let destination = cluster.map(|cluster| {
            http.find(|(_, policy)| policy.cluster == cluster).map_or(cluster, |(name, _)| name).to_owned()
        });
        let scouts = plugins.iter().filter_map(|plugin| plugin.scout());
        let mut meant = scouts.filter(|scout| destination.as_ref().is_none_or(|name| scout.destination == *name));
        meant.find_map(|scout| {
            bootstrap::cluster(root, &scout.cluster).map(|(path, cluster)| {
                let listener =
                    bootstrap::internal_listener_of(cluster).and_then(|name| bootstrap::listener(root, name));
                (path, listener.map(|(path, _)| path))
            })
        })
    };
    while let Some((cluster, listener)) = found(document) {
        document.remove(&cluster, COMMENTS)?;
        match listener {
            Some(listener) => {
                let list = bootstrap::resources("listeners");
                let is_only = items(document.value(), "static_resources.listeners").len() == 1;
                let is_whole = is_only && document.is_below(&list, LISTENER_COMMENT);
                document.remove(if is_whole { &list } else { &listener }, COMMENTS)?;
            }
            None => return Ok(()),
        }
    }
    Ok(())
}

/// The copies of routes, the last first.
fn remove_routes(document: &mut Document, destination: &str) -> Result<()> {
    let prefix = format!("{destination}=");
    let last = |document: &Document| {
        let all = hcms(document.value());
        let mut routes = all.iter().flat_map(bootstrap::Hcm::routes);
        let ours = routes.rfind(|route| route.token().is_some_and(|token| token.starts_with(&prefix)));
        ours.map(|route| route.path)
    };
    while let Some(path) = last(document) {
        document.remove(&path, COMMENTS)?;
    }
    Ok(())
}

/// The destination in the plugin configurations, and the filters that are left with nothing to do.
fn remove_destination(document: &mut Document, name: &str, notes: &mut Vec<String>) -> Result<()> {
    loop {
        let plugins = bootstrap::plugins(document.value());
        let found = plugins
            .iter()
            .rfind(|plugin| plugin.http().is_some_and(|http| http.destinations.iter().any(|(own, _)| own == name)));
        let Some(plugin) = found else { return Ok(()) };
        let is_only = plugin.http().is_some_and(|http| http.destinations.len() == 1);
        let (path, json) = (plugin.path.clone(), plugin.json());
        if is_only && is_whole_ours(document, &path, &json) {
            let (filter, _) = path.split_last().context("no filter")?;
            document.remove(&filter, COMMENTS)?;
            continue;
        }
        let key = if is_only { Path::of("destinations") } else { Path::of("destinations").then(name) };
        if is_only && json.get("client_ip").is_none() {
            let (filter, _) = path.split_last().context("no filter")?;
            notes
                .push(format!("{filter}: taken out, though it was not as inject writes it: it had nothing else to do"));
            document.remove(&filter, COMMENTS)?;
            continue;
        }
        filters::edit(document, &path, |inner, root| inner.remove(&root.join(&key), &[]))?;
    }
}

/// Whether a filter is one that `inject` writes: then nothing but the destination and the proxies it was told stands in it.
fn is_whole_ours(document: &Document, path: &Path, json: &Value) -> bool {
    let Some((filter, _)) = path.split_last() else { return false };
    let Some(found) = filter.get(document.value()) else { return false };
    let vm = path.keys("config.vm_config").get(document.value()).cloned().unwrap_or_default();
    let text =
        path.keys("config.configuration.value").get(document.value()).and_then(Value::as_str).unwrap_or_default();
    let expected = Document::parse(&filters::filter(&vm, text));
    let has_only = |value: &Value, keys: &[&str]| {
        value.as_object().is_some_and(|entries| entries.keys().all(|key| keys.contains(&key.as_str())))
    };
    let is_plain = has_only(json, &["filter", "destinations", "client_ip"])
        && json.get("client_ip").is_none_or(|client_ip| has_only(client_ip, &["trusted_proxies"]));
    is_plain && expected.is_ok_and(|expected| expected.value() == found)
}

/// Retry policies that are `inject`'s to the letter.
fn remove_retries(document: &mut Document, cluster: Option<&str>) -> Result<()> {
    let ours = routes::retry_policy();
    let found = |document: &Document| {
        let all = hcms(document.value());
        let mut routes = all.iter().flat_map(bootstrap::Hcm::routes);
        let with = routes.find(|route| {
            let is_meant = cluster.is_none_or(|cluster| route.leads_to(cluster));
            is_meant && route.token().is_none() && Path::of("route.retry_policy").get(route.config) == Some(&ours)
        });
        with.map(|route| route.path.keys("route.retry_policy"))
    };
    while let Some(path) = found(document) {
        document.remove(&path, COMMENTS)?;
    }
    Ok(())
}

/// What all destinations need, where none is left.
fn remove_what_serves_all(document: &mut Document) -> Result<()> {
    let count = hcms(document.value()).len();
    for at in 0..count {
        let all = hcms(document.value());
        let Some(hcm) = all.get(at) else { continue };
        let path = hcm.path.clone();
        let has_filter =
            bootstrap::plugins(document.value()).iter().any(|plugin| plugin.is_http && plugin.path.is_within(&path));
        if has_filter || hcm.routes().iter().any(|route| route.token().is_some()) {
            continue;
        }
        let configurations: Vec<Path> = hcm.route_configurations().into_iter().map(|(path, _)| path).collect();
        let peer = (0..hcm.index)
            .map(|at| hcm.filters.then(at))
            .find(|filter| is_value(document, filter, filters::PEER_FILTER));
        // In flow style a key of ours is the first, so the last that was put in goes first.
        let skip = path.then("skip_xff_append");
        if document.is_below(&skip, filters::APPEND_COMMENT) || is_first(document, &path, "skip_xff_append") {
            document.remove(&skip, COMMENTS)?;
        }
        remove_from(document, &path.then("early_header_mutation_extensions"), filters::EARLY_COMMENT, &|value| {
            is_like(value, filters::EARLY)
        })?;
        for configuration in configurations {
            remove_from(
                document,
                &configuration.then("request_headers_to_remove"),
                routes::REMOVE_COMMENT,
                &|value| value.as_str() == Some(LANE_HEADER),
            )?;
        }
        if let Some(peer) = peer {
            document.remove(&peer, COMMENTS)?;
        }
    }
    let root = document.value();
    if bootstrap::plugins(root).is_empty() {
        // Each may stand before the other.
        for _ in 0..2 {
            if is_whole_tag(document) {
                document.remove(&Path::of("stats_config"), COMMENTS)?;
            } else {
                remove_from(document, &Path::of("stats_config.stats_tags"), TAG_COMMENT, &|value| is_like(value, TAG))?;
            }
            remove_extension(document)?;
        }
    } else {
        remove_extension(document)?;
    }
    Ok(())
}

/// Whether `stats_config` is `inject`'s as a whole.
fn is_whole_tag(document: &Document) -> bool {
    let path = Path::of("stats_config");
    let Some(config) = path.get(document.value()) else { return false };
    let is_ours = document.is_below(&path, TAG_COMMENT) || is_first(document, &Path::default(), "stats_config");
    let is_all = config.as_object().is_some_and(|entries| entries.len() == 1);
    is_ours && is_all && matches!(items(config, "stats_tags"), [tag] if is_like(tag, TAG))
}

fn remove_extension(document: &mut Document) -> Result<()> {
    let listeners = items(document.value(), "static_resources.listeners");
    if listeners.iter().any(|listener| listener.get("internal_listener").is_some()) {
        return Ok(());
    }
    remove_from(document, &Path::of("bootstrap_extensions"), EXTENSION_COMMENT, &|value| {
        bootstrap::is_type(value, INTERNAL_LISTENER) && is_like(value, EXTENSION)
    })
}

/// Takes an item out of a list: with the list, where that bears our comment or is the first key of flow style.
fn remove_from(document: &mut Document, list: &Path, comment: &str, is_ours: &dyn Fn(&Value) -> bool) -> Result<()> {
    let Some(found) = list.get(document.value()).and_then(Value::as_array) else { return Ok(()) };
    let Some(at) = found.iter().position(is_ours) else { return Ok(()) };
    let (parent, step) = list.split_last().context("no list")?;
    let is_first = matches!(step, Step::Key(key) if is_first(document, &parent, key));
    let item = list.then(at);
    if found.len() == 1 && (document.is_below(list, comment) || is_first) {
        return document.remove(list, COMMENTS);
    }
    if document.is_flow(list) || document.is_below(&item, comment) {
        return document.remove(&item, COMMENTS);
    }
    Ok(()) // somebody else's
}

/// Whether a key is the first of a mapping in flow style.
fn is_first(document: &Document, map: &Path, key: &str) -> bool {
    let first = map.get(document.value()).and_then(Value::as_object).and_then(|entries| entries.keys().next());
    document.is_flow(map) && first.is_some_and(|first| first == key)
}

fn is_like(value: &Value, snippet: &str) -> bool {
    Document::parse(snippet).is_ok_and(|ours| ours.value() == value)
}

fn is_value(document: &Document, path: &Path, snippet: &str) -> bool {
    path.get(document.value()).is_some_and(|value| is_like(value, snippet))
}

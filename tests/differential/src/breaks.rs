//! Faults put in on purpose, into the configuration with a lane in force alone: the suite has to find each.
//!
//! A test that can't fail shows nothing: each event is named by one of these at least, and `make differential-breaks` sees it fail.

use anyhow::Result;
use idleguard_harness::envoy::Config;
use serde_json::{Value, json};

use crate::{
    cases, events,
    setup::{HTTP_MANAGER, ROUTES, Subject},
    suite,
    verdict::Worse,
};

/// An edit of a whole configuration.
pub type Edit = fn(Config) -> Config;

/// The configuration that this subject starts with.
#[must_use]
pub fn broken(edit: Option<Edit>, subject: Subject, config: Config) -> Config {
    match edit {
        Some(edit) if subject == Subject::Lane => edit(config),
        _ => config,
    }
}

/// A fault, and the cases and events that have to find it.
#[derive(Debug, Clone, Copy)]
pub struct Break {
    /// Its name: what one would type to put it in.
    pub name: &'static str,
    /// What is wrong, in half a sentence.
    pub what: &'static str,
    /// Who finds it.
    pub found_by: &'static [&'static str],
    /// Puts it in.
    pub edit: Edit,
}

impl Break {
    /// Puts it in, and lets everybody run who has to find it.
    pub async fn run(&self) -> Result<Vec<Worse>> {
        let is_named = |name: &str| self.found_by.contains(&name);
        let cases = cases::all().into_iter().filter(|case| is_named(&case.name)).collect();
        let events = events::all().into_iter().filter(|event| is_named(event.name)).collect();
        let mut worse = suite::run(cases, Some(self.edit), false).await?.worse;
        for row in events::run(events, Some(self.edit)).await? {
            worse.extend(row.worse());
        }
        Ok(worse)
    }

    /// Who did not find it, and who found it with the base in force, where it is not.
    pub fn missed(&self, found: &[Worse]) -> Vec<String> {
        let has = |name: &str| found.iter().any(|worse| worse.case == name && worse.subject == Subject::Lane.name());
        let missed =
            self.found_by.iter().filter(|name| !has(name)).map(|name| format!("{name} does not find `{}`", self.name));
        let elsewhere = found.iter().filter(|worse| worse.subject != Subject::Lane.name());
        missed.chain(elsewhere.map(|worse| format!("`{}` is found elsewhere: {worse}", self.name))).collect()
    }
}

/// Every fault.
pub fn all() -> Vec<Break> {
    [in_exchanges(), in_events()].into_iter().flatten().collect()
}

/// Faults that one exchange meets, or a few. `make test` looks for these.
pub fn in_exchanges() -> Vec<Break> {
    vec![
        Break { name: "header", what: "a header more towards the far end", found_by: &["get"], edit: header },
        Break {
            name: "no-health-check",
            what: "lanes without the base's health check",
            found_by: &["host-unhealthy"],
            edit: |config| lanes_without(config, "health_checks"),
        },
        Break {
            name: "no-retries",
            what: "lanes' routes without the base's retry policy",
            found_by: &["retry-503", "retry-rst"],
            edit: |config| each_lane_route(config, |route| remove(&mut route["route"], "retry_policy")),
        },
        Break { name: "no-trailers", what: "a lost trailer", found_by: &["trailers-down"], edit: no_trailers },
        Break { name: "late", what: "an answer held back by 200 ms", found_by: &["get"], edit: late },
        Break {
            name: "cut-status",
            what: "a wrong status where the far end cuts an exchange off",
            found_by: &["rst-before-answer", "fin-before-answer"],
            edit: cut_status,
        },
        Break {
            name: "abort-status",
            what: "a wrong status for a client that gives up",
            found_by: &["client-fin-before-answer", "client-rst-before-answer"],
            edit: |config| fails(config, 100),
        },
    ]
}

/// Faults that events have to find.
pub fn in_events() -> Vec<Break> {
    vec![
        Break {
            name: "one-in-ten",
            what: "one request in ten fails",
            found_by: &[
                "host-removed",
                "host-added",
                "cluster-changed",
                "routes-changed",
                "listener-changed",
                "plugin-changed",
                "plugin-refused",
                "lanes-added",
                "lanes-added-plugin-first",
                "lanes-removed",
                "lanes-validated",
                "drain",
                "own-hot-restart",
                "scout",
                "own-lanes-without-clusters",
                "own-lanes-without-service-name",
                "own-lanes-removed-clusters-first",
            ],
            edit: |config| fails(config, 10),
        },
        Break {
            name: "all",
            what: "all requests fail",
            found_by: &["host-forgets", "own-signatures"],
            edit: |config| fails(config, 100),
        },
        Break {
            name: "no-retries-under-way",
            what: "lanes' routes without the base's retry policy",
            found_by: &["host-refuses", "host-restarts"],
            edit: |config| each_lane_route(config, |route| remove(&mut route["route"], "retry_policy")),
        },
        Break {
            name: "new-connections",
            what: "a lane that takes a new connection for each request",
            found_by: &["host-refuses", "host-restarts", "host-drops-one", "own-lane-change", "ten-in-a-row"],
            edit: |config| each_lane(config, |lane| common_options(lane)["max_requests_per_connection"] = 1.into()),
        },
        Break {
            name: "short-timeout",
            what: "lanes' routes with a timeout of half a second",
            found_by: &["odd-then-pauses"],
            edit: |config| each_lane_route(config, |route| route["route"]["timeout"] = "0.5s".into()),
        },
        Break {
            name: "long-idle-timeout",
            what: "lanes whose `idle_timeout` is an hour, whatever the plugin is told",
            found_by: &["http2-ping"],
            edit: |config| each_lane(config, |lane| common_options(lane)["idle_timeout"] = "3600s".into()),
        },
        Break {
            name: "round-robin",
            what: "lanes without the base's `lb_policy`",
            found_by: &["host-slow"],
            edit: |config| lanes_without(config, "lb_policy"),
        },
        Break {
            name: "no-outlier-detection",
            what: "lanes without the base's outlier detection",
            found_by: &["host-ejected", "own-ejections"],
            edit: |config| lanes_without(config, "outlier_detection"),
        },
        Break {
            name: "new-health-checkers",
            what: "lanes that take a new connection for each health check",
            found_by: &["own-health-checks"],
            edit: |config| each_lane(config, |lane| lane["health_checks"][0]["reuse_connection"] = false.into()),
        },
        Break {
            name: "no-breakers",
            what: "lanes without the base's circuit breakers",
            found_by: &["breaker", "own-breaker"],
            edit: |config| lanes_without(config, "circuit_breakers"),
        },
        Break {
            name: "no-rate-limit",
            what: "lanes' routes without the base's rate limit",
            found_by: &["own-rate-limit"],
            edit: |config| each_lane_route(config, |route| remove(route, "typed_per_filter_config")),
        },
        Break {
            name: "both-families",
            what: "lanes that ask the DNS for IPv6, too",
            found_by: &["own-dns"],
            edit: |config| each_lane(config, |lane| lane["dns_lookup_family"] = "ALL".into()),
        },
        Break {
            name: "fail-open",
            what: "a dead VM lets requests pass",
            found_by: &["own-vm-dies"],
            edit: |config| {
                let text = config.to_string().replace("FAIL_RELOAD", "FAIL_OPEN");
                Config::parse(&text).expect("it was a configuration before")
            },
        },
    ]
}

fn each_lane(mut config: Config, edit: impl FnMut(&mut Value)) -> Config {
    if let Some(clusters) = config.get_mut("static_resources/clusters").and_then(Value::as_array_mut) {
        clusters.iter_mut().filter(|cluster| cluster["alt_stat_name"] == "payments").for_each(edit);
    }
    config
}

fn each_lane_route(mut config: Config, edit: impl FnMut(&mut Value)) -> Config {
    if let Some(routes) = config.get_mut(ROUTES).and_then(Value::as_array_mut) {
        let leads_to_lane =
            |route: &&mut Value| route["route"]["cluster"].as_str().is_some_and(|name| name.starts_with("payments-"));
        routes.iter_mut().filter(leads_to_lane).for_each(edit);
    }
    config
}

fn remove(object: &mut Value, key: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(key);
    }
}

fn lanes_without(config: Config, key: &str) -> Config {
    each_lane(config, |lane| remove(lane, key))
}

fn options(lane: &mut Value) -> &mut Value {
    &mut lane["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
}

fn common_options(lane: &mut Value) -> &mut Value {
    &mut options(lane)["common_http_protocol_options"]
}

fn header(config: Config) -> Config {
    each_lane_route(config, |route| {
        route["request_headers_to_add"] = json!([{ "header": { "key": "x-more", "value": "1" } }]);
    })
}

fn no_trailers(config: Config) -> Config {
    each_lane(config, |lane| {
        options(lane)["explicit_http_config"]["http_protocol_options"]["enable_trailers"] = false.into();
    })
}

fn faulty(config: Config, mut fault: Value) -> Config {
    fault["@type"] = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault".into();
    let filter = json!({ "name": "fault", "typed_config": fault });
    config.insert(&format!("{HTTP_MANAGER}/http_filters"), Some(0), filter)
}

fn late(config: Config) -> Config {
    faulty(config, json!({ "delay": { "fixed_delay": "0.2s", "percentage": { "numerator": 100 } } }))
}

/// So many of a hundred requests are answered with 499, before anybody else sees them.
fn fails(config: Config, percent: u32) -> Config {
    faulty(config, json!({ "abort": { "http_status": 499, "percentage": { "numerator": percent } } }))
}

fn cut_status(config: Config) -> Config {
    let is_503 = json!({ "status_code_filter": {
        "comparison": { "op": "EQ", "value": { "default_value": 503, "runtime_key": "none" } },
    }});
    let mapped = json!({ "mappers": [{ "filter": is_503, "status_code": 500 }] });
    config.set(&format!("{HTTP_MANAGER}/local_reply_config"), mapped)
}

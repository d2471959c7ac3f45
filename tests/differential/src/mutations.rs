//! Faults put in on purpose, by configuration: the suite has to find each.

use anyhow::{Context, Result};
use idleguard_harness::envoy::Config;
use serde_json::{Value, json};

use crate::{
    cases,
    events::{Row, hosts::unhealthy_with},
    setup::{HTTP_MANAGER, ROUTES, Subject},
    suite,
    verdict::judge,
};

/// A fault that one case has to find.
pub struct Mutation {
    /// What is wrong.
    pub what: &'static str,
    /// The case that finds it.
    pub case: &'static str,
    edit: fn(Subject, Config) -> Config,
}

/// Faults in what a request or an answer meets.
pub fn all() -> Vec<Mutation> {
    vec![
        Mutation { what: "a header more towards the far end", case: "get", edit: header },
        Mutation { what: "a lane's route without the base's retry policy", case: "retry-503", edit: no_retries },
        Mutation { what: "a lost trailer", case: "trailers-down", edit: no_trailers },
        Mutation { what: "an answer held back by 200 ms", case: "get", edit: held_back },
        Mutation { what: "a wrong status where an exchange is cut off", case: "rst-before-answer", edit: wrong_status },
        Mutation {
            what: "a wrong status for a client that gives up",
            case: "client-fin-before-answer",
            edit: answered,
        },
    ]
}

impl Mutation {
    /// Which subjects the suite found to be worse.
    pub async fn found(&self) -> Result<Vec<&'static str>> {
        let case = cases::all().into_iter().find(|case| case.name == self.case).context(self.case)?;
        let middles = suite::start_with(case.setup, self.edit).await?;
        let (worse, _) = judge(&case, &middles).await?;
        Ok(worse.iter().map(|worse| worse.subject).collect())
    }
}

/// A lane without the base's health check; which subjects were found to be worse.
pub async fn lane_without_health_check() -> Result<Vec<&'static str>> {
    let mut figures = Vec::new();
    for subject in Subject::ALL {
        figures.push(unhealthy_with(subject, without_checks).await?);
    }
    Ok(Row { name: "host-unhealthy", figures }.worse().iter().map(|worse| worse.subject).collect())
}

fn without_checks(mut config: Config) -> Config {
    if let Some(clusters) = config.get_mut("static_resources/clusters").and_then(Value::as_array_mut) {
        for cluster in clusters.iter_mut().filter(|cluster| cluster["name"] != "payments") {
            cluster.as_object_mut().map(|cluster| cluster.remove("health_checks"));
        }
    }
    config
}

fn lane_routes(config: &mut Config, edit: impl FnMut(&mut Value)) {
    if let Some(routes) = config.get_mut(ROUTES).and_then(Value::as_array_mut) {
        routes.iter_mut().filter(|route| route["route"]["cluster"] == "payments-54s").for_each(edit);
    }
}

fn header(_: Subject, mut config: Config) -> Config {
    lane_routes(&mut config, |route| {
        route["request_headers_to_add"] = json!([{ "header": { "key": "x-more", "value": "1" } }]);
    });
    config
}

fn no_retries(_: Subject, mut config: Config) -> Config {
    lane_routes(&mut config, |route| {
        route["route"].as_object_mut().map(|route| route.remove("retry_policy"));
    });
    config
}

fn no_trailers(subject: Subject, mut config: Config) -> Config {
    if subject == Subject::Lane
        && let Some(lane) = config.get_mut("static_resources/clusters/payments-54s/typed_extension_protocol_options")
    {
        let options = &mut lane["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
        options["explicit_http_config"]["http_protocol_options"]["enable_trailers"] = false.into();
    }
    config
}

fn first_filter(subject: Subject, config: Config, filter: Value) -> Config {
    if subject == Subject::Plain {
        config
    } else {
        config.insert(&format!("{HTTP_MANAGER}/http_filters"), Some(0), filter)
    }
}

fn held_back(subject: Subject, config: Config) -> Config {
    first_filter(
        subject,
        config,
        json!({ "name": "fault", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
            "delay": { "fixed_delay": "0.2s", "percentage": { "numerator": 100 } },
        }}),
    )
}

/// Answers in the far end's place.
fn answered(subject: Subject, config: Config) -> Config {
    first_filter(
        subject,
        config,
        json!({ "name": "fault", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
            "abort": { "http_status": 499, "percentage": { "numerator": 100 } },
        }}),
    )
}

fn wrong_status(subject: Subject, config: Config) -> Config {
    if subject == Subject::Plain {
        return config;
    }
    config.set(&format!("{HTTP_MANAGER}/local_reply_config"), json!({ "mappers": [{
        "filter": { "status_code_filter": { "comparison": { "op": "EQ", "value": { "default_value": 503, "runtime_key": "none" } } } },
        "status_code": 500,
    }]}))
}

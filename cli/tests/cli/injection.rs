//! What `inject` puts in where, what it refuses, and that `--remove` takes out exactly that.

use std::path::{Path, PathBuf};

use idleguard_cli::check::{Surroundings, check};
use idleguard_cli::document::{Document, Format};
use idleguard_cli::inject::{Request, ScoutRequest, inject, remove};
use idleguard_cli::kind;
use idleguard_harness::envoy::{Config, Envoy, Options};
use idleguard_harness::project;
use serde_json::{Value, json};

use super::{injected, project_file, read, request};

/// Everything at once.
fn all(cluster: &str) -> Request {
    Request {
        lanes: Some(vec!["54s".into(), "4s".into(), "900ms".into()]),
        trusted_proxies: Some(vec!["10.0.0.0/8".into()]),
        scout: Some(ScoutRequest { path: Some("/healthz".into()), host: None }),
        ..request(cluster)
    }
}

fn removed(text: &str, cluster: Option<&str>) -> Document {
    let mut document = Document::parse(text).expect("a file");
    remove(&mut document, cluster).unwrap_or_else(|error| panic!("{error:#}\n{text}"));
    document
}

/// Whether all lines of `before` are in `after`, in their order.
fn keeps_lines(before: &str, after: &str) -> bool {
    let mut lines = after.split('\n');
    before.split('\n').all(|line| lines.any(|other| other == line))
}

/// Bootstraps in the spellings that Envoy takes.
fn spellings() -> Vec<(String, String)> {
    let plain = read("bootstraps/dns.yaml");
    let edits: &[(&str, &[(&str, &str)])] = &[
        ("half in lowerCamelCase", &[("connect_timeout", "connectTimeout"), ("http_filters", "httpFilters")]),
        (
            "lowerCamelCase",
            &[("typed_config", "typedConfig"), ("route_config", "routeConfig"), ("virtual_hosts", "virtualHosts")],
        ),
        ("one listener for a list", &[("  - name: ingress\n    address", "    name: ingress\n    address")]),
        ("one domain for a list", &[("domains: [\"*\"]", "domains: \"*\"")]),
        ("enumerations by number", &[("type: STRICT_DNS", "type: 1\n    lb_policy: 2")]),
        ("CRLF", &[("\n", "\r\n")]),
        ("no line break at the end", &[]),
        ("a document's end", &[("admin:", "---\nadmin:")]),
        (
            "an anchor in the cluster",
            &[
                ("connect_timeout: 2s", "circuit_breakers: &limits { thresholds: [{ max_requests: 9 }] }"),
                ("admin:", "!ignore x: 1\nadmin:"),
            ],
        ),
        (
            "extensions that are there",
            &[(
                "static_resources:\n",
                "bootstrap_extensions:\n- name: envoy.bootstrap.internal_listener\n  typed_config:\n    \"@type\": type.googleapis.com/udpa.type.v1.TypedStruct\n    type_url: type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener\n    value: { buffer_size_kb: 64 }\nstats_config: { stats_tags: [{ tag_name: x, regex: \"^(x)$\" }] }\nstatic_resources:\n",
            )],
        ),
        (
            "lists that are there",
            &[(
                "          route_config:\n",
                "          early_header_mutation_extensions:\n          - name: own\n            typed_config:\n              \"@type\": type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation\n              mutations: [{ remove: x-own }]\n          route_config:\n            request_headers_to_remove:\n            - x-own\n",
            )],
        ),
        (
            "routes and filters that several share by aliases",
            &[
                ("              routes:\n", "              routes: &routes\n"),
                ("          http_filters:\n", "          http_filters: &filters\n"),
                (
                    "  clusters:\n",
                    "  - name: second\n    filter_chains:\n    - filters:\n      - name: http\n        typed_config:\n          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n          stat_prefix: second\n          route_config:\n            virtual_hosts:\n            - name: own\n              domains: [orders.example]\n              routes:\n              - match: { prefix: / }\n                route: { cluster: others }\n            - name: all\n              domains: [\"*\"]\n              routes: *routes\n          http_filters: *filters\n  clusters:\n",
                ),
            ],
        ),
        (
            "HTTP options in a TypedStruct",
            &[(
                "    connect_timeout: 2s\n",
                "    connect_timeout: 2s\n    typed_extension_protocol_options:\n      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \"@type\": type.googleapis.com/xds.type.v3.TypedStruct\n        type_url: type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        value: { explicit_http_config: { http2_protocol_options: {} }, common_http_protocol_options: { idle_timeout: 300s } }\n",
            )],
        ),
        (
            "a matcher's list of routes",
            &[(
                "            - name: all\n",
                "            - name: tree\n              domains: [tree]\n              matcher:\n                matcher_tree:\n                  input: { name: path, typed_config: { \"@type\": type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: \":path\" } }\n                  exact_match_map:\n                    map:\n                      /a:\n                        action:\n                          name: route\n                          typed_config:\n                            \"@type\": type.googleapis.com/envoy.config.route.v3.RouteList\n                            routes:\n                            - match: { prefix: / }\n                              route: { cluster: payments }\n            - name: all\n",
            )],
        ),
        (
            "an upgrade with filters of its own",
            &[(
                "          http_filters:\n",
                "          upgrade_configs:\n          - upgrade_type: websocket\n            filters:\n            - name: router\n              typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }\n          http_filters:\n",
            )],
        ),
    ];
    let mut all: Vec<(String, String)> = edits
        .iter()
        .map(|(name, edits)| {
            let text = edits.iter().fold(plain.clone(), |text, (from, to)| {
                assert!(text.contains(from), "{from:?}");
                text.replace(from, to)
            });
            let text = if *name == "no line break at the end" { text.trim_end().to_owned() } else { text };
            ((*name).to_owned(), text)
        })
        .collect();
    let json: Value = Document::parse(&plain).expect("a file").raw().clone();
    all.push(("JSON".to_owned(), format!("{json:#}\n")));
    all.push(("JSON in one line".to_owned(), json.to_string()));
    all.push(("JSON with tabs".to_owned(), format!("{json:#}\n").replace("  ", "\t")));
    all
}

fn bootstraps() -> Vec<(String, String)> {
    let files = std::fs::read_dir(super::path("bootstraps")).expect("a directory");
    let names = files.map(|file| file.expect("a file").file_name().into_string().expect("UTF-8"));
    names.map(|name| (name.clone(), read(&format!("bootstraps/{name}")))).chain(spellings()).collect()
}

#[test]
fn what_is_put_in_is_taken_out_to_the_byte() {
    for (name, text) in bootstraps() {
        let each = [
            request("payments"),
            Request { scout: Some(ScoutRequest::default()), ..request("payments") },
            all("payments"),
            Request { retries: true, ..all("payments") },
        ];
        for request in each {
            if name == "one listener for a list" && request.scout.is_some() {
                continue; // no place for a second one, which is said
            }
            let document = injected(&text, &request);
            assert_eq!(document.comments_lost(), None, "{name}");
            assert_ne!(document.text(), text, "{name}");
            assert_eq!(
                injected(document.text(), &request).text(),
                document.text(),
                "{name}: a second run changes something"
            );
            for cluster in [None, Some("payments")] {
                let without = removed(document.text(), cluster);
                assert_eq!(without.text(), text, "{name}: {request:?}\n{}", document.text());
            }
            let findings = check(&document, Surroundings::default());
            let ids = findings.iter().filter(|finding| !finding.what.contains("\"orders\""));
            if request.scout.is_none() || request.lanes.is_some() {
                assert_eq!(ids.count(), 0, "{name}: {findings:#?}\n{}", document.text());
            }
            if name.contains("CRLF") {
                assert!(!document.text().replace("\r\n", "").contains('\n'), "mixed line ends");
            }
            if document.format() == Format::Json {
                let json: Value = serde_json::from_str(document.text()).expect("JSON stays JSON");
                assert_eq!(&json, document.raw());
            }
            // What is written in one line has to change.
            let is_in_lines =
                !["JSON in one line", "listeners.yaml", "extensions that are there"].contains(&name.as_str());
            if is_in_lines && !request.retries {
                assert!(keeps_lines(&text, document.text()), "{name}: a line has changed\n{}", document.text());
            }
        }
    }
}

#[test]
fn two_clusters_come_and_go_one_by_one() {
    let text = read("bootstraps/weighted.yaml");
    let first = injected(&text, &Request { wasm: Some("/a.wasm".into()), ..all("payments") });
    let both = injected(first.text(), &request("orders"));
    assert_eq!(both.text().matches("filters.http.wasm.v3.Wasm").count(), 1);
    assert_eq!(both.text().matches("filename: /a.wasm").count(), 2, "the filter's and the scout's");
    assert!(check(&both, Surroundings::default()).is_empty(), "{:#?}", check(&both, Surroundings::default()));
    assert_eq!(removed(both.text(), Some("orders")).text(), first.text());
    assert_eq!(removed(removed(both.text(), Some("payments")).text(), Some("orders")).text(), text);
    assert_eq!(removed(both.text(), None).text(), text);
}

/// A copy of a weighted route keeps the other weights, and each destination has copies of its own.
#[test]
fn weights_stay() {
    let text = read("bootstraps/weighted.yaml");
    let both = injected(injected(&text, &request("payments")).text(), &request("orders"));
    let routes = &both.value()["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]
        ["virtual_hosts"][0]["routes"];
    let routes: Vec<(String, Vec<&str>)> = routes
        .as_array()
        .expect("routes")
        .iter()
        .map(|route| {
            let token = &route["match"]["headers"][0]["string_match"]["exact"];
            let clusters = route["route"]["weighted_clusters"]["clusters"].as_array().expect("weights");
            assert!(clusters.iter().all(|cluster| cluster["weight"] == 50), "{route:#}");
            (
                token.as_str().unwrap_or("none").to_owned(),
                clusters.iter().filter_map(|one| one["name"].as_str()).collect(),
            )
        })
        .collect();
    let lane = |token: &str, clusters: [&'static str; 2]| (token.to_owned(), clusters.to_vec());
    assert_eq!(
        routes,
        [
            lane("payments=54s", ["payments-54s", "orders"]),
            lane("payments=4s", ["payments-4s", "orders"]),
            lane("payments=900ms", ["payments-900ms", "orders"]),
            lane("orders=54s", ["payments", "orders-54s"]),
            lane("orders=4s", ["payments", "orders-4s"]),
            lane("orders=900ms", ["payments", "orders-900ms"]),
            lane("none", ["payments", "orders"]),
        ]
    );
    assert!(!both.text().contains("all_requests"), "another cluster can be reached");
}

fn cluster(document: &Document, name: &str) -> Value {
    let clusters = document.value()["static_resources"]["clusters"].as_array().expect("clusters");
    clusters.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
}

const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

#[test]
fn a_lane_is_the_cluster_but_for_what_keeps_it_the_same() {
    let eds = injected(&read("bootstraps/eds.yaml"), &request("payments"));
    assert_eq!(cluster(&eds, "payments-4s")["eds_cluster_config"]["service_name"], "payments");

    let endpoints = injected(&read("bootstraps/endpoints.yaml"), &request("payments"));
    let (base, lane) = (cluster(&endpoints, "payments"), cluster(&endpoints, "payments-4s"));
    for key in ["outlier_detection", "lb_policy", "common_lb_config", "circuit_breakers", "load_assignment"] {
        assert_eq!(base[key], lane[key], "{key}");
    }
    assert_eq!(lane["health_checks"][0]["http_health_check"]["host"], "payments", "Envoy would say the lane's name");
    assert_eq!(lane["alt_stat_name"], "payments");

    let auto = injected(&read("bootstraps/auto-config.yaml"), &request("payments"));
    let (base, lane) = (cluster(&auto, "payments"), cluster(&auto, "payments-900ms"));
    let mut options = base["typed_extension_protocol_options"][OPTIONS].clone();
    options["common_http_protocol_options"] = json!({ "idle_timeout": "0.9s" });
    assert_eq!(lane["typed_extension_protocol_options"][OPTIONS], options);

    // What Envoy gives a forward proxy without HTTP options, and refuses to start without where there are some.
    let proxy = read("bootstraps/static.yaml").replace(
        "    - name: payments\n",
        "    - name: payments\n      cluster_type:\n        name: x\n        typed_config: { \"@type\": x/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig }\n",
    );
    let lane = cluster(&injected(&proxy, &request("payments")), "payments-4s");
    let options = &lane["typed_extension_protocol_options"][OPTIONS]["upstream_http_protocol_options"];
    assert_eq!(options, &json!({ "auto_sni": true, "auto_san_validation": true }));

    // Older keys stay the ones that are used; the base's own idle_timeout is told, and no lane is above it.
    let named = injected(&read("bootstraps/stat-name.yaml"), &request("payments"));
    let lane = cluster(&named, "payments-4s");
    assert_eq!(
        (&lane["alt_stat_name"], &lane["common_http_protocol_options"]["idle_timeout"]),
        (&json!("shop"), &json!("4s"))
    );
    assert!(lane.get("typed_extension_protocol_options").is_none());
    assert!(
        named.text().contains("\"idle_timeout\": \"30s\"") && !named.text().contains("payments-54s"),
        "{}",
        named.text()
    );
}

#[test]
fn a_copied_route_keeps_all_that_stands_in_it() {
    let document = injected(&read("bootstraps/stat-name.yaml"), &Request { retries: true, ..request("payments") });
    let routes = &document.value()["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        ["route_config"]["virtual_hosts"][0]["routes"];
    let base = routes.as_array().and_then(|routes| routes.last()).expect("the base's");
    let mut expected = base.clone();
    expected["match"]["headers"] = json!([{ "name": "x-idleguard-lane", "string_match": { "exact": "payments=4s" } }]);
    expected["route"]["cluster"] = json!("payments-4s");
    expected["request_headers_to_remove"] = json!(["x-debug", "x-idleguard-lane"]);
    assert_eq!(routes[0], expected);
    assert_eq!(base["route"]["retry_policy"]["retry_on"], "connect-failure", "one that is there stays");
    assert!(document.text().contains("              # The busiest route.\n              - match: { prefix: / }\n"));

    let with = injected(&read("bootstraps/static.yaml"), &Request { retries: true, ..request("payments") });
    assert_eq!(
        with.value().to_string().matches("\"retry_on\":\"reset\"").count(),
        4,
        "the base's route and its copies"
    );
}

#[test]
fn the_scout_is_twenty_lines_and_settles_its_protocol() {
    let scout = Request { scout: Some(ScoutRequest::default()), ..request("payments") };
    for (file, filters, protocol) in [
        ("dns.yaml", 2, "http_protocol_options"),
        ("http2.yaml", 2, "http2_protocol_options"),
        ("tls-http2.yaml", 3, "http2_protocol_options"),
        ("auto-config.yaml", 3, "http_protocol_options"),
    ] {
        let document = injected(&read(&format!("bootstraps/{file}")), &scout);
        let listeners = document.value()["static_resources"]["listeners"].as_array().expect("listeners");
        let chain = listeners.last().expect("the scout's")["filter_chains"][0]["filters"].as_array().expect("filters");
        assert_eq!(chain.len(), filters, "{file}");
        let explicit =
            &cluster(&document, "payments-scout")["typed_extension_protocol_options"][OPTIONS]["explicit_http_config"];
        assert!(explicit.get(protocol).is_some(), "{file}: {explicit}");
        assert_eq!(
            document.value()["static_resources"]["clusters"].as_array().map(Vec::len),
            Some(2),
            "{file}: no lanes"
        );
    }
    let h2 = injected(&read("bootstraps/tls-http2.yaml"), &scout);
    assert!(h2.text().contains("inline_string: h2 "), "{}", h2.text());
    // Listeners may all come from elsewhere.
    let (_, clusters) =
        read("bootstraps/dns.yaml").split_once("  clusters:").map(|(a, b)| (a.to_owned(), b.to_owned())).expect("it");
    let text = format!("static_resources:\n  clusters:{clusters}");
    assert_eq!(removed(injected(&text, &scout).text(), None).text(), text);
    // An extension that is there, also as a TypedStruct, is the only one.
    let (_, text) = spellings().into_iter().find(|(name, _)| name == "extensions that are there").expect("it");
    assert_eq!(injected(&text, &scout).text().matches("internal_listener.v3.InternalListener").count(), 1);
}

fn refusal(text: &str) -> String {
    let mut document = Document::parse(text).expect("a file");
    match inject(&mut document, &request("payments")) {
        Ok(_) => panic!("not refused:\n{text}"),
        Err(error) => {
            assert_eq!(document.text(), text, "a refusal changes nothing");
            format!("{error:#}")
        }
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_the_reason() {
    let plain = read("bootstraps/dns.yaml");
    for (text, reason) in [
        (
            plain.replace("name: payments", "name: orders"),
            "there is no cluster \"payments\" among the static ones (orders)",
        ),
        ("static_resources: {}\n".to_owned(), "there are none"),
        (plain.replace("{ cluster: payments", "{ cluster: others"), "no HTTP route in this file leads to payments"),
        (plain.replace("{ cluster: payments", "{ cluster_header: x"), "routes that come by RDS get their copies there"),
        (
            plain.replace("type: STRICT_DNS", "cluster_type: { name: envoy.clusters.aggregate }"),
            "made of other clusters",
        ),
        (plain.replace("- name: router", "- name: lua").replace("router.v3.Router", "lua.v3.Lua"), "is not the router"),
        (read("first-design.yaml"), "a split of version 0.1"),
        (project_file("envoy.yaml").replace("payments", "shop").replace("shop-4s", "payments"), "payments is a lane of shop"),
        (project_file("deploy/dynamic/envoy.yaml"), "must be added at its source"),
        (
            plain.replace("              routes:\n", "              matcher: { on_no_match: { action: { typed_config: { \"@type\": x/envoy.config.route.v3.Route, match: { prefix: / }, route: { cluster: payments } } } } }\n              others:\n"),
            "make it a RouteList",
        ),
        (
            plain.replace("static_resources:", "stats_config:\nstatic_resources:"),
            "stats_config has no value",
        ),
        (
            plain.replace(
                "connect_timeout: 2s",
                "connect_timeout: 2s\n    common_http_protocol_options: { idle_timeout: 0.5s }",
            ),
            "shorter --lanes",
        ),
        // Envoy takes one item for a list, but there is no place for a second one.
        (
            plain.replace("  - name: payments\n    type", "    name: payments\n    type"),
            "a list is wanted at static_resources.clusters",
        ),
    ] {
        let told = refusal(&text);
        assert!(told.contains(reason), "{reason:?} is not in {told:?}\n{text}");
    }
}

#[test]
fn what_the_filter_would_refuse_is_refused_before_anything_changes() {
    let text = read("bootstraps/static.yaml");
    let scout = |path: &str| Some(ScoutRequest { path: Some(path.into()), host: None });
    for (request, reason) in [
        (
            Request { lb_idle_timeout: Some("60".into()), ..request("payments") },
            "destinations.payments.lb_idle_timeout",
        ),
        (Request { trusted_proxies: Some(vec!["ten".into()]), ..request("payments") }, "client_ip.trusted_proxies[0]"),
        (Request { lanes: Some(vec!["4".into()]), ..request("payments") }, "--lanes: \"4\" is not allowed"),
        (Request { scout: scout("healthz"), ..request("payments") }, "path: \"healthz\" is not allowed"),
    ] {
        let mut document = Document::parse(&text).expect("a file");
        let error = inject(&mut document, &request).expect_err("a refusal").to_string();
        assert!(error.contains(reason), "{error}");
        assert_eq!(document.text(), text);
    }
}

#[test]
fn lanes_follow_from_a_timeout_that_is_known() {
    for (timeout, lanes) in [
        (None, "\"payments-54s\": \"54s\", \"payments-4s\": \"4s\", \"payments-900ms\": \"900ms\""),
        (Some("60s"), "\"payments-54s\": \"54s\", \"payments-4s\": \"4s\", \"payments-900ms\": \"900ms\""),
        (
            Some("350s"),
            "\"payments-315s\": \"315s\", \"payments-54s\": \"54s\", \"payments-4s\": \"4s\", \"payments-900ms\": \"900ms\"",
        ),
        (Some("2s"), "\"payments-1800ms\": \"1800ms\", \"payments-900ms\": \"900ms\""),
    ] {
        let request = Request { lb_idle_timeout: timeout.map(str::to_owned), ..request("payments") };
        let text = injected(&read("bootstraps/static.yaml"), &request).text().to_owned();
        let spaced = text
            .replace("\n                                    ", " ")
            .replace("\n                                  }", " }");
        assert!(spaced.contains(&format!("\"lanes\": {{ {lanes} }}")), "{text}");
    }
}

#[test]
fn the_projects_own_envoy_yaml_has_all_that_is_needed() {
    let text = project_file("envoy.yaml");
    assert_eq!(injected(&text, &request("payments")).text(), text);
    assert_eq!(injected(&text, &Request { scout: Some(ScoutRequest::default()), ..request("payments") }).text(), text);
}

/// New values reach the filter, and nothing else moves.
#[test]
fn a_file_with_idleguard_is_brought_up_to_date() {
    let text = project_file("envoy.yaml");
    let request = Request {
        lb_idle_timeout: Some("350s".into()),
        trusted_proxies: Some(vec!["10.0.0.0/8".into()]),
        wasm: Some("/etc/envoy/idleguard.wasm".into()),
        ..request("payments")
    };
    let document = injected(&text, &request);
    assert_eq!(document.text().matches("\"lb_idle_timeout\": \"350s\"").count(), 1, "{}", document.text());
    let lists = document.text().matches("\"trusted_proxies\": [\"10.0.0.0/8\"]").count();
    assert!(lists == 1 && !document.text().contains("filename: idleguard.wasm"), "{}", document.text());
    assert_eq!(injected(document.text(), &request).text(), document.text());
}

/// The bootstraps of others, which are not ours to keep here: `BOOTSTRAPS=/path/to/envoyproxy/examples cargo test -p idleguard-cli
/// --test cli -- --ignored --nocapture every_bootstrap_of_a_directory`.
#[test]
#[ignore = "takes a directory with bootstraps, and starts Envoy for each cluster in them"]
fn every_bootstrap_of_a_directory() {
    let directory = std::env::var_os("BOOTSTRAPS").expect("BOOTSTRAPS=/path/to/a/directory");
    std::env::set_current_dir(&directory).expect("a directory"); // where what they name is found
    let scout = Some(ScoutRequest::default());
    let wasm = project::wasm().ok().and_then(|path| path.to_str().map(str::to_owned));
    let (mut accepted, mut wrong) = ([0, 0], Vec::new());
    for (path, text) in bootstraps_in(Path::new("."), 0) {
        let document = Document::parse(&text).expect("read before");
        let clusters = document.value()["static_resources"]["clusters"].as_array().cloned().unwrap_or_default();
        let mut is_counted = [false, false];
        for name in clusters.iter().filter_map(|cluster| cluster["name"].as_str()) {
            for (with, scout) in [None, scout.clone()].into_iter().enumerate() {
                let request = Request { scout, wasm: wasm.clone(), ..request(name) };
                let mut injected = document.clone();
                if let Err(error) = inject(&mut injected, &request) {
                    println!("{}: {name}: {error:#}", path.display());
                    continue;
                }
                let says = |text: &str| {
                    let config = Config::parse(text).expect("a bootstrap");
                    Envoy::validate(&config, &Options::default()).expect("a verdict").accepted
                };
                let told = |document: &Document| -> Vec<String> {
                    check(document, Surroundings::default()).into_iter().map(|finding| finding.what).collect()
                };
                let before = told(&document);
                let new: Vec<_> = told(&injected).into_iter().filter(|what| !before.contains(what)).collect();
                let mut is = |what: &str, holds: bool| {
                    if !holds {
                        wrong.push(format!("{}: {name}: {what}", path.display()));
                    }
                };
                is("a line has changed", keeps_lines(&text, injected.text()));
                is("--remove gives other bytes", removed(injected.text(), None).text() == text);
                is(&format!("{new:?}"), new.is_empty());
                let is_valid = says(injected.text());
                is("Envoy refuses it", is_valid || !says(&text));
                is_counted[with] |= is_valid;
            }
        }
        for (count, is) in accepted.iter_mut().zip(is_counted) {
            *count += usize::from(is);
        }
    }
    println!("with lanes {} bootstraps are valid, with a scout {}", accepted[0], accepted[1]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(accepted.iter().all(|count| *count >= 20), "too few for a verdict");
}

fn bootstraps_in(directory: &Path, depth: usize) -> Vec<(PathBuf, String)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found = Vec::new();
    for path in entries {
        if path.is_dir() && depth < 4 {
            found.extend(bootstraps_in(&path, depth + 1));
        } else if path.extension().is_some_and(|end| end == "yaml" || end == "json")
            && let Ok(text) = std::fs::read_to_string(&path)
            && Document::parse(&text).is_ok_and(|document| kind::expect_bootstrap(&document).is_ok())
        {
            found.push((path, text));
        }
    }
    found.sort();
    found
}

//! Each rule finds the mistake that is put in for it, nothing else is found, and what just isn't a mistake is none.

use std::time::Duration;

use idleguard_cli::check::{Finding, RULES, Severity, Surroundings, check};
use idleguard_cli::document::Document;

use super::{project_file, read};

const SURROUNDINGS: Surroundings =
    Surroundings { front_lb_idle_timeout: Some(Duration::from_secs(60)), envoy: Some((1, 36)) };

fn findings(text: &str) -> Vec<Finding> {
    check(&Document::parse(text).unwrap_or_else(|error| panic!("{error:#}\n{text}")), SURROUNDINGS)
}

fn ids(text: &str) -> Vec<&'static str> {
    let mut ids: Vec<_> = findings(text).into_iter().map(|finding| finding.id).collect();
    ids.dedup();
    ids
}

/// An edit of a text: each piece that must be there, and what takes its place.
type Edit = &'static [(&'static str, &'static str)];

fn edited(edit: Edit) -> String {
    edit.iter().fold(read("fine.yaml"), |text, (from, to)| {
        assert!(text.contains(from), "{from:?} is not there");
        text.replace(from, to)
    })
}

const EARLY: &str = "          early_header_mutation_extensions:
          - name: idleguard-lane
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation
              mutations: [{ remove: x-idleguard-lane }]
";
const RECORDER: &str = "      - name: peer
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config
          on_new_connection:
          - object_key: idleguard.peer
            factory_key: envoy.string
            format_string: { text_format_source: { inline_string: \"%DOWNSTREAM_REMOTE_ADDRESS%\" } }
";
const BASE_ROUTE: &str = "              - match: { prefix: / }
                route: { cluster: payments, timeout: 5s }
";
const LANE_ROUTE: &str =
    "              - match: { prefix: /, headers: [{ name: x-idleguard-lane, string_match: { exact: payments=4s } }] }
                route: { cluster: payments-4s, timeout: 5s }
                request_headers_to_remove: [x-idleguard-lane]
";
const LANE_OF_4S: &str = "common_http_protocol_options: { idle_timeout: 4s }";
const ROUTER: &str = "          - name: router\n            typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }\n";
/// A listener without idleguard, whose routes lead to another cluster and to the destination.
const SECOND_TO_ORDERS: &str = "  - name: second
    filter_chains:
    - filters:
      - name: http
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          route_config: { virtual_hosts: [{ name: all, domains: [\"*\"], routes: [{ match: { prefix: / }, route: { cluster: orders } }] }] }
  - name: payments-scout
    internal_listener: {}
";
const SECOND_TO_PAYMENTS: &str = "  - name: second
    filter_chains:
    - filters:
      - name: http
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          route_config: { virtual_hosts: [{ name: all, domains: [\"*\"], routes: [{ match: { prefix: / }, route: { cluster: payments } }] }] }
  - name: payments-scout
    internal_listener: {}
";
const SECOND_BY_HEADER: &str = "  - name: second
    filter_chains:
    - filters:
      - name: http
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          route_config: { virtual_hosts: [{ name: all, domains: [\"*\"], routes: [{ match: { prefix: / }, route: { cluster_header: x } }] }] }
  - name: payments-scout
    internal_listener: {}
";
const SECOND_TCP: &str = "  - name: second
    filter_chains:
    - filters:
      - { name: tcp, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, cluster: payments } }
  - name: payments-scout
    internal_listener: {}
";
/// Where a listener goes in.
const SCOUT_LISTENER: &str = "  - name: payments-scout\n    internal_listener: {}\n";
const REMOVED: &str = "\n                request_headers_to_remove: [x-idleguard-lane]";

const BASE_AND_LANE_ROUTE: &str = "              - match: { prefix: / }
                route: { cluster: payments, timeout: 5s }
              - match: { prefix: /, headers: [{ name: x-idleguard-lane, string_match: { exact: payments=4s } }] }
                route: { cluster: payments-4s, timeout: 5s }
                request_headers_to_remove: [x-idleguard-lane]
";

const VIRTUAL_HOSTS: &str = "            virtual_hosts:\n";
/// Hosts whose routes a matcher chooses: one route, and a list of them.
const HOST_WITH_ONE_ROUTE: &str = "            virtual_hosts:
            - name: tree
              domains: [tree]
              matcher: { on_no_match: { action: { typed_config: { \"@type\": x/envoy.config.route.v3.Route, match: { prefix: / }, route: { cluster: payments } } } } }
";
const HOST_WITH_A_LIST: &str = "            virtual_hosts:
            - name: tree
              domains: [tree]
              matcher:
                on_no_match:
                  action:
                    typed_config:
                      \"@type\": x/envoy.config.route.v3.RouteList
                      routes:
                      - match: { prefix: /, headers: [{ name: x-idleguard-lane, string_match: { exact: payments=54s } }] }
                        route: { cluster: payments-54s }
                        request_headers_to_remove: [x-idleguard-lane]
                      - match: { prefix: /, headers: [{ name: x-idleguard-lane, string_match: { exact: payments=4s } }] }
                        route: { cluster: payments-4s }
                        request_headers_to_remove: [x-idleguard-lane]
                      - { match: { prefix: / }, route: { cluster: payments } }
";

/// A rule, its mistakes, and what just isn't one.
struct Case {
    rule: &'static str,
    mistakes: &'static [Edit],
    near: &'static [Edit],
}

const CASES: &[Case] = &[
    Case {
        rule: "invalid-configuration",
        mistakes: &[
            &[("client_ip: {}", "client_ip: { trusted_hops: 0 }")],
            &[("\"filter\": \"scout\"", "\"filter\": \"tcp\"")],
        ],
        near: &[&[("client_ip: {}", "client_ip: { trusted_proxies: [10.0.0.0/8], trusted_hops: 1 }")]],
    },
    Case {
        rule: "configuration-warning",
        mistakes: &[&[("client_ip: {}", "client_ip: { trusted_hops: 1 }")]],
        near: &[&[("client_ip: {}", "client_ip: { trusted_proxies: [10.0.0.0/8], trusted_hops: 1 }")]],
    },
    Case {
        rule: "first-design",
        mistakes: &[&[("\"filter\": \"scout\", ", "\"filter\": \"connection\", ")]],
        near: &[&[("\"filter\": \"scout\", ", "\"filter\": \"scout\", \"host\": \"connection\", ")]],
    },
    Case {
        rule: "idle-timeout-default",
        mistakes: &[
            &[(SCOUT_LISTENER, SECOND_TO_ORDERS), ("  clusters:\n", "  clusters:\n  - name: orders\n")],
            &[
                (SCOUT_LISTENER, SECOND_TO_ORDERS),
                (
                    "  clusters:\n",
                    "  clusters:\n  - { name: orders, common_http_protocol_options: { idle_timeout: 0s } }\n",
                ),
            ],
        ],
        near: &[
            &[("  clusters:\n", "  clusters:\n  - name: orders\n")], // no route leads there
            &[
                (SCOUT_LISTENER, SECOND_TO_ORDERS),
                (
                    "  clusters:\n",
                    "  clusters:\n  - { name: orders, common_http_protocol_options: { idle_timeout: 30s } }\n",
                ),
            ],
            &[
                (SCOUT_LISTENER, SECOND_TO_ORDERS),
                ("  clusters:\n", "  clusters:\n  - { name: orders, max_requests_per_connection: 1 }\n"),
            ],
        ],
    },
    Case {
        rule: "lane-idle-timeout",
        mistakes: &[
            &[(LANE_OF_4S, "common_http_protocol_options: { idle_timeout: 5s }")],
            &[(LANE_OF_4S, "common_http_protocol_options: {}")],
            &[("payments: { lanes", "payments: { idle_timeout: 30s, lanes")],
        ],
        near: &[
            &[(LANE_OF_4S, "common_http_protocol_options: { idle_timeout: 4.000s }")],
            &[("payments: { lanes", "payments: { idle_timeout: 60m, lanes")],
        ],
    },
    Case {
        rule: "lane-differs",
        mistakes: &[
            &[(LANE_OF_4S, "common_http_protocol_options: { idle_timeout: 4s, max_connection_duration: 60s }")],
            &[("/, host: payments }", "/ }")], // Envoy says the lane's name
            &[("  - name: payments-4s\n    alt_stat_name: payments\n", "  - name: payments-4s\n")],
        ],
        near: &[&[("    alt_stat_name: payments\n    type: EDS\n", "    type: EDS\n    alt_stat_name: payments\n")]],
    },
    Case {
        rule: "eds-service-name",
        mistakes: &[&[(", service_name: payments }", " }")]],
        near: &[&[
            ("yaml } } }", "yaml } }, service_name: shop }"),
            (", service_name: payments }", ", service_name: shop }"),
        ]],
    },
    Case {
        rule: "lane-below-connect-timeout",
        mistakes: &[&[("connect_timeout: 2s", "connect_timeout: 5s")]],
        near: &[&[("connect_timeout: 2s", "connect_timeout: 4s")]],
    },
    Case {
        rule: "unknown-destination",
        mistakes: &[
            &[("\"cluster\": \"payments-scout\"", "\"cluster\": \"scout\"")],
            &[("server_listener_name: payments-scout", "server_listener_name: other")],
        ],
        near: &[&[
            ("\"cluster\": \"payments-scout\"", "\"cluster\": \"scout\""),
            ("static_resources:\n", "dynamic_resources: { cds_config: { ads: {} } }\nstatic_resources:\n"),
        ]],
    },
    Case {
        rule: "missing-lane-route",
        mistakes: &[
            &[(", all_requests: true", ""), (VIRTUAL_HOSTS, HOST_WITH_ONE_ROUTE)],
            &[(LANE_ROUTE, "")],
            &[("exact: payments=4s", "exact: payments=4000ms")],
            &[("cluster: payments-4s, timeout", "cluster: payments-54s, timeout")],
            &[(
                "          route_config:\n            virtual_hosts:\n",
                "          route_config:\n            virtual_hosts:\n            - { name: own, domains: [own.example], routes: [{ match: { prefix: / }, route: { cluster: payments } }] }\n",
            )],
        ],
        near: &[
            &[(", all_requests: true", ""), (VIRTUAL_HOSTS, HOST_WITH_A_LIST)],
            &[("headers: [{ name: x-idleguard-lane,", "headers: [{ name: X-Idleguard-Lane,")],
            &[("string_match: { exact: payments=4s }", "exact_match: payments=4s")],
        ],
    },
    Case {
        rule: "lane-route-order",
        mistakes: &[&[(LANE_ROUTE, ""), (BASE_ROUTE, BASE_AND_LANE_ROUTE)]],
        near: &[&[
            ("payments=54s", "payments=x"),
            ("payments=4s", "payments=54s"),
            ("payments=x", "payments=4s"),
            ("cluster: payments-54s, timeout", "cluster: payments-x, timeout"),
            ("cluster: payments-4s, timeout", "cluster: payments-54s, timeout"),
            ("cluster: payments-x, timeout", "cluster: payments-4s, timeout"),
        ]],
    },
    Case {
        rule: "lane-route-differs",
        mistakes: &[&[("cluster: payments-4s, timeout: 5s", "cluster: payments-4s, timeout: 6s")]],
        near: &[&[(
            "                route: { cluster: payments-4s",
            "                name: four\n                route: { cluster: payments-4s",
        )]],
    },
    Case {
        rule: "lane-header-kept",
        mistakes: &[&[(REMOVED, "")]],
        near: &[
            &[
                (REMOVED, ""),
                (
                    "          route_config:\n",
                    "          route_config:\n            request_headers_to_remove: [X-Idleguard-Lane]\n",
                ),
            ],
            &[
                (REMOVED, ""),
                (
                    "domains: [\"*\"]\n",
                    "domains: [\"*\"]\n              request_headers_to_remove: [x-idleguard-lane]\n",
                ),
            ],
        ],
    },
    Case {
        rule: "client-chosen-lane",
        mistakes: &[&[(EARLY, "")], &[("{ remove: x-idleguard-lane }", "{ remove: x-other }")]],
        near: &[&[("{ remove: x-idleguard-lane }", "{ remove: X-Idleguard-Lane }")]],
    },
    Case {
        rule: "cluster-header-route",
        mistakes: &[&[
            (", all_requests: true", ""),
            (
                BASE_ROUTE,
                "              - match: { prefix: /x }\n                route: { cluster_header: x }\n              - match: { prefix: / }\n                route: { cluster: payments, timeout: 5s }\n",
            ),
        ]],
        near: &[
            &[(SCOUT_LISTENER, SECOND_BY_HEADER)],
            &[("timeout: 5s }", "timeout: 5s, request_mirror_policies: [{ cluster_header: x }] }")],
        ],
    },
    Case {
        rule: "all-requests",
        mistakes: &[
            &[(
                BASE_ROUTE,
                "              - match: { prefix: /x }\n                route: { cluster: orders }\n              - match: { prefix: / }\n                route: { cluster: payments, timeout: 5s }\n",
            )],
            &[(
                "          route_config:\n",
                "          original_route: {}\n          scoped_routes: { rds_config_source: {}, scoped_rds: {} }\n          route_config:\n",
            )],
        ],
        near: &[&[(
            BASE_ROUTE,
            "              - match: { prefix: /x }\n                direct_response: { status: 200 }\n              - match: { prefix: / }\n                route: { cluster: payments, timeout: 5s }\n",
        )]],
    },
    Case {
        rule: "shared-pool",
        mistakes: &[&[("timeout: 5s }", "timeout: 5s, request_mirror_policies: [{ cluster: payments }] }")]],
        near: &[
            &[("timeout: 5s }", "timeout: 5s, request_mirror_policies: [{ cluster: orders }] }")],
            &[(SCOUT_LISTENER, SECOND_TCP)], // TCP has pools of its own
        ],
    },
    Case {
        rule: "different-vms",
        mistakes: &[&[("vm_id: idleguard\n                  runtime", "vm_id: other\n                  runtime")]],
        near: &[&[(
            "vm_id: idleguard\n                  runtime",
            "vm_id: idleguard\n                  allow_precompiled: true\n                  runtime",
        )]],
    },
    Case {
        rule: "unfiltered-route",
        mistakes: &[
            &[(
                "          http_filters:\n",
                "          upgrade_configs: [{ upgrade_type: websocket, filters: [{ name: router }] }]\n          http_filters:\n",
            )],
            &[(
                "          - name: idleguard\n            typed",
                "          - name: idleguard\n            disabled: true\n            typed",
            )],
            &[(
                "domains: [\"*\"]\n",
                "domains: [\"*\"]\n              typed_per_filter_config: { idleguard: { \"@type\": x/envoy.config.route.v3.FilterConfig, disabled: true } }\n",
            )],
            &[(SCOUT_LISTENER, SECOND_TO_PAYMENTS)],
        ],
        near: &[
            &[(
                "          http_filters:\n",
                "          upgrade_configs: [{ upgrade_type: websocket }]\n          http_filters:\n",
            )],
            &[(
                "          - name: idleguard\n            typed",
                "          - name: idleguard\n            disabled: false\n            typed",
            )],
            &[(
                "domains: [\"*\"]\n",
                "domains: [\"*\"]\n              typed_per_filter_config: { lua: { \"@type\": x/envoy.config.route.v3.FilterConfig, disabled: true } }\n",
            )],
            &[(SCOUT_LISTENER, SECOND_TO_ORDERS)],
        ],
    },
    Case {
        rule: "not-last-filter",
        mistakes: &[
            &[(
                ROUTER,
                "          - { name: authz, typed_config: { \"@type\": x/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz } }\n          - name: router\n            typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }\n",
            )],
            &[(
                ROUTER,
                "          - { name: sign, typed_config: { \"@type\": x/envoy.extensions.filters.http.aws_request_signing.v3.AwsRequestSigning } }\n          - name: router\n            typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }\n",
            )],
        ],
        near: &[&[(
            ROUTER,
            "          - { name: rbac, typed_config: { \"@type\": x/envoy.extensions.filters.http.rbac.v3.RBAC } }\n          - name: router\n            typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }\n",
        )]],
    },
    Case {
        rule: "tcp-proxy-idle-timeout",
        mistakes: &[
            &[("          cluster: payments\n          idle_timeout: 0s\n", "          cluster: payments\n")],
            &[(
                "          cluster: payments\n          idle_timeout: 0s\n",
                "          cluster: payments\n          idle_timeout: 7200s\n",
            )],
        ],
        near: &[&[(SCOUT_LISTENER, SECOND_TCP)]],
    },
    Case {
        rule: "missing-bootstrap-extension",
        mistakes: &[
            &[("bootstrap_extensions:", "other_extensions:")],
            &[(
                "static_resources:\n",
                "- { name: again, typed_config: { \"@type\": x/envoy.extensions.bootstrap.internal_listener.v3.InternalListener } }\nstatic_resources:\n",
            )],
        ],
        near: &[&[(
            "{ \"@type\": type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener }",
            "{ \"@type\": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: x/envoy.extensions.bootstrap.internal_listener.v3.InternalListener, value: {} }",
        )]],
    },
    Case {
        rule: "unrecorded-peer",
        mistakes: &[&[("use_remote_address: true", "use_remote_address: false"), (RECORDER, "")]],
        near: &[&[(RECORDER, "")], &[("use_remote_address: true", "use_remote_address: false")]],
    },
    Case {
        rule: "appended-forwarded-for",
        mistakes: &[
            &[("          skip_xff_append: true\n", "")],
            &[(
                "          use_remote_address: true\n",
                "          original_ip_detection_extensions: [{ name: xff, typed_config: { \"@type\": x/envoy.extensions.http.original_ip_detection.xff.v3.XffConfig, skip_xff_append: false } }]\n",
            )],
        ],
        near: &[
            &[("          skip_xff_append: true\n", ""), ("use_remote_address: true", "use_remote_address: false")],
            &[(
                "          use_remote_address: true\n",
                "          original_ip_detection_extensions: [{ name: xff, typed_config: { \"@type\": x/envoy.extensions.http.original_ip_detection.xff.v3.XffConfig } }]\n",
            )],
        ],
    },
    Case {
        rule: "added-client-header",
        mistakes: &[&[(
            "          route_config:\n",
            "          route_config:\n            request_headers_to_add: [{ header: { key: X_Real-IP, value: x } }]\n",
        )]],
        near: &[&[(
            "          route_config:\n",
            "          route_config:\n            request_headers_to_add: [{ header: { key: x-request-start, value: x } }]\n",
        )]],
    },
    Case {
        rule: "internal-address",
        mistakes: &[&[(
            "          use_remote_address: true\n",
            "          internal_address_config: { unix_sockets: true }\n",
        )]],
        near: &[&[(
            "          use_remote_address: true\n",
            "          use_remote_address: true\n          internal_address_config: { unix_sockets: true }\n",
        )]],
    },
    Case {
        rule: "fails-open",
        mistakes: &[
            &[(
                "name: idleguard\n                vm_config",
                "name: idleguard\n                failure_policy: fail_open\n                vm_config",
            )],
            &[(
                "name: idleguard\n                vm_config",
                "name: idleguard\n                failure_policy: 3\n                vm_config",
            )],
        ],
        near: &[
            &[(
                "name: idleguard\n                vm_config",
                "name: idleguard\n                failure_policy: FAIL_CLOSED\n                vm_config",
            )],
            &[("name: idleguard-scout\n", "name: idleguard-scout\n            failure_policy: FAIL_OPEN\n")],
        ],
    },
    Case {
        rule: "front-lb-idle-timeout",
        mistakes: &[&[("idle_timeout: 900s", "idle_timeout: 60s")]],
        near: &[
            &[("idle_timeout: 900s", "idle_timeout: 61s")],
            &[("idle_timeout: 900s", "idle_timeout: 0s")], // never
            &[("          common_http_protocol_options: { idle_timeout: 900s }\n", "")], // 1 h
        ],
    },
];

#[test]
fn every_rule_finds_its_mistakes_and_only_those() {
    let mut wrong = Vec::new();
    for Case { rule, mistakes, near } in CASES {
        for edit in *mistakes {
            let found = findings(&edited(edit));
            if found.is_empty() || !found.iter().all(|finding| finding.id == *rule && finding.line.is_some()) {
                wrong.push(format!("{rule}: {edit:?}\nfound {found:#?}"));
            }
        }
        for edit in *near {
            let found = findings(&edited(edit));
            if !found.is_empty() {
                wrong.push(format!("{rule}, near: {edit:?}\nfound {found:#?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    let is_tried = |case: &&Case| !case.mistakes.is_empty() && !case.near.is_empty();
    let tried: Vec<&str> = CASES.iter().filter(is_tried).map(|case| case.rule).collect();
    let all: Vec<&str> = RULES.iter().map(|rule| rule.id).collect();
    assert_eq!(tried, all);
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    for text in [read("fine.yaml"), project_file("envoy.yaml")] {
        let found = findings(&text);
        // The shortest lane of envoy.yaml is below its connect_timeout, and these are findings for Envoy 1.36.
        let found: Vec<_> = found.iter().filter(|finding| finding.id != "lane-below-connect-timeout").collect();
        assert!(found.is_empty(), "{found:#?}");
    }
}

/// A bootstrap of the first design: one finding, which says what to do.
#[test]
fn the_first_design_is_recognized() {
    assert_eq!(ids(&read("first-design.yaml")), ["first-design"]);
    let found = findings(&read("first-design.yaml"));
    assert!(found[0].what.contains("\"payments\"") && found[0].remedy.contains("idleguard inject"), "{found:#?}");
}

#[test]
fn a_configuration_is_judged_in_the_filters_own_words_wherever_it_stands() {
    let found = findings(&read("discovered.yaml"));
    let [finding] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!((finding.id, finding.severity), ("invalid-configuration", Severity::Error));
    assert!(
        finding
            .what
            .starts_with("destinations.payments.retry_stale: \"always\" is not allowed: a key of idleguard 0.1"),
        "{}",
        finding.what
    );
    assert_eq!(finding.path, "resources[0].typed_config.config.configuration");

    // The HTTP filter's alone, no second finding that the route has none.
    let refused = read("fine.yaml").replace("destinations: { payments", "destination: { payments");
    assert_eq!(ids(&refused).first(), Some(&"invalid-configuration"));
    let scout = read("fine.yaml").replace("filter: http", "filter: scout");
    assert!(ids(&scout).contains(&"invalid-configuration"));
}

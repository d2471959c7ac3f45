//! The rules, each with its id. The ids are a promise: dashboards and scripts name them.

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It does not work, or not as meant: the exit code is 1.
    Error,
    /// It works, and will probably be regretted.
    Warning,
}

/// One rule.
#[derive(Debug)]
pub struct Rule {
    /// Its name in output and docs.
    pub id: &'static str,
    /// How bad its findings are.
    pub severity: Severity,
    /// Why it matters.
    pub why: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

macro_rules! rules {
    ($($constant:ident $id:literal $severity:ident $why:literal $remedy:literal)*) => {
        $(
            #[doc = concat!("`", $id, "`")]
            pub static $constant: Rule =
                Rule { id: $id, severity: Severity::$severity, why: $why, remedy: $remedy };
        )*
        /// All rules.
        pub static RULES: &[&Rule] = &[$(&$constant),*];
    };
}

rules! {
    INVALID_CONFIGURATION "invalid-configuration" Error
        "idleguard refuses it, and Envoy does not start (or ignores the update), whatever failure_policy says."
        "Correct the key that is named."
    CONFIGURATION_WARNING "configuration-warning" Warning
        "idleguard accepts it, and says this in Envoy's log at every start."
        "Follow the sentence, or know why not."
    FIRST_DESIGN "first-design" Error
        "Version 0.1 put a connection filter between Envoy's pool and the far end. This version refuses it: Envoy does not start."
        "Take out the internal listener with this filter and the cluster that leads to it, give the cluster behind them (NAME-lb) the \
         old name, take the old HTTP filter out, and run `idleguard inject --cluster NAME` (docs/cli.md, \"From version 0.1\")."
    IDLE_TIMEOUT_DEFAULT "idle-timeout-default" Warning
        "A load balancer or server that drops idle connections earlier than Envoy does makes requests fail: 503 UC."
        "Run `idleguard inject --cluster NAME`, or, if you know the far end's timeout, set common_http_protocol_options.idle_timeout \
         below it."
    LANE_IDLE_TIMEOUT "lane-idle-timeout" Error
        "idleguard goes by the idle_timeout that its configuration names. What the pool really does is another, so requests meet \
         connections that the far end has dropped, or connections are closed early."
        "Give the cluster and the plugin configuration (lanes, or idle_timeout for the base) the same value."
    LANE_DIFFERS "lane-differs" Warning
        "A lane is to be the base but for the name and the idle_timeout. Whatever else differs changes with the lane in force."
        "Copy the base again: `idleguard inject --remove`, then `idleguard inject`."
    EDS_SERVICE_NAME "eds-service-name" Error
        "EDS is asked for a lane's own name unless service_name says otherwise, and no control plane knows that one: the lane has no \
         hosts."
        "Set eds_cluster_config.service_name of the lane to the base's, or to the base's name."
    LANE_BELOW_CONNECT_TIMEOUT "lane-below-connect-timeout" Warning
        "Before 1.38 Envoy counts idle_timeout before a connection is there: a connect that takes longer, with its TLS handshake, \
         fails (envoyproxy/envoy#42753)."
        "Use a longer lane, a connect_timeout below it, or Envoy 1.38 or newer."
    UNKNOWN_DESTINATION "unknown-destination" Error
        "A token that leads to a cluster which is not there is answered with 503, and a scout without its cluster asks nobody."
        "Use the names of the clusters as they stand in this file."
    MISSING_LANE_ROUTE "missing-lane-route" Error
        "While that lane is in force these requests go to the base, with connections that may be stale."
        "Put a copy of the route before it, with the header match, or run `idleguard inject --cluster NAME`."
    LANE_ROUTE_ORDER "lane-route-order" Error
        "Envoy takes the first route that matches. The base's matches every request, so the lane is never used."
        "Put the lane's route before the base's."
    LANE_ROUTE_DIFFERS "lane-route-differs" Warning
        "What stands in the base's route and not in its copy (a timeout, retries, per-route filters) comes and goes with the lane."
        "Make it a copy again: everything but the header match, the cluster and the removed header."
    LANE_HEADER_KEPT "lane-header-kept" Error
        "The application gets a header that is nobody's business but Envoy's, and may sign, log or cache by it."
        "Add x-idleguard-lane to request_headers_to_remove of the route, and of the route configuration."
    CLIENT_CHOSEN_LANE "client-chosen-lane" Warning
        "While no lane is in force a client can choose one, at most to its own harm: more reconnects."
        "Remove x-idleguard-lane by early_header_mutation_extensions, as in envoy.yaml."
    CLUSTER_HEADER_ROUTE "cluster-header-route" Warning
        "Where the request says which cluster it goes to, no copy of the route can lead to a lane of it."
        "Give the destination routes of its own, or let the header name the lane itself."
    ALL_REQUESTS "all-requests" Error
        "idleguard then sends every request to the destination's lanes, and counts every connection as its own."
        "Leave all_requests out where another cluster can be reached."
    SHARED_POOL "shared-pool" Warning
        "Requests that pass no idleguard renew connections unseen: the ages that it sees are too long at times, and it may choose a \
         shorter lane than it must."
        "Give that use a cluster of its own, or live with it: nothing fails."
    DIFFERENT_VMS "different-vms" Error
        "Filters share what they know within one VM only. Apart, what the scout finds out never reaches the HTTP filter."
        "Give both the same vm_id, code and configuration in vm_config, to the letter."
    UNFILTERED_ROUTE "unfiltered-route" Error
        "These requests pass no idleguard: their headers are not looked at, they choose no lane, and they renew connections unseen."
        "Put the HTTP filter there, too, last before the router; or take the destination out of the others."
    NOT_LAST_FILTER "not-last-filter" Warning
        "A request that a later filter holds back is handed over later than idleguard saw it; one that is signed later carries our \
         header in its signature."
        "Make idleguard the last filter before the router. Client-address rules that others need go into a second one, further up."
    TCP_PROXY_IDLE_TIMEOUT "tcp-proxy-idle-timeout" Warning
        "tcp_proxy closes the scout's connection by its own timer, 1 h by default, and what the scout would have seen later stays \
         unknown."
        "Set idle_timeout: 0s in the tcp_proxy behind the scout."
    MISSING_BOOTSTRAP_EXTENSION "missing-bootstrap-extension" Error
        "Without it Envoy refuses internal listeners; with two of them every in-process connection fails."
        "Have envoy.bootstrap.internal_listener in bootstrap_extensions, once."
    UNRECORDED_PEER "unrecorded-peer" Error
        "Without use_remote_address, Envoy takes the right-most x-forwarded-for element for the peer, which any client can write. \
         idleguard then believes nobody, and writes no client address."
        "Put the network filter set_filter_state with the key idleguard.peer before the connection manager (docs/client-ip.md)."
    APPENDED_FORWARDED_FOR "appended-forwarded-for" Error
        "Envoy adds the peer to x-forwarded-for before any filter runs: trusted_hops is one off, and the peer occurs twice."
        "Set skip_xff_append: true in the connection manager, and in the XffConfig of original_ip_detection_extensions."
    ADDED_CLIENT_HEADER "added-client-header" Warning
        "The application gets the header twice, or with another value than idleguard's."
        "Take it out of request_headers_to_add, or out of the names that client_ip writes and removes."
    INTERNAL_ADDRESS "internal-address" Warning
        "Without use_remote_address Envoy takes what a client wrote into x-forwarded-for for its address, and trusts it as internal \
         where that is in a block of internal_address_config."
        "Set use_remote_address: true, or leave internal_address_config out."
    FAILS_OPEN "fails-open" Warning
        "If the filter's VM ends, requests go on to the application with whatever address the client wrote."
        "Set failure_policy: FAIL_RELOAD: closed for a second, and back in a new VM (docs/security.md)."
    FRONT_LB_IDLE_TIMEOUT "front-lb-idle-timeout" Error
        "The load balancer in front reuses connections that this Envoy has just closed, and its requests fail with the very resets \
         that idleguard prevents on the other side."
        "Set common_http_protocol_options.idle_timeout well above the front load balancer's idle timeout."
}

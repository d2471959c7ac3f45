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
    IDLE_TIMEOUT_DEFAULT "idle-timeout-default" Warning
        "Envoy keeps idle connections to it for 1 h. A load balancer or server that drops them earlier makes requests fail: 503 UC."
        "Run `idleguard inject --cluster NAME`, or, if you know the far end's timeout, set common_http_protocol_options.idle_timeout \
         below it."
    DIFFERENT_VMS "different-vms" Error
        "The filters share what they know within one VM only. Apart, nothing is fenced, and closing idle connections races with \
         requests."
        "Give both the same vm_id, code and configuration in vm_config, to the letter."
    UNKNOWN_DESTINATION "unknown-destination" Error
        "The destination ties the two filters together by the cluster's name. A name that is no cluster ties nothing."
        "Use the name of the cluster that the routes name, the same in both filters."
    UNRECORDED_PEER "unrecorded-peer" Error
        "Without use_remote_address, Envoy takes the right-most x-forwarded-for element for the peer, which any client can write. \
         idleguard then believes nobody, and writes no client address."
        "Put the network filter set_filter_state with the key idleguard.peer before the connection manager (docs/client-ip.md)."
    APPENDED_FORWARDED_FOR "appended-forwarded-for" Error
        "Envoy adds the peer to x-forwarded-for before any filter runs: trusted_hops is one off, and the peer occurs twice."
        "Set skip_xff_append: true in the connection manager."
    FAILS_OPEN "fails-open" Warning
        "If the filter's VM ends, requests go on to the application with whatever address the client wrote."
        "Set failure_policy: FAIL_RELOAD in both filters: closed for a second, and back in a new VM (docs/security.md)."
    FRONT_LB_IDLE_TIMEOUT "front-lb-idle-timeout" Error
        "The load balancer in front reuses connections that this Envoy has just closed, and its requests fail with the very resets \
         that idleguard prevents on the other side."
        "Set common_http_protocol_options.idle_timeout well above the front load balancer's idle timeout."
    FENCE_ON_TLS "fence-on-tls" Error
        "A fenced cluster gets a TLS server name made up by idleguard, and the connection filter sees ciphertext: TLS belongs to the \
         inner cluster."
        "Move the TLS transport socket to the cluster that tcp_proxy leads to; the outer one has internal_upstream around raw_buffer."
    UNGUARDED_DESTINATION "unguarded-destination" Error
        "There is a policy for this cluster, but neither a connection filter on its connections nor a filter that divides its pool: \
         the policy does nothing but retry."
        "Run `idleguard inject --cluster NAME`, or put Envoy's set_filter_state right after idleguard (docs/configuration.md, \
         \"Without a connection filter\")."
    UNFILTERED_ROUTE "unfiltered-route" Error
        "Its requests pass no fence, but the connection filter closes connections all the same: some requests will meet the close."
        "Put the HTTP filter, with this destination, into every connection manager that routes to the cluster."
    NOT_LAST_FILTER "not-last-filter" Warning
        "A request that a later filter holds back gets its connection later than idleguard decided; the connection may be stale by \
         then."
        "Make idleguard the last filter before the router. Client-address rules that others need go into a second one, further up."
    DIFFERING_POLICIES "differing-policies" Warning
        "The lower idle limit holds in both filters, which is hardly what either meant."
        "Paste the same policy into both."
    TCP_PROXY_IDLE_TIMEOUT "tcp-proxy-idle-timeout" Warning
        "tcp_proxy closes idle connections by its own timer, 1 h by default, which races with requests."
        "Set idle_timeout: 0s in the tcp_proxy behind the connection filter."
    MISSING_BOOTSTRAP_EXTENSION "missing-bootstrap-extension" Error
        "Without it Envoy refuses internal listeners."
        "Add envoy.bootstrap.internal_listener to bootstrap_extensions."
}

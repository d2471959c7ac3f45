//! The HTTP filter: what a request needs before Envoy's router sees it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::ops::ControlFlow;
use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use crate::address::Text;
use crate::client_ip::{ClientIp, Edit, Outcome, Peer};
use crate::config::HttpConfig;
use crate::connection::Generation;
use crate::destination::End;
use crate::header_map;
use crate::host;
use crate::metrics::ClientIpMetric;
use crate::policy::{Policy, RetryStale};
use crate::time::Timestamp;
use crate::unseen;
use crate::worker::DestinationId;

use super::connection::close_doomed;
use super::contexts;
use super::destinations::{self, with_destination, with_worker};

/// The route's cluster.
const CLUSTER_NAME: &[u8] = b"xds\0cluster_name";

/// A number, 0 if the request went as requests do.
const RESPONSE_FLAGS: &[u8] = b"response\0flags";

/// Which connection the request was given: its two ends.
const UPSTREAM_LOCAL_ADDRESS: &[u8] = b"upstream\0local_address";
const UPSTREAM_ADDRESS: &[u8] = b"upstream\0address";

/// How often the request was sent.
const ATTEMPTS: &[u8] = b"upstream\0request_attempt_count";

/// In Envoy's words, how it ended.
const CODE_DETAILS: &[u8] = b"response\0code_details";

/// Where the generation goes if the cluster's connections are not seen: the filter state `wasm.idleguard.generation`.
const GENERATION: &[u8] = b"idleguard.generation";

/// The result of the client-address rules, for access logs and later filters: the filter state `wasm.idleguard.client_ip`.
const CLIENT_IP: &[u8] = b"idleguard.client_ip";

/// The address that Envoy takes for the client's.
const SOURCE_ADDRESS: &[u8] = b"source\0address";

const METHOD: &[u8] = b"request\0method";

const PROTOCOL: &[u8] = b"request\0protocol";

/// What the requests of one filter configuration share.
pub(super) struct HttpRoot {
    id: u32,
    config: Box<HttpConfig>,
    /// The clusters with a policy: those that have one of their own, and those that requests were routed to.
    destinations: RefCell<HashMap<Vec<u8>, Routed, BuildHasherDefault<contexts::IdHasher>>>,
    has_destinations: bool,
    /// The cluster that was asked for last, and the answer: mostly it is asked for again.
    latest: RefCell<(Vec<u8>, Option<Routed>)>,
    /// The property that holds the true peer.
    peer: Vec<u8>,
    /// The value of the `keep-alive` response header.
    keep_alive: Option<String>,
    client_ip: ClientIpCounts,
    has_warned_of_peer: Cell<bool>,
}

/// A cluster with a policy.
#[derive(Clone, Copy)]
struct Routed {
    id: DestinationId,
    retries: bool,
}

impl Routed {
    fn new(root: u32, name: &str, policy: &Policy) -> Option<Self> {
        let id = destinations::register(root, name, policy, false)?;
        Some(Self { id, retries: policy.retry_stale == RetryStale::Idempotent })
    }
}

impl HttpRoot {
    pub(super) fn new(id: u32, config: Box<HttpConfig>) -> Self {
        let destinations = config
            .destinations
            .iter()
            .filter_map(|(name, policy)| Some((name.clone().into_bytes(), Routed::new(id, name, policy)?)))
            .collect();
        let peer = config.client_ip.as_ref().map(ClientIp::peer_filter_state).unwrap_or_default();
        let keep_alive = config.advertise_keep_alive.map(|timeout| format!("timeout={}", timeout.as_secs()));
        Self {
            id,
            destinations: RefCell::new(destinations),
            has_destinations: config.any_destination.is_some() || !config.destinations.is_empty(),
            latest: RefCell::default(),
            peer: [b"filter_state\0", peer.as_bytes()].concat(),
            keep_alive,
            client_ip: config.client_ip.as_ref().map(|_| ClientIpCounts::new()).unwrap_or_default(),
            has_warned_of_peer: Cell::new(false),
            config,
        }
    }

    pub(super) fn on_tick(&self) {
        self.client_ip.report();
        destinations::share_unseen();
        destinations::report_counts();
    }

    /// Who is on the other end of the downstream connection.
    fn peer(&self) -> Peer {
        let read = |path: &[u8]| {
            host::property(path).unwrap_or_else(|error| {
                host::report(error);
                None
            })
        };
        let peer = match read(&self.peer) {
            Some(recorded) => Peer::from_filter_state(&recorded),
            None => read(SOURCE_ADDRESS).map_or(Peer::Unknown, |source| Peer::from_source_address(&source)),
        };
        if peer == Peer::Unknown && !self.has_warned_of_peer.replace(true) {
            log::warn!(
                "the peer of a request is unknown: its client-address headers are removed, and none are written. Record the \
                 peer before the HTTP connection manager, with the network filter set_filter_state (docs/client-ip.md)"
            );
        }
        peer
    }

    /// Rewrites the headers that tell the client's address. `Break` if the request was answered instead.
    fn rewrite(&self, rules: &ClientIp, headers: Option<&[(&[u8], &[u8])]>) -> ControlFlow<()> {
        let Some(headers) = headers else {
            // Fail closed: what can't be looked at is not let through.
            let removed =
                rules.removals().all(|name| host::remove_request_header(name.as_bytes()).map_err(host::report).is_ok());
            return if removed { ControlFlow::Continue(()) } else { refuse() };
        };
        let resolution = rules.resolve(self.peer(), headers);
        self.client_ip.count(resolution.outcome, resolution.rejected);
        if resolution.rejected {
            let answer = host::respond(400, "idleguard_client_ip", "the client's address is missing or malformed\n");
            return match answer {
                Ok(()) => ControlFlow::Break(()),
                Err(error) => {
                    host::report(error);
                    self.rewrite(rules, None)
                }
            };
        }
        for edit in &resolution.edits {
            let (name, edited) = match edit {
                Edit::Remove { name } => (*name, host::remove_request_header(name)),
                Edit::Replace { name, value } => {
                    (name.as_bytes(), host::replace_request_header(name.as_bytes(), value))
                }
            };
            let Err(error) = edited else { continue };
            host::report(error);
            if !withhold(name, headers) {
                return refuse();
            }
        }
        if let Some(client) = resolution.client {
            host::set_property(CLIENT_IP, Text::new(client).as_bytes()).unwrap_or_else(host::report);
        }
        ControlFlow::Continue(())
    }

    /// The destination that a cluster is, if it has a policy.
    fn routed(&self, cluster: Vec<u8>) -> Option<Routed> {
        if let Ok(latest) = self.latest.try_borrow()
            && header_map::equal(&latest.0, &cluster)
        {
            return latest.1;
        }
        let routed = self.look_up(&cluster);
        self.latest.replace((cluster, routed));
        routed
    }

    fn look_up(&self, cluster: &[u8]) -> Option<Routed> {
        if let Some(routed) = self.destinations.try_borrow().ok().and_then(|known| known.get(cluster).copied()) {
            return Some(routed);
        }
        let policy = self.config.any_destination.as_ref()?;
        let routed = Routed::new(self.id, std::str::from_utf8(cluster).ok()?, policy)?;
        if let Ok(mut destinations) = self.destinations.try_borrow_mut() {
            destinations.insert(cluster.to_vec(), routed);
        }
        Some(routed)
    }
}

impl Drop for HttpRoot {
    fn drop(&mut self) {
        self.client_ip.report();
        destinations::unregister(self.id);
    }
}

/// What came of the client-address rules since Envoy was last told.
#[derive(Default)]
struct ClientIpCounts {
    metrics: Vec<(ClientIpMetric, host::MetricId, Cell<u32>)>,
}

impl ClientIpCounts {
    fn new() -> Self {
        let define = |metric: &ClientIpMetric| {
            let defined = host::define_metric(metric.kind(), &format!("idleguard.client_ip.{}", metric.name()));
            defined.map_err(host::report).ok().map(|id| (*metric, id, Cell::new(0)))
        };
        Self { metrics: ClientIpMetric::ALL.iter().filter_map(define).collect() }
    }

    fn count(&self, outcome: Outcome, rejected: bool) {
        let metric = match outcome {
            Outcome::Rewritten => ClientIpMetric::Rewritten,
            Outcome::UntrustedPeer => ClientIpMetric::UntrustedPeer,
            Outcome::UnknownPeer => ClientIpMetric::UnknownPeer,
            Outcome::Invalid => ClientIpMetric::Invalid,
            Outcome::Missing => ClientIpMetric::Missing,
        };
        for (of, _, count) in &self.metrics {
            if *of == metric || (rejected && *of == ClientIpMetric::Rejected) {
                count.set(count.get().saturating_add(1));
            }
        }
    }

    fn report(&self) {
        for (_, id, count) in &self.metrics {
            match count.take() {
                0 => {}
                count => host::add_to_metric(*id, i64::from(count)).unwrap_or_else(host::report),
            }
        }
    }
}

/// One request.
pub(super) struct HttpFilter {
    root: Option<Rc<HttpRoot>>,
    /// What it was admitted to.
    admitted: Option<(DestinationId, Generation)>,
    /// When, if nobody else sees its connection.
    unseen_since: Option<Timestamp>,
}

impl HttpFilter {
    pub(super) fn new(root: Option<Rc<HttpRoot>>) -> Self {
        Self { root, admitted: None, unseen_since: None }
    }

    fn steer(&mut self, root: &HttpRoot, cluster: Vec<u8>, method: Option<&[u8]>) {
        let Some(Routed { id, retries }) = root.routed(cluster) else { return };
        let now = host::now();
        let Some(admission) = with_worker(|worker| worker.admit(id, now)).flatten() else { return };
        self.admitted = Some((id, admission.generation));
        self.unseen_since = (!admission.guarded).then_some(now);
        let steered = if admission.guarded {
            host::set_filter_state(&admission.steer.filter_state)
        } else {
            host::set_property(GENERATION, admission.steer.name.as_bytes())
        };
        steered.unwrap_or_else(host::report);
        if retries && admission.may_be_stale && method.map_or_else(has_idempotent_method, is_idempotent) {
            // Added, not replaced: the route's and the client's own conditions stay.
            host::add_request_header(b"x-envoy-retry-on", b"reset").unwrap_or_else(host::report);
        }
    }
}

/// Keeps what a client may have written in a header that could not be edited from the application, if the host does
/// anything at all. Returns whether it did.
fn withhold(name: &[u8], headers: &[(&[u8], &[u8])]) -> bool {
    let mut present = headers.iter().filter(|(present, _)| present.eq_ignore_ascii_case(name));
    let is_removed = || host::remove_request_header(name).map_err(host::report).is_ok();
    match (present.next(), present.next()) {
        (None, _) => true,
        // An empty value in place of the first one; more can only be removed.
        (Some(_), None) => is_removed() || host::replace_request_header(name, b"").map_err(host::report).is_ok(),
        _ => is_removed(),
    }
}

/// Answers a request whose headers can't be made safe. If even that fails, the request stays where it is.
fn refuse() -> ControlFlow<()> {
    let body = "the client-address headers could not be rewritten\n";
    host::respond(500, "idleguard_host_failure", body).unwrap_or_else(host::report);
    ControlFlow::Break(())
}

/// Methods that may be sent twice (RFC 9110 §9.2.2).
fn is_idempotent(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
}

/// The same of the current request, for whoever has not read its headers.
fn has_idempotent_method() -> bool {
    let method = host::property(METHOD).map_err(host::report).ok().flatten();
    method.is_some_and(|method| is_idempotent(&method))
}

impl Context for HttpFilter {}

impl HttpFilter {
    /// The request has ended, one way or another; the host still knows it.
    pub(super) fn on_delete(&mut self, context: u32) {
        let Some((id, generation)) = self.admitted.take() else { return };
        let now = host::now();
        if let Some(begun) = self.unseen_since {
            unseen_end(id, begun, now).unwrap_or_else(host::report);
        }
        let is_delicate =
            with_destination(id, |destination| destination.is_delicate(generation, now)).unwrap_or_default();
        // Asked for only when it matters: a host call for every request would be felt.
        let end = if is_delicate && has_response_flags() { End::Aborted } else { End::Answered };
        let has_doomed = with_worker(|worker| {
            worker.end(id, generation, end);
            worker.get(id).is_some_and(|destination| destination.has_doomed())
        });
        if has_doomed == Some(true) {
            close_doomed(context, id);
        }
    }
}

/// What the end of the current request tells of its connection, which nobody else sees.
fn unseen_end(id: DestinationId, begun: Timestamp, now: Timestamp) -> Result<(), host::HostError> {
    let Some(local) = host::property(UPSTREAM_LOCAL_ADDRESS)? else { return Ok(()) };
    let connection = [local, host::property(UPSTREAM_ADDRESS)?.unwrap_or_default()].concat();
    let attempts = host::property(ATTEMPTS)?.and_then(|count| Some(u64::from_le_bytes(count.try_into().ok()?)));
    let ending = unseen::ending(&host::property(CODE_DETAILS)?.unwrap_or_default(), attempts.unwrap_or_default());
    with_destination(id, |destination| destination.on_unseen_end(&connection, begun, ending, now));
    Ok(())
}

/// Whether Envoy noted something unusual about the current request (a timeout, a client that went away, …).
fn has_response_flags() -> bool {
    match host::property(RESPONSE_FLAGS) {
        Ok(flags) => flags.is_none_or(|flags| flags.iter().any(|byte| *byte != 0)),
        Err(error) => {
            host::report(error);
            true
        }
    }
}

impl HttpContext for HttpFilter {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        let Some(root) = self.root.clone() else { return Action::Continue };
        with_worker(|worker| worker.on_event());
        let bytes;
        let mut method = None;
        if let Some(rules) = &root.config.client_ip {
            const METHOD: &[u8] = b":method";
            bytes = host::request_headers().map_err(host::report).ok();
            let wanted = |length, first| first == b':' && length == METHOD.len() || rules.concerns(length, first);
            let headers = bytes.as_deref().and_then(|bytes| header_map::pairs_where(bytes, wanted));
            method = headers.iter().flatten().find(|(name, _)| *name == METHOD).map(|(_, value)| *value);
            if root.rewrite(rules, headers.as_deref()).is_break() {
                return Action::Pause;
            }
        }
        if !root.has_destinations {
            return Action::Continue;
        }
        match host::property(CLUSTER_NAME) {
            Ok(Some(cluster)) => self.steer(&root, cluster, method),
            Ok(None) => {} // no route: the router will answer
            Err(error) => host::report(error),
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        let keep_alive = self.root.as_ref().and_then(|root| root.keep_alive.as_deref());
        if let Some(value) = keep_alive {
            // HTTP/2 forbids the header (RFC 9113 §8.2.2).
            let protocol = host::property(PROTOCOL).map_err(host::report).ok().flatten();
            if protocol.is_some_and(|protocol| protocol == b"HTTP/1.1") {
                host::replace_response_header(b"keep-alive", value.as_bytes()).unwrap_or_else(host::report);
            }
        }
        Action::Continue
    }
}

impl Drop for HttpFilter {
    fn drop(&mut self) {
        if let Some((id, generation)) = self.admitted {
            with_worker(|worker| worker.end(id, generation, End::Aborted));
        }
    }
}

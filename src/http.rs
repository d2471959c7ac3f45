//! The HTTP filter: what a request needs before Envoy's router sees it, and what its answer tells.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Duration;

use idleguard_core::client_ip::address::Text;
use idleguard_core::client_ip::{ClientIp, Edit, Outcome, Peer};
use idleguard_core::header_map;
use idleguard_core::metrics::ClientIpMetric;
use idleguard_core::plugin::HttpConfig;
use proxy_wasm::types::Action;

use crate::host;

/// The result of the client-address rules, for access logs and later filters: the filter state `wasm.idleguard.client_ip`.
const CLIENT_IP: &[u8] = b"idleguard.client_ip";

/// The address that Envoy takes for the client's.
const SOURCE_ADDRESS: &[u8] = b"source\0address";

/// How often Envoy is told what was counted.
const TICK: Duration = Duration::from_secs(1);

/// What the requests of one filter configuration share.
pub(crate) struct HttpRoot {
    config: HttpConfig,
    /// The property that holds the true peer.
    peer: Vec<u8>,
    client_ip: ClientIpCounts,
    has_warned_of_peer: Cell<bool>,
}

impl HttpRoot {
    pub(crate) fn new(_id: u32, config: HttpConfig) -> Self {
        host::set_tick_period(TICK).unwrap_or_else(host::report);
        let peer = config.client_ip.as_ref().map(ClientIp::peer_filter_state).unwrap_or_default();
        Self {
            peer: [b"filter_state\0", peer.as_bytes()].concat(),
            client_ip: config.client_ip.as_ref().map(|_| ClientIpCounts::new()).unwrap_or_default(),
            has_warned_of_peer: Cell::new(false),
            config,
        }
    }

    pub(crate) fn on_tick(&self) {
        self.client_ip.report();
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
}

impl Drop for HttpRoot {
    fn drop(&mut self) {
        self.client_ip.report();
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
pub(crate) struct Request {
    root: Rc<HttpRoot>,
}

impl Request {
    pub(crate) fn new(root: Rc<HttpRoot>) -> Self {
        Self { root }
    }

    pub(crate) fn on_request_headers(&mut self) -> Action {
        let root = &self.root;
        if let Some(rules) = &root.config.client_ip {
            let bytes = host::request_headers().map_err(host::report).ok();
            let wanted = |length, first| rules.concerns(length, first);
            let headers = bytes.as_deref().and_then(|bytes| header_map::pairs_where(bytes, wanted));
            if root.rewrite(rules, headers.as_deref()).is_break() {
                return Action::Pause;
            }
        }
        Action::Continue
    }

    pub(crate) fn on_response_headers(&mut self) -> Action {
        Action::Continue
    }

    /// It has ended, one way or another; the host still knows it.
    pub(crate) fn end(self) {}
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

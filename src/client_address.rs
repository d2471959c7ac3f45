//! The client-address rules in Envoy: reads the peer and the headers, and applies the edits.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::ops::ControlFlow;

use idleguard_core::client_ip::address::{canonical, parse_address};
use idleguard_core::client_ip::peers::{BITS, Peers};
use idleguard_core::client_ip::{ClientIp, DEFAULT_PEER_FILTER_STATE, Edit, Outcome, Peer, Resolution};
use idleguard_core::header_map;
use idleguard_core::metrics::ClientIpMetric;

use crate::host::{self, LifeSpan};

/// The result, for access logs and later filters: the filter state `wasm.idleguard.client_ip`.
const CLIENT_IP: &[u8] = b"idleguard.client_ip";

/// A mark: there is no client, should the request pass the filters again.
const NO_CLIENT: &[u8] = b"idleguard.no_client_ip";

/// The address that Envoy takes for the client's.
const SOURCE_ADDRESS: &[u8] = b"source\0address";

/// The rules of one filter configuration.
pub(crate) struct ClientAddress {
    rules: ClientIp,
    /// The property that holds the true peer.
    peer: Vec<u8>,
    marks: Option<Marks>,
    counts: ClientIpCounts,
    has_warned_of_peer: Cell<bool>,
}

impl ClientAddress {
    /// To be called while the root context is being configured.
    pub(crate) fn new(rules: ClientIp) -> Self {
        for property in [CLIENT_IP, NO_CLIENT] {
            host::keep_property(property, LifeSpan::Request).unwrap_or_else(host::report);
        }
        Self {
            peer: [b"filter_state\0", rules.peer_filter_state().as_bytes()].concat(),
            // That the peer is recorded once, when the connection is new, is known of this key alone.
            marks: (rules.peer_filter_state() == DEFAULT_PEER_FILTER_STATE).then(Marks::new).flatten(),
            counts: ClientIpCounts::new(),
            has_warned_of_peer: Cell::new(false),
            rules,
        }
    }

    /// Tells Envoy what was counted.
    pub(crate) fn report(&self) {
        self.counts.report();
    }

    /// Who is on the other end of the downstream connection.
    fn peer(&self) -> Peer {
        if let Some(peer) = self.marks.as_ref().and_then(Marks::peer) {
            return Peer::Known(peer);
        }
        let peer = match read(&self.peer) {
            Some(recorded) => {
                let peer = Peer::from_filter_state(&recorded);
                if let (Some(marks), Peer::Known(address)) = (&self.marks, peer) {
                    marks.mark(address);
                }
                peer
            }
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
    pub(crate) fn rewrite(&self) -> ControlFlow<()> {
        let bytes = host::request_headers().map_err(host::report).ok();
        let wanted = |length, first| self.rules.concerns(length, first);
        let Some(headers) = bytes.as_deref().and_then(|bytes| header_map::pairs_where(bytes, wanted)) else {
            return refuse(); // what can't be looked at is not let through
        };
        if self.rules.may_have_passed(&headers)
            && let Some(resolution) = self.repeat(&headers)
        {
            return apply(&resolution.edits, &headers);
        }
        let resolution = self.rules.resolve(self.peer(), &headers);
        self.counts.count(resolution.outcome, resolution.rejected);
        if resolution.rejected {
            return match host::respond(400, "idleguard_client_ip", "the client's address is missing or malformed\n") {
                Ok(()) => ControlFlow::Break(()),
                Err(error) => {
                    host::report(error);
                    refuse()
                }
            };
        }
        apply(&resolution.edits, &headers)?;
        let (property, value) = match resolution.client {
            Some(client) => (CLIENT_IP, canonical(client)),
            None => (NO_CLIENT, String::new()),
        };
        host::set_property(property, value.as_bytes()).unwrap_or_else(host::report);
        ControlFlow::Continue(())
    }

    /// What was found when the request passed the filters before. It is in the filter state, where no client can write.
    fn repeat<'a>(&'a self, headers: &[(&'a [u8], &'a [u8])]) -> Option<Resolution<'a>> {
        let client = match read(CLIENT_IP) {
            Some(client) => Some(parse_address(&client)?),
            None if host::is_marked(NO_CLIENT).map_err(host::report).ok()? => None,
            None => return None,
        };
        Some(self.rules.repeat(self.peer(), client, headers))
    }

    /// Removes what tells the client's address from the request's trailers. `Break` if the request was ended instead.
    pub(crate) fn clean_trailers(&self) -> ControlFlow<()> {
        let bytes = host::request_trailers().map_err(host::report).ok();
        let wanted = |length, first| self.rules.concerns(length, first);
        let Some(trailers) = bytes.as_deref().and_then(|bytes| header_map::pairs_where(bytes, wanted)) else {
            return refuse();
        };
        for edit in self.rules.clean_trailers(&trailers) {
            if let Edit::Remove { name } = edit
                && let Err(error) = host::remove_request_trailer(name)
            {
                host::report(error);
                return refuse();
            }
        }
        ControlFlow::Continue(())
    }
}

/// A property, if there is one.
fn read(path: &[u8]) -> Option<Vec<u8>> {
    host::property(path).unwrap_or_else(|error| {
        host::report(error);
        None
    })
}

/// Carries out edits of the request's headers. `Break` if the request was answered instead.
fn apply(edits: &[Edit<'_>], headers: &[(&[u8], &[u8])]) -> ControlFlow<()> {
    for edit in edits {
        let (name, edited) = match edit {
            Edit::Remove { name } => (*name, host::remove_request_header(name)),
            Edit::Replace { name, value } => {
                let name = name.as_bytes();
                let is_there = headers.iter().any(|(present, _)| present.eq_ignore_ascii_case(name));
                let edit = if is_there { host::replace_request_header } else { host::add_request_header };
                (name, edit(name, value))
            }
        };
        let Err(error) = edited else { continue };
        host::report(error);
        if !withhold(name, headers) {
            return refuse();
        }
    }
    ControlFlow::Continue(())
}

/// Marks on downstream connections: the number of the peer, which costs less to ask for than its address.
struct Marks {
    /// The properties, a bit each, the lowest first. Their names are this VM's and this configuration's alone: a connection may outlive
    /// both, and its marks must not tell another one's peer.
    names: [String; BITS],
    peers: RefCell<Peers>,
    /// A mark could not be set in full, so that marks may tell a wrong number.
    are_broken: Cell<bool>,
}

impl Marks {
    fn new() -> Option<Self> {
        let ours = host::random();
        let names = std::array::from_fn(|bit| format!("idleguard.peer.{ours:016x}.{bit}"));
        for name in &names {
            host::keep_property(name.as_bytes(), LifeSpan::Connection).map_err(host::report).ok()?;
        }
        Some(Self { names, peers: RefCell::default(), are_broken: Cell::new(false) })
    }

    /// The peer of the connection that the current stream came by, if it is marked.
    fn peer(&self) -> Option<IpAddr> {
        let peers = self.peers.try_borrow().ok()?;
        let mut number = 0_usize;
        for (bit, name) in self.names.iter().enumerate().take(peers.bits()) {
            if host::is_marked(name.as_bytes()).map_err(host::report).ok()? {
                number |= 1 << bit;
            }
        }
        peers.get(number).filter(|_| !self.are_broken.get())
    }

    fn mark(&self, peer: IpAddr) {
        let number = self.peers.try_borrow_mut().ok().and_then(|mut peers| peers.number(peer)).unwrap_or_default();
        for (bit, name) in self.names.iter().enumerate() {
            if number & (1 << bit) != 0 && !self.are_broken.get() {
                let set = host::set_property(name.as_bytes(), b"").map_err(host::report);
                self.are_broken.set(set.is_err());
            }
        }
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

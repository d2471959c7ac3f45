//! The HTTP filter: what a request needs before Envoy's router sees it, and what its answer tells.
//!
//! Watching takes one property of each answer, the local address of the upstream connection; more is asked of connections that are new, or
//! that were idle for long enough to tell something. A request gets a header where a lane is in force.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use idleguard_core::plugin::HttpConfig;
use idleguard_core::time::Timestamp;
use idleguard_core::timeout::{Evidence, LaneId, Outcome, Way};
use idleguard_core::watch::{Confirmed, ConnectionId, DestinationId, FarEnd, Seen, WaitingId};
use proxy_wasm::types::Action;

use crate::client_address::ClientAddress;
use crate::host;
use crate::worker::{self, Configured, StaleFailure, with_worker};

/// The header that leads to a lane.
const LANE: &[u8] = b"x-idleguard-lane";

/// The route's cluster; behind the router, the one that the request went to.
const CLUSTER_NAME: &[u8] = b"xds\0cluster_name";

/// The two ends of the connection that the request was last sent on.
const LOCAL_ADDRESS: &[u8] = b"upstream\0local_address";
const FAR_ADDRESS: &[u8] = b"upstream\0address";

/// How often the request was sent.
const ATTEMPTS: &[u8] = b"upstream\0request_attempt_count";

/// In Envoy's words, where the answer comes from.
const CODE_DETAILS: &[u8] = b"response\0code_details";

/// On a stale failure, how long its connection had been idle: the filter state `wasm.idleguard.idle_age_ms`.
const IDLE_AGE: &[u8] = b"idleguard.idle_age_ms";

/// The `idle_timeout` of clusters that have none.
const ENVOYS_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// How often a worker takes in what others have learnt, and tells Envoy what it has counted.
const TICK: Duration = Duration::from_millis(200);

/// The same where there is nothing but counts.
const SLOW_TICK: Duration = Duration::from_secs(1);

/// What the requests of one filter configuration share.
pub(crate) struct HttpRoot {
    client_address: Option<ClientAddress>,
    destinations: Vec<Configured>,
    /// Bases and lanes by their clusters' names.
    clusters: BTreeMap<Vec<u8>, (Configured, LaneId, Duration)>,
    /// Where all requests go (`all_requests`).
    only: Option<Configured>,
}

impl HttpRoot {
    pub(crate) fn new(config: HttpConfig) -> Self {
        let mut root = Self {
            client_address: config.client_ip.map(ClientAddress::new),
            destinations: Vec::new(),
            clusters: BTreeMap::new(),
            only: None,
        };
        for (name, policy) in &config.destinations {
            let Some(id) = worker::register(name, policy) else { continue };
            root.destinations.push(id);
            if policy.all_requests {
                root.only = Some(id);
            }
            for (lane, idle_timeout) in policy.all_lanes() {
                root.clusters.insert(policy.cluster_of(lane).as_bytes().to_vec(), (id, lane, idle_timeout));
            }
        }
        let period = if root.destinations.is_empty() { SLOW_TICK } else { TICK };
        host::set_tick_period(period).unwrap_or_else(host::report);
        root
    }

    pub(crate) fn on_tick(&self) {
        if !self.destinations.is_empty() {
            worker::tick(host::now());
        }
        self.report();
    }

    fn report(&self) {
        if let Some(client_address) = &self.client_address {
            client_address.report();
        }
    }

    /// The base to which a request goes that has not been routed to a lane yet.
    fn base(&self) -> Option<Configured> {
        let steers = |of: &Configured| with_worker(|worker| worker.steers(*of)).unwrap_or_default();
        if self.only.is_some() {
            return self.only.filter(steers);
        }
        if !self.destinations.iter().any(steers) {
            return None;
        }
        let cluster = property(CLUSTER_NAME)?;
        let (id, lane, _) = self.clusters.get(&cluster)?;
        (*lane == LaneId::BASE).then_some(*id)
    }
}

impl Drop for HttpRoot {
    fn drop(&mut self) {
        self.report();
        self.destinations.drain(..).for_each(worker::unregister);
    }
}

/// A property; `None` also where Envoy refuses to tell.
fn property(path: &[u8]) -> Option<Vec<u8>> {
    host::property(path).map_err(host::report).ok().flatten()
}

/// The local address of the connection that the request was given, if it is one that tells connections apart: those within the process
/// and those to Unix sockets have no address of their own.
fn local_address() -> Option<Vec<u8>> {
    property(LOCAL_ADDRESS)
        .filter(|address| address.first().is_some_and(|first| first.is_ascii_digit() || *first == b'['))
}

/// One request.
pub(crate) struct Request {
    root: Rc<HttpRoot>,
    /// When it was handed to the router.
    sent: Timestamp,
    state: State,
    /// Where the filter sent it, if it did.
    way: Option<(Configured, Way)>,
}

#[derive(Clone, Copy)]
enum State {
    /// Not watched, or not sent yet.
    Unsent,
    /// There is no answer yet.
    Waiting(WaitingId),
    /// The answer came on this connection.
    On(ConnectionId),
}

impl Request {
    pub(crate) fn new(root: Rc<HttpRoot>) -> Self {
        Self { root, sent: Timestamp::default(), state: State::Unsent, way: None }
    }

    pub(crate) fn on_request_headers(&mut self) -> Action {
        let root = Rc::clone(&self.root);
        if let Some(client_address) = &root.client_address
            && client_address.rewrite().is_break()
        {
            return Action::Pause;
        }
        if root.destinations.is_empty() {
            return Action::Continue;
        }
        let base = root.base();
        self.sent = host::now();
        let waiting = with_worker(|worker| worker.watch.send(self.sent));
        self.state = waiting.map_or(State::Unsent, State::Waiting);
        if let Some(id) = base {
            self.steer(id);
        }
        Action::Continue
    }

    pub(crate) fn on_request_trailers(&mut self) -> Action {
        match &self.root.client_address {
            Some(client_address) if client_address.clean_trailers().is_break() => Action::Pause,
            _ => Action::Continue,
        }
    }

    fn steer(&mut self, id: Configured) {
        let way = with_worker(|worker| {
            let way = worker.way(id, self.sent)?;
            Some((way, worker.token(id, way.lane)))
        });
        let Some((way, token)) = way.flatten() else { return };
        self.way = Some((id, way));
        if let Some(token) = token {
            host::replace_request_header(LANE, token.as_bytes()).unwrap_or_else(host::report);
        }
    }

    pub(crate) fn on_response_headers(&mut self) -> Action {
        if let State::Waiting(waiting) = self.state {
            match local_address() {
                Some(local) => self.on_connection(waiting, &local),
                None => self.on_no_connection(waiting),
            }
        }
        Action::Continue
    }

    /// The answer, or what Envoy says in place of one, comes from this connection.
    fn on_connection(&mut self, waiting: WaitingId, local: &[u8]) {
        let id = ConnectionId::new(local);
        self.state = State::On(id);
        match with_worker(|worker| worker.watch.answered(waiting, id)) {
            Some(Seen::New) => self.on_new(id),
            Some(Seen::Reused { destination, idle_age }) => {
                with_worker(|worker| worker.on_reuse(destination, idle_age));
            }
            Some(Seen::Aged { destination, idle_age }) => self.on_aged(id, local, destination, idle_age),
            None => {}
        }
        let certain = with_worker(|worker| worker.watch.resolve()).unwrap_or_default();
        for (destination, evidence) in certain {
            worker::learn(destination, &evidence, host::now());
        }
    }

    fn on_new(&self, id: ConnectionId) {
        let cluster = property(CLUSTER_NAME).unwrap_or_default();
        let far_end = FarEnd::new(&cluster, &property(FAR_ADDRESS).unwrap_or_default());
        let known = self.root.clusters.get(&cluster);
        let destination = known.map_or(DestinationId::NONE, |(of, ..)| of.id);
        let idle_timeout = known.map_or(ENVOYS_IDLE_TIMEOUT, |(.., idle_timeout)| *idle_timeout);
        with_worker(|worker| worker.watch.open(id, destination, far_end, idle_timeout, self.sent));
        let Some((of, lane, _)) = known else { return };
        with_worker(|worker| worker.on_connected(*of, *lane));
        let attempts = property(ATTEMPTS).and_then(|count| Some(u64::from_le_bytes(count.try_into().ok()?)));
        if attempts.is_some_and(|attempts| attempts > 1) {
            worker::on_retried(destination, host::now());
        }
    }

    /// The connection had been idle long enough to tell something.
    fn on_aged(&self, id: ConnectionId, local: &[u8], destination: DestinationId, idle_age: Duration) {
        let cluster = property(CLUSTER_NAME).unwrap_or_default();
        let far_address = property(FAR_ADDRESS).unwrap_or_default();
        let details = property(CODE_DETAILS).unwrap_or_default();
        let failed = match details.as_slice() {
            b"via_upstream" => Some(false),
            details if is_stale(details) => Some(true),
            _ => None, // a far end that refuses a stream is alive, and whatever else it is, it tells nothing
        };
        let outcome = match failed {
            Some(true) => Outcome::Failed { connection: id.as_u64() },
            _ => Outcome::Answered,
        };
        let evidence = Evidence { sent: self.sent, idle_age, outcome };
        let far_end = FarEnd::new(&cluster, &far_address);
        let confirmed = with_worker(|worker| {
            let confirmed = if failed.is_some() { worker.watch.confirm(id, far_end, evidence) } else { Confirmed::Not };
            worker.on_reuse(destination, (confirmed == Confirmed::Certain).then_some(idle_age));
            if details.starts_with(b"upstream_reset") {
                worker.watch.broken(id);
            }
            confirmed
        });
        if destination == DestinationId::NONE || confirmed != Some(Confirmed::Certain) {
            return;
        }
        let now = host::now();
        if failed == Some(true) {
            let age = idle_age.as_millis().to_string();
            host::set_property(IDLE_AGE, age.as_bytes()).unwrap_or_else(host::report);
            let (cluster, far_end, details) = (&cluster, &far_address, &details);
            let failure = StaleFailure { cluster, far_end, connection: local, idle_age, details };
            worker::log_failure(destination, &failure, now);
        }
        worker::learn(destination, &evidence, now);
    }

    /// There was no connection: Envoy answers itself, or could not connect.
    fn on_no_connection(&mut self, waiting: WaitingId) {
        self.state = State::Unsent;
        with_worker(|worker| worker.watch.ended_unanswered(waiting, None, self.sent));
        let Some((id, way)) = self.way else { return };
        if property(CODE_DETAILS).is_some_and(|details| is_connect_failure(&details))
            && with_worker(|worker| worker.on_connect_failed(id, way.lane)).unwrap_or_default()
        {
            worker::follow(id.id, host::now());
        }
    }

    /// It has ended, one way or another; the host still knows it.
    pub(crate) fn end(self) {
        let looks = self.way.filter(|(_, way)| way.looks);
        let connection = match self.state {
            State::Unsent if looks.is_none() => return,
            State::Waiting(_) => local_address(),
            State::Unsent | State::On(_) => None,
        };
        let now = host::now();
        let unclear = with_worker(|worker| {
            match self.state {
                State::On(id) => worker.watch.ended(id, now),
                State::Waiting(waiting) => {
                    let id = connection.map(|local| ConnectionId::new(&local));
                    worker.watch.ended_unanswered(waiting, id, now);
                }
                State::Unsent => {}
            }
            looks.filter(|(of, _)| worker.on_look_ended(*of, now))
        });
        if let Some((of, _)) = unclear.flatten()
            && property(CODE_DETAILS).is_none_or(|details| details != b"via_upstream")
        {
            worker::on_look_failed(of, now);
        }
    }
}

/// Whether Envoy says that the connection ended, or stayed silent, before the first byte of an answer.
fn is_stale(details: &[u8]) -> bool {
    let reset = details.strip_prefix(b"upstream_reset_before_response_started{".as_slice());
    reset.is_some_and(|reason| reason.starts_with(b"connection_termination"))
        || matches!(details, b"response_timeout" | b"upstream_per_try_timeout" | b"upstream_per_try_idle_timeout")
}

/// Whether Envoy says that there was no connection to be had.
fn is_connect_failure(details: &[u8]) -> bool {
    let reset = details.strip_prefix(b"upstream_reset_before_response_started{".as_slice());
    reset.is_some_and(|reason| {
        [
            b"connection_failure".as_slice(),
            b"remote_connection_failure",
            b"local_connection_failure",
            b"connection_timeout",
        ]
        .iter()
        .any(|failure| reason.starts_with(failure))
    })
}

//! The connection filter: one internal connection, which is one upstream TCP connection.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::traits::{Context, StreamContext};
use proxy_wasm::types::{Action, BufferType, PeerType};

use crate::config::ConnectionConfig;
use crate::connection::ConnectionKey;
use crate::destination::Seen;
use crate::framing::{Direction, Framing, Protocol, STATUS_LINE_MAX, told_to_close};
use crate::host;
use crate::time::Timestamp;
use crate::worker::{DestinationId, Worker};

use super::destinations::{self, with_destination, with_worker};
use super::probe::Prober;

/// The address by which the pool reached the internal listener; it names one of the cluster's endpoints.
const ENDPOINT: &[u8] = b"destination\0address";

/// Known as soon as the far end has accepted the connection.
const UPSTREAM_LOCAL_ADDRESS: &[u8] = b"upstream\0local_address";

/// How often workers exchange what they learnt.
const EXCHANGE_PERIOD: Duration = Duration::from_millis(500);

/// The head of a probe's request is shorter than this, unless its path and host are very long.
const HEAD_OF_PROBE: u64 = 2048;

/// What the connections of one filter configuration share.
pub(super) struct ConnectionRoot {
    id: u32,
    config: ConnectionConfig,
    destination: Option<DestinationId>,
    /// Where workers exchange what they learnt.
    shared_key: Vec<u8>,
    exchange_at: Cell<Timestamp>,
    prober: Option<Prober>,
    /// The limit, the timeout and the tick period that Envoy knows.
    told: Cell<(Duration, Option<Duration>, Duration)>,
}

impl ConnectionRoot {
    pub(super) fn new(id: u32, config: ConnectionConfig) -> Self {
        let destination = destinations::register(id, &config.destination, &config.policy, true);
        let shared_key = destinations::shared_key(&config.destination);
        let prober =
            destination.and_then(|destination| Prober::new(destination, id, &config.destination, &config.policy));
        let (exchange_at, told) = Default::default();
        let root = Self { id, config, destination, shared_key, exchange_at, prober, told };
        root.share();
        root
    }

    pub(super) fn on_tick(&self) {
        let now = host::now();
        let Some(id) = self.destination else { return };
        let tick = |worker: &mut Worker| {
            worker.on_event();
            worker.get(id).map(|destination| destination.tick(now))
        };
        let due = with_worker(tick).flatten().unwrap_or_default();
        let entered = !due.is_empty();
        for due in due {
            let closed = host::enter(due.key.context).and_then(|()| {
                let is_wanted = !due.unused || {
                    let is_connected = host::property(UPSTREAM_LOCAL_ADDRESS)?.is_some();
                    with_destination(id, |destination| destination.on_unused(due.key, is_connected, now))
                        .unwrap_or(false)
                };
                if is_wanted { host::close_connection() } else { Ok(()) }
            });
            closed.unwrap_or_else(host::report);
        }
        let asking = self.prober.as_ref().filter(|prober| prober.on_tick(now));
        if entered || self.prober.is_some() {
            host::enter(self.id).unwrap_or_else(host::report);
        }
        if now >= self.exchange_at.get() {
            self.exchange_at.set(now.after(EXCHANGE_PERIOD));
            self.share();
            if let Some(prober) = &self.prober {
                prober.take_turn(now);
            }
            destinations::tell_news(id, &self.config.destination);
        }
        destinations::report_counts();
        if let Some(prober) = asking {
            prober.send();
        }
    }

    /// Exchanges what was learnt with the other workers, and tells Envoy what follows.
    fn share(&self) {
        let Some(id) = self.destination else { return };
        if with_destination(id, |destination| destination.learns()).unwrap_or_default() {
            destinations::exchange_knowledge(id, &self.shared_key);
        }
        let now = with_destination(id, |destination| {
            (destination.idle_limit(), destination.learned(), destination.tick_period())
        });
        let Some(now) = now else { return };
        let before = self.told.replace(now);
        if now != before {
            destinations::report_limit(id);
        }
        if now.2 != before.2 {
            host::set_tick_period(now.2).unwrap_or_else(host::report);
        }
    }
}

impl Drop for ConnectionRoot {
    fn drop(&mut self) {
        destinations::unregister(self.id);
    }
}

/// One upstream connection.
pub(super) struct ConnectionFilter {
    context: u32,
    root: Option<Rc<ConnectionRoot>>,
    key: Option<ConnectionKey>,
    framing: Framing,
    /// Whether a response told the pool that the connection will be closed.
    is_leaving: bool,
    /// Whether it is the probe's: then the destination doesn't know of it.
    is_probe: bool,
}

impl ConnectionFilter {
    pub(super) fn new(context: u32, root: Option<Rc<ConnectionRoot>>) -> Self {
        Self { context, root, key: None, framing: Framing::new(), is_leaving: false, is_probe: false }
    }

    /// Follows the bytes of the probe's connection. A response that ends with its connection is over when that is closed.
    fn on_probe_data(&mut self, prober: &Prober, direction: Direction, size: usize) {
        let now = host::now();
        let progress = self.framing.advance(direction, size as u64, |start, max| fetch(direction, start, max));
        if progress.requests_started > 0 {
            prober.on_request(self.context, now);
        }
        if progress.responses_completed > 0 {
            prober.on_response(self.context, now);
        }
    }

    /// Whether the connection is the probe's, as its first request tells. From then on the destination doesn't know of it.
    fn belongs_to(&mut self, prober: &Prober, direction: Direction, size: usize) -> bool {
        let is_first = direction == Direction::Request && self.framing.protocol() == Protocol::Unknown;
        if !self.is_probe && is_first && prober.is_asking() {
            let head = fetch(direction, 0, (size as u64).min(HEAD_OF_PROBE)).unwrap_or_default();
            self.is_probe = prober.claims(self.context, &head);
            if let Some((_, id, key)) = self.tracked().filter(|_| self.is_probe) {
                self.key = None;
                with_destination(id, |destination| destination.on_closed(key));
            }
        }
        self.is_probe
    }

    fn on_data(&mut self, direction: Direction, size: usize, end: bool) {
        if let Some(root) = self.root.clone()
            && let Some(prober) = &root.prober
            && self.belongs_to(prober, direction, size)
        {
            return self.on_probe_data(prober, direction, size);
        }
        let Some((root, id, key)) = self.tracked() else { return };
        let now = host::now();
        let fetch = |start: u64, max: u64| fetch(direction, start, max);
        let begins_response = direction == Direction::Response && self.framing.awaits_response();
        let mut progress = self.framing.advance(direction, size as u64, fetch);
        if end {
            let at_end = self.framing.on_eof(direction);
            progress.responses_completed = progress.responses_completed.saturating_add(at_end.responses_completed);
        }
        if begins_response && self.framing.protocol() == Protocol::Http1 && self.framing.reusable() {
            let hinted = progress.keep_alive.and_then(|hint| hint.max);
            let is_last =
                with_destination(id, |destination| destination.is_last_exchange(key, hinted, &root.config.policy, now));
            if is_last == Some(true) && announce_close(size) {
                self.is_leaving = true;
                with_destination(id, |destination| destination.on_close_announced());
            }
        }
        let seen = Seen {
            started: progress.requests_started,
            completed: progress.responses_completed,
            in_flight: self.in_flight(),
            answered: self.framing.response_started(),
            stacked: self.framing.protocol() == Protocol::Http1,
            reusable: self.framing.reusable() && !self.is_leaving,
            hinted_timeout: progress.keep_alive.and_then(|hint| hint.timeout),
            hinted_exchanges: progress.keep_alive.and_then(|hint| hint.max),
        };
        let has_far_end_closed = end && direction == Direction::Response;
        with_worker(|worker| {
            worker.on_event();
            let Some(destination) = worker.get(id) else { return };
            if size > 0 || seen.completed > 0 {
                destination.on_bytes(key, &seen, &root.config.policy, now);
            }
        });
        if has_far_end_closed {
            self.on_far_end_close(id, key, now);
        }
    }

    /// The far end closed the connection: others may have to be closed before the pool hears of this one.
    fn on_far_end_close(&self, id: DestinationId, key: ConnectionKey, now: Timestamp) {
        let suspects = with_destination(id, |destination| destination.on_far_end_close(key, now)).unwrap_or_default();
        if suspects.is_empty() {
            return;
        }
        for key in suspects {
            host::enter(key.context).and_then(|()| host::close_connection()).unwrap_or_else(host::report);
        }
        host::enter(self.context).unwrap_or_else(host::report);
    }

    /// Exchanges in flight. A tunnel is one until it is closed: nobody knows what its silence means.
    fn in_flight(&self) -> u32 {
        match self.framing.protocol() {
            Protocol::Tunnel => 1,
            _ => self.framing.in_flight(),
        }
    }

    /// The probe's connection has ended, if this is it.
    fn end_probe(&mut self) {
        let prober = self.root.as_ref().and_then(|root| root.prober.as_ref());
        if let Some(prober) = prober.filter(|_| self.is_probe) {
            prober.on_closed(self.context, host::now());
        }
    }

    fn tracked(&self) -> Option<(Rc<ConnectionRoot>, DestinationId, ConnectionKey)> {
        let root = self.root.as_ref()?;
        Some((Rc::clone(root), root.destination?, self.key?))
    }
}

/// Bytes of the event at hand.
fn fetch(direction: Direction, start: u64, max: u64) -> Option<Vec<u8>> {
    let buffer = match direction {
        Direction::Request => BufferType::DownstreamData,
        Direction::Response => BufferType::UpstreamData,
    };
    let (start, max) = (usize::try_from(start).ok()?, usize::try_from(max).ok()?);
    host::buffer(buffer, start, max).map_err(host::report).ok()
}

/// Adds `connection: close` to the response that begins with the `size` bytes at hand, if it can.
fn announce_close(size: usize) -> bool {
    let announced = host::buffer(BufferType::UpstreamData, 0, size.min(STATUS_LINE_MAX)).and_then(|start| {
        let Some((length, bytes)) = told_to_close(&start) else { return Ok(false) };
        host::replace_start(BufferType::UpstreamData, length, &bytes).map(|()| true)
    });
    announced.unwrap_or_else(|error| {
        host::report(error);
        false
    })
}

impl Context for ConnectionFilter {}

impl StreamContext for ConnectionFilter {
    fn on_new_connection(&mut self) -> Action {
        let Some(root) = &self.root else { return Action::Continue };
        let Some(id) = root.destination else { return Action::Continue };
        let now = host::now();
        let endpoint = host::property(ENDPOINT).map_err(host::report).ok().flatten().unwrap_or_default();
        let (policy, most) = (&root.config.policy, root.config.max_tracked);
        self.key = with_worker(|worker| worker.open(id, self.context, &endpoint, policy, most, now)).flatten();
        Action::Continue
    }

    fn on_downstream_data(&mut self, size: usize, end: bool) -> Action {
        self.on_data(Direction::Request, size, end);
        Action::Continue
    }

    fn on_upstream_data(&mut self, size: usize, end: bool) -> Action {
        self.on_data(Direction::Response, size, end);
        Action::Continue
    }

    fn on_downstream_close(&mut self, peer: PeerType) {
        self.end_probe();
        let Some((_, id, key)) = self.tracked() else { return };
        self.key = None;
        let now = host::now();
        with_worker(Worker::on_event);
        // Our side of the in-process pipe was closed, not the pool's: the far end reset the connection, or we closed it,
        // which the destination knows.
        if peer == PeerType::Local {
            self.on_far_end_close(id, key, now);
        }
        with_destination(id, |destination| destination.on_closed(key));
    }
}

impl Drop for ConnectionFilter {
    fn drop(&mut self) {
        self.end_probe();
        // Envoy ended the stream without a close callback (a listener that drains, say).
        if let Some((_, id, key)) = self.tracked() {
            with_destination(id, |destination| destination.on_closed(key));
        }
    }
}

//! The connection filter: one internal connection, which is one upstream TCP connection.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::types::{BufferType, PeerType};

use crate::config::ConnectionConfig;
use crate::connection::ConnectionKey;
use crate::destination::{Destination, Due, Seen};
use crate::framing::{Direction, Framing, Progress, Protocol, STATUS_LINE_MAX, told_to_close};
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
    is_reaping: Cell<bool>,
}

impl ConnectionRoot {
    pub(super) fn new(id: u32, config: ConnectionConfig) -> Self {
        let destination = destinations::register(id, &config.destination, &config.policy, true);
        let shared_key = destinations::shared_key(&config.destination);
        let prober =
            destination.and_then(|destination| Prober::new(destination, id, &config.destination, &config.policy));
        let (exchange_at, told, is_reaping) = Default::default();
        let root = Self { id, config, destination, shared_key, exchange_at, prober, told, is_reaping };
        root.share();
        root
    }

    pub(super) fn on_tick(&self) {
        let now = host::now();
        let Some(id) = self.destination else { return };
        let tick = |worker: &mut Worker| {
            worker.on_event();
            worker.get(id).map(|destination| (destination.tick(now), destination.is_reaping()))
        };
        let Some((due, is_reaping)) = with_worker(tick).flatten() else { return };
        if self.is_reaping.replace(is_reaping) != is_reaping {
            self.tell();
        }
        let entered = !due.is_empty();
        if entered {
            close_due(id, due, now);
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
        self.tell();
    }

    /// Tells Envoy what has changed of what it knows.
    fn tell(&self) {
        let Some(id) = self.destination else { return };
        let now = with_destination(id, |destination| {
            (destination.idle_limit(), destination.learned(), destination.tick_period())
        });
        let Some(now) = now else { return };
        let before = self.told.replace(now);
        if (now.0, now.1) != (before.0, before.1) {
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

/// One upstream connection. There may be a hundred thousand, each in an allocation of its own.
pub(super) struct ConnectionFilter {
    root: Rc<ConnectionRoot>,
    /// The destination's key of it, if that tracks it; its context is the connection's own.
    slot: Option<Slot>,
    framing: Framing,
}

/// With 4 bytes of the allocator's own in front of them, 48.
const _: () = assert!(!cfg!(target_arch = "wasm32") || size_of::<ConnectionFilter>() <= 44);

/// [`ConnectionKey::slot`], whose `Option` takes no more room.
#[derive(Clone, Copy)]
struct Slot(NonZeroU32);

impl Slot {
    fn of(key: ConnectionKey) -> Self {
        Self(NonZeroU32::MIN.saturating_add(key.slot))
    }

    fn key(self, context: u32) -> ConnectionKey {
        ConnectionKey { slot: self.0.get().saturating_sub(1), context }
    }
}

impl ConnectionFilter {
    pub(super) fn new(root: Rc<ConnectionRoot>) -> Self {
        Self { root, slot: None, framing: Framing::new() }
    }

    /// Follows the bytes of the probe's connection. A response that ends with its connection is over when that is closed.
    fn on_probe_data(&mut self, context: u32, prober: &Prober, direction: Direction, size: usize) {
        let now = host::now();
        let progress = self.framing.advance(direction, size as u64, |start, max| fetch(direction, start, max));
        if progress.requests_started > 0 {
            prober.on_request(context, now);
        }
        if progress.responses_completed > 0 {
            prober.on_response(context, now);
        }
    }

    /// Whether the connection is the probe's, as its first request tells. From then on the destination doesn't know of it.
    fn belongs_to(&mut self, context: u32, prober: &Prober, direction: Direction, size: usize) -> bool {
        let is_first = direction == Direction::Request && self.framing.protocol() == Protocol::Unknown;
        if is_first && prober.is_asking() && !prober.owns(context) {
            let head = fetch(direction, 0, (size as u64).min(HEAD_OF_PROBE)).unwrap_or_default();
            if prober.claims(context, &head)
                && let Some((id, key)) = self.take_tracked(context)
            {
                with_destination(id, |destination| destination.on_closed(key));
            }
        }
        prober.owns(context)
    }

    pub(super) fn on_new_connection(&mut self, context: u32) {
        let root = &self.root;
        let Some(id) = root.destination else { return };
        let now = host::now();
        let endpoint = host::property(ENDPOINT).map_err(host::report).ok().flatten().unwrap_or_default();
        let (policy, most) = (&root.config.policy, root.config.max_tracked);
        let key = with_worker(|worker| worker.open(id, context, &endpoint, policy, most, now)).flatten();
        self.slot = key.map(Slot::of);
    }

    pub(super) fn on_data(&mut self, context: u32, direction: Direction, size: usize, end: bool) {
        let root = Rc::clone(&self.root);
        if let Some(prober) = &root.prober
            && self.belongs_to(context, prober, direction, size)
        {
            return self.on_probe_data(context, prober, direction, size);
        }
        let Some((id, key)) = self.tracked(context) else { return };
        let fetch = |start: u64, max: u64| fetch(direction, start, max);
        let begins_response = direction == Direction::Response && self.framing.awaits_response();
        let mut progress = self.framing.advance(direction, size as u64, fetch);
        if !end && !begins_response && self.is_within_exchange(&progress) {
            with_worker(Worker::on_event); // more of a body: nothing that the destination doesn't know
            return;
        }
        let now = host::now();
        if end {
            let at_end = self.framing.on_eof(direction);
            progress.responses_completed = progress.responses_completed.saturating_add(at_end.responses_completed);
        }
        if begins_response && self.framing.protocol() == Protocol::Http1 && self.framing.reusable() {
            let hinted = progress.keep_alive.and_then(|hint| hint.max);
            let is_last =
                with_destination(id, |destination| destination.is_last_exchange(key, hinted, &root.config.policy, now));
            if is_last == Some(true) && announce_close(size) {
                self.framing.retire();
                with_destination(id, |destination| destination.on_close_announced());
            }
        }
        let seen = Seen {
            started: progress.requests_started,
            completed: progress.responses_completed,
            in_flight: self.in_flight(),
            answered: self.framing.response_started(),
            stacked: self.framing.protocol() == Protocol::Http1,
            reusable: self.framing.reusable(),
            hinted_timeout: progress.keep_alive.and_then(|hint| hint.timeout),
            hinted_exchanges: progress.keep_alive.and_then(|hint| hint.max),
        };
        let has_doomed = with_worker(|worker| {
            worker.on_event();
            match worker.get(id) {
                Some(destination) if size > 0 || seen.completed > 0 => {
                    destination.on_bytes(key, &seen, &root.config.policy, now);
                    destination.has_doomed()
                }
                _ => false,
            }
        });
        if has_doomed == Some(true) {
            close_doomed(context, id);
        }
        if end && direction == Direction::Response {
            on_far_end_close(context, id, key, now);
        }
    }

    /// Whether the only exchange of an HTTP/1.1 connection goes on, and no other began or ended.
    fn is_within_exchange(&self, progress: &Progress) -> bool {
        progress.responses_completed == 0
            && *progress == Progress::default()
            && self.framing.protocol() == Protocol::Http1
            && self.framing.in_flight() == 1
    }

    /// Exchanges in flight. A tunnel is one until it is closed: nobody knows what its silence means.
    fn in_flight(&self) -> u32 {
        match self.framing.protocol() {
            Protocol::Tunnel => 1,
            _ => self.framing.in_flight(),
        }
    }

    pub(super) fn on_downstream_close(&mut self, context: u32, peer: PeerType) {
        self.end_probe(context);
        let Some((id, key)) = self.take_tracked(context) else { return };
        let now = host::now();
        with_worker(Worker::on_event);
        // Our side of the in-process pipe was closed, not the pool's: the far end reset the connection, or we closed it,
        // which the destination knows.
        if peer == PeerType::Local {
            on_far_end_close(context, id, key, now);
        }
        with_destination(id, |destination| destination.on_closed(key));
    }

    /// Envoy has ended the stream, perhaps without a close callback (a listener that drains, say).
    pub(super) fn end(mut self, context: u32) {
        self.end_probe(context);
        if let Some((id, key)) = self.take_tracked(context) {
            with_destination(id, |destination| destination.on_closed(key));
        }
    }

    /// The probe's connection has ended, if this is it.
    fn end_probe(&mut self, context: u32) {
        if let Some(prober) = self.root.prober.as_ref().filter(|prober| prober.owns(context)) {
            prober.on_closed(context, host::now());
        }
    }

    fn tracked(&self, context: u32) -> Option<(DestinationId, ConnectionKey)> {
        Some((self.root.destination?, self.slot?.key(context)))
    }

    fn take_tracked(&mut self, context: u32) -> Option<(DestinationId, ConnectionKey)> {
        let tracked = self.tracked(context);
        self.slot = None;
        tracked
    }
}

/// Closes connections whose time has come; the context of the last one stays entered.
fn close_due(id: DestinationId, due: Vec<Due>, now: Timestamp) {
    for due in due {
        let closed = host::enter(due.key.context).and_then(|()| {
            let is_wanted = !due.unused || {
                let is_connected = host::property(UPSTREAM_LOCAL_ADDRESS)?.is_some();
                with_destination(id, |destination| destination.on_unused(due.key, is_connected, now)).unwrap_or(false)
            };
            if is_wanted { host::close_connection() } else { Ok(()) }
        });
        closed.unwrap_or_else(host::report);
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

/// The far end closed the connection of `context`: others may have to be closed before the pool hears of this one.
#[cold]
fn on_far_end_close(context: u32, id: DestinationId, key: ConnectionKey, now: Timestamp) {
    let suspects = with_destination(id, |destination| destination.on_far_end_close(key, now)).unwrap_or_default();
    close_suspects(context, suspects);
}

/// Closes suspects that are certainly idle by now, and comes back to `context`.
#[cold]
pub(super) fn close_doomed(context: u32, id: DestinationId) {
    close_suspects(context, with_destination(id, Destination::close_doomed).unwrap_or_default());
}

fn close_suspects(context: u32, suspects: Vec<ConnectionKey>) {
    if suspects.is_empty() {
        return;
    }
    for key in suspects {
        host::enter(key.context).and_then(|()| host::close_connection()).unwrap_or_else(host::report);
    }
    host::enter(context).unwrap_or_else(host::report);
}

//! One connection: is an exchange in flight, how long has it been idle, what became of it.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use hyper::upgrade::OnUpgrade;

use super::{
    Shared,
    mode::Mode,
    record::{By, Close, How},
};

/// Heads longer than this are not kept for `/headers`.
const HEAD_LIMIT: usize = 128 * 1024;

/// How busy and idle are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// Busy from the first byte of a request until its response is flushed.
    Http1 { busy: bool },
    /// Busy while streams are open.
    Http2,
    /// After an upgrade: never busy, every byte counts.
    Opaque,
}

/// What the load balancer has decided about the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Alive,
    /// Dropped silently; the next byte is answered by RST.
    Forgotten,
    /// Dropped silently; bytes are thrown away. `noticed` once the first have come.
    Swallowing {
        noticed: bool,
    },
    /// To be ended now.
    Ended(How),
}

/// What to do with bytes that have been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    Deliver,
    Discard,
    Reset,
}

/// What the timer asks of the connection's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing before this instant.
    At(Instant),
    /// Nothing, until the mode changes.
    Never,
    /// Drop the connection now.
    Close,
}

#[derive(Debug)]
struct State {
    protocol: Protocol,
    fate: Fate,
    opened: Instant,
    idle_since: Instant,
    /// Nobody asked for what is sent before the end.
    announces: bool,
    /// Exchanges whose response body has not ended.
    exchanges: u32,
    /// The head of the latest HTTP/1.1 request, as it came.
    head: Vec<u8>,
    upgrade: Option<OnUpgrade>,
    peer: Option<How>,
}

/// Shared between the connection's socket, its requests and its task.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    id: u64,
    state: Mutex<State>,
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, now: Instant) -> Arc<Self> {
        let id = shared.book().open(now);
        let state = State {
            protocol: Protocol::Http1 { busy: false },
            fate: Fate::Alive,
            opened: now,
            idle_since: now,
            announces: false,
            exchanges: 0,
            head: Vec::new(),
            upgrade: None,
            peer: None,
        };
        Arc::new(Self { shared, id, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the lock")
    }

    /// Bytes have been read that reached this machine at `arrived`.
    pub(super) fn on_read(&self, bytes: &[u8], arrived: Instant) -> Arrival {
        let mut state = self.state();
        if state.fate == Fate::Alive {
            let mode = self.shared.mode();
            let age = state.idle_age(arrived);
            if let (Some(age), Some(timeout)) = (age, mode.timeout())
                && age >= timeout
            {
                // The timer is late: the load balancer would have dropped the connection before these bytes came.
                self.drop_idle(&mut state, mode, arrived);
                if matches!(state.fate, Fate::Ended(_)) {
                    state.fate = Fate::Forgotten; // it would be closed, and a closed socket answers by RST
                }
            }
        }
        match state.fate {
            Fate::Alive => {
                self.begin_if_idle(&mut state, arrived);
                if state.head.len() < HEAD_LIMIT && matches!(state.protocol, Protocol::Http1 { .. }) {
                    state.head.extend_from_slice(bytes);
                }
                state.idle_since = state.idle_since.max(arrived);
                Arrival::Deliver
            }
            Fate::Forgotten => {
                self.shared.book().on_stale_arrival(self.id, state.idle_age(arrived));
                state.fate = Fate::Ended(How::Rst);
                Arrival::Reset
            }
            Fate::Swallowing { noticed } => {
                if !noticed {
                    self.shared.book().on_stale_arrival(self.id, state.idle_age(arrived));
                    state.fate = Fate::Swallowing { noticed: true };
                }
                Arrival::Discard
            }
            Fate::Ended(_) => Arrival::Reset,
        }
    }

    fn begin_if_idle(&self, state: &mut State, now: Instant) {
        if let Protocol::Http1 { busy: false } = state.protocol {
            let age = now.saturating_duration_since(state.idle_since);
            let mut book = self.shared.book();
            book.on_idle_age(self.id, age);
            if let Some(record) = book.record(self.id) {
                record.idle_since = None;
            }
            state.protocol = Protocol::Http1 { busy: true };
            state.head.clear();
        }
    }

    pub(super) fn on_written(&self, now: Instant) {
        self.state().idle_since = now;
    }

    /// Everything written so far has left: if the response's body has ended, so has the exchange.
    pub(super) fn on_flushed(&self, now: Instant) {
        let mut state = self.state();
        if state.protocol == (Protocol::Http1 { busy: true }) && state.exchanges == ENDING {
            state.protocol = Protocol::Http1 { busy: false };
            state.exchanges = 0;
            state.idle_since = now;
            if let Some(record) = self.shared.book().record(self.id) {
                record.idle_since = Some(now);
            }
        }
    }

    /// The peer has closed, or reset.
    pub(super) fn on_peer_closed(&self, how: How) {
        self.state().peer.get_or_insert(how);
    }

    pub(super) fn on_request(&self, http2: bool, path: &str) {
        let mut state = self.state();
        if http2 {
            let age = Instant::now().saturating_duration_since(state.idle_since);
            if state.exchanges == 0 {
                self.shared.book().on_idle_age(self.id, age);
            }
            state.protocol = Protocol::Http2;
        }
        state.exchanges = if state.protocol == Protocol::Http2 { state.exchanges + 1 } else { 1 };
        let mut book = self.shared.book();
        book.counters.requests += 1;
        if let Some(record) = book.record(self.id) {
            if record.requests == 0 {
                path.clone_into(&mut record.path);
            }
            record.requests += 1;
        }
    }

    /// The response's body has been handed over to the last byte, or given up.
    pub(super) fn on_response_end(&self) {
        let mut state = self.state();
        match state.protocol {
            Protocol::Http1 { .. } => state.exchanges = ENDING,
            Protocol::Http2 => state.exchanges = state.exchanges.saturating_sub(1),
            Protocol::Opaque => {}
        }
    }

    pub(super) fn on_sni(&self, name: Option<&str>) {
        if let Some(record) = self.shared.book().record(self.id) {
            record.sni = name.map(str::to_owned);
        }
    }

    /// The head of the request in flight, if it is HTTP/1.1.
    pub(super) fn head(&self) -> Option<Vec<u8>> {
        let state = self.state();
        matches!(state.protocol, Protocol::Http1 { .. }).then(|| state.head.clone())
    }

    pub(super) fn upgrade(&self, upgrade: OnUpgrade) {
        self.state().upgrade = Some(upgrade);
    }

    /// The upgrade that the last response has promised; from now on bytes have no framing.
    pub(super) fn take_upgrade(&self) -> Option<OnUpgrade> {
        let mut state = self.state();
        let upgrade = state.upgrade.take()?;
        state.protocol = Protocol::Opaque;
        Some(upgrade)
    }

    /// Looks whether the idle age has reached the timeout, and if so drops the connection as the mode says.
    pub(super) fn check(&self, now: Instant) -> Due {
        let mut state = self.state();
        let mode = self.shared.mode();
        if let (Fate::Alive, Mode::AgeAt(limit)) = (state.fate, mode) {
            if now.saturating_duration_since(state.opened) < limit {
                return Due::At(state.opened + limit);
            }
            state.fate = Fate::Ended(How::Fin);
            return Due::Close;
        }
        let (Fate::Alive, Some(timeout)) = (state.fate, mode.timeout()) else { return Due::Never };
        let Some(age) = state.idle_age(now) else { return Due::At(now + timeout) };
        if age < timeout {
            return Due::At(state.idle_since + timeout);
        }
        self.drop_idle(&mut state, mode, now);
        if matches!(state.fate, Fate::Ended(_)) { Due::Close } else { Due::Never }
    }

    fn drop_idle(&self, state: &mut State, mode: Mode, now: Instant) {
        state.announces = matches!(mode, Mode::AnnounceAt(_));
        state.fate = match mode {
            Mode::Stable | Mode::AgeAt(_) => return,
            Mode::FinAt(_) | Mode::AnnounceAt(_) => Fate::Ended(How::Fin),
            Mode::RstAt(_) => Fate::Ended(How::Rst),
            Mode::SilentRst(_) => Fate::Forgotten,
            Mode::SilentSwallow(_) => Fate::Swallowing { noticed: false },
        };
        let mut book = self.shared.book();
        book.counters.idle_drops += 1;
        if let Some(record) = book.record(self.id) {
            record.dropped = Some(now);
        }
    }

    /// Ends the connection whatever it is doing.
    pub(super) fn end(&self, how: How) {
        self.state().fate = Fate::Ended(how);
    }

    /// Whether the load balancer has decided to end the connection.
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.state().fate, Fate::Ended(_))
    }

    /// Whether the socket must be closed by RST.
    pub(super) fn ends_by_reset(&self) -> bool {
        self.state().fate == Fate::Ended(How::Rst)
    }

    /// Whether a 408 is to go before the end.
    pub(super) fn announces(&self) -> bool {
        self.state().announces
    }

    /// The socket is gone: writes down how.
    pub(super) fn on_closed(&self, now: Instant) {
        let state = self.state();
        let (by, how) = match (state.peer, state.fate) {
            (Some(how), _) => (By::Peer, how),
            (None, Fate::Ended(how)) => (By::Lb, how),
            (None, _) => (By::Lb, How::Fin),
        };
        self.shared.book().end(self.id, Close { at: now, how, by, idle_age: state.idle_age(now) });
    }
}

/// Stands in `State::exchanges` of HTTP/1.1 for "the body has ended, the last bytes are to be flushed".
const ENDING: u32 = u32::MAX;

impl State {
    fn idle_age(&self, now: Instant) -> Option<Duration> {
        let idle = match self.protocol {
            Protocol::Http1 { busy } => !busy,
            Protocol::Http2 => self.exchanges == 0,
            Protocol::Opaque => true,
        };
        idle.then(|| now.saturating_duration_since(self.idle_since))
    }
}

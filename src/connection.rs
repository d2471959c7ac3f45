//! One upstream connection, as its worker knows it: where it stands, and until when it may be used.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::idle_list::Links;
use crate::time::{Moment, Timestamp};
use crate::timers::Timer;

/// A duration in whole milliseconds, rounded down, up to 49 days; an `Option` of it takes no more room. There may be a hundred
/// thousand connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Millis(NonZeroU32);

impl From<Duration> for Millis {
    fn from(duration: Duration) -> Self {
        let millis = duration.as_secs().saturating_mul(1_000).saturating_add(duration.subsec_millis().into());
        Self(NonZeroU32::MIN.saturating_add(u32::try_from(millis).unwrap_or(u32::MAX)))
    }
}

impl From<Millis> for Duration {
    fn from(millis: Millis) -> Self {
        Self::from_millis(millis.0.get().saturating_sub(1).into())
    }
}

/// What a far end still serves; an `Option` of it takes no more room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExchangesLeft(NonZeroU32);

impl From<u32> for ExchangesLeft {
    fn from(left: u32) -> Self {
        Self(NonZeroU32::MIN.saturating_add(left))
    }
}

impl From<ExchangesLeft> for u32 {
    fn from(left: ExchangesLeft) -> Self {
        left.0.get().saturating_sub(1)
    }
}

/// How long an HTTP/1.1 connection whose lifetime is over may wait for its last exchange. In a pool whose connections are in
/// use, the ones that wait this long lie below those that the pool hands out.
pub const LIFETIME_GRACE: Duration = Duration::from_secs(1);

/// Names a connection for as long as its worker knows it, and never another one after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionKey {
    /// Where it is stored; used again after the connection is forgotten.
    pub slot: u32,
    /// Envoy's context id; never used again in a VM.
    pub context: u32,
}

/// A number for everything that the pool may put on the same connections. Connections of an older generation are never
/// handed out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// Where a connection stands between its opening and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No exchange yet: it is being connected for a request that waits, or the pool made it and found no use for it.
    Unused,
    /// Exchanges are in flight: closing now would be our own fault.
    Busy {
        /// How many.
        in_flight: NonZeroU32,
        /// The idle age at which the oldest of them found the connection; `None` on a connection fresh from the far end.
        reused_at_age: Option<Millis>,
        /// Whether a byte has come back since.
        answered: bool,
    },
    /// No exchange in flight; the last byte, either way, passed at `since`.
    Idle {
        /// When the last byte passed.
        since: Moment,
    },
    /// Fenced, and left open to see at which idle age the far end closes it.
    Sentinel {
        /// When the last byte passed.
        since: Moment,
    },
    /// Still open, but the pool will not use it again: a tunnel, or an end that was announced.
    Spent,
    /// The host has been asked to close it: the next close callback is our own doing.
    Closing,
    /// Closed, but perhaps the pool has not heard of it yet and would still hand it out.
    Gone,
}

/// Why idleguard closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// It was idle for too long, or its generation had ended.
    Reaped,
    /// It was too old, or had served as many exchanges as its far end wants.
    Retired,
}

/// Which list of idle connections one belongs into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Its generation is known, and the pool hands out the one that became idle last: its place in the stack is known.
    Stacked,
    /// Its place is not known: HTTP/2, no HTTP, or it was not clear for which request the pool made it.
    Loose,
}

/// One upstream connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Envoy's context id.
    pub context: u32,
    /// Its own generation if it is [`Order::Stacked`], else the latest that it can belong to.
    pub generation: Generation,
    /// Where its place among the idle ones is.
    pub order: Order,
    /// Where it stands.
    pub phase: Phase,
    /// When it was opened. The far end's idle timer starts here, if not at the first byte.
    pub opened_at: Timestamp,
    /// How old it may become.
    pub lifetime: Option<Millis>,
    /// Whether it may wait a little for another exchange when its lifetime is over: its response announces the close, which
    /// spares the connections beside it. None where that can't be announced.
    pub has_grace: bool,
    /// The limit that its far end announced.
    pub hinted_limit: Option<Millis>,
    /// Exchanges that its far end will still serve, if it said so.
    pub exchanges_left: Option<ExchangesLeft>,
    /// Whether no request is given to it, although its generation goes on.
    pub is_fenced: bool,
    /// When it is looked at: at a time before which it can't expire.
    pub timer: Timer,
    /// The list that it is in.
    pub list: Option<Order>,
    /// Its neighbours there.
    pub links: Links,
}

#[cfg(target_arch = "wasm32")]
const _: () = assert!(size_of::<Connection>() <= 72);

impl Connection {
    /// One that was opened at `now` and may be handed out at any time.
    pub fn new(context: u32, now: Timestamp) -> Self {
        Self {
            context,
            generation: Generation(0),
            order: Order::Loose,
            phase: Phase::Unused,
            opened_at: now,
            lifetime: None,
            has_grace: false,
            hinted_limit: None,
            exchanges_left: None,
            is_fenced: false,
            timer: Timer::default(),
            list: None,
            links: Links::default(),
        }
    }

    /// When it is to be retired; the end of time if it may grow old.
    pub fn retire_at(&self) -> Timestamp {
        const NEVER: Timestamp = Timestamp::from_nanos(u64::MAX);
        self.lifetime.map_or(NEVER, |lifetime| self.opened_at.after(lifetime.into()))
    }

    /// Since when nothing has passed, if it waits for an exchange.
    pub fn idle_since(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Unused => Some(self.opened_at),
            Phase::Idle { since } | Phase::Sentinel { since } => Some(since.into()),
            Phase::Busy { .. } | Phase::Spent | Phase::Closing | Phase::Gone => None,
        }
    }

    /// Exchanges that its far end will still serve, if it said so.
    pub fn exchanges_left(&self) -> Option<u32> {
        self.exchanges_left.map(u32::from)
    }

    /// Whether no request may be given to it, whatever its idle age.
    pub fn is_out_of_use(&self) -> bool {
        self.is_fenced || matches!(self.phase, Phase::Sentinel { .. } | Phase::Closing | Phase::Gone)
    }

    /// Whether no request may be given to it at `now`. `limit` is the destination's idle limit.
    pub fn has_expired(&self, now: Timestamp, limit: Duration) -> bool {
        self.is_out_of_use() || self.expires_at(limit).is_some_and(|at| at <= now)
    }

    /// From when on no request may be given to it. The point itself is too late (a limit of 4 s allows an idle age below
    /// 4 s). `limit` is the destination's idle limit.
    pub fn expires_at(&self, limit: Duration) -> Option<Timestamp> {
        let since = self.idle_since()?;
        if self.exchanges_left() == Some(0) {
            return Some(since);
        }
        let limit = self.hinted_limit.map_or(limit, |hinted| Duration::from(hinted).min(limit));
        let grace = if self.has_grace { LIFETIME_GRACE } else { Duration::ZERO };
        Some(since.after(limit).min(self.retire_at().max(since.after(grace))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_costs_at_most_72_bytes() {
        assert!(size_of::<Connection>() <= 72, "{}", size_of::<Connection>());
    }

    #[test]
    fn what_is_small_is_exact() {
        for millis in [0, 1, 999, 4_294_967_294] {
            assert_eq!(Duration::from(Millis::from(Duration::from_millis(millis))), Duration::from_millis(millis));
        }
        assert_eq!(Duration::from(Millis::from(Duration::from_nanos(1_999_999))), Duration::from_millis(1));
        assert_eq!(Duration::from(Millis::from(Duration::MAX)), Duration::from_millis(4_294_967_294));
        assert_eq!([0, 1, u32::MAX - 1].map(|left| u32::from(ExchangesLeft::from(left))), [0, 1, u32::MAX - 1]);
    }
}

//! What the load balancer saw: totals, and one record a connection.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// How many ended connections are remembered, how many idle ages for each, and how many reuses that nobody has asked for.
const REMEMBERED: usize = 20_000;
const IDLE_AGES: usize = 1_000;
const REUSES: usize = 20_000;

/// Totals since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Connections accepted.
    pub opened: u64,
    /// Connections that are open now.
    pub open: u64,
    /// The most that were open at once.
    pub peak: u64,
    /// Requests that were read and answered (or aborted on request).
    pub requests: u64,
    /// Connections dropped for their idle age, in whichever way the mode says.
    pub idle_drops: u64,
    /// Times that data arrived on a connection which had been dropped already; once a connection.
    pub stale_arrivals: u64,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// By FIN.
    Fin,
    /// By RST.
    Rst,
}

/// Who ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// The load balancer.
    Lb,
    /// The other side.
    Peer,
}

/// The end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close {
    /// When it ended.
    pub at: Instant,
    /// In which way.
    pub how: How,
    /// On whose initiative.
    pub by: By,
    /// Its idle age then; none if an exchange was in flight.
    pub idle_age: Option<Duration>,
}

/// One connection.
#[derive(Debug, Clone)]
pub struct Record {
    /// Counts up from 1 in the order of acceptance.
    pub id: u64,
    /// When it was accepted.
    pub opened: Instant,
    /// How many requests it carried.
    pub requests: u64,
    /// The idle age at the first byte of each request, the first request included.
    pub idle_ages: Vec<Duration>,
    /// The path of its first request.
    pub path: String,
    /// The server name that the client asked for in TLS.
    pub sni: Option<String>,
    /// Since when no exchange is in flight; none while one is. Followed on HTTP/1.1 alone.
    pub idle_since: Option<Instant>,
    /// When the load balancer dropped it for its idle age.
    pub dropped: Option<Instant>,
    /// Whether data arrived on it after that: a request has met a dead connection.
    pub met: bool,
    /// How it ended; none while it is open.
    pub close: Option<Close>,
}

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// An exchange is in flight.
    Busy,
    /// None is.
    Idle,
    /// The load balancer has dropped it without a word.
    Dropped,
    /// A request met it after it had been dropped.
    Broken,
    /// It has been closed.
    Closed(By),
}

/// A request on a connection that had served before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reuse {
    /// The path of the connection's first request.
    pub path: String,
    /// The connection's idle age when the request came.
    pub idle_age: Duration,
    /// Whether the connection had been dropped by then, so that the request was lost.
    pub lost: bool,
}

/// One connection at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// As in its [`Record`].
    pub id: u64,
    /// As in its [`Record`].
    pub path: String,
    /// Where it stands.
    pub standing: Standing,
    /// Its idle age, at its end if it has ended.
    pub idle_age: Duration,
}

impl Record {
    fn view(&self, now: Instant) -> View {
        let standing = match (self.close, self.dropped, self.idle_since) {
            _ if self.met => Standing::Broken,
            (Some(close), _, _) => Standing::Closed(close.by),
            (None, Some(_), _) => Standing::Dropped,
            (None, None, None) => Standing::Busy,
            (None, None, Some(_)) => Standing::Idle,
        };
        let until = self.close.map_or(now, |close| close.at);
        let idle_age = self.idle_since.map_or(Duration::ZERO, |since| until.saturating_duration_since(since));
        View { id: self.id, path: self.path.clone(), standing, idle_age }
    }

    fn push_idle_age(&mut self, age: Duration) {
        if self.idle_ages.len() < IDLE_AGES {
            self.idle_ages.push(age);
        }
    }
}

/// The totals and the records, kept together so that they agree.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) counters: Counters,
    open: BTreeMap<u64, Record>,
    ended: VecDeque<Record>,
    reuses: VecDeque<Reuse>,
    /// Paths of requests that were in flight when the load balancer itself ended their connection.
    pub(super) broken: Vec<String>,
    /// When a restart last ended a connection.
    pub(super) restarted_at: Option<Instant>,
}

impl Book {
    pub(super) fn open(&mut self, now: Instant) -> u64 {
        self.counters.opened += 1;
        self.counters.open += 1;
        self.counters.peak = self.counters.peak.max(self.counters.open);
        let id = self.counters.opened;
        let record = Record {
            id,
            opened: now,
            requests: 0,
            idle_ages: Vec::new(),
            path: String::new(),
            sni: None,
            idle_since: Some(now),
            dropped: None,
            met: false,
            close: None,
        };
        self.open.insert(id, record);
        id
    }

    pub(super) fn record(&mut self, id: u64) -> Option<&mut Record> {
        self.open.get_mut(&id)
    }

    /// The first byte of a request has come after this idle age, the first request's included.
    pub(super) fn on_idle_age(&mut self, id: u64, age: Duration) {
        let Some(record) = self.open.get_mut(&id) else { return };
        record.push_idle_age(age);
        self.reused(id, age, false);
    }

    /// Data has arrived on a connection that had been dropped.
    pub(super) fn on_stale_arrival(&mut self, id: u64, age: Option<Duration>) {
        self.counters.stale_arrivals += 1;
        if let Some(record) = self.open.get_mut(&id) {
            record.met = true;
        }
        if let Some(age) = age {
            self.reused(id, age, true);
        }
    }

    fn reused(&mut self, id: u64, idle_age: Duration, lost: bool) {
        let Some(record) = self.open.get(&id).filter(|record| record.requests > 0) else { return };
        if self.reuses.len() == REUSES {
            self.reuses.pop_front();
        }
        self.reuses.push_back(Reuse { path: record.path.clone(), idle_age, lost });
    }

    pub(super) fn take_reuses(&mut self) -> Vec<Reuse> {
        self.reuses.drain(..).collect()
    }

    pub(super) fn end(&mut self, id: u64, close: Close) {
        let Some(mut record) = self.open.remove(&id) else { return };
        self.counters.open -= 1;
        record.close = Some(close);
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(record);
    }

    pub(super) fn view(&self, since: Instant, now: Instant) -> Vec<View> {
        let recent = self.ended.iter().rev().take_while(|record| record.close.is_some_and(|close| close.at >= since));
        recent.chain(self.open.values()).map(|record| record.view(now)).collect()
    }

    pub(super) fn records(&self) -> Vec<Record> {
        let mut all: Vec<Record> = self.ended.iter().chain(self.open.values()).cloned().collect();
        all.sort_by_key(|record| record.id);
        all
    }
}

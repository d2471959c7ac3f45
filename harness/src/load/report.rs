//! What became of the requests.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Examples kept of each kind of failure.
const EXAMPLES: usize = 3;

/// A way in which a request fails, as its sender sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// No connection.
    Connect,
    /// The connection was reset before the response began.
    Reset,
    /// The connection was closed before the response began.
    ClosedBeforeResponse,
    /// The response began and did not end.
    Truncated,
    /// No response in time.
    Timeout,
    /// A response with another status than 2xx: from Envoy, 503 stands for a stale connection.
    Status(u16),
    /// Anything else: bytes that are no HTTP, for one.
    Other,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("cannot connect"),
            Self::Reset => f.write_str("connection reset"),
            Self::ClosedBeforeResponse => f.write_str("closed before response"),
            Self::Truncated => f.write_str("truncated response"),
            Self::Timeout => f.write_str("timeout"),
            Self::Status(code) => write!(f, "status {code}"),
            Self::Other => f.write_str("other"),
        }
    }
}

/// One failure in detail.
#[derive(Debug, Clone)]
pub struct Example {
    /// The kind.
    pub failure: Failure,
    /// The error, or `x-envoy-…` headers and the beginning of the body.
    pub detail: String,
    /// The idle age of the client's own connection when the request was sent; none on a new one.
    pub idle_age: Option<Duration>,
}

/// Counts of loads that are still running.
#[derive(Debug, Default)]
pub struct Live {
    ok: AtomicU64,
    failed: AtomicU64,
    last_failure: Mutex<String>,
}

impl Live {
    pub(super) fn succeed(&self) {
        self.ok.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn fail(&self, detail: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        detail.clone_into(&mut self.last_failure.lock().expect("nothing panics while it holds the text"));
    }

    /// Requests that succeeded so far, and that failed.
    pub fn counts(&self) -> (u64, u64) {
        (self.ok.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// The latest failure in words; empty if there was none.
    pub fn last_failure(&self) -> String {
        self.last_failure.lock().expect("nothing panics while it holds the text").clone()
    }
}

/// A part of the requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests sent.
    pub requests: u64,
    /// Of these, how many failed.
    pub failed: u64,
}

/// The result of a load.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Requests sent.
    pub requests: u64,
    /// Of these, answered in full with a status 2xx.
    pub ok: u64,
    /// The others, by kind.
    pub failures: BTreeMap<Failure, u64>,
    /// Requests and failures by method.
    pub methods: BTreeMap<String, Tally>,
    /// Some of them in detail.
    pub examples: Vec<Example>,
    /// Connections that the clients opened.
    pub connections: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// From sending to the end of the response, of the successful ones.
    latencies: Vec<Duration>,
    /// When the others failed.
    failed_at: Vec<Instant>,
}

impl Report {
    fn tally(&mut self, method: &str) -> &mut Tally {
        self.methods.entry(method.to_owned()).or_default()
    }

    pub(super) fn succeed(&mut self, method: &str, latency: Duration) {
        self.requests += 1;
        self.tally(method).requests += 1;
        self.ok += 1;
        self.latencies.push(latency);
    }

    pub(super) fn fail(&mut self, method: &str, example: Example) {
        self.requests += 1;
        self.failed_at.push(Instant::now());
        let tally = self.tally(method);
        tally.requests += 1;
        tally.failed += 1;
        *self.failures.entry(example.failure).or_default() += 1;
        self.keep(example);
    }

    fn keep(&mut self, example: Example) {
        if self.examples.iter().filter(|kept| kept.failure == example.failure).count() < EXAMPLES {
            self.examples.push(example);
        }
    }

    /// Adds what another client, or another load in the same time, counted. `elapsed` stays.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.ok += other.ok;
        self.connections += other.connections;
        self.latencies.extend(other.latencies);
        self.failed_at.extend(other.failed_at);
        for (method, part) in other.methods {
            let tally = self.methods.entry(method).or_default();
            tally.requests += part.requests;
            tally.failed += part.failed;
        }
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        other.examples.into_iter().for_each(|example| self.keep(example));
    }

    /// How many requests failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// How many requests failed from `begin` on and before `end`.
    pub fn failed_between(&self, begin: Instant, end: Instant) -> usize {
        self.failed_at.iter().filter(|at| (begin..end).contains(*at)).count()
    }

    /// How many requests failed in this way.
    pub fn count(&self, failure: Failure) -> u64 {
        self.failures.get(&failure).copied().unwrap_or(0)
    }

    /// The latency that this share of the successful requests (0.0 to 1.0) did not exceed; zero if there were none.
    pub fn latency(&self, share: f64) -> Duration {
        let mut latencies = self.latencies.clone();
        latencies.sort_unstable();
        let last = latencies.len().saturating_sub(1);
        latencies.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests in {:.1} s, {} failed, {} client connections, p50 {:.1} ms, p99 {:.1} ms",
            self.requests,
            self.elapsed.as_secs_f64(),
            self.failed(),
            self.connections,
            self.latency(0.5).as_secs_f64() * 1e3,
            self.latency(0.99).as_secs_f64() * 1e3,
        )?;
        for (failure, count) in &self.failures {
            write!(f, "\n  {failure}: {count}")?;
            for example in self.examples.iter().filter(|example| example.failure == *failure) {
                write!(f, "\n    {}", example.detail)?;
            }
        }
        Ok(())
    }
}

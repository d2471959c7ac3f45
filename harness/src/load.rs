//! Clients with keep-alive connections, as applications have them.
//!
//! Each client has one connection and never repeats a request: what a user would have seen as a failure is counted as
//! one. Bursts make pools grow, and the silence after them makes what grew stale; scattered gaps hit a timeout from both
//! sides.
//!
//! ```no_run
//! use std::time::Duration;
//! use idleguard_harness::load::{Load, Pattern};
//!
//! # async fn example(address: std::net::SocketAddr) {
//! let gap = (Duration::ZERO, Duration::from_secs(4));
//! let report = Load::post(address, Pattern::Scattered { gap }).clients(60).run(Duration::from_secs(30)).await;
//! assert_eq!(report.failed(), 0, "{report}");
//! # }
//! ```

mod client;
mod report;

use std::{
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::Method;
use tokio::{
    runtime,
    sync::{Barrier, watch},
    task::JoinSet,
    time::sleep,
};

use self::client::Client;
pub use self::report::{Example, Failure, Live, Report, Tally};

/// When requests are sent. A gap begins at the end of the response.
#[derive(Debug, Clone, Copy)]
pub enum Pattern {
    /// Each client by itself, with uniformly random gaps between these bounds.
    Scattered {
        /// Shortest and longest gap.
        gap: (Duration, Duration),
    },
    /// All clients at once; when the last one has its answer, a random silence between these bounds for all.
    Bursts {
        /// Shortest and longest silence.
        gap: (Duration, Duration),
    },
}

/// What is to be sent.
#[derive(Debug, Clone)]
pub struct Load {
    address: SocketAddr,
    pattern: Pattern,
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: &'static str,
    mixed: bool,
    near: Option<(Duration, Duration)>,
    clients: usize,
    timeout: Duration,
    seed: u64,
    live: Arc<Live>,
}

impl Load {
    /// GET requests for `/`, from one client.
    pub fn get(address: SocketAddr, pattern: Pattern) -> Self {
        Self {
            address,
            pattern,
            method: Method::GET,
            path: "/".to_owned(),
            headers: Vec::new(),
            body: "",
            mixed: false,
            near: None,
            clients: 1,
            timeout: Duration::from_secs(15),
            seed: 1,
            live: Arc::default(),
        }
    }

    /// POST requests with a small body: nothing on the way may repeat them.
    pub fn post(address: SocketAddr, pattern: Pattern) -> Self {
        Self { method: Method::POST, body: "{\"amount\": 1}", ..Self::get(address, pattern) }
    }

    /// Every other client sends GET requests without a body instead.
    #[must_use]
    pub fn half_get(self) -> Self {
        Self { mixed: true, ..self }
    }

    /// Every other gap, on average, is between these bounds instead: a poller whose period is the far end's timeout.
    #[must_use]
    pub fn near(self, least: Duration, most: Duration) -> Self {
        Self { near: Some((least, most)), ..self }
    }

    /// How many clients, each with a connection of its own.
    #[must_use]
    pub fn clients(self, clients: usize) -> Self {
        Self { clients, ..self }
    }

    /// The path, and the query if there is one.
    #[must_use]
    pub fn path(self, path: impl Into<String>) -> Self {
        Self { path: path.into(), ..self }
    }

    /// One more request header; `host` replaces the address.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// How long a response may take, 15 s unless set: more than Envoy's own timeouts, so that their answer is seen.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The seed of the random gaps.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Counts here as well, while it runs.
    #[must_use]
    pub fn live(self, live: Arc<Live>) -> Self {
        Self { live, ..self }
    }

    /// Sends for this long; requests in flight then are awaited. Runs on two threads of its own.
    pub async fn run(self, duration: Duration) -> Report {
        self.run_while(duration, std::future::pending::<()>()).await.0
    }

    /// Sends until `work` is done, and at most for `longest`; `None` stands for work that was not done by then, and is given
    /// up. Requests in flight are awaited. Runs on two threads of its own.
    pub async fn run_while<T>(self, longest: Duration, work: impl Future<Output = T>) -> (Report, Option<T>) {
        let (stop, stopped) = watch::channel(());
        let end = End { at: Instant::now() + longest, stopped };
        let mut load = pin!(self.start(end));
        let done = tokio::select! {
            report = &mut load => return (report, None),
            done = work => done,
        };
        drop(stop);
        (load.await, Some(done))
    }

    async fn start(self, end: End) -> Report {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("load".into())
            .spawn(move || {
                let runtime =
                    runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
                // Nobody may be waiting any more.
                let _ = sender.send(runtime.block_on(self.send(end)));
            })
            .expect("a thread");
        receiver.await.expect("the load's thread has not panicked")
    }

    async fn send(self, end: End) -> Report {
        let load = Arc::new(self);
        let begun = Instant::now();
        let mut report = match load.pattern {
            Pattern::Scattered { gap } => load.scattered(gap, end).await,
            Pattern::Bursts { gap } => load.bursts(gap, end).await,
        };
        report.elapsed = begun.elapsed();
        report
    }

    fn gap(&self, usual: (Duration, Duration), random: &mut fastrand::Rng) -> Duration {
        match self.near {
            Some(near) if random.bool() => between(near, random),
            _ => between(usual, random),
        }
    }

    async fn scattered(self: &Arc<Self>, gap: (Duration, Duration), end: End) -> Report {
        let clients = (0..self.clients).map(|index| {
            let mut end = end.clone();
            let load = self.clone();
            let mut client = Client::new(load.clone(), index);
            let mut random = fastrand::Rng::with_seed(self.seed.wrapping_mul(1_000_003).wrapping_add(index as u64));
            async move {
                // Not all at once, not even at first.
                let mut goes_on = end.pause(between((Duration::ZERO, gap.1), &mut random)).await;
                while goes_on {
                    client.exchange().await;
                    goes_on = end.pause(load.gap(gap, &mut random)).await;
                }
                client.report
            }
        });
        collect(clients.collect()).await
    }

    async fn bursts(self: &Arc<Self>, gap: (Duration, Duration), mut end: End) -> Report {
        let start = watch::Sender::new(0_u64);
        let finish = Arc::new(Barrier::new(self.clients + 1));
        let clients = (0..self.clients).map(|index| {
            let mut client = Client::new(self.clone(), index);
            let (mut start, finish) = (start.subscribe(), finish.clone());
            async move {
                while start.changed().await.is_ok() {
                    client.exchange().await;
                    finish.wait().await;
                }
                client.report
            }
        });
        let running = tokio::spawn(collect(clients.collect()));
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut goes_on = true;
        while goes_on {
            start.send_modify(|burst| *burst += 1);
            finish.wait().await;
            goes_on = end.pause(self.gap(gap, &mut random)).await;
        }
        drop(start);
        running.await.expect("no client panics")
    }
}

async fn collect(mut clients: JoinSet<Report>) -> Report {
    let mut report = Report::default();
    while let Some(part) = clients.join_next().await {
        report.add(part.expect("no client panics"));
    }
    report
}

/// When to stop sending.
#[derive(Debug, Clone)]
struct End {
    at: Instant,
    /// Stops earlier when its sender is dropped.
    stopped: watch::Receiver<()>,
}

impl End {
    /// False, at once, if the end comes first.
    async fn pause(&mut self, gap: Duration) -> bool {
        if Instant::now() + gap >= self.at {
            return false;
        }
        tokio::select! {
            () = sleep(gap) => true,
            _ = self.stopped.changed() => false,
        }
    }
}

fn between((least, most): (Duration, Duration), random: &mut fastrand::Rng) -> Duration {
    least + most.saturating_sub(least).mul_f64(random.f64())
}

//! A subject under way: its Envoy, its far end, and one case after the other through it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use idleguard_harness::{
    envoy::{Config, Envoy, Options},
    http,
};
use socket2::SockRef;
use tokio::{net::TcpSocket, task::JoinSet};

use crate::{
    breaks::{Edit, broken},
    case::{Case, Client},
    drive::{Protocol, http1::Http1, http2, wire::Wire},
    far_end::{FarEnd, Run},
    passage::Side,
    record::{Connection, Observation},
    script::{Do, Signals},
    setup::{Setup, Subject},
};

/// An Envoy with its far end.
pub struct Middle {
    /// Which of them it is.
    pub subject: Subject,
    envoy: Envoy,
    settle: SocketAddr,
    far_end: FarEnd,
    counted: Mutex<BTreeMap<String, u64>>,
    is_elsewhere: AtomicBool,
}

/// What Envoy counts of requests and connections; the base's name is the lanes', too.
const COUNTERS: &str = r"^(http\.ingress\.downstream_rq_([1-5]xx|rx_reset|tx_reset|total|http1_total|http2_total)|cluster\.payments\.upstream_(rq_([1-5]xx|total|retry|retry_success|cancelled|rx_reset|tx_reset)|cx_(total|connect_fail|destroy_(local|remote)_with_active_rq)))$";

/// The `idle_timeout` in force.
pub(crate) const LANE: &str = "wasmcustom.idleguard.destination.payments.lane_idle_timeout_ms";

/// What a run of a case gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What both sides saw.
    pub observation: Observation,
    /// How long the clients took.
    pub took: Duration,
    /// How long what one side sent took to the other, at most.
    pub passage: Duration,
}

impl Middle {
    /// Starts the subject in this setup, and waits until what it stands for is in force.
    pub async fn start(setup: Setup, subject: Subject, edit: Option<Edit>) -> Result<Self> {
        let far_end = FarEnd::start().await?;
        let config = broken(edit, subject, setup.config(subject, far_end.address)?);
        let envoy = start(&config, subject).await.with_context(|| format!("{setup:?}, {subject:?}"))?;
        let settle = envoy.listener("settle").context("the listener `settle`")?;
        Ok(Self { subject, envoy, settle, far_end, counted: Mutex::default(), is_elsewhere: false.into() })
    }

    /// One case.
    pub async fn run(&self, case: &Case) -> Result<Seen> {
        let protocol = case.setup.far_end();
        let run = Arc::new(Run::new(case.far_end.clone(), protocol));
        self.far_end.set(Some(Arc::clone(&run)));
        let began = Instant::now();
        let mut running = JoinSet::new();
        for (at, client) in case.clients.iter().enumerate() {
            let (client, signals, address) = (client.clone(), Arc::clone(&run.signals), self.envoy.ingress());
            running.spawn(async move { (at, drive(&client, address, signals).await) });
        }
        let mut done = Vec::new();
        while let Some(result) = running.join_next().await {
            done.push(result?);
        }
        let took = began.elapsed();
        self.settled().await?;
        done.sort_by_key(|(at, _)| *at);
        let mut clients = Vec::new();
        for (_, client) in done {
            clients.push(client.record().await.settled());
        }
        self.settled().await?;
        let far_end = run.record().await;
        self.settled().await?;
        self.far_end.set(None);
        let counted = self.count().await?;
        let mut observation = Observation { clients, far_end, counted };
        if self.subject == Subject::Plain {
            observation.without(case.taken_out);
        }
        Ok(Seen { observation, took, passage: run.signals.longest_passage() })
    }

    /// Waits until Envoy's worker has seen everything that was sent to it so far.
    async fn settled(&self) -> Result<()> {
        http::get(self.settle, "/").await.map(drop).with_context(|| self.envoy.log_tail())
    }

    /// What Envoy has counted since the last look.
    async fn count(&self) -> Result<BTreeMap<String, u64>> {
        let text = http::get(self.envoy.admin(), &format!("/stats?usedonly&filter={COUNTERS}|{LANE}")).await?.text();
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        let mut now: BTreeMap<String, u64> =
            lines.filter_map(|(name, count)| Some((name.to_owned(), count.parse().ok()?))).collect();
        if now.remove(LANE).is_some_and(|lane| lane != self.subject.idle_timeout_ms()) {
            self.is_elsewhere.store(true, SeqCst);
        }
        let mut last = self.counted.lock().expect("no panic under the lock");
        let since = now.iter().map(|(name, count)| (name.clone(), count - last.get(name).copied().unwrap_or(0)));
        let since = since.filter(|(_, count)| *count > 0).collect();
        *last = now;
        Ok(since)
    }

    /// Whether the lane in force has ever been another than the subject stands for. A machine so busy that half a second passes between
    /// an answer and a request makes scripted resets look like an idle timeout.
    pub fn is_elsewhere(&self) -> bool {
        self.is_elsewhere.load(SeqCst)
    }

    /// Envoy's log.
    pub fn log(&self) -> String {
        self.envoy.log()
    }
}

/// Starts Envoy with one worker, and waits until the lane that the subject stands for is in force.
pub async fn start(config: &Config, subject: Subject) -> Result<Envoy> {
    start_as(config, subject, Options::default()).await
}

/// The same with options.
pub async fn start_as(config: &Config, subject: Subject, options: Options) -> Result<Envoy> {
    let options = Options { start_within: Duration::from_secs(90), ..options };
    let mut attempts = 0;
    let envoy = loop {
        attempts += 1;
        match Envoy::start(config, options.clone()).await {
            Ok(envoy) => break envoy,
            // Each file that Envoy watches takes one of the 128 inotify instances that a user has: others' end, too.
            Err(error) if attempts < 30 && format!("{error:#}").contains("inotify_fd_") => {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            Err(error) => return Err(error),
        }
    };
    if subject != Subject::Plain {
        envoy
            .wait_for(Duration::from_secs(30), "idleguard", |stats| stats.get(LANE) == Some(&subject.idle_timeout_ms()))
            .await?;
    }
    Ok(envoy)
}

enum Driven {
    Http1(Http1),
    Http2(http2::Client),
    Refused,
}

impl Driven {
    async fn record(self) -> Connection {
        match self {
            Self::Http1(mut http) => {
                http.wire.read();
                let end = http.wire.end;
                http.wire.close();
                Connection { messages: http.messages, end }
            }
            Self::Http2(client) => client.record().await,
            Self::Refused => Connection { messages: Vec::new(), end: crate::record::End::Rst },
        }
    }
}

async fn drive(client: &Client, address: SocketAddr, signals: Arc<Signals>) -> Driven {
    let Ok(socket) = TcpSocket::new_v4() else { return Driven::Refused };
    let is_slow = client.streams.iter().any(|(_, steps)| steps.iter().any(|step| matches!(step, Do::Slowly(_))));
    if is_slow {
        let _ = SockRef::from(&socket).set_recv_buffer_size(4096); // a smaller window is all that it is for
    }
    let Ok(stream) = socket.connect(address).await else { return Driven::Refused };
    match client.protocol {
        Protocol::Http1 => {
            let mut http = Http1::new(Wire::new(stream).noted(&signals, Side::Client), Side::Client, "case.example");
            for (path, steps) in &client.streams {
                http.run(steps, path, &signals).await;
            }
            Driven::Http1(http)
        }
        Protocol::Http2 => Driven::Http2(http2::Client::run(stream, client.streams.clone(), signals).await),
    }
}

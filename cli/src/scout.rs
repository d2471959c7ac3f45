//! What is this far end's idle timeout? Asked from a terminal, without an Envoy.
//!
//! What to ask next and what the ends of connections mean decides the very code that the filter's scout runs
//! ([`idleguard_core::timeout::scout`]): two connections, one that waits and one that is asked in between. Here are the
//! connections, the clock, and what is told meanwhile.

mod connection;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use hyper::Uri;
use idleguard_core::time::{DurationText, Timestamp, millis};
use idleguard_core::timeout::Margin;
use idleguard_core::timeout::finding::{Finding, Idle, Kind};
use idleguard_core::timeout::scout::{By, Scout};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use self::connection::{Event, Seen, Target};

/// How often it is looked what is to be done.
const TICK: Duration = Duration::from_millis(100);

/// So many connections that have ended, and nothing follows from them.
const MOST_ENDS: usize = 14;

/// An end so soon after the answer to a HEAD is that of a client that did not expect a body there.
const AT_ONCE: Duration = Duration::from_millis(50);

/// So many requests in a row without an answer: the far end is not there (any more).
const MOST_FAILURES: u32 = 8;

/// What to measure, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// `http://` or `https://`, a host, and the path of the requests.
    pub url: String,
    /// Another host and port to connect to.
    pub connect_to: Option<String>,
    /// HTTP/2 instead of HTTP/1.1: by ALPN, or without TLS with prior knowledge.
    pub is_http2: bool,
    /// Certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether any certificate will do.
    pub is_insecure: bool,
    /// A connection that was kept for so long need not wait any longer.
    pub max_wait: Duration,
    /// It ends then, whatever is known.
    pub max_time: Option<Duration>,
}

/// What has been found out.
#[derive(Clone, Debug)]
pub struct Report {
    /// As it was given.
    pub url: String,
    /// The one address that was asked.
    pub address: String,
    /// What the far end does with idle connections.
    pub finding: Finding,
    /// It keeps them for at least this long.
    pub lower_bound: Duration,
    /// Requests that were sent.
    pub requests: u32,
    /// How long it took.
    pub took: Duration,
    /// Why nothing is known for certain; none if it is.
    pub unknown_for: Option<String>,
}

/// Measures until something is certain, or `interrupt` is ready. `progress` is told often what is waited for, with what is known so
/// far at the end, and the latter alone.
///
/// # Errors
/// If the URL can't be used, or the far end can't be reached.
pub async fn measure(
    options: &Options,
    interrupt: impl Future<Output = ()>,
    mut progress: impl FnMut(&str, &str),
) -> Result<Report> {
    let target = Arc::new(target(options).await?);
    let mut measuring = Measuring::new(options, target);
    tokio::pin!(interrupt);
    let unknown_for = loop {
        if let Some(end) = measuring.step().await? {
            break end;
        }
        let known = measuring.known();
        progress(&format!("{} {known}", measuring.waiting()), &known);
        if is_ready(interrupt.as_mut()).await {
            break Some("interrupted".to_owned());
        }
    };
    Ok(measuring.report(options, unknown_for))
}

/// Whether it is ready now.
async fn is_ready(future: impl Future<Output = ()>) -> bool {
    tokio::select! {
        biased;
        () = future => true,
        () = std::future::ready(()) => false,
    }
}

// === where to ===

async fn target(options: &Options) -> Result<Target> {
    let uri: Uri = options.url.parse().with_context(|| format!("{:?} is no URL", options.url))?;
    let is_tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => bail!("{:?}: want http:// or https://", options.url),
    };
    let authority = uri.authority().with_context(|| format!("{:?} has no host", options.url))?;
    if authority.as_str().contains('@') {
        bail!("{:?}: no user names: a 401 is an answer, too", options.url);
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let address = match &options.connect_to {
        Some(other) => tokio::net::lookup_host(other).await.with_context(|| format!("--connect-to {other}"))?.next(),
        None => tokio::net::lookup_host((host.as_str(), port)).await.with_context(|| host.clone())?.next(),
    };
    let tls = if is_tls {
        let name = ServerName::try_from(host.clone()).with_context(|| format!("{host:?} is no name to verify"))?;
        Some((TlsConnector::from(Arc::new(tls(options)?)), name))
    } else {
        None
    };
    Ok(Target {
        address: address.with_context(|| format!("{host} has no address"))?,
        tls,
        is_http2: options.is_http2,
        authority: authority.as_str().to_owned(),
        asks_by_get: AtomicBool::new(false),
        path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
    })
}

fn tls(options: &Options) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let mut config = if options.is_insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))).with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        match &options.ca_file {
            Some(path) => {
                for certificate in CertificateDer::pem_file_iter(path).with_context(|| path.display().to_string())? {
                    roots.add(certificate.with_context(|| path.display().to_string())?)?;
                }
            }
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        }
        if roots.is_empty() {
            bail!("no certificate authorities are known: give them by --cacert, or measure with --insecure");
        }
        builder.with_root_certificates(roots).with_no_client_auth()
    };
    config.alpn_protocols = vec![if options.is_http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(config)
}

/// Trusts any certificate, not any signature.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

// === the loop ===

struct Measuring {
    target: Arc<Target>,
    scout: Scout,
    max_wait: Duration,
    max_time: Option<Duration>,
    began: Instant,
    events: (UnboundedSender<Event>, tokio::sync::mpsc::UnboundedReceiver<Event>),
    connections: HashMap<u32, Connection>,
    /// The idle ones, the one that was used last at the end: the next request takes that, as Envoy's pool does.
    idle: Vec<u32>,
    opened: u32,
    requests: u32,
    answers: u32,
    /// Since the last answer.
    failures: u32,
    failed_for: Option<String>,
    /// Of the connections that the far end ended: idle age, unless a request was under way, and connection age.
    ends: Vec<(Option<Duration>, Duration)>,
    missed: Option<Duration>,
}

struct Connection {
    opened: Instant,
    orders: UnboundedSender<()>,
    task: JoinHandle<()>,
    idle_since: Option<Instant>,
    /// Before the request that is under way.
    gap: Option<Duration>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[expect(clippy::disallowed_methods, reason = "the tool's own clock")]
fn clock() -> Instant {
    Instant::now()
}

impl Measuring {
    fn new(options: &Options, target: Arc<Target>) -> Self {
        Self {
            target,
            scout: Scout::new(options.max_wait, Finding::default(), Timestamp::default()),
            max_wait: options.max_wait,
            max_time: options.max_time,
            began: clock(),
            events: unbounded_channel(),
            connections: HashMap::new(),
            idle: Vec::new(),
            opened: 0,
            requests: 0,
            answers: 0,
            failures: 0,
            failed_for: None,
            ends: Vec::new(),
            missed: None,
        }
    }

    fn timestamp(&self, at: Instant) -> Timestamp {
        Timestamp::default().after(at.saturating_duration_since(self.began))
    }

    /// Waits for what happens next, or for a moment. Returns why it is over, if it is: `Some(None)` when something is known.
    async fn step(&mut self) -> Result<Option<Option<String>>> {
        let now = self.timestamp(clock());
        let wait = self.scout.next_due(now).map_or(TICK, |due| due.min(TICK));
        if let Ok(Some((id, at, seen))) = tokio::time::timeout(wait, self.events.1.recv()).await {
            self.on_seen(id, at, seen);
            while let Ok((id, at, seen)) = self.events.1.try_recv() {
                self.on_seen(id, at, seen);
            }
        }
        let actions = self.scout.tick(self.timestamp(clock()));
        for id in actions.close {
            self.close(id);
        }
        for _ in 0..actions.ask {
            self.ask();
        }
        self.failures = self.failures.saturating_add(self.scout.take_counts().failures);
        self.verdict()
    }

    fn ask(&mut self) {
        let target =
            self.idle.pop().filter(|id| self.connections.get(id).is_some_and(|one| one.orders.send(()).is_ok()));
        if target.is_some() {
            return;
        }
        self.opened = self.opened.saturating_add(1);
        let (id, now) = (self.opened, clock());
        let (orders, ordered) = unbounded_channel();
        let _ = orders.send(());
        let task = tokio::spawn(connection::run(id, Arc::clone(&self.target), self.events.0.clone(), ordered));
        self.connections.insert(id, Connection { opened: now, orders, task, idle_since: None, gap: None });
        self.scout.on_opened(id, self.timestamp(now));
    }

    fn close(&mut self, id: u32) {
        self.connections.remove(&id);
        self.idle.retain(|idle| *idle != id);
        self.scout.on_closed(id, By::Pool, self.timestamp(clock()));
    }

    fn on_seen(&mut self, id: u32, at: Instant, seen: Seen) {
        let now = self.timestamp(at);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let ended = connection.idle_since.map(|since| at.saturating_duration_since(since));
        let age = at.saturating_duration_since(connection.opened);
        match seen {
            Seen::Asked => {
                (connection.gap, connection.idle_since) = (ended, None);
                self.requests = self.requests.saturating_add(1);
                self.scout.on_asked(id, self.target.address.to_string().as_bytes(), now);
            }
            Seen::Answered(answer) => {
                connection.idle_since = Some(at);
                (self.answers, self.failures) = (self.answers.saturating_add(1), 0);
                if !answer.closes {
                    self.idle.push(id);
                }
                self.scout.on_answered(id, answer, now);
            }
            Seen::Announced | Seen::Fin | Seen::Rst => {
                self.idle.retain(|idle| *idle != id);
                connection.idle_since = None;
                if self.asks_by_get_now(ended) {
                    return;
                }
                let Some(connection) = self.connections.get(&id) else { return };
                if ended.is_some() || connection.gap.is_none() {
                    self.ends.push((ended, age));
                }
                match seen {
                    Seen::Announced => self.scout.on_let_go(id, Kind::Announced, now),
                    Seen::Fin => self.scout.on_let_go(id, Kind::Fin, now),
                    _ => {
                        self.missed = connection.gap.or(self.missed);
                        self.scout.on_closed(id, By::FarEnd, now);
                    }
                }
            }
            Seen::Refused => drop(self.asks_by_get_now(Some(Duration::ZERO))),
            Seen::CallEnded => self.scout.on_call_ended(),
            Seen::Failed(why) => self.failed_for = Some(why),
            Seen::Closed => {
                self.asks_by_get_now(ended);
                self.close(id);
            }
        }
    }

    /// An answer to HEAD has no body (RFC 9110 §9.3.2); some applications send one all the same, which no client can tell from the
    /// announcement of an end. Of an answer to GET the end is known.
    fn asks_by_get_now(&mut self, idle_age: Option<Duration>) -> bool {
        let is_body = idle_age.is_some_and(|age| age <= AT_ONCE) && !self.target.is_http2;
        is_body && !self.target.asks_by_get.swap(true, Ordering::Relaxed)
    }

    fn verdict(&mut self) -> Result<Option<Option<String>>> {
        let is_known = match self.scout.finding().idle {
            Idle::LongerThan(age) => age >= self.max_wait,
            idle => idle.is_worth_telling(),
        };
        let is_new = self.answers == 0 && !self.target.asks_by_get.load(Ordering::Relaxed);
        let is_gone = self.failures >= if is_new { 2 } else { MOST_FAILURES };
        if is_known {
            return Ok(Some(None));
        } else if is_gone {
            let why = self.failed_for.take().unwrap_or_else(|| "no answer".to_owned());
            return Err(anyhow!(why).context(format!("{} can't be reached", self.target.authority)));
        } else if self.ends.len() >= MOST_ENDS {
            return Ok(Some(Some(self.unexplained())));
        }
        let is_late = self.max_time.is_some_and(|most| self.began.elapsed() >= most);
        Ok(is_late.then(|| Some("--max-time is over".to_owned())))
    }

    /// Connections end, and it is not said why.
    fn unexplained(&self) -> String {
        let bounds = |ages: &mut dyn Iterator<Item = Duration>| {
            let ages: Vec<Duration> = ages.collect();
            (ages.iter().min().copied().unwrap_or_default(), ages.iter().max().copied().unwrap_or_default())
        };
        let (youngest, oldest) = bounds(&mut self.ends.iter().map(|(_, age)| *age));
        let (shortest, longest) = bounds(&mut self.ends.iter().filter_map(|(idle_age, _)| *idle_age));
        if youngest.saturating_mul(10) >= oldest.saturating_mul(9) {
            let age = seconds(oldest);
            format!("each connection ends when it is {age} old, whatever its idle age: that is no idle timeout")
        } else if shortest.saturating_mul(3) >= longest.saturating_mul(2) {
            let (shortest, longest) = (seconds(shortest), seconds(longest));
            format!("connections end at idle ages from {shortest} to {longest}, too far apart for one timeout")
        } else {
            "connections end together, at differing idle ages: restarts, or a limit of another kind, but no idle timeout".to_owned()
        }
    }

    /// What it waits for.
    fn waiting(&self) -> String {
        let now = clock();
        let mut ages: Vec<Duration> =
            self.connections.values().filter_map(|one| Some(now.saturating_duration_since(one.idle_since?))).collect();
        ages.sort_unstable();
        let waits = match ages.as_slice() {
            [] if self.connections.is_empty() => "pausing before the next two connections".to_owned(),
            [] => "waiting for an answer".to_owned(),
            [one] => format!("one connection is idle, for {}", seconds(*one)),
            [asked, .., waiting] => {
                format!("one connection waits, for {}; another was asked {} ago", seconds(*waiting), seconds(*asked))
            }
        };
        format!("{}: {waits}.", seconds(self.began.elapsed()))
    }

    /// What is known so far.
    fn known(&self) -> String {
        let finding = self.scout.finding();
        let mut known = Vec::new();
        if let Some(announced) = finding.keep_alive {
            known.push(format!("Keep-Alive announces {}", DurationText(announced)));
        }
        let end = self.ends.iter().rev().find_map(|(idle_age, _)| *idle_age);
        match (finding.idle, end) {
            (Idle::Silent { answered, unanswered }, _) => {
                known.push(format!("silent: answered after {}, not after {}", seconds(answered), seconds(unanswered)));
            }
            (_, Some(idle_age)) => {
                known.push(format!("one was closed after {} idle; another must confirm it", seconds(idle_age)));
            }
            _ => {}
        }
        if let Some(missed) = self.missed.filter(|_| finding.idle == Idle::Unknown) {
            known.push(format!("no answer after {} idle; another must confirm it", seconds(missed)));
        }
        let lower = self.scout.lower_bound();
        if !lower.is_zero() && !matches!(finding.idle, Idle::Silent { .. }) {
            known.push(format!("answers after {} idle", seconds(lower)));
        }
        if known.is_empty() { "Nothing is known yet".to_owned() } else { format!("Known: {}", known.join("; ")) }
    }

    fn report(self, options: &Options, unknown_for: Option<String>) -> Report {
        Report {
            url: options.url.clone(),
            address: self.target.address.to_string(),
            finding: *self.scout.finding(),
            lower_bound: self.scout.lower_bound(),
            requests: self.requests,
            took: self.began.elapsed(),
            unknown_for,
        }
    }
}

/// For people: with a tenth, below a minute.
fn seconds(age: Duration) -> String {
    match age.as_secs() {
        0..60 => format!("{:.1} s", age.as_secs_f64()),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

// === the result ===

impl Report {
    /// For programs: the fields are documented in `docs/cli.md`.
    pub fn json(&self, margin: Margin) -> Value {
        let (kind, upper) = match self.finding.idle {
            Idle::Closes { kind: Kind::Fin, timeout } => ("fin", Some(timeout)),
            Idle::Closes { kind: Kind::Rst, timeout } => ("rst", Some(timeout)),
            Idle::Closes { kind: Kind::Announced, timeout } => ("announced", Some(timeout)),
            Idle::Silent { unanswered, .. } => ("silent", Some(unanswered)),
            Idle::LongerThan(_) => ("longer", None),
            Idle::ClosesAtOnce => ("closes_at_once", None),
            Idle::Unknown => ("unknown", None),
        };
        json!({
            "url": self.url,
            "address": self.address,
            "is_known": self.unknown_for.is_none(),
            "unknown_for": self.unknown_for,
            "kind": kind,
            "lb_idle_timeout_ms": self.finding.timeout().map(millis),
            "lower_bound_ms": millis(self.lower_bound),
            "upper_bound_ms": upper.map(millis),
            "keep_alive_ms": self.finding.keep_alive.map(millis),
            "idle_timeout_ms": self.finding.limit(margin).map(millis),
            "requests": self.requests,
            "took_ms": millis(self.took),
        })
    }

    /// For people.
    pub fn text(&self, margin: Margin) -> String {
        let mut lines = Vec::new();
        match &self.unknown_for {
            None => lines.push(format!("{}: idle connections are {}", self.url, self.finding.idle)),
            Some(why) => lines.push(format!("{}: not found out: {why}", self.url)),
        }
        if let Some(announced) = self.finding.keep_alive {
            lines.push(format!("announced: Keep-Alive: timeout={}", announced.as_secs()));
        }
        if self.unknown_for.is_some() && !self.lower_bound.is_zero() {
            lines.push(format!("a request was answered after {} idle", DurationText(self.lower_bound)));
        }
        match (self.finding.limit(margin), self.finding.idle) {
            (Some(limit), _) => lines.push(format!("idle_timeout to use: {}", DurationText(limit))),
            (None, Idle::ClosesAtOnce) => lines.push("idle_timeout to use: any; no connection is reused".to_owned()),
            (None, _) => {}
        }
        let took = seconds(self.took);
        lines.push(format!("measured at {}, in {took}, by {} requests", self.address, self.requests));
        lines.join("\n  ")
    }
}

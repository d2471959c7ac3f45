//! The soak's clients: everything that a proxy sees in a day, each request under a number of its own.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::AbortHandle,
    time::{sleep, timeout},
};

/// A request that did not get its whole answer.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) kind: &'static str,
    pub(super) id: u64,
    pub(super) sent: Instant,
    pub(super) ended: Instant,
    pub(super) detail: String,
}

/// What came of all requests.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    next: AtomicU64,
    pub(super) done: Mutex<BTreeMap<&'static str, u64>>,
    pub(super) failed: Mutex<Vec<Failed>>,
}

impl Ledger {
    /// A number for the next request; the LB sees it in the query.
    fn id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn note(&self, kind: &'static str, id: u64, sent: Instant, outcome: Result<()>) {
        match outcome {
            Ok(()) => *self.done.lock().expect("no panic").entry(kind).or_default() += 1,
            Err(error) => {
                let failed = Failed { kind, id, sent, ended: Instant::now(), detail: format!("{error:#}") };
                self.failed.lock().expect("no panic").push(failed);
            }
        }
    }
}

/// What a client does, over and over.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Small requests, GET and POST.
    Small { http2: bool },
    /// Bodies up to 2 MB, each way.
    Big { http2: bool },
    /// Responses that take a while.
    Slow,
    /// The client goes away in the middle of the response, or of its own request.
    ClientAborts,
    /// The LB ends the connection instead of answering, which the client must be told.
    LbAborts,
    /// An upgrade, and messages that come back.
    WebSocket,
}

/// Clients of one sort.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) kind: Kind,
    pub(super) address: SocketAddr,
    /// `/h2` for the destination that is spoken to in HTTP/2.
    pub(super) prefix: &'static str,
    pub(super) seed: u64,
}

enum Open {
    Http1(http1::SendRequest<Full<Bytes>>, #[expect(dead_code, reason = "ends with its owner")] Task),
    Http2(http2::SendRequest<Full<Bytes>>, #[expect(dead_code, reason = "ends with its owner")] Task),
}

struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// Goes on until told to stop.
    pub(super) async fn run(self, ledger: &Ledger, stop: watch::Receiver<bool>) {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut open = None;
        sleep(Duration::from_millis(random.u64(0..1_000))).await;
        while !*stop.borrow() {
            let (kind, id, sent) = (self.name(), ledger.id(), Instant::now());
            let outcome = timeout(Duration::from_secs(20), self.once(&mut open, id, &mut random)).await;
            let outcome = outcome.unwrap_or_else(|_| bail_late());
            if outcome.is_err() {
                open = None;
            }
            ledger.note(kind, id, sent, outcome);
            // Mostly short, sometimes longer than every idle limit.
            let gap = if random.u8(0..4) == 0 { random.u64(0..9_000) } else { random.u64(0..400) };
            let end = Instant::now() + Duration::from_millis(gap);
            while Instant::now() < end && !*stop.borrow() {
                sleep(Duration::from_millis(50).min(end - Instant::now())).await;
            }
        }
    }

    fn name(&self) -> &'static str {
        match (self.kind, self.prefix) {
            (Kind::Small { http2: false }, "") => "HTTP/1.1, small",
            (Kind::Small { http2: false }, _) => "HTTP/1.1 to HTTP/2, small",
            (Kind::Small { http2: true }, "") => "HTTP/2 to HTTP/1.1, small",
            (Kind::Small { http2: true }, _) => "HTTP/2, small",
            (Kind::Big { http2: false }, _) => "HTTP/1.1, big bodies",
            (Kind::Big { http2: true }, _) => "HTTP/2, big bodies",
            (Kind::Slow, _) => "slow responses",
            (Kind::ClientAborts, _) => "aborted by the client",
            (Kind::LbAborts, _) => "aborted by the LB",
            (Kind::WebSocket, _) => "WebSocket",
        }
    }

    async fn once(&self, open: &mut Option<Open>, id: u64, random: &mut fastrand::Rng) -> Result<()> {
        let prefix = self.prefix;
        match self.kind {
            Kind::Small { .. } if random.bool() => {
                self.whole(open, Method::GET, format!("{prefix}/?id={id}"), 0, 6).await
            }
            Kind::Small { .. } => self.whole(open, Method::POST, format!("{prefix}/?id={id}"), 20, 1).await,
            Kind::Big { .. } if random.bool() => {
                let size = random.usize(100_000..2_000_000);
                self.whole(open, Method::POST, format!("{prefix}/bytes?n={size}&id={id}"), 0, size).await
            }
            Kind::Big { .. } => {
                let size = random.usize(100_000..2_000_000);
                self.whole(open, Method::POST, format!("{prefix}/?id={id}"), size, 1).await
            }
            Kind::Slow => {
                let millis = random.u64(0..4_000);
                self.whole(open, Method::POST, format!("{prefix}/slow?ms={millis}&id={id}"), 20, 1).await
            }
            Kind::ClientAborts => self.leave(id, random).await,
            Kind::LbAborts => {
                let how = if random.bool() { "fin" } else { "rst" };
                let millis = random.u64(0..200);
                let target = format!("{prefix}/abort?how={how}&ms={millis}&id={id}");
                let response = self.send(open, Method::POST, target, 20).await?;
                if response.status() != 503 {
                    bail!("{} for a request that the LB aborted", response.status());
                }
                response.into_body().collect().await?;
                Ok(())
            }
            Kind::WebSocket => self.websocket(id, random).await,
        }
    }

    /// One exchange, to the end of a body of at least `least` bytes.
    async fn whole(
        &self,
        open: &mut Option<Open>,
        method: Method,
        target: String,
        size: usize,
        least: usize,
    ) -> Result<()> {
        let response = self.send(open, method, target, size).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{status}: {}", String::from_utf8_lossy(&body[..body.len().min(160)]));
        }
        if body.len() < least {
            bail!("{} bytes, not {least}", body.len());
        }
        Ok(())
    }

    async fn send(
        &self,
        open: &mut Option<Open>,
        method: Method,
        target: String,
        size: usize,
    ) -> Result<Response<Incoming>> {
        let http2 = matches!(self.kind, Kind::Small { http2: true } | Kind::Big { http2: true });
        loop {
            let is_ready = match open {
                Some(Open::Http1(sender, _)) => sender.ready().await.is_ok(),
                Some(Open::Http2(sender, _)) => sender.ready().await.is_ok(),
                None => false,
            };
            if !is_ready {
                *open = Some(self.connect(http2).await?);
            }
            let uri = if http2 { format!("http://example{target}") } else { target.clone() };
            let body = Full::from(vec![b'x'; size]);
            let request = Request::builder().method(method.clone()).uri(uri);
            let request = if http2 { request } else { request.header("host", "example") }.body(body)?;
            let sent = match open.as_mut().context("just opened")? {
                Open::Http1(sender, _) => sender.try_send_request(request).await,
                Open::Http2(sender, _) => sender.try_send_request(request).await,
            };
            match sent {
                Ok(response) => return Ok(response),
                // Not a byte of it has been sent: the client saw the close in time, and takes a new connection.
                Err(mut error) => match error.take_message() {
                    Some(_) => *open = None,
                    None => return Err(error.into_error().into()),
                },
            }
        }
    }

    async fn connect(&self, http2: bool) -> Result<Open> {
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        Ok(if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await?;
            Open::Http2(sender, Task(tokio::spawn(connection).abort_handle()))
        } else {
            let (sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
            Open::Http1(sender, Task(tokio::spawn(connection).abort_handle()))
        })
    }

    /// Leaves in the middle of the response, or of the request.
    async fn leave(&self, id: u64, random: &mut fastrand::Rng) -> Result<()> {
        let mut tcp = TcpStream::connect(self.address).await?;
        let prefix = self.prefix;
        if random.bool() {
            let head = format!("GET {prefix}/drip?n=50&ms=50&id={id} HTTP/1.1\r\nhost: example\r\n\r\n");
            tcp.write_all(head.as_bytes()).await?;
            let _ = tcp.read(&mut [0; 4_096]).await?;
        } else {
            let head =
                format!("POST {prefix}/?id={id} HTTP/1.1\r\nhost: example\r\ncontent-length: 100000\r\n\r\nhalf");
            tcp.write_all(head.as_bytes()).await?;
        }
        sleep(Duration::from_millis(random.u64(0..300))).await;
        if random.bool() {
            socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO))?; // RST instead of FIN
        }
        Ok(())
    }

    async fn websocket(&self, id: u64, random: &mut fastrand::Rng) -> Result<()> {
        let mut tcp = TcpStream::connect(self.address).await?;
        let head = format!(
            "GET {}/upgrade?id={id} HTTP/1.1\r\nhost: example\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.prefix
        );
        tcp.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(tcp.read_u8().await.context("before the end of the response")?);
        }
        if !answer.starts_with(b"HTTP/1.1 101") {
            bail!("no upgrade: {}", String::from_utf8_lossy(&answer));
        }
        for _ in 0..random.u32(1..20) {
            let message: Vec<u8> = (0..random.usize(1..5_000)).map(|_| random.u8(..)).collect();
            tcp.write_all(&message).await?;
            let mut back = vec![0; message.len()];
            tcp.read_exact(&mut back).await.context("a message that came back in part")?;
            if back != message {
                bail!("another message came back");
            }
            sleep(Duration::from_millis(random.u64(0..400))).await;
        }
        Ok(())
    }
}

fn bail_late() -> Result<()> {
    bail!("no answer within 20 s")
}

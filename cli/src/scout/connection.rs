//! One connection to the far end, opened here, so that everything that passes on it and its end are seen.
//!
//! hyper speaks HTTP over a [`Tap`], which hands each byte on as it is and lets the core read it: where an exchange begins and ends,
//! what comes unasked (408, GOAWAY), FIN and RST.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as Task, Poll, ready};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use idleguard_core::timeout::scout::wire::{Answer, Wire};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

/// Where to, and what to ask.
pub(super) struct Target {
    /// Where the name of the URL leads to; one address, so that one host is measured.
    pub(super) address: SocketAddr,
    /// How to begin TLS, with the name to verify.
    pub(super) tls: Option<(TlsConnector, ServerName<'static>)>,
    pub(super) is_http2: bool,
    pub(super) authority: String,
    pub(super) path: String,
    /// By GET instead of HEAD.
    pub(super) asks_by_get: AtomicBool,
}

/// What was seen on a connection.
#[derive(Debug)]
pub(super) enum Seen {
    /// A request begins.
    Asked,
    Answered(Answer),
    /// An answer came, and hyper did not like it.
    Refused,
    /// Bytes that nobody asked for, or GOAWAY.
    Announced,
    Fin,
    Rst,
    /// Our side is closed.
    Closed,
    /// A request has ended, with or without an answer.
    CallEnded,
    /// Why it could not be opened or used.
    Failed(String),
}

/// The number of a connection, when, and what.
pub(super) type Event = (u32, Instant, Seen);

/// Events of one connection go here.
#[derive(Clone)]
struct Reporter(u32, UnboundedSender<Event>);

impl Reporter {
    #[expect(clippy::disallowed_methods, reason = "the tool's own clock")]
    fn tell(&self, seen: Seen) {
        let _ = self.1.send((self.0, Instant::now(), seen)); // nobody listens any more: the tool ends
    }
}

/// Opens a connection and sends a request for each order, the first at once.
pub(super) async fn run(id: u32, target: Arc<Target>, events: UnboundedSender<Event>, orders: UnboundedReceiver<()>) {
    let reporter = Reporter(id, events);
    if let Err(error) = serve(&target, &reporter, orders).await {
        reporter.tell(Seen::Failed(format!("{error:#}")));
    }
    reporter.tell(Seen::Closed);
}

async fn serve(target: &Target, reporter: &Reporter, orders: UnboundedReceiver<()>) -> Result<()> {
    let tcp =
        TcpStream::connect(target.address).await.with_context(|| format!("cannot connect to {}", target.address))?;
    tcp.set_nodelay(true)?;
    match &target.tls {
        None => exchange(tcp, target, reporter, orders).await,
        Some((connector, name)) => {
            let tls =
                connector.connect(name.clone(), tcp).await.with_context(|| format!("TLS with {}", target.address))?;
            if target.is_http2 && tls.get_ref().1.alpn_protocol() != Some(b"h2") {
                bail!("{} does not offer HTTP/2", target.address);
            }
            exchange(tls, target, reporter, orders).await
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &Target,
    reporter: &Reporter,
    mut orders: UnboundedReceiver<()>,
) -> Result<()> {
    let exchange = Arc::new(Exchange::default());
    let io = TokioIo::new(Tap {
        stream,
        wire: Wire::default(),
        reporter: reporter.clone(),
        exchange: Arc::clone(&exchange),
        has_ended: false,
    });
    let request = || {
        exchange.is_under_way.store(true, Ordering::Relaxed);
        target.request()
    };
    // What became of a request is seen on the wire, but for the end of a body.
    let finish = async |response: hyper::Result<Response<Incoming>>| {
        match response {
            Ok(response) => {
                let mut body = response.into_body();
                while let Some(Ok(_)) = body.frame().await {}
                exchange.answered(reporter);
            }
            Err(_) => exchange.refused(reporter),
        }
        reporter.tell(Seen::CallEnded);
    };
    // The connection has to be driven while nothing is asked: that is when its end comes.
    let ended = if target.is_http2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        let orders = async {
            while orders.recv().await.is_some() {
                finish(sender.send_request(request()?).await).await;
            }
            Ok(())
        };
        either(connection, orders).await
    } else {
        let (mut sender, connection) = http1::handshake(io).await?;
        let orders = async {
            while orders.recv().await.is_some() {
                finish(sender.send_request(request()?).await).await;
            }
            Ok(())
        };
        either(connection, orders).await
    };
    // A client that closes may do so before it hands the answer out.
    match ended {
        Ok(()) => exchange.answered(reporter),
        Err(_) => exchange.refused(reporter),
    }
    ended
}

impl Target {
    fn request(&self) -> Result<Request<Empty<Bytes>>> {
        let method = if self.asks_by_get.load(Ordering::Relaxed) { Method::GET } else { Method::HEAD };
        let request = Request::builder().method(method).header("user-agent", "idleguard-scout");
        let request = if self.is_http2 {
            let scheme = if self.tls.is_some() { "https" } else { "http" };
            request.uri(format!("{scheme}://{}{}", self.authority, self.path))
        } else {
            request.uri(&self.path).header("host", &self.authority)
        };
        Ok(request.body(Empty::new())?)
    }
}

/// What hyper knows of a request and the wire does not, and the other way round.
#[derive(Default)]
struct Exchange {
    /// From the request to the end of the answer's body.
    is_under_way: AtomicBool,
    /// What the answer's head said.
    answer: Mutex<Option<Answer>>,
}

impl Exchange {
    /// The answer has ended.
    fn answered(&self, reporter: &Reporter) {
        self.is_under_way.store(false, Ordering::Relaxed);
        if let Some(answer) = self.take() {
            reporter.tell(Seen::Answered(answer));
        }
    }

    /// hyper did not take the answer.
    fn refused(&self, reporter: &Reporter) {
        if self.take().is_some() {
            reporter.tell(Seen::Refused);
        }
    }

    fn take(&self) -> Option<Answer> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Until the connection has ended.
async fn either(
    connection: impl Future<Output = hyper::Result<()>>,
    orders: impl Future<Output = Result<()>>,
) -> Result<()> {
    tokio::pin!(connection, orders);
    tokio::select! {
        ended = &mut connection => ended.map_err(anyhow::Error::new),
        ended = &mut orders => match ended {
            Ok(()) => (&mut connection).await.map_err(anyhow::Error::new),
            Err(error) => Err(error),
        },
    }
}

/// Hands on what passes, and tells what it means.
struct Tap<S> {
    stream: S,
    wire: Wire,
    reporter: Reporter,
    exchange: Arc<Exchange>,
    has_ended: bool,
}

impl<S> Tap<S> {
    fn on_read(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.exchange.answered(&self.reporter); // a body that ends with the connection
            return self.on_ended(Seen::Fin);
        }
        let received = self.wire.on_received(bytes);
        let is_under_way = self.exchange.is_under_way.load(Ordering::Relaxed);
        if let Some(answer) = received.answer {
            *self.exchange.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        }
        // Of HTTP/1.1 the core reads the head alone: what comes behind it is the body.
        if received.is_announced && (!is_under_way || matches!(self.wire, Wire::Http2 { .. })) {
            self.reporter.tell(Seen::Announced);
        }
    }

    fn on_error(&mut self, error: &io::Error) {
        match error.kind() {
            // TLS alone: a FIN without a close_notify before it.
            io::ErrorKind::UnexpectedEof => self.on_ended(Seen::Fin),
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
                self.on_ended(Seen::Rst);
            }
            _ => {}
        }
    }

    fn on_ended(&mut self, how: Seen) {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.reporter.tell(how);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Task<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(task, buffer));
        match &read {
            Ok(()) => self.on_read(buffer.filled().get(before..).unwrap_or_default()),
            Err(error) => self.on_error(error),
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(task, bytes));
        match &written {
            Ok(count) => {
                if self.wire.on_sent(bytes.get(..*count).unwrap_or_default()) {
                    self.reporter.tell(Seen::Asked);
                }
            }
            Err(error) => self.on_error(error),
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}

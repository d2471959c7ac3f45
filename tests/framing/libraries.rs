//! Real libraries as the truth: `hyper` and `h2` on both ends of a pipe whose bytes the framing sees, cut at random.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use idleguard::framing::{Direction, Protocol};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local, yield_now};

use crate::replay::Observed;

// === The tapped pipe ===

struct Tap {
    observed: RefCell<Observed>,
    passed: Cell<u64>,
    /// A small generator of where to cut.
    seed: Cell<u64>,
}

impl Tap {
    /// A pipe of two ends, and the tap on it.
    fn new(seed: u64) -> (Rc<Self>, DuplexStream, DuplexStream) {
        let tap =
            Rc::new(Self { observed: RefCell::new(Observed::new()), passed: Cell::new(0), seed: Cell::new(seed | 1) });
        let (client, near) = duplex(1 << 16);
        let (far, server) = duplex(1 << 16);
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        spawn_local(Rc::clone(&tap).carry(Direction::Request, near_read, far_write));
        spawn_local(Rc::clone(&tap).carry(Direction::Response, far_read, near_write));
        (tap, client, server)
    }

    async fn carry(
        self: Rc<Self>,
        direction: Direction,
        mut from: ReadHalf<DuplexStream>,
        mut to: WriteHalf<DuplexStream>,
    ) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(len) = from.read(&mut buffer).await {
            if len == 0 {
                break;
            }
            let mut rest = &buffer[..len];
            while !rest.is_empty() {
                let (event, after) = rest.split_at(self.cut(rest.len()));
                self.observed.borrow_mut().pass(direction, event);
                rest = after;
            }
            self.passed.set(self.passed.get() + len as u64);
            if to.write_all(&buffer[..len]).await.is_err() {
                break;
            }
        }
        self.observed.borrow_mut().framing.on_eof(direction);
        let _ = to.shutdown().await;
    }

    fn cut(&self, len: usize) -> usize {
        let next = self.seed.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed.set(next);
        let roll = (next >> 33) as usize;
        match roll % 4 {
            0 => len,
            1 => 1,
            2 => 1 + roll % len.min(16),
            _ => 1 + roll % len,
        }
    }

    /// Waits until nobody has anything to do, which is a quiet point.
    async fn settle(&self) {
        let mut before = u64::MAX;
        while before != self.passed.get() {
            before = self.passed.get();
            for _ in 0..32 {
                yield_now().await;
            }
        }
    }

    async fn check(&self, protocol: Protocol, truth: u32, when: &str) {
        self.settle().await;
        let observed = self.observed.borrow();
        assert_eq!(observed.framing.protocol(), protocol, "{when}");
        assert_eq!(observed.framing.in_flight(), truth, "{when}: {}", observed.state());
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

// === HTTP/1 ===

/// A body whose pieces the test sends one by one.
struct Pieces {
    frames: mpsc::UnboundedReceiver<Frame<Bytes>>,
    length: Option<u64>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.frames.poll_recv(context).map(|frame| frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.length == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[derive(Clone, Debug)]
struct Message {
    pieces: Vec<usize>,
    /// `Content-Length`, else chunked.
    length_known: bool,
    /// Behind the chunks, if there are any.
    trailers: bool,
}

#[derive(Clone, Debug)]
struct Exchange {
    method: Method,
    request: Message,
    expect: bool,
    status: StatusCode,
    response: Message,
    /// Which side sends its next piece: `true` the server.
    order: Vec<bool>,
}

fn message() -> impl Strategy<Value = Message> {
    (prop::collection::vec(1_usize..3000, 0..4), any::<bool>(), any::<bool>())
        .prop_map(|(pieces, length_known, trailers)| Message { pieces, length_known, trailers })
}

fn exchange() -> impl Strategy<Value = Exchange> {
    let method = prop::sample::select(vec![Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::OPTIONS]);
    let status = prop::sample::select(vec![200, 200, 200, 201, 204, 304, 404, 500]);
    (method, message(), any::<bool>(), status, message(), prop::collection::vec(any::<bool>(), 10)).prop_map(
        |(method, request, expect, status, response, order)| {
            let bodiless = matches!(method, Method::GET | Method::HEAD | Method::OPTIONS);
            let none = Message { pieces: Vec::new(), length_known: true, trailers: false };
            Exchange {
                expect: expect && !bodiless,
                request: if bodiless { none.clone() } else { request },
                response: if matches!(status, 204 | 304) { none } else { response },
                status: StatusCode::from_u16(status).unwrap(),
                method,
                order,
            }
        },
    )
}

/// One end's view of a message: what is still to be sent, and whether the receiver has seen its end.
struct Transfer {
    sender: Option<mpsc::UnboundedSender<Frame<Bytes>>>,
    unsent: VecDeque<Frame<Bytes>>,
    ended: bool,
}

impl Message {
    fn body(&self) -> (Pieces, Transfer) {
        let (sender, frames) = mpsc::unbounded_channel();
        let mut unsent: VecDeque<_> =
            self.pieces.iter().map(|&len| Frame::data(Bytes::from(vec![b'0'; len]))).collect();
        if self.trailers && !self.length_known {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-end", "yes".parse().unwrap());
            unsent.push_back(Frame::trailers(trailers));
        }
        let length = self.length_known.then(|| self.pieces.iter().sum::<usize>() as u64);
        (Pieces { frames, length }, Transfer { sender: Some(sender), unsent, ended: false })
    }
}

impl Transfer {
    /// Sends the next piece or, after the last, the end; and receives it.
    async fn proceed(&mut self, tap: &Tap, receiver: &mut Incoming) {
        if self.ended {
            return;
        }
        let mut trailers = false;
        match self.unsent.pop_front() {
            Some(frame) => {
                trailers = frame.is_trailers();
                self.sender.as_ref().unwrap().send(frame).ok();
            }
            None => self.sender = None,
        }
        tap.settle().await;
        // The receiver's word, not the sender's. It reads when asked, so the second refusal counts.
        let mut refusals = 0;
        while !self.ended && refusals < 2 {
            match futures_now(receiver.frame()).await {
                Some(Some(frame)) => drop(frame.expect("a body that arrives whole")),
                Some(None) => self.ended = true,
                None => {
                    refusals += 1;
                    tap.settle().await;
                }
            }
        }
        // Nothing follows trailers; a hyper server that has already answered doesn't hand them out.
        self.ended |= trailers || receiver.is_end_stream();
    }
}

/// The future's value if it is ready.
async fn futures_now<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

type Asked = (Request<Incoming>, oneshot::Sender<Response<Pieces>>);

async fn exchanges_over_http1(exchanges: Vec<Exchange>, seed: u64) {
    let (tap, client, server) = Tap::new(seed);
    let (ask, mut asked) = mpsc::unbounded_channel::<Asked>();
    let service = hyper::service::service_fn(move |request| {
        let (reply, answer) = oneshot::channel();
        ask.send((request, reply)).ok();
        answer
    });
    spawn_local(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
    spawn_local(connection);

    for (index, exchange) in exchanges.iter().enumerate() {
        if index > 0 {
            tap.check(Protocol::Http1, 0, "between exchanges").await;
        }
        sender.ready().await.expect("the connection is kept");
        let (body, mut upload) = exchange.request.body();
        let mut request =
            Request::builder().method(&exchange.method).uri("/a").header("host", "a").header("te", "trailers");
        if exchange.expect {
            request = request.header("expect", "100-continue");
        }
        if exchange.request.trailers {
            request = request.header("trailer", "x-end");
        }
        let response = spawn_local(sender.send_request(request.body(body).unwrap()));
        tap.check(Protocol::Http1, 1, "asked").await;
        assert!(!tap.observed.borrow().framing.response_started());
        let (request, reply) = asked.recv().await.unwrap();
        let mut request = request.into_body();
        upload.ended = request.is_end_stream();

        // Some of the request, then the head of the response, then whatever comes.
        let mut order = exchange.order.iter().copied().chain(std::iter::repeat_n([true, false], 12).flatten());
        while order.next() == Some(false) {
            upload.proceed(&tap, &mut request).await;
            tap.check(Protocol::Http1, 1, "uploading").await;
        }
        let (body, mut download) = exchange.response.body();
        let mut answer = Response::builder().status(exchange.status);
        if exchange.response.trailers {
            answer = answer.header("trailer", "x-end");
        }
        reply.send(answer.body(body).unwrap()).ok().unwrap();
        tap.settle().await;
        let mut response = response.await.unwrap().expect("a response").into_body();
        download.ended = response.is_end_stream();
        for server in order {
            let truth = u32::from(!(upload.ended && download.ended));
            tap.check(Protocol::Http1, truth, "exchanging").await;
            if truth == 0 {
                break;
            } else if server {
                download.proceed(&tap, &mut response).await;
            } else {
                upload.proceed(&tap, &mut request).await;
            }
        }
        assert!(upload.ended && download.ended);
        tap.check(Protocol::Http1, 0, "over").await;
        let observed = tap.observed.borrow();
        let done = index as u32 + 1;
        assert_eq!((observed.started, observed.completed, observed.framing.reusable()), (done, done, true));
    }
}

// === HTTP/2 ===

#[derive(Clone, Debug)]
enum Deed {
    Open { end: bool },
    Upload { stream: usize, len: usize, end: bool },
    Answer { stream: usize, end: bool },
    Download { stream: usize, len: usize, end: bool },
    Trailers { stream: usize },
    ClientResets { stream: usize },
    ServerResets { stream: usize },
    Ping,
}

fn deed() -> impl Strategy<Value = Deed> {
    let stream = 0_usize..100;
    prop_oneof![
        4 => any::<bool>().prop_map(|end| Deed::Open { end }),
        4 => (stream.clone(), 0_usize..500, any::<bool>()).prop_map(|(stream, len, end)| Deed::Upload { stream, len, end }),
        4 => (stream.clone(), any::<bool>()).prop_map(|(stream, end)| Deed::Answer { stream, end }),
        4 => (stream.clone(), 0_usize..500, any::<bool>()).prop_map(|(stream, len, end)| Deed::Download { stream, len, end }),
        1 => stream.clone().prop_map(|stream| Deed::Trailers { stream }),
        1 => stream.clone().prop_map(|stream| Deed::ClientResets { stream }),
        1 => stream.prop_map(|stream| Deed::ServerResets { stream }),
        1 => Just(Deed::Ping),
    ]
}

/// A stream as both libraries hold it.
struct Stream {
    upload: h2::SendStream<Bytes>,
    uploading: bool,
    /// Kept: dropping it would reset the stream.
    _request: h2::RecvStream,
    respond: h2::server::SendResponse<Bytes>,
    download: Option<h2::SendStream<Bytes>>,
    answered: bool,
    downloading: bool,
    _response: h2::client::ResponseFuture,
}

async fn streams_over_http2(deeds: Vec<Deed>, seed: u64) {
    let (tap, client, server) = Tap::new(seed);
    let (accept, mut accepted) = mpsc::unbounded_channel();
    spawn_local(async move {
        let mut connection = h2::server::handshake(server).await.unwrap();
        while let Some(Ok(stream)) = connection.accept().await {
            accept.send(stream).ok();
        }
    });
    let (mut sender, mut connection) = h2::client::handshake(client).await.unwrap();
    let mut ping = connection.ping_pong().unwrap();
    spawn_local(connection);
    tap.check(Protocol::Http2, 0, "settings").await;

    let mut open: Vec<Stream> = Vec::new();
    let (mut opened, mut completed) = (0, 0);
    for deed in deeds {
        let count = open.len().max(1);
        match deed {
            Deed::Open { end } => {
                let request = Request::builder().uri("http://a/").body(()).unwrap();
                let (response, upload) = sender.send_request(request, end).unwrap();
                tap.settle().await;
                let (request, respond): (Request<h2::RecvStream>, _) = accepted.recv().await.unwrap();
                opened += 1;
                open.push(Stream {
                    upload,
                    uploading: !end,
                    _request: request.into_body(),
                    respond,
                    download: None,
                    answered: false,
                    downloading: true,
                    _response: response,
                });
            }
            Deed::Upload { stream, len, end } => {
                if let Some(stream) = open.get_mut(stream % count).filter(|stream| stream.uploading) {
                    stream.upload.send_data(vec![1; len].into(), end).unwrap();
                    stream.uploading = !end;
                }
            }
            Deed::Answer { stream, end } => {
                if let Some(stream) = open.get_mut(stream % count).filter(|stream| !stream.answered) {
                    stream.download = Some(stream.respond.send_response(Response::new(()), end).unwrap());
                    stream.answered = true;
                    stream.downloading = !end;
                    completed += u32::from(end);
                }
            }
            Deed::Download { stream, len, end } => {
                if let Some(stream) = open.get_mut(stream % count).filter(|stream| stream.downloading)
                    && let Some(download) = &mut stream.download
                {
                    download.send_data(vec![2; len].into(), end).unwrap();
                    stream.downloading = !end;
                    completed += u32::from(end);
                }
            }
            Deed::Trailers { stream } => {
                if let Some(stream) = open.get_mut(stream % count).filter(|stream| stream.downloading)
                    && let Some(download) = &mut stream.download
                {
                    download.send_trailers(http::HeaderMap::new()).unwrap();
                    stream.downloading = false;
                    completed += 1;
                }
            }
            Deed::ClientResets { stream } => {
                if !open.is_empty() {
                    open.remove(stream % count).upload.send_reset(h2::Reason::CANCEL);
                }
            }
            Deed::ServerResets { stream } => {
                if !open.is_empty() {
                    open.remove(stream % count).respond.send_reset(h2::Reason::CANCEL);
                }
            }
            Deed::Ping => {
                ping.ping(h2::Ping::opaque()).await.unwrap();
            }
        }
        open.retain(|stream| stream.uploading || stream.downloading);
        tap.check(Protocol::Http2, open.len() as u32, "after a deed").await;
        let observed = tap.observed.borrow();
        assert_eq!((observed.started, observed.completed), (opened, completed));
    }
    drop(open);
    tap.check(Protocol::Http2, 0, "all dropped").await;
    assert!(tap.observed.borrow().framing.reusable());
    drop((sender, ping));
    tap.check(Protocol::Http2, 0, "the client leaves").await;
    assert!(!tap.observed.borrow().framing.reusable());
}

proptest! {
    #[test]
    fn hyper_agrees_about_http1(exchanges in prop::collection::vec(exchange(), 1..6), seed: u64) {
        run(exchanges_over_http1(exchanges, seed));
    }

    #[test]
    fn h2_agrees_about_http2(deeds in prop::collection::vec(deed(), 1..40), seed: u64) {
        run(streams_over_http2(deeds, seed));
    }
}

//! HTTP/2: a connection, and its streams, each with its script.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream, client, server};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use crate::{
    far_end::{Run, finished},
    passage::Side,
    record::{Connection, End, Message, MessageEnd},
    script::{Do, Framing, Head, NEVER, Signals, pattern},
};

/// What the streams of a connection share.
struct Shared {
    signals: Arc<Signals>,
    side: Side,
    socket: Mutex<Option<socket2::Socket>>,
    end: Mutex<End>,
    messages: Mutex<Vec<Message>>,
    ping: tokio::sync::Mutex<Option<PingPong>>,
    orders: mpsc::UnboundedSender<Order>,
}

/// What only the owner of the connection can do.
#[derive(Debug)]
enum Order {
    GoAway,
    GoAwayNow,
    Close,
}

impl Shared {
    fn new(stream: &TcpStream, signals: &Arc<Signals>, side: Side) -> (Arc<Self>, mpsc::UnboundedReceiver<Order>) {
        let _ = stream.set_nodelay(true);
        let (orders, receiver) = mpsc::unbounded_channel();
        let shared = Self {
            signals: Arc::clone(signals),
            side,
            socket: Mutex::new(socket2::SockRef::from(stream).try_clone().ok()),
            end: Mutex::new(End::Open),
            messages: Mutex::default(),
            ping: tokio::sync::Mutex::new(None),
            orders,
        };
        (Arc::new(shared), receiver)
    }

    fn sent(&self) {
        self.signals.sent(self.side);
    }

    fn came(&self) {
        self.signals.came(self.side);
    }

    fn end(&self) -> End {
        *self.end.lock().expect("no panic under the lock")
    }

    fn ended(&self, how: End) {
        let mut end = self.end.lock().expect("no panic under the lock");
        if *end == End::Open {
            *end = how;
        }
    }

    /// FIN, or with `reset` RST, when the connection's owner lets go of the other handle.
    fn close(&self, reset: bool) {
        self.ended(End::Ours);
        if let Some(socket) = self.socket.lock().expect("no panic under the lock").take()
            && reset
        {
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
        let _ = self.orders.send(Order::Close); // it may have gone by itself
    }

    async fn closed(&self) {
        let wait = async {
            while self.end() == End::Open {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(NEVER, wait).await.is_err() {
            self.ended(End::Never);
        }
    }

    fn ended_with(&self, result: Result<(), h2::Error>) {
        self.ended(match result {
            Err(error) if error.is_io() => End::Rst,
            _ => End::Fin,
        });
    }

    fn record(&self) -> Connection {
        let mut messages = self.messages.lock().expect("no panic under the lock").clone();
        messages.sort();
        Connection { messages, end: self.end() }
    }
}

fn ended(error: &h2::Error) -> MessageEnd {
    match error.reason() {
        Some(reason) if error.is_reset() => MessageEnd::Reset(reason.into()),
        Some(reason) if error.is_go_away() => MessageEnd::GoAway(reason.into()),
        _ => MessageEnd::Broken,
    }
}

fn headers(message: &mut Message, map: &HeaderMap) {
    for (name, value) in map {
        message.header(name.as_str(), &String::from_utf8_lossy(value.as_bytes()));
    }
}

fn header_map(head: &Head) -> HeaderMap {
    let mut map = HeaderMap::new();
    if let Framing::Length(length) = head.framing {
        map.insert("content-length", length.into());
    }
    for (name, value) in &head.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a script's header name");
        map.append(name, HeaderValue::from_str(value).expect("a script's header value"));
    }
    map
}

fn trailer_map(trailers: &[(&'static str, &'static str)]) -> HeaderMap {
    trailers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

/// One stream, seen from one side.
#[derive(Default)]
struct Stream {
    send: Option<SendStream<Bytes>>,
    body: Option<RecvStream>,
    sent: usize,
    has_ended: bool,
    message: Message,
}

impl Stream {
    /// Steps that are the same for both sides.
    async fn step(&mut self, step: &Do, next: Option<&Do>, shared: &Shared, signals: &Signals) {
        let is_last = matches!(next, Some(Do::End));
        if matches!(step, Do::Data(_) | Do::Trailers(_) | Do::ResetStream(_)) || (*step == Do::End && !self.has_ended) {
            shared.sent();
        }
        match step {
            Do::Data(length) => {
                let data = pattern(self.sent, *length);
                self.sent += length;
                if let Some(send) = &mut self.send {
                    let _ = send.send_data(data, is_last); // the other side may have ended the stream
                    self.has_ended |= is_last;
                }
            }
            Do::End if !self.has_ended => {
                if let Some(send) = &mut self.send {
                    let _ = send.send_data(Bytes::new(), true);
                }
            }
            Do::Trailers(trailers) => {
                if let Some(send) = &mut self.send {
                    let _ = send.send_trailers(trailer_map(trailers));
                }
            }
            Do::ExpectData(length) => self.read(Some(*length), shared).await,
            Do::ExpectEnd => self.read(None, shared).await,
            Do::ExpectClose => {
                self.read(None, shared).await;
                shared.closed().await;
            }
            Do::HalfClose | Do::Fin => shared.close(false),
            Do::Rst => shared.close(true),
            Do::ResetStream(code) => {
                if let Some(send) = &mut self.send {
                    send.send_reset(Reason::from(*code));
                }
            }
            Do::GoAway => drop(shared.orders.send(Order::GoAway)),
            Do::GoAwayNow => drop(shared.orders.send(Order::GoAwayNow)),
            Do::Ping => {
                if let Some(ping) = shared.ping.lock().await.as_mut() {
                    let _ = timeout(NEVER, ping.ping(Ping::opaque())).await;
                }
            }
            Do::Signal(what) => signals.say(what),
            Do::Await(what) => {
                if !signals.wait(what).await {
                    shared.ended(End::Never);
                }
            }
            Do::Pause(time) => tokio::time::sleep(*time).await,
            Do::Head(_) | Do::ExpectHead | Do::End | Do::Raw(_) | Do::Slowly(_) | Do::ExpectReset => {}
        }
    }

    /// Reads the body: to the end, or until that much of it has come.
    async fn read(&mut self, until: Option<usize>, shared: &Shared) {
        let Some(body) = &mut self.body else { return };
        while until.is_none_or(|until| self.message.length < until) {
            match timeout(NEVER, body.data()).await {
                Err(_) => return,
                Ok(Some(Ok(bytes))) => {
                    shared.came();
                    let _ = body.flow_control().release_capacity(bytes.len());
                    self.message.add(&bytes);
                }
                Ok(Some(Err(error))) => {
                    shared.came();
                    self.message.end = ended(&error);
                    self.body = None;
                    return;
                }
                Ok(None) => {
                    let trailers = timeout(NEVER, body.trailers()).await;
                    shared.came();
                    self.message.end = MessageEnd::Complete;
                    match trailers {
                        Ok(Ok(Some(map))) => {
                            let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
                            self.message
                                .trailers
                                .extend(map.iter().map(|(name, value)| (name.to_string(), text(value))));
                        }
                        Ok(Ok(None)) => {}
                        Ok(Err(error)) => self.message.end = ended(&error),
                        Err(_) => self.message.end = MessageEnd::Unfinished,
                    }
                    self.body = None;
                    return;
                }
            }
        }
    }
}

/// A client's connection, its streams done.
pub(crate) struct Client {
    shared: Arc<Shared>,
    /// Without it the connection would end with its last stream.
    _send: Option<client::SendRequest<Bytes>>,
    task: JoinHandle<()>,
}

impl Client {
    /// Runs the streams beside each other; each has its path.
    pub(crate) async fn run(stream: TcpStream, streams: Vec<(String, Vec<Do>)>, signals: Arc<Signals>) -> Self {
        let (shared, mut orders) = Shared::new(&stream, &signals, Side::Client);
        let built = client::Builder::new().enable_push(false).handshake::<_, Bytes>(stream).await;
        let Ok((send, mut connection)) = built else {
            shared.ended(End::Rst);
            return Self { shared, _send: None, task: tokio::spawn(async {}) };
        };
        *shared.ping.lock().await = connection.ping_pong();
        let owner = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            tokio::select! {
                result = &mut connection => owner.ended_with(result),
                Some(Order::Close) = orders.recv() => {}
            }
        });
        let mut running = JoinSet::new();
        for (path, steps) in streams {
            let (send, shared, signals) = (send.clone(), Arc::clone(&shared), Arc::clone(&signals));
            running.spawn(async move { client_stream(send, &path, &steps, &shared, &signals).await });
        }
        while running.join_next().await.is_some() {}
        Self { shared, _send: Some(send), task }
    }

    /// What it saw; closes.
    pub(crate) async fn record(self) -> Connection {
        let record = self.shared.record();
        self.shared.close(false);
        self.task.abort();
        let _ = self.task.await;
        record
    }
}

async fn client_stream(
    mut send: client::SendRequest<Bytes>,
    path: &str,
    steps: &[Do],
    shared: &Shared,
    signals: &Signals,
) {
    let mut stream = Stream::default();
    let mut response: Option<client::ResponseFuture> = None;
    for (at, step) in steps.iter().enumerate() {
        let next = steps.get(at + 1);
        match step {
            Do::Head(head) => {
                let is_connect = head.start == "CONNECT";
                let target =
                    if is_connect { "far.example:443".to_owned() } else { format!("http://case.example{path}") };
                let mut request =
                    Request::builder().method(head.start.as_ref()).uri(target).body(()).expect("a request");
                *request.headers_mut() = header_map(head);
                stream.has_ended = matches!(next, Some(Do::End));
                let _ = poll_fn(|context| send.poll_ready(context)).await;
                shared.sent();
                match send.send_request(request, stream.has_ended) {
                    Ok((future, body)) => {
                        response = Some(future);
                        stream.send = Some(body);
                    }
                    Err(error) => stream.message.end = ended(&error),
                }
            }
            Do::ExpectHead => client_head(&mut response, &mut stream, shared).await,
            Do::ExpectData(_) | Do::ExpectEnd | Do::ExpectClose => {
                while response.is_some() {
                    client_head(&mut response, &mut stream, shared).await;
                }
                stream.step(step, next, shared, signals).await;
            }
            step => stream.step(step, next, shared, signals).await,
        }
    }
    shared.messages.lock().expect("no panic under the lock").push(stream.message);
}

/// The next head, informational or final.
async fn client_head(response: &mut Option<client::ResponseFuture>, stream: &mut Stream, shared: &Shared) {
    let Some(future) = response else { return };
    let next = poll_fn(|context| {
        if let Poll::Ready(Some(Ok(interim))) = future.poll_informational(context) {
            return Poll::Ready(Err(interim));
        }
        Pin::new(&mut *future).poll(context).map(Ok)
    });
    let next = timeout(NEVER, next).await;
    shared.came();
    match next {
        Ok(Err(interim)) => {
            let mut message = Message { start: interim.status().as_u16().to_string(), ..Message::default() };
            headers(&mut message, interim.headers());
            message.end = MessageEnd::Complete;
            shared.messages.lock().expect("no panic under the lock").push(message);
        }
        Ok(Ok(Ok(answer))) => {
            let (parts, body) = answer.into_parts();
            stream.message.start = parts.status.as_u16().to_string();
            headers(&mut stream.message, &parts.headers);
            stream.body = Some(body);
            *response = None;
        }
        Ok(Ok(Err(error))) => {
            stream.message.end = ended(&error);
            *response = None;
        }
        Err(_) => *response = None,
    }
}

/// A far end's connection, until it ends, or the case does.
pub(crate) async fn serve(stream: TcpStream, run: Arc<Run>) -> Connection {
    let (shared, mut orders) = Shared::new(&stream, &run.signals, Side::FarEnd);
    let Ok(mut connection) = server::Builder::new().max_concurrent_streams(200).handshake::<_, Bytes>(stream).await
    else {
        return Connection { messages: Vec::new(), end: End::Rst };
    };
    *shared.ping.lock().await = connection.ping_pong();
    let mut finish = run.finish.subscribe();
    let mut running = JoinSet::new();
    let mut last_words = None;
    loop {
        tokio::select! {
            stream = connection.accept() => match stream {
                Some(Ok((request, respond))) => {
                    let (shared, run) = (Arc::clone(&shared), Arc::clone(&run));
                    running.spawn(async move { far_end_stream(request, respond, &shared, &run).await });
                }
                Some(Err(error)) => { shared.ended_with(Err(error)); break; }
                None => { shared.ended(End::Fin); break; }
            },
            Some(order) = orders.recv() => match order {
                Order::GoAway => connection.graceful_shutdown(),
                Order::GoAwayNow => { connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM); last_words = Some(()); }
                Order::Close => break,
            },
            () = finished(&mut finish), if last_words.is_none() => { shared.ended(End::Ours); break; }
        }
    }
    drop(connection);
    shared.close(false);
    let drain = async { while running.join_next().await.is_some() {} };
    let _ = timeout(Duration::from_secs(2), drain).await; // they wait for nothing any more, but for a signal
    shared.record()
}

async fn far_end_stream(
    request: Request<RecvStream>,
    mut respond: server::SendResponse<Bytes>,
    shared: &Shared,
    run: &Run,
) {
    shared.came();
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or_else(|| parts.uri.to_string(), ToString::to_string);
    let mut stream = Stream { body: Some(body), ..Stream::default() };
    stream.message.start = format!("{} {target}", parts.method);
    stream.message.header(":authority", parts.uri.authority().map(|authority| authority.as_str()).unwrap_or_default());
    headers(&mut stream.message, &parts.headers);
    let steps = run.steps(&target);
    for (at, step) in steps.iter().enumerate() {
        let next = steps.get(at + 1);
        match step {
            Do::Head(head) => {
                let mut response = Response::builder().status(head.start.as_ref()).body(()).expect("a response");
                *response.headers_mut() = header_map(head);
                shared.sent();
                if response.status().is_informational() {
                    let _ = respond.send_informational(response); // the other side may have gone
                    continue;
                }
                stream.has_ended = matches!(next, Some(Do::End));
                stream.send = respond.send_response(response, stream.has_ended).ok();
            }
            Do::ResetStream(code) if stream.send.is_none() => {
                shared.sent();
                respond.send_reset(Reason::from(*code));
            }
            Do::ExpectReset => {
                let reset = poll_fn(|context| match &mut stream.send {
                    Some(send) => send.poll_reset(context),
                    None => respond.poll_reset(context),
                });
                if let Ok(reset) = timeout(NEVER, reset).await {
                    stream.body = None;
                    stream.message.end =
                        reset.map_or_else(|error| ended(&error), |reason| MessageEnd::Reset(reason.into()));
                }
            }
            step => stream.step(step, next, shared, &run.signals).await,
        }
        if shared.end() == End::Ours {
            break;
        }
    }
    if !steps.iter().any(|step| matches!(step, Do::ResetStream(_))) {
        stream.read(None, shared).await;
    }
    shared.messages.lock().expect("no panic under the lock").push(stream.message);
}

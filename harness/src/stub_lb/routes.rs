//! What the load balancer answers.
//!
//! | path | answer |
//! | --- | --- |
//! | `/slow?ms=N` | after N ms |
//! | `/bytes?n=N` | N bytes, with a content length |
//! | `/drip?n=N&ms=M` | N chunks, M ms apart; with `type=T` as that content type |
//! | `/echo` | the request's body, piece by piece as it comes, then the trailer `grpc-status: 0` |
//! | `/keep-alive?timeout=N&max=M` | a line of text, with this `Keep-Alive` header |
//! | `/headers` | the request's headers as a JSON list of `[name, value]`: order, case and repetitions as they came |
//! | `/status?code=N` | this status |
//! | `/abort?how=fin` or `rst` | none: the connection is closed in this way, after `ms=N` |
//! | `/upgrade` | 101, then every byte comes back |
//! | `/lb?idle_timeout_ms=N` | a line of text; from now on idle connections are dropped at this age, in the way that was set |
//! | anything else | a line of text; for a request with a body, its length |

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::{BodyExt, Channel, Full, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode, Version,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, UPGRADE},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};

use super::{connection::Connection, record::How};

type Answer = Response<Ended>;

/// Why a request gets no answer.
#[derive(Debug)]
pub(super) struct Aborted;

impl std::fmt::Display for Aborted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the request asked for an abort")
    }
}

impl std::error::Error for Aborted {}

/// Answers one request.
pub(super) async fn answer(connection: Arc<Connection>, mut request: Request<Incoming>) -> Result<Answer, Aborted> {
    connection.on_request(request.version() == Version::HTTP_2, request.uri().path());
    let target = request.uri().path_and_query().map(|target| target.as_str().to_owned());
    let guard = Guard(connection.clone(), target.unwrap_or_default());
    if request.uri().path() == "/echo" {
        return Ok(echo_body(request).map(|body| Ended { body, _guard: guard }));
    }
    let length = read(request.body_mut()).await;
    let query = Query(request.uri().query().unwrap_or_default().to_owned());
    let mut response = match request.uri().path() {
        "/slow" => {
            sleep(query.millis("ms")).await;
            text("slow\n")
        }
        "/bytes" => text(vec![b'x'; query.number("n") as usize]),
        "/drip" => drip(&query),
        "/keep-alive" => keep_alive(&query),
        "/headers" => headers(&connection, request.headers()),
        "/status" => status(query.number("code")),
        "/abort" => {
            sleep(query.millis("ms")).await;
            connection.end(if query.get("how") == Some("rst") { How::Rst } else { How::Fin });
            return Err(Aborted);
        }
        "/upgrade" => upgrade(&connection, &mut request),
        "/lb" => steer(&connection, &query),
        _ if length > 0 => text(format!("read {length} bytes\n")),
        _ => text("hello\n"),
    };
    if let Some(seconds) = connection.shared.keep_alive() {
        let value = HeaderValue::from_str(&format!("timeout={seconds}")).expect("digits are a header value");
        response.headers_mut().insert("keep-alive", value);
    }
    Ok(response.map(|body| Ended { body, _guard: guard }))
}

async fn read(body: &mut Incoming) -> usize {
    let mut length = 0;
    while let Some(Ok(frame)) = body.frame().await {
        length += frame.data_ref().map_or(0, Bytes::len);
    }
    length
}

fn text(body: impl Into<Bytes>) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Full::new(body.into()).boxed());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn status(code: u64) -> Response<BoxBody<Bytes, Infallible>> {
    let code = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let code = code.unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = text(format!("{}\n", code.as_u16()));
    *response.status_mut() = code;
    response
}

fn drip(query: &Query) -> Response<BoxBody<Bytes, Infallible>> {
    let (pieces, gap) = (query.number("n"), query.millis("ms"));
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
    tokio::spawn(async move {
        for piece in 0..pieces {
            if piece > 0 {
                sleep(gap).await;
            }
            if sender.send_data(format!("drip {piece}\n").into()).await.is_err() {
                return; // the reader has gone
            }
        }
    });
    let mut response = Response::new(body.boxed());
    if let Some(Ok(kind)) = query.get("type").map(HeaderValue::from_str) {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}

fn keep_alive(query: &Query) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = text("hello\n");
    let hints: Vec<_> =
        ["timeout", "max"].iter().filter_map(|key| Some(format!("{key}={}", query.get(key)?))).collect();
    let hints = HeaderValue::from_str(&hints.join(", ")).expect("what came in a URI fits a header value");
    response.headers_mut().insert("keep-alive", hints);
    response
}

fn echo_body(request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
    let kind = request.headers().get(CONTENT_TYPE).cloned();
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
    let mut from = request.into_body();
    tokio::spawn(async move {
        while let Some(Ok(frame)) = from.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            if sender.send_data(data).await.is_err() {
                return; // the reader has gone
            }
        }
        let status = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        let _ = sender.send_trailers(status).await; // the reader may have gone
    });
    let mut response = Response::new(body.boxed());
    response.headers_mut().extend(kind.map(|kind| (CONTENT_TYPE, kind)));
    response
}

fn headers(connection: &Connection, parsed: &HeaderMap) -> Response<BoxBody<Bytes, Infallible>> {
    let latin1 = |bytes: &[u8]| bytes.iter().map(|&byte| char::from(byte)).collect::<String>();
    let raw = connection.head().and_then(|head| {
        let mut lines = [httparse::EMPTY_HEADER; 256];
        let mut request = httparse::Request::new(&mut lines);
        request.parse(&head).ok()?.is_complete().then_some(())?;
        Some(request.headers.iter().map(|line| json!([line.name, latin1(line.value)])).collect::<Vec<_>>())
    });
    let list = raw.unwrap_or_else(|| {
        parsed.iter().map(|(name, value)| json!([name.as_str(), latin1(value.as_bytes())])).collect()
    });
    let mut response = text(Value::Array(list).to_string());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn upgrade(connection: &Connection, request: &mut Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
    let Some(protocol) = request.headers().get(UPGRADE).cloned() else { return status(426) };
    connection.upgrade(hyper::upgrade::on(request));
    let mut response = Response::new(Full::default().boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(UPGRADE, protocol);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

fn steer(connection: &Connection, query: &Query) -> Response<BoxBody<Bytes, Infallible>> {
    let (timeout, mut mode) = (query.millis("idle_timeout_ms"), connection.shared.mode());
    if timeout.is_zero() {
        return status(400);
    }
    mode = mode.with_timeout(timeout);
    connection.shared.control.send_modify(|control| control.mode = mode);
    text(format!("idle connections: {mode:?}\n"))
}

struct Query(String);

impl Query {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    fn number(&self, key: &str) -> u64 {
        self.get(key).and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    fn millis(&self, key: &str) -> Duration {
        Duration::from_millis(self.number(key))
    }
}

/// Tells the connection when an exchange is over, also when it is given up before there is a response.
struct Guard(Arc<Connection>, String);

impl Drop for Guard {
    fn drop(&mut self) {
        if self.0.is_ended() {
            self.0.shared.book().broken.push(std::mem::take(&mut self.1));
        }
        self.0.on_response_end();
    }
}

/// A body that says when hyper has taken the last of it.
pub(super) struct Ended {
    body: BoxBody<Bytes, Infallible>,
    _guard: Guard,
}

impl Body for Ended {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Sends back what comes, until the peer or the load balancer ends it.
pub(super) async fn echo(upgrade: hyper::upgrade::OnUpgrade) {
    if let Ok(upgraded) = upgrade.await {
        let (mut from, mut to) = tokio::io::split(hyper_util::rt::TokioIo::new(upgraded));
        let _ = tokio::io::copy(&mut from, &mut to).await; // an error is the end as well
    }
}

/// Waits for the next change; for ever if there will be none.
pub(super) async fn changed<T>(watch: &mut watch::Receiver<T>) {
    if watch.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

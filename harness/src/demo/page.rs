//! The page: one file without anything from elsewhere, fed by server-sent events.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /` | the page |
//! | `GET /events` | a snapshot of the demo as JSON, several times a second, until the event `end` |
//! | `POST /lb?mode=MODE` | the mode is handed to whoever runs the demo |

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Channel, Full, combinators::BoxBody};
use hyper::{Method, Request, Response, StatusCode, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{broadcast, mpsc},
    task::AbortHandle,
};

const HTML: &str = include_str!("page.html");

/// Snapshots that a slow browser may lag behind before it misses some.
const BACKLOG: usize = 64;

/// A running server. It ends when this is dropped.
#[derive(Debug)]
pub struct Page {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    /// Events as they go out.
    events: broadcast::Sender<Bytes>,
    modes: mpsc::UnboundedSender<String>,
    viewers: AtomicUsize,
}

type Body = BoxBody<Bytes, Infallible>;

impl Page {
    /// Serves it on this loopback port (0 takes a free one). Also returns the modes that viewers choose.
    pub async fn start(port: u16) -> Result<(Self, mpsc::UnboundedReceiver<String>)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .with_context(|| format!("cannot serve the page on 127.0.0.1:{port}"))?;
        let address = listener.local_addr()?;
        let (modes, chosen) = mpsc::unbounded_channel();
        let shared =
            Arc::new(Shared { events: broadcast::Sender::new(BACKLOG), modes, viewers: AtomicUsize::default() });
        let accepting = tokio::spawn(accept(listener, shared.clone())).abort_handle();
        Ok((Self { address, shared, accepting }, chosen))
    }

    /// Where it is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many browsers are looking at it.
    pub fn viewers(&self) -> usize {
        self.shared.viewers.load(Ordering::Relaxed)
    }

    /// Shows this.
    pub fn publish(&self, snapshot: &Value) {
        self.send(format!("data: {snapshot}\n\n"));
    }

    /// Tells the browsers that nothing more will come.
    pub fn end(&self) {
        self.send("event: end\ndata:\n\n".to_owned());
    }

    fn send(&self, event: String) {
        let _ = self.shared.events.send(event.into()); // there may be no viewers
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        let _ = tcp.set_nodelay(true); // fails on a connection that has gone already
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&shared, &request);
                async { Ok::<_, Infallible>(answer) }
            });
            // A browser that goes away is no error.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await;
        });
    }
}

fn answer(shared: &Arc<Shared>, request: &Request<Incoming>) -> Response<Body> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => response(StatusCode::OK, "text/html; charset=utf-8", HTML),
        (&Method::GET, "/events") => events(shared.clone()),
        (&Method::POST, "/lb") => {
            let query = request.uri().query().unwrap_or_default();
            let mode = query.strip_prefix("mode=").unwrap_or_default();
            let _ = shared.modes.send(mode.to_owned()); // nobody may be listening
            response(StatusCode::NO_CONTENT, "text/plain", "")
        }
        _ => response(StatusCode::NOT_FOUND, "text/plain", "not found\n"),
    }
}

fn events(shared: Arc<Shared>) -> Response<Body> {
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(BACKLOG);
    let mut events = shared.events.subscribe();
    shared.viewers.fetch_add(1, Ordering::Relaxed);
    tokio::spawn(async move {
        loop {
            match events.recv().await {
                Ok(event) => {
                    let is_end = event.starts_with(b"event: end");
                    if sender.send_data(event).await.is_err() || is_end {
                        break;
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => break,
            }
        }
        shared.viewers.fetch_sub(1, Ordering::Relaxed);
    });
    let mut response = Response::new(body.boxed());
    headers(&mut response, "text/event-stream");
    response
}

fn response(status: StatusCode, content_type: &'static str, body: &'static str) -> Response<Body> {
    let mut response = Response::new(Full::from(body).boxed());
    *response.status_mut() = status;
    headers(&mut response, content_type);
    response
}

fn headers(response: &mut Response<Body>, content_type: &'static str) {
    use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Nothing from elsewhere: the browser enforces what the page promises.
    let policy = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
}

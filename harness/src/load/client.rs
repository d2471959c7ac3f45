//! One client: a connection, and one request after the other on it.

use std::{error::Error, io, sync::Arc, time::Instant};

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, body::Bytes, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::AbortHandle, time::timeout};

use super::{
    Load,
    report::{Example, Failure, Report},
};

pub(super) struct Client {
    load: Arc<Load>,
    method: Method,
    body: &'static str,
    open: Option<Open>,
    pub(super) report: Report,
}

struct Open {
    sender: http1::SendRequest<Full<Bytes>>,
    task: AbortHandle,
    /// The end of its last response.
    idle_since: Option<Instant>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How an exchange failed, and in what words.
type Failed = (Failure, String);

impl Client {
    pub(super) fn new(load: Arc<Load>, index: usize) -> Self {
        let (method, body) =
            if load.mixed && index % 2 == 1 { (Method::GET, "") } else { (load.method.clone(), load.body) };
        Self { load, method, body, open: None, report: Report::default() }
    }

    /// Sends one request and counts what becomes of it.
    pub(super) async fn exchange(&mut self) {
        let begun = Instant::now();
        let idle_age = self.open.as_ref().and_then(|open| open.idle_since).map(|since| begun - since);
        let limit = self.load.timeout;
        let outcome = timeout(limit, self.attempt()).await;
        match outcome.unwrap_or_else(|_| Err((Failure::Timeout, format!("no response within {limit:?}")))) {
            Ok(()) => {
                self.load.live.succeed();
                self.report.succeed(self.method.as_str(), begun.elapsed());
            }
            Err((failure, detail)) => {
                self.load.live.fail(&detail);
                if !matches!(failure, Failure::Status(_)) {
                    self.open = None;
                }
                self.report.fail(self.method.as_str(), Example { failure, detail, idle_age });
            }
        }
    }

    async fn attempt(&mut self) -> Result<(), Failed> {
        let response = loop {
            let request = self.request();
            let open = self.connected().await?;
            match open.sender.try_send_request(request).await {
                Ok(response) => break response,
                Err(mut error) => match error.take_message() {
                    // Not a byte of it has been sent: the client saw the close in time, and takes a new connection.
                    Some(_) => self.open = None,
                    None => return Err(classify(&error.into_error())),
                },
            }
        };
        let judged = judge(response).await;
        if let Some(open) = &mut self.open {
            open.idle_since = Some(Instant::now());
        }
        judged
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let load = &self.load;
        let mut request = Request::builder().method(self.method.clone()).uri(&load.path);
        if !load.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header("host", load.address.to_string());
        }
        for (name, value) in &load.headers {
            request = request.header(name, value);
        }
        request.body(Full::from(self.body)).expect("a well-formed method, path and headers")
    }

    async fn connected(&mut self) -> Result<&mut Open, Failed> {
        let usable = match &mut self.open {
            Some(open) => open.sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            self.open = None;
        }
        match &mut self.open {
            Some(_) => {}
            none @ None => {
                let connect = |error: io::Error| (Failure::Connect, error.to_string());
                let tcp = TcpStream::connect(self.load.address).await.map_err(connect)?;
                tcp.set_nodelay(true).map_err(connect)?;
                let (sender, connection) =
                    http1::handshake(TokioIo::new(tcp)).await.map_err(|error| classify(&error))?;
                let task = tokio::spawn(connection).abort_handle();
                self.report.connections += 1;
                *none = Some(Open { sender, task, idle_since: None });
            }
        }
        Ok(self.open.as_mut().expect("just opened"))
    }
}

async fn judge(response: Response<Incoming>) -> Result<(), Failed> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| (Failure::Truncated, words(&error)))?.to_bytes();
    if parts.status.is_success() {
        return Ok(());
    }
    let mut detail = parts.status.to_string();
    for (name, value) in &parts.headers {
        if name.as_str().starts_with("x-envoy-") {
            detail.push_str(&format!(", {name}: {}", String::from_utf8_lossy(value.as_bytes())));
        }
    }
    detail.push_str(": ");
    detail.push_str(&String::from_utf8_lossy(&body[..body.len().min(160)]));
    Err((Failure::Status(parts.status.as_u16()), detail))
}

fn classify(error: &hyper::Error) -> Failed {
    let io = std::iter::successors(error.source(), |&error| error.source())
        .find_map(|source| source.downcast_ref::<io::Error>())
        .map(io::Error::kind);
    let failure = match io {
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => Failure::Reset,
        Some(io::ErrorKind::UnexpectedEof) => Failure::ClosedBeforeResponse,
        _ if error.is_incomplete_message() || error.is_closed() => Failure::ClosedBeforeResponse,
        _ => Failure::Other,
    };
    (failure, words(error))
}

fn words(error: &hyper::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

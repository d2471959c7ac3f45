//! One HTTP/1.1 request on a connection of its own: for admin interfaces and for looking at one answer.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// A whole response.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Response {
    /// The body as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// What the header says, if it is there once and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Asks for a path, within ten seconds.
pub async fn get(address: SocketAddr, path: &str) -> Result<Response> {
    send(address, "GET", path, &[], "").await
}

/// Sends a request with these headers and this body, within ten seconds. Header values may be any bytes.
pub async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &[u8])],
    body: &str,
) -> Result<Response> {
    let exchange = async {
        let tcp = TcpStream::connect(address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header("host", address.to_string());
        }
        for &(name, value) in headers {
            request = request.header(name, value);
        }
        let response = sender.send_request(request.body(Full::new(Bytes::from(body.to_owned())))?).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        connection.abort();
        anyhow::Ok(Response { status: parts.status, headers: parts.headers, body })
    };
    timeout(Duration::from_secs(10), exchange)
        .await
        .with_context(|| format!("{method} http://{address}{path}: no answer within ten seconds"))?
        .with_context(|| format!("{method} http://{address}{path}"))
}

//! Requests written byte by byte: their lines' order, case and odd bytes stay, and so does what comes before them.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::reference::{Line, lines};

/// What came of a request for the stub LB's `/headers`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The header lines that the application got, names in lower case, sorted; none if it didn't get the request.
    pub(crate) headers: Vec<Line>,
}

impl Answer {
    /// The values of a header, as text.
    pub(crate) fn values(&self, name: &str) -> Vec<String> {
        let own = self.headers.iter().filter(|(present, _)| present == name.as_bytes());
        own.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }

    /// The only value of a header, as text.
    pub(crate) fn value(&self, name: &str) -> Option<String> {
        let [value] = <[String; 1]>::try_from(self.values(name)).ok()?;
        Some(value)
    }

    /// Does this text stand anywhere in the lines?
    pub(crate) fn mentions(&self, text: &str) -> bool {
        self.headers.iter().any(|(_, value)| String::from_utf8_lossy(value).contains(text))
    }
}

/// What a client claims about itself, in every way.
pub(crate) const CLAIMS: [(&str, &str); 15] = [
    ("X-Forwarded-For", "6.6.6.6"),
    ("x-forwarded-for", "6.6.6.6, 127.0.0.1"),
    ("X-Real-IP", "6.6.6.6"),
    ("x-real-ip", "6.6.6.6"),
    ("X_Real_IP", "6.6.6.6"),
    ("x_forwarded-for", "6.6.6.6"),
    ("Forwarded", "for=6.6.6.6"),
    ("True-Client-IP", "6.6.6.6"),
    ("CF-Connecting-IP", "6.6.6.6"),
    ("X-Client-IP", "6.6.6.6"),
    ("Client-IP", "6.6.6.6"),
    ("X.Real.IP", "6.6.6.6"),
    ("X-Original-Forwarded-For", "6.6.6.6"),
    ("x~forwarded!for", "6.6.6.6"),
    ("X-Envoy-External-Address", "6.6.6.6"),
];

/// Sends a request on a new connection.
pub(crate) async fn ask(to: SocketAddr, headers: &[(&str, &str)]) -> Answer {
    ask_behind(to, b"", headers).await
}

/// Sends a request on a new connection, behind these bytes, for example a PROXY protocol header.
pub(crate) async fn ask_behind(to: SocketAddr, before: &[u8], headers: &[(&str, &str)]) -> Answer {
    let headers: Vec<Line> = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let tcp = TcpStream::connect(to).await.expect("a connection");
    exchange(tcp, before, &headers).await.expect("an answer")
}

/// As [`ask_behind`], from one of this machine's addresses; `None` if Envoy closes the connection without an answer.
pub(crate) async fn ask_from(
    from: SocketAddr,
    to: SocketAddr,
    before: &[u8],
    headers: &[(&str, &str)],
) -> Option<Answer> {
    let headers: Vec<Line> = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(from).expect("a loopback address");
    exchange(socket.connect(to).await.expect("a connection"), before, &headers).await
}

/// Sends a request, and reads to the end of the connection; `None` if nothing came.
pub(crate) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    before: &[u8],
    headers: &[Line],
) -> Option<Answer> {
    let mut request = [before, b"GET /headers HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n"].concat();
    for (name, value) in headers {
        request.extend([&name[..], b": ", value, b"\r\n"].concat());
    }
    request.extend(b"\r\n");
    exchange_bytes(stream, &request).await
}

/// Sends these bytes, and reads to the end of the connection; `None` if nothing came.
pub(crate) async fn exchange_bytes(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> Option<Answer> {
    let (status, body) = exchange_for_body(&mut stream, request).await?;
    let received: Value = serde_json::from_slice(&body).unwrap_or(Value::Array(Vec::new()));
    let mut headers = lines(&received);
    headers.iter_mut().for_each(|(name, _)| name.make_ascii_lowercase());
    headers.sort();
    Some(Answer { status, headers })
}

/// The same, for a body of any kind. What is chunked is left so.
pub(crate) async fn exchange_for_body(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &[u8],
) -> Option<(u16, Vec<u8>)> {
    let mut response = Vec::new();
    let exchange = async {
        let _ = stream.write_all(request).await; // Envoy may close before it has read all
        let _ = stream.read_to_end(&mut response).await;
    };
    timeout(Duration::from_secs(10), exchange).await.expect("the end of the connection within ten seconds");
    let head_end = response.windows(4).position(|four| four == b"\r\n\r\n")?;
    let status = std::str::from_utf8(&response[9..12]).ok()?.parse().ok()?;
    Some((status, response[head_end + 4..].to_vec()))
}

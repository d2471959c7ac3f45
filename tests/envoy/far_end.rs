//! An application that tells what it gets: the lines of the request, trailers among them, as JSON. It redirects
//! `/redirect/3` to `/redirect/2` and so on, and takes every upgrade.

use std::net::{Ipv4Addr, SocketAddr};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Starts one for HTTP/1.1, which ends with the test.
pub(crate) async fn http1() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// One request after the other, until the other side closes.
async fn serve(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    loop {
        let head_end = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                return;
            }
        };
        let mut rest = bytes.split_off(head_end);
        let head = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        let mut received = lines(&bytes);
        if head.contains("transfer-encoding: chunked") {
            let trailers = loop {
                let last = rest.windows(3).position(|three| three == b"0\r\n").filter(|_| rest.ends_with(b"\r\n\r\n"));
                if let Some(at) = last {
                    break rest.split_off(at);
                }
                if !matches!(stream.read_buf(&mut rest).await, Ok(1..)) {
                    return;
                }
            };
            received.extend(lines(&trailers));
            rest.clear();
        }
        let redirected =
            head.strip_prefix("get /redirect/").and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
        let body = Value::from(received).to_string();
        let (answer, is_last) = match redirected {
            Some(more @ 1..) => {
                let to = format!("http://app.example/redirect/{}", more - 1);
                (format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"), false)
            }
            _ if head.contains("\r\nupgrade:") => (
                format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n{body}"),
                true,
            ),
            _ => (format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()), false),
        };
        if stream.write_all(answer.as_bytes()).await.is_err() || is_last {
            return;
        }
        bytes = rest;
    }
}

/// The header lines behind the first line, each byte as the character of the same number.
fn lines(text: &[u8]) -> Vec<Value> {
    let text: String = text.iter().map(|byte| char::from(*byte)).collect();
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some(json!([name, value.trim_matches([' ', '\t'])]))
    };
    text.split("\r\n").skip(1).filter_map(line).collect()
}

/// Starts one for HTTP/2 without TLS, which ends with the test.
pub(crate) async fn http2() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    });
    address
}

async fn answer(request: Request<Incoming>) -> hyper::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?;
    let all = head.headers.iter().chain(body.trailers().into_iter().flatten());
    let line = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())])
    };
    Ok(Response::new(Full::new(Value::from(all.map(line).collect::<Vec<_>>()).to_string().into())))
}

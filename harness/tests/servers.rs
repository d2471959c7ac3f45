//! Real servers keep connections as long as they are told to.

use std::time::Duration;

use idleguard_harness::{
    load::{Load, Pattern},
    project,
    servers::Server,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

async fn keeps_for_a_second(server: anyhow::Result<Server>, announces: bool) {
    let Some(server) = project::or_skip(server) else { return };
    let gap = (Duration::from_millis(100), Duration::from_millis(300));
    let report = Load::post(server.address(), Pattern::Scattered { gap }).clients(5).run(Duration::from_secs(2)).await;
    assert_eq!((report.failed(), report.connections), (0, 5), "POST is kept alive: {report}");

    let mut tcp = TcpStream::connect(server.address()).await.expect("a connection");
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n").await.expect("sent");
    let mut all = Vec::new();
    timeout(Duration::from_secs(4), tcp.read_to_end(&mut all)).await.expect("an end in time").expect("by FIN");
    let text = String::from_utf8_lossy(&all).to_lowercase();
    assert!(text.starts_with("http/1.1 200"), "{text}");
    assert_eq!(text.contains("keep-alive: timeout="), announces, "{text}");
}

#[tokio::test]
async fn nginx() {
    keeps_for_a_second(Server::nginx(Duration::from_secs(1)).await, false).await;
}

#[tokio::test]
async fn haproxy() {
    keeps_for_a_second(Server::haproxy(Duration::from_secs(1)).await, false).await;
}

#[tokio::test]
async fn node() {
    keeps_for_a_second(Server::node(Duration::from_secs(1), false).await, true).await;
    keeps_for_a_second(Server::node(Duration::from_secs(1), true).await, false).await;
}

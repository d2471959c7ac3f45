//! A client that says exactly what it is told to, when it is told to.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long anything may take that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Raw {
    stream: TcpStream,
    /// What has come and has not been asked for.
    pending: Vec<u8>,
}

impl Raw {
    pub(super) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("an open connection");
        Self { stream, pending: Vec::new() }
    }

    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("an open connection");
    }

    /// Reads up to and including `mark`, and returns it as text.
    pub(super) async fn until(&mut self, mark: &str) -> String {
        assert!(!mark.is_empty(), "nothing to wait for");
        loop {
            if let Some(at) = self.pending.windows(mark.len()).position(|window| window == mark.as_bytes()) {
                let taken: Vec<_> = self.pending.drain(..at + mark.len()).collect();
                return String::from_utf8_lossy(&taken).into_owned();
            }
            let mut buffer = [0; 4096];
            let so_far = String::from_utf8_lossy(&self.pending).into_owned();
            match timeout(PATIENCE, self.stream.read(&mut buffer)).await {
                Ok(Ok(0)) => panic!("closed before {mark:?}, after {so_far:?}"),
                Ok(Ok(length)) => self.pending.extend_from_slice(&buffer[..length]),
                Ok(Err(error)) => panic!("{error} before {mark:?}, after {so_far:?}"),
                Err(_) => panic!("no {mark:?} within {PATIENCE:?}, after {so_far:?}"),
            }
        }
    }

    /// Waits for the other side to close, without another byte.
    pub(super) async fn closed(&mut self) {
        let mut buffer = [0; 64];
        let end = timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("a close in time");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}: {buffer:?}");
    }
}

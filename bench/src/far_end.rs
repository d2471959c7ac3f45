//! A far end that costs next to nothing: fixed answers, no framing library, so that Envoy is the one that works.
//!
//! | path | answer |
//! | --- | --- |
//! | `/hold` | a few bytes, when [`FarEnd::release`] is called |
//! | `/64k` | 64 KiB |
//! | `/large` | 1 MB |
//! | anything else | a few bytes |

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime,
    sync::{oneshot, watch},
};

/// The body of `/large`, in bytes.
pub const LARGE: usize = 1_000_000;

/// A running far end. It ends when this is dropped.
#[derive(Debug)]
pub struct FarEnd {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    _stop: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Shared {
    small: Vec<u8>,
    medium: Vec<u8>,
    large: Vec<u8>,
    held: AtomicU64,
    release: watch::Sender<u64>,
}

impl FarEnd {
    /// Listens on a free port of 127.0.0.1, 127.0.0.2, … : each address has some 28,000 ports for connections to it.
    pub fn start(addresses: u8) -> io::Result<Self> {
        Self::on((1..=addresses).map(|last| Ipv4Addr::new(127, 0, 0, last)))
    }

    /// Listens on a free port of every address.
    pub fn everywhere() -> io::Result<Self> {
        Self::on([Ipv4Addr::UNSPECIFIED])
    }

    fn on(addresses: impl IntoIterator<Item = Ipv4Addr>) -> io::Result<Self> {
        let answer = |body: &str| {
            format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        };
        let shared = Arc::new(Shared {
            small: answer("hello, here is the far end\n").into_bytes(),
            medium: answer(&"x".repeat(64 * 1024)).into_bytes(),
            large: answer(&"x".repeat(LARGE)).into_bytes(),
            held: AtomicU64::new(0),
            release: watch::Sender::new(0),
        });
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let mut listeners = Vec::new();
        let mut bound = Vec::new();
        {
            let _inside = runtime.enter();
            for address in addresses {
                let socket = TcpSocket::new_v4()?;
                socket.bind((address, 0).into())?;
                let listener = socket.listen(4096)?;
                bound.push(listener.local_addr()?);
                listeners.push(listener);
            }
        }
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new().name("far-end".into()).spawn({
            let shared = shared.clone();
            move || {
                runtime.block_on(async {
                    for listener in listeners {
                        tokio::spawn(accept(listener, shared.clone()));
                    }
                    let _ = stopped.await; // its end is what is waited for
                });
            }
        })?;
        Ok(Self { addresses: bound, shared, _stop: stop })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// How many requests wait for their release.
    pub fn held(&self) -> u64 {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// Answers all that wait.
    pub fn release(&self) {
        self.shared.release.send_modify(|count| *count += 1);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => drop(tokio::spawn(serve(tcp, shared.clone()))),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await, // out of descriptors, for now
        }
    }
}

/// Requests without bodies, one after the other, each in one piece or a few.
async fn serve(mut tcp: TcpStream, shared: Arc<Shared>) {
    let _ = tcp.set_nodelay(true); // fails on a connection that has gone already
    let mut release = shared.release.subscribe();
    let mut head = Vec::new();
    loop {
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            match tcp.read_buf(&mut head).await {
                Ok(length) if length > 0 => {}
                _ => return,
            }
        }
        let answers = [("/64k", &shared.medium), ("/large", &shared.large)];
        let asked = |path: &str| head.strip_prefix(b"GET ").is_some_and(|rest| rest.starts_with(path.as_bytes()));
        let answer = answers.into_iter().find(|(path, _)| asked(path)).map_or(&shared.small, |(_, answer)| answer);
        if head.starts_with(b"GET /hold") {
            release.mark_unchanged();
            shared.held.fetch_add(1, Ordering::Relaxed);
            let released = release.changed().await;
            shared.held.fetch_sub(1, Ordering::Relaxed);
            if released.is_err() {
                return;
            }
        }
        if tcp.write_all(answer).await.is_err() {
            return;
        }
    }
}

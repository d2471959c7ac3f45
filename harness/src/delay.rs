//! A relay that delays bytes and closes, each way, as distance does.
//!
//! On loopback a FIN is seen within microseconds. Across a network the far end's close is on its way for a while, and a
//! request sent meanwhile meets a closed connection.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime,
    sync::{mpsc, oneshot},
    time::sleep_until,
};

/// A running relay. It ends when this is dropped.
#[derive(Debug)]
pub struct DelayRelay {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What travels.
enum Packet {
    Bytes(Vec<u8>),
    Fin,
    Rst,
}

impl DelayRelay {
    /// Listens on `listen` and passes everything to `target` and back, each way `delay` later.
    pub fn start(listen: SocketAddr, target: SocketAddr, delay: Duration) -> io::Result<Self> {
        let listener = crate::listen::listen(listen)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("delay-relay".into()).spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listening socket");
                let accept = async {
                    while let Ok((near, _)) = listener.accept().await {
                        tokio::spawn(relay(near, target, delay));
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for DelayRelay {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn relay(near: TcpStream, target: SocketAddr, delay: Duration) {
    let Ok(far) = TcpStream::connect(target).await else { return };
    // Fails only on a connection that has gone already, as reading will tell.
    let _ = near.set_nodelay(true).and(far.set_nodelay(true));
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let mut there = pin!(one_way(near_read, far_write, delay));
    let mut back = pin!(one_way(far_read, near_write, delay));
    // A reset ends both ways; the sockets are closed when the halves of both are dropped.
    tokio::select! {
        reset = &mut there => if !reset { back.await; },
        reset = &mut back => if !reset { there.await; },
    }
}

/// True if it ended by RST.
async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) -> bool {
    let (sender, mut receiver) = mpsc::channel(1024);
    let read = async move {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let packet = match from.read(&mut buffer).await {
                Ok(0) => Packet::Fin,
                Ok(length) => Packet::Bytes(buffer[..length].to_vec()),
                Err(_) => Packet::Rst,
            };
            let last = !matches!(packet, Packet::Bytes(_));
            if sender.send((Instant::now() + delay, packet)).await.is_err() || last {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, packet)) = receiver.recv().await {
            sleep_until(due.into()).await;
            let result = match packet {
                Packet::Bytes(bytes) => to.write_all(&bytes).await,
                Packet::Fin => to.shutdown().await,
                Packet::Rst => {
                    let _ = SockRef::from(to.as_ref()).set_linger(Some(Duration::ZERO));
                    to.forget(); // dropping it would send a FIN first
                    return true;
                }
            };
            if result.is_err() {
                return false;
            }
        }
        false
    };
    tokio::join!(read, write).1
}

//! The socket under hyper: tells the connection of every byte, and carries out what has been decided about it.

use std::{
    io,
    mem::size_of,
    os::fd::AsRawFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::{
    connection::{Arrival, Connection},
    record::How,
};

/// Plain or TLS.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

/// A socket whose bytes are watched.
pub(super) struct Socket {
    stream: Stream,
    connection: Arc<Connection>,
}

impl Socket {
    pub(super) fn new(stream: Stream, connection: Arc<Connection>) -> Self {
        Self { stream, connection }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.connection.announces() {
            // What an empty socket buffer takes at once.
            let _ = self
                .stream
                .tcp()
                .try_write(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
        if self.connection.ends_by_reset() {
            // Fails if the peer has reset the connection already, which is just as well.
            let _ = SockRef::from(self.stream.tcp()).set_linger(Some(Duration::ZERO));
        }
        self.connection.on_closed(Instant::now());
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let before = buf.filled().len();
            let result = match &mut self.stream {
                Stream::Plain(tcp) => ready!(Pin::new(tcp).poll_read(cx, buf)),
                Stream::Tls(tls) => ready!(Pin::new(tls).poll_read(cx, buf)),
            };
            if let Err(error) = result {
                let reset = error.kind() == io::ErrorKind::ConnectionReset;
                self.connection.on_peer_closed(if reset { How::Rst } else { How::Fin });
                return Poll::Ready(Err(error));
            }
            let bytes = &buf.filled()[before..];
            if bytes.is_empty() {
                self.connection.on_peer_closed(How::Fin);
                return Poll::Ready(Ok(()));
            }
            match self.connection.on_read(bytes, arrival(self.stream.tcp())) {
                Arrival::Deliver => return Poll::Ready(Ok(())),
                Arrival::Discard => buf.set_filled(before),
                Arrival::Reset => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        })?;
        self.connection.on_written(Instant::now());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        })?;
        self.connection.on_flushed(Instant::now());
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.connection.ends_by_reset() {
            return Poll::Ready(Ok(())); // a FIN must not come first
        }
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// When the bytes just read reached this machine, to a few milliseconds.
///
/// On a busy machine they may have waited in the kernel: judged by the time of reading, a request that came in time
/// would be taken for a stale one, and the failure would be the test's own.
#[expect(unsafe_code, reason = "TCP_INFO has no safe wrapper")]
fn arrival(tcp: &TcpStream) -> Instant {
    let now = Instant::now();
    // SAFETY: `tcp_info` is plain old data, and the kernel writes at most `length` bytes of it.
    let (info, result) = unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        let target = std::ptr::from_mut(&mut info).cast();
        let result = libc::getsockopt(tcp.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, target, &mut length);
        (info, result)
    };
    let waited = if result == 0 { Duration::from_millis(info.tcpi_last_data_recv.into()) } else { Duration::ZERO };
    now.checked_sub(waited).unwrap_or(now)
}

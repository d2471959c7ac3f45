//! A TCP connection that reads while it writes, so that nobody waits for the other for ever.

use std::{io, sync::Arc, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    passage::Side,
    record::End,
    script::{NEVER, Signals},
};

/// The connection, and what has come and was not looked at yet.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: Option<TcpStream>,
    pub(crate) input: BytesMut,
    pub(crate) end: End,
    slow: Option<usize>,
    noted: Option<(Arc<Signals>, Side)>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        Self { stream: Some(stream), input: BytesMut::new(), end: End::Open, slow: None, noted: None }
    }

    /// No connection, only what came on one.
    pub(crate) fn ended(bytes: &[u8]) -> Self {
        Self { stream: None, input: bytes.into(), end: End::Fin, slow: None, noted: None }
    }

    /// The same; when this side sends and receives is noted.
    pub(crate) fn noted(mut self, signals: &Arc<Signals>, side: Side) -> Self {
        self.noted = Some((Arc::clone(signals), side));
        self
    }

    fn sends(&self) {
        if let Some((signals, side)) = &self.noted {
            signals.sent(*side);
        }
    }

    fn receives(&self) {
        if let Some((signals, side)) = &self.noted {
            signals.came(*side);
        }
    }

    pub(crate) fn slowly(&mut self, bytes: usize) {
        self.slow = Some(bytes);
    }

    /// Waits until there is something to read, and reads it.
    pub(crate) async fn wait(&mut self) {
        if let Some(stream) = &self.stream {
            let _ = stream.readable().await; // reading says what is wrong
        }
        self.read();
    }

    /// Reads more; false if nothing more will come.
    pub(crate) async fn fill(&mut self) -> bool {
        if self.end != End::Open {
            return false;
        }
        let Some(stream) = &self.stream else { return false };
        if self.slow.is_some() {
            sleep(Duration::from_millis(1)).await;
        }
        match timeout(NEVER, stream.readable()).await {
            Err(_) => self.end = End::Never,
            Ok(_) => self.read(),
        }
        self.end == End::Open
    }

    /// Reads what is there.
    pub(crate) fn read(&mut self) {
        let Some(stream) = &self.stream else { return };
        let mut buffer = [0; 16 * 1024];
        let limit = self.slow.unwrap_or(buffer.len()).min(buffer.len());
        match stream.try_read(&mut buffer[..limit]) {
            Ok(0) => self.end = End::Fin,
            Ok(length) => self.input.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => self.end = End::Rst,
        }
        self.receives();
    }

    /// Writes, and reads meanwhile. That the other side wants no more is seen when reading.
    pub(crate) async fn send(&mut self, mut bytes: Bytes) {
        if !bytes.is_empty() {
            self.sends();
        }
        while !bytes.is_empty() && matches!(self.end, End::Open | End::Fin) {
            let Some(stream) = &self.stream else { return };
            // Once the other side has sent FIN its socket is readable for good.
            let read = self.end == End::Open && self.slow.is_none() && self.input.len() < 8 * 1024 * 1024;
            let interest = if read { Interest::READABLE | Interest::WRITABLE } else { Interest::WRITABLE };
            let Ok(Ok(ready)) = timeout(NEVER, stream.ready(interest)).await else {
                self.end = End::Never;
                return;
            };
            if ready.is_writable() {
                match stream.try_write(&bytes) {
                    Ok(length) => bytes.advance(length),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => {
                        // What came before the other side gave up can still be read.
                        while self.end == End::Open && self.slow.is_none() {
                            let before = self.input.len();
                            self.read();
                            if self.input.len() == before {
                                break;
                            }
                        }
                        return;
                    }
                }
            }
            if read && ready.is_readable() {
                self.read();
            }
        }
    }

    /// Sends FIN; can still read.
    pub(crate) fn half_close(&mut self) {
        if let Some(stream) = &self.stream {
            self.sends();
            let _ = SockRef::from(stream).shutdown(std::net::Shutdown::Write);
        }
    }

    /// Sends FIN. Whether the other side's end had come in the moment before is chance, where the script does not wait for it.
    pub(crate) fn close(&mut self) {
        if self.stream.take().is_some() && self.end != End::Never {
            self.end = End::Ours;
            self.sends();
        }
    }

    pub(crate) fn reset(&mut self) {
        if let Some(stream) = &self.stream {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
        self.close();
    }

    /// Closes in such a way that afterwards the other side is known to have closed, too; what came is not looked at.
    pub(crate) async fn finish(&mut self) {
        self.read();
        if self.end != End::Open {
            return;
        }
        self.half_close();
        let mut length = self.input.len();
        while self.fill().await {
            length = length.max(self.input.len());
        }
        if self.end != End::Never {
            self.end = End::Ours;
        }
        self.stream = None;
    }
}

//! Listening sockets that a crowd can't overrun.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

/// Connections that may wait to be accepted. The standard library's 128 are fewer than the clients of one burst, and a
/// connection beyond them is tried again only after a second.
const BACKLOG: i32 = 4_096;

/// Listens, without blocking; port 0 takes a free one.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    socket2::SockRef::from(&listener).listen(BACKLOG)?; // the second call changes the first one's number
    listener.set_nonblocking(true)?;
    Ok(listener)
}

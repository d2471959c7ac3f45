//! Follows the messages on one connection: is an exchange in flight?
//!
//! An idle age may only be counted between exchanges, so somebody must know where they end. Bytes alone don't say: a
//! response can pause for longer than any idle limit. So both directions are followed, but only heads, chunk lines and
//! frame headers are looked at; everything else is counted by the lengths that they announce and never copied.
//!
//! What can't be followed is opaque from there on: busy while the last byte went towards the far end. A guess that an
//! exchange is over is never made: of two readings, the one that ends later holds, or the connection is opaque.
//!
//! The state is a function of the bytes alone, in the order in which they passed: where events cut them doesn't matter.
//!
//! ```
//! use idleguard::framing::{Direction, Framing};
//!
//! let mut framing = Framing::new();
//! let mut pass = |direction, bytes: &[u8]| {
//!     framing.advance(direction, bytes.len() as u64, |offset, max_len| {
//!         Some(bytes[offset as usize..][..max_len as usize].to_vec())
//!     });
//!     framing.in_flight()
//! };
//! assert_eq!(pass(Direction::Request, b"GET / HTTP/1.1\r\nHost: example\r\n\r\n"), 1);
//! assert_eq!(pass(Direction::Response, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"), 1);
//! assert_eq!(pass(Direction::Response, b"hi"), 0);
//! ```

mod chunked;
mod event;
mod head;
mod http1;
mod http2;

use std::time::Duration;

use event::{Event, Window};
use http1::Http1;
use http2::{Http2, PREFACE};

/// Which way bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Towards the far end.
    Request,
    /// From the far end.
    Response,
}

/// What a connection turned out to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// No byte yet, or too few to tell HTTP/2 from anything else.
    Unknown,
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Another protocol by agreement: after a 101 (WebSocket, `h2c`), or a `CONNECT` that succeeded.
    Tunnel,
    /// Not followed, or no longer.
    Opaque(OpaqueCause),
}

/// Why a connection is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpaqueCause {
    /// It doesn't begin as HTTP does, or bytes stand where a message would have to begin.
    NotHttp,
    /// A head that breaks the grammar.
    BadHead,
    /// A head of more than 64 KiB or 1,024 fields.
    HeadTooLong,
    /// Lengths that contradict each other, can't be read, or may not be there.
    BadLength,
    /// A chunk line, or the end of a chunk, that breaks the grammar.
    BadChunk,
    /// A response that no request waits for, or an upgrade that none asked for.
    Unsolicited,
    /// More than 16 pipelined requests, or 4,096 streams.
    TooManyExchanges,
    /// An HTTP/2 frame that may not stand there.
    BadFrame,
    /// The host didn't hand out the bytes.
    Refused,
}

/// What the far end says about the connection (`Keep-Alive: timeout=5, max=100`, RFC 2068 §19.7.1).
///
/// The values are the far end's word: up to `u32::MAX` each, larger ones are cut down to that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeepAlive {
    /// How long it keeps the connection open without a request, in whole seconds.
    pub timeout: Option<Duration>,
    /// How many more requests it will take on the connection.
    pub max: Option<u32>,
}

/// What the bytes of one event changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Requests that began: on HTTP/1 with their first byte, on HTTP/2 with the frame header that opens a stream.
    pub requests_started: u32,
    /// Responses that ended, whether or not their requests have; a 101 that makes a tunnel, too. Not those of streams
    /// that were reset or refused.
    pub responses_completed: u32,
    /// The hint of the last final HTTP/1 response head in the event that had one. A response without a hint doesn't
    /// take back an earlier one: what the far end last said about its timeout still holds.
    pub keep_alive: Option<KeepAlive>,
    /// Somebody said that the connection will take no other exchange, see [`Framing::reusable`].
    pub no_reuse: bool,
}

impl Progress {
    fn start_request(&mut self) {
        self.requests_started = self.requests_started.saturating_add(1);
    }

    fn complete_response(&mut self) {
        self.responses_completed = self.responses_completed.saturating_add(1);
    }

    fn retire(&mut self) {
        self.no_reuse = true;
    }
}

/// How many bytes are to come; aligned as a `u32` is, because Wasm reads it as fast and nothing has to be padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(Rust, packed(4))]
struct Bytes(u64);

/// Follows one connection; see the module's documentation.
///
/// At most 36 bytes in Wasm. There is heap memory only behind a head that has not arrived completely, and
/// for the streams of HTTP/2.
#[derive(Debug)]
pub struct Framing {
    state: State,
    reusable: bool,
}

#[cfg(target_arch = "wasm32")]
const _: () = assert!(size_of::<Framing>() <= 36);

#[derive(Debug)]
enum State {
    /// The bytes so far are the first `matched` of the HTTP/2 preface.
    Unknown {
        matched: u8,
    },
    Http1(Http1),
    Http2(Box<Http2>),
    Tunnel {
        last: Direction,
    },
    Opaque {
        last: Direction,
        cause: OpaqueCause,
    },
}

/// How a connection goes on after a step.
enum Next {
    Follow,
    Tunnel,
}

/// As for a head, which it mostly is.
const FIRST_WINDOW: Window = Window { size: 2048, whole: 2048 };

impl Default for Framing {
    fn default() -> Self {
        Self::new()
    }
}

impl Framing {
    /// A connection on which no byte has passed.
    pub const fn new() -> Self {
        Self { state: State::Unknown { matched: 0 }, reusable: true }
    }

    /// Follows `len` new bytes. Every byte of the connection is to be presented once, in order.
    ///
    /// `fetch(offset, max_len)` returns bytes of this event from `offset` on, at most `max_len` and at least one, or
    /// `None` if it can't: then the connection is opaque. It is called with growing offsets, and not at all for bytes
    /// that are merely counted.
    pub fn advance(
        &mut self,
        direction: Direction,
        len: u64,
        mut fetch: impl FnMut(u64, u64) -> Option<Vec<u8>>,
    ) -> Progress {
        let mut event = Event::new(len, &mut fetch);
        let mut progress = Progress::default();
        while event.left() > 0 {
            match self.step(direction, &mut event, &mut progress) {
                Ok(Next::Follow) => {}
                Ok(Next::Tunnel) => {
                    self.state = State::Tunnel { last: direction };
                    progress.retire();
                }
                Err(cause) => self.state = State::Opaque { last: direction, cause },
            }
        }
        self.reusable &= !progress.no_reuse;
        progress
    }

    /// Nothing more will come in `direction`. That ends a response that is delimited by the close; any other exchange
    /// stays in flight, since it can't complete any more.
    pub fn on_eof(&mut self, direction: Direction) -> Progress {
        let mut progress = Progress::default();
        progress.retire();
        if let (State::Http1(http1), Direction::Response) = (&mut self.state, direction) {
            http1.on_response_eof(&mut progress);
        }
        self.reusable = false;
        progress
    }

    /// Exchanges that have begun and are not over in both directions; for a tunnel or an opaque connection 1 while the
    /// last byte went towards the far end.
    pub fn in_flight(&self) -> u32 {
        match &self.state {
            State::Unknown { matched } => u32::from(*matched > 0),
            State::Http1(http1) => http1.in_flight(),
            State::Http2(http2) => http2.in_flight(),
            State::Tunnel { last } | State::Opaque { last, .. } => u32::from(*last == Direction::Request),
        }
    }

    /// What the connection speaks, as far as is known.
    pub fn protocol(&self) -> Protocol {
        match &self.state {
            State::Unknown { .. } => Protocol::Unknown,
            State::Http1(_) => Protocol::Http1,
            State::Http2(http2) if http2.is_certain() => Protocol::Http2,
            State::Http2(_) => Protocol::Unknown,
            State::Tunnel { .. } => Protocol::Tunnel,
            State::Opaque { cause, .. } => Protocol::Opaque(*cause),
        }
    }

    /// Whether the oldest exchange in flight has seen a byte of its response (on HTTP/2, a frame header); an
    /// interim response counts. `true` for a tunnel or an opaque connection: there nobody knows, and a stale failure
    /// must not be guessed.
    pub fn response_started(&self) -> bool {
        match &self.state {
            State::Unknown { .. } => false,
            State::Http1(http1) => http1.response_started(),
            State::Http2(http2) => http2.response_started(),
            State::Tunnel { .. } | State::Opaque { .. } => true,
        }
    }

    /// Whether the next byte from the far end begins the response to the only exchange in flight, on HTTP/1.
    pub fn awaits_response(&self) -> bool {
        match &self.state {
            State::Http1(http1) => http1.in_flight() == 1 && !http1.response_started(),
            _ => false,
        }
    }

    /// A response was told to announce the close, see [`told_to_close`]: the connection will take no other exchange.
    pub fn retire(&mut self) {
        self.reusable = false;
    }

    /// `false` once the connection will take no other exchange: `Connection: close` on either side, HTTP/1.0 without
    /// keep-alive, a response delimited by the close, GOAWAY, a tunnel, an unsolicited response, the end of either
    /// direction. What is in flight goes on.
    pub fn reusable(&self) -> bool {
        self.reusable
    }

    fn step(
        &mut self,
        direction: Direction,
        event: &mut Event<'_>,
        progress: &mut Progress,
    ) -> Result<Next, OpaqueCause> {
        match &mut self.state {
            State::Unknown { matched } => {
                let known = usize::from(*matched);
                if direction == Direction::Response {
                    // An HTTP/2 server may speak first (RFC 9113 §3.4), an HTTP/1 server may not.
                    self.state = State::Http2(Box::new(Http2::resume(known)));
                    return Ok(Next::Follow);
                }
                let expected = PREFACE.get(known..).unwrap_or_default();
                let bytes = event.peek(FIRST_WINDOW)?;
                let matching = bytes.iter().zip(expected).take_while(|(byte, expected)| byte == expected).count();
                if matching == expected.len() {
                    self.state = State::Http2(Box::new(Http2::resume(known)));
                } else if matching == bytes.len() {
                    *matched = matched.saturating_add(u8::try_from(matching).unwrap_or(u8::MAX));
                    let matching = u64::try_from(matching).unwrap_or(u64::MAX);
                    event.consume(matching);
                } else {
                    let before = PREFACE.get(..known).unwrap_or_default();
                    self.state = State::Http1(Http1::resume(before, progress)?);
                }
                Ok(Next::Follow)
            }
            State::Http1(http1) => http1.step(direction, event, progress),
            State::Http2(http2) => http2.step(direction, event, progress),
            State::Tunnel { last } | State::Opaque { last, .. } => {
                *last = direction;
                let left = event.left();
                event.consume(left);
                Ok(Next::Follow)
            }
        }
    }
}

/// How much of a response [`told_to_close`] wants to see.
pub const STATUS_LINE_MAX: usize = 256;

/// Announces the close of a connection in the response that begins with `start`: how many of its bytes to replace, and by
/// what. `None` if it is not the final response of an HTTP/1.1 server with a status line of usual length.
///
/// Whoever reads `Connection: close` doesn't use the connection again (RFC 9112 §9.6), so nobody can be handed a connection
/// that is being closed. It changes nothing about where the message ends.
pub fn told_to_close(start: &[u8]) -> Option<(usize, Vec<u8>)> {
    let status = start.strip_prefix(b"HTTP/1.1 ")?;
    if !matches!(status, [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9', b' ' | b'\r', ..]) {
        return None; // after an interim response the final one follows, after a 101 something else
    }
    let start = start.get(..STATUS_LINE_MAX).unwrap_or(start);
    let line_end = start.windows(2).position(|pair| pair == b"\r\n")?.checked_add(2)?;
    Some((line_end, [start.get(..line_end)?, b"connection: close\r\n"].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_final_response_of_http1_can_announce_the_close() {
        let told = |start: &[u8]| told_to_close(start).map(|(length, text)| (length, String::from_utf8(text).unwrap()));
        let ok = "HTTP/1.1 200 OK\r\nconnection: close\r\n".to_owned();
        assert_eq!(told(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), Some((17, ok.clone())));
        assert_eq!(told(b"HTTP/1.1 200 OK\r\n"), Some((17, ok)), "the rest comes later");
        assert_eq!(told(b"HTTP/1.1 204\r\n\r\n"), Some((14, "HTTP/1.1 204\r\nconnection: close\r\n".to_owned())));
        let long = [b"HTTP/1.1 200 ".to_vec(), vec![b'x'; 300], b"\r\n".to_vec()].concat();
        for other in [
            &b"HTTP/1.1 100 Continue\r\n\r\n"[..],
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            b"HTTP/1.0 200 OK\r\n\r\n",
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"HTTP/1.1 200 O",
            b"HTTP/1.1 200",
            b"\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\n",
            b"",
            &long,
        ] {
            assert_eq!(told(other), None, "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn a_response_is_awaited_from_the_request_to_its_first_byte() {
        let mut framing = Framing::new();
        let mut pass = |direction, bytes: &[u8]| {
            let fetch = |offset, max_len| {
                let (offset, max_len) = (usize::try_from(offset).unwrap(), usize::try_from(max_len).unwrap());
                Some(bytes[offset..][..max_len].to_vec())
            };
            framing.advance(direction, bytes.len() as u64, fetch);
            framing.awaits_response()
        };
        let request = b"GET / HTTP/1.1\r\nHost: example\r\n\r\n";
        assert!(pass(Direction::Request, request));
        assert!(!pass(Direction::Response, b"HTTP/1.1 200 OK\r\nContent-"));
        assert!(!pass(Direction::Response, b"Length: 0\r\n\r\n"));
        assert!(pass(Direction::Request, request));
        assert!(!pass(Direction::Request, request), "two are pipelined: closing would lose the second");
    }

    #[test]
    fn a_connection_costs_at_most_48_bytes() {
        assert!(size_of::<Framing>() <= 48, "{}", size_of::<Framing>());
    }
}

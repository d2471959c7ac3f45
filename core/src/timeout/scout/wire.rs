//! Where an exchange begins and ends on one connection of the scout's, from the bytes that pass.
//!
//! The scout must know to the millisecond since when a connection is idle, and what its answers say about that
//! (`Keep-Alive` is gone when Envoy's filters see an answer, and 408 and GOAWAY never get there). It has one request in flight on a
//! connection, a `HEAD`, whose answer ends with its head: of HTTP/1.1 the heads are enough, of HTTP/2 the headers of the frames.
//!
//! Some far ends send a body all the same. Envoy would close the connection for it, so it is kept from Envoy.

use std::time::Duration;

/// What an answer says about its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// `Keep-Alive: timeout=N`.
    pub keep_alive: Option<Duration>,
    /// The far end closes the connection now.
    pub closes: bool,
}

/// What the far end's bytes were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The end of an answer.
    pub answer: Option<Answer>,
    /// The announcement of an end: an answer that nobody asked for (HTTP/1.1, where that is a 408), or GOAWAY.
    pub is_announced: bool,
    /// So many of the bytes, the last ones, are the body of an answer that must not have one.
    pub excess: usize,
}

/// One connection.
#[derive(Debug, Default)]
pub enum Wire {
    /// Nothing has passed yet.
    #[default]
    New,
    /// HTTP/1.1.
    Http1 {
        /// The head of the answer that is awaited.
        head: Option<Head>,
    },
    /// HTTP/2 with prior knowledge.
    Http2 {
        /// What Envoy sends.
        sent: Frames,
        /// What the far end sends.
        received: Frames,
        /// An answer is awaited.
        is_asked: bool,
    },
}

/// What a client says first on HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl Wire {
    /// Bytes of Envoy's. Returns whether a request begins with them.
    pub fn on_sent(&mut self, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return false;
        }
        if let Self::New = self {
            *self = if bytes.starts_with(b"PRI ") {
                Self::Http2 { sent: Frames::after(PREFACE.len()), received: Frames::default(), is_asked: false }
            } else {
                Self::Http1 { head: None }
            };
        }
        match self {
            Self::New => false,
            Self::Http1 { head } => {
                let begins = head.is_none();
                head.get_or_insert_default();
                begins
            }
            Self::Http2 { sent, is_asked, .. } => {
                let mut begins = false;
                sent.advance(bytes, |frame| begins |= frame.kind == Frame::HEADERS);
                *is_asked |= begins;
                begins
            }
        }
    }

    /// Bytes of the far end's.
    pub fn on_received(&mut self, bytes: &[u8]) -> Received {
        let mut seen = Received::default();
        if bytes.is_empty() {
            return seen;
        }
        match self {
            Self::New => seen.is_announced = true,
            Self::Http1 { head } => match head {
                None => seen.on_unasked(bytes),
                Some(awaited) => {
                    if let Some((answer, rest)) = awaited.advance(bytes) {
                        *head = None;
                        seen.answer = Some(answer);
                        seen.on_unasked(rest);
                    }
                }
            },
            Self::Http2 { received, is_asked, .. } => received.advance(bytes, |frame| match frame.kind {
                Frame::GOAWAY => seen.is_announced = true,
                _ if *is_asked && frame.ends_stream() => {
                    *is_asked = false;
                    seen.answer = Some(Answer::default());
                }
                _ => {}
            }),
        }
        seen
    }
}

impl Received {
    /// Bytes behind an HTTP/1.1 answer. With less than a status line's beginning there is no telling; a body that begins so is none.
    fn on_unasked(&mut self, bytes: &[u8]) {
        const STATUS_LINE: &[u8] = b"HTTP/";
        let is_answer = bytes.starts_with(STATUS_LINE) || STATUS_LINE.starts_with(bytes);
        self.is_announced = is_answer && !bytes.is_empty();
        self.excess = if is_answer { 0 } else { bytes.len() };
    }
}

/// A line that matters is shorter; of longer ones the beginning is looked at.
const LONGEST_LINE: usize = 512;

/// The head of an HTTP/1.1 answer, line by line (RFC 9112 §2.1), interim ones (1xx) passed over.
#[derive(Debug, Default)]
pub struct Head {
    line: Vec<u8>,
    status: Option<Status>,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Interim,
    Final,
}

impl Head {
    /// The answer, once its head has ended, and what comes behind it.
    fn advance<'a>(&mut self, mut bytes: &'a [u8]) -> Option<(Answer, &'a [u8])> {
        while let Some((byte, rest)) = bytes.split_first() {
            bytes = rest;
            if *byte != b'\n' {
                if self.line.len() < LONGEST_LINE {
                    self.line.push(*byte);
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            match (self.status, line) {
                (Some(Status::Final), []) => return Some((self.answer, bytes)),
                (_, []) => *self = Self::default(), // an interim answer's end; or lines before the first, which are to be ignored
                (None, line) => self.begin(line),
                (Some(_), line) => self.field(line),
            }
        }
        None
    }

    fn begin(&mut self, line: &[u8]) {
        let is_interim = line.split(|byte| *byte == b' ').nth(1).is_some_and(|code| code.starts_with(b"1"));
        self.status = Some(if is_interim { Status::Interim } else { Status::Final });
        self.answer = Answer { keep_alive: None, closes: line.starts_with(b"HTTP/1.0 ") };
    }

    fn field(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let Some((name, value)) = line.split_once(':') else { return };
        let mut elements = value.split(',').map(str::trim);
        if name.eq_ignore_ascii_case("connection") {
            for option in elements {
                if option.eq_ignore_ascii_case("close") {
                    self.answer.closes = true;
                } else if option.eq_ignore_ascii_case("keep-alive") {
                    self.answer.closes = false;
                }
            }
        } else if name.eq_ignore_ascii_case("keep-alive") {
            let seconds = elements.find_map(|element| {
                let (key, value) = element.split_once('=')?;
                let value = value.trim().trim_matches('"').parse::<u32>().ok()?;
                key.trim().eq_ignore_ascii_case("timeout").then_some(value)
            });
            // 0 would be the end of this connection, which Connection says.
            self.answer.keep_alive =
                seconds.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into()));
        }
    }
}

/// HTTP/2 frames (RFC 9113 §4.1), of which the payload is passed over.
#[derive(Debug, Default)]
pub struct Frames {
    header: Vec<u8>,
    skip: usize,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frame {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const GOAWAY: u8 = 7;

    /// Whether the far end's part of a stream ends with it: by an answer or, if the far end wants no such request, without one.
    /// Either says that the connection lives.
    fn ends_stream(self) -> bool {
        const END_STREAM: u8 = 1;
        let is_last = matches!(self.kind, Self::DATA | Self::HEADERS) && self.flags & END_STREAM != 0;
        self.stream != 0 && (is_last || self.kind == Self::RST_STREAM)
    }
}

impl Frames {
    const HEADER: usize = 9;

    fn after(skip: usize) -> Self {
        Self { header: Vec::new(), skip }
    }

    fn advance(&mut self, mut bytes: &[u8], mut on_frame: impl FnMut(Frame)) {
        while let Some((byte, rest)) = bytes.split_first() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip = self.skip.saturating_sub(skipped);
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            self.header.push(*byte);
            bytes = rest;
            if self.header.len() < Self::HEADER {
                continue;
            }
            if let [a, b, c, kind, flags, d, e, f, g] = *self.header {
                let length = u32::from_be_bytes([0, a, b, c]);
                self.skip = usize::try_from(length).unwrap_or(usize::MAX);
                on_frame(Frame { kind, flags, stream: u32::from_be_bytes([d & 0x7f, e, f, g]) });
            }
            self.header.clear();
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a connection shows of an answer, for any division of its bytes into pieces.
    fn answer(bytes: &[u8], at: usize) -> Vec<Received> {
        let mut wire = Wire::default();
        assert!(wire.on_sent(b"HEAD / HTTP/1.1\r\n"));
        assert!(!wire.on_sent(b"host: a\r\n\r\n"), "more of it");
        let (first, second) = bytes.split_at(at.min(bytes.len()));
        [first, second]
            .into_iter()
            .map(|piece| wire.on_received(piece))
            .filter(|seen| *seen != Received::default())
            .collect()
    }

    #[test]
    fn an_answer_ends_with_its_head_and_says_whether_the_connection_goes_on() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (head, keep_alive, closes) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", None, false),
            ("HTTP/1.1 404 Not Found\n\n", None, false),
            ("HTTP/1.1 100 Continue\r\nconnection: close\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", None, false),
            ("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n", seconds(5), false),
            ("HTTP/1.1 200 OK\r\nKeep-Alive: max=100, Timeout = \"15\"\r\n\r\n", seconds(15), false),
            ("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=0, max=1\r\n\r\n", None, false),
            ("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=-1\r\n\r\n", None, false),
            ("HTTP/1.1 200 OK\r\nConnection: foo, Close\r\n\r\n", None, true),
            ("HTTP/1.0 200 OK\r\n\r\n", None, true),
            ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\n", None, false),
        ] {
            for at in 0..head.len() {
                let expected = Received { answer: Some(Answer { keep_alive, closes }), ..Received::default() };
                assert_eq!(answer(head.as_bytes(), at), [expected], "{head:?} divided at {at}");
            }
        }
    }

    #[test]
    fn bytes_that_nobody_asked_for_announce_the_end() {
        let mut wire = Wire::default();
        wire.on_sent(b"HEAD / HTTP/1.1\r\n\r\n");
        assert!(wire.on_received(b"HTTP/1.1 200 OK\r\n\r\n").answer.is_some());
        let unasked = wire.on_received(b"HTTP/1.1 408 Request Timeout\r\n");
        assert_eq!(unasked, Received { is_announced: true, ..Received::default() });
        assert_eq!(wire.on_received(b""), Received::default());
    }

    #[test]
    fn a_body_behind_the_answer_to_a_head_request_is_no_announcement() {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
        for (body, excess) in [("ok", 2), ("<html>", 6), ("Hello", 5)] {
            let all = format!("{head}{body}");
            let whole = answer(all.as_bytes(), all.len());
            assert_eq!(whole, [Received { answer: Some(Answer::default()), excess, ..Received::default() }]);
            let apart = answer(all.as_bytes(), head.len());
            assert_eq!(apart.last(), Some(&Received { excess, ..Received::default() }), "{body}");
        }
        let and_408 = format!("{head}HTTP/1.0 408 Request Time-out\r\n");
        for at in [head.len(), head.len() + 3] {
            assert!(answer(and_408.as_bytes(), at).iter().any(|seen| seen.is_announced));
        }
    }

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    }

    #[test]
    fn on_http2_only_a_streams_end_is_an_answer_and_only_goaway_an_announcement() {
        let preface = [PREFACE, &frame(4, 0, 0, &[0; 6])].concat();
        let headers = frame(1, 5, 1, b"\x82");
        let mut wire = Wire::default();
        assert!(!wire.on_sent(&preface));
        assert!(wire.on_sent(&headers));
        let nothing = Received::default();
        let answered = Received { answer: Some(Answer::default()), ..nothing };
        let goaway = Received { is_announced: true, ..nothing };
        for (bytes, seen) in [
            (frame(4, 0, 0, &[0; 12]), nothing), // SETTINGS
            (frame(4, 1, 0, &[]), nothing),      // its acknowledgement, whose flag is that of END_STREAM
            (frame(6, 0, 0, &[0; 8]), nothing),  // PING
            (frame(1, 4, 1, b"\x88"), nothing),  // HEADERS of an answer that goes on
            (frame(0, 1, 1, b""), answered),     // DATA with END_STREAM
            (frame(0, 1, 1, b""), nothing),      // once more, late
            (frame(8, 0, 0, &[0; 4]), nothing),  // WINDOW_UPDATE
            (frame(7, 0, 0, &[0; 8]), goaway),   // GOAWAY
        ] {
            assert_eq!(wire.on_received(&bytes), seen, "{bytes:?}");
        }
        assert!(!wire.on_sent(&frame(4, 1, 0, &[])), "an acknowledgement is no request");
        assert!(wire.on_sent(&frame(1, 5, 3, b"\x82")));
        assert_eq!(wire.on_received(&frame(1, 5, 3, b"\x88")), answered);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_read_to_the_end(
            sent in proptest::collection::vec(any::<Vec<u8>>(), 0..4),
            received in proptest::collection::vec(any::<Vec<u8>>(), 0..8),
            is_http2: bool,
        ) {
            let mut wire = Wire::default();
            if is_http2 {
                wire.on_sent(PREFACE);
            }
            for bytes in sent {
                wire.on_sent(&bytes);
            }
            for bytes in received {
                wire.on_received(&bytes);
            }
        }

        #[test]
        fn frames_are_the_same_in_one_piece_and_in_many(payloads in proptest::collection::vec((0_u8..10, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 1..8)) {
            let bytes: Vec<u8> = payloads.iter().flat_map(|(kind, flags, payload)| frame(*kind, *flags, 1, payload)).collect();
            let read = |pieces: usize| {
                let (mut frames, mut seen) = (Frames::default(), Vec::new());
                for piece in bytes.chunks(pieces) {
                    frames.advance(piece, |frame| seen.push(frame));
                }
                seen
            };
            prop_assert_eq!(read(1), read(bytes.len()));
            prop_assert_eq!(read(1).len(), payloads.len());
        }
    }
}

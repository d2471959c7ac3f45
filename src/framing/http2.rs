//! HTTP/2 on one connection (RFC 9113): which streams are open.
//!
//! Only frame headers are read, and of GOAWAY the last stream; every other payload is counted, so padding, field blocks
//! and unknown frames need no understanding. What opens a stream counts from its frame header on; what ends one counts
//! when its payload has passed, so that a stream is never over while its bytes still flow.

use super::event::{Event, Window};
use super::{Direction, Next, OpaqueCause, Progress};

/// What a client sends first (§3.4); the frames follow.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Open streams followed at a time, 8 bytes each; with more the connection is opaque. Servers allow 100 to 1,000.
const MAX_STREAMS: usize = 4096;
/// Capacity kept while no stream is open.
const IDLE_CAPACITY: usize = 8;

const PREFACE_WINDOW: Window = Window { size: 256, whole: 1024 };
const FRAME_WINDOW: Window = Window { size: 256, whole: 1024 };

/// The streams of one HTTP/2 connection.
#[derive(Debug, Default)]
pub(super) struct Http2 {
    /// How much of the client's preface has come.
    preface: usize,
    request: Frames,
    response: Frames,
    /// In the order of their numbers, which is the order in which they were opened (§5.1.1).
    streams: Vec<Stream>,
    newest: u32,
    /// From the far end's GOAWAY: it will not look at streams with a higher number (§6.8).
    last_accepted: Option<u32>,
}

#[derive(Debug)]
struct Stream {
    id: u32,
    request_ended: bool,
    response_started: bool,
    response_ended: bool,
}

/// The frames of one direction.
#[derive(Debug, Default)]
struct Frames {
    place: Place,
    settings_seen: bool,
    /// A field block that CONTINUATION frames must go on with at once (§6.10).
    field_block: Option<FieldBlock>,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Header { bytes: [u8; 9], filled: usize },
    Payload { frame: Frame, remaining: u32 },
    LastStream { read: u32, filled: u8, remaining: u32 },
}

impl Default for Place {
    fn default() -> Self {
        Self::Header { bytes: [0; 9], filled: 0 }
    }
}

#[derive(Clone, Copy, Debug)]
struct FieldBlock {
    stream: u32,
    end_stream: bool,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

impl Frame {
    /// §4.1: a length of 24 bits, type, flags, a reserved bit, a stream of 31 bits.
    fn parse(header: [u8; 9]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = header;
        Self {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff,
        }
    }

    fn ends_stream(self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & 0x1 != 0
    }

    fn ends_field_block(self) -> bool {
        self.flags & 0x4 != 0
    }

    /// Sizes and streams without which the rest would be read at the wrong place, or about the wrong stream.
    fn is_well_formed(self) -> bool {
        match self.kind {
            DATA | HEADERS | CONTINUATION | PUSH_PROMISE => self.stream != 0,
            RST_STREAM => self.stream != 0 && self.length == 4,
            SETTINGS => self.stream == 0 && self.length.is_multiple_of(6),
            PING => self.stream == 0 && self.length == 8,
            GOAWAY => self.stream == 0 && self.length >= 8,
            _ => true,
        }
    }
}

impl Http2 {
    /// A connection of whose preface the first `preface` bytes have come.
    pub(super) fn resume(preface: usize) -> Self {
        Self { preface, ..Self::default() }
    }

    /// Whether the client's preface is complete: before that, this may still be something else.
    pub(super) fn is_certain(&self) -> bool {
        self.preface >= PREFACE.len()
    }

    /// Streams opened by the client that have not ended in both directions, and were not reset or refused.
    pub(super) fn in_flight(&self) -> u32 {
        if self.preface > 0 && !self.is_certain() {
            return 1;
        }
        u32::try_from(self.streams.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn response_started(&self) -> bool {
        self.streams.first().is_some_and(|stream| stream.response_started)
    }

    /// Follows some of the bytes that are left in `event`.
    pub(super) fn step(
        &mut self,
        direction: Direction,
        event: &mut Event<'_>,
        progress: &mut Progress,
    ) -> Result<Next, OpaqueCause> {
        if direction == Direction::Request && !self.is_certain() {
            let expected = PREFACE.get(self.preface..).unwrap_or_default();
            let bytes = event.peek(PREFACE_WINDOW)?;
            let matching = bytes.iter().zip(expected).take_while(|(byte, expected)| byte == expected).count();
            if matching < bytes.len().min(expected.len()) {
                return Err(OpaqueCause::NotHttp);
            }
            event.consume(u64::try_from(matching).unwrap_or(u64::MAX));
            self.preface = self.preface.saturating_add(matching);
            return Ok(Next::Follow);
        }
        match &mut self.frames(direction).place {
            Place::Header { bytes, filled } => {
                let ahead = event.peek(FRAME_WINDOW)?;
                let mut used = 0_u64;
                for (slot, byte) in bytes.iter_mut().skip(*filled).zip(ahead) {
                    *slot = *byte;
                    used = used.saturating_add(1);
                    *filled = filled.saturating_add(1);
                }
                let complete = (*filled == bytes.len()).then_some(*bytes);
                event.consume(used);
                if let Some(header) = complete {
                    self.on_frame_header(direction, Frame::parse(header), progress)?;
                }
            }
            Place::Payload { frame, remaining } => {
                let frame = *frame;
                let taken = u32::try_from(event.left()).unwrap_or(u32::MAX).min(*remaining);
                event.consume(u64::from(taken));
                *remaining = remaining.saturating_sub(taken);
                if *remaining == 0 {
                    self.on_frame_end(direction, frame, progress)?;
                }
            }
            Place::LastStream { read, filled, remaining } => {
                let byte = event.peek(FRAME_WINDOW)?.first().copied().unwrap_or_default();
                event.consume(1);
                *read = (*read << 8) | u32::from(byte);
                *filled = filled.saturating_add(1);
                *remaining = remaining.saturating_sub(1);
                if *filled == 4 {
                    let (last, remaining) = (*read & 0x7fff_ffff, *remaining);
                    self.on_goaway(direction, last, progress);
                    let frame = Frame { length: 0, kind: GOAWAY, flags: 0, stream: 0 };
                    self.frames(direction).place = Place::Payload { frame, remaining };
                }
            }
        }
        Ok(Next::Follow)
    }

    fn frames(&mut self, direction: Direction) -> &mut Frames {
        match direction {
            Direction::Request => &mut self.request,
            Direction::Response => &mut self.response,
        }
    }

    fn on_frame_header(
        &mut self,
        direction: Direction,
        frame: Frame,
        progress: &mut Progress,
    ) -> Result<(), OpaqueCause> {
        let frames = self.frames(direction);
        // §3.4: both begin with SETTINGS, which also unmasks an answer that isn't HTTP/2.
        let in_turn = frames.settings_seen || (frame.kind == SETTINGS && frame.flags & 0x1 == 0);
        let continues = match frames.field_block {
            Some(block) => frame.kind == CONTINUATION && frame.stream == block.stream,
            None => frame.kind != CONTINUATION,
        };
        if !in_turn || !continues || !frame.is_well_formed() {
            return Err(OpaqueCause::BadFrame);
        }
        frames.settings_seen = true;
        frames.place = match frame.kind {
            GOAWAY => Place::LastStream { read: 0, filled: 0, remaining: frame.length },
            _ => Place::Payload { frame, remaining: frame.length },
        };
        if matches!(frame.kind, DATA | HEADERS | RST_STREAM) {
            self.on_stream_frame(direction, frame, progress)?;
        }
        if frame.kind == PUSH_PROMISE && direction == Direction::Request {
            return Err(OpaqueCause::BadFrame);
        }
        if frame.length == 0 { self.on_frame_end(direction, frame, progress) } else { Ok(()) }
    }

    fn on_stream_frame(
        &mut self,
        direction: Direction,
        frame: Frame,
        progress: &mut Progress,
    ) -> Result<(), OpaqueCause> {
        // Pushed streams are the far end's own: no exchange waits for them.
        let pushed = frame.stream & 1 == 0;
        let new = !pushed && frame.stream > self.newest;
        let opens = frame.kind == HEADERS && direction == Direction::Request;
        if pushed && opens || new && !opens {
            return Err(OpaqueCause::BadFrame);
        }
        if new {
            self.newest = frame.stream;
            progress.start_request();
            if self.last_accepted.is_none_or(|last| frame.stream <= last) {
                if self.streams.len() >= MAX_STREAMS {
                    return Err(OpaqueCause::TooManyExchanges);
                }
                let id = frame.stream;
                self.streams.push(Stream { id, request_ended: false, response_started: false, response_ended: false });
            }
        } else if direction == Direction::Response
            && let Some(stream) = self.find(frame.stream).and_then(|at| self.streams.get_mut(at))
        {
            stream.response_started = true;
        }
        Ok(())
    }

    fn on_frame_end(&mut self, direction: Direction, frame: Frame, progress: &mut Progress) -> Result<(), OpaqueCause> {
        let frames = self.frames(direction);
        frames.place = Place::default();
        let ended = match frame.kind {
            DATA => frame.ends_stream(),
            HEADERS | PUSH_PROMISE if !frame.ends_field_block() => {
                frames.field_block = Some(FieldBlock { stream: frame.stream, end_stream: frame.ends_stream() });
                false
            }
            HEADERS => frame.ends_stream(),
            CONTINUATION if frame.ends_field_block() => frames.field_block.take().is_some_and(|block| block.end_stream),
            RST_STREAM => {
                if let Some(at) = self.find(frame.stream) {
                    self.remove(at);
                }
                false
            }
            _ => false,
        };
        if ended {
            self.end(direction, frame.stream, progress);
        }
        Ok(())
    }

    /// One side of a stream has ended (§5.1).
    fn end(&mut self, direction: Direction, id: u32, progress: &mut Progress) {
        let Some(at) = self.find(id) else { return };
        let Some(stream) = self.streams.get_mut(at) else { return };
        match direction {
            Direction::Request => stream.request_ended = true,
            Direction::Response if stream.response_ended => {}
            Direction::Response => {
                stream.response_ended = true;
                progress.complete_response();
            }
        }
        if stream.request_ended && stream.response_ended {
            self.remove(at);
        }
    }

    fn on_goaway(&mut self, direction: Direction, last: u32, progress: &mut Progress) {
        progress.retire();
        // The client's GOAWAY speaks of pushed streams.
        if direction == Direction::Response {
            self.last_accepted = Some(self.last_accepted.map_or(last, |known| known.min(last)));
            self.streams.retain(|stream| stream.id <= last);
            self.release();
        }
    }

    fn find(&self, id: u32) -> Option<usize> {
        self.streams.binary_search_by_key(&id, |stream| stream.id).ok()
    }

    /// Callers pass an index from [`Self::find`].
    fn remove(&mut self, at: usize) {
        if at < self.streams.len() {
            self.streams.remove(at);
        }
        self.release();
    }

    fn release(&mut self) {
        if self.streams.is_empty() && self.streams.capacity() > IDLE_CAPACITY {
            self.streams.shrink_to(IDLE_CAPACITY);
        }
    }
}

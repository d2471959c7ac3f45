//! HTTP/1.1 on one connection (RFC 9112): which requests wait for a response, and where in a message each direction is.
//!
//! Nothing is matched by looking at bodies: responses answer requests in their order (§9.3.2), and every body has a
//! length that its head tells, or the connection is not followed any further.

use super::chunked::Chunked;
use super::event::{Event, Window};
use super::head::{EndSearch, Length, MAX_HEAD, PartialHead, RequestHead, RequestKind, ResponseHead};
use super::{Bytes, Direction, Next, OpaqueCause, Progress};

const HEAD_WINDOW: Window = Window { size: 2048, whole: 2048 };
/// Holds the CRLF after a chunk and any chunk line without extensions.
const CHUNK_WINDOW: Window = Window { size: 32, whole: 256 };
const TRAILER_WINDOW: Window = Window { size: 256, whole: 256 };

/// The messages of one HTTP/1.1 connection.
#[derive(Debug, Default)]
pub(super) struct Http1 {
    request: Reading,
    response: Reading,
    /// Requests whose heads have been read and whose responses have not ended.
    unanswered: Unanswered,
}

/// Where one direction is.
#[derive(Debug, Default)]
enum Reading {
    /// Between messages; empty lines may come (RFC 9112 §2.2).
    #[default]
    Between,
    Head(Box<PartialHead>),
    Counted {
        remaining: Bytes,
    },
    Chunked(Chunked),
    /// A response that ends when its connection does.
    UntilClose,
    /// Behind a `CONNECT`: only the response tells whether these bytes are a tunnel's.
    BehindConnect {
        early: bool,
    },
}

impl Http1 {
    /// A connection that began with `bytes`, which may have been the start of something else.
    pub(super) fn resume(bytes: &[u8], progress: &mut Progress) -> Result<Self, OpaqueCause> {
        let mut http1 = Self::default();
        if !bytes.is_empty() {
            progress.start_request();
            let mut head = PartialHead { bytes: bytes.to_vec(), search: EndSearch::default() };
            head.search.find(Direction::Request, &head.bytes)?;
            http1.request = Reading::Head(Box::new(head));
        }
        Ok(http1)
    }

    /// Exchanges begun and not over: one is over when both its messages are.
    pub(super) fn in_flight(&self) -> u32 {
        let unanswered = self.unanswered.len();
        let own = match self.request {
            Reading::Head(_) => 1,
            // Its response came early. The last request is the only one that can still be on its way.
            Reading::Counted { .. } | Reading::Chunked(_) => u32::from(unanswered == 0),
            _ => 0,
        };
        unanswered.saturating_add(own)
    }

    pub(super) fn response_started(&self) -> bool {
        self.unanswered.oldest_started
    }

    /// Follows some of the bytes that are left in `event`.
    pub(super) fn step(
        &mut self,
        direction: Direction,
        event: &mut Event<'_>,
        progress: &mut Progress,
    ) -> Result<Next, OpaqueCause> {
        if direction == Direction::Response {
            self.unanswered.start_oldest();
        }
        let left = event.left();
        match self.reading(direction) {
            Reading::Between => {
                let bytes = event.peek(HEAD_WINDOW)?;
                let blank = bytes.iter().take_while(|&&byte| byte == b'\r' || byte == b'\n').count();
                if blank > 0 {
                    event.consume(count(blank));
                    return Ok(Next::Follow);
                }
                match direction {
                    Direction::Request => progress.start_request(),
                    Direction::Response if self.unanswered.oldest().is_none() => {
                        // As Envoy's pool does: it closes when a response comes that nobody asked for.
                        progress.retire();
                        return Err(OpaqueCause::Unsolicited);
                    }
                    Direction::Response => {}
                }
                self.begin_head(direction, event, progress)
            }
            Reading::Head(_) => self.continue_head(direction, event, progress),
            Reading::Counted { remaining } => {
                event.consume(remaining.0);
                *remaining = Bytes(remaining.0.saturating_sub(left));
                if *remaining == Bytes(0) {
                    self.end_message(direction, progress);
                }
                Ok(Next::Follow)
            }
            Reading::Chunked(chunked) if chunked.uninteresting() > 0 => {
                event.consume(chunked.uninteresting());
                chunked.skip(left);
                Ok(Next::Follow)
            }
            Reading::Chunked(chunked) => {
                let window = if chunked.in_trailers() { TRAILER_WINDOW } else { CHUNK_WINDOW };
                let (used, over) = chunked.read(event.peek(window)?)?;
                event.consume(used);
                if over {
                    self.end_message(direction, progress);
                }
                Ok(Next::Follow)
            }
            Reading::UntilClose => {
                event.consume(left);
                Ok(Next::Follow)
            }
            Reading::BehindConnect { early } => {
                *early = true;
                event.consume(left);
                Ok(Next::Follow)
            }
        }
    }

    /// The far end will send no more: the one way to end a response without a length.
    pub(super) fn on_response_eof(&mut self, progress: &mut Progress) {
        if matches!(self.response, Reading::UntilClose) {
            self.end_message(Direction::Response, progress);
        }
    }

    fn reading(&mut self, direction: Direction) -> &mut Reading {
        match direction {
            Direction::Request => &mut self.request,
            Direction::Response => &mut self.response,
        }
    }

    /// The usual case: the whole head is in the first window, and nothing is kept.
    fn begin_head(
        &mut self,
        direction: Direction,
        event: &mut Event<'_>,
        progress: &mut Progress,
    ) -> Result<Next, OpaqueCause> {
        let bytes = event.peek(HEAD_WINDOW)?;
        let usual = match direction {
            Direction::Request => {
                RequestHead::parse_usual(bytes).map(|(head, end)| (self.on_request_head(&head, progress), end))
            }
            Direction::Response => {
                ResponseHead::parse_usual(bytes).map(|(head, end)| (self.on_response_head(&head, progress), end))
            }
        };
        if let Some((next, end)) = usual {
            event.consume(count(end));
            return next;
        }
        let mut search = EndSearch::default();
        if let Some(end) = search.find(direction, bytes)? {
            let head = bytes.get(..end).unwrap_or_default();
            let next = self.on_head(direction, head, search.fields(), progress)?;
            event.consume(count(end));
            return Ok(next);
        }
        let bytes = bytes.to_vec();
        event.consume(count(bytes.len()));
        *self.reading(direction) = Reading::Head(Box::new(PartialHead { bytes, search }));
        Ok(Next::Follow)
    }

    fn continue_head(
        &mut self,
        direction: Direction,
        event: &mut Event<'_>,
        progress: &mut Progress,
    ) -> Result<Next, OpaqueCause> {
        let Reading::Head(partial) = self.reading(direction) else { return Ok(Next::Follow) };
        let known = partial.bytes.len();
        let size = count(known).max(HEAD_WINDOW.size);
        let bytes = event.peek(Window { size, whole: HEAD_WINDOW.whole })?;
        // Never past the cap, so that where the bytes are cut doesn't decide which heads are too long.
        let bytes = bytes.get(..MAX_HEAD.saturating_sub(known)).unwrap_or(bytes);
        partial.bytes.extend_from_slice(bytes);
        let found = partial.search.find(direction, &partial.bytes)?;
        let end = found.unwrap_or(partial.bytes.len());
        event.consume(count(end.saturating_sub(known)));
        if found.is_none() {
            return if end < MAX_HEAD { Ok(Next::Follow) } else { Err(OpaqueCause::HeadTooLong) };
        }
        let Reading::Head(partial) = std::mem::take(self.reading(direction)) else { return Ok(Next::Follow) };
        let head = partial.bytes.get(..end).unwrap_or_default();
        self.on_head(direction, head, partial.search.fields(), progress)
    }

    fn on_head(
        &mut self,
        direction: Direction,
        head: &[u8],
        fields: usize,
        progress: &mut Progress,
    ) -> Result<Next, OpaqueCause> {
        match direction {
            Direction::Request => self.on_request_head(&RequestHead::parse(head, fields)?, progress),
            Direction::Response => self.on_response_head(&ResponseHead::parse(head, fields)?, progress),
        }
    }

    fn on_request_head(&mut self, head: &RequestHead, progress: &mut Progress) -> Result<Next, OpaqueCause> {
        self.unanswered.push(head.kind)?;
        if !head.persistent {
            progress.retire();
        }
        self.request = match head.length? {
            Length::Unsaid | Length::Counted(0) if head.kind == RequestKind::Connect => {
                Reading::BehindConnect { early: false }
            }
            // RFC 9110 §9.3.6: the request has no content.
            _ if head.kind == RequestKind::Connect => return Err(OpaqueCause::BadLength),
            Length::Unsaid | Length::Counted(0) => Reading::Between,
            Length::Counted(length) => Reading::Counted { remaining: Bytes(length) },
            Length::Chunked => Reading::Chunked(Chunked::START),
            Length::OtherCoding => return Err(OpaqueCause::BadLength),
        };
        Ok(Next::Follow)
    }

    fn on_response_head(&mut self, head: &ResponseHead, progress: &mut Progress) -> Result<Next, OpaqueCause> {
        let kind = self.unanswered.oldest().ok_or(OpaqueCause::Unsolicited)?;
        match (head.status, kind) {
            (..100, _) => return Err(OpaqueCause::BadHead),
            (101, RequestKind::Upgrade) | (200..300, RequestKind::Connect) => {
                progress.complete_response();
                return Ok(Next::Tunnel);
            }
            // RFC 9110 §15.2.2: only what the client asked for.
            (101, _) => return Err(OpaqueCause::Unsolicited),
            (102..200 | 100, _) => {
                self.response = Reading::Between;
                return Ok(Next::Follow);
            }
            _ => {}
        }
        progress.keep_alive = head.keep_alive.or(progress.keep_alive);
        if !head.persistent {
            progress.retire();
        }
        match self.request {
            Reading::BehindConnect { early: true } if kind == RequestKind::Connect => return Err(OpaqueCause::NotHttp),
            Reading::BehindConnect { .. } if kind == RequestKind::Connect => self.request = Reading::Between,
            _ => {}
        }
        let bodiless = kind == RequestKind::Head || matches!(head.status, 204 | 304);
        self.response = match if bodiless { Length::Counted(0) } else { head.length? } {
            Length::Counted(0) => {
                self.end_message(Direction::Response, progress);
                return Ok(Next::Follow);
            }
            Length::Counted(length) => Reading::Counted { remaining: Bytes(length) },
            Length::Chunked => Reading::Chunked(Chunked::START),
            Length::Unsaid | Length::OtherCoding => {
                progress.retire();
                Reading::UntilClose
            }
        };
        Ok(Next::Follow)
    }

    fn end_message(&mut self, direction: Direction, progress: &mut Progress) {
        *self.reading(direction) = Reading::Between;
        if direction == Direction::Response {
            self.unanswered.pop();
            progress.complete_response();
        }
    }
}

/// A queue of request kinds, two bits each: pipelining is rare, and a connection's state must stay small.
#[derive(Debug, Default)]
struct Unanswered {
    kinds: u32,
    len: u8,
    /// Whether a byte came back since the oldest became the oldest.
    oldest_started: bool,
}

impl Unanswered {
    /// Beyond this the connection is not followed.
    const CAPACITY: u8 = 16;

    fn len(&self) -> u32 {
        u32::from(self.len)
    }

    fn push(&mut self, kind: RequestKind) -> Result<(), OpaqueCause> {
        if self.len >= Self::CAPACITY {
            return Err(OpaqueCause::TooManyExchanges);
        }
        let code: u32 = match kind {
            RequestKind::Plain => 0,
            RequestKind::Head => 1,
            RequestKind::Connect => 2,
            RequestKind::Upgrade => 3,
        };
        self.kinds |= code.wrapping_shl(self.len().wrapping_mul(2));
        self.len = self.len.saturating_add(1);
        Ok(())
    }

    fn oldest(&self) -> Option<RequestKind> {
        (self.len > 0).then_some(match self.kinds & 3 {
            0 => RequestKind::Plain,
            1 => RequestKind::Head,
            2 => RequestKind::Connect,
            _ => RequestKind::Upgrade,
        })
    }

    fn start_oldest(&mut self) {
        self.oldest_started = self.len > 0;
    }

    fn pop(&mut self) {
        self.oldest_started = false;
        self.kinds >>= 2;
        self.len = self.len.saturating_sub(1);
    }
}

/// An index into a window, as a byte count.
fn count(index: usize) -> u64 {
    u64::try_from(index).unwrap_or(u64::MAX)
}

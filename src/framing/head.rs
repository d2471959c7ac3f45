//! HTTP/1 heads: where one ends, and what it says about its message (RFC 9112 §2 to §6 and §9).
//!
//! Nearly every head is whole in the first window, and `httparse` alone reads it. Else its end is searched first, each
//! byte once however the head arrives, since `httparse` would start over with every call.

use std::mem::MaybeUninit;
use std::time::Duration;

use super::{Direction, KeepAlive, OpaqueCause};

/// A longer head is not followed.
pub(super) const MAX_HEAD: usize = 65_536;
/// A head with more lines is not followed.
const MAX_FIELDS: usize = 1024;
/// Field lines parsed without an allocation.
const USUAL_FIELDS: usize = 48;
/// A request's method is no longer than this, or it isn't HTTP.
const MAX_METHOD: usize = 32;

/// A head that has not ended yet.
#[derive(Debug, Default)]
pub(super) struct PartialHead {
    pub(super) bytes: Vec<u8>,
    pub(super) search: EndSearch,
}

/// Looks for the empty line that ends a head, and at its first line for whether this is HTTP/1 at all.
#[derive(Debug, Default)]
pub(super) struct EndSearch {
    searched: usize,
    line_start: usize,
    lines: usize,
}

impl EndSearch {
    /// The length of the head that `bytes` start with, `None` if its end is not among them. `bytes` must begin with
    /// those of the call before.
    pub(super) fn find(&mut self, direction: Direction, bytes: &[u8]) -> Result<Option<usize>, OpaqueCause> {
        while let Some(at) = bytes.get(self.searched..).and_then(line_feed) {
            let end = self.searched.saturating_add(at);
            let line = bytes.get(self.line_start..end).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            self.searched = end.saturating_add(1);
            if self.lines == 0 && !is_first_line(direction, line) {
                return Err(OpaqueCause::NotHttp);
            }
            if line.is_empty() {
                return Ok(Some(self.searched));
            }
            self.line_start = self.searched;
            self.lines = self.lines.saturating_add(1);
        }
        self.searched = bytes.len();
        if self.lines == 0 && !may_be_first_line(direction, bytes) {
            return Err(OpaqueCause::NotHttp);
        }
        Ok(None)
    }

    /// How many field lines the head has at most.
    pub(super) fn fields(&self) -> usize {
        self.lines.saturating_sub(1)
    }
}

/// The first line feed, eight bytes at a time.
fn line_feed(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    const LINE_FEEDS: u64 = 0x0a0a_0a0a_0a0a_0a0a;
    let (words, tail) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word) ^ LINE_FEEDS;
        let zeros = word.wrapping_sub(ONES) & !word & HIGHS;
        if zeros != 0 {
            let within = usize::try_from(zeros.trailing_zeros() >> 3).unwrap_or_default();
            return Some((index << 3) | within);
        }
    }
    let at = tail.iter().position(|&byte| byte == b'\n')?;
    Some((words.len() << 3) | at)
}

fn is_first_line(direction: Direction, line: &[u8]) -> bool {
    may_be_first_line(direction, line)
        && match direction {
            Direction::Request => line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0"),
            Direction::Response => line.len() >= STATUS_LINE_START.len(),
        }
}

const STATUS_LINE_START: &[u8] = b"HTTP/1.";

/// Whether a first line can begin with `bytes`, so that a protocol that isn't HTTP is known early.
fn may_be_first_line(direction: Direction, bytes: &[u8]) -> bool {
    match direction {
        Direction::Request => match bytes.iter().take(MAX_METHOD).position(|&byte| !is_token(byte)) {
            Some(0) => false,
            Some(at) => bytes.get(at) == Some(&b' '),
            None => bytes.len() < MAX_METHOD,
        },
        Direction::Response => bytes.iter().zip(STATUS_LINE_START).all(|(byte, expected)| byte == expected),
    }
}

/// `tchar` (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What a request says about how its response is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    Plain,
    /// `HEAD`: the response has no body.
    Head,
    /// `CONNECT`: a 2xx makes the connection a tunnel.
    Connect,
    /// With an `Upgrade` field: a 101 makes the connection a tunnel.
    Upgrade,
}

/// How a message's body is delimited (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// Neither `Content-Length` nor `Transfer-Encoding`.
    Unsaid,
    Counted(u64),
    Chunked,
    /// A transfer coding other than chunked comes last.
    OtherCoding,
}

pub(super) struct RequestHead {
    pub(super) kind: RequestKind,
    pub(super) length: Result<Length, OpaqueCause>,
    pub(super) persistent: bool,
}

pub(super) struct ResponseHead {
    pub(super) status: u16,
    pub(super) length: Result<Length, OpaqueCause>,
    pub(super) persistent: bool,
    pub(super) keep_alive: Option<KeepAlive>,
}

impl RequestHead {
    /// Reads the head that `bytes` start with, if it is all there and nothing about it is unusual. It saves the
    /// search for the end, and must never find another.
    pub(super) fn parse_usual(bytes: &[u8]) -> Option<(Self, usize)> {
        Self::parse_start(bytes, USUAL_FIELDS).ok()
    }

    /// Reads a complete head with at most `fields` field lines.
    pub(super) fn parse(head: &[u8], fields: usize) -> Result<Self, OpaqueCause> {
        // `httparse` wants UTF-8 in the target, old clients write Latin-1, and which one is no matter of framing.
        let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let parsed = if line.is_ascii() {
            Self::parse_start(head, fields)
        } else {
            let mut ascii = head.to_vec();
            ascii.iter_mut().take(line.len()).filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
            Self::parse_start(&ascii, fields)
        };
        complete(parsed, head)
    }

    fn parse_start(bytes: &[u8], fields: usize) -> Result<(Self, usize), OpaqueCause> {
        with_room(fields, |room| {
            let mut request = httparse::Request::new(&mut []);
            let parsed = request.parse_with_uninit_headers(bytes, room);
            let Ok(httparse::Status::Complete(length)) = parsed else { return Err(OpaqueCause::BadHead) };
            let method = request.method.filter(|method| method.len() < MAX_METHOD).ok_or(OpaqueCause::NotHttp)?;
            let fields = Fields::read(request.headers);
            let head = Self {
                kind: match method {
                    "HEAD" => RequestKind::Head,
                    "CONNECT" => RequestKind::Connect,
                    _ if fields.upgrade => RequestKind::Upgrade,
                    _ => RequestKind::Plain,
                },
                length: fields.length(request.version),
                persistent: fields.persistent(request.version),
            };
            Ok((head, length))
        })
    }
}

impl ResponseHead {
    /// See [`RequestHead::parse_usual`].
    pub(super) fn parse_usual(bytes: &[u8]) -> Option<(Self, usize)> {
        Self::parse_start(&httparse::ParserConfig::default(), bytes, USUAL_FIELDS).ok()
    }

    /// Reads a complete head with at most `fields` field lines.
    pub(super) fn parse(head: &[u8], fields: usize) -> Result<Self, OpaqueCause> {
        // Folded fields are obsolete in requests and responses alike, but a response from an old server is passed on.
        let mut config = httparse::ParserConfig::default();
        config.allow_obsolete_multiline_headers_in_responses(true);
        complete(Self::parse_start(&config, head, fields), head)
    }

    fn parse_start(config: &httparse::ParserConfig, bytes: &[u8], fields: usize) -> Result<(Self, usize), OpaqueCause> {
        with_room(fields, |room| {
            let mut response = httparse::Response::new(&mut []);
            let parsed = config.parse_response_with_uninit_headers(&mut response, bytes, room);
            let Ok(httparse::Status::Complete(length)) = parsed else { return Err(OpaqueCause::BadHead) };
            let fields = Fields::read(response.headers);
            let head = Self {
                status: response.code.ok_or(OpaqueCause::BadHead)?,
                length: fields.length(response.version),
                persistent: fields.persistent(response.version),
                keep_alive: fields.keep_alive,
            };
            Ok((head, length))
        })
    }
}

/// What was parsed, if it ends where the search found the end.
fn complete<T>(parsed: Result<(T, usize), OpaqueCause>, head: &[u8]) -> Result<T, OpaqueCause> {
    parsed.and_then(|(parsed, length)| if length == head.len() { Ok(parsed) } else { Err(OpaqueCause::BadHead) })
}

/// Runs `parse` with room for `fields` headers, on the stack if that is enough.
fn with_room<'head, T>(
    fields: usize,
    parse: impl FnOnce(&mut [MaybeUninit<httparse::Header<'head>>]) -> Result<T, OpaqueCause>,
) -> Result<T, OpaqueCause> {
    if fields <= USUAL_FIELDS {
        parse(&mut [const { MaybeUninit::uninit() }; USUAL_FIELDS])
    } else if fields <= MAX_FIELDS {
        parse(&mut vec![MaybeUninit::uninit(); fields])
    } else {
        Err(OpaqueCause::HeadTooLong)
    }
}

/// The fields that matter for framing.
#[derive(Default)]
struct Fields {
    content_length: Option<u64>,
    transfer_encoding: Option<LastCoding>,
    /// A length that contradicts another, or can't be read.
    conflict: bool,
    close: bool,
    keep_alive_asked: bool,
    upgrade: bool,
    keep_alive: Option<KeepAlive>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LastCoding {
    None,
    Chunked,
    Other,
}

impl Fields {
    fn read(headers: &[httparse::Header<'_>]) -> Self {
        let mut fields = Self::default();
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            match header.name.len() {
                7 if is("upgrade") => fields.upgrade = true,
                10 if is("connection") => fields.read_connection(header.value),
                10 if is("keep-alive") => fields.read_keep_alive(header.value),
                14 if is("content-length") => fields.read_content_length(header.value),
                // No standard, but Envoy's pool closes for it, too.
                16 if is("proxy-connection") => {
                    fields.close |= tokens(header.value).any(|token| is_word(token, "close"))
                }
                17 if is("transfer-encoding") => fields.read_transfer_encoding(header.value),
                _ => {}
            }
        }
        fields
    }

    fn read_connection(&mut self, value: &[u8]) {
        for token in tokens(value) {
            self.close |= is_word(token, "close");
            self.keep_alive_asked |= is_word(token, "keep-alive");
        }
    }

    /// Several equal lengths count as one (RFC 9110 §8.6).
    fn read_content_length(&mut self, value: &[u8]) {
        for element in tokens(value) {
            match digits(element) {
                Some(length) if self.content_length.is_none_or(|known| known == length) => {
                    self.content_length = Some(length);
                }
                _ => self.conflict = true,
            }
        }
    }

    /// Only the last coding delimits; chunked may be applied once (RFC 9112 §6.1, §7).
    fn read_transfer_encoding(&mut self, value: &[u8]) {
        let mut last = self.transfer_encoding.unwrap_or(LastCoding::None);
        for coding in tokens(value).filter(|coding| !coding.is_empty()) {
            if last == LastCoding::Chunked {
                self.conflict = true;
            }
            last = if is_word(coding, "chunked") { LastCoding::Chunked } else { LastCoding::Other };
        }
        self.transfer_encoding = Some(last);
    }

    /// `Keep-Alive: timeout=5, max=100`. Read leniently, since the hint can only lower a limit: what can't be read is
    /// left out, of several values the smallest holds.
    fn read_keep_alive(&mut self, value: &[u8]) {
        let mut hint = self.keep_alive.unwrap_or_default();
        for parameter in value.split(|&byte| byte == b',' || byte == b';') {
            let mut halves = parameter.splitn(2, |&byte| byte == b'=').map(<[u8]>::trim_ascii);
            let (Some(name), Some(value)) = (halves.next(), halves.next()) else { continue };
            let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            let Some(number) = saturating_digits(quoted.unwrap_or(value)) else { continue };
            if is_word(name, "timeout") {
                let timeout = Duration::from_secs(u64::from(number));
                hint.timeout = Some(hint.timeout.map_or(timeout, |known| known.min(timeout)));
            } else if is_word(name, "max") {
                hint.max = Some(hint.max.map_or(number, |known| known.min(number)));
            }
        }
        if hint != KeepAlive::default() {
            self.keep_alive = Some(hint);
        }
    }

    fn length(&self, version: Option<u8>) -> Result<Length, OpaqueCause> {
        match (self.transfer_encoding, self.content_length) {
            _ if self.conflict => Err(OpaqueCause::BadLength),
            (None, None) => Ok(Length::Unsaid),
            (None, Some(length)) => Ok(Length::Counted(length)),
            // Both together is how messages are smuggled, and HTTP/1.0 has no codings (RFC 9112 §6.1, §6.3).
            (Some(_), Some(_)) | (Some(LastCoding::None), None) => Err(OpaqueCause::BadLength),
            (Some(_), None) if version != Some(1) => Err(OpaqueCause::BadLength),
            (Some(LastCoding::Chunked), None) => Ok(Length::Chunked),
            (Some(LastCoding::Other), None) => Ok(Length::OtherCoding),
        }
    }

    /// RFC 9112 §9.3.
    fn persistent(&self, version: Option<u8>) -> bool {
        !self.close && (version == Some(1) || self.keep_alive_asked)
    }
}

/// The elements of a list; folded lines leave CR and LF around them.
fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

fn is_word(token: &[u8], word: &str) -> bool {
    token.eq_ignore_ascii_case(word.as_bytes())
}

/// A number of digits alone that fits; `u64::from_str` would allow a plus sign.
fn digits(text: &[u8]) -> Option<u64> {
    let add = |value: u64, digit: u8| value.checked_mul(10)?.checked_add(u64::from(digit));
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0, |value, byte| byte.is_ascii_digit().then(|| add(value, byte & 0x0f)).flatten())
}

/// Likewise, but what is too large is the largest.
fn saturating_digits(text: &[u8]) -> Option<u32> {
    let number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    number.then(|| digits(text).and_then(|value| u32::try_from(value).ok()).unwrap_or(u32::MAX))
}

//! HTTP/1.1, a message at a time.

use bytes::{Buf, Bytes, BytesMut};

use super::wire::Wire;
use crate::{
    passage::Side,
    record::{End, Message, MessageEnd},
    script::{Do, Framing, Head, Signals, pattern},
};

/// What is left of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Bytes(usize),
    Size,
    Chunk(usize),
    ChunkEnd,
    Trailers,
    ToEnd,
}

/// One connection, seen from one side.
pub(crate) struct Http1 {
    pub(crate) wire: Wire,
    pub(crate) messages: Vec<Message>,
    side: Side,
    left: Left,
    /// The methods whose responses have not come yet.
    methods: Vec<String>,
    next_method: usize,
    chunked: bool,
    sent: usize,
    authority: String,
}

impl Http1 {
    pub(crate) fn new(wire: Wire, side: Side, authority: &str) -> Self {
        Self {
            wire,
            side,
            messages: Vec::new(),
            left: Left::Nothing,
            methods: Vec::new(),
            next_method: 0,
            chunked: false,
            sent: 0,
            authority: authority.to_owned(),
        }
    }

    /// The requests among these bytes.
    pub(crate) fn requests(bytes: &[u8]) -> Vec<Message> {
        let mut http = Self::new(Wire::ended(bytes), Side::FarEnd, "");
        while let Some(end) = http.wire.input.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = http.wire.input.split_to(end + 4);
            http.begin(&head);
            if http.left != Left::Nothing {
                break;
            }
        }
        http.messages
    }

    /// Takes the steps; `path` is a client's.
    pub(crate) async fn run(&mut self, steps: &[Do], path: &str, signals: &Signals) {
        // What follows without a pause is one write: how it would be cut up otherwise is chance.
        let mut out = BytesMut::new();
        for step in steps {
            if !out.is_empty() && !step.sends() {
                self.wire.send(out.split().freeze()).await;
            }
            match step {
                Do::Head(head) => {
                    let bytes = self.head(head, path);
                    out.extend_from_slice(&bytes);
                }
                Do::Data(length) => {
                    let data = pattern(self.sent, *length);
                    self.sent += length;
                    let data = if self.chunked { chunk(&data) } else { data };
                    out.extend_from_slice(&data);
                }
                Do::End if self.chunked => out.extend_from_slice(b"0\r\n\r\n"),
                Do::Trailers(trailers) => {
                    let lines: String = trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                    out.extend_from_slice(format!("0\r\n{lines}\r\n").as_bytes());
                }
                Do::Raw(bytes) => {
                    if self.side == Side::Client {
                        let first = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
                        if !first.is_empty() && first.iter().all(u8::is_ascii_uppercase) {
                            self.methods.push(String::from_utf8_lossy(first).into_owned());
                        }
                    }
                    out.extend_from_slice(bytes);
                }
                Do::ExpectHead => drop(self.read_head().await),
                Do::ExpectData(length) => {
                    self.need_head().await;
                    while self.advance() && self.messages.last().is_some_and(|message| message.length < *length) {
                        if !self.wire.fill().await {
                            break;
                        }
                    }
                }
                Do::ExpectEnd => self.read_end().await,
                Do::ExpectClose => self.read_close().await,
                Do::HalfClose => self.wire.half_close(),
                Do::Fin => self.wire.close(),
                Do::Rst => self.wire.reset(),
                Do::Signal(what) => signals.say(what),
                Do::Await(what) => self.wait(what, signals).await,
                Do::Slowly(bytes) => self.wire.slowly(*bytes),
                Do::Pause(time) => tokio::time::sleep(*time).await,
                Do::End | Do::ResetStream(_) | Do::GoAway | Do::GoAwayNow | Do::Ping | Do::ExpectReset => {}
            }
        }
        self.wire.send(out.freeze()).await;
    }

    /// Until the other side says so, or it can't any more: a client has an answer, or the connection has ended.
    async fn wait(&mut self, what: &'static str, signals: &Signals) {
        loop {
            let has_answer = self.side == Side::Client && !self.wire.input.is_empty();
            if has_answer || self.wire.end != End::Open {
                return;
            }
            tokio::select! {
                biased;
                said = signals.wait(what) => {
                    if !said {
                        self.wire.end = End::Never;
                    }
                    return;
                }
                _ = self.wire.fill() => {}
            }
        }
    }

    fn head(&mut self, head: &Head, path: &str) -> Bytes {
        self.chunked = head.framing == Framing::Chunked;
        self.sent = 0;
        let mut text = match self.side {
            Side::Client => {
                self.methods.push(head.start.to_string());
                let target = if head.start == "CONNECT" { "far.example:443" } else { path };
                format!("{} {target} HTTP/1.1\r\nhost: {}\r\n", head.start, self.authority)
            }
            Side::FarEnd => format!("HTTP/1.1 {} Reason\r\n", head.start),
        };
        match head.framing {
            Framing::Length(length) => text += &format!("content-length: {length}\r\n"),
            Framing::Chunked => text += "transfer-encoding: chunked\r\n",
            Framing::Nothing => {}
        }
        head.headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        (text + "\r\n").into()
    }

    /// Waits for the next message to begin, however long that takes; false if there is none.
    pub(crate) async fn next(&mut self) -> bool {
        while self.wire.input.is_empty() && self.wire.end == End::Open {
            self.wire.wait().await;
        }
        !self.wire.input.is_empty()
    }

    /// The next message's head; its first line.
    pub(crate) async fn read_head(&mut self) -> Option<String> {
        if self.left != Left::Nothing {
            self.read_end_of_this().await;
        }
        loop {
            while self.wire.input.starts_with(b"\r\n") {
                self.wire.input.advance(2);
            }
            let end = self.wire.input.windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = end {
                let head = self.wire.input.split_to(end + 4);
                return Some(self.begin(&head));
            }
            if !self.wire.fill().await {
                return None;
            }
        }
    }

    fn begin(&mut self, head: &[u8]) -> String {
        let text = String::from_utf8_lossy(head).into_owned();
        let mut lines = text.trim_end().split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let mut message = Message { start: start.clone(), ..Message::default() };
        let (mut length, mut is_chunked) = (None, false);
        for line in lines {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let (name, value) = (name.to_ascii_lowercase(), value.trim());
            match name.as_str() {
                "content-length" => length = value.parse().ok(),
                "transfer-encoding" => is_chunked = value.eq_ignore_ascii_case("chunked"),
                _ => {}
            }
            message.header(&name, value);
        }
        self.left = match self.side {
            Side::FarEnd if is_chunked => Left::Size,
            Side::FarEnd if start.starts_with("CONNECT ") => Left::ToEnd,
            Side::FarEnd if message.headers.iter().any(|(name, _)| name == "upgrade") => Left::ToEnd,
            Side::FarEnd => Left::Bytes(length.unwrap_or(0)),
            Side::Client => {
                let status = message.status();
                let method = self.methods.get(self.next_method).map(String::as_str).unwrap_or_default();
                let left = match status {
                    101 => Left::ToEnd,
                    100..=199 | 204 | 304 => Left::Bytes(0),
                    200..=299 if method == "CONNECT" => Left::ToEnd,
                    _ if method == "HEAD" => Left::Bytes(0),
                    _ if is_chunked => Left::Size,
                    _ => length.map_or(Left::ToEnd, Left::Bytes),
                };
                if status >= 200 || status == 101 {
                    self.next_method += 1;
                }
                left
            }
        };
        self.messages.push(message);
        self.advance();
        start
    }

    /// Takes what has come of the present message; false once it is whole, or no HTTP.
    fn advance(&mut self) -> bool {
        let Some(message) = self.messages.last_mut() else { return false };
        let input = &mut self.wire.input;
        loop {
            match self.left {
                Left::Nothing => return false,
                Left::Bytes(0) => {
                    message.end = MessageEnd::Complete;
                    self.left = Left::Nothing;
                }
                Left::Bytes(left) => {
                    let Some(taken) = take(input, left, message) else { return true };
                    self.left = Left::Bytes(left - taken);
                }
                Left::ToEnd => {
                    let all = input.len();
                    take(input, all, message);
                    return true;
                }
                Left::Chunk(0) => self.left = Left::ChunkEnd,
                Left::Chunk(left) => {
                    let Some(taken) = take(input, left, message) else { return true };
                    self.left = Left::Chunk(left - taken);
                }
                Left::ChunkEnd => {
                    let Some(_) = line(input) else { return true };
                    self.left = Left::Size;
                }
                Left::Size => {
                    let Some(text) = line(input) else { return true };
                    match usize::from_str_radix(text.trim(), 16) {
                        Ok(0) => self.left = Left::Trailers,
                        Ok(size) => self.left = Left::Chunk(size),
                        Err(_) => {
                            message.end = MessageEnd::Malformed(text);
                            self.left = Left::Nothing;
                        }
                    }
                }
                Left::Trailers => {
                    let Some(text) = line(input) else { return true };
                    match text.split_once(':') {
                        Some((name, value)) => message.trailers.push((name.to_owned(), value.trim().to_owned())),
                        None => self.left = Left::Bytes(0),
                    }
                }
            }
        }
    }

    async fn need_head(&mut self) {
        let done = self.messages.last().is_none_or(|message| {
            self.side == Side::Client && self.left == Left::Nothing && message.end == MessageEnd::Complete
        });
        if done {
            self.read_head().await;
        }
    }

    pub(crate) async fn read_end_of_this(&mut self) {
        while self.advance() {
            if !self.wire.fill().await {
                self.advance();
                break;
            }
        }
        if self.left != Left::Nothing && self.wire.end == End::Fin {
            // A response that ends with its connection is whole.
            if let (Left::ToEnd, Some(message)) = (self.left, self.messages.last_mut()) {
                message.end = MessageEnd::Complete;
            }
            self.left = Left::Nothing;
        }
    }

    async fn read_end(&mut self) {
        self.need_head().await;
        loop {
            self.read_end_of_this().await;
            let interim = self.side == Side::Client
                && self.messages.last().is_some_and(|message| message.status() < 200 && message.status() != 101);
            if !interim || self.read_head().await.is_none() {
                return;
            }
        }
    }

    /// Everything until the other side closes.
    async fn read_close(&mut self) {
        loop {
            self.read_end_of_this().await;
            if self.read_head().await.is_none() {
                return;
            }
        }
    }
}

fn chunk(data: &Bytes) -> Bytes {
    if data.is_empty() {
        return Bytes::new(); // an empty chunk would be the end
    }
    let mut bytes = BytesMut::from(format!("{:x}\r\n", data.len()).as_bytes());
    bytes.extend_from_slice(data);
    bytes.extend_from_slice(b"\r\n");
    bytes.freeze()
}

fn take(input: &mut BytesMut, at_most: usize, message: &mut Message) -> Option<usize> {
    let length = at_most.min(input.len());
    message.add(&input.split_to(length));
    (length > 0).then_some(length)
}

fn line(input: &mut BytesMut) -> Option<String> {
    let end = input.windows(2).position(|window| window == b"\r\n")?;
    let line = input.split_to(end + 2);
    Some(String::from_utf8_lossy(&line[..end]).into_owned())
}

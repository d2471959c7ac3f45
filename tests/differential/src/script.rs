//! What a client and a far end do, step by step, in words that hold for HTTP/1.1 and HTTP/2 alike.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::Mutex,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{sync::Notify, time::timeout};

use crate::passage::{Passage, Side};

/// No step takes longer, however busy the machine: it stands for "never".
pub const NEVER: Duration = Duration::from_secs(15);

/// How long a message's body is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// `content-length`.
    Length(usize),
    /// Chunked on HTTP/1.1, no length on HTTP/2.
    Chunked,
    /// A response ends with its connection; a request has no body.
    Nothing,
}

/// The head of a request or a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The method, or the status.
    pub start: Cow<'static, str>,
    /// More headers than the script's own (`host`, and what the framing needs).
    pub headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    /// How the body ends.
    pub framing: Framing,
}

/// One step. A list of them is a client's stream, or a far end's answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Do {
    /// Sends a head. A client's goes to the path `/<n>`, where `n` chooses the far end's answer.
    Head(Head),
    /// Sends that many bytes of a body, whose bytes tell their place.
    Data(usize),
    /// Ends the message with trailers.
    Trailers(&'static [(&'static str, &'static str)]),
    /// Ends the message.
    End,
    /// Bytes as they are, on HTTP/1.1 alone.
    Raw(Bytes),
    /// Waits for a head; a client waits for the next one, be it informational.
    ExpectHead,
    /// Waits until that many bytes of the body have come.
    ExpectData(usize),
    /// Waits for the end of the message; a client waits for the final response's.
    ExpectEnd,
    /// Waits until the other side closes the connection.
    ExpectClose,
    /// Sends FIN, and can still read.
    HalfClose,
    /// Closes: FIN, if everything has been read.
    Fin,
    /// Closes by RST.
    Rst,
    /// Ends the stream with this code, on HTTP/2 alone.
    ResetStream(u32),
    /// Waits until the other side ends the stream, for a far end on HTTP/2 alone.
    ExpectReset,
    /// Sends GOAWAY, on HTTP/2 alone: streams that were begun are finished.
    GoAway,
    /// The same, and ends the connection at once.
    GoAwayNow,
    /// Sends PING and waits for the answer, on HTTP/2 alone.
    Ping,
    /// Says that it has come so far.
    Signal(&'static str),
    /// Waits for the other side to say so.
    Await(&'static str),
    /// From here on reads that many bytes at a time, with a pause before each.
    Slowly(usize),
    /// Lets time pass.
    Pause(Duration),
}

impl Do {
    /// Whether it only sends bytes.
    pub(crate) fn sends(&self) -> bool {
        matches!(self, Self::Head(_) | Self::Data(_) | Self::Trailers(_) | Self::End | Self::Raw(_))
    }

    /// A request.
    pub fn request(method: &'static str, framing: Framing) -> Self {
        Self::Head(Head { start: method.into(), headers: Vec::new(), framing })
    }

    /// A response.
    pub fn status(status: u16, framing: Framing) -> Self {
        Self::Head(Head { start: status.to_string().into(), headers: Vec::new(), framing })
    }

    /// Bytes as they are.
    pub fn raw(text: &'static str) -> Self {
        Self::Raw(Bytes::from_static(text.as_bytes()))
    }

    /// The same with one more header.
    #[must_use]
    pub fn with(self, name: &'static str, value: &'static str) -> Self {
        let Self::Head(mut head) = self else { panic!("only a head has headers") };
        head.headers.push((name.into(), value.into()));
        Self::Head(head)
    }
}

/// What was said between the two sides, and what is under way.
#[derive(Debug, Default)]
pub struct Signals {
    said: Mutex<BTreeSet<&'static str>>,
    news: Notify,
    passage: Mutex<Passage>,
}

impl Signals {
    /// Says it.
    pub fn say(&self, what: &'static str) {
        self.said.lock().expect("no panic under the lock").insert(what);
        self.news.notify_waiters();
    }

    /// This side sends something, or ends the connection.
    pub fn sent(&self, by: Side) {
        self.passage.lock().expect("no panic under the lock").sent(by, Instant::now());
    }

    /// This side receives something, or the end.
    pub fn came(&self, to: Side) {
        self.passage.lock().expect("no panic under the lock").came(to, Instant::now());
    }

    /// How long it took from one side to the other, at most.
    pub fn longest_passage(&self) -> Duration {
        self.passage.lock().expect("no panic under the lock").longest()
    }

    /// Waits for it, and tells whether it came.
    pub async fn wait(&self, what: &'static str) -> bool {
        let heard = async {
            loop {
                let news = self.news.notified();
                tokio::pin!(news);
                news.as_mut().enable();
                if self.said.lock().expect("no panic under the lock").contains(what) {
                    return;
                }
                news.await;
            }
        };
        timeout(NEVER, heard).await.is_ok()
    }
}

/// The bytes of a body from this place on.
pub fn pattern(from: usize, length: usize) -> Bytes {
    (from..from + length).map(|at| b'a' + u8::try_from((at ^ (at >> 9)) % 26).expect("below 26")).collect()
}

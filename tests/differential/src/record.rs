//! What one side saw: the messages on each connection, and how it ended.

use std::{collections::BTreeMap, fmt};

/// One message, as far as it came.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Message {
    /// The request line, or the status line.
    pub start: String,
    /// The headers in their order, what differs from run to run made equal.
    pub headers: Vec<(String, String)>,
    /// How many bytes of body.
    pub length: usize,
    /// Which ones: FNV-1a.
    pub hash: u64,
    /// The trailers.
    pub trailers: Vec<(String, String)>,
    /// How it ended.
    pub end: MessageEnd,
}

/// How a message ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum MessageEnd {
    /// It did not.
    #[default]
    Unfinished,
    /// Whole.
    Complete,
    /// What came was no HTTP.
    Malformed(String),
    /// The stream was reset with this code.
    Reset(u32),
    /// There was GOAWAY with this code.
    GoAway(u32),
    /// The connection broke.
    Broken,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// It has not.
    Open,
    /// The other side sent FIN.
    Fin,
    /// The other side sent RST.
    Rst,
    /// This side closed it.
    Ours,
    /// What was waited for never came.
    Never,
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// What was received on it.
    pub messages: Vec<Message>,
    /// How it ended.
    pub end: End,
}

/// What both sides saw.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Observation {
    /// The clients, in the order of the script.
    pub clients: Vec<Connection>,
    /// The far end's connections, in an order of their content.
    pub far_end: Vec<Connection>,
    /// What Envoy has counted meanwhile: requests by status, resets, retries, connections.
    pub counted: BTreeMap<String, u64>,
}

/// Headers that `client_ip` is asked to write or to take out.
pub(crate) const ADDRESSES: [&str; 3] = ["x-forwarded-for", "x-real-ip", "x-envoy-external-address"];

impl Message {
    /// Adds bytes of body.
    pub fn add(&mut self, bytes: &[u8]) {
        if self.length == 0 {
            self.hash = 0xcbf2_9ce4_8422_2325;
        }
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.length += bytes.len();
    }

    /// Adds a header, what differs from run to run made equal. The client's own address in [`ADDRESSES`] counts as not there.
    pub fn header(&mut self, name: &str, value: &str) {
        if ADDRESSES.contains(&name) && value == "127.0.0.1" {
            return;
        }
        let varies = matches!(name, "date" | "x-request-id" | "x-envoy-upstream-service-time" | "keep-alive");
        // What is left of the route's timeout, to five seconds.
        let left = value.parse::<u64>().ok().filter(|_| name == "x-envoy-expected-rq-timeout-ms");
        let value = match left {
            Some(left) => (left.div_ceil(5_000) * 5_000).to_string(),
            None if varies => "…".to_owned(),
            None => value.to_owned(),
        };
        self.headers.push((name.to_owned(), value));
    }

    /// The status, if it is a response.
    pub fn status(&self) -> u16 {
        self.start.split(' ').find_map(|word| word.parse().ok()).unwrap_or(0)
    }
}

impl Connection {
    /// How much had come when this side gave up is chance.
    #[must_use]
    pub fn settled(mut self) -> Self {
        if self.end == End::Ours {
            for message in self.messages.iter_mut().filter(|message| message.end == MessageEnd::Unfinished) {
                (message.length, message.hash) = (0, 0);
            }
        }
        self
    }
}

impl Observation {
    /// As if the far end had never seen these headers.
    pub fn without(&mut self, names: &[&str]) {
        for message in self.far_end.iter_mut().flat_map(|connection| &mut connection.messages) {
            message.headers.retain(|(name, _)| !names.contains(&name.as_str()));
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.start)?;
        for (name, value) in &self.headers {
            write!(f, " | {name}: {value}")?;
        }
        write!(f, " || {} bytes ({:x})", self.length, self.hash & 0xffff)?;
        for (name, value) in &self.trailers {
            write!(f, " | {name}: {value}")?;
        }
        write!(f, " {:?}", self.end)
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (who, connections) in [("client", &self.clients), ("far end", &self.far_end)] {
            for connection in connections {
                writeln!(f, "  {who}: ended {:?}", connection.end)?;
                connection.messages.iter().try_for_each(|message| writeln!(f, "    {message}"))?;
            }
        }
        writeln!(f, "  counted: {:?}", self.counted)
    }
}

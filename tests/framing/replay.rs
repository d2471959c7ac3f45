//! Plays a sequence of messages, cut and merged in every way, and holds the states against the table.

use idleguard::framing::{Direction, Framing, KeepAlive, Progress, Protocol};

/// Who acts in a step: the client or the server sends, or ends its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    C,
    S,
    ClientEof,
    ServerEof,
}

/// What passes, and the state after it.
///
/// A state reads `h1 1* last 2/1 timeout=5 max=9`: the protocol, the exchanges in flight, a star once the oldest has
/// seen a response byte, `last` if the connection is not reusable, requests started and responses completed since the
/// start, and the latest hint.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) side: Side,
    pub(crate) bytes: Vec<u8>,
    pub(crate) state: &'static str,
}

pub(crate) fn step(side: Side, bytes: impl AsRef<[u8]>, state: &'static str) -> Step {
    Step { side, bytes: bytes.as_ref().to_vec(), state }
}

/// A framing and the sum of what it reported.
pub(crate) struct Observed {
    pub(crate) framing: Framing,
    pub(crate) started: u32,
    pub(crate) completed: u32,
    keep_alive: Option<KeepAlive>,
    /// The host hands out at most this many bytes a call.
    stingy: usize,
}

impl Observed {
    pub(crate) fn new() -> Self {
        Self { framing: Framing::new(), started: 0, completed: 0, keep_alive: None, stingy: usize::MAX }
    }

    fn stingy(stingy: usize) -> Self {
        Self { stingy, ..Self::new() }
    }

    pub(crate) fn pass(&mut self, direction: Direction, bytes: &[u8]) {
        let mut reached = 0;
        let stingy = self.stingy;
        let progress = self.framing.advance(direction, bytes.len() as u64, |offset, max_len| {
            assert!(offset >= reached, "asked for {offset} after {reached}");
            assert!(max_len > 0 && offset + max_len <= bytes.len() as u64, "asked beyond the event");
            let len = (max_len as usize).min(stingy);
            reached = offset + len as u64;
            Some(bytes[offset as usize..][..len].to_vec())
        });
        self.add(&progress);
    }

    pub(crate) fn act(&mut self, side: Side, bytes: &[u8]) {
        match side {
            Side::C => self.pass(Direction::Request, bytes),
            Side::S => self.pass(Direction::Response, bytes),
            Side::ClientEof => {
                let progress = self.framing.on_eof(Direction::Request);
                self.add(&progress);
            }
            Side::ServerEof => {
                let progress = self.framing.on_eof(Direction::Response);
                self.add(&progress);
            }
        }
    }

    fn add(&mut self, progress: &Progress) {
        self.started += progress.requests_started;
        self.completed += progress.responses_completed;
        self.keep_alive = progress.keep_alive.or(self.keep_alive);
        assert!(!(progress.no_reuse && self.framing.reusable()), "said to be the last, yet reusable");
    }

    pub(crate) fn state(&self) -> String {
        let framing = &self.framing;
        let (protocol, followed) = match framing.protocol() {
            Protocol::Unknown => ("?".to_owned(), true),
            Protocol::Http1 => ("h1".to_owned(), true),
            Protocol::Http2 => ("h2".to_owned(), true),
            Protocol::Tunnel => ("tunnel".to_owned(), false),
            Protocol::Opaque(cause) => (format!("{cause:?}"), false),
        };
        let star = if followed && framing.response_started() { "*" } else { "" };
        let last = if framing.reusable() { "" } else { " last" };
        let mut state = format!("{protocol} {}{star}{last} {}/{}", framing.in_flight(), self.started, self.completed);
        if let Some(hint) = self.keep_alive {
            if let Some(timeout) = hint.timeout {
                state += &format!(" timeout={}", timeout.as_secs());
            }
            if let Some(max) = hint.max {
                state += &format!(" max={max}");
            }
        }
        state
    }
}

/// The states after each step, with step `cut` (if any) in two events.
fn play(steps: &[Step], mut observed: Observed, cut: Option<(usize, usize)>) -> Vec<String> {
    let mut states = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        match cut {
            Some((at, position)) if at == index => {
                observed.act(step.side, &step.bytes[..position]);
                observed.act(step.side, &step.bytes[position..]);
            }
            _ => observed.act(step.side, &step.bytes),
        }
        states.push(observed.state());
    }
    states
}

/// Every table goes through here: whole, cut in two at every position, byte by byte, with a host that hands out few
/// bytes a call, and with neighbours in the same direction merged.
pub(crate) fn check(cases: &[(&str, Vec<Step>)]) {
    let mut failures = Vec::new();
    let mut names = std::collections::HashSet::new();
    for (name, steps) in cases {
        assert!(names.insert(name), "two cases are called {name:?}");
        let expected: Vec<&str> = steps.iter().map(|step| step.state).collect();
        let whole = play(steps, Observed::new(), None);
        if whole != expected {
            failures.push(format!("{name}\n     want {expected:?}\n      got {whole:?}"));
            continue;
        }
        for (index, step) in steps.iter().enumerate() {
            for position in 1..step.bytes.len() {
                let cut = play(steps, Observed::new(), Some((index, position)));
                assert_eq!(cut, expected, "{name}: step {index} cut at {position}");
            }
        }
        let mut bytewise = Observed::new();
        for (step, state) in steps.iter().zip(&expected) {
            match step.side {
                Side::C | Side::S => step.bytes.chunks(1).for_each(|byte| bytewise.act(step.side, byte)),
                _ => bytewise.act(step.side, &[]),
            }
            assert_eq!(bytewise.state(), *state, "{name}: byte by byte");
        }
        for stingy in [1, 2, 3, 7, 24] {
            assert_eq!(play(steps, Observed::stingy(stingy), None), expected, "{name}: {stingy} bytes a call");
        }
        let mut merged = Observed::new();
        for group in steps.chunk_by(|one, next| one.side == next.side && matches!(one.side, Side::C | Side::S)) {
            let bytes: Vec<u8> = group.iter().flat_map(|step| step.bytes.clone()).collect();
            merged.act(group[0].side, &bytes);
            assert_eq!(merged.state(), group.last().unwrap().state, "{name}: merged");
        }
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

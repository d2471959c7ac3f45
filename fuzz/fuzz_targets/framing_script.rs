//! Shared by the framing targets: an input is a script of events, and two framings must agree about it however its
//! bytes are cut.

use idleguard::framing::{Direction, Framing, Progress, Protocol};

/// Bytes that pass in one direction.
pub struct Event<'data> {
    pub direction: Direction,
    pub bytes: &'data [u8],
    /// The direction ends with them.
    pub eof: bool,
}

/// Each event is a byte for its direction (bit 0), end (bits 1 to 3 all set) and length (bits 4 to 7, in units of
/// sixteen, 15 for all the rest), a byte that adds to the length, and as many bytes as there are.
pub fn events(mut data: &[u8]) -> Vec<Event<'_>> {
    let mut events = Vec::new();
    while let [control, extra, rest @ ..] = data {
        let direction = if control & 1 == 0 { Direction::Request } else { Direction::Response };
        let units = usize::from(control >> 4);
        let len = if units == 15 { rest.len() } else { units * 16 + usize::from(*extra) };
        let (bytes, after) = rest.split_at(len.min(rest.len()));
        events.push(Event { direction, bytes, eof: control & 0x0e == 0x0e });
        data = after;
    }
    events
}

/// A framing, and what it has reported.
pub struct Run {
    pub framing: Framing,
    pub total: Progress,
    stingy: usize,
}

impl Run {
    /// With a host that hands out at most `stingy` bytes a call.
    pub fn new(stingy: usize) -> Self {
        Self { framing: Framing::new(), total: Progress::default(), stingy }
    }

    pub fn pass(&mut self, direction: Direction, bytes: &[u8]) {
        let (stingy, mut reached) = (self.stingy, 0);
        let was_opaque = matches!(self.framing.protocol(), Protocol::Opaque(_) | Protocol::Tunnel);
        let progress = self.framing.advance(direction, bytes.len() as u64, |offset, max_len| {
            assert!(!was_opaque, "an opaque connection was read");
            assert!(offset >= reached && max_len > 0 && offset + max_len <= bytes.len() as u64);
            let len = (max_len as usize).min(stingy);
            reached = offset + len as u64;
            Some(bytes[offset as usize..][..len].to_vec())
        });
        self.add(&progress);
    }

    pub fn eof(&mut self, direction: Direction) {
        let progress = self.framing.on_eof(direction);
        assert!(!self.framing.reusable());
        self.add(&progress);
    }

    fn add(&mut self, progress: &Progress) {
        self.total.requests_started += progress.requests_started;
        self.total.responses_completed += progress.responses_completed;
        self.total.keep_alive = progress.keep_alive.or(self.total.keep_alive);
        self.total.no_reuse |= progress.no_reuse;
        assert_eq!(self.framing.reusable(), !self.total.no_reuse);
        assert!(self.total.responses_completed <= self.total.requests_started);
        if matches!(self.framing.protocol(), Protocol::Http1) {
            // Whatever is unanswered is in flight, and at most one more, whose response came early.
            let unanswered = self.total.requests_started - self.total.responses_completed;
            assert!((unanswered..=unanswered + 1).contains(&self.framing.in_flight()));
        }
    }

    /// Everything that can be asked.
    pub fn state(&self) -> (Protocol, u32, bool, bool, &Progress) {
        let framing = &self.framing;
        (framing.protocol(), framing.in_flight(), framing.response_started(), framing.reusable(), &self.total)
    }
}

/// Plays `events` whole, byte by byte, in pieces of `piece` bytes, and with a stingy host: the states after each event
/// must be the same. Returns the run that saw them whole.
pub fn check(events: &[Event<'_>], piece: usize) -> Run {
    let mut whole = Run::new(usize::MAX);
    let mut others = [(Run::new(usize::MAX), 1), (Run::new(usize::MAX), piece.max(1)), (Run::new(3), usize::MAX)];
    for event in events {
        whole.pass(event.direction, event.bytes);
        for (run, piece) in &mut others {
            event.bytes.chunks(*piece).for_each(|bytes| run.pass(event.direction, bytes));
        }
        if event.eof {
            whole.eof(event.direction);
            others.iter_mut().for_each(|(run, _)| run.eof(event.direction));
        }
        for (run, piece) in &others {
            assert_eq!(run.state(), whole.state(), "in pieces of {piece}");
        }
    }
    whole
}

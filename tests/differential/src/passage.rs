//! How long what one side sends takes to the other, on one clock.
//!
//! Counted from the first thing that was sent since the other side last received something, until that receives again. What Envoy
//! answers for itself is nothing that was sent, and what never arrives is seen otherwise.

use std::time::{Duration, Instant};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A client.
    Client,
    /// The far end.
    FarEnd,
}

/// Both ways between the two sides of a case.
#[derive(Debug, Default)]
pub struct Passage {
    under_way: [Option<Instant>; 2],
    longest: Duration,
}

impl Passage {
    /// This side sends something, or ends the connection.
    pub fn sent(&mut self, by: Side, now: Instant) {
        self.under_way[by as usize].get_or_insert(now);
    }

    /// This side receives something, or the end.
    pub fn came(&mut self, to: Side, now: Instant) {
        let by = if to == Side::Client { Side::FarEnd } else { Side::Client };
        if let Some(since) = self.under_way[by as usize].take() {
            self.longest = self.longest.max(now - since);
        }
    }

    /// The longest so far.
    pub fn longest(&self) -> Duration {
        self.longest
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Passage, Side};

    #[test]
    fn each_way_counts_from_what_was_sent_first() {
        let (mut passage, start) = (Passage::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        passage.came(Side::Client, at(0)); // by Envoy itself
        passage.sent(Side::Client, at(1));
        passage.sent(Side::Client, at(4));
        passage.came(Side::FarEnd, at(6));
        assert_eq!(passage.longest(), Duration::from_millis(5));
        passage.sent(Side::FarEnd, at(7));
        passage.came(Side::FarEnd, at(9)); // nothing is under way to it
        passage.came(Side::Client, at(14));
        assert_eq!(passage.longest(), Duration::from_millis(7));
    }
}

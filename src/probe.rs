//! Asking the far end for its idle timeout, for those that forget silently.
//!
//! One connection that no user's request shares: a request, a gap, a request. The second one's answer says whether the
//! connection was still there, and begins the next gap. The gaps double until one is too long, then halve the distance (as
//! a ratio) until the bounds are within 10 %, after which an answer is asked for rarely, in case the setting changes. A gap
//! is too long if two requests in a row fail after it: one failure may be a restart.

use std::time::Duration;

use crate::learner::{Bracket, Evidence, SHORTEST_AGE};
use crate::time::Timestamp;

/// The first gap: what the shortest timeouts in the field survive or don't.
pub const FIRST_GAP: Duration = Duration::from_secs(1);

/// Two probes are at least this far apart, whatever the answers say.
pub const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// The pause after a request on a fresh connection failed: the far end is down, and says nothing about timeouts.
pub const DOWN_PAUSE: Duration = Duration::from_secs(30);

/// The shortest time from one look at a known timeout to the next.
pub const RECHECK: Duration = Duration::from_secs(600);

/// Where the probe's connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is none, or none that is to be used again; the next request is to open one.
    Cold { ask_at: Timestamp },
    /// It idles since its last answer; the next request comes after the gap.
    Warm { since: Timestamp, ask_at: Timestamp },
    /// A request is in flight; `gap` is the idle age at which it found the connection, `None` on a fresh one.
    Asking { gap: Option<Duration> },
}

/// How a probe's request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With a response, whatever its status.
    Response,
    /// Without one: a reset, a close, or nothing in time. Its connection is not used again.
    Failure,
}

/// One destination's probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probing {
    state: State,
    bracket: Bracket,
    longest_gap: Duration,
    /// A failure after this gap is to be confirmed.
    suspect: Option<Duration>,
    /// Whether the next look at a known timeout is at its upper bound.
    look_up: bool,
}

impl Probing {
    /// Begins, or goes on where another worker stopped: `bracket` is what is known. Gaps stay below `longest_gap`.
    pub fn new(bracket: Bracket, longest_gap: Duration, now: Timestamp) -> Self {
        let longest_gap = longest_gap.max(FIRST_GAP);
        // Not before Envoy has started.
        let state = State::Cold { ask_at: now.after(SHORTEST_PAUSE) };
        Self { state, bracket, longest_gap, suspect: None, look_up: false }
    }

    /// When the next request is to be sent; `None` while one is in flight.
    pub fn ask_at(&self) -> Option<Timestamp> {
        match self.state {
            State::Cold { ask_at } | State::Warm { ask_at, .. } => Some(ask_at),
            State::Asking { .. } => None,
        }
    }

    /// Whether the next request belongs on the connection of the last one. If not, it must get one of its own, and what is
    /// left of the last one may be closed.
    pub fn is_warm(&self) -> bool {
        matches!(self.state, State::Warm { .. })
    }

    /// Whether a request is to be sent now; if so it counts as sent, and [`on_answer`](Self::on_answer) must follow.
    pub fn ask(&mut self, now: Timestamp) -> bool {
        if self.ask_at().is_none_or(|at| at > now) {
            return false;
        }
        self.state = State::Asking {
            gap: match self.state {
                State::Warm { since, .. } => Some(now.since(since)),
                State::Cold { .. } | State::Asking { .. } => None,
            },
        };
        true
    }

    /// The request in flight got a connection of its own after all.
    pub fn on_fresh(&mut self) {
        if let State::Asking { gap } = &mut self.state {
            *gap = None;
        }
    }

    /// The probe's connection was closed while it idled: no answer will come, and the next request opens another.
    pub fn on_closed(&mut self, now: Timestamp) -> Option<Evidence> {
        let State::Warm { since, .. } = self.state else { return None };
        let gap = now.since(since);
        // Who closes behind every response can't be asked.
        self.state = State::Asking { gap: Some(gap).filter(|gap| *gap >= SHORTEST_AGE) };
        self.on_answer(Answer::Failure, now)
    }

    /// The request in flight never showed on a connection of the probe's, `misses` times in a row now, or the connection is
    /// not its own: nothing more is to be asked on it, and nothing for a while.
    pub fn on_disturbed(&mut self, misses: u32, now: Timestamp) {
        self.suspect = None;
        let pause = DOWN_PAUSE.saturating_mul(1 << misses.clamp(1, 8).saturating_sub(1));
        self.state = State::Cold { ask_at: now.after(pause) };
    }

    /// A request ended. Returns what that says.
    pub fn on_answer(&mut self, answer: Answer, now: Timestamp) -> Option<Evidence> {
        let State::Asking { gap } = self.state else { return None };
        let evidence = match (answer, gap) {
            (Answer::Response, Some(gap)) => Some(self.survive(gap, now)),
            (Answer::Failure, Some(gap)) => self.fail(gap, now),
            (_, None) => None,
        };
        self.state = match (answer, gap) {
            (Answer::Response, Some(_)) if self.is_settled() => State::Cold { ask_at: now.after(RECHECK) },
            (Answer::Response, _) => {
                let gap = self.next_gap();
                State::Warm { since: now, ask_at: now.after(gap.max(SHORTEST_PAUSE)) }
            }
            (Answer::Failure, Some(_)) => State::Cold { ask_at: now.after(self.pause()) },
            (Answer::Failure, None) => State::Cold { ask_at: now.after(DOWN_PAUSE) },
        };
        evidence
    }

    fn survive(&mut self, gap: Duration, now: Timestamp) -> Evidence {
        self.suspect = None;
        if self.bracket.is_narrow() {
            self.look_up = !self.look_up;
        }
        self.bracket.survive(gap, now);
        Evidence::ProbeSurvived { gap }
    }

    fn fail(&mut self, gap: Duration, now: Timestamp) -> Option<Evidence> {
        match self.suspect.take() {
            Some(suspect) => {
                if self.bracket.is_narrow() {
                    self.look_up = !self.look_up;
                }
                let gap = gap.max(suspect);
                self.bracket.fail(gap, now);
                Some(Evidence::ProbeFailed { gap })
            }
            None => {
                self.suspect = Some(gap);
                None
            }
        }
    }

    /// How long the connection is to idle before the next request.
    fn next_gap(&self) -> Duration {
        if let Some(suspect) = self.suspect {
            return suspect;
        }
        let Bracket { lower, upper, .. } = self.bracket;
        let gap = match upper {
            // A look at what is known: is it still so?
            Some(upper) if self.bracket.is_narrow() => {
                if self.look_up {
                    upper
                } else {
                    lower
                }
            }
            Some(upper) if lower > Duration::ZERO => geometric_mean(lower, upper),
            Some(upper) => upper.checked_div(2).unwrap_or_default(),
            None => lower.saturating_mul(2).max(FIRST_GAP),
        };
        gap.min(self.longest_gap)
    }

    /// How long to wait before a connection is opened after the last one was lost.
    fn pause(&self) -> Duration {
        if self.is_settled() && self.suspect.is_none() { RECHECK } else { SHORTEST_PAUSE }
    }

    /// Whether there is nothing more to find out: the bounds are close, or the timeout is longer or shorter than any gap.
    fn is_settled(&self) -> bool {
        let is_tiny = self.bracket.upper.is_some_and(|upper| upper < FIRST_GAP.saturating_mul(2))
            && self.bracket.lower == Duration::ZERO;
        self.bracket.is_narrow() || self.bracket.lower >= self.longest_gap || is_tiny
    }
}

/// The gap that is as many times longer than `lower` as `upper` is longer than it.
fn geometric_mean(lower: Duration, upper: Duration) -> Duration {
    let seconds = (lower.as_secs_f64() * upper.as_secs_f64()).sqrt();
    Duration::try_from_secs_f64(seconds).unwrap_or(lower).clamp(lower, upper)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    /// Plays against a far end that forgets silently; returns how many requests it took.
    fn play(probing: &mut Probing, now: &mut Timestamp, timeout: Duration, until: Duration) -> usize {
        let (end, mut asked) = (now.after(until), 0);
        while *now < end {
            let warm_since = if let State::Warm { since, .. } = probing.state { Some(since) } else { None };
            *now = probing.ask_at().unwrap().max(*now);
            assert!(probing.ask(*now) && !probing.ask(*now), "one request at a time");
            asked += 1;
            let is_there = warm_since.is_none_or(|since| now.since(since) < timeout);
            probing.on_answer(if is_there { Answer::Response } else { Answer::Failure }, *now);
            assert!(probing.ask_at().unwrap().since(*now) >= SHORTEST_PAUSE, "the rate is bounded");
        }
        asked
    }

    #[test]
    fn it_closes_in_on_any_timeout_within_ten_per_cent_and_then_rests() {
        for millis in [1_500, 2_000, 6_000, 60_000, 350_000, 3_000_000] {
            let timeout = Duration::from_millis(millis);
            let mut now = Timestamp::from_millis(1);
            let mut probing = Probing::new(Bracket::default(), Duration::from_secs(3600), now);
            let search = timeout * 25;
            play(&mut probing, &mut now, timeout, search);
            assert!(probing.bracket.is_narrow(), "{timeout:?}: {:?}", probing.bracket);
            assert!(probing.bracket.lower < timeout && probing.bracket.upper.unwrap() >= timeout);
            let asked = play(&mut probing, &mut now, timeout, RECHECK * 20);
            assert!(asked <= 21 * 4, "{asked} requests while there is nothing to find out");
        }
    }

    #[test]
    fn six_seconds_are_found_within_three_minutes() {
        let mut now = Timestamp::from_millis(1);
        let mut probing = Probing::new(Bracket::default(), Duration::from_secs(3600), now);
        play(&mut probing, &mut now, Duration::from_secs(6), Duration::from_secs(150));
        assert!(probing.bracket.is_narrow() && probing.bracket.lower >= Duration::from_millis(5_400));
    }

    #[test]
    fn a_changed_timeout_is_found_by_a_later_look() {
        let mut now = Timestamp::from_millis(1);
        let mut probing = Probing::new(Bracket::default(), Duration::from_secs(3600), now);
        for seconds in [60, 20, 90] {
            let timeout = Duration::from_secs(seconds);
            play(&mut probing, &mut now, timeout, Duration::from_secs(4 * 3600));
            assert!(probing.bracket.is_narrow(), "{seconds}: {:?}", probing.bracket);
            assert!(probing.bracket.lower < timeout && probing.bracket.upper.unwrap() >= timeout);
        }
    }

    #[test]
    fn a_close_behind_the_response_and_a_connection_of_another_say_nothing() {
        let now = Timestamp::from_millis(1);
        let mut probing = Probing::new(Bracket::default(), Duration::from_secs(3600), now);
        assert!(!probing.ask(now));
        let now = now.after(SHORTEST_PAUSE);
        assert!(probing.ask(now));
        probing.on_answer(Answer::Response, now);
        assert_eq!(probing.on_closed(now.after(Duration::from_millis(1))), None);
        assert_eq!(probing.ask_at(), Some(now.after(DOWN_PAUSE + Duration::from_millis(1))));

        let mut probing = Probing::new(Bracket::default(), Duration::from_secs(3600), now);
        let now = now.after(SHORTEST_PAUSE);
        assert!(probing.ask(now));
        probing.on_answer(Answer::Response, now);
        let now = now.after(FIRST_GAP);
        assert!(probing.ask(now));
        probing.on_fresh();
        assert_eq!(probing.on_answer(Answer::Response, now), None);
    }

    #[test]
    fn where_probes_are_never_seen_they_become_rare() {
        let mut now = Timestamp::from_millis(1);
        let mut probing = Probing::new(Bracket::default(), Duration::from_secs(3600), now);
        let mut pauses = Vec::new();
        for misses in 1..=10 {
            now = probing.ask_at().unwrap();
            assert!(probing.ask(now));
            probing.on_disturbed(misses, now);
            pauses.push(probing.ask_at().unwrap().since(now).as_secs());
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 960, 1920, 3840, 3840, 3840]);
    }

    #[test]
    fn one_failure_is_an_accident_and_a_far_end_that_is_down_says_nothing() {
        let now = Timestamp::from_millis(1);
        let mut probing = Probing::new(Bracket::default(), Duration::from_secs(3600), now);
        assert!(!probing.ask(now));
        let now = now.after(SHORTEST_PAUSE);
        assert!(probing.ask(now));
        assert_eq!(probing.on_answer(Answer::Failure, now), None);
        assert_eq!(probing.ask_at(), Some(now.after(DOWN_PAUSE)));
        let now = now.after(DOWN_PAUSE);
        assert!(probing.ask(now));
        assert_eq!(probing.on_answer(Answer::Response, now), None);
        let now = now.after(FIRST_GAP);
        assert!(probing.ask(now));
        assert_eq!(probing.on_answer(Answer::Failure, now), None);
        assert!(!probing.is_warm() && probing.bracket == Bracket::default());
    }
}

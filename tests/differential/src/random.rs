//! Random combinations of what clients and far ends do: the same from the same seed, and small again when one is worse.

use anyhow::Result;
use fastrand::Rng;

use crate::{
    Protocol::{self, Http1, Http2},
    breaks::Edit,
    case::{Case, Client},
    far_end::Kind,
    script::{
        Do::{
            self, Await, Data, End, ExpectClose, ExpectData, ExpectEnd, ExpectHead, ExpectReset, Fin, HalfClose,
            ResetStream, Rst, Signal, Slowly,
        },
        Framing::{self, Chunked, Length, Nothing},
    },
    setup::Setup,
    suite::Subjects,
};

/// Who ends something before it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Nobody,
    Client,
    FarEnd,
}

/// In which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Fin,
    Rst,
    /// RST_STREAM on HTTP/2, a half-close on HTTP/1.1.
    Reset,
    /// GOAWAY by a far end that speaks HTTP/2; else as `Fin`.
    GoAway,
}

/// And where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    InRequest,
    BeforeAnswer,
    InAnswer,
    BehindAnswer,
}

/// One combination.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Combination {
    setup: Setup,
    client: Protocol,
    requests: usize,
    method: &'static str,
    up: usize,
    up_is_chunked: bool,
    up_trailers: bool,
    status: u16,
    down: usize,
    down_framing: u8,
    down_trailers: bool,
    interim: u16,
    header: Option<(&'static str, &'static str)>,
    answer_header: Option<(&'static str, &'static str)>,
    pieces: usize,
    early: bool,
    slow: Who,
    failed_attempts: usize,
    who: Who,
    how: How,
    point: Point,
}

/// What a combination is before chance has its way.
const SIMPLE: Combination = Combination {
    setup: Setup::Usual,
    client: Http1,
    requests: 1,
    method: "GET",
    up: 0,
    up_is_chunked: false,
    up_trailers: false,
    status: 200,
    down: 2,
    down_framing: 0,
    down_trailers: false,
    interim: 0,
    header: None,
    answer_header: None,
    pieces: 1,
    early: false,
    slow: Who::Nobody,
    failed_attempts: 0,
    who: Who::Nobody,
    how: How::Fin,
    point: Point::InAnswer,
};

impl Combination {
    fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let rng = &mut rng;
        Self {
            setup: pick(rng, &Setup::ALL),
            client: pick(rng, &[Http1, Http1, Http2]),
            requests: pick(rng, &[1, 1, 1, 2, 5]),
            method: pick(
                rng,
                &["GET", "GET", "POST", "POST", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "FROBNICATE"],
            ),
            up: size(rng),
            up_is_chunked: rng.bool(),
            up_trailers: rng.u8(..4) == 0,
            status: pick(
                rng,
                &[200, 200, 200, 200, 201, 204, 206, 301, 304, 400, 401, 404, 413, 429, 500, 502, 503, 504, 599],
            ),
            down: size(rng),
            down_framing: rng.u8(..3),
            down_trailers: rng.u8(..4) == 0,
            interim: pick(rng, &[0, 0, 0, 0, 100, 102, 103]),
            header: pick(
                rng,
                &[
                    None,
                    None,
                    Some(("connection", "close")),
                    Some(("expect", "100-continue")),
                    Some(("x-forwarded-for", "1.2.3.4")),
                    Some(("accept-encoding", "gzip")),
                    Some(("x-envoy-retry-on", "5xx")),
                    Some(("x-envoy-upstream-rq-timeout-ms", "9000")),
                    Some(("te", "trailers")),
                    Some(("cookie", "a=1; b=2")),
                    Some(("authorization", "Bearer x")),
                    Some(("range", "bytes=0-1")),
                ],
            ),
            answer_header: pick(
                rng,
                &[
                    None,
                    None,
                    Some(("connection", "close")),
                    Some(("keep-alive", "timeout=5")),
                    Some(("set-cookie", "a=1")),
                    Some(("x-envoy-overloaded", "true")),
                    Some(("content-encoding", "gzip")),
                    Some(("server", "far")),
                    Some(("x-idleguard", "1")),
                ],
            ),
            pieces: pick(rng, &[1, 1, 2, 3]),
            early: rng.u8(..5) == 0,
            slow: pick(rng, &[Who::Nobody, Who::Nobody, Who::Nobody, Who::Nobody, Who::Client, Who::FarEnd]),
            failed_attempts: pick(rng, &[0, 0, 0, 1, 2]),
            who: pick(rng, &[Who::Nobody, Who::Nobody, Who::Client, Who::FarEnd]),
            how: pick(rng, &[How::Fin, How::Rst, How::Reset, How::GoAway]),
            point: pick(rng, &[Point::InRequest, Point::BeforeAnswer, Point::InAnswer, Point::BehindAnswer]),
        }
        .sensible()
    }

    /// What can't be said in a protocol is left out.
    fn sensible(mut self) -> Self {
        let far_end = self.setup.far_end();
        if matches!(self.method, "GET" | "HEAD" | "OPTIONS") {
            (self.up, self.up_is_chunked, self.up_trailers) = (0, false, false);
        }
        self.up_trailers &= self.up_is_chunked && self.setup != Setup::Usual;
        if self.method == "HEAD" || matches!(self.status, 204 | 304) {
            (self.down, self.down_trailers) = (0, false);
            self.down_framing = 0;
        }
        if self.down_trailers {
            self.down_framing = 1;
        }
        if far_end == Http2 && self.interim == 100 {
            self.interim = 0; // only to those who ask
        }
        // A first attempt that fails waits for the whole request, which does not come.
        let is_cut = self.early || (self.who != Who::Nobody && self.point == Point::InRequest);
        if self.setup != Setup::Retries || is_cut {
            self.failed_attempts = 0;
        }
        // Streams beside each other share or open connections as it happens; one after the other they are as on HTTP/1.1.
        if self.client == Http2 && far_end == Http1 {
            self.requests = 1;
        }
        if self.slow != Who::Nobody {
            (self.up, self.down) = (self.up.min(200_000), self.down.min(200_000));
        }
        if self.header.is_some_and(|(name, _)| name == "connection") {
            self.requests = 1;
            if self.client == Http2 {
                self.header = None;
            }
        }
        if self.answer_header.is_some_and(|(name, _)| matches!(name, "connection" | "keep-alive")) && far_end == Http2 {
            self.answer_header = None;
        }
        self.early &= self.up > 1;
        if self.point == Point::InRequest && self.up < 2 {
            self.point = Point::BeforeAnswer;
        }
        if self.point == Point::InAnswer && self.down < 2 {
            self.point = Point::BehindAnswer;
        }
        if self.who != Who::Nobody {
            self.early = false;
            if self.client == Http2 {
                self.requests = 1; // how far the others have come when one ends all is chance
            }
        }
        self
    }

    /// One thing less, each in its turn.
    fn simpler(&self) -> Vec<Self> {
        let mut all = Vec::new();
        macro_rules! with {
            ($($field:ident),+) => {{
                let mut one = self.clone();
                $(one.$field = SIMPLE.$field;)+
                all.push(one.sensible());
            }};
        }
        with!(who, how, point);
        with!(how);
        with!(requests);
        with!(header);
        with!(answer_header);
        with!(interim);
        with!(slow);
        with!(early);
        with!(pieces);
        with!(failed_attempts);
        with!(up_trailers);
        with!(down_trailers);
        with!(up_is_chunked);
        with!(down_framing);
        with!(up);
        with!(down);
        with!(status);
        with!(method, up, up_is_chunked, up_trailers);
        with!(client);
        all.retain(|one| one != self);
        all
    }

    fn case(&self, seed: u64) -> Case {
        let streams = (0..self.requests).map(|at| (format!("/{at}?seed={seed}"), self.client_steps(at)));
        let answers = (0..self.requests).map(|at| self.far_end_attempts(at));
        Case {
            name: format!("seed {seed}"),
            about: format!("{self:?}"),
            setup: self.setup,
            clients: vec![Client { protocol: self.client, streams: streams.collect() }],
            far_end: Kind::Script(answers.collect()),
            taken_out: if self.header.is_some_and(|(name, _)| name == "x-forwarded-for") {
                &["x-forwarded-for"]
            } else {
                &[]
            },
        }
    }

    fn is_last(&self, at: usize) -> bool {
        at + 1 == self.requests
    }

    fn ends(&self, who: Who, point: Point, at: usize) -> bool {
        self.who == who && self.point == point && self.is_last(at)
    }

    fn client_steps(&self, at: usize) -> Vec<Do> {
        let mut steps = Vec::new();
        if self.slow == Who::Client {
            steps.push(Slowly(2000));
        }
        let framing = match (self.up, self.up_is_chunked) {
            (_, true) => Chunked,
            (0, _) if matches!(self.method, "GET" | "HEAD" | "OPTIONS") => Nothing,
            (length, _) => Length(length),
        };
        let mut head = Do::request(self.method, framing);
        if let Some((name, value)) = self.header {
            head = head.with(name, value);
        }
        steps.push(head);
        let give_up = match self.how {
            How::Fin | How::GoAway => Fin,
            How::Rst => Rst,
            How::Reset if self.client == Http2 => ResetStream(8),
            How::Reset => HalfClose,
        };
        // Half of the body first, the rest when the far end has it.
        let cut = self.is_last(at) && ((self.who != Who::Nobody && self.point == Point::InRequest) || self.early);
        if cut {
            steps.push(Data(self.up / 2));
            if self.early {
                // Behind the whole answer: which comes first at Envoy, the rest or the answer's end, would be chance.
                steps.extend([ExpectEnd, Data(self.up - self.up / 2)]);
            } else if self.who == Who::FarEnd && self.setup != Setup::Retries {
                // Which comes first at Envoy, the rest or the far end's end, would be chance. (A retry waits for the rest.)
                steps.extend([ExpectHead, Data(self.up - self.up / 2)]);
            } else {
                steps.push(Await("in request"));
                if self.who == Who::Client {
                    steps.push(give_up);
                    return steps;
                }
                steps.push(Data(self.up - self.up / 2));
            }
        } else {
            for piece in 0..self.pieces {
                let from = self.up * piece / self.pieces;
                let to = self.up * (piece + 1) / self.pieces;
                if to > from {
                    steps.push(Data(to - from));
                }
            }
        }
        steps.push(if self.up_trailers { Do::Trailers(&[("x-up", "1")]) } else { End });
        if self.ends(Who::Client, Point::BeforeAnswer, at) {
            steps.extend([Await("before answer"), give_up]);
            return steps;
        }
        if self.is_last(at) && self.who != Who::Nobody && self.point == Point::InAnswer {
            steps.extend([ExpectData(self.down / 2), Signal("in answer")]);
            if self.who == Who::Client {
                steps.push(give_up);
                return steps;
            }
        }
        if !(self.early && self.is_last(at)) {
            steps.push(ExpectEnd);
        }
        if self.ends(Who::Client, Point::BehindAnswer, at) && self.client == Http1 {
            steps.push(give_up);
        }
        steps
    }

    fn far_end_attempts(&self, at: usize) -> Vec<Vec<Do>> {
        let mut attempts = vec![vec![ExpectEnd, Do::status(503, Length(0)), End]; self.failed_attempts];
        attempts.push(self.far_end_steps(at));
        attempts
    }

    fn far_end_steps(&self, at: usize) -> Vec<Do> {
        let far_end = self.setup.far_end();
        let mut steps = Vec::new();
        if self.slow == Who::FarEnd {
            steps.push(Slowly(2000));
        }
        let give_up = match self.how {
            How::Fin => Fin,
            How::Rst => Rst,
            How::Reset if far_end == Http2 => ResetStream(2),
            How::Reset => HalfClose,
            How::GoAway if far_end == Http2 => Do::GoAwayNow,
            How::GoAway => Fin,
        };
        // Who lets go of a stream that the client is about to give up would reset it, now before the client, now behind it.
        let until_given_up = if far_end == Http2 { ExpectReset } else { ExpectClose };
        let here = self.is_last(at) && self.who != Who::Nobody;
        if here && self.point == Point::InRequest {
            steps.push(ExpectData(self.up / 2));
            if self.who == Who::Client {
                steps.extend([Signal("in request"), until_given_up]);
                return steps;
            }
            steps.extend([give_up, Signal("in request")]);
            return steps;
        }
        if self.early && self.is_last(at) {
            steps.push(ExpectData(self.up / 2));
        } else {
            steps.push(ExpectEnd);
        }
        if here && self.point == Point::BeforeAnswer {
            if self.who == Who::Client {
                steps.extend([Signal("before answer"), until_given_up]);
                return steps;
            }
            steps.push(give_up);
            return steps;
        }
        if self.interim != 0 {
            steps.push(Do::status(self.interim, Nothing));
        }
        let bodiless = self.method == "HEAD" || matches!(self.status, 204 | 304);
        let framing: Framing = match self.down_framing {
            _ if bodiless => Nothing,
            1 => Chunked,
            2 => Nothing,
            _ => Length(self.down),
        };
        let to_end = framing == Nothing && !bodiless && far_end == Http1;
        let mut head = Do::status(self.status, framing);
        if let Some((name, value)) = self.answer_header {
            head = head.with(name, value);
        }
        steps.push(head);
        if !bodiless {
            if here && self.point == Point::InAnswer {
                steps.extend([Data(self.down / 2), Await("in answer")]);
                if self.who == Who::Client {
                    steps.push(until_given_up);
                    return steps;
                }
                steps.push(give_up);
                return steps;
            }
            for piece in 0..self.pieces {
                let from = self.down * piece / self.pieces;
                let to = self.down * (piece + 1) / self.pieces;
                if to > from {
                    steps.push(Data(to - from));
                }
            }
        }
        steps.push(if self.down_trailers && !bodiless { Do::Trailers(&[("x-down", "2")]) } else { End });
        if to_end {
            steps.push(Fin);
        } else if self.ends(Who::FarEnd, Point::BehindAnswer, at) && far_end == Http1 {
            steps.push(give_up);
        }
        steps
    }
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}

fn size(rng: &mut Rng) -> usize {
    match rng.u8(..10) {
        0 | 1 => 0,
        2 => 1,
        3..=5 => rng.usize(2..1_000),
        6 | 7 => rng.usize(1_000..70_000),
        8 => rng.usize(70_000..500_000),
        _ => rng.usize(500_000..2_000_000),
    }
}

/// As many cases, from this seed and those behind it.
pub fn cases(seed: u64, count: u64) -> Vec<Case> {
    (seed..seed + count).map(|seed| Combination::from_seed(seed).case(seed)).collect()
}

/// The smallest combination that is still worse, starting from this seed's: its description.
pub async fn minimise(seed: u64, edit: Option<Edit>) -> Result<String> {
    let mut smallest = Combination::from_seed(seed);
    let mut subjects = Subjects::start(smallest.setup, edit).await?;
    'smaller: loop {
        for simpler in smallest.simpler() {
            if !subjects.judge(&simpler.case(seed)).await?.worse.is_empty() {
                smallest = simpler;
                continue 'smaller;
            }
        }
        return Ok(format!("{smallest:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::cases;

    #[test]
    fn a_seed_gives_the_same_case_again() {
        let text = |seed| format!("{:?}", cases(seed, 20));
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
    }
}

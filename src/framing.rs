//! Follows the messages on one connection: is an exchange in flight?
#![allow(missing_docs)]
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Request,
    Response,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Other,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    pub timeout: Option<Duration>,
    pub max: Option<u32>,
}
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub requests_started: u32,
    pub responses_completed: u32,
    pub keep_alive: Option<KeepAlive>,
}
impl std::ops::AddAssign for Progress {
    fn add_assign(&mut self, _other: Self) {}
}
#[derive(Debug, Default)]
pub struct Framing {
    busy: bool,
}
impl Framing {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn advance(
        &mut self,
        direction: Direction,
        len: u64,
        _fetch: impl FnMut(u64, u64) -> Option<Vec<u8>>,
    ) -> Progress {
        let was = self.busy;
        if len > 0 {
            self.busy = direction == Direction::Request;
        }
        Progress {
            requests_started: u32::from(self.busy && !was),
            responses_completed: u32::from(was && !self.busy),
            keep_alive: None,
        }
    }
    pub fn on_eof(&mut self, _direction: Direction) -> Progress {
        Progress::default()
    }
    pub fn in_flight(&self) -> u32 {
        u32::from(self.busy)
    }
    pub fn protocol(&self) -> Protocol {
        Protocol::Http1
    }
    pub fn reusable(&self) -> bool {
        true
    }
}

//! The fence: which connections may the pool give to this request?
//!
//! The pool can't be asked, but it can be divided: requests of different *generations* never share a connection. So the
//! fence decides, before the pool picks a connection, whether the current generation is safe; if not, it starts a new one,
//! and no request will ever meet the old one's connections again. That decision can't lose a race, because whatever
//! the pool does with the request, it does it later and within the generation.
//!
//! Two rules say whether a generation is safe:
//!
//! - [`Fence::is_young`]: the generation itself is younger than the idle limit, and so is every idle age in it. This needs
//!   no knowledge of connections, and costs one reconnect per connection and limit.
//! - The idle stack, in [`destination`](crate::destination), where a connection filter shows the connections. What it
//!   needs from here is [`Fence::live`]: how many requests of the generation have not ended.

use std::rc::Rc;

use crate::connection::Generation;
use crate::time::Timestamp;

/// The generations of one destination on one worker.
#[derive(Debug)]
pub struct Fence {
    /// Makes this VM's generations differ from those of any VM before it, whose connections may still be in the pool.
    salt: u64,
    generation: Generation,
    started_at: Option<Timestamp>,
    steer: Rc<Steer>,
    /// Requests of the current generation that have been admitted and have not ended.
    live: usize,
}

/// How the host is told the generation of a request: ready-made, because every request needs it.
#[derive(Debug, PartialEq, Eq)]
pub struct Steer {
    /// The generation as text.
    pub name: String,
    /// The argument of Envoy's foreign function `set_envoy_filter_state` that makes it a part of the pool's key.
    pub filter_state: Vec<u8>,
}

impl Fence {
    /// The first generation. `salt` is random.
    pub fn new(salt: u64) -> Self {
        let generation = Generation(1);
        Self { salt, generation, started_at: None, steer: Rc::new(Steer::new(salt, generation)), live: 0 }
    }

    /// The current generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// How to tell the host.
    pub fn steer(&self) -> Rc<Steer> {
        Rc::clone(&self.steer)
    }

    /// Ends the current generation.
    pub fn start_generation(&mut self, now: Timestamp) {
        self.generation = Generation(self.generation.0.saturating_add(1));
        self.started_at = Some(now);
        self.steer = Rc::new(Steer::new(self.salt, self.generation));
        self.live = 0;
    }

    /// Whether the current generation started less than `limit` ago. A generation starts with its first request.
    pub fn is_young(&mut self, now: Timestamp, limit: std::time::Duration) -> bool {
        now.since(*self.started_at.get_or_insert(now)) < limit
    }

    /// A request was admitted to the current generation.
    pub fn on_admitted(&mut self, now: Timestamp) {
        self.started_at.get_or_insert(now);
        self.live = self.live.saturating_add(1);
    }

    /// A request of `generation` ended, whichever way.
    pub fn on_ended(&mut self, generation: Generation) {
        if generation == self.generation {
            self.live = self.live.saturating_sub(1);
        }
    }

    /// How many requests of the current generation have not ended.
    pub fn live(&self) -> usize {
        self.live
    }
}

impl Steer {
    fn new(salt: u64, generation: Generation) -> Self {
        let name = format!("idleguard-{salt:016x}-{}", generation.0);
        // The name of a filter state that is a part of the pool's key, and of nothing else on a plaintext connection
        // (docs/envoy.md, fact 5).
        let filter_state = filter_state_arguments("envoy.network.upstream_server_name", &name);
        Self { name, filter_state }
    }
}

/// `envoy.source.extensions.common.wasm.SetEnvoyFilterStateArguments` with `path` (1), `value` (2) and `span` (3) =
/// `DownstreamRequest` (1), in protobuf's wire format.
fn filter_state_arguments(path: &str, value: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len().saturating_add(value.len()).saturating_add(8));
    for (tag, text) in [(0x0a, path), (0x12, value)] {
        bytes.push(tag);
        debug_assert!(text.len() < 0x80, "a length of one byte");
        bytes.push(u8::try_from(text.len()).unwrap_or(0x7f));
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes.extend_from_slice(&[0x18, 0x01]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn a_generation_is_young_until_the_limit_after_its_first_request() {
        let limit = Duration::from_millis(300);
        let mut fence = Fence::new(7);
        assert!(fence.is_young(at(1_000), limit));
        assert!(fence.is_young(at(1_299), limit));
        assert!(!fence.is_young(at(1_300), limit));
        fence.start_generation(at(1_300));
        assert!(fence.is_young(at(1_599), limit));
    }

    #[test]
    fn generations_differ_within_a_vm_and_between_vms() {
        let mut fence = Fence::new(7);
        let first = fence.steer();
        fence.start_generation(at(0));
        assert_ne!(first, fence.steer());
        assert_ne!(first, Fence::new(8).steer());
        assert_eq!(first.name, "idleguard-0000000000000007-1");
    }

    #[test]
    fn only_requests_of_the_current_generation_are_live() {
        let mut fence = Fence::new(0);
        let first = fence.generation();
        fence.on_admitted(at(0));
        fence.on_admitted(at(0));
        fence.on_ended(first);
        assert_eq!(fence.live(), 1);
        fence.start_generation(at(1));
        fence.on_admitted(at(1));
        fence.on_ended(first);
        assert_eq!(fence.live(), 1);
    }

    #[test]
    fn the_filter_state_is_a_protobuf_message() {
        let bytes = filter_state_arguments("a.b", "xyz");
        assert_eq!(bytes, b"\x0a\x03a.b\x12\x03xyz\x18\x01");
    }
}

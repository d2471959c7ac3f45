//! What is closed when the far end closes connections, with injected time: everything that may be dead, and nothing that a
//! request may be on its way to.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, missing_docs)]

use std::time::Duration;

use idleguard::config::Section;
use idleguard::connection::{ConnectionKey, Generation};
use idleguard::destination::{Destination, End, Seen};
use idleguard::policy::Policy;
use idleguard::time::Timestamp;

fn seen(started: u32, completed: u32) -> Seen {
    Seen {
        started,
        completed,
        in_flight: started,
        answered: completed > 0,
        stacked: true,
        reusable: true,
        hinted_timeout: None,
        hinted_exchanges: None,
    }
}

/// A destination whose connections are opened by requests, to the endpoints that they name.
struct Worker {
    destination: Destination,
    policy: Policy,
    now: Timestamp,
    contexts: u32,
}

impl Worker {
    fn new() -> Self {
        let json = serde_json::json!({"lb_idle_timeout": "60s"});
        let policy = Policy::from_section(Section::try_new("", json).unwrap()).unwrap();
        let now = Timestamp::from_millis(1_000);
        let mut destination = Destination::new(1, now);
        destination.add_policy(1, policy.clone(), true, now);
        destination.add_policy(2, policy.clone(), false, now);
        Self { destination, policy, now, contexts: 0 }
    }

    fn pass(&mut self, millis: u64) {
        self.now = self.now.after(Duration::from_millis(millis));
    }

    fn admit(&mut self) -> Generation {
        self.destination.admit(self.now).generation
    }

    /// A connection for a request of this generation; without one nobody knows whose it is.
    fn open(&mut self, endpoint: &str, generation: Option<Generation>) -> ConnectionKey {
        self.contexts += 1;
        self.destination.open(self.contexts, endpoint.as_bytes(), &self.policy, generation, 0.0, self.now)
    }

    fn bytes(&mut self, key: ConnectionKey, started: u32, completed: u32) {
        self.destination.on_bytes(key, &seen(started, completed), &self.policy, self.now);
    }

    /// So many connections, all of them idle.
    fn idle(&mut self, count: usize, endpoint: &str) -> Vec<ConnectionKey> {
        let opened: Vec<_> = (0..count).map(|_| self.admit()).collect();
        let keys: Vec<_> = opened.iter().map(|generation| self.open(endpoint, Some(*generation))).collect();
        keys.iter().for_each(|key| self.bytes(*key, 1, 0));
        for (key, generation) in keys.iter().zip(opened) {
            self.bytes(*key, 0, 1);
            self.destination.on_ended(generation, End::Answered);
        }
        self.pass(500);
        keys
    }

    /// Half a second in which nothing happens. Returns how many connections were closed.
    fn settle(&mut self) -> usize {
        let tick = |worker: &mut Self| {
            worker.pass(100);
            worker.destination.tick(worker.now)
        };
        let due: Vec<_> = (0..5).flat_map(|_| tick(self)).collect();
        due.iter().for_each(|due| self.destination.on_closed(due.key));
        due.len()
    }

    /// The far end closes a connection. Returns those that are to be closed with it.
    fn fin(&mut self, key: ConnectionKey) -> Vec<ConnectionKey> {
        let suspects = self.destination.on_far_end_close(key, self.now);
        self.destination.on_closed(key);
        suspects
    }
}

#[test]
fn two_idle_connections_that_end_together_take_the_others_with_them() {
    let mut worker = Worker::new();
    let keys = worker.idle(4, "one");
    assert_eq!(worker.fin(keys[0]), [], "one alone says nothing of the others");
    worker.pass(10);
    let mut suspects = worker.fin(keys[1]);
    suspects.sort_by_key(|key| key.slot);
    assert_eq!(suspects, keys[2..]);
}

#[test]
fn two_that_end_one_after_the_other_do_not() {
    let mut worker = Worker::new();
    let keys = worker.idle(4, "one");
    for key in &keys[..3] {
        assert_eq!(worker.fin(*key), []);
        worker.pass(200);
    }
}

#[test]
fn nor_do_those_of_one_endpoint_among_several() {
    let mut worker = Worker::new();
    worker.idle(1, "one");
    worker.idle(1, "another");
    let keys = worker.idle(3, "one");
    worker.settle();
    assert_eq!(worker.fin(keys[0]), []);
    assert_eq!(worker.fin(keys[1]), []);
    assert_eq!(worker.settle(), 0, "the third one stays");
}

#[test]
fn a_connection_that_a_request_may_be_on_its_way_to_is_closed_once_that_is_seen_on_another() {
    let mut worker = Worker::new();
    let keys = worker.idle(4, "one");
    let generation = worker.admit(); // it gets the one on top, keys[3]
    worker.fin(keys[0]);
    assert_eq!(worker.fin(keys[1]), [keys[2]]);
    assert!(worker.destination.has_doomed());
    assert_eq!(worker.destination.close_doomed(), [], "still on its way");
    worker.bytes(keys[3], 1, 0);
    assert_eq!(worker.destination.close_doomed(), []);
    assert!(!worker.destination.has_doomed(), "nothing idle is left");
    worker.bytes(keys[3], 0, 1);
    worker.destination.on_ended(generation, End::Answered);
}

#[test]
fn a_response_on_its_way_back_hides_the_connections_below_its_own_until_it_has_arrived() {
    let mut worker = Worker::new();
    let keys = worker.idle(4, "one");
    let first = worker.admit();
    worker.bytes(keys[3], 1, 0);
    worker.pass(10);
    worker.bytes(keys[3], 0, 1); // seen here, and not in the pool yet,
    let second = worker.admit(); // so this one gets keys[2]
    worker.fin(keys[0]);
    assert_eq!(worker.fin(keys[1]), []);
    worker.destination.on_ended(first, End::Answered);
    assert_eq!(worker.destination.close_doomed(), [], "the other request is on its way");
    worker.bytes(keys[2], 1, 0);
    assert_eq!(worker.destination.close_doomed(), [keys[3]]);
    worker.bytes(keys[2], 0, 1);
    worker.destination.on_ended(second, End::Answered);
}

#[test]
fn an_exchange_on_a_connection_of_uncertain_generation_hides_nothing() {
    let mut worker = Worker::new();
    let keys = worker.idle(3, "one");
    let retried = worker.admit();
    let opened_for_a_retry = worker.open("one", None);
    worker.bytes(opened_for_a_retry, 1, 0);
    worker.fin(keys[0]);
    assert_eq!(worker.fin(keys[1]), [keys[2]]);
    worker.destination.on_ended(retried, End::Answered);
}

#[test]
fn an_idle_connection_of_uncertain_generation_is_closed_too() {
    let mut worker = Worker::new();
    let keys = worker.idle(2, "one");
    let retried = worker.admit();
    let uncertain = worker.open("one", None);
    worker.bytes(uncertain, 1, 0);
    worker.bytes(uncertain, 0, 1);
    worker.destination.on_ended(retried, End::Answered);
    worker.pass(500);
    worker.fin(keys[0]);
    assert_eq!(worker.fin(keys[1]), [uncertain]);
}

#[test]
fn what_ends_in_a_generation_that_was_left_says_nothing_of_the_younger_ones() {
    let mut worker = Worker::new();
    let keys = worker.idle(4, "one");
    let old = worker.admit();
    worker.bytes(keys[3], 1, 0);
    worker.fin(keys[0]);
    worker.fin(keys[1]);
    let young = worker.idle(2, "one");
    assert_eq!(worker.fin(keys[3]), [], "a stale failure");
    worker.destination.on_ended(old, End::Answered);
    let generation = worker.admit();
    worker.bytes(young[1], 1, 0);
    assert!(worker.fin(young[1]).contains(&young[0]), "and this is one in use");
    worker.destination.on_ended(generation, End::Answered);
}

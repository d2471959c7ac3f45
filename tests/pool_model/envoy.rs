//! Envoy's worker: a pool, an in-process pipe, turns of the event loop, and the router's one retry.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use idleguard::config::Section;
use idleguard::connection::{ConnectionKey, Generation};
use idleguard::destination::{End, Seen};
use idleguard::policy::Policy;
use idleguard::time::Timestamp;
use idleguard::worker::{DestinationId, Worker};

const LIMIT: Duration = Duration::from_millis(300);
/// How much later than the fence's decision the far end sees a request: the pipe, in a worker that is not stalled.
const PIPE: Duration = Duration::from_millis(20);

/// What passes through the pipe between the pool and the connection filter.
#[derive(Clone, Copy, Debug)]
enum Message {
    RequestBytes(usize),
    ResponseBytes(usize),
    ClosedByFilter(usize),
    ClosedByPool(usize),
}

/// A request on a connection, from the pool's giving it to the end of its response.
#[derive(Clone, Copy, Debug)]
enum Exchange {
    First,
    Retried,
}

pub(crate) struct Connection {
    key: Option<ConnectionKey>,
    generation: String,
    /// When the far end last saw a byte.
    far_end_touched: Timestamp,
    exchange: Option<Exchange>,
    idle_in_pool: bool,
    open_in_pool: bool,
    pub(crate) open_in_filter: bool,
    /// Whether idleguard closed it.
    closed_by_us: bool,
    /// Whether the far end has closed it, though nobody here may know yet.
    dead: bool,
}

pub(crate) struct Envoy {
    pub(crate) worker: Worker,
    pub(crate) id: DestinationId,
    policy: Policy,
    pub(crate) now: Timestamp,
    context: u32,
    pub(crate) connections: Vec<Connection>,
    /// Idle connections by generation, the last one on top.
    stacks: BTreeMap<String, Vec<usize>>,
    /// Requests that wait for a connection, by generation.
    pending: BTreeMap<String, VecDeque<Exchange>>,
    /// Generations by the name that Envoy knows.
    generations: BTreeMap<String, Generation>,
    max_connections: usize,
    pipe: VecDeque<(u32, Message)>,
    turn: u32,
    /// Responses that the far end will send.
    answers: Vec<(Timestamp, usize)>,
    /// Requests that the router will send again, with the turn in which it does.
    retries: VecDeque<(u32, String)>,
    /// Dead connections whose FIN will be read, one in a turn.
    fins: VecDeque<usize>,
    pub(crate) failures: Vec<String>,
    reused: usize,
    pub(crate) opened: usize,
    pub(crate) served: usize,
}

impl Envoy {
    pub(crate) fn new(max_connections: usize) -> Self {
        let json = serde_json::json!({"lb_idle_timeout": "333ms", "margin": "33ms"});
        let policy = Policy::from_section(Section::try_new("", json).unwrap()).unwrap();
        let now = Timestamp::from_millis(1_000);
        let mut worker = Worker::new(42);
        let (id, _) = worker.destination("payments", now).unwrap();
        let destination = worker.get(id).unwrap();
        destination.add_policy(1, policy.clone(), true, now);
        destination.add_policy(2, policy.clone(), false, now);
        assert_eq!(destination.idle_limit(), LIMIT);
        Self {
            worker,
            id,
            policy,
            now,
            context: 0,
            connections: Vec::new(),
            stacks: BTreeMap::new(),
            pending: BTreeMap::new(),
            generations: BTreeMap::new(),
            max_connections,
            pipe: VecDeque::new(),
            turn: 0,
            answers: Vec::new(),
            retries: VecDeque::new(),
            fins: VecDeque::new(),
            failures: Vec::new(),
            reused: 0,
            opened: 0,
            served: 0,
        }
    }

    fn send(&mut self, message: Message) {
        self.pipe.push_back((self.turn + 2, message));
    }

    /// A request arrives; not `is_sent` if the client goes away before it is.
    pub(crate) fn request(&mut self, is_sent: bool) {
        self.worker.on_event();
        let admission = self.worker.admit(self.id, self.now).unwrap();
        let generation = admission.steer.name.clone();
        self.generations.insert(generation.clone(), admission.generation);
        if is_sent {
            self.send_request(generation, Exchange::First);
        } else {
            self.end(&generation, End::Aborted);
        }
    }

    fn send_request(&mut self, generation: String, exchange: Exchange) {
        if let Some(index) = self.stacks.entry(generation.clone()).or_default().pop() {
            let age = self.now.since(self.connections[index].far_end_touched);
            // A retry stays in its generation, however old that has become.
            if age >= LIMIT + PIPE && matches!(exchange, Exchange::First) {
                self.failures.push(format!("connection {index} handed out at idle age {age:?}"));
            }
            self.hand_out(index, exchange);
            return;
        }
        self.pending.entry(generation.clone()).or_default().push_back(exchange);
        let open = self.connections.iter().filter(|connection| connection.open_in_pool).count();
        if open < self.max_connections {
            self.open(generation);
        }
    }

    fn end(&mut self, generation: &str, end: End) {
        let now = self.now;
        let generation = self.generations[generation];
        let is_delicate = self.worker.get(self.id).unwrap().is_delicate(generation, now);
        let end = if is_delicate { end } else { End::Answered };
        self.worker.end(self.id, generation, end);
        self.close_doomed();
    }

    fn open(&mut self, generation: String) {
        self.context += 1;
        self.opened += 1;
        let key = self.worker.open(self.id, self.context, b"one", &self.policy, usize::MAX, self.now);
        assert!(key.is_some());
        self.connections.push(Connection {
            key,
            generation,
            far_end_touched: self.now,
            exchange: None,
            idle_in_pool: false,
            open_in_pool: true,
            open_in_filter: true,
            closed_by_us: false,
            dead: false,
        });
        // The pool hears of it in the next turn, and gives it to a request that still waits.
        let connection = self.connections.len() - 1;
        self.release(connection);
    }

    fn release(&mut self, connection: usize) {
        let generation = self.connections[connection].generation.clone();
        if let Some(exchange) = self.pending.entry(generation.clone()).or_default().pop_front() {
            self.hand_out(connection, exchange);
        } else {
            self.connections[connection].idle_in_pool = true;
            self.stacks.entry(generation).or_default().push(connection);
        }
    }

    fn hand_out(&mut self, index: usize, exchange: Exchange) {
        let connection = &mut self.connections[index];
        connection.idle_in_pool = false;
        connection.exchange = Some(exchange);
        if !connection.open_in_filter {
            self.failures.push(format!("connection {index} handed out after its close"));
        }
        self.reused += 1;
        self.send(Message::RequestBytes(index));
    }

    fn seen(&mut self, index: usize, started: u32, completed: u32) {
        let Some(key) = self.connections[index].key else { return };
        let seen = Seen {
            started,
            completed,
            in_flight: started,
            answered: completed > 0,
            stacked: true,
            reusable: true,
            hinted_timeout: None,
            hinted_exchanges: None,
        };
        self.worker.on_event();
        let (now, policy) = (self.now, self.policy.clone());
        self.worker.get(self.id).unwrap().on_bytes(key, &seen, &policy, now);
        self.close_doomed();
    }

    /// What the filters do after whatever may have made certain which connections are idle.
    fn close_doomed(&mut self) {
        let doomed = self.worker.get(self.id).unwrap().close_doomed();
        doomed.into_iter().for_each(|key| self.close(key));
    }

    fn closed_in_filter(&mut self, index: usize, by_far_end: bool) {
        let now = self.now;
        let connection = &mut self.connections[index];
        let Some(key) = connection.key.take() else { return };
        connection.open_in_filter = false;
        self.worker.on_event();
        let destination = self.worker.get(self.id).unwrap();
        let suspects = if by_far_end { destination.on_far_end_close(key, now) } else { Vec::new() };
        destination.on_closed(key);
        suspects.into_iter().for_each(|suspect| self.close(suspect));
    }

    /// idleguard closes a connection; the pool hears of it through the pipe.
    fn close(&mut self, key: ConnectionKey) {
        let index = self.connections.iter().rposition(|connection| connection.key == Some(key)).unwrap();
        self.connections[index].closed_by_us = true;
        self.closed_in_filter(index, false);
        self.send(Message::ClosedByFilter(index));
    }

    /// The far end closes a connection, and its FIN is under way.
    fn dies(&mut self, index: usize) {
        self.connections[index].dead = true;
        self.answers.retain(|(_, other)| *other != index);
    }

    /// The FIN of a dead connection is read.
    fn fin(&mut self, index: usize) {
        if self.connections[index].open_in_filter {
            self.closed_in_filter(index, true);
            self.send(Message::ClosedByFilter(index));
        }
    }

    /// One turn of the event loop: what the pipe has, what the far end answers, and a tick if `ticks`.
    pub(crate) fn turn(&mut self, advance: Duration, ticks: bool, latency: Duration) {
        self.now = self.now.after(advance);
        self.turn += 1;
        while let Some((_, message)) = self.pipe.front().copied().filter(|(turn, _)| *turn <= self.turn) {
            self.pipe.pop_front();
            self.deliver(message, latency);
        }
        let (due, later): (Vec<_>, Vec<_>) = self.answers.drain(..).partition(|(at, _)| *at <= self.now);
        self.answers = later;
        for (_, index) in due {
            if self.connections[index].open_in_filter {
                self.connections[index].far_end_touched = self.now;
                self.seen(index, 0, 1);
                self.send(Message::ResponseBytes(index));
            }
        }
        if let Some(index) = self.fins.pop_front() {
            self.fin(index);
        }
        while self.retries.front().is_some_and(|(turn, _)| *turn <= self.turn) {
            let (_, generation) = self.retries.pop_front().unwrap();
            self.send_request(generation, Exchange::Retried);
        }
        if ticks {
            self.tick();
        }
    }

    fn deliver(&mut self, message: Message, latency: Duration) {
        match message {
            Message::RequestBytes(index) if self.connections[index].open_in_filter => {
                self.seen(index, 1, 0);
                self.connections[index].far_end_touched = self.now;
                if !self.connections[index].dead {
                    self.answers.push((self.now.after(latency), index));
                }
            }
            Message::RequestBytes(_) => {}
            Message::ResponseBytes(index) => {
                self.served += 1;
                self.connections[index].exchange = None;
                self.end(&self.connections[index].generation.clone(), End::Answered);
                if self.connections[index].open_in_pool {
                    self.release(index);
                }
            }
            Message::ClosedByFilter(index) => {
                self.broken(index);
                let connection = &mut self.connections[index];
                connection.open_in_pool = false;
                if connection.idle_in_pool {
                    let stack = self.stacks.get_mut(&connection.generation).unwrap();
                    stack.retain(|other| *other != index);
                }
            }
            Message::ClosedByPool(index) => self.closed_in_filter(index, false),
        }
    }

    /// The pool hears that a connection has ended; the router sends the request on it again, once.
    fn broken(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let generation = connection.generation.clone();
        match connection.exchange.take() {
            None => {}
            Some(Exchange::First) if connection.closed_by_us => {
                self.failures.push(format!("connection {index} closed under a request"));
                self.end(&generation, End::Aborted);
            }
            // With no back-off, which is the least that there may be.
            Some(Exchange::First) => self.retries.push_back((self.turn + 1, generation)),
            Some(Exchange::Retried) => {
                self.failures.push(format!("connection {index} failed a retry"));
                self.end(&generation, End::Aborted);
            }
        }
    }

    fn tick(&mut self) {
        self.worker.on_event();
        let now = self.now;
        for due in self.worker.get(self.id).unwrap().tick(now) {
            let is_wanted = !due.unused || self.worker.get(self.id).unwrap().on_unused(due.key, true, now);
            if is_wanted {
                self.close(due.key);
            }
        }
    }

    /// When the next tick is wanted, in milliseconds.
    pub fn tick_period(&mut self) -> i64 {
        i64::try_from(self.worker.get(self.id).unwrap().tick_period().as_millis()).unwrap()
    }

    /// The pool drops the connection of some exchange, as it does when a client goes away.
    pub(crate) fn abort(&mut self, pick: usize) {
        let busy: Vec<usize> = self.answers.iter().map(|(_, index)| *index).collect();
        let Some(index) = busy.get(pick % busy.len().max(1)).copied() else { return };
        self.answers.retain(|(_, other)| *other != index);
        self.connections[index].open_in_pool = false;
        self.connections[index].exchange = None;
        self.end(&self.connections[index].generation.clone(), End::Aborted);
        self.send(Message::ClosedByPool(index));
    }

    /// The far end closes some idle connection.
    pub(crate) fn far_end_closes(&mut self, pick: usize) {
        let idle: Vec<usize> = self.stacks.values().flatten().copied().collect();
        let Some(index) = idle.get(pick % idle.len().max(1)).copied() else { return };
        self.dies(index);
        self.fin(index);
    }

    /// The far end closes some connection instead of answering.
    pub(crate) fn far_end_fails(&mut self, pick: usize) {
        let Some((_, index)) = self.answers.get(pick % self.answers.len().max(1)).copied() else { return };
        self.dies(index);
        self.fin(index);
    }

    /// The far end closes all connections; their FINs are read one after the other, in an order that `seed` decides.
    pub(crate) fn far_end_restarts(&mut self, seed: u64) {
        let is_open = |index: &usize| self.connections[*index].open_in_filter && !self.connections[*index].dead;
        let mut all: Vec<usize> = (0..self.connections.len()).filter(is_open).collect();
        all.sort_by_key(|index| SplitMix64(seed ^ *index as u64).next());
        all.iter().for_each(|index| self.dies(*index));
        self.fins.extend(all);
    }
}

/// Random numbers, the same for the same seed.
pub(crate) struct SplitMix64(pub(crate) u64);

impl SplitMix64 {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0.0 up to, but not including, 1.0.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

//! The laws of idle ages.
#![allow(clippy::arithmetic_side_effects, reason = "a test that panics fails")]

use super::*;
use proptest::prelude::*;

const D: DestinationId = DestinationId(7);

const HOUR: Duration = Duration::from_secs(3600);

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn id(name: &str) -> ConnectionId {
    ConnectionId::new(name.as_bytes())
}

fn far(name: &str) -> FarEnd {
    FarEnd::new(b"payments", name.as_bytes())
}

fn answered(sent: Timestamp, age: Duration) -> Evidence {
    Evidence { sent, idle_age: age, outcome: Outcome::Answered }
}

/// One exchange on a connection, alone, from one time to another.
fn exchange(watch: &mut Watch, connection: &str, from: u64, to: u64) -> Seen {
    let request = watch.send(at(from));
    let seen = watch.answered(request, id(connection));
    if seen == Seen::New {
        watch.open(id(connection), D, far("a"), HOUR, at(from));
    }
    watch.ended(id(connection), at(to));
    seen
}

fn aged(millis: u64) -> Seen {
    Seen::Aged { destination: D, idle_age: Duration::from_millis(millis) }
}

#[test]
fn an_age_runs_from_the_end_of_an_exchange_until_the_next_request_is_sent() {
    let mut watch = Watch::default();
    assert_eq!(exchange(&mut watch, "c", 0, 100), Seen::New);
    assert_eq!(exchange(&mut watch, "c", 2_100, 9_000), aged(2_000));
    assert_eq!(
        exchange(&mut watch, "c", 9_100, 9_200),
        Seen::Reused { destination: D, idle_age: Some(Duration::from_millis(100)) }
    );
}

#[test]
fn a_busy_connection_has_no_idle_age() {
    let mut watch = Watch::default();
    exchange(&mut watch, "c", 0, 0);
    let long = watch.send(at(1_000));
    assert_eq!(watch.answered(long, id("c")), aged(1_000));
    let other = watch.send(at(5_000));
    assert_eq!(watch.answered(other, id("c")), Seen::Reused { destination: D, idle_age: None });
    watch.ended(id("c"), at(5_100));
    let other = watch.send(at(8_000));
    assert_eq!(
        watch.answered(other, id("c")),
        Seen::Reused { destination: D, idle_age: None },
        "the long one is in flight"
    );
    watch.ended(id("c"), at(8_000));
    watch.ended(id("c"), at(9_000));
    assert_eq!(exchange(&mut watch, "c", 10_000, 10_000), aged(1_000));
}

#[test]
fn what_was_sent_meanwhile_and_has_no_answer_ends_the_age() {
    let mut watch = Watch::default();
    exchange(&mut watch, "c", 0, 0);
    let _unanswered = watch.send(at(2_000));
    let request = watch.send(at(5_000));
    assert_eq!(watch.answered(request, id("c")), aged(2_000));
}

#[test]
fn what_was_sent_before_and_has_no_answer_makes_the_age_wait() {
    let mut watch = Watch::default();
    let old = watch.send(at(0));
    exchange(&mut watch, "c", 100, 200);
    let request = watch.send(at(3_200));
    assert_eq!(watch.answered(request, id("c")), aged(3_000));
    let evidence = answered(at(3_200), Duration::from_secs(3));
    assert_eq!(watch.confirm(id("c"), far("a"), evidence), Confirmed::Later);
    assert_eq!(watch.resolve(), []);
    assert_eq!(watch.answered(old, id("another")), Seen::New);
    assert_eq!(watch.resolve(), [(D, evidence)], "it was not on this connection");
}

#[test]
fn and_if_it_was_on_the_connection_there_is_no_age() {
    let mut watch = Watch::default();
    let old = watch.send(at(0));
    exchange(&mut watch, "c", 100, 200);
    let request = watch.send(at(3_200));
    watch.answered(request, id("c"));
    let evidence = answered(at(3_200), Duration::from_secs(3));
    assert_eq!(watch.confirm(id("c"), far("a"), evidence), Confirmed::Later);
    watch.answered(old, id("c"));
    assert_eq!(watch.resolve(), []);
}

#[test]
fn a_request_that_ended_without_an_answer_used_its_connection_until_then() {
    let mut watch = Watch::default();
    exchange(&mut watch, "c", 0, 0);
    let aborted = watch.send(at(1_000));
    watch.ended_unanswered(aborted, Some(id("c")), at(4_000));
    assert_eq!(exchange(&mut watch, "c", 5_000, 5_000), aged(1_000));
    let refused = watch.send(at(5_500));
    watch.ended_unanswered(refused, None, at(5_600));
    assert_eq!(exchange(&mut watch, "c", 6_000, 6_000), aged(1_000));
}

#[test]
fn an_address_with_another_far_end_tells_nothing_any_more() {
    let mut watch = Watch::default();
    exchange(&mut watch, "c", 0, 0);
    let request = watch.send(at(1_000));
    assert_eq!(watch.answered(request, id("c")), aged(1_000));
    let evidence = answered(at(1_000), Duration::from_secs(1));
    assert_eq!(watch.confirm(id("c"), far("b"), evidence), Confirmed::Not);
    watch.ended(id("c"), at(1_000));
    assert_eq!(exchange(&mut watch, "c", 9_000, 9_000), Seen::Reused { destination: D, idle_age: None });
    let other_cluster = FarEnd::new(b"payments-4s", b"a");
    assert_ne!(other_cluster, far("a"));
}

#[test]
fn a_connection_older_than_its_idle_timeout_is_another_one() {
    let mut watch = Watch::default();
    let request = watch.send(at(0));
    watch.answered(request, id("c"));
    watch.open(id("c"), D, far("a"), Duration::from_secs(4), at(0));
    watch.ended(id("c"), at(0));
    assert_eq!(exchange(&mut watch, "c", 4_001, 4_001), Seen::New);
    watch.broken(id("c"));
    assert_eq!(exchange(&mut watch, "c", 4_100, 4_100), Seen::New, "a broken one, too");
}

#[test]
fn what_is_watched_is_bounded() {
    let mut watch = Watch::default();
    let connection = |number: usize| ConnectionId::new(&number.to_le_bytes());
    for number in 0..MAX_CONNECTIONS {
        assert!(watch.open(connection(number), D, far("a"), Duration::from_secs(4), at(0)));
        watch.ended(connection(number), at(0));
    }
    assert!(!watch.open(connection(MAX_CONNECTIONS), D, far("a"), HOUR, at(0)));
    watch.ended(connection(MAX_CONNECTIONS), at(0));
    watch.forget(at(4_001));
    assert!(watch.is_empty());
}

#[test]
fn addresses_have_different_numbers() {
    let mut seen = std::collections::HashSet::new();
    for host in 0..4 {
        for port in 0..65_536 {
            assert!(seen.insert(id(&format!("10.0.0.{host}:{port}"))));
        }
    }
    assert_ne!(FarEnd::new(b"ab", b"c"), FarEnd::new(b"a", b"bc"));
}

/// What happened on a multiplexed connection, as only a simulation can know it.
#[derive(Clone, Debug)]
struct Stream {
    sent: u64,
    answer_after: u64,
    end_after: u64,
    connection: usize,
}

fn streams() -> impl Strategy<Value = Vec<Stream>> {
    let stream = (0_u64..20_000, 0_u64..6_000, 0_u64..3_000, 0_usize..3)
        .prop_map(|(sent, answer_after, end_after, connection)| Stream { sent, answer_after, end_after, connection });
    prop::collection::vec(stream, 1..30)
}

proptest! {
    /// However requests overlap on connections that carry many at a time, no age is longer than the connection was idle.
    #[test]
    fn an_age_is_never_longer_than_the_connection_was_idle(streams in streams()) {
        #[derive(Clone, Copy)]
        enum What { Sent, Answered, Ended }
        let mut events = Vec::new();
        for (number, stream) in streams.iter().enumerate() {
            let answered = stream.sent + 1 + stream.answer_after;
            events.push((stream.sent, number, What::Sent));
            events.push((answered, number, What::Answered));
            events.push((answered + 1 + stream.end_after, number, What::Ended));
        }
        events.sort_by_key(|(time, number, _)| (*time, *number));
        // The truth: how long had the connection been idle when the busy time began in which this request was sent?
        let idle_for = |number: usize| {
            let mine = &streams[number];
            let mut busy: Vec<(u64, u64)> = streams
                .iter()
                .filter(|other| other.connection == mine.connection)
                .map(|other| (other.sent, other.sent + 2 + other.answer_after + other.end_after))
                .collect();
            busy.sort_unstable();
            let (mut end, mut idle) = (0, 0);
            for (from, to) in busy.into_iter().take_while(|(from, _)| *from <= mine.sent) {
                if from > end {
                    idle = from - end;
                }
                end = end.max(to);
            }
            idle
        };
        let mut watch = Watch::default();
        let mut waiting = vec![None; streams.len()];
        let mut known: Vec<Evidence> = Vec::new();
        for (time, number, what) in events {
            let now = at(time);
            let connection = id(&streams[number].connection.to_string());
            match what {
                What::Sent => waiting[number] = Some(watch.send(now)),
                What::Answered => match watch.answered(waiting[number].unwrap(), connection) {
                    Seen::New => { watch.open(connection, D, far("a"), HOUR, now); }
                    Seen::Reused { .. } => {}
                    Seen::Aged { idle_age, .. } => {
                        let outcome = Outcome::Failed { connection: number as u64 }; // names the request here
                        let evidence = Evidence { sent: at(streams[number].sent), idle_age, outcome };
                        if watch.confirm(connection, far("a"), evidence) == Confirmed::Certain {
                            known.push(evidence);
                        }
                    }
                },
                What::Ended => watch.ended(connection, now),
            }
            known.extend(watch.resolve().into_iter().map(|(_, evidence)| evidence));
        }
        for evidence in known {
            let Outcome::Failed { connection: number } = evidence.outcome else { unreachable!() };
            let number = usize::try_from(number).unwrap();
            let idle = idle_for(number);
            prop_assert!(u128::from(idle) >= evidence.idle_age.as_millis(), "{number}: idle for {idle} ms, not {:?}", evidence.idle_age);
        }
        prop_assert!(watch.pending.is_empty(), "every request was answered");
        prop_assert!(watch.connections.values().all(|connection| connection.in_flight == 0));
    }
}

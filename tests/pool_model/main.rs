//! The fence and the reaper against a simulation of Envoy's worker: a pool that hands out the connection that became idle
//! last, an in-process pipe that takes a few turns of the event loop, turns that stall, clients that go away, far ends that
//! close. Whatever the order of events: no request meets a connection that has expired or that idleguard has closed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    unreachable_pub,
    missing_docs
)]

mod envoy;
mod race;

use std::time::Duration;

use proptest::prelude::*;

use self::envoy::Envoy;

#[derive(Clone, Debug)]
enum Step {
    Requests(u8),
    LostRequest,
    Abort(usize),
    FarEndCloses(usize),
    FarEndFails(usize),
    FarEndRestarts(u64),
    Quiet(u16),
    Stall(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..4_u8).prop_map(Step::Requests),
        1 => (20..60_u8).prop_map(Step::Requests),
        1 => Just(Step::LostRequest),
        1 => any::<usize>().prop_map(Step::Abort),
        1 => any::<usize>().prop_map(Step::FarEndCloses),
        1 => any::<usize>().prop_map(Step::FarEndFails),
        1 => any::<u64>().prop_map(Step::FarEndRestarts),
        4 => (1..60_u16).prop_map(Step::Quiet),
        2 => (200..400_u16).prop_map(Step::Quiet),
        1 => (50..200_u16).prop_map(Step::Stall),
    ]
}

fn run(steps: &[Step], max_connections: usize, latency: u64) -> Envoy {
    let mut envoy = Envoy::new(max_connections);
    let latency = Duration::from_millis(latency);
    let mut until_tick = envoy.tick_period();
    for step in steps {
        match step {
            Step::Requests(count) => (0..*count).for_each(|_| envoy.request(true)),
            Step::LostRequest => envoy.request(false),
            Step::Abort(pick) => envoy.abort(*pick),
            Step::FarEndCloses(pick) => envoy.far_end_closes(*pick),
            Step::FarEndFails(pick) => envoy.far_end_fails(*pick),
            Step::FarEndRestarts(seed) => envoy.far_end_restarts(*seed),
            // One turn that takes long, then a late tick before anything else.
            Step::Stall(millis) => envoy.turn(Duration::from_millis(u64::from(*millis)), true, latency),
            Step::Quiet(millis) => {
                for _ in 0..*millis / 2 {
                    until_tick -= 2;
                    envoy.turn(Duration::from_millis(2), until_tick <= 0, latency);
                    if until_tick <= 0 {
                        until_tick = envoy.tick_period();
                    }
                }
            }
        }
    }
    envoy
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_request_meets_an_expired_or_closed_connection(
        steps in prop::collection::vec(step(), 1..120),
        max_connections in prop_oneof![Just(8_usize), Just(1_000)],
        latency in 1_u64..20,
    ) {
        let envoy = run(&steps, max_connections, latency);
        let closes =
            |step: &Step| matches!(step, Step::FarEndCloses(_) | Step::FarEndFails(_) | Step::FarEndRestarts(_));
        // A far end that closes at random makes failures of its own kind; these would be idleguard's.
        let is_ours = |failure: &String| failure.contains("idle age") || failure.contains("under a request");
        prop_assert!(!envoy.failures.iter().any(is_ours), "{:?}", envoy.failures);
        prop_assert!(steps.iter().any(closes) || envoy.failures.is_empty(), "{:?}", envoy.failures);
    }

    #[test]
    fn everything_is_closed_and_counted_down_in_the_end(steps in prop::collection::vec(step(), 1..80)) {
        let mut envoy = run(&steps, 1_000, 5);
        for _ in 0..400 {
            envoy.turn(Duration::from_millis(5), true, Duration::from_millis(5));
        }
        let open = envoy.connections.iter().filter(|connection| connection.open_in_filter).count();
        prop_assert_eq!(open, 0);
        let destination = envoy.worker.get(envoy.id).unwrap();
        prop_assert_eq!(destination.take_gauges(), (0, 0));
        prop_assert_eq!(destination.tracked(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Some connections are idle and others await a response when the far end restarts, and whichever FIN is read first: no
    /// request is sent again on another dead connection. (One that is on its way to the connection filter then may be, if it
    /// is sent again within milliseconds.)
    #[test]
    fn a_retry_after_a_restart_meets_no_other_dead_connection(
        restarts in prop::collection::vec((1..40_u8, 1..40_u8, 0..100_u16, any::<u64>()), 1..8),
        latency in 30_u64..60,
    ) {
        let steps: Vec<Step> = restarts
            .iter()
            .flat_map(|(before, during, pause, seed)| {
                let requests = [Step::Requests(*before), Step::Quiet(150 + *pause), Step::Requests(*during)];
                let restart = [Step::Quiet(6), Step::FarEndRestarts(*seed), Step::Quiet(1_000)];
                requests.into_iter().chain(restart)
            })
            .collect();
        let envoy = run(&steps, 1_000, latency);
        prop_assert!(envoy.failures.iter().all(|failure| !failure.contains("retry")), "{:?}", envoy.failures);
    }
}

#[test]
fn a_busy_pool_keeps_its_connections() {
    // Four at a time, again and again: nothing ever idles for long, and four connections do.
    let steps: Vec<Step> = (0..500).flat_map(|_| [Step::Requests(4), Step::Quiet(20)]).collect();
    let envoy = run(&steps, 1_000, 5);
    assert_eq!((envoy.opened, envoy.failures.len()), (4, 0));
    assert!(envoy.served > 1_900);
}

#[test]
fn a_burst_that_leaves_a_tail_does_not_cost_the_busy_ones() {
    // Forty connections once, then one at a time: the other 39 expire and are closed, the busy one stays.
    let mut steps = vec![Step::Requests(40)];
    steps.extend((0..100).flat_map(|_| [Step::Quiet(20), Step::Requests(1)]));
    let envoy = run(&steps, 1_000, 5);
    assert_eq!((envoy.opened, envoy.failures.len()), (40, 0));
    assert_eq!(envoy.connections.iter().filter(|connection| connection.open_in_filter).count(), 1);
}

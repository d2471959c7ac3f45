//! The load clients count each kind of failure truthfully.

use std::time::Duration;

use idleguard_harness::{
    load::{Failure, Load, Pattern},
    stub_lb::{Mode, StubLb},
};

const SHORT: Pattern = Pattern::Scattered { gap: (Duration::from_millis(20), Duration::from_millis(40)) };

#[tokio::test]
async fn nothing_fails_against_a_stable_one() {
    let lb = StubLb::start(Mode::Stable);
    for pattern in [SHORT, Pattern::Bursts { gap: (Duration::from_millis(20), Duration::from_millis(40)) }] {
        let before = lb.counters();
        let report = Load::post(lb.address(), pattern).clients(20).run(Duration::from_millis(500)).await;
        assert_eq!((report.failed(), report.connections), (0, 20), "{report}");
        assert_eq!((report.ok, report.requests), (report.requests, lb.counters().requests - before.requests));
        assert!(report.requests > 100 && report.latency(0.5) <= report.latency(0.99), "{report}");
    }
}

#[tokio::test]
async fn each_kind_of_failure_is_told() {
    let lb = StubLb::start(Mode::Stable);
    for (path, failure) in [
        ("/abort?how=fin", Failure::ClosedBeforeResponse),
        ("/abort?how=rst", Failure::Reset),
        ("/slow?ms=5000", Failure::Timeout),
        ("/status?code=503", Failure::Status(503)),
    ] {
        let load = Load::post(lb.address(), SHORT).path(path).timeout(Duration::from_millis(100));
        let report = load.clients(2).run(Duration::from_millis(200)).await;
        assert!(report.requests >= 2 && report.count(failure) == report.requests, "{path}: {report}");
        assert!(!report.examples.is_empty());
    }
    let nobody = "127.0.0.1:1".parse().expect("an address");
    let report = Load::get(nobody, SHORT).run(Duration::from_millis(100)).await;
    assert_eq!(report.count(Failure::Connect), report.requests, "{report}");
}

#[tokio::test]
async fn stale_connections_are_felt_where_the_far_end_is_silent_and_not_where_it_says_fin() {
    let timeout = Duration::from_millis(200);
    let pattern = Pattern::Bursts { gap: (Duration::from_millis(250), Duration::from_millis(350)) };
    let run = |lb: &StubLb| {
        Load::post(lb.address(), pattern).clients(10).timeout(Duration::from_millis(300)).run(Duration::from_secs(1))
    };

    let lb = StubLb::start(Mode::SilentRst(timeout));
    let report = run(&lb).await;
    assert!(report.count(Failure::Reset) >= 10 && report.failed() == report.count(Failure::Reset), "{report}");
    assert_eq!(report.failed(), lb.counters().stale_arrivals);

    let report = run(&StubLb::start(Mode::SilentSwallow(timeout))).await;
    assert!(report.count(Failure::Timeout) >= 10, "{report}");

    let report = run(&StubLb::start(Mode::FinAt(timeout))).await;
    assert_eq!(report.failed(), 0, "a FIN is seen in time: {report}");
    assert!(report.connections >= 20, "{report}");
}

#[tokio::test]
async fn four_hundred_clients_fit_a_small_machine() {
    let lb = StubLb::start(Mode::Stable);
    let gap = (Duration::from_millis(260), Duration::from_millis(340));
    let load = Load::post(lb.address(), Pattern::Bursts { gap }).clients(400);
    let longest = Duration::from_secs(60);
    let (report, done) = load.run_while(longest, lb.wait_for(longest, |counters| counters.requests >= 1_600)).await;
    assert_eq!((report.failed(), report.connections, done), (0, 400, Some(true)), "{report}");
}

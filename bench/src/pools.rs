//! Which lanes: connections that a pool opens with the lane that follows from a far end's timeout, beside the ideal `idle_timeout`.
//!
//! Simulated, so that an hour of quiet traffic takes no hour: a pool as Envoy's, which hands out the connection that was used
//! last and closes each that has been idle for its `idle_timeout`. Nothing is random but by its seed, so a second run says the same.

use std::collections::BTreeMap;

use idleguard_cli::inject::LANES;
use idleguard_core::time::parse_duration;
use serde::{Deserialize, Serialize};

/// The far ends' timeouts, in seconds: those that `docs/timeouts.md` lists, up to ten minutes.
pub const TIMEOUTS: [f64; 13] = [2.0, 5.0, 20.0, 30.0, 60.0, 65.0, 75.0, 120.0, 240.0, 300.0, 350.0, 400.0, 600.0];

/// Sets of lanes that are compared, in seconds; the first is the default.
fn sets() -> Vec<Vec<f64>> {
    let default = LANES.iter().filter_map(|text| parse_duration(text)).map(|lane| lane.as_secs_f64()).collect();
    let others: [&[f64]; 8] = [
        &[54.0, 4.0],
        &[4.0, 0.9],
        &[27.0, 4.0, 0.9],
        &[108.0, 18.0, 1.8],
        &[315.0, 54.0, 4.0],
        &[54.0, 18.0, 4.0, 0.9],
        &[540.0, 54.0, 4.0, 0.9],
        &[540.0, 216.0, 54.0, 18.0, 4.0, 0.9],
    ];
    std::iter::once(default).chain(others.into_iter().map(<[f64]>::to_vec)).collect()
}

/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Traffic {
    /// One in 20 s.
    Quiet,
    /// Two a second.
    Steady,
    /// A hundred a second.
    Busy,
    /// Ten at once, every 30 s.
    Bursts,
}

impl Traffic {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Quiet, Self::Steady, Self::Busy, Self::Bursts];

    /// As tables call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Quiet => "quiet (one in 20 s)",
            Self::Steady => "steady (2 a second)",
            Self::Busy => "busy (100 a second)",
            Self::Bursts => "bursts (10 at once, every 30 s)",
        }
    }

    /// When requests come, at random but for the mean, and how long each takes: 100 ms on average.
    fn requests(self, count: u64) -> Vec<(f64, f64)> {
        let mut random = fastrand::Rng::with_seed(7);
        let mut exponential = move |mean: f64| -mean * (1.0 - random.f64()).ln();
        let (gap, together) = match self {
            Self::Quiet => (20.0, 1),
            Self::Steady => (0.5, 1),
            Self::Busy => (0.01, 1),
            Self::Bursts => (30.0, 10),
        };
        let mut now = 0.0;
        (0..count)
            .map(|at| {
                if at % together == 0 {
                    now += exponential(gap);
                }
                (now, exponential(0.1))
            })
            .collect()
    }
}

/// Everything that was simulated.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pools {
    /// Requests of each traffic.
    pub requests: u64,
    /// With the default lanes.
    pub rows: Vec<Row>,
    /// Sets of lanes beside each other.
    pub sets: Vec<Set>,
}

/// One far end's timeout.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// The far end's timeout, in seconds.
    pub timeout_s: f64,
    /// The lane in force, in seconds.
    pub lane_s: f64,
    /// Connections opened per 1,000 requests with the ideal `idle_timeout` (the timeout less 10 %), and with the lane.
    pub opened: BTreeMap<Traffic, (f64, f64)>,
}

/// One set of lanes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Set {
    /// The lanes, in seconds.
    pub lanes_s: Vec<f64>,
    /// The shortest timeout that a lane is below, in seconds: with a shorter one requests fail.
    pub safe_from_s: f64,
    /// Connections opened per 1,000 requests above the ideal, as the mean over all timeouts that are safe.
    pub above_ideal: BTreeMap<Traffic, f64>,
    /// The worst of them.
    pub worst: f64,
}

/// Simulates all of it with so many requests each.
pub fn run(requests: u64) -> Pools {
    let traffic: Vec<_> = Traffic::ALL.into_iter().map(|traffic| (traffic, traffic.requests(requests))).collect();
    let mut known: BTreeMap<(Traffic, u64), f64> = BTreeMap::new();
    let mut row = |lanes: &[f64], timeout: f64| {
        let limit = timeout * 0.9;
        let lane_s = in_force(lanes, limit);
        let opened = traffic.iter().map(|(traffic, requests)| {
            let mut opened = |timeout: f64| {
                let key = (*traffic, (timeout * 1e3) as u64);
                *known.entry(key).or_insert_with(|| opened_per_1000(requests, timeout))
            };
            (*traffic, (opened(limit), opened(lane_s)))
        });
        Row { timeout_s: timeout, lane_s, opened: opened.collect() }
    };
    let sets = sets();
    let rows = TIMEOUTS.iter().map(|timeout| row(&sets[0], *timeout)).collect();
    let sets = sets.into_iter().map(|lanes| {
        let shortest = lanes.iter().copied().fold(f64::MAX, f64::min);
        let rows: Vec<Row> = TIMEOUTS.iter().map(|timeout| row(&lanes, *timeout)).collect();
        let rows: Vec<Row> = rows.into_iter().filter(|row| row.timeout_s * 0.9 >= shortest).collect();
        let above = |row: &Row, traffic: Traffic| row.opened.get(&traffic).map_or(0.0, |(ideal, lane)| lane - ideal);
        let mean = |traffic| rows.iter().map(|row| above(row, traffic)).sum::<f64>() / rows.len() as f64;
        let all = rows.iter().flat_map(|row| Traffic::ALL.map(|traffic| above(row, traffic)));
        Set {
            safe_from_s: shortest / 0.9,
            worst: all.fold(0.0, f64::max),
            above_ideal: Traffic::ALL.into_iter().map(|traffic| (traffic, mean(traffic))).collect(),
            lanes_s: lanes,
        }
    });
    let sets = sets.collect();
    Pools { requests, rows, sets }
}

/// The longest lane that is not above the limit; if there is none, the shortest.
fn in_force(lanes: &[f64], limit: f64) -> f64 {
    let below = lanes.iter().copied().filter(|lane| *lane <= limit).fold(0.0, f64::max);
    if below > 0.0 { below } else { lanes.iter().copied().fold(f64::MAX, f64::min) }
}

/// Connections opened per 1,000 requests, each given by when it comes and how long it takes.
fn opened_per_1000(requests: &[(f64, f64)], idle_timeout: f64) -> f64 {
    let mut idle: Vec<f64> = Vec::new(); // since when, the last one behind
    let mut in_use: Vec<f64> = Vec::new(); // until when
    let mut opened = 0_u64;
    for &(now, takes) in requests {
        let mut done: Vec<f64> = in_use.extract_if(.., |until| *until <= now).collect();
        done.sort_by(f64::total_cmp);
        idle.append(&mut done);
        idle.retain(|since| now - since < idle_timeout);
        if idle.pop().is_none() {
            opened += 1;
        }
        in_use.push(now + takes);
    }
    opened as f64 * 1_000.0 / requests.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_used_again_within_its_idle_timeout_and_the_last_one_first() {
        let apart = |gap: f64| (0..10).map(|at| (f64::from(at) * gap, 1.0)).collect::<Vec<_>>();
        assert_eq!(opened_per_1000(&apart(3.0), 2.5), 100.0, "idle for 2 s");
        assert_eq!(opened_per_1000(&apart(3.0), 2.0), 1_000.0);
        assert_eq!(opened_per_1000(&apart(0.5), 2.0), 200.0, "two in flight");
        // Two connections; the second is left alone, and has gone when two are needed again.
        let requests = [(0.0, 1.0), (0.0, 1.1), (2.0, 0.1), (3.0, 0.1), (4.0, 0.1), (4.0, 0.1)];
        assert_eq!(opened_per_1000(&requests, 2.0), 500.0);
    }

    #[test]
    fn the_longest_lane_within_the_limit_is_in_force() {
        let lanes = [54.0, 4.0, 0.9];
        assert_eq!([54.0, 53.9, 1.8, 0.5].map(|limit| in_force(&lanes, limit)), [54.0, 4.0, 0.9, 0.9]);
    }

    #[test]
    fn no_set_opens_fewer_connections_than_the_ideal_and_a_second_run_says_the_same() {
        let (one, two) = (run(500), run(500));
        assert!(one.rows.iter().flat_map(|row| row.opened.values()).all(|(ideal, lane)| lane >= ideal));
        assert_eq!(serde_json::to_string(&one).ok(), serde_json::to_string(&two).ok());
    }
}

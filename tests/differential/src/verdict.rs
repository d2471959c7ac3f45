//! Not worse than plain?
//!
//! A case that gives the same beside plain at once is done. Where it differs both are run again, interleaved, until it is clear
//! whether plain Envoy does the same now and then (races there are in it, too), or never does.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::{
    case::Case,
    middle::{Middle, Seen},
    record::Observation,
};

/// How often both are run in all before each look.
const LOOKS: [usize; 4] = [1, 8, 30, 90];

/// A case that takes longer than this in all is not run more often than it takes to be sure of what happens each time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A difference counts if chance alone would give it less often than this.
const CHANCE: f64 = 0.000_1;

/// The fastest run may take this many times as long as plain's fastest before it counts, the fewer the runs the more. A busy machine
/// makes no difference to either, and idleguard's own work is far below on a machine of any speed.
const SLOWER: [f64; 4] = [f64::INFINITY, 60.0, 15.0, 8.0];

/// What makes a second look worth while.
const SUSPICIOUS: f64 = 8.0;

/// Runs of a case that differ from plain's.
#[derive(Debug, Clone)]
pub struct Worse {
    /// The case.
    pub case: String,
    /// Which subject.
    pub subject: &'static str,
    /// What plain gave, and what the subject did.
    pub what: String,
}

impl fmt::Display for Worse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}:\n{}", self.case, self.subject, self.what)
    }
}

#[derive(Debug, Default)]
struct Tally {
    outcomes: BTreeMap<Observation, usize>,
    /// The fastest run of each outcome.
    fastest: BTreeMap<Observation, Duration>,
    runs: usize,
}

impl Tally {
    fn add(&mut self, seen: Seen) {
        *self.outcomes.entry(seen.observation.clone()).or_default() += 1;
        self.runs += 1;
        let fastest = self.fastest.entry(seen.observation).or_insert(seen.took);
        *fastest = seen.took.min(*fastest);
    }

    fn most(&self) -> Option<&Observation> {
        self.outcomes.iter().max_by_key(|(_, count)| **count).map(|(outcome, _)| outcome)
    }
}

/// Runs the case through each, plain first; what is worse, and what plain gave most.
pub async fn judge(case: &Case, middles: &[Arc<Middle>]) -> Result<(Vec<Worse>, Observation)> {
    let mut tallies: Vec<Tally> = middles.iter().map(|_| Tally::default()).collect();
    let mut worse = Vec::new();
    let mut open: Vec<usize> = (1..middles.len()).collect();
    let began = Instant::now();
    for (look_at, runs) in LOOKS.into_iter().enumerate() {
        if look_at > 1 && began.elapsed() > PATIENCE {
            break;
        }
        while tallies[0].runs < runs {
            let mut running = JoinSet::new();
            for at in std::iter::once(0).chain(open.iter().copied()) {
                let (case, middle) = (case.clone(), Arc::clone(&middles[at]));
                running.spawn(async move { (at, middle.run(&case).await) });
            }
            while let Some(result) = running.join_next().await {
                let (at, seen) = result?;
                tallies[at].add(seen.with_context(|| case.name.clone())?);
            }
        }
        let plain = &tallies[0];
        open.retain(|&at| match look(plain, &tallies[at], look_at) {
            Look::Same => false,
            Look::Again => true,
            Look::Worse(what) => {
                worse.push(Worse { case: case.name.clone(), subject: middles[at].subject.name(), what });
                false
            }
        });
        if open.is_empty() {
            break;
        }
    }
    Ok((worse, tallies[0].most().cloned().unwrap_or_default()))
}

enum Look {
    Same,
    Again,
    Worse(String),
}

fn look(plain: &Tally, subject: &Tally, look_at: usize) -> Look {
    // Beside plain's runs that came out the same: a cut-off answer takes the time of Envoy's delayed close.
    let times = subject.most().and_then(|outcome| Some((subject.fastest.get(outcome)?, plain.fastest.get(outcome)?)));
    let ratio = times.map_or(1.0, |(own, plain)| own.as_secs_f64() / plain.as_secs_f64());
    let mut is_strange = false;
    for (outcome, &count) in &subject.outcomes {
        let of_plain = plain.outcomes.get(outcome).copied().unwrap_or(0);
        if at_least(count, subject.runs, of_plain, plain.runs) < CHANCE {
            return Look::Worse(difference(plain, subject, outcome));
        }
        is_strange |= of_plain == 0;
    }
    if ratio > SLOWER[look_at] {
        return Look::Worse(format!("the fastest of {} and plain's took {times:?}\n", subject.runs));
    }
    let is_last = look_at + 1 == LOOKS.len();
    if (is_strange || ratio > SUSPICIOUS) && !is_last { Look::Again } else { Look::Same }
}

/// Fisher's exact test, one side: how likely are `a` or more of `n`, if `b` of `m` are alike by nature?
fn at_least(a: usize, n: usize, b: usize, m: usize) -> f64 {
    let total = a + b;
    let one = |k: usize| choose(n, k) + choose(m, total - k) - choose(n + m, total);
    (a..=total.min(n)).filter(|k| total - k <= m).map(|k| one(k).exp()).sum()
}

/// The logarithm of the binomial coefficient.
fn choose(n: usize, k: usize) -> f64 {
    let log = |number: usize| (1..=number).map(|factor| (factor as f64).ln()).sum::<f64>();
    log(n) - log(k) - log(n - k)
}

fn difference(plain: &Tally, subject: &Tally, outcome: &Observation) -> String {
    let mut text = format!("{} of {} times:\n{outcome}", subject.outcomes[outcome], subject.runs);
    for (outcome, count) in &plain.outcomes {
        text += &format!("plain, {count} of {} times:\n{outcome}", plain.runs);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::at_least;

    #[test]
    fn eight_of_eight_against_none_is_no_chance_and_one_of_one_is() {
        assert!(at_least(8, 8, 0, 8) < 0.000_1);
        assert!(at_least(1, 1, 0, 1) > 0.4);
        assert!(at_least(3, 30, 1, 30) > 0.1);
        assert!((at_least(1, 1, 1, 1) - 1.0).abs() < 1e-9);
    }
}

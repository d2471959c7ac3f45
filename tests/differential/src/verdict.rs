//! Not worse than plain?
//!
//! A case that gives the same beside plain at once is done. Where it differs both are run again, beside each other, until it is clear
//! whether plain Envoy does the same now and then (races there are in it, too), or never does.
//!
//! Times are compared run by run: what a busy machine does to one it does to the other, now to this, now to that. Late is only who
//! is late in so many of the pairs that it is no chance, and also in his fastest run.

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

/// What takes no longer from one side to the other was not held back, whatever plain's took; and so much later than plain's is late.
const PASSAGE: Duration = Duration::from_millis(10);

/// So much longer than with plain a case as a whole may take.
const WHOLE: Duration = Duration::from_millis(50);

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
    runs: Vec<Seen>,
}

impl Tally {
    fn add(&mut self, seen: Seen) {
        *self.outcomes.entry(seen.observation.clone()).or_default() += 1;
        self.runs.push(seen);
    }

    fn most(&self) -> Option<&Observation> {
        self.outcomes.iter().max_by_key(|(_, count)| **count).map(|(outcome, _)| outcome)
    }
}

/// What became of a case.
#[derive(Debug)]
pub struct Verdict {
    /// Where a subject was worse.
    pub worse: Vec<Worse>,
    /// What plain gave most.
    pub plain: Observation,
}

/// Runs the case through each, plain first. None: the lane in force is another than a subject stands for, so that this says nothing.
pub async fn judge(case: &Case, middles: &[Arc<Middle>]) -> Result<Option<Verdict>> {
    let mut tallies: Vec<Tally> = middles.iter().map(|_| Tally::default()).collect();
    let mut worse = Vec::new();
    let mut open: Vec<usize> = (1..middles.len()).collect();
    let began = Instant::now();
    for (look_at, runs) in LOOKS.into_iter().enumerate() {
        if look_at > 1 && began.elapsed() > PATIENCE {
            break;
        }
        while tallies[0].runs.len() < runs {
            let mut running = JoinSet::new();
            let mut order: Vec<usize> = std::iter::once(0).chain(open.iter().copied()).collect();
            // Each begins as often as the others: who is first finds the machine idler, and wins more races.
            let first = tallies[0].runs.len() % order.len();
            order.rotate_left(first);
            for at in order {
                let (case, middle) = (case.clone(), Arc::clone(&middles[at]));
                running.spawn(async move { (at, middle.run(&case).await) });
            }
            while let Some(result) = running.join_next().await {
                let (at, seen) = result?;
                tallies[at].add(seen.with_context(|| case.name.clone())?);
            }
            if middles.iter().any(|middle| middle.is_elsewhere()) {
                return Ok(None);
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
    Ok(Some(Verdict { worse, plain: tallies[0].most().cloned().unwrap_or_default() }))
}

enum Look {
    Same,
    Again,
    Worse(String),
}

fn look(plain: &Tally, subject: &Tally, look_at: usize) -> Look {
    let mut again = false;
    for (outcome, &count) in &subject.outcomes {
        let of_plain = plain.outcomes.get(outcome).copied().unwrap_or(0);
        if at_least(count, subject.runs.len(), of_plain, plain.runs.len()) < CHANCE {
            return Look::Worse(difference(plain, subject, outcome));
        }
        again |= of_plain == 0;
    }
    // Beside plain's runs that came out the same: a cut-off answer takes the time of Envoy's delayed close.
    let pairs: Vec<(&Seen, &Seen)> =
        plain.runs.iter().zip(&subject.runs).filter(|(plain, own)| plain.observation == own.observation).collect();
    let passages: Vec<_> = pairs.iter().map(|(plain, own)| (plain.passage, own.passage)).collect();
    let wholes: Vec<_> = pairs.iter().map(|(plain, own)| (plain.took, own.took)).collect();
    // One run tells whether anything was held back, but not whether plain's was, too.
    let is_first = look_at == 0;
    again |= is_first && passages.iter().any(|(_, own)| *own > PASSAGE);
    for (what, times, by) in [("to the other side", passages, PASSAGE), ("in all", wholes, WHOLE)] {
        match lateness(&times, by) {
            Lateness::None => {}
            Lateness::Chance => again = true,
            Lateness::Sure => return Look::Worse(format!("  late {what}; plain's and its times: {times:.1?}\n")),
        }
    }
    let is_last = look_at + 1 == LOOKS.len();
    if again && !is_last { Look::Again } else { Look::Same }
}

/// Whether one takes longer than plain.
#[derive(Debug, PartialEq, Eq)]
enum Lateness {
    None,
    /// It may be by chance.
    Chance,
    Sure,
}

/// Pairs of plain's time and the other's, in each run.
fn lateness(times: &[(Duration, Duration)], by: Duration) -> Lateness {
    let plain = times.iter().map(|(plain, _)| *plain).min();
    let own = times.iter().map(|(_, own)| *own).min();
    let (Some(plain), Some(own)) = (plain, own) else { return Lateness::None };
    if own <= plain + by {
        return Lateness::None;
    }
    let later = times.iter().filter(|(plain, own)| *own > *plain + by).count();
    if heads(later, times.len()) < CHANCE { Lateness::Sure } else { Lateness::Chance }
}

/// The sign test: how likely are so many heads, or more, of `n` throws of a coin?
fn heads(count: usize, n: usize) -> f64 {
    (count..=n).map(|k| (choose(n, k) - n as f64 * f64::ln(2.0)).exp()).sum()
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
    let mut text = format!("{} of {} times:\n{outcome}", subject.outcomes[outcome], subject.runs.len());
    for (outcome, count) in &plain.outcomes {
        text += &format!("plain, {count} of {} times:\n{outcome}", plain.runs.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Lateness, PASSAGE, at_least, heads, lateness};

    /// Pairs, in milliseconds.
    fn late(times: &[(u64, u64)]) -> Lateness {
        let ms = Duration::from_millis;
        lateness(&times.iter().map(|(plain, own)| (ms(*plain), ms(*own))).collect::<Vec<_>>(), PASSAGE)
    }

    #[test]
    fn held_back_is_only_what_is_late_in_its_fastest_run_and_in_most() {
        assert_eq!(late(&[(1, 201)]), Lateness::Chance);
        assert_eq!(late(&[(1, 201); 14]), Lateness::Sure);
        // A busy machine: some of plain's take as long.
        assert_eq!(late(&[[(1, 201); 26].as_slice(), &[(400, 230); 4]].concat()), Lateness::Sure);
        assert_eq!(late(&[[(1, 201); 16].as_slice(), &[(400, 230); 14]].concat()), Lateness::Chance);
        // The fastest run was not held back.
        assert_eq!(late(&[[(1, 201); 29].as_slice(), &[(300, 9)]].concat()), Lateness::None);
        assert_eq!(late(&[]), Lateness::None);
    }

    #[test]
    fn fourteen_heads_in_a_row_are_no_chance() {
        assert!(heads(14, 14) < 0.000_1 && heads(13, 13) > 0.000_1);
        assert!((heads(0, 30) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn eight_of_eight_against_none_is_no_chance_and_one_of_one_is() {
        assert!(at_least(8, 8, 0, 8) < 0.000_1);
        assert!(at_least(1, 1, 0, 1) > 0.4);
        assert!(at_least(3, 30, 1, 30) > 0.1);
        assert!((at_least(1, 1, 1, 1) - 1.0).abs() < 1e-9);
    }
}

//! Cases by setup, through Envoys that they share.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Result, ensure};
use idleguard_harness::envoy::Config;
use tokio::task::JoinSet;

use crate::{
    case::Case,
    events::Row,
    middle::Middle,
    real,
    record::Observation,
    setup::{Setup, Subject},
    verdict::{Worse, judge},
};

/// What became of all cases.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many ran.
    pub ran: usize,
    /// Those that were worse than plain.
    pub worse: Vec<Worse>,
    /// What plain gave, by case.
    pub plain: BTreeMap<String, Observation>,
}

/// Starts the three subjects of a setup.
pub async fn start(setup: Setup) -> Result<Vec<Arc<Middle>>> {
    start_with(setup, |_, config| config).await
}

/// The same, with an edit of each one's whole configuration.
pub async fn start_with(setup: Setup, edit: fn(Subject, Config) -> Config) -> Result<Vec<Arc<Middle>>> {
    let mut starting = JoinSet::new();
    for subject in Subject::ALL {
        starting.spawn(Middle::start(setup, subject, edit));
    }
    let mut middles = Vec::new();
    while let Some(middle) = starting.join_next().await {
        middles.push(middle??);
    }
    middles.sort_by_key(|middle| middle.subject);
    Ok(middles.into_iter().map(Arc::new).collect())
}

/// Runs all cases.
pub async fn run(mut cases: Vec<Case>, is_verbose: bool) -> Result<Outcome> {
    let _servers = real::start(&mut cases).await?;
    let mut outcome = Outcome::default();
    let mut running = JoinSet::new();
    for setup in Setup::ALL {
        let own: Vec<Case> = cases.iter().filter(|case| case.setup == setup).cloned().collect();
        if own.is_empty() {
            continue;
        }
        running.spawn(async move {
            let mut middles = start(setup).await?;
            let mut outcome = Outcome::default();
            for case in own {
                let began = std::time::Instant::now();
                let (mut worse, mut plain) = judge(&case, &middles).await?;
                // What went through another lane than it was to says nothing about that one.
                for _ in 0..5 {
                    if !middles.iter().any(|middle| middle.is_elsewhere()) {
                        break;
                    }
                    middles = start(setup).await?;
                    (worse, plain) = judge(&case, &middles).await?;
                }
                if is_verbose {
                    println!(
                        "{} ({:.0?}){}\n{plain}",
                        case.name,
                        began.elapsed(),
                        if worse.is_empty() { "" } else { ": WORSE" }
                    );
                }
                outcome.ran += 1;
                outcome.worse.extend(worse);
                outcome.plain.insert(case.name, plain);
            }
            for middle in &middles {
                let log = middle.log();
                ensure!(!log.contains("[critical]"), "{:?}: {log}", middle.subject);
            }
            anyhow::Ok(outcome)
        });
    }
    while let Some(part) = running.join_next().await {
        let part = part??;
        outcome.ran += part.ran;
        outcome.worse.extend(part.worse);
        outcome.plain.extend(part.plain);
    }
    Ok(outcome)
}

/// The figures of an event, beside each other.
pub fn figures(row: &Row) -> String {
    let texts = row.figures[0].iter().enumerate().map(|(at, plain)| {
        let counts = row.figures.iter().filter_map(|figures| figures.get(at)).map(|figure| figure.count.to_string());
        format!("{}: {}", plain.what, counts.collect::<Vec<_>>().join(" / "))
    });
    texts.collect::<Vec<_>>().join("; ")
}

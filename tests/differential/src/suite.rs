//! Cases by setup, through Envoys that they share.

use std::{sync::Arc, time::Instant};

use anyhow::{Result, bail, ensure};
use tokio::task::JoinSet;

use crate::{
    breaks::Edit,
    case::Case,
    middle::Middle,
    real,
    setup::{Setup, Subject},
    verdict::{Verdict, Worse, judge},
};

/// What became of all cases.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many ran.
    pub ran: usize,
    /// Those that were worse than plain.
    pub worse: Vec<Worse>,
}

/// The three subjects of a setup.
pub struct Subjects {
    setup: Setup,
    edit: Option<Edit>,
    middles: Vec<Arc<Middle>>,
}

impl Subjects {
    /// Starts them, with this fault.
    pub async fn start(setup: Setup, edit: Option<Edit>) -> Result<Self> {
        Ok(Self { setup, edit, middles: start(setup, edit).await? })
    }

    /// Is any of them worse than plain?
    ///
    /// What went through another lane than the one it was to go through says nothing about that one, and begins anew with other Envoys.
    /// A machine so busy that half a second passes between an answer and the next request makes resets that a case has in its script
    /// look like a far end that forgets idle connections, and two of them put the shortest lane in force, as they should. Its pool closes
    /// after 900 ms what is idle meanwhile; so a far end sees FIN where it sees nothing with plain.
    pub async fn judge(&mut self, case: &Case) -> Result<Verdict> {
        for _ in 0..5 {
            if let Some(verdict) = judge(case, &self.middles).await? {
                return Ok(verdict);
            }
            for middle in self.middles.iter().filter(|middle| middle.is_elsewhere()) {
                let log = middle.log();
                let why = log.lines().rfind(|line| line.contains("requests go to")).unwrap_or_default();
                eprintln!("{}, {}: begins anew, with other Envoys: {why}", case.name, middle.subject.name());
            }
            self.middles = start(self.setup, self.edit).await?;
        }
        bail!("{}: five times another lane was in force than was to be", case.name)
    }
}

async fn start(setup: Setup, edit: Option<Edit>) -> Result<Vec<Arc<Middle>>> {
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

/// Runs all cases, with this fault.
pub async fn run(mut cases: Vec<Case>, edit: Option<Edit>, is_verbose: bool) -> Result<Outcome> {
    let _servers = real::start(&mut cases).await?;
    let mut outcome = Outcome::default();
    let mut running = JoinSet::new();
    for setup in Setup::ALL {
        let own: Vec<Case> = cases.iter().filter(|case| case.setup == setup).cloned().collect();
        if own.is_empty() {
            continue;
        }
        running.spawn(async move {
            let mut subjects = Subjects::start(setup, edit).await?;
            let mut outcome = Outcome::default();
            for case in own {
                let began = Instant::now();
                let Verdict { worse, plain } = subjects.judge(&case).await?;
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
            }
            for middle in &subjects.middles {
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
    }
    Ok(outcome)
}

//! Events: hosts come, go and fall ill, lanes change, configuration is replaced, all of it under load.
//!
//! An event returns figures, the fewer the better. None may be more than plain's, but for those that say how many more: what lanes have
//! of their own.

mod configuration;
mod hosts;
mod limits;
mod process;

use std::{fmt, future::Future, pin::Pin};

use anyhow::{Context, Result};
use idleguard_harness::envoy::Config;
use tokio::task::JoinSet;

use crate::{
    breaks::{self, Edit},
    setup::Subject,
    stage::Answers,
    verdict::Worse,
};

tokio::task_local! {
    /// The fault with which an event happens. Every Envoy of an event is started by the event's own task.
    static BREAK: Option<Edit>;
}

/// The configuration that this subject starts with, in an event.
pub(crate) fn broken(subject: Subject, config: Config) -> Config {
    breaks::broken(BREAK.get(), subject, config)
}

/// A number that must not grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// Of what.
    pub what: &'static str,
    /// How many.
    pub count: u64,
    /// How many more than plain's there may be.
    pub more: u64,
    /// What else there is to say, if it is worse.
    pub note: String,
}

/// A figure that may not be more than plain's.
pub fn figure(what: &'static str, count: u64) -> Figure {
    Figure { what, count, more: 0, note: String::new() }
}

impl Figure {
    /// As many more than plain's are chance, or what lanes have of their own.
    fn or_more(self, more: u64) -> Self {
        Self { more, ..self }
    }
}

/// How many of the requests failed.
fn failures(what: &'static str, answers: &Answers) -> Figure {
    Figure { note: format!(", by status {:?}", answers.by_status), ..figure(what, answers.failed()) }
}

/// What an event comes to.
pub type Running = Pin<Box<dyn Future<Output = Result<Vec<Figure>>> + Send>>;

/// One event.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// Its name.
    pub name: &'static str,
    /// What happens, in half a sentence.
    pub about: &'static str,
    /// For exceptions: what lanes have of their own.
    pub own: Option<&'static str>,
    /// Makes it happen.
    pub run: fn(Subject) -> Running,
}

/// Every event.
pub fn all() -> Vec<Event> {
    [hosts::all(), configuration::all(), process::all(), limits::all()].into_iter().flatten().collect()
}

/// The figures of one event.
#[derive(Debug, Clone)]
pub struct Row {
    /// The event.
    pub event: Event,
    /// Those of plain, base and lane; or what went wrong before there were any.
    figures: Vec<Result<Vec<Figure>, String>>,
}

impl Row {
    /// Where a subject has more than it may, or did not come to figures.
    pub fn worse(&self) -> Vec<Worse> {
        let plain = self.of(Subject::Plain);
        let mut worse = Vec::new();
        for (subject, figures) in Subject::ALL.iter().zip(&self.figures).skip(1) {
            let mut add = |what| worse.push(Worse { case: self.event.name.to_owned(), subject: subject.name(), what });
            match figures {
                Err(error) => add(format!("  {error}\n")),
                Ok(figures) => {
                    for (own, plain) in
                        figures.iter().zip(plain).filter(|(own, plain)| own.count > plain.count + own.more)
                    {
                        add(format!("  {}: {}{}, plain {}\n", own.what, own.count, own.note, plain.count));
                    }
                }
            }
        }
        worse
    }

    fn of(&self, subject: Subject) -> &[Figure] {
        self.figures[subject as usize].as_deref().unwrap_or_default()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, plain) in self.of(Subject::Plain).iter().enumerate() {
            let count = |subject: &Subject| {
                self.of(*subject).get(at).map_or_else(|| "?".to_owned(), |own| own.count.to_string())
            };
            let counts: Vec<String> = Subject::ALL.iter().map(count).collect();
            write!(f, "{}{} {}", if at == 0 { "" } else { "; " }, plain.what, counts.join(" / "))?;
        }
        Ok(())
    }
}

/// So many events at a time: each has three Envoys, and each file that Envoy watches takes one of a user's 128 inotify instances.
const AT_A_TIME: usize = 3;

/// Lets events happen, with this fault.
pub async fn run(events: Vec<Event>, edit: Option<Edit>) -> Result<Vec<Row>> {
    let names: Vec<&str> = events.iter().map(|event| event.name).collect();
    let mut rows = Vec::new();
    let mut events = events.into_iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < AT_A_TIME
            && let Some(event) = events.next()
        {
            running.spawn(one(event, edit));
        }
        let Some(row) = running.join_next().await else { break };
        rows.push(row??);
    }
    rows.sort_by_key(|row: &Row| names.iter().position(|name| *name == row.event.name));
    Ok(rows)
}

/// That plain comes to figures is the condition for everything else.
async fn one(event: Event, edit: Option<Edit>) -> Result<Row> {
    let mut running = JoinSet::new();
    for subject in Subject::ALL {
        running.spawn(BREAK.scope(edit, async move { (subject, (event.run)(subject).await) }));
    }
    let mut figures = vec![Ok(Vec::new()); Subject::ALL.len()];
    while let Some(done) = running.join_next().await {
        let (subject, seen) = done?;
        figures[subject as usize] = match seen {
            Err(error) if subject == Subject::Plain => return Err(error).context(event.name),
            seen => seen.map_err(|error| format!("{error:#}")),
        };
    }
    Ok(Row { event, figures })
}

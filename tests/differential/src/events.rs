//! Events: hosts come, go and fall ill, lanes change, configuration is replaced, all of it under load.
//!
//! An event returns figures, the fewer the better. None may be more than plain's, but for those that say how many more: what lanes have
//! of their own.

mod configuration;
pub(crate) mod hosts;
mod limits;
mod process;

use std::{future::Future, pin::Pin};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::{setup::Subject, verdict::Worse};

/// A number that must not grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// Of what.
    pub what: &'static str,
    /// How many.
    pub count: u64,
    /// How many more than plain's there may be.
    pub more: u64,
}

/// A figure that may not be more than plain's.
pub fn figure(what: &'static str, count: u64) -> Figure {
    Figure { what, count, more: 0 }
}

/// What an event comes to.
pub type Running = Pin<Box<dyn Future<Output = Result<Vec<Figure>>> + Send>>;

/// One event.
#[derive(Clone, Copy)]
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

/// The figures of one event, for plain, base and lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The event's name.
    pub name: &'static str,
    /// Each subject's figures.
    pub figures: Vec<Vec<Figure>>,
}

impl Row {
    /// Where a subject has more than it may.
    pub fn worse(&self) -> Vec<Worse> {
        let mut worse = Vec::new();
        for (subject, figures) in Subject::ALL.iter().zip(&self.figures).skip(1) {
            for (own, plain) in figures.iter().zip(&self.figures[0]) {
                if own.count > plain.count + own.more {
                    let what = format!("  {}: {}, plain {}\n", own.what, own.count, plain.count);
                    worse.push(Worse { case: self.name.to_owned(), subject: subject.name(), what });
                }
            }
        }
        worse
    }
}

/// Lets events happen, this many at a time.
pub async fn run(events: Vec<Event>, at_a_time: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut events = events.into_iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < at_a_time
            && let Some(event) = events.next()
        {
            running.spawn(one(event));
        }
        let Some(row) = running.join_next().await else { break };
        rows.push(row??);
    }
    let order: Vec<&str> = all().iter().map(|event| event.name).collect();
    rows.sort_by_key(|row: &Row| order.iter().position(|name| *name == row.name));
    Ok(rows)
}

async fn one(event: Event) -> Result<Row> {
    let mut running = JoinSet::new();
    for (at, subject) in Subject::ALL.into_iter().enumerate() {
        running.spawn(async move {
            (at, (event.run)(subject).await.with_context(|| format!("{}, {subject:?}", event.name)))
        });
    }
    let mut figures = vec![Vec::new(); Subject::ALL.len()];
    while let Some(done) = running.join_next().await {
        let (at, seen) = done?;
        figures[at] = seen?;
    }
    Ok(Row { name: event.name, figures })
}

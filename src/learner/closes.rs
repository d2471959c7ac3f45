//! Closes of idle connections by the far end, and the idle age on which they agree.
//!
//! A timeout closes connections at one idle age and at different times; a restart at one time and at different idle ages.
//! So closes in one moment count once if their ages agree and not at all if they don't.

use std::time::Duration;

use crate::time::Timestamp;

/// Closes that are remembered, of sentinels and of pooled connections each: enough for `OUTDATED_AFTER` and some noise.
pub const CLOSES: usize = 12;

/// Closes less than this apart are of one moment: a restart reaches all connections within it, and the next close after a
/// timeout need not be waited for.
const MOMENT: Duration = Duration::from_millis(250);

/// Sentinels that must outlive an age one after the other until closes at that age are history. Behind two far ends with
/// different timeouts each sentinel lands on either, and so many in a row on the longer one are rare (1 in 1,024).
const OUTDATED_AFTER: usize = 10;

/// Closes of connections in one moment whose idle ages agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// When the first was seen.
    pub at: Timestamp,
    /// The shortest of their idle ages.
    pub age: Duration,
    /// The shortest of the times since they were opened.
    pub connection_age: Duration,
    /// How many.
    pub connections: u32,
    /// How many others went in the same moment, at idle ages that don't agree.
    pub against: u32,
}

/// What a close meant beside the others of its moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It may be the timeout's.
    Calm,
    /// Connections of different idle ages went at once: the far end was restarted, or cut off.
    Restart,
}

/// The latest closes of one kind, the latest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closes(Vec<Close>);

/// Closes that agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The smallest of their idle ages.
    pub age: Duration,
    /// How many connections.
    pub connections: u32,
    /// When the second latest moment of them was.
    pub confirmed_at: Timestamp,
}

/// The largest idle age that still agrees with `age` as the smaller one: 3 % for far ends that count coarsely, and 20 ms
/// for what the network and the event loop add.
pub fn tolerated(age: Duration) -> Duration {
    stretched(age, 3)
}

fn stretched(age: Duration, percent: u32) -> Duration {
    let share = age.checked_div(100).unwrap_or_default().saturating_mul(percent);
    age.saturating_add(share).saturating_add(Duration::from_millis(20))
}

fn agree(one: Duration, other: Duration) -> bool {
    one.max(other) <= tolerated(one.min(other))
}

fn same_moment(one: Timestamp, other: Timestamp) -> bool {
    one.since(other).max(other.since(one)) < MOMENT
}

impl Closes {
    /// The latest first.
    pub fn iter(&self) -> impl Iterator<Item = &Close> {
        self.0.iter()
    }

    /// Tells these of a close of the other kind. Returns how many connections of these went in the same moment and disagree:
    /// each remembers how many were against it, because the others may be forgotten first.
    pub fn compare(&mut self, close: &Close) -> u32 {
        let mut against = 0_u32;
        for known in self.0.iter_mut().filter(|known| same_moment(known.at, close.at) && !agree(known.age, close.age)) {
            known.against = known.against.saturating_add(close.connections);
            against = against.saturating_add(known.connections);
        }
        against
    }

    /// Takes in a close, and says what its moment looks like with it.
    pub fn insert(&mut self, close: Close) -> Moment {
        let (mut others, mut against, mut is_known) = (0_usize, close.against, false);
        for known in self.0.iter_mut().filter(|known| same_moment(known.at, close.at)) {
            if !is_known && agree(known.age, close.age) {
                known.age = known.age.min(close.age);
                known.connection_age = known.connection_age.min(close.connection_age);
                known.connections = known.connections.saturating_add(close.connections);
                is_known = true;
            } else {
                known.against = known.against.saturating_add(close.connections);
                against = against.saturating_add(known.connections);
                others = others.saturating_add(1);
            }
        }
        if is_known {
            return Moment::Calm;
        }
        if others < 2 {
            self.join(&Close { against, ..close }); // two that disagree are enough to remember of such a moment
        }
        if others == 0 { Moment::Calm } else { Moment::Restart }
    }

    /// Takes in what another worker knows: the union, of which the latest are kept.
    pub fn join(&mut self, close: &Close) {
        match self.0.iter_mut().find(|known| known.at == close.at) {
            Some(known) => {
                known.age = known.age.min(close.age);
                known.connection_age = known.connection_age.min(close.connection_age);
                known.connections = known.connections.max(close.connections);
                known.against = known.against.max(close.against);
            }
            None => {
                let place = self.0.partition_point(|known| known.at > close.at);
                self.0.insert(place, *close);
                self.0.truncate(CLOSES);
            }
        }
    }

    /// The smallest idle age on which these closes agree, if there is one. `others` are those of the other kind, `sentinels`
    /// those of the kind that can show that an age is outlived, and `survived` says when an exchange last succeeded after
    /// more than an idle age.
    pub fn agreement(
        &self,
        others: &Self,
        sentinels: &Self,
        survived: impl Fn(Duration) -> Option<Timestamp>,
    ) -> Option<Agreement> {
        let mut valid: Vec<&Close> = Vec::with_capacity(self.0.len());
        for close in self.0.iter().filter(|close| self.counts(close, others, sentinels)) {
            insert_by(&mut valid, close, |one, other| (one.age, one.at) < (other.age, other.at));
        }
        let is_lonely = |close: &&&Close| {
            !valid.iter().any(|other| !same_moment(other.at, close.at) && agree(other.age, close.age))
        };
        let noise = valid.iter().filter(is_lonely).count();
        let crowd = valid.len().saturating_sub(noise);
        valid.iter().enumerate().find_map(|(index, smallest)| {
            let longest = tolerated(smallest.age);
            let members: Vec<&Close> =
                valid.iter().skip(index).take_while(|close| close.age <= longest).copied().collect();
            agreement_of(&members, noise, members.len() < crowd, survived(longest))
        })
    }

    /// Whether a close says something: its moment was calm, and the age is not outlived since.
    fn counts(&self, close: &Close, others: &Self, sentinels: &Self) -> bool {
        // A crowd of equal ones is no accident beside a few that disagree; beside many, they had only been idle since the same
        // restart.
        let beside = self.iter().chain(others.iter()).filter(|other| same_moment(other.at, close.at));
        let against = beside
            .filter(|other| !agree(other.age, close.age))
            .fold(0_u32, |sum, other| sum.saturating_add(other.connections));
        let outlived = |other: &&Close| other.at > close.at && other.age > tolerated(close.age);
        against.max(close.against).saturating_mul(4) < close.connections
            && sentinels.iter().filter(outlived).count() < OUTDATED_AFTER
    }
}

/// Inserts into a sorted list, behind its equals. (The lists here are short, and the standard library's sorting is larger than
/// the whole learner.)
fn insert_by<T>(list: &mut Vec<T>, new: T, is_before: impl Fn(&T, &T) -> bool) {
    let place = list.iter().position(|other| is_before(&new, other)).unwrap_or(list.len());
    list.insert(place, new);
}

/// Judges closes whose idle ages agree, the shortest first, among `noise` others that agree with nothing; `is_one_of_several`
/// if others agree on another age.
fn agreement_of(
    members: &[&Close],
    noise: usize,
    is_one_of_several: bool,
    survived_at: Option<Timestamp>,
) -> Option<Agreement> {
    let (first, last) = (members.first()?, members.last()?);
    let mut times: Vec<Timestamp> = Vec::with_capacity(members.len());
    for close in members {
        insert_by(&mut times, close.at, |one, other| one > other);
    }
    times.dedup_by(|earlier, later| same_moment(*earlier, *later));
    let moments = times.len();

    // Two random ages agree within 3 % too often; two within 1 % that are alone, or three, don't. The more noise, the more
    // it takes.
    let is_tight = last.age <= stretched(first.age, 1) && !is_one_of_several;
    let needed = noise.div_ceil(2).saturating_add(if is_tight { 2 } else { 3 });
    if moments < needed || is_lifetime(members) {
        return None;
    }
    // A success after a longer idle age refutes what came before it. If the closes go on, the far ends are several.
    let since_then = survived_at.map_or(moments, |at| times.iter().filter(|time| **time > at).count());
    if since_then == 0 || (since_then == 1 && moments < 3) {
        return None;
    }
    let connections = members.iter().fold(0_u32, |sum, close| sum.saturating_add(close.connections));
    Some(Agreement { age: first.age, connections, confirmed_at: times.get(1).copied()? })
}

/// Whether the connections were closed for their age and not for their idleness: then the time since they were opened
/// agrees better. Where they idled nearly from the start the two are the same, and so is what follows.
fn is_lifetime(members: &[&Close]) -> bool {
    let spread = |time: fn(&Close) -> Duration| {
        let times = || members.iter().map(|close| time(close));
        let (shortest, longest) = (times().min().unwrap_or_default(), times().max().unwrap_or_default());
        (shortest, longest, longest.saturating_sub(shortest))
    };
    let (_, longest_idle, idle_spread) = spread(|close| close.age);
    let (youngest, oldest, lifetime_spread) = spread(|close| close.connection_age);
    let idled_from_the_start = longest_idle >= youngest.mul_f64(0.9);
    !idled_from_the_start && agree(youngest, oldest) && lifetime_spread < idle_spread
}

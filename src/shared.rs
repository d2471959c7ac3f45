//! What workers tell each other, as bytes for Envoy's shared data.
//!
//! A destination has three values there. The *knowledge* is merged: a worker reads it, takes it in
//! ([`Learner::merge`]), and writes what it knows then, if that differs, by compare-and-swap; after a lost race it reads
//! again. The *lease* says which worker probes; it is taken by compare-and-swap, too, and runs out with its holder. The third
//! is what the log was *told*, so that it hears of a change once and not from each worker.
//!
//! A value that another version wrote, or nobody, is ignored: it begins with a version and ends with a checksum, and must be
//! of exactly the length that it says.

use std::time::Duration;

use crate::learner::bounds::{BOUNDS, Bound, Bounds};
use crate::learner::closes::{CLOSES, Close, Closes};
use crate::learner::{Bracket, Learner, Told};
use crate::time::{Timestamp, nanos};

/// Changes whenever the bytes or their meaning do.
const KNOWLEDGE: u64 = u64::from_le_bytes(*b"ig-know1");
const LEASE: u64 = u64::from_le_bytes(*b"ig-prob1");
const TOLD: u64 = u64::from_le_bytes(*b"ig-told1");

/// How long a lease lasts. Its holder renews it in its ticks, so this is how long the probe rests when a worker is gone.
pub const LEASE_TIME: Duration = Duration::from_secs(10);

/// The bytes of what `learner` knows: the same for the same knowledge.
pub fn encode(learner: &Learner) -> Vec<u8> {
    let mut writer = Writer::new(KNOWLEDGE);
    for closes in [&learner.sentinels, &learner.pooled] {
        writer.count(closes.iter().count());
        for close in closes.iter() {
            writer.time(close.at);
            writer.span(close.age);
            writer.span(close.connection_age);
            writer.number(u64::from(close.connections));
            writer.number(u64::from(close.against));
        }
    }
    for bounds in [&learner.successes, &learner.failures] {
        writer.count(bounds.iter().count());
        for bound in bounds.iter() {
            writer.time(bound.at);
            writer.span(bound.age);
        }
    }
    let Bracket { at, lower, upper } = learner.bracket;
    writer.time(at);
    writer.span(lower);
    writer.span(upper.unwrap_or(Duration::ZERO));
    writer.time(learner.restarted_at.unwrap_or_default());
    writer.finish()
}

/// What the bytes say; `None` if they are not of this version.
pub fn decode(bytes: &[u8]) -> Option<Learner> {
    let mut reader = Reader::new(bytes, KNOWLEDGE)?;
    let mut learner = Learner::default();
    for closes in [&mut learner.sentinels, &mut learner.pooled] {
        read_closes(&mut reader, closes)?;
    }
    for bounds in [&mut learner.successes, &mut learner.failures] {
        read_bounds(&mut reader, bounds)?;
    }
    let some = |span: Duration| (span > Duration::ZERO).then_some(span);
    learner.bracket = Bracket { at: reader.time()?, lower: reader.span()?, upper: some(reader.span()?) };
    learner.restarted_at = Some(reader.time()?).filter(|at| *at > Timestamp::default());
    reader.is_done().then_some(learner)
}

fn read_closes(reader: &mut Reader<'_>, closes: &mut Closes) -> Option<()> {
    for _ in 0..reader.count(CLOSES)? {
        let (at, age, connection_age) = (reader.time()?, reader.span()?, reader.span()?);
        let (connections, against) = (u32::try_from(reader.number()?).ok()?, u32::try_from(reader.number()?).ok()?);
        closes.join(&Close { at, age, connection_age, connections, against });
    }
    Some(())
}

fn read_bounds(reader: &mut Reader<'_>, bounds: &mut Bounds) -> Option<()> {
    for _ in 0..reader.count(BOUNDS)? {
        bounds.join(Bound { at: reader.time()?, age: reader.span()? });
    }
    Some(())
}

/// What is to be stored, by compare-and-swap, so that no other worker tells the log the same; `None` if one has told it. `current`
/// is the value in the shared data.
pub fn tell(current: &[u8], news: &Told) -> Option<Vec<u8>> {
    let told = Reader::new(current, TOLD).and_then(|mut reader| {
        let told = Told { limit: reader.span()?, is_known: reader.number()? != 0 };
        reader.is_done().then_some(told)
    });
    told.is_none_or(|told| told.is_outdated_by(news)).then(|| {
        let mut writer = Writer::new(TOLD);
        writer.span(news.limit);
        writer.number(u64::from(news.is_known));
        writer.finish()
    })
}

/// What a worker may do about the probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is its turn, and stays so for a while.
    Held,
    /// It is its turn once these bytes are written, by compare-and-swap.
    Write(Vec<u8>),
    /// Another worker's turn: a probe of its own must end.
    Taken,
}

/// Asks for the lease. `current` is the value in the shared data, `worker` a random number that is this worker's name.
///
/// A worker that stalls for longer than [`LEASE_TIME`] may find its lease taken: it asks before each probe, and so it sends
/// none beside its successor's.
pub fn claim(current: &[u8], worker: u64, now: Timestamp) -> Claim {
    let lease = Reader::new(current, LEASE).and_then(|mut reader| {
        let lease = (reader.number()?, reader.time()?);
        reader.is_done().then_some(lease)
    });
    if let Some((holder, until)) = lease {
        // An end that is further away than any lease lasts was written with another clock.
        let is_valid = until > now && until.since(now) <= LEASE_TIME;
        if is_valid && holder != worker {
            return Claim::Taken;
        }
        if is_valid && until.since(now).saturating_mul(2) > LEASE_TIME {
            return Claim::Held;
        }
    }
    let mut writer = Writer::new(LEASE);
    writer.number(worker);
    writer.time(now.after(LEASE_TIME));
    Claim::Write(writer.finish())
}

/// Numbers of 64 bits, the lowest byte first; a tag before, a checksum behind.
struct Writer(Vec<u8>);

impl Writer {
    fn new(tag: u64) -> Self {
        Self(tag.to_le_bytes().to_vec())
    }

    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn count(&mut self, count: usize) {
        self.number(count as u64);
    }

    fn time(&mut self, at: Timestamp) {
        self.number(at.as_nanos());
    }

    fn span(&mut self, span: Duration) {
        self.number(nanos(span));
    }

    fn finish(mut self) -> Vec<u8> {
        let sum = checksum(&self.0);
        self.number(sum);
        self.0
    }
}

struct Reader<'bytes>(&'bytes [u8]);

impl<'bytes> Reader<'bytes> {
    fn new(bytes: &'bytes [u8], tag: u64) -> Option<Self> {
        let (content, sum) = bytes.split_last_chunk::<8>()?;
        if u64::from_le_bytes(*sum) != checksum(content) {
            return None;
        }
        let mut reader = Self(content);
        (reader.number()? == tag).then_some(reader)
    }

    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn count(&mut self, most: usize) -> Option<usize> {
        usize::try_from(self.number()?).ok().filter(|count| *count <= most)
    }

    fn time(&mut self) -> Option<Timestamp> {
        self.number().map(Timestamp::from_nanos)
    }

    fn span(&mut self) -> Option<Duration> {
        self.number().map(Duration::from_nanos)
    }

    fn is_done(&self) -> bool {
        self.0.is_empty()
    }
}

/// FNV-1a with 64 bits: shared data is written by programs, not by adversaries.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::learner::Evidence;

    fn some_knowledge() -> Learner {
        let mut learner = Learner::default();
        let age = Duration::from_secs(6);
        for seconds in 1..20 {
            let now = Timestamp::from_millis(seconds * 7_000);
            learner.observe(Evidence::Closed { age, connection_age: age, is_sentinel: seconds % 2 == 0 }, now);
            learner.observe(Evidence::Succeeded { age: age / 2 }, now);
            learner.observe(Evidence::Failed { age: age * 2 }, now);
            learner.observe(Evidence::ProbeFailed { gap: age * 2 }, now);
        }
        learner
    }

    #[test]
    fn what_is_written_is_read_and_anything_else_is_ignored() {
        let learner = some_knowledge();
        let bytes = encode(&learner);
        assert_eq!(decode(&bytes), Some(learner));
        assert_eq!(decode(&encode(&Learner::default())), Some(Learner::default()));
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len]), None, "{len} bytes");
        }
        for index in 0..bytes.len() {
            let mut other = bytes.clone();
            other[index] ^= 1 << (index % 8);
            assert_eq!(decode(&other), None, "byte {index}");
        }
    }

    #[test]
    fn another_version_is_ignored_even_if_it_is_sound() {
        let mut bytes = encode(&some_knowledge());
        bytes.truncate(bytes.len() - 8);
        bytes[7] = b'2';
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        assert_eq!(decode(&bytes), None);
    }

    #[test]
    fn the_log_hears_of_a_change_once() {
        let known = Told { limit: Duration::from_millis(5_400), is_known: true };
        let stored = tell(b"", &known).unwrap();
        assert_eq!(tell(&stored, &known), None);
        assert_eq!(tell(&stored, &Told { limit: Duration::from_millis(5_420), ..known }), None);
        for news in [Told { limit: Duration::from_secs(4), ..known }, Told { is_known: false, ..known }] {
            assert!(tell(&stored, &news).is_some());
        }
    }

    #[test]
    fn one_worker_at_a_time_probes_and_another_follows_when_it_is_gone() {
        let now = Timestamp::from_millis(1_000);
        let Claim::Write(lease) = claim(&[], 1, now) else { panic!("nobody has it") };
        assert_eq!(claim(&lease, 1, now), Claim::Held);
        assert_eq!(claim(&lease, 2, now), Claim::Taken);
        assert!(matches!(claim(&lease, 1, now.after(LEASE_TIME / 2)), Claim::Write(_)));
        assert!(matches!(claim(&lease, 2, now.after(LEASE_TIME)), Claim::Write(_)));
        assert!(matches!(claim(b"garbage", 2, now), Claim::Write(_)));
        assert!(matches!(claim(&lease, 2, Timestamp::from_nanos(0)), Claim::Write(_)), "written with another clock");
    }
}

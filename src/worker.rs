//! What one worker knows: its destinations by name, and which request a connection was opened for.
//!
//! Both filters run in the same VM, and Envoy makes one VM for each of its worker threads. So a worker is one value, and
//! needs no lock.

use std::time::Duration;

use crate::connection::{ConnectionKey, Generation};
use crate::destination::{Admission, Destination, End};
use crate::metrics::DestinationMetric;
use crate::policy::Policy;
use crate::time::Timestamp;

/// Destinations on one worker. Where a route takes its cluster from a header, whoever sends the header chooses the names.
pub const MAX_DESTINATIONS: usize = 1_000;

/// Bytes in the name of a destination: it becomes a part of twelve metrics' names.
pub const MAX_NAME: usize = 256;

/// Names a destination on its worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DestinationId(usize);

impl DestinationId {
    /// The one that was created after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Envoy needs a tenth of this from a request's headers to its connection. Where the cluster may have no more connections it
/// opens none, and the next one is for whichever generation has room first: a retry's, mostly, after some milliseconds.
const AT_ONCE: Duration = Duration::from_millis(1);

/// The values of counters and histograms, by metric.
pub type Values = Vec<(DestinationMetric, u64)>;

/// Everything that one worker knows.
#[derive(Debug)]
pub struct Worker {
    random: SplitMix64,
    destinations: Vec<Destination>,
    /// By [`DestinationId`]; looked through when a filter is configured or a cluster is first seen.
    names: Vec<String>,
    /// Set by the admission of a request for which Envoy has to open a connection, and cleared by whatever happens next.
    /// Envoy opens it before it returns from the request's headers, so if the next thing is a new connection, and comes
    /// [at once](AT_ONCE), it is this one; if it opens one later, the connection's generation isn't certain.
    opening: Option<(DestinationId, Generation, Timestamp)>,
}

impl Worker {
    /// A worker without destinations. `seed` is random.
    pub fn new(seed: u64) -> Self {
        Self { random: SplitMix64(seed), destinations: Vec::new(), names: Vec::new(), opening: None }
    }

    /// The destination called `name`; it is created if there is none. The second value says whether it was. `None` if there
    /// are [`MAX_DESTINATIONS`] already, or the name is longer than [`MAX_NAME`].
    pub fn destination(&mut self, name: &str, now: Timestamp) -> Option<(DestinationId, bool)> {
        if let Some(index) = self.names.iter().position(|known| known == name) {
            return Some((DestinationId(index), false));
        }
        if self.names.len() >= MAX_DESTINATIONS || name.len() > MAX_NAME {
            return None;
        }
        let id = DestinationId(self.destinations.len());
        self.destinations.push(Destination::new(self.random.next(), now));
        self.names.push(name.to_owned());
        Some((id, true))
    }

    /// The destination with `id`.
    pub fn get(&mut self, id: DestinationId) -> Option<&mut Destination> {
        self.destinations.get_mut(id.0)
    }

    /// All destinations.
    pub fn destinations(&mut self) -> impl Iterator<Item = (DestinationId, &mut Destination)> {
        self.destinations.iter_mut().enumerate().map(|(index, destination)| (DestinationId(index), destination))
    }

    /// Whether there is something for [`take_counts`](Self::take_counts).
    pub fn has_counted(&self) -> bool {
        self.destinations.iter().any(Destination::has_counted)
    }

    /// What has been counted since the last call at the first destination from `from` on where anything has: the values, and
    /// the changes of the gauges of open and of idle connections.
    pub fn take_counts(&mut self, from: DestinationId) -> Option<(DestinationId, Values, (i64, i64))> {
        let mut at = from;
        while let Some(destination) = self.destinations.get_mut(at.0) {
            if destination.has_counted() {
                return Some((at, destination.tally.take(), destination.take_gauges()));
            }
            at = at.next();
        }
        None
    }

    /// The destinations without a connection filter whose timeout is to be learnt, and their names.
    pub fn unseen(&self) -> Vec<(DestinationId, String)> {
        let is_unseen = |destination: &Destination| destination.learns() && !destination.is_guarded();
        let named = self.destinations.iter().zip(&self.names).enumerate();
        named
            .filter(|(_, (destination, _))| is_unseen(destination))
            .map(|(index, (_, name))| (DestinationId(index), name.clone()))
            .collect()
    }

    /// Something other than a new connection happens: whoever opened one has done so.
    pub fn on_event(&mut self) {
        self.opening = None;
    }

    /// Decides for a request which connections it may get.
    pub fn admit(&mut self, id: DestinationId, now: Timestamp) -> Option<Admission> {
        self.opening = None;
        let destination = self.destinations.get_mut(id.0)?;
        let admission = destination.admit(now);
        if admission.opens_connection {
            self.opening = Some((id, admission.generation, now));
        }
        Some(admission)
    }

    /// A request that was admitted to `generation` ended.
    pub fn end(&mut self, id: DestinationId, generation: Generation, end: End) {
        self.opening = None;
        if let Some(destination) = self.destinations.get_mut(id.0) {
            destination.on_ended(generation, end);
        }
    }

    /// Envoy's pool opened a connection to `endpoint` of the cluster. `None` if the worker tracks `most` connections already:
    /// then this one is nobody's, and what is configured does not hold for it.
    pub fn open(
        &mut self,
        id: DestinationId,
        context: u32,
        endpoint: &[u8],
        policy: &Policy,
        most: usize,
        now: Timestamp,
    ) -> Option<ConnectionKey> {
        let opening = self.opening.take();
        if self.destinations.iter().map(Destination::tracked).sum::<usize>() >= most {
            self.destinations.get_mut(id.0)?.tally.count(DestinationMetric::ConnectionsUnguarded);
            return None;
        }
        let is_its = |(of, _, at): &(DestinationId, Generation, Timestamp)| *of == id && now.since(*at) < AT_ONCE;
        let generation = opening.filter(is_its).map(|(_, generation, _)| generation);
        let chance = self.random.next_share();
        let destination = self.destinations.get_mut(id.0)?;
        Some(destination.open(context, endpoint, policy, generation, chance, now))
    }
}

/// A small generator of random numbers (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014). Good
/// enough to spread lifetimes, and to tell one VM from the next.
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0.0 up to, but not including, 1.0.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double")]
    fn next_share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, parse};

    const NOW: Timestamp = Timestamp::from_millis(1);

    #[test]
    fn above_the_cap_connections_pass_unseen_and_are_counted() {
        let json = br#"{"filter": "connection", "destination": "x", "max_tracked_connections": 2}"#;
        let Config::Connection(config) = parse(json).unwrap().config else { panic!("not a connection filter") };
        let mut worker = Worker::new(1);
        let (one, _) = worker.destination("one", NOW).unwrap();
        let (other, _) = worker.destination("other", NOW).unwrap();
        let open =
            |worker: &mut Worker, id, context| worker.open(id, context, b"", &config.policy, config.max_tracked, NOW);
        let first = open(&mut worker, one, 1).unwrap();
        assert!(open(&mut worker, other, 2).is_some());
        assert_eq!(open(&mut worker, other, 3), None, "two on the worker, whichever their destination");
        let counted = worker.get(other).unwrap().tally.take();
        assert!(counted.contains(&(DestinationMetric::ConnectionsUnguarded, 1)), "{counted:?}");
        worker.get(one).unwrap().on_closed(first);
        assert!(open(&mut worker, other, 4).is_some());
    }

    #[test]
    fn whoever_chooses_the_names_of_clusters_does_not_choose_how_much_is_kept() {
        let mut worker = Worker::new(1);
        assert_eq!(worker.destination(&"x".repeat(MAX_NAME + 1), NOW), None);
        for index in 0..MAX_DESTINATIONS {
            assert!(worker.destination(&format!("cluster-{index}"), NOW).is_some());
        }
        assert_eq!(worker.destination("one more", NOW), None);
        assert_eq!(worker.destination("cluster-7", NOW), Some((DestinationId(7), false)));
    }
}

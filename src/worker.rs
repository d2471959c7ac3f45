//! What one worker knows: its destinations by name, and which request a connection was opened for.
//!
//! Both filters run in the same VM, and Envoy makes one VM for each of its worker threads. So a worker is one value, and
//! needs no lock.

use crate::connection::{ConnectionKey, Generation};
use crate::destination::{Admission, Destination, End};
use crate::policy::Policy;
use crate::time::Timestamp;

/// Names a destination on its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DestinationId(usize);

/// Everything that one worker knows.
#[derive(Debug)]
pub struct Worker {
    random: SplitMix64,
    destinations: Vec<Destination>,
    /// By [`DestinationId`]; looked through when a filter is configured or a cluster is first seen.
    names: Vec<String>,
    /// Set by the admission of a request for which Envoy has to open a connection, and cleared by whatever happens next.
    /// Envoy opens it before it returns from the request's headers, so if the next thing is a new connection, it
    /// is this one; if it opens one later, the connection's generation isn't certain.
    opening: Option<(DestinationId, Generation)>,
}

impl Worker {
    /// A worker without destinations. `seed` is random.
    pub fn new(seed: u64) -> Self {
        Self { random: SplitMix64(seed), destinations: Vec::new(), names: Vec::new(), opening: None }
    }

    /// The destination called `name`; it is created if there is none. The second value says whether it was.
    pub fn destination(&mut self, name: &str, now: Timestamp) -> (DestinationId, bool) {
        if let Some(index) = self.names.iter().position(|known| known == name) {
            return (DestinationId(index), false);
        }
        let id = DestinationId(self.destinations.len());
        self.destinations.push(Destination::new(self.random.next(), now));
        self.names.push(name.to_owned());
        (id, true)
    }

    /// The destination with `id`.
    pub fn get(&mut self, id: DestinationId) -> Option<&mut Destination> {
        self.destinations.get_mut(id.0)
    }

    /// All destinations.
    pub fn destinations(&mut self) -> impl Iterator<Item = (DestinationId, &mut Destination)> {
        self.destinations.iter_mut().enumerate().map(|(index, destination)| (DestinationId(index), destination))
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
            self.opening = Some((id, admission.generation));
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

    /// Envoy's pool opened a connection to `endpoint` of the cluster.
    pub fn open(
        &mut self,
        id: DestinationId,
        context: u32,
        endpoint: &[u8],
        policy: &Policy,
        now: Timestamp,
    ) -> Option<ConnectionKey> {
        let opening = self.opening.take();
        let generation = opening.filter(|(of, _)| *of == id).map(|(_, generation)| generation);
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

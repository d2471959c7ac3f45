//! What workers share: values in Envoy's shared data, changed by compare and swap, and a number that tells when one has changed.
//!
//! Each worker has a VM of its own, and so does Envoy's main thread. The data outlives them all, and every change of a
//! configuration; it ends with the process.

use idleguard_core::time::Timestamp;
use idleguard_core::timeout::{Finding, Knowledge, Measured, Policy};

use crate::host;

/// Counts the changes, so that a tick asks once and not for every destination.
const CHANGES: &[u8] = b"idleguard.changes";

/// A lost race is run again this often. Whoever loses that often has many beside him who know the same.
const TRIES: usize = 16;

/// Where a destination's value of some kind is.
pub(crate) fn key(kind: &str, destination: &str) -> Vec<u8> {
    format!("idleguard.{kind}.{destination}").into_bytes()
}

/// Changes a value: what `change` makes of the present bytes, nothing if it returns `None`. Returns whether it was written.
pub(crate) fn update(key: &[u8], mut change: impl FnMut(&[u8]) -> Option<Vec<u8>>) -> bool {
    for _ in 0..TRIES {
        let written = host::shared_data(key).and_then(|(bytes, version)| match change(&bytes) {
            Some(bytes) => host::set_shared_data(key, &bytes, version).map(Some),
            None => Ok(None),
        });
        match written {
            Ok(Some(true)) => return true,
            Ok(Some(false)) => {} // somebody else was quicker
            Ok(None) => return false,
            Err(error) => {
                host::report(error);
                return false;
            }
        }
    }
    false
}

/// What requests have said about a destination, all workers together.
pub(crate) fn knowledge(destination: &str) -> Knowledge {
    Knowledge::decode(&bytes(&key("destination", destination))).unwrap_or_default()
}

/// What a scout has found out about a destination.
pub(crate) fn finding(destination: &str) -> Option<Finding> {
    Finding::decode(&bytes(&key("scout", destination)))
}

/// What follows from that.
pub(crate) fn measured(destination: &str, policy: &Policy) -> Option<Measured> {
    let finding = finding(destination)?;
    let limit = finding.limit(policy.margin)?;
    Some(Measured { timeout: finding.timeout(), limit, at: finding.measured_at })
}

/// Changes what requests have said about a destination. Returns what they have said now.
pub(crate) fn learn(destination: &str, mut change: impl FnMut(&mut Knowledge)) -> Knowledge {
    let mut latest = None;
    let written = update(&key("destination", destination), |bytes| {
        let before = Knowledge::decode(bytes).unwrap_or_default();
        let mut after = before;
        change(&mut after);
        latest = Some(after);
        (after != before).then(|| after.encode())
    });
    if written {
        announce();
    }
    latest.unwrap_or_default()
}

/// Tells all workers that something has changed.
pub(crate) fn announce() {
    update(CHANGES, |count| Some(as_number(count).wrapping_add(1).to_le_bytes().to_vec()));
}

/// Changes whenever something has changed.
pub(crate) fn changes() -> u64 {
    number(CHANGES)
}

/// The number that is there; 0 if none is.
pub(crate) fn number(key: &[u8]) -> u64 {
    as_number(&bytes(key))
}

fn as_number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn bytes(key: &[u8]) -> Vec<u8> {
    host::shared_data(key).map_err(host::report).unwrap_or_default().0
}

/// Has the destination's scout look at once: requests met what it should have known.
pub(crate) fn ask_to_look(destination: &str, now: Timestamp) {
    update(&key("look", destination), |_| Some(now.as_nanos().to_le_bytes().to_vec()));
}

//! Which headers tell addresses, and what is to become of a request's lines under their names.
//!
//! There is one notion of "the same name": letters and digits count, in any case, and every other byte is as good as any other.
//! CGI (RFC 3875 §4.1.18), PHP, WSGI and kin make `_` of each such byte, so that `X.Real~IP` is `x-real-ip` to them. What is the
//! same name is removed; only the very name that was configured is read and written.

use std::net::IpAddr;

use super::chain::{Chain, Form};
use super::peer::Peer;
use crate::header_map::{Few, equal};

/// One call of the host that changes the request's headers. Names are compared without regard to case there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit<'a> {
    /// Remove every occurrence. The name is as the request has it.
    Remove {
        /// The header's name.
        name: &'a [u8],
    },
    /// Replace the only occurrence, or add the header. (Of several occurrences Envoy would rewrite the first and keep
    /// the others; a [`Remove`](Self::Remove) comes before then.)
    Replace {
        /// The header's name, in lower case.
        name: &'a str,
        /// The header's value; what we write of an address is printable ASCII.
        value: Vec<u8>,
    },
}

/// Every name in `sources`, `set` and `strip`.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// All of them, by their length.
    of_length: Vec<OfLength>,
    /// What the application gets, in lower case, and what it holds.
    set: Vec<(String, Form)>,
}

/// Names of one length.
#[derive(Clone, Debug, Default)]
struct OfLength {
    /// A bit for what each begins with: most other headers are ruled out by that.
    firsts: u32,
    names: Vec<Vec<u8>>,
}

/// A line of the request.
pub(super) type Line<'a> = (&'a [u8], &'a [u8]);

impl Names {
    pub(super) fn new(sources: &[String], set: &[String], strip: &[String]) -> Self {
        let mut names = Self { of_length: Vec::new(), set: Vec::new() };
        for name in set {
            if names.add(name) {
                names.set.push((name.clone(), Form::of(name)));
            }
        }
        for name in sources.iter().chain(strip) {
            names.add(name);
        }
        names
    }

    /// Returns whether it wasn't there yet, in this spelling or another.
    fn add(&mut self, name: &str) -> bool {
        if self.contains(name.as_bytes()) {
            return false;
        }
        self.note_first(name);
        let of_length = self.of_length.get_mut(name.len());
        of_length.map(|of_length| of_length.names.push(name.into())).is_some()
    }

    /// Has [`concern`](Self::concern) say yes to this name.
    pub(super) fn note_first(&mut self, name: &str) {
        if self.of_length.len() <= name.len() {
            self.of_length.resize_with(name.len().saturating_add(1), OfLength::default);
        }
        if let (Some(of_length), Some(first)) = (self.of_length.get_mut(name.len()), name.bytes().next()) {
            of_length.firsts |= bit_of_first(first);
        }
    }

    /// Whether one of the names might have this length and begin with `first`.
    pub(super) fn concern(&self, name_length: usize, first: u8) -> bool {
        self.of_length.get(name_length).is_some_and(|of_length| of_length.firsts & bit_of_first(first) != 0)
    }

    /// Is this one of the names, in any spelling?
    pub(super) fn contains(&self, name: &[u8]) -> bool {
        // From the end: many begin with `x-`.
        let is_same_byte = |(a, b): (&u8, &u8)| a == b || fold(*a) == fold(*b);
        let is_same = |known: &Vec<u8>| known.iter().zip(name).rev().all(is_same_byte);
        self.of_length.get(name.len()).is_some_and(|of_length| of_length.names.iter().any(is_same))
    }

    /// Those of the lines that are under one of the names.
    pub(super) fn lines<'a>(&self, headers: &[Line<'a>]) -> Few<Line<'a>> {
        headers.iter().filter(|(name, _)| self.contains(name)).copied().collect()
    }

    /// Does each header of `set` occur once? After this filter it does, so a request of which that isn't true is seen for the
    /// first time.
    pub(super) fn might_be_written(&self, headers: &[Line<'_>]) -> bool {
        self.set
            .iter()
            .all(|(name, _)| headers.iter().filter(|(own, _)| is_same_name(own, name.as_bytes())).count() == 1)
    }

    /// The chain in the lists that were written for this peer and this client, if one of them still stands.
    pub(super) fn chain_in(&self, lines: &[Line<'_>], peer: Peer, client: IpAddr) -> Option<Chain> {
        self.set.iter().find_map(|(name, form)| {
            let mut own = lines.iter().filter(|(own, _)| is_same_name(own, name.as_bytes()));
            let (_, list) = own.next().filter(|_| own.next().is_none())?;
            Chain::parse(list, *form, peer, client)
        })
    }

    /// What it takes to make the lines, all of which are under one of the names, into what is written. `None`: nothing is, all
    /// lines go.
    pub(super) fn edits<'a>(&'a self, lines: &[Line<'a>], chain: Option<&Chain>) -> Vec<Edit<'a>> {
        let set = if chain.is_some() { self.set.as_slice() } else { &[] };
        let mut edits = Vec::with_capacity(4);
        for (name, _) in lines {
            let is_written = set.iter().any(|(written, _)| is_same_name(name, written.as_bytes()));
            if !is_written && !is_removed(&edits, name) {
                edits.push(Edit::Remove { name });
            }
        }
        for (name, form) in set {
            let value = chain.map(|chain| chain.value(*form)).unwrap_or_default();
            replace(&mut edits, lines, name, value);
        }
        edits
    }

    /// The `connection` header of an upgrade, all others being removed by Envoy, without our names: the next hop would take what
    /// is written for the client's to remove (RFC 9110 §7.6.1).
    pub(super) fn clean_connection<'a>(&self, headers: &[Line<'a>], edits: &mut Vec<Edit<'a>>) {
        let own: Few<Line<'_>> =
            headers.iter().filter(|(name, _)| is_same_name(name, CONNECTION.as_bytes())).copied().collect();
        let options = || own.iter().flat_map(|(_, value)| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        if options().any(|option| self.contains(option)) && !self.contains(CONNECTION.as_bytes()) {
            let kept: Vec<&[u8]> = options().filter(|option| !self.contains(option)).collect();
            replace(edits, &own, CONNECTION, kept.join(b", ".as_slice()));
        }
    }
}

/// Names what belongs to the connection alone.
pub(super) const CONNECTION: &str = "connection";

/// Has the header occur once, with this value.
fn replace<'a>(edits: &mut Vec<Edit<'a>>, lines: &[Line<'a>], name: &'a str, value: Vec<u8>) {
    let mut own = lines.iter().filter(|(own, _)| is_same_name(own, name.as_bytes()));
    match (own.next(), own.next()) {
        (Some((_, present)), None) if *present == value => return,
        (Some((spelled, _)), Some(_)) => edits.push(Edit::Remove { name: spelled }),
        _ => {}
    }
    edits.push(Edit::Replace { name, value });
}

fn is_removed(edits: &[Edit<'_>], name: &[u8]) -> bool {
    edits.iter().any(|edit| matches!(edit, Edit::Remove { name: removed } if is_same_name(removed, name)))
}

/// Are these the same name to HTTP? Envoy gives names in lower case, so mostly they are the same bytes.
pub(super) fn is_same_name(a: &[u8], b: &[u8]) -> bool {
    equal(a, b) || a.eq_ignore_ascii_case(b)
}

/// The byte as all spellings of a name have it.
fn fold(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'_' }
}

/// One bit for all spellings of a byte; other bytes share the bits.
fn bit_of_first(byte: u8) -> u32 {
    1 << (fold(byte) & 31)
}

//! The headers that tell addresses: which lines of a request are theirs, and what is to become of those.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::chain::Chain;
use super::{Edit, Form};
use crate::header_map::{Few, equal};

/// Every header in `sources`, `set` and `strip`.
#[derive(Clone, Debug)]
pub(super) struct Headers {
    /// By the length of their names.
    all: Vec<Header>,
    /// Where in `all` the names of a length are. Most other headers are ruled out by their length.
    of_length: [(usize, usize); LENGTHS],
    /// The bits of what names of a length begin with.
    firsts_of_length: [u32; LENGTHS],
}

/// Names of this length less one, or more, are rare, and share the last entry.
const LENGTHS: usize = 64;

/// One header in all its spellings, the same to an application that gets them as CGI variables (RFC 3875 §4.1.18).
#[derive(Clone, Debug)]
struct Header {
    /// The name in lower case, with `-` for `_`.
    folded: String,
    /// The spelling that the application gets, if any, and what it holds.
    written: Option<(String, Form)>,
}

/// A line of the request under a name of ours, however it is spelled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub(super) header: usize,
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
}

impl Headers {
    pub(super) fn new(sources: &[String], set: &[String], strip: &[String]) -> Self {
        let mut all: Vec<Header> = Vec::new();
        let set_and_others =
            set.iter().map(|name| (name, true)).chain(sources.iter().chain(strip).map(|name| (name, false)));
        for (name, is_set) in set_and_others {
            if all.iter().any(|header| header.is_named(name.as_bytes())) {
                continue; // in this spelling or another
            }
            let folded = name.bytes().map(|byte| char::from(fold(byte))).collect();
            let header = Header { folded, written: is_set.then(|| (name.clone(), Form::of(name))) };
            let place = all.partition_point(|other| other.folded.len() <= header.folded.len());
            all.insert(place, header);
        }
        let at = |length| all.partition_point(|header| header.folded.len() < length);
        let of_length = std::array::from_fn(|length| {
            let next = length.saturating_add(1);
            (at(length), if next < LENGTHS { at(next) } else { all.len() })
        });
        let mut firsts_of_length = [0; LENGTHS];
        for header in &all {
            if let Some(firsts) = firsts_of_length.get_mut(header.folded.len().min(LENGTHS - 1))
                && let Some(first) = header.folded.bytes().next()
            {
                *firsts |= bit_of_first(first) | if first == b'-' { bit_of_first(b'_') } else { 0 };
            }
        }
        Self { of_length, firsts_of_length, all }
    }

    /// Which of the headers has that name, in any spelling?
    pub(super) fn find(&self, name: &[u8]) -> Option<usize> {
        let (start, end) = *self.of_length.get(name.len().min(LENGTHS.saturating_sub(1)))?;
        (start..end).find(|at| self.all.get(*at).is_some_and(|header| header.is_named(name)))
    }

    /// Whether one of the names might have this length and begin with `first`.
    pub(super) fn concern(&self, name_length: usize, first: u8) -> bool {
        let firsts = self.firsts_of_length.get(name_length.min(LENGTHS - 1));
        firsts.is_some_and(|firsts| firsts & bit_of_first(first) != 0)
    }

    /// Every spelling of every name, but not those that mix separators beyond the eighth.
    pub(super) fn spellings(&self) -> impl Iterator<Item = String> {
        self.all.iter().flat_map(|header| {
            let separators = header.folded.bytes().filter(|byte| *byte == b'-').count().min(8);
            let spellings = 1_u32.checked_shl(u32::try_from(separators).unwrap_or(0)).unwrap_or(1);
            (0..spellings).map(|underscores| spelling(&header.folded, underscores))
        })
    }

    /// The lines under any of the names, those of one spelling side by side in order of arrival.
    pub(super) fn lines<'a>(&self, headers: &[(&'a [u8], &'a [u8])]) -> Few<Line<'a>> {
        let line = |(name, value): &(&'a [u8], &'a [u8])| Some(Line { header: self.find(name)?, name, value });
        let lines: Few<_> = headers.iter().filter_map(line).collect();
        if lines.len() < 2 {
            return lines;
        }
        // A heap, because the code of the standard library's sorting is larger than all the rest of this module.
        let arrived = |(position, line)| Arrived { line, position };
        let sorted = lines.into_iter().enumerate().map(arrived).collect::<BinaryHeap<_>>().into_sorted_vec();
        sorted.into_iter().map(|arrived| arrived.line).collect()
    }

    /// What it takes to make the lines into what is written. `None`: nothing is, all lines go.
    pub(super) fn edits<'a>(&'a self, lines: &[Line<'a>], chain: Option<Chain>) -> Vec<Edit<'a>> {
        let mut edits = Vec::with_capacity(4);
        let mut rest = lines;
        for (at, header) in self.all.iter().enumerate() {
            let (own, others) = match rest.iter().position(|line| line.header != at) {
                Some(end) => rest.split_at_checked(end).unwrap_or_default(),
                None => (rest, [].as_slice()),
            };
            rest = others;
            if own.is_empty() && header.written.is_none() {
                continue;
            }

            let target = header.written.as_ref().zip(chain.as_ref());
            let target = target.map(|((name, form), chain)| (name.as_str(), chain.value(*form)));
            let mut present: &[Line<'_>] = &[];
            for spelling in own.chunk_by(|a, b| is_same_name(a.name, b.name)) {
                let Some(Line { name: spelled, .. }) = spelling.first() else { continue };
                match &target {
                    Some((name, _)) if is_same_name(name.as_bytes(), spelled) => present = spelling,
                    _ => edits.push(Edit::Remove { name: spelled }),
                }
            }
            let Some((name, value)) = target else { continue };
            match present {
                [only] if only.value == value => continue,
                [] | [_] => {}
                [first, ..] => edits.push(Edit::Remove { name: first.name }),
            }
            edits.push(Edit::Replace { name, value });
        }
        edits
    }
}

impl Header {
    fn is_named(&self, name: &[u8]) -> bool {
        let folded = self.folded.as_bytes();
        folded.len() == name.len()
            && folded.first() == name.first().map(|first| fold(*first)).as_ref()
            && (equal(folded, name) || folded.iter().zip(name).all(|(own, byte)| *own == fold(*byte)))
    }
}

/// One bit for both cases of a letter; other bytes share the bits.
fn bit_of_first(byte: u8) -> u32 {
    1 << (byte & 31)
}

/// A line in its order: by name, then as it came.
struct Arrived<'a> {
    line: Line<'a>,
    position: usize,
}

impl Ord for Arrived<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let (one, two) = (&self.line, &other.line);
        let by_name = one.header.cmp(&two.header).then_with(|| compare_ignoring_case(one.name, two.name));
        by_name.then(self.position.cmp(&other.position))
    }
}

impl PartialOrd for Arrived<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Arrived<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Arrived<'_> {}

/// Are these the same name to HTTP? Envoy gives names in lower case, so mostly they are the same bytes.
pub(super) fn is_same_name(a: &[u8], b: &[u8]) -> bool {
    equal(a, b) || a.eq_ignore_ascii_case(b)
}

/// The byte as all spellings of a name have it.
fn fold(byte: u8) -> u8 {
    if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() }
}

fn compare_ignoring_case(a: &[u8], b: &[u8]) -> Ordering {
    a.iter().map(u8::to_ascii_lowercase).cmp(b.iter().map(u8::to_ascii_lowercase))
}

/// The name with an underscore for its n-th separator if bit n of `underscores` is set; the separators beyond the eighth
/// go with the last bit.
fn spelling(folded: &str, underscores: u32) -> String {
    let mut bits = underscores;
    let mut seen = 0_u8;
    let spell = |character| {
        if character != '-' {
            return character;
        }
        let spelled = if bits & 1 == 1 { '_' } else { '-' };
        seen = seen.saturating_add(1);
        if seen < 8 {
            bits >>= 1;
        }
        spelled
    };
    folded.chars().map(spell).collect()
}

//! Who the client is, and which headers the application gets.
//!
//! Anyone may send forwarding headers, so the question is not what they say but who wrote it. The peer on the socket is
//! the one thing that can't be forged: if it is trusted, so is what it appended, and from there the walk goes from one
//! trusted proxy to the next. Whatever the verdict, the application gets headers that we wrote, or none: every other
//! spelling and source is removed, or an attacker would write the one that we overlooked.
//!
//! ```
//! use idleguard::client_ip::{ClientIp, Edit, Outcome, Peer};
//! use idleguard::config::Section;
//!
//! let json = serde_json::json!({"trusted_proxies": ["10.0.0.0/8"], "set": ["x-real-ip"]});
//! let (client_ip, warnings) = ClientIp::from_section(Section::try_new("client_ip", json)?)?;
//! assert!(warnings.is_empty());
//!
//! let headers = [(b"x-forwarded-for".as_slice(), b"192.0.2.66, 203.0.113.5".as_slice())];
//! let resolution = client_ip.resolve(Peer::from_filter_state(b"10.0.0.1:41000"), &headers);
//! assert_eq!(resolution.outcome, Outcome::Rewritten);
//! assert_eq!(resolution.client, Some([203, 0, 113, 5].into()));
//! assert_eq!(
//!     resolution.edits,
//!     [
//!         Edit::Replace { name: "x-real-ip", value: "203.0.113.5".into() },
//!         Edit::Remove { name: b"x-forwarded-for" },
//!     ],
//! );
//! # Ok::<(), idleguard::config::ConfigError>(())
//! ```

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::mem;
use std::net::IpAddr;

use crate::address::{Bits, Blocks, Cidr, Element, Neighbours, Text, parse_address, parse_endpoint, trim_blanks};
use crate::config::{ConfigError, Section, shorten};
use crate::forwarded::{forwarded, is_blank, x_forwarded_for};
use crate::header_map::{Few, equal};

/// Who is on the other end of the connection that the request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// This address, port and zone aside.
    Known(IpAddr),
    /// Nobody told, or it has no IP address (a Unix socket). Nothing is believed, and nothing is claimed.
    Unknown,
}

impl Peer {
    /// The peer as the listener recorded it: an address, mostly with a port.
    pub fn from_filter_state(text: &[u8]) -> Self {
        parse_address(text).map_or(Self::Unknown, Self::Known)
    }

    /// The peer from the property `source.address`, if that is a transport address. Envoy may have put an element of
    /// `x-forwarded-for` there, which is the client's to choose; it has port 0 then.
    pub fn from_source_address(text: &[u8]) -> Self {
        match parse_endpoint(text) {
            Some((address, Some(1..))) => Self::Known(address),
            _ => Self::Unknown,
        }
    }
}

/// What became of a request; each is a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A trusted peer named the client.
    Rewritten,
    /// The peer isn't trusted: it is the client.
    UntrustedPeer,
    /// Nobody knows the peer: there is no client.
    UnknownPeer,
    /// A trusted peer's source is malformed: `on_invalid`.
    Invalid,
    /// A trusted peer sent no source: `on_missing`.
    Missing,
}

/// Who the client is, and what to do about the headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution<'a> {
    /// How the answer came about.
    pub outcome: Outcome,
    /// The request is to be answered with 400; there is neither a client nor an edit.
    pub rejected: bool,
    /// The client's address, for the property `idleguard.client_ip`.
    pub client: Option<IpAddr>,
    /// What the headers still lack, as few calls as possible. Names of different edits may be spellings of one header,
    /// so the order counts.
    pub edits: Vec<Edit<'a>>,
}

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
        /// The header's value, printable ASCII.
        value: Vec<u8>,
    },
}

/// The `client_ip` section of the configuration.
#[derive(Clone, Debug)]
pub struct ClientIp {
    trust: Trust,
    sources: Vec<Source>,
    on_invalid: Fallback,
    on_missing: Fallback,
    peer_filter_state: String,
    headers: Headers,
}

/// Whom to believe, and how far.
#[derive(Clone, Debug)]
enum Trust {
    /// These addresses, as peers and as elements of a list.
    Listed(Blocks),
    /// Peers among these, or any if there are none; then this many elements of a list, whatever they are.
    Hops { peers: Blocks, count: u32 },
}

/// Where to look for the client.
#[derive(Clone, Debug)]
struct Source {
    name: String,
    form: Form,
    /// Its place in [`Headers::all`].
    header: usize,
}

/// What a header holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    XForwardedFor,
    Forwarded,
    Address,
}

/// What to do about a trusted peer that doesn't tell who the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fallback {
    Peer,
    Omit,
    Reject,
}

/// Every header in `sources`, `set` and `strip`.
#[derive(Clone, Debug)]
struct Headers {
    /// By the length of their names.
    all: Vec<Header>,
    /// Where in `all` the names of a length are. Most other headers are ruled out by their length.
    of_length: [(usize, usize); LENGTHS],
    /// The bits of what names of a length begin with.
    firsts_of_length: [u32; LENGTHS],
}

/// Names of this length less one, or more, are rare, and share the last entry.
const LENGTHS: usize = 64;

/// One bit for both cases of a letter; other bytes share the bits.
fn bit_of_first(byte: u8) -> u32 {
    1 << (byte & 31)
}

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
struct Line<'a> {
    header: usize,
    name: &'a [u8],
    value: &'a [u8],
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

// === impl ClientIp ===

impl ClientIp {
    /// Reads the section. Beside it come warnings: settings that are allowed, yet let clients choose their address if
    /// the network doesn't prevent it.
    ///
    /// # Errors
    /// If a key is unknown, or a value is of the wrong type or impossible.
    pub fn from_section(mut section: Section) -> Result<(Self, Vec<String>), ConfigError> {
        let mut warnings = Vec::new();
        let peers = take_trusted_proxies(&mut section, &mut warnings)?;
        let trust = match section.take_whole_number("trusted_hops", 1)? {
            None => Trust::Listed(peers),
            Some(count) => {
                if peers.is_empty() {
                    warnings.push(format!(
                        "{}: {count} without trusted_proxies believes any peer: make sure that only your own proxies can \
                         connect",
                        section.path_of("trusted_hops"),
                    ));
                }
                Trust::Hops { peers, count }
            }
        };
        let sources = take_names(&mut section, "sources")?.unwrap_or_else(|| owned(&["x-forwarded-for"]));
        let set = take_names(&mut section, "set")?.unwrap_or_else(|| owned(&["x-forwarded-for", "x-real-ip"]));
        // By default less what is in `sources` or `set`, which `Headers` sees to: those are removed and written anyway.
        let strip = take_names(&mut section, "strip")?.unwrap_or_else(|| owned(&STRIPPED));
        let fallbacks = [("peer", Fallback::Peer), ("omit", Fallback::Omit), ("reject", Fallback::Reject)];
        let on_invalid = section.take_word("on_invalid", &fallbacks)?.unwrap_or(Fallback::Peer);
        let on_missing = section.take_word("on_missing", &fallbacks)?.unwrap_or(Fallback::Peer);
        let key = "the key of a filter state";
        let peer_filter_state = section
            .take_with("peer_filter_state", key, |value| {
                value.as_str().filter(|key| !key.is_empty()).map(str::to_owned)
            })?
            .unwrap_or_else(|| "idleguard.peer".into());
        warn_of_order(&section, &sources, &mut warnings);
        section.finish()?;

        let headers = Headers::new(&sources, &set, &strip);
        let sources = sources
            .into_iter()
            .filter_map(|name| {
                let header = headers.find(name.as_bytes())?;
                Some(Source { form: Form::of(&name), name, header })
            })
            .collect();
        Ok((Self { trust, sources, on_invalid, on_missing, peer_filter_state, headers }, warnings))
    }

    /// The key of the filter state that holds the true peer.
    pub fn peer_filter_state(&self) -> &str {
        &self.peer_filter_state
    }

    /// Who sent the request, and what to do about its headers. `headers` are all its lines, in order of arrival.
    ///
    /// The work is linear in their size; the values are read only as far as the answer needs.
    pub fn resolve<'a>(&'a self, peer: Peer, headers: &[(&'a [u8], &'a [u8])]) -> Resolution<'a> {
        let lines = self.headers.lines(headers);
        let Peer::Known(peer) = peer else {
            return self.resolution(Outcome::UnknownPeer, &lines, None);
        };
        let mut chain = Chain::new(peer);
        if !self.trust.believes(peer) {
            return self.resolution(Outcome::UntrustedPeer, &lines, Some(chain));
        }
        let mut readings = self.sources.iter().map(|source| self.read(source, &lines, &mut chain));
        let (outcome, fallback) = match readings.find(|reading| *reading != Reading::Absent) {
            Some(Reading::Client) => return self.resolution(Outcome::Rewritten, &lines, Some(chain)),
            Some(Reading::Invalid) => (Outcome::Invalid, self.on_invalid),
            Some(Reading::Absent) | None => (Outcome::Missing, self.on_missing),
        };
        match fallback {
            Fallback::Peer => self.resolution(outcome, &lines, Some(chain)),
            Fallback::Omit => self.resolution(outcome, &lines, None),
            Fallback::Reject => Resolution { outcome, rejected: true, client: None, edits: Vec::new() },
        }
    }

    /// Whether [`resolve`](Self::resolve) may want to see a header whose name has this length and begins with `first`. It can
    /// do without others.
    pub fn concerns(&self, name_length: usize, first: u8) -> bool {
        let firsts = self.headers.firsts_of_length.get(name_length.min(LENGTHS - 1));
        firsts.is_some_and(|firsts| firsts & bit_of_first(first) != 0)
    }

    /// Every name that [`resolve`](Self::resolve) might remove, for the case that the host doesn't tell which headers
    /// there are. A mixed spelling of a name with more than eight separators isn't among them: there are too many.
    pub fn removals(&self) -> impl Iterator<Item = String> {
        self.headers.all.iter().flat_map(|header| {
            let separators = header.folded.bytes().filter(|byte| *byte == b'-').count().min(8);
            let spellings = 1_u32.checked_shl(u32::try_from(separators).unwrap_or(0)).unwrap_or(1);
            (0..spellings).map(|underscores| spelling(&header.folded, underscores))
        })
    }

    /// What a source says. The elements that count are added to the chain.
    fn read(&self, source: &Source, lines: &[Line<'_>], chain: &mut Chain) -> Reading {
        let own = |line: &&Line<'_>| line.header == source.header && is_same_name(line.name, source.name.as_bytes());
        let values = lines.iter().filter(own).map(|line| line.value);
        match source.form {
            Form::XForwardedFor => self.walk(x_forwarded_for(values), chain),
            Form::Forwarded => self.walk(forwarded(values).map(|address| address.map(Element::from)), chain),
            Form::Address => read_address(values, chain),
        }
    }

    /// Walks a list from the right to the client.
    fn walk<'a>(&self, elements: impl Iterator<Item = Option<Element<'a>>>, chain: &mut Chain) -> Reading {
        let (trusted, hops, mut neighbours) = match &self.trust {
            Trust::Listed(trusted) => (Some(trusted), u32::MAX, Neighbours::NONE),
            Trust::Hops { count, .. } => (None, *count, Neighbours::ALL),
        };
        // Out of the chain, so that they are kept in registers.
        let (mut client, mut text) = (chain.client, mem::take(&mut chain.text));
        let mut left = hops;
        let mut is_sound = true;
        let mut names_client = false;
        for element in elements {
            let Some(element) = element else {
                is_sound = false;
                break;
            };
            text.prepend(element);
            client = element.bits;
            left = left.wrapping_sub(1); // there are fewer elements than bytes
            if !neighbours.contain(client) {
                match trusted.and_then(|trusted| trusted.neighbours(client)) {
                    Some(its_neighbours) => neighbours = its_neighbours,
                    None => names_client = true,
                }
            }
            if names_client || left == 0 {
                names_client = true;
                break;
            }
        }
        (chain.client, chain.text) = (client, text);
        if names_client {
            return Reading::Client;
        }
        match trusted {
            _ if is_sound && left == hops => Reading::Absent,
            Some(_) if is_sound => Reading::Client, // all are trusted: the left-most
            Some(_) => Reading::Invalid,
            None => {
                // Counting is the only proof here, so a list that can't be counted proves nothing.
                chain.shorten_to_peer();
                Reading::Invalid
            }
        }
    }

    fn resolution<'a>(&'a self, outcome: Outcome, lines: &[Line<'a>], chain: Option<Chain>) -> Resolution<'a> {
        let client = chain.as_ref().map(|chain| chain.client.into());
        Resolution { outcome, rejected: false, client, edits: self.headers.edits(lines, chain) }
    }
}

/// What a source says, once the chain has its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// It isn't there.
    Absent,
    /// It names the client, which the chain now begins with.
    Client,
    /// It is malformed; the chain begins with the nearest verified hop.
    Invalid,
}

/// A header that holds one address: it must occur once.
fn read_address<'a>(mut values: impl Iterator<Item = &'a [u8]>, chain: &mut Chain) -> Reading {
    match (values.next(), values.next()) {
        (None, _) => Reading::Absent,
        (Some(value), None) if is_blank(value) => Reading::Absent,
        (Some(value), None) => match parse_address(value) {
            Some(address) => {
                chain.text.prepend(address.into());
                chain.client = address.into();
                Reading::Client
            }
            None => Reading::Invalid,
        },
        (Some(_), Some(_)) => Reading::Invalid,
    }
}

impl Trust {
    fn believes(&self, peer: IpAddr) -> bool {
        match self {
            Self::Listed(peers) => peers.contains(peer),
            Self::Hops { peers, .. } => peers.is_empty() || peers.contains(peer),
        }
    }
}

// === impl Chain ===

/// The verified addresses from the peer back to the client.
struct Chain {
    peer: IpAddr,
    client: Bits,
    text: ChainText,
}

/// The addresses of a chain as `x-forwarded-for` has them. A list is walked from the right, so the text grows at its front, and
/// no element has to be kept for later.
#[derive(Default)]
struct ChainText {
    /// The text fills the end of this, from `start` on, each address with a separator behind it.
    buffer: Vec<u8>,
    start: usize,
}

const SEPARATOR: &[u8; 2] = b", ";

impl ChainText {
    #[inline(always)]
    fn prepend(&mut self, element: Element<'_>) {
        match element.text {
            Some(text) => self.prepend_text(text),
            None => self.prepend_text(Text::new(element.address()).as_bytes()),
        }
    }

    #[inline(always)]
    fn prepend_text(&mut self, address: &[u8]) {
        let length = address.len().wrapping_add(SEPARATOR.len()); // no slice is as long as memory
        if self.start < length {
            *self = mem::take(self).grown_by(address);
            return;
        }
        let start = self.start.wrapping_sub(length);
        if let Some(place) = self.buffer.get_mut(start..self.start)
            && let Some((place, separator)) = place.split_last_chunk_mut()
            && place.len() == address.len()
        {
            place.copy_from_slice(address);
            *separator = *SEPARATOR;
            self.start = start;
        }
    }

    /// With twice the room, which is enough for any address. By value, or the fields could not be kept in registers.
    #[cold]
    #[inline(never)]
    fn grown_by(self, address: &[u8]) -> Self {
        let added = self.buffer.len().max(128);
        let mut buffer = vec![0; added];
        buffer.extend_from_slice(&self.buffer);
        let mut grown = Self { buffer, start: self.start.saturating_add(added) };
        grown.prepend_text(address);
        grown
    }

    fn as_bytes(&self) -> &[u8] {
        let end = self.buffer.len().saturating_sub(SEPARATOR.len());
        self.buffer.get(self.start..end).unwrap_or_default()
    }
}

impl Chain {
    fn new(peer: IpAddr) -> Self {
        let mut text = ChainText::default();
        text.prepend(peer.into());
        Self { peer, client: peer.into(), text }
    }

    fn shorten_to_peer(&mut self) {
        *self = Self::new(self.peer);
    }

    /// The value of a header of this form.
    fn value(&self, form: Form) -> Vec<u8> {
        match form {
            Form::XForwardedFor => self.text.as_bytes().to_vec(),
            Form::Forwarded => forwarded_value(self.text.as_bytes()),
            Form::Address => self.client_text().to_vec(),
        }
    }

    /// The client alone.
    fn client_text(&self) -> &[u8] {
        self.text.as_bytes().split(|byte| *byte == b',').next().unwrap_or_default()
    }
}

/// The addresses of a chain as `forwarded` elements; IPv6 needs quotes and brackets (RFC 7239 §6).
fn forwarded_value(chain: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(chain.len().saturating_mul(2));
    for address in chain.split(|byte| *byte == b',').map(trim_blanks) {
        if !value.is_empty() {
            value.extend_from_slice(SEPARATOR);
        }
        let (open, close) = if address.contains(&b':') {
            (b"for=\"[".as_slice(), b"]\"".as_slice())
        } else {
            (b"for=".as_slice(), b"".as_slice())
        };
        value.extend_from_slice(open);
        value.extend_from_slice(address);
        value.extend_from_slice(close);
    }
    value
}

// === impl Headers ===

impl Headers {
    fn new(sources: &[String], set: &[String], strip: &[String]) -> Self {
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
    fn find(&self, name: &[u8]) -> Option<usize> {
        let (start, end) = *self.of_length.get(name.len().min(LENGTHS.saturating_sub(1)))?;
        (start..end).find(|at| self.all.get(*at).is_some_and(|header| header.is_named(name)))
    }

    /// The lines under any of the names, those of one spelling side by side in order of arrival.
    fn lines<'a>(&self, headers: &[(&'a [u8], &'a [u8])]) -> Few<Line<'a>> {
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
    fn edits<'a>(&'a self, lines: &[Line<'a>], chain: Option<Chain>) -> Vec<Edit<'a>> {
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

impl Form {
    /// The form of a header of that name, given in lower case.
    fn of(name: &str) -> Self {
        match name {
            "x-forwarded-for" => Self::XForwardedFor,
            "forwarded" => Self::Forwarded,
            _ => Self::Address,
        }
    }
}

/// Are these the same name to HTTP? Envoy gives names in lower case, so mostly they are the same bytes.
fn is_same_name(a: &[u8], b: &[u8]) -> bool {
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

// === Configuration ===

/// Headers that applications are known to believe.
const STRIPPED: [&str; 6] =
    ["forwarded", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "cf-connecting-ip", "fastly-client-ip"];

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn take_trusted_proxies(section: &mut Section, warnings: &mut Vec<String>) -> Result<Blocks, ConfigError> {
    const ALLOWED: &str = "an address or a block such as \"10.0.0.0/8\" or \"2001:db8::/32\", with neither zone nor port, \
                           or \"private\", or \"loopback\"";
    let mut blocks = Vec::new();
    for (key, text) in section.take_strings("trusted_proxies", "a list of addresses and blocks")?.unwrap_or_default() {
        if let Some(preset) = Cidr::preset(&text) {
            blocks.extend(preset);
        } else if let Some(block) = Cidr::parse(&text) {
            if block.is_everyone() {
                let family = if block.is_v4() { "IPv4" } else { "IPv6" };
                warnings.push(format!(
                    "{key}: {} trusts every {family} address: whoever connects from one can choose his own address",
                    quoted(&text),
                ));
            }
            blocks.push(block);
        } else {
            return Err(ConfigError { key, given: quoted(&text), allowed: ALLOWED.into() });
        }
    }
    Ok(blocks.into_iter().collect())
}

/// Header names (`token`, RFC 9110 §5.6.2), in lower case.
fn take_names(section: &mut Section, key: &'static str) -> Result<Option<Vec<String>>, ConfigError> {
    const ALLOWED: &str = "a header name: letters, digits and !#$%&'*+-.^_`|~";
    let Some(names) = section.take_strings(key, "a list of header names")? else { return Ok(None) };
    let is_token_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let name = |(key, name): (String, String)| {
        if name.is_empty() || !name.bytes().all(is_token_byte) {
            return Err(ConfigError { key, given: quoted(&name), allowed: ALLOWED.into() });
        }
        Ok(name.to_ascii_lowercase())
    };
    names.into_iter().map(name).collect::<Result<_, _>>().map(Some)
}

/// A client can add a header that no proxy of ours sets or removes; in front of a list it would decide.
fn warn_of_order(section: &Section, sources: &[String], warnings: &mut Vec<String>) {
    let path = section.path_of("sources");
    for (at, name) in sources.iter().enumerate() {
        let later_list = sources.iter().skip(at).find(|later| Form::of(later) != Form::Address);
        if let Some(list) = later_list
            && Form::of(name) == Form::Address
        {
            warnings.push(format!(
                "{path}[{at}]: \"{name}\" is asked before the list \"{list}\": unless every trusted proxy sets or removes \
                 it, clients can choose their address there",
            ));
        }
    }
}

/// A string of the configuration as JSON, for messages; a long one is cut.
fn quoted(text: &str) -> String {
    shorten(&text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(config: Value) -> Result<(ClientIp, Vec<String>), String> {
        ClientIp::from_section(Section::try_new("client_ip", config).unwrap()).map_err(|error| error.to_string())
    }

    fn client_ip(config: Value) -> ClientIp {
        read(config).unwrap().0
    }

    fn warnings(config: Value) -> Vec<String> {
        read(config).unwrap().1
    }

    type Text<'a> = (&'a str, &'a str);

    fn resolve<'a>(client_ip: &'a ClientIp, peer: &str, headers: &[Text<'a>]) -> Resolution<'a> {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        client_ip.resolve(Peer::from_filter_state(peer.as_bytes()), &headers)
    }

    fn remove(name: &str) -> Edit<'_> {
        Edit::Remove { name: name.as_bytes() }
    }

    fn replace<'a>(name: &'a str, value: &str) -> Edit<'a> {
        Edit::Replace { name, value: value.into() }
    }

    #[test]
    fn the_source_address_is_a_peer_only_with_a_port() {
        let known = Peer::Known([10, 0, 0, 1].into());
        for (text, peer) in [
            ("10.0.0.1:41000", known),
            ("[::ffff:10.0.0.1]:1", known),
            ("10.0.0.1:0", Peer::Unknown), // an element of x-forwarded-for
            ("10.0.0.1", Peer::Unknown),
            ("", Peer::Unknown),
            ("@", Peer::Unknown),
            ("0.0.0.0:1", Peer::Unknown),
        ] {
            assert_eq!(Peer::from_source_address(text.as_bytes()), peer, "{text}");
        }
        assert_eq!(Peer::from_filter_state(b"10.0.0.1:0"), known);
        assert_eq!(Peer::from_filter_state(b"10.0.0.1"), known);
        assert_eq!(Peer::from_filter_state(b"/run/envoy.sock"), Peer::Unknown);
    }

    #[test]
    fn each_outcome_has_its_name() {
        let config = client_ip(json!({"trusted_proxies": ["10.0.0.0/8"]}));
        for (peer, headers, outcome, client) in [
            ("10.0.0.1:1", [("x-forwarded-for", "203.0.113.5")].as_slice(), Outcome::Rewritten, Some([203, 0, 113, 5])),
            ("192.0.2.1:1", &[("x-forwarded-for", "203.0.113.5")], Outcome::UntrustedPeer, Some([192, 0, 2, 1])),
            ("@", &[("x-forwarded-for", "203.0.113.5")], Outcome::UnknownPeer, None),
            ("10.0.0.1:1", &[("x-forwarded-for", "unknown")], Outcome::Invalid, Some([10, 0, 0, 1])),
            ("10.0.0.1:1", &[], Outcome::Missing, Some([10, 0, 0, 1])),
        ] {
            let resolution = resolve(&config, peer, headers);
            assert_eq!((resolution.outcome, resolution.rejected), (outcome, false), "{peer} {headers:?}");
            assert_eq!(resolution.client, client.map(IpAddr::from), "{peer} {headers:?}");
        }
    }

    #[test]
    fn a_rejected_request_keeps_its_outcome_and_gets_no_edits() {
        let config =
            client_ip(json!({"trusted_proxies": ["10.0.0.0/8"], "on_invalid": "reject", "on_missing": "reject"}));
        for (headers, outcome) in [
            ([("x-forwarded-for", "x"), ("x_real_ip", "y")].as_slice(), Outcome::Invalid),
            (&[("x_real_ip", "y")], Outcome::Missing),
        ] {
            let rejected = Resolution { outcome, rejected: true, client: None, edits: vec![] };
            assert_eq!(resolve(&config, "10.0.0.1:1", headers), rejected);
        }
    }

    #[test]
    fn a_header_gets_the_fewest_edits_that_make_it_right() {
        let config =
            client_ip(json!({"trusted_proxies": ["10.0.0.0/8"], "set": ["x-real-ip"], "strip": ["x-client-ip"]}));
        let edits = |headers| resolve(&config, "192.0.2.1:1", headers).edits;
        let written = || replace("x-real-ip", "192.0.2.1");
        assert_eq!(edits(&[]), [written()]);
        assert_eq!(edits(&[("x-real-ip", "10.0.0.1")]), [written()]);
        assert_eq!(edits(&[("X-Real-IP", "192.0.2.1")]), []);
        assert_eq!(edits(&[("x-real-ip", "192.0.2.1 ")]), [written()]);
        let twice = [remove("x-real-ip"), written()];
        assert_eq!(edits(&[("x-real-ip", "192.0.2.1"), ("X-REAL-IP", "192.0.2.1")]), twice);
        assert_eq!(
            edits(&[
                ("x-client-ip", ""),
                ("accept", "*/*"),
                ("X_Client_IP", "a"),
                ("x-client-ip", "b"),
                ("x_client_ip", "")
            ]),
            [written(), remove("x-client-ip"), remove("X_Client_IP")],
        );
        assert_eq!(
            edits(&[("x-real_ip", "192.0.2.1"), ("x_real_ip", "a"), ("x-real-ip", "192.0.2.1")]),
            [remove("x-real_ip"), remove("x_real_ip"),]
        );
    }

    #[test]
    fn both_kinds_of_list_are_written_of_one_chain() {
        let config =
            client_ip(json!({"trusted_proxies": ["fd00::/8"], "set": ["x-forwarded-for", "forwarded", "x-client"]}));
        let edits = resolve(&config, "[fd00::1]:1", &[("x-forwarded-for", "203.0.113.5, fd00::2")]).edits;
        assert_eq!(
            edits,
            [
                replace("x-client", "203.0.113.5"),
                replace("forwarded", "for=203.0.113.5, for=\"[fd00::2]\", for=\"[fd00::1]\""),
                replace("x-forwarded-for", "203.0.113.5, fd00::2, fd00::1"),
            ]
        );
    }

    #[test]
    fn an_unknown_peer_leaves_nothing_but_other_headers() {
        let config = client_ip(json!({"trusted_hops": 1}));
        let headers = [("x-real-ip", "a"), ("true_client-ip", "b"), ("accept", "*/*"), ("x-forwarded-for", "c")];
        let resolution = resolve(&config, "", &headers);
        assert_eq!(resolution.client, None);
        assert_eq!(resolution.edits, [remove("x-real-ip"), remove("true_client-ip"), remove("x-forwarded-for")]);
    }

    #[test]
    fn a_name_that_is_configured_with_underscores_is_read_and_written_so() {
        let config = client_ip(json!({
            "trusted_proxies": ["10.0.0.0/8"],
            "sources": ["client_ip"],
            "set": ["client-ip", "CLIENT_IP"],
            "strip": [],
        }));
        let resolution = resolve(&config, "10.0.0.1:1", &[("client-ip", "192.0.2.66"), ("client_ip", "203.0.113.5")]);
        assert_eq!(resolution.client, Some([203, 0, 113, 5].into()));
        assert_eq!(resolution.edits, [remove("client_ip"), replace("client-ip", "203.0.113.5")]);
    }

    #[test]
    fn names_longer_than_any_in_use_are_found_too() {
        let long = format!("x-{}", "long-".repeat(20));
        let config = client_ip(json!({"set": [], "strip": [long]}));
        let spelled = long.replace('-', "_");
        assert_eq!(resolve(&config, "10.0.0.1:1", &[(&spelled, "a")]).edits, [remove(&spelled)]);
    }

    #[test]
    fn every_spelling_is_among_the_removals() {
        let config = client_ip(json!({"set": ["x-real-ip"], "sources": ["forwarded"], "strip": []}));
        let mut removals: Vec<String> = config.removals().collect();
        removals.sort();
        assert_eq!(removals, ["forwarded", "x-real-ip", "x-real_ip", "x_real-ip", "x_real_ip"]);
        let config = client_ip(json!({"set": [], "sources": [], "strip": ["a-b-c-d-e-f-g-h-i-j-k"]}));
        assert_eq!(config.removals().count(), 256);
        assert!(config.removals().any(|name| name == "a_b_c_d_e_f_g_h_i_j_k"));
    }

    #[test]
    fn an_empty_section_trusts_nobody_and_cleans_up() {
        let (config, warnings) = read(json!({})).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(config.peer_filter_state(), "idleguard.peer");
        let mut names: Vec<&str> = config.headers.all.iter().map(|header| header.folded.as_str()).collect();
        names.sort_unstable();
        let expected = [
            "cf-connecting-ip",
            "fastly-client-ip",
            "forwarded",
            "true-client-ip",
            "x-client-ip",
            "x-cluster-client-ip",
            "x-forwarded-for",
            "x-real-ip",
        ];
        assert_eq!(names, expected);
        assert_eq!(client_ip(json!({"peer_filter_state": "my.peer"})).peer_filter_state(), "my.peer");
    }

    #[test]
    fn an_impossible_setting_is_refused_by_name() {
        let block = "an address or a block such as \"10.0.0.0/8\" or \"2001:db8::/32\", with neither zone nor port, or \
                     \"private\", or \"loopback\"";
        let name = "a header name: letters, digits and !#$%&'*+-.^_`|~";
        let words = "\"peer\" or \"omit\" or \"reject\"";
        for (config, key, given, allowed) in [
            (json!({"trusted_proxies": ["10.0.0.1", "fe80::1%eth0"]}), "trusted_proxies[1]", "\"fe80::1%eth0\"", block),
            (json!({"trusted_proxies": ["10.0.0.1:80"]}), "trusted_proxies[0]", "\"10.0.0.1:80\"", block),
            (json!({"trusted_proxies": ["[::1]:80"]}), "trusted_proxies[0]", "\"[::1]:80\"", block),
            (json!({"trusted_proxies": ["10.0.0.0/33"]}), "trusted_proxies[0]", "\"10.0.0.0/33\"", block),
            (json!({"trusted_proxies": ["Private"]}), "trusted_proxies[0]", "\"Private\"", block),
            (
                json!({"trusted_proxies": ["1".repeat(500)]}),
                "trusted_proxies[0]",
                &format!("\"{}…", "1".repeat(119)),
                block,
            ),
            (json!({"trusted_proxies": [7]}), "trusted_proxies[0]", "7", "a string"),
            (json!({"trusted_proxies": "private"}), "trusted_proxies", "\"private\"", "a list of addresses and blocks"),
            (json!({"trusted_hops": 0}), "trusted_hops", "0", "a whole number from 1 up"),
            (json!({"trusted_hops": 1.5}), "trusted_hops", "1.5", "a whole number from 1 up"),
            (json!({"trusted_hops": null}), "trusted_hops", "null", "a whole number from 1 up"),
            (json!({"sources": ["x-real-ip", "x real ip"]}), "sources[1]", "\"x real ip\"", name),
            (json!({"sources": "x-real-ip"}), "sources", "\"x-real-ip\"", "a list of header names"),
            (json!({"set": [""]}), "set[0]", "\"\"", name),
            (json!({"set": [":authority"]}), "set[0]", "\":authority\"", name),
            (json!({"strip": ["x-réal-ip"]}), "strip[0]", "\"x-réal-ip\"", name),
            (json!({"on_invalid": "drop"}), "on_invalid", "\"drop\"", words),
            (json!({"on_missing": true}), "on_missing", "true", words),
            (json!({"peer_filter_state": ""}), "peer_filter_state", "\"\"", "the key of a filter state"),
            (
                json!({"trusted_proxy": []}),
                "trusted_proxy",
                "[]",
                "an unknown key; the keys here are trusted_proxies, trusted_hops, sources, set, strip, on_invalid, \
                 on_missing, peer_filter_state",
            ),
        ] {
            let expected = format!("client_ip.{key}: {given} is not allowed: {allowed}");
            assert_eq!(read(config).err(), Some(expected));
        }
    }

    #[test]
    fn what_lets_clients_choose_their_address_is_warned_of() {
        assert_eq!(warnings(json!({"trusted_proxies": ["private", "203.0.113.0/24"], "trusted_hops": 2})), [""; 0]);
        assert_eq!(
            warnings(json!({"trusted_proxies": ["10.0.0.0/8", "0.0.0.0/0", "::/0"]})),
            [
                "client_ip.trusted_proxies[1]: \"0.0.0.0/0\" trusts every IPv4 address: whoever connects from one can \
                 choose his own address",
                "client_ip.trusted_proxies[2]: \"::/0\" trusts every IPv6 address: whoever connects from one can choose \
                 his own address",
            ]
        );
        assert_eq!(warnings(json!({"trusted_proxies": ["::ffff:0:0/96"]})).len(), 1);
        assert_eq!(
            warnings(json!({"trusted_hops": 2})),
            [
                "client_ip.trusted_hops: 2 without trusted_proxies believes any peer: make sure that only your own proxies \
                 can connect"
            ]
        );
        assert_eq!(
            warnings(json!({"sources": ["X-Real-IP", "x-forwarded-for", "true-client-ip"]})),
            ["client_ip.sources[0]: \"x-real-ip\" is asked before the list \"x-forwarded-for\": unless every trusted \
                 proxy sets or removes it, clients can choose their address there"]
        );
        assert_eq!(warnings(json!({"sources": ["forwarded", "x-forwarded-for", "x-real-ip"]})), [""; 0]);
    }

    #[test]
    fn a_set_header_is_written_though_strip_names_it() {
        let config = client_ip(json!({"set": ["x-client-ip"], "strip": ["X_Client_IP"]}));
        assert_eq!(resolve(&config, "192.0.2.1:1", &[]).edits, [replace("x-client-ip", "192.0.2.1")]);
    }
}

//! Who the client is, and which headers the application gets.
//!
//! Anyone may send forwarding headers, so the question is not what they say but who wrote it. The peer on the socket is
//! the one thing that can't be forged: if it is trusted, so is what it appended, and from there the walk goes from one
//! trusted proxy to the next. Whatever the verdict, the application gets headers that we wrote, or none: every other
//! spelling and source is removed, or an attacker would write the one that we overlooked.
//!
//! ```
//! use idleguard_core::client_ip::{ClientIp, Edit, Outcome, Peer};
//! use idleguard_core::config::Section;
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
//!         Edit::Remove { name: b"x-forwarded-for" },
//!         Edit::Replace { name: "x-real-ip", value: "203.0.113.5".into() },
//!     ],
//! );
//! # Ok::<(), idleguard_core::config::ConfigError>(())
//! ```

pub mod address;
mod blocks;
mod chain;
pub mod forwarded;
mod names;
mod peer;
pub mod peers;
mod settings;
mod strip;

use std::net::IpAddr;

use self::address::parse_address;
use self::blocks::Blocks;
use self::chain::{Chain, Form};
use self::forwarded::{forwarded, is_blank, joined, x_forwarded_for};
pub use self::names::Edit;
use self::names::{Line, Names, is_same_name};
pub use self::peer::Peer;
pub use self::strip::STRIPPED;

/// The filter state that holds the true peer, unless the configuration names another one.
pub const DEFAULT_PEER_FILTER_STATE: &str = "idleguard.peer";

/// What became of a request; each is a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A trusted peer named the client.
    Rewritten,
    /// The peer isn't trusted: it is the client.
    UntrustedPeer,
    /// Nobody knows the peer, or it is on a Unix socket and not trusted: there is no client.
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
    /// What the headers still lack, as few calls as possible. The order counts.
    pub edits: Vec<Edit<'a>>,
}

/// The `client_ip` section of the configuration.
#[derive(Clone, Debug)]
pub struct ClientIp {
    trust: Trust,
    sources: Vec<Source>,
    /// `None`: [`Form::fallback`] of the source that decides.
    on_invalid: Option<Fallback>,
    on_missing: Fallback,
    peer_filter_state: String,
    names: Names,
}

/// Whom to believe, and how far.
#[derive(Clone, Debug)]
enum Trust {
    /// These, as peers and as elements of a list.
    Listed(Peers),
    /// Peers among these, or any with an address if there are none; then this many elements of a list, whatever they are.
    Hops { peers: Peers, count: u32 },
}

/// What `trusted_proxies` names.
#[derive(Clone, Debug)]
struct Peers {
    blocks: Blocks,
    /// Whoever connects to a Unix socket.
    unix: bool,
}

/// The most trusted elements that are passed in a list without `trusted_hops`. Envoy takes 100 header lines of a request by
/// default (`max_headers_count`), so that is what proxies with a line each can have come to; its own way of finding the client
/// ends after 20. Whatever is longer was not written by a chain of proxies.
const MAX_PASSED: u32 = 100;

/// Where to look for the client.
#[derive(Clone, Debug)]
struct Source {
    name: String,
    form: Form,
}

/// What to do about a trusted peer that doesn't tell who the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fallback {
    Peer,
    Omit,
    Reject,
}

/// What Envoy's router leaves on a request that it redirects inside Envoy: where it was meant to go before.
const ORIGINAL_URL: &str = "x-envoy-original-url";

// === impl ClientIp ===

impl ClientIp {
    /// Whether a header of this name, in any spelling, is one that it reads, writes or removes.
    pub fn protects(&self, name: &[u8]) -> bool {
        self.names.contains(name)
    }

    /// The key of the filter state that holds the true peer.
    pub fn peer_filter_state(&self) -> &str {
        &self.peer_filter_state
    }

    /// Whether [`resolve`](Self::resolve) may want to see a header whose name has this length and begins with `first`. It can
    /// do without others.
    pub fn concerns(&self, name_length: usize, first: u8) -> bool {
        self.names.concern(name_length, first)
    }

    /// Who sent the request, and what to do about its headers. `headers` are all its lines, in order of arrival.
    pub fn resolve<'a>(&'a self, peer: Peer, headers: &[Line<'a>]) -> Resolution<'a> {
        let lines = self.names.lines(headers);
        let mut chain = Chain::new(peer);
        let (outcome, fallback) = if self.trust.believes(peer) {
            let decide = |source: &Source| Some((source.form, self.read(source, &lines, &mut chain)?));
            match self.sources.iter().find_map(decide) {
                Some((_, true)) => (Outcome::Rewritten, Fallback::Peer),
                Some((form, false)) => (Outcome::Invalid, self.on_invalid.unwrap_or(form.fallback())),
                None => (Outcome::Missing, self.on_missing),
            }
        } else if matches!(peer, Peer::Known(_)) {
            (Outcome::UntrustedPeer, Fallback::Peer)
        } else {
            (Outcome::UnknownPeer, Fallback::Omit)
        };
        match fallback {
            Fallback::Reject => {
                return Resolution { outcome, rejected: true, client: None, edits: Vec::new() };
            }
            Fallback::Omit => chain.0.clear(),
            Fallback::Peer => {}
        }
        self.written(outcome, &chain, headers, &lines)
    }

    /// Whether a request with these headers might have passed the rules before, as it does when Envoy redirects it internally or
    /// begins it anew. What was found then is to be asked for; if it isn't there, this is the first time. (Who sends
    /// `x-envoy-original-url` himself has Envoy look in vain.)
    pub fn may_have_passed(&self, headers: &[Line<'_>]) -> bool {
        headers.iter().any(|(name, _)| is_same_name(name, ORIGINAL_URL.as_bytes()))
            || self.names.might_be_written(headers)
    }

    /// The same answer once more, for a request that passes the rules again: its headers are our own by now, and `client` is the
    /// one of the first pass, if it found one.
    pub fn repeat<'a>(&'a self, peer: Peer, client: Option<IpAddr>, headers: &[Line<'a>]) -> Resolution<'a> {
        let lines = self.names.lines(headers);
        let chain = client
            .map(|client| self.names.chain_in(&lines, peer, client).unwrap_or_else(|| Chain::between(peer, client)));
        self.written(Outcome::Rewritten, &chain.unwrap_or_default(), headers, &lines)
    }

    /// What has to be removed from a request's trailers.
    pub fn clean_trailers<'a>(&'a self, trailers: &[Line<'a>]) -> Vec<Edit<'a>> {
        self.names.edits(&self.names.lines(trailers), None)
    }

    fn written<'a>(
        &'a self,
        outcome: Outcome,
        chain: &Chain,
        headers: &[Line<'a>],
        lines: &[Line<'a>],
    ) -> Resolution<'a> {
        let client = chain.client();
        let mut edits = self.names.edits(lines, client.map(|_| chain));
        self.names.clean_connection(headers, &mut edits);
        Resolution { outcome, rejected: false, client, edits }
    }

    /// What a source says: whether it names the client, in which case the chain ends with him, or is malformed, in which case
    /// the chain ends with the nearest verified hop. `None`: it isn't there.
    fn read(&self, source: &Source, lines: &[Line<'_>], chain: &mut Chain) -> Option<bool> {
        let own = lines.iter().filter(|(name, _)| is_same_name(name, source.name.as_bytes()));
        let mut values = own.map(|(_, value)| *value);
        Some(match source.form {
            Form::XForwardedFor => self.walk(x_forwarded_for(&joined(values)?), chain),
            Form::Forwarded => self.walk(forwarded(&joined(values)?), chain),
            Form::Address => match (values.next()?, values.next()) {
                (value, None) if is_blank(value) => return None,
                (value, None) => parse_address(value).map(|address| chain.0.push(address)).is_some(),
                (_, Some(_)) => false, // of two, one is the client's
            },
        })
    }

    /// Walks a list from the right to the client. Returns whether there is one.
    fn walk(&self, elements: impl Iterator<Item = Option<IpAddr>>, chain: &mut Chain) -> bool {
        let before = chain.0.len();
        let mut passed: u32 = 0;
        for element in elements {
            let Some(address) = element else { return self.cut(chain, before) };
            match &self.trust {
                Trust::Hops { count, .. } => {
                    chain.0.push(address);
                    passed = passed.saturating_add(1);
                    if passed == *count {
                        return true;
                    }
                }
                Trust::Listed(peers) if peers.blocks.contains(address) => {
                    if passed == MAX_PASSED {
                        return false;
                    }
                    chain.0.push(address);
                    passed = passed.saturating_add(1);
                }
                Trust::Listed(_) => {
                    chain.0.push(address);
                    return true;
                }
            }
        }
        match self.trust {
            Trust::Listed(_) => true, // all are trusted: the left-most
            Trust::Hops { .. } => self.cut(chain, before),
        }
    }

    /// The list is malformed. Where counting is the only proof, a list that can't be counted proves nothing.
    fn cut(&self, chain: &mut Chain, before: usize) -> bool {
        if matches!(self.trust, Trust::Hops { .. }) {
            chain.0.truncate(before);
        }
        false
    }
}

impl Trust {
    fn believes(&self, peer: Peer) -> bool {
        let (peers, any_address) = match self {
            Self::Listed(peers) => (peers, false),
            Self::Hops { peers, .. } => (peers, peers.are_none()),
        };
        match peer {
            Peer::Known(address) => any_address || peers.blocks.contains(address),
            Peer::Unix => peers.unix,
            Peer::Unknown => false,
        }
    }
}

impl Peers {
    fn are_none(&self) -> bool {
        !self.unix && self.blocks.is_empty()
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

    /// What is done by default if a source of this form doesn't tell the client. A proxy that appends to a list vouches for
    /// itself at its right end, whatever stands further left. One address says nothing about who wrote it, so that whoever makes
    /// it malformed or sends a second one would become the proxy: he becomes nobody.
    fn fallback(self) -> Fallback {
        match self {
            Self::XForwardedFor | Self::Forwarded => Fallback::Peer,
            Self::Address => Fallback::Omit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Section;
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
            ("", Peer::Unknown), // there is no such property
            ("@", Peer::Unix),
            ("/run/lb.sock", Peer::Unix),
            ("0.0.0.0:1", Peer::Unknown),
        ] {
            assert_eq!(Peer::from_source_address(text.as_bytes()), peer, "{text}");
        }
        assert_eq!(Peer::from_filter_state(b"10.0.0.1:0"), known);
        assert_eq!(Peer::from_filter_state(b"10.0.0.1"), known);
        for text in ["", "@", "@name", "/run/lb.sock"] {
            assert_eq!(Peer::from_filter_state(text.as_bytes()), Peer::Unix, "{text:?}");
        }
        assert_eq!(Peer::from_filter_state(b"localhost"), Peer::Unknown);
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
            [remove("x-client-ip"), remove("X_Client_IP"), written()],
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
                replace("x-forwarded-for", "203.0.113.5, fd00::2, fd00::1"),
                replace("forwarded", "for=203.0.113.5, for=\"[fd00::2]\", for=\"[fd00::1]\""),
                replace("x-client", "203.0.113.5"),
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
    fn an_empty_section_trusts_nobody_and_cleans_up() {
        let (config, warnings) = read(json!({})).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(config.peer_filter_state(), "idleguard.peer");
        for name in STRIPPED {
            let headers = [(*name, "192.0.2.66"), ("x-other", "a")];
            let edits = resolve(&config, "10.0.0.1:1", &headers).edits;
            let (written, removed): (Vec<_>, Vec<_>) =
                edits.iter().partition(|edit| matches!(edit, Edit::Replace { .. }));
            assert_eq!(written, [&replace("x-forwarded-for", "10.0.0.1"), &replace("x-real-ip", "10.0.0.1")], "{name}");
            let is_set = ["x-forwarded-for", "x-real-ip"].contains(name);
            let removal = remove(name);
            assert_eq!(removed, if is_set { vec![] } else { vec![&removal] }, "{name}");
        }
        assert_eq!(client_ip(json!({"peer_filter_state": "my.peer"})).peer_filter_state(), "my.peer");
    }

    #[test]
    fn an_impossible_setting_is_refused_by_name() {
        let block = "an address or a block such as \"10.0.0.0/8\" or \"2001:db8::/32\", with neither zone nor port, or \
                     \"private\", \"loopback\" or \"unix\"";
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

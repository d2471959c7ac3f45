//! What `client_ip` should do, written down for clarity alone: everything is split, copied and looked at. The property
//! tests and the fuzz targets hold the filter against it.
#![allow(dead_code, reason = "each user needs a part")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    clippy::panic,
    unreachable_pub,
    missing_docs,
    reason = "a test that panics fails"
)]

use std::net::{IpAddr, Ipv6Addr};

use idleguard_core::client_ip::{ClientIp, Edit, Peer, Resolution, STRIPPED};
use idleguard_core::config::Section;
use serde_json::Value;

pub type Line = (Vec<u8>, Vec<u8>);

// === Addresses ===

/// Rule 7, by means of `std`.
pub fn address(text: &[u8], obfuscated_port: bool) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t']);
    let (address, port) = if let Some(inside) = text.strip_prefix('[') {
        let (inside, port) = inside.split_once(']')?;
        (v6(inside)?, port)
    } else if text.matches(':').count() == 1 {
        let colon = text.find(':')?;
        (IpAddr::V4(text[..colon].parse().ok()?), &text[colon..])
    } else {
        (text.parse().ok().map(IpAddr::V4).or_else(|| v6(text))?, "")
    };
    let port_is_right = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(port) if port.starts_with('_') => {
            obfuscated_port && port.len() > 1 && port.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        }
        Some(port) => {
            (1..=5).contains(&port.len())
                && port.chars().all(|c| c.is_ascii_digit())
                && port.parse::<u32>().unwrap() <= 65535
        }
    };
    (port_is_right && !address.is_unspecified()).then_some(address)
}

fn v6(text: &str) -> Option<IpAddr> {
    let address = match text.split_once('%') {
        None => text,
        Some((address, zone)) => {
            let zone_is_right =
                !zone.is_empty() && zone.chars().all(|c| c.is_ascii_alphanumeric() || "._~-".contains(c));
            zone_is_right.then_some(address)?
        }
    };
    Some(address.parse::<Ipv6Addr>().ok()?.to_canonical())
}

/// RFC 5952, by means of `std`, which writes some addresses with IPv4 inside.
pub fn text(address: IpAddr) -> String {
    let text = address.to_string();
    match address {
        IpAddr::V6(v6) if text.contains('.') => {
            let [.., a, b] = v6.segments();
            let cut = text.rfind(':').unwrap();
            let text = format!("{}:{a:x}:{b:x}", &text[..cut]);
            assert_eq!(text.parse(), Ok(address));
            text
        }
        _ => text,
    }
}

/// Is the address in the block? For the blocks of the vectors: one address, or a prefix.
fn is_in(address: IpAddr, block: &str) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (true, u128::from(v4.to_bits()) << 96),
        IpAddr::V6(v6) => (false, v6.to_bits()),
    };
    let (base, length) = match block.split_once('/') {
        None => (block, 128),
        Some((base, length)) => (base, length.parse::<u32>().unwrap()),
    };
    let raw: IpAddr = base.parse().unwrap();
    let mapped = raw.is_ipv6() && raw.to_canonical().is_ipv4() && length >= 96;
    let (base, length) = if mapped { (raw.to_canonical(), (length - 96).min(32)) } else { (raw, length) };
    let ((family, address), (base_family, base)) = (bits(address), bits(base));
    let mask = match length {
        0 => 0,
        length => u128::MAX << (128 - length.min(128)),
    };
    family == base_family && address & mask == base & mask
}

// === Lists ===

fn without_blank_lines<'a>(lines: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let is_blank = |line: &&[u8]| line.iter().all(|byte| b" \t".contains(byte));
    lines.iter().copied().filter(|line| !is_blank(line)).collect()
}

/// The elements of `x-forwarded-for`, right-most first.
pub fn x_forwarded_for(lines: &[&[u8]]) -> Vec<Option<IpAddr>> {
    let lines = without_blank_lines(lines);
    if lines.is_empty() {
        return Vec::new();
    }
    lines.join(&b',').split(|byte| *byte == b',').rev().map(|element| address(element, false)).collect()
}

/// The elements of `forwarded`, right-most first: marks every byte that stands between a pair of quotes, and every quote that
/// has no partner, then splits.
pub fn forwarded(lines: &[&[u8]]) -> Vec<Option<IpAddr>> {
    let lines = without_blank_lines(lines);
    if lines.is_empty() {
        return Vec::new();
    }
    let list = lines.join(&b',');
    let mut quotes = Vec::new();
    let mut backslashes = 0;
    for (at, byte) in list.iter().enumerate() {
        if *byte == b'"' && backslashes % 2 == 0 {
            quotes.push(at);
        }
        backslashes = if *byte == b'\\' { backslashes + 1 } else { 0 };
    }
    quotes.reverse();
    let mut is_quoted = vec![false; list.len()];
    for pair in quotes.chunks_exact(2) {
        is_quoted[pair[1]..pair[0]].fill(true);
    }
    let alone = quotes.chunks_exact(2).remainder().first().copied();
    let split = |start: usize, end: usize, separator: u8| {
        let mut parts = Vec::new();
        let mut part = start;
        for at in start..end {
            if list[at] == separator && !is_quoted[at] {
                parts.push((part, at));
                part = at + 1;
            }
        }
        parts.push((part, end));
        parts
    };
    let mut elements = Vec::new();
    for (start, end) in split(0, list.len(), b',') {
        let parameters: Vec<&[u8]> =
            split(start, end, b';').into_iter().map(|(start, end)| &list[start..end]).collect();
        let fors: Vec<&[u8]> = parameters.iter().filter_map(|parameter| for_value(parameter)).collect();
        let is_sound = alone.is_none_or(|quote| !(start..end).contains(&quote))
            && parameters.iter().all(|parameter| is_sound(parameter));
        elements.push(match fors[..] {
            [value] if is_sound => for_address(value),
            _ => None,
        });
    }
    elements.reverse();
    elements
}

/// Where there is a quote or a backslash, the value is one quoted string, perhaps behind pairs of backslashes.
fn is_sound(parameter: &[u8]) -> bool {
    let parameter = trim(parameter);
    if !parameter.iter().any(|byte| b"\"\\".contains(byte)) {
        return true;
    }
    let Some(equals) = parameter.iter().position(|byte| *byte == b'=') else { return false };
    // What stands before the quoted string: blanks, and an even number of backslashes behind them.
    let mut value = trim(&parameter[equals + 1..]);
    while value.starts_with(br"\\") {
        value = &value[2..];
    }
    let name_is_plain = !parameter[..equals].iter().any(|byte| b"\"\\".contains(byte));
    name_is_plain && quoted_string(value).is_some()
}

/// The content of a quoted string.
fn quoted_string(value: &[u8]) -> Option<Vec<u8>> {
    if value.first() != Some(&b'"') {
        return None;
    }
    let mut content = Vec::new();
    let mut at = 1;
    loop {
        match *value.get(at)? {
            b'"' => break,
            b'\\' => {
                content.push(*value.get(at + 1)?);
                at += 2;
            }
            byte => {
                content.push(byte);
                at += 1;
            }
        }
    }
    (at + 1 == value.len()).then_some(content)
}

fn trim(mut text: &[u8]) -> &[u8] {
    while !text.is_empty() && b" \t".contains(&text[0]) {
        text = &text[1..];
    }
    while !text.is_empty() && b" \t".contains(&text[text.len() - 1]) {
        text = &text[..text.len() - 1];
    }
    text
}

fn for_value(parameter: &[u8]) -> Option<&[u8]> {
    let parameter = trim(parameter);
    let equals = parameter.iter().position(|byte| *byte == b'=')?;
    parameter[..equals].eq_ignore_ascii_case(b"for").then(|| trim(&parameter[equals + 1..]))
}

fn for_address(value: &[u8]) -> Option<IpAddr> {
    if value.contains(&b'"') { address(&quoted_string(value)?, true) } else { address(value, true) }
}

// === Requests ===

#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub rejected: bool,
    pub client: Option<IpAddr>,
    /// Every line that the application gets, sorted.
    pub headers: Vec<Line>,
}

/// What all spellings of a name have in common.
pub fn folded(name: &[u8]) -> Vec<u8> {
    name.iter().map(|byte| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }).collect()
}

fn strings(config: &Value, key: &str, default: &[&str]) -> Vec<String> {
    match config.get(key) {
        None => default.iter().map(|text| (*text).to_owned()).collect(),
        Some(list) => list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect(),
    }
}

fn names(config: &Value, key: &str, default: &[&str]) -> Vec<String> {
    strings(config, key, default).iter().map(|name| name.to_ascii_lowercase()).collect()
}

/// The names in `sources`, `set` and `strip`, folded.
pub fn configured_names(config: &Value) -> Vec<Vec<u8>> {
    let mut all = names(config, "sources", &["x-forwarded-for"]);
    all.extend(names(config, "set", &["x-forwarded-for", "x-real-ip"]));
    all.extend(names(config, "strip", STRIPPED));
    all.iter().map(|name| folded(name.as_bytes())).collect()
}

/// Is this address one of the configured proxies?
pub fn is_trusted(config: &Value, address: IpAddr) -> bool {
    let private =
        "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 169.254.0.0/16 127.0.0.0/8 fc00::/7 fe80::/10 ::1";
    strings(config, "trusted_proxies", &[]).iter().any(|block| match &block[..] {
        "private" => private.split(' ').any(|block| is_in(address, block)),
        "loopback" => ["127.0.0.0/8", "::1"].iter().any(|block| is_in(address, block)),
        "unix" => false,
        block => is_in(address, block),
    })
}

/// Is this peer to be believed, as far as `trusted_proxies` says?
pub fn is_trusted_peer(config: &Value, peer: Peer) -> bool {
    match peer {
        Peer::Known(address) => is_trusted(config, address),
        Peer::Unix => strings(config, "trusted_proxies", &[]).iter().any(|block| block == "unix"),
        Peer::Unknown => false,
    }
}

/// Rules 2 to 6.
pub fn answer(config: &Value, peer: Peer, headers: &[Line]) -> Answer {
    let ours = configured_names(config);
    let is_ours = |name: &[u8]| ours.contains(&folded(name));
    let lower = |(name, value): &Line| (name.to_ascii_lowercase(), value.clone());
    let mut others: Vec<Line> = headers.iter().filter(|(name, _)| !is_ours(name)).map(lower).collect();
    clean_connection(&mut others, &ours);
    others.sort();
    let Ok(chain) = verified(config, peer, headers) else {
        return Answer { rejected: true, client: None, headers: Vec::new() };
    };
    let client = chain.first().copied();
    let mut written: Vec<Vec<u8>> = Vec::new();
    for name in names(config, "set", &["x-forwarded-for", "x-real-ip"]) {
        let Some(client) = client else { break };
        if written.contains(&folded(name.as_bytes())) {
            continue;
        }
        written.push(folded(name.as_bytes()));
        let elements: Vec<String> = chain.iter().map(|hop| text(*hop)).collect();
        let value = match &name[..] {
            "x-forwarded-for" => elements.join(", "),
            "forwarded" => {
                let element = |hop: &IpAddr| match hop {
                    IpAddr::V4(_) => format!("for={}", text(*hop)),
                    IpAddr::V6(_) => format!("for=\"[{}]\"", text(*hop)),
                };
                chain.iter().map(element).collect::<Vec<_>>().join(", ")
            }
            _ => text(client),
        };
        others.push((name.into_bytes(), value.into_bytes()));
    }
    others.sort();
    Answer { rejected: false, client, headers: others }
}

/// If one of our names is an option of the connection, the others are left, in one line.
fn clean_connection(lines: &mut Vec<Line>, ours: &[Vec<u8>]) {
    let all = lines.iter().filter(|(name, _)| name == b"connection").map(|(_, value)| &value[..]).collect::<Vec<_>>();
    let all = all.join(&b',');
    let options: Vec<&[u8]> = all.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).collect();
    let kept: Vec<&[u8]> = options.iter().copied().filter(|option| !ours.contains(&folded(option))).collect();
    if kept.len() < options.len() {
        let kept = kept.join(&b", "[..]);
        lines.retain(|(name, _)| name != b"connection");
        lines.push((b"connection".to_vec(), kept));
    }
}

/// The client, the hops passed, the peer; empty if nothing is to be written; an error if the request is refused.
fn verified(config: &Value, peer: Peer, headers: &[Line]) -> Result<Vec<IpAddr>, ()> {
    let hops = config.get("trusted_hops").map(|hops| usize::try_from(hops.as_u64().unwrap()).unwrap());
    let anybody = hops.is_some() && strings(config, "trusted_proxies", &[]).is_empty();
    let peer_chain: Vec<IpAddr> = if let Peer::Known(address) = peer { vec![address] } else { Vec::new() };
    if !(is_trusted_peer(config, peer) || anybody && !peer_chain.is_empty()) {
        return Ok(peer_chain);
    }
    let is_list = |source: &str| ["x-forwarded-for", "forwarded"].contains(&source);
    let fallback =
        |key: &str, default: &str, chain: Vec<IpAddr>| match config.get(key).and_then(Value::as_str).unwrap_or(default)
        {
            "peer" => Ok(chain),
            "omit" => Ok(Vec::new()),
            "reject" => Err(()),
            other => panic!("{other}"),
        };
    for source in names(config, "sources", &["x-forwarded-for"]) {
        let lines: Vec<&[u8]> = headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(source.as_bytes()))
            .map(|(_, value)| &value[..])
            .collect();
        let elements = match &source[..] {
            "x-forwarded-for" => x_forwarded_for(&lines),
            "forwarded" => forwarded(&lines),
            _ => {
                let address = match lines[..] {
                    [] => continue,
                    [line] if trim(line).is_empty() => continue,
                    [line] => address(line, false),
                    _ => None,
                };
                return match address {
                    Some(address) => Ok([&[address], &peer_chain[..]].concat()),
                    None => fallback("on_invalid", "omit", peer_chain),
                };
            }
        };
        if elements.is_empty() {
            continue;
        }
        let mut chain = peer_chain.clone();
        if let Some(hops) = hops {
            let counted: Option<Vec<IpAddr>> = elements.iter().copied().take(hops).collect();
            return match counted {
                Some(counted) if counted.len() == hops => {
                    chain.extend(counted);
                    chain.reverse();
                    Ok(chain)
                }
                _ => fallback("on_invalid", "peer", peer_chain),
            };
        }
        for (at, element) in elements.into_iter().enumerate() {
            let Some(address) = element.filter(|address| at < 100 || !is_trusted(config, *address)) else {
                return fallback("on_invalid", "peer", chain);
            };
            chain.insert(0, address);
            if !is_trusted(config, address) {
                break;
            }
        }
        return Ok(chain);
    }
    let all_are_lists = names(config, "sources", &["x-forwarded-for"]).iter().all(|source| is_list(source));
    fallback("on_missing", if all_are_lists { "peer" } else { "omit" }, peer_chain)
}

// === The filter, in the same terms ===

pub fn client_ip(config: &Value) -> ClientIp {
    ClientIp::from_section(Section::try_new("client_ip", config.clone()).unwrap()).unwrap().0
}

pub fn resolve<'a>(client_ip: &'a ClientIp, peer: Peer, headers: &'a [Line]) -> Resolution<'a> {
    let headers: Vec<(&[u8], &[u8])> = headers.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    client_ip.resolve(peer, &headers)
}

/// The header map after the edits, as Envoy carries them out: names in lower case, `Replace` rewrites the first
/// occurrence. An edit that changes nothing is one too many.
pub fn edited(headers: &[Line], edits: &[Edit<'_>]) -> Vec<Line> {
    let mut headers: Vec<Line> =
        headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
    for edit in edits {
        let before = headers.clone();
        match edit {
            Edit::Remove { name } => headers.retain(|(present, _)| *present != name.to_ascii_lowercase()),
            Edit::Replace { name, value } => match headers.iter_mut().find(|(present, _)| present == name.as_bytes()) {
                Some((_, present)) => *present = value.clone(),
                None => headers.push((name.as_bytes().to_vec(), value.clone())),
            },
        }
        assert_ne!(headers, before, "an edit without effect: {edit:?}");
    }
    headers
}

/// The filter's answer.
pub fn filtered(config: &Value, peer: Peer, headers: &[Line]) -> Answer {
    let client_ip = client_ip(config);
    let resolution = resolve(&client_ip, peer, headers);
    if resolution.rejected {
        assert!(resolution.edits.is_empty(), "edits of a rejected request: {resolution:?}");
        return Answer { rejected: true, client: resolution.client, headers: Vec::new() };
    }
    let mut headers = edited(headers, &resolution.edits);
    headers.sort();
    Answer { rejected: false, client: resolution.client, headers }
}

/// The header map after a second pass, of what the first one left.
pub fn filtered_again(config: &Value, peer: Peer, first: &Resolution<'_>, headers: &[Line]) -> Vec<Line> {
    let client_ip = client_ip(config);
    let lines: Vec<(&[u8], &[u8])> = headers.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    let second = client_ip.repeat(peer, first.client, &lines);
    assert_eq!(second.client, first.client);
    edited(headers, &second.edits)
}

// === Vectors ===

/// The bytes of a string of the vectors, where each character stands for the byte of the same number.
pub fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(u32::from(character)).unwrap()).collect()
}

pub fn lines(pairs: &Value) -> Vec<Line> {
    let pairs = pairs.as_array().unwrap().iter();
    pairs.map(|pair| (bytes(pair[0].as_str().unwrap()), bytes(pair[1].as_str().unwrap()))).collect()
}

pub fn vectors() -> Vec<Value> {
    serde_json::from_str(include_str!("../../../tests/vectors/client_ip.json")).unwrap()
}

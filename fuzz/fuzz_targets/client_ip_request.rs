//! Whole requests: a byte that picks one of the vectors' configurations, the peer in the rest of that line, then a header
//! a line. The answer is the reference's; a second pass writes the same; no line of a client's is left under any spelling;
//! asking again behind a trusted self changes nothing.
#![no_main]

#[path = "../../core/tests/reference/mod.rs"]
mod reference;

use std::sync::LazyLock;

use idleguard_core::client_ip::{Outcome, Peer};
use libfuzzer_sys::fuzz_target;
use reference::{Line, answer, configured_names, edited, filtered, filtered_again, folded, is_trusted};
use serde_json::{Value, json};

/// The distinct configurations of the vectors, in their order; `seeds.py` counts the same way.
static CONFIGS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let mut configs: Vec<Value> = Vec::new();
    for vector in reference::vectors() {
        if !configs.contains(&vector["config"]) {
            configs.push(vector["config"].clone());
        }
    }
    configs
});

fn request(data: &[u8]) -> Option<(&'static Value, Peer, Vec<Line>)> {
    let (config, rest) = data.split_first()?;
    let config = &CONFIGS[usize::from(*config) % CONFIGS.len()];
    let mut lines = rest.split(|byte| *byte == b'\n');
    let text = lines.next()?;
    let peer = Peer::from_filter_state(text);
    let address = if let Peer::Known(address) = peer { Some(address) } else { None };
    assert_eq!(reference::address(text, false), address);
    Some((config, peer, headers(lines)))
}

fn headers<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Vec<Line> {
    let header = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((line[..colon].to_vec(), line[colon + 1..].to_vec()))
    };
    lines.filter_map(header).collect()
}

fuzz_target!(|data: &[u8]| {
    let Some((config, peer, headers)) = request(data) else { return };
    let expected = answer(config, peer, &headers);
    let given = filtered(config, peer, &headers);
    assert_eq!(given, expected);

    let client_ip = reference::client_ip(config);
    let resolution = reference::resolve(&client_ip, peer, &headers);
    if !resolution.rejected {
        let first = edited(&headers, &resolution.edits);
        assert_eq!(filtered_again(config, peer, &resolution, &first), first);
        let trailers: Vec<(&[u8], &[u8])> = headers.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        let ours = configured_names(config);
        let left = edited(&headers, &client_ip.clean_trailers(&trailers));
        assert!(left.iter().all(|(name, _)| !ours.contains(&folded(name))), "{left:?}");
    }
    let Some(client) = resolution.client else { return };

    // A trusted address of a list is the client only if all elements are trusted, or the next one is invalid.
    if config.get("trusted_hops").is_none() && resolution.outcome == Outcome::Rewritten && is_trusted(config, client) {
        let list = |name: &str| -> Vec<&[u8]> {
            let own = headers.iter().filter(|(present, _)| present.eq_ignore_ascii_case(name.as_bytes()));
            own.map(|(_, value)| &value[..]).collect()
        };
        let all = match config.get("sources").map(|sources| sources == &json!(["forwarded"])) {
            None => Some(reference::x_forwarded_for(&list("x-forwarded-for"))),
            Some(true) => Some(reference::forwarded(&list("forwarded"))),
            Some(false) => None,
        };
        for element in all.into_iter().flatten() {
            assert!(element.is_some_and(|address| is_trusted(config, address)));
        }
    }

    // An untrusted peer's headers make no difference.
    if matches!(resolution.outcome, Outcome::UntrustedPeer | Outcome::UnknownPeer) {
        let ours = configured_names(config);
        let bare: Vec<Line> = headers.iter().filter(|(name, _)| !ours.contains(&folded(name))).cloned().collect();
        assert_eq!(given, filtered(config, peer, &bare));
    }

    // Behind a self that is trusted, and writes what it reads, the answer stays.
    let mut config = config.clone();
    let keys = config.as_object_mut().unwrap();
    keys.remove("trusted_hops");
    let sources = keys.entry("sources").or_insert(json!(["x-forwarded-for"])).clone();
    keys.insert("set".into(), sources);
    keys.entry("trusted_proxies").or_insert(json!([])).as_array_mut().unwrap().push("192.0.2.250".into());
    let first = filtered(&config, peer, &headers);
    // As long as there is room for one hop more.
    let is_short = |(_, value): &Line| value.iter().filter(|byte| **byte == b',').count() < 100;
    if first.client.is_some() && first.headers.iter().all(is_short) {
        let second = filtered(&config, Peer::Known([192, 0, 2, 250].into()), &first.headers);
        assert_eq!(second.client, first.client);
    }
});

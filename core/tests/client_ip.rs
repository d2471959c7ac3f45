//! `client_ip` from outside: the conformance vectors, and laws that hold for every request.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics fails")]

mod reference;

use std::net::IpAddr;

use idleguard_core::client_ip::{Outcome, Peer};
use proptest::prelude::*;
use reference::{
    Answer, Line, answer, configured_names, edited, filtered, filtered_again, folded, is_trusted, is_trusted_peer,
    lines, resolve,
};
use serde_json::{Value, json};

fn failure(vector: &Value) -> Option<String> {
    let config = &vector["config"];
    let client_ip = reference::client_ip(config);
    let peer = vector["peer"].as_str().map_or(Peer::Unknown, |peer| Peer::from_filter_state(peer.as_bytes()));
    let headers = lines(&vector["headers"]);
    let resolution = resolve(&client_ip, peer, &headers);
    let status = if resolution.rejected { "rejected" } else { "ok" };
    let client = resolution.client.map(idleguard_core::client_ip::address::canonical);
    let expect = &vector["expect"];
    if resolution.rejected {
        let silent = resolution.edits.is_empty() && client.is_none();
        return (expect["status"] != status || !silent).then(|| format!("{resolution:?}"));
    }
    let ours = configured_names(config);
    let (mut under_names, others): (Vec<Line>, Vec<Line>) =
        edited(&headers, &resolution.edits).into_iter().partition(|(name, _)| ours.contains(&folded(name)));
    under_names.sort();
    let untouched: Vec<Line> = headers
        .iter()
        .filter(|(name, _)| !ours.contains(&folded(name)))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
        .collect();
    let right = expect["status"] == status
        && expect["client_ip"].as_str() == client.as_deref()
        && under_names == lines(&expect["headers"])
        && others == untouched;
    (!right).then(|| format!("{resolution:?}"))
}

#[test]
fn every_vector_holds() {
    let vectors = reference::vectors();
    assert!(vectors.len() >= 210);
    let failures: Vec<String> =
        vectors.iter().filter_map(|vector| Some(format!("{}: {}", vector["name"], failure(vector)?))).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// An unsound reference would make every law below worthless.
#[test]
fn every_vector_holds_for_the_reference() {
    for vector in reference::vectors() {
        let peer = vector["peer"].as_str().map_or(Peer::Unknown, |peer| Peer::from_filter_state(peer.as_bytes()));
        let answer = answer(&vector["config"], peer, &lines(&vector["headers"]));
        let expect = &vector["expect"];
        assert_eq!(answer.rejected, expect["status"] == "rejected", "{}", vector["name"]);
        assert_eq!(answer.client.map(reference::text).as_deref(), expect["client_ip"].as_str(), "{}", vector["name"]);
        let ours = configured_names(&vector["config"]);
        let written: Vec<Line> = answer.headers.into_iter().filter(|(name, _)| ours.contains(&folded(name))).collect();
        assert_eq!(written, lines(&expect["headers"]), "{}", vector["name"]);
    }
}

// === Requests of all kinds ===

const NAMES: [&str; 6] = ["x-forwarded-for", "forwarded", "x-real-ip", "True-Client-IP", "x_client_ip", "x-client-ip"];

fn address_text() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "10.0.0.1",
            "10.0.0.2",
            "10.1.2.3",
            "203.0.113.5",
            "192.0.2.66",
            "127.0.0.1",
            "2001:db8::5",
            "fd00::1",
            "::1",
        ])
        .prop_map(str::to_owned),
        any::<u32>().prop_map(|bits| IpAddr::from(bits.to_be_bytes()).to_string()),
        any::<u128>().prop_map(|bits| IpAddr::from(bits.to_be_bytes()).to_string()),
    ]
}

/// An element as proxies and attackers write it.
fn element() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => address_text(),
        1 => address_text().prop_map(|address| format!("[{address}]:443")),
        1 => address_text().prop_map(|address| format!("::ffff:{address}")),
        1 => address_text().prop_map(|address| format!("{address}%eth0").to_uppercase()),
        1 => address_text().prop_map(|address| address.to_uppercase()),
        1 => address_text().prop_map(|address| format!(" {address}:80\t")),
        1 => prop::sample::select(vec!["", "unknown", "_hidden", "0.0.0.0", "::", "203.0.113.05", "::ffff:10.0.0.7"])
            .prop_map(str::to_owned),
        1 => "[ ,:0-9a-f.%_\\[\\]]{0,12}",
    ]
}

fn list() -> impl Strategy<Value = String> {
    prop::collection::vec(element(), 0..6).prop_map(|elements| elements.join(","))
}

fn parameter() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => element().prop_map(|element| format!("for={element}")),
        6 => element().prop_map(|element| format!("For=\"{element}\"")),
        1 => element().prop_map(|element| format!("for = \"{element}\" ")),
        1 => address_text().prop_map(|address| format!("for=\"\\{address}\"")),
        1 => Just("host=\"a, for=192.0.2.66;b\"".to_owned()),
        1 => Just("proto=https".to_owned()),
        1 => "(for=)?[\",;\\\\=a ]{0,8}",
    ]
}

fn forwarded_list() -> impl Strategy<Value = String> {
    prop::collection::vec((parameter(), prop::sample::select(vec![",", ", ", ";"])), 0..6)
        .prop_map(|parts| {
            parts.into_iter().flat_map(|(parameter, separator)| [parameter, separator.to_owned()]).collect()
        })
        .prop_map(|list: String| list.trim_end_matches([',', ';', ' ']).to_owned())
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        list().prop_map(String::into_bytes),
        forwarded_list().prop_map(String::into_bytes),
        element().prop_map(String::into_bytes),
        Just(b"Upgrade, X-Real-IP , x.forwarded~for".to_vec()),
        prop::collection::vec(any::<u8>(), 0..12),
    ]
}

fn headers() -> impl Strategy<Value = Vec<Line>> {
    let name = prop::sample::select(vec![
        "x-forwarded-for",
        "X-Forwarded-For",
        "forwarded",
        "Forwarded",
        "x-real-ip",
        "X-Real-IP",
        "true-client-ip",
        "x_client_ip",
        "x-client-ip",
        "x_real_ip",
        "x-real_ip",
        "X_FORWARDED_FOR",
        "x.forwarded~for",
        "X!Real+IP",
        "x--real-ip",
        "connection",
        "Connection",
        "client-ip",
        "accept",
        "user-agent",
        "x-real-ia",
    ]);
    prop::collection::vec((name.prop_map(|name| name.as_bytes().to_vec()), value()), 0..6)
}

fn names() -> impl Strategy<Value = Vec<&'static str>> {
    prop::sample::subsequence(NAMES.to_vec(), 0..=4).prop_shuffle()
}

fn config() -> impl Strategy<Value = Value> {
    let blocks = vec![
        "10.0.0.0/8",
        "private",
        "loopback",
        "2001:db8::/32",
        "::/0",
        "0.0.0.0/0",
        "203.0.113.5",
        "::ffff:10.0.0.0/120",
        "unix",
    ];
    let word = || prop::option::of(prop::sample::select(vec!["peer", "omit", "reject"]));
    let keys = (
        prop::sample::subsequence(blocks, 0..3),
        prop::option::weighted(0.3, 1..4_u32),
        prop::option::of(names()),
        prop::option::of(names()),
        prop::option::of(names()),
        word(),
        word(),
    );
    keys.prop_map(|(trusted, hops, sources, set, strip, on_invalid, on_missing)| {
        let mut config = json!({"trusted_proxies": trusted});
        let mut insert = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                config[key] = value;
            }
        };
        insert("trusted_hops", hops.map(Value::from));
        insert("sources", sources.map(Value::from));
        insert("set", set.map(Value::from));
        insert("strip", strip.map(Value::from));
        insert("on_invalid", on_invalid.map(Value::from));
        insert("on_missing", on_missing.map(Value::from));
        config
    })
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        6 => Just(Peer::Known([10, 0, 0, 1].into())),
        1 => Just(Peer::Unknown),
        1 => Just(Peer::Unix),
        3 => address_text().prop_map(|address| reference::address(address.as_bytes(), false).map_or(Peer::Unknown, Peer::Known)),
    ]
}

/// Are all addresses in the lines under our names valid and canonical, as the form of the header wants them?
fn is_canonical(config: &Value, answer: &Answer) -> bool {
    let ours = configured_names(config);
    let mut written = answer.headers.iter().filter(|(name, _)| ours.contains(&folded(name)));
    written.all(|(name, value)| {
        let text = std::str::from_utf8(value).unwrap();
        let is_address = |text: &str| {
            let address = reference::address(text.as_bytes(), false);
            address.is_some_and(|address| reference::text(address) == text)
        };
        match &name[..] {
            b"x-forwarded-for" => text.split(", ").all(is_address),
            b"forwarded" => text.split(", ").all(|element| {
                let node = element.strip_prefix("for=").unwrap();
                match node.strip_prefix("\"[").and_then(|node| node.strip_suffix("]\"")) {
                    Some(v6) => v6.contains(':') && is_address(v6),
                    None => !node.contains(':') && is_address(node),
                }
            }),
            _ => is_address(text),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, max_global_rejects: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_is_the_reference_s(config in config(), peer in peer(), headers in headers()) {
        prop_assert_eq!(filtered(&config, peer, &headers), answer(&config, peer, &headers));
    }

    #[test]
    fn what_is_written_is_canonical(config in config(), peer in peer(), headers in headers()) {
        let answer = filtered(&config, peer, &headers);
        prop_assert!(is_canonical(&config, &answer), "{:?}", answer);
    }

    #[test]
    fn an_untrusted_peer_s_headers_make_no_difference(config in config(), peer in peer(), headers in headers()) {
        prop_assume!(config.get("trusted_hops").is_none());
        prop_assume!(!is_trusted_peer(&config, peer));
        let ours = configured_names(&config);
        let bare: Vec<Line> = headers.iter().filter(|(name, _)| !ours.contains(&folded(name))).cloned().collect();
        prop_assert_eq!(filtered(&config, peer, &headers), filtered(&config, peer, &bare));
    }

    #[test]
    fn what_stands_left_of_the_client_is_never_judged(
        (own, strange) in (list(), value()),
        hops in prop::option::weighted(0.3, 1..4_u32),
        in_the_same_line: bool,
    ) {
        let mut config = json!({"trusted_proxies": ["10.0.0.0/8"], "on_invalid": "reject"});
        if let Some(hops) = hops {
            config["trusted_hops"] = hops.into();
        }
        let peer = Peer::Known([10, 0, 0, 1].into());
        let name = b"x-forwarded-for".to_vec();
        let alone = filtered(&config, peer, &[(name.clone(), own.clone().into_bytes())]);
        let decided = alone.client.is_some_and(|client| hops.is_some() || !is_trusted(&config, client));
        prop_assume!(decided && !own.trim().is_empty());
        let headers = if in_the_same_line {
            vec![(name, [&strange[..], b",", own.as_bytes()].concat())]
        } else {
            vec![(name.clone(), strange), (name, own.into_bytes())]
        };
        prop_assert_eq!(filtered(&config, peer, &headers), alone);
    }

    #[test]
    fn no_quote_reaches_into_the_elements_of_a_proxy(
        strange in value(),
        client in address_text(),
        (trusted, host) in (0..3_usize, "[a-z,;= ]{0,6}"),
        in_the_same_line: bool,
    ) {
        let config = json!({"trusted_proxies": ["10.0.0.0/8"], "sources": ["forwarded"], "on_invalid": "reject"});
        let client = reference::address(client.as_bytes(), false);
        prop_assume!(client.is_some_and(|client| !is_trusted(&config, client)));
        let own = format!("host=\"{host}\";for=\"[{}]\"", reference::text(client.unwrap()));
        let own = if client.is_some_and(|client| client.is_ipv4()) { own.replace(['[', ']'], "") } else { own };
        let own = [own.as_bytes(), &b", for=\"10.0.0.2:80\"".repeat(trusted)].concat();
        let peer = Peer::Known([10, 0, 0, 1].into());
        let name = b"forwarded".to_vec();
        let headers = if in_the_same_line {
            vec![(name, [&strange[..], b", ", &own].concat())]
        } else {
            vec![(name.clone(), strange), (name, own)]
        };
        prop_assert_eq!(filtered(&config, peer, &headers).client, client);
    }

    #[test]
    fn behind_a_trusted_self_the_answer_stays(
        config in config(),
        sources in prop::sample::subsequence(vec!["x-forwarded-for", "forwarded", "x-real-ip"], 1..=3).prop_shuffle(),
        peer in peer(),
        headers in headers(),
    ) {
        let mut config = config;
        config["sources"] = sources.clone().into();
        config["set"] = sources.into();
        config["trusted_proxies"].as_array_mut().unwrap().push("10.0.0.9".into());
        config.as_object_mut().unwrap().remove("trusted_hops");
        let first = filtered(&config, peer, &headers);
        prop_assume!(first.client.is_some());
        let second = filtered(&config, Peer::Known([10, 0, 0, 9].into()), &first.headers);
        prop_assert_eq!(second.client, first.client);
    }

    #[test]
    fn the_client_of_a_list_is_no_proxy_unless_all_are(list in list()) {
        let config = json!({"trusted_proxies": ["10.0.0.0/8", "::1"]});
        let headers = [(b"x-forwarded-for".to_vec(), list.clone().into_bytes())];
        let client_ip = reference::client_ip(&config);
        let resolution = resolve(&client_ip, Peer::Known([10, 0, 0, 1].into()), &headers);
        if resolution.outcome == Outcome::Rewritten && is_trusted(&config, resolution.client.unwrap()) {
            let all = reference::x_forwarded_for(&[list.as_bytes()]);
            prop_assert!(all.iter().all(|element| element.is_some_and(|address| is_trusted(&config, address))));
        }
    }

    #[test]
    fn lists_are_walked_as_the_reference_splits_them(lines in prop::collection::vec(value(), 0..4)) {
        let lines: Vec<&[u8]> = lines.iter().map(|line| &line[..]).collect();
        prop_assert_eq!(walked(&lines, true), reference::forwarded(&lines));
        prop_assert_eq!(walked(&lines, false), reference::x_forwarded_for(&lines));
    }

    #[test]
    fn quotes_and_backslashes_pair_as_the_reference_pairs_them(
        lines in prop::collection::vec("(for=|FOR=\"|x=|[\",;\\\\= ]|1\\.2\\.3\\.4){0,14}", 0..4),
    ) {
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        prop_assert_eq!(walked(&lines, true), reference::forwarded(&lines));
    }

    #[test]
    fn a_second_pass_writes_the_same_again(
        config in config(),
        peer in peer(),
        headers in headers(),
        (added, removed) in (headers(), 0..8_usize),
    ) {
        let client_ip = reference::client_ip(&config);
        let first = resolve(&client_ip, peer, &headers);
        prop_assume!(!first.rejected);
        let after_first = edited(&headers, &first.edits);
        prop_assert_eq!(&filtered_again(&config, peer, &first, &after_first), &after_first);
        // Between the passes filters and routes may add and remove lines.
        let ours = configured_names(&config);
        let under_our_names = |lines: &[Line]| {
            let mut own: Vec<Line> = lines.iter().filter(|(name, _)| ours.contains(&folded(name))).cloned().collect();
            own.sort();
            own
        };
        let mut changed = [&after_first[..], &added].concat();
        if removed < changed.len() {
            changed.remove(removed);
        }
        let second = under_our_names(&filtered_again(&config, peer, &first, &changed));
        // Where the lists were changed, the hops between client and peer are gone.
        let ends = under_our_names(&filtered_again(&config, peer, &first, &[]));
        prop_assert!(second == under_our_names(&after_first) || second == ends, "{:?}", second);
        if under_our_names(&changed) == under_our_names(&after_first) {
            prop_assert_eq!(second, under_our_names(&after_first));
        }
    }
}

/// The elements of the lines as the filter walks them.
fn walked(lines: &[&[u8]], as_forwarded: bool) -> Vec<Option<IpAddr>> {
    use idleguard_core::client_ip::forwarded::{forwarded, joined, x_forwarded_for};
    let Some(list) = joined(lines.iter().copied()) else { return Vec::new() };
    if as_forwarded { forwarded(&list).collect() } else { x_forwarded_for(&list).collect() }
}

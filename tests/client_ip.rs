//! `client_ip` from outside: the conformance vectors, and laws that hold for every request.
#![allow(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]

use idleguard::client_ip::{ClientIp, Edit, Peer, Resolution};
use idleguard::config::Section;
use serde_json::Value;

type Line = (Vec<u8>, Vec<u8>);

/// The bytes of a string of the vectors, where each character stands for the byte of the same number.
fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(u32::from(character)).unwrap()).collect()
}

fn lines(pairs: &Value) -> Vec<Line> {
    let pairs = pairs.as_array().unwrap().iter();
    pairs.map(|pair| (bytes(pair[0].as_str().unwrap()), bytes(pair[1].as_str().unwrap()))).collect()
}

fn client_ip(config: &Value) -> ClientIp {
    ClientIp::from_section(Section::try_new("client_ip", config.clone()).unwrap()).unwrap().0
}

fn resolve<'a>(client_ip: &'a ClientIp, peer: Peer, headers: &'a [Line]) -> Resolution<'a> {
    let headers: Vec<(&[u8], &[u8])> = headers.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    client_ip.resolve(peer, &headers)
}

/// The header map after the edits, as Envoy carries them out: names in lower case, `Replace` rewrites the first
/// occurrence.
fn edited(headers: &[Line], edits: &[Edit<'_>]) -> Vec<Line> {
    let mut headers: Vec<Line> =
        headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
    for edit in edits {
        match edit {
            Edit::Remove { name } => {
                let before = headers.len();
                headers.retain(|(present, _)| *present != name.to_ascii_lowercase());
                assert!(headers.len() < before, "an edit without effect: {edit:?}");
            }
            Edit::Replace { name, value } => match headers.iter_mut().find(|(present, _)| present == name.as_bytes()) {
                Some((_, present)) => *present = value.clone().into_bytes(),
                None => headers.push((name.as_bytes().to_vec(), value.clone().into_bytes())),
            },
        }
    }
    headers
}

fn folded(name: &[u8]) -> Vec<u8> {
    name.iter().map(|byte| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() }).collect()
}

/// The names in `sources`, `set` and `strip`, folded.
fn configured_names(config: &Value) -> Vec<Vec<u8>> {
    let listed = |key: &str, default: &[&str]| match config.get(key) {
        Some(names) => names.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect(),
        None => default.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(),
    };
    let mut names = listed("sources", &["x-forwarded-for"]);
    names.extend(listed("set", &["x-forwarded-for", "x-real-ip"]));
    names.extend(listed(
        "strip",
        &["forwarded", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "cf-connecting-ip", "fastly-client-ip"],
    ));
    names.iter().map(|name| folded(name.as_bytes())).collect()
}

fn failure(vector: &Value) -> Option<String> {
    let config = &vector["config"];
    let client_ip = client_ip(config);
    let peer = vector["peer"].as_str().map_or(Peer::Unknown, |peer| Peer::from_filter_state(peer.as_bytes()));
    let headers = lines(&vector["headers"]);
    let resolution = resolve(&client_ip, peer, &headers);
    let status = if resolution.rejected { "rejected" } else { "ok" };
    let client = resolution.client.map(idleguard::address::canonical);
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
    let vectors: Vec<Value> = serde_json::from_str(include_str!("vectors/client_ip.json")).unwrap();
    assert!(vectors.len() >= 171);
    let failures: Vec<String> =
        vectors.iter().filter_map(|vector| Some(format!("{}: {}", vector["name"], failure(vector)?))).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

//! WebSocket and CONNECT.

use crate::{
    case::Case,
    script::{
        Do::{self, Await, Data, ExpectClose, ExpectData, ExpectEnd, ExpectHead, Fin, HalfClose, Rst, Signal},
        Framing::{Length, Nothing},
    },
};

const MEGABYTE: usize = 1_000_000;

const UPGRADE: &str = "GET /0 HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                       sec-websocket-key: x3JJHMbDL1EzLkh9GBhXDw==\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\n";

fn websocket(name: &str, about: &str, client: Vec<Do>, far_end: Vec<Do>) -> Case {
    Case::new(name, about, after(vec![Do::raw(UPGRADE), ExpectHead], client), after(vec![Do::raw(SWITCHED)], far_end))
}

fn connect(name: &str, about: &str, client: Vec<Do>, far_end: Vec<Do>) -> Case {
    let client = after(vec![Do::request("CONNECT", Nothing), ExpectHead], client);
    Case::new(name, about, client, after(vec![Do::status(200, Nothing)], far_end))
}

fn after(mut first: Vec<Do>, then: Vec<Do>) -> Vec<Do> {
    first.extend(then);
    first
}

/// The rows.
pub(super) fn all() -> Vec<Case> {
    vec![
        websocket(
            "websocket",
            "messages both ways, the client closes",
            vec![Data(20), ExpectData(30), Data(1), Fin],
            vec![ExpectData(20), Data(30), ExpectClose],
        ),
        websocket(
            "websocket-last-bytes",
            "the client's last bytes, and its end",
            vec![Data(20), Fin],
            vec![ExpectClose],
        ),
        websocket(
            "websocket-server-closes",
            "the far end's last bytes, and its end",
            vec![ExpectClose],
            vec![Data(20), Fin],
        ),
        websocket("websocket-client-rst", "the client resets", vec![ExpectData(1), Rst], vec![Data(1), ExpectClose]),
        websocket(
            "websocket-server-rst",
            "the far end resets",
            vec![ExpectData(1), Signal("got"), ExpectClose],
            vec![Data(1), Await("got"), Rst],
        ),
        websocket(
            "websocket-half-close",
            "the client half-closes",
            vec![Data(5), HalfClose, ExpectClose],
            vec![ExpectClose],
        ),
        websocket(
            "websocket-large",
            "1 MB both ways",
            vec![Data(MEGABYTE), ExpectData(MEGABYTE), Fin],
            vec![ExpectData(MEGABYTE), Data(MEGABYTE), ExpectClose],
        ),
        Case::new(
            "websocket-refused",
            "an upgrade that the far end refuses",
            vec![Do::raw(UPGRADE), ExpectEnd],
            vec![Do::status(403, Length(2)), Data(2)],
        ),
        connect(
            "connect",
            "CONNECT, bytes both ways, the client closes",
            vec![Data(20), ExpectData(30), Fin],
            vec![ExpectData(20), Data(30), ExpectClose],
        ),
        connect("connect-server-closes", "CONNECT, the far end closes", vec![ExpectClose], vec![Data(20), Fin]),
        Case::new(
            "connect-refused",
            "CONNECT, refused",
            vec![Do::request("CONNECT", Nothing), ExpectEnd],
            vec![Do::status(403, Length(2)), Data(2), ExpectClose],
        ),
    ]
}

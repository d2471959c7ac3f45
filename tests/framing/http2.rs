//! HTTP/2 message sequences (RFC 9113).

use crate::replay::Side::{C, ClientEof, S, ServerEof};
use crate::replay::{Step, check, step};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const END: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn data(stream: u32, flags: u8) -> Vec<u8> {
    frame(0, flags, stream, b"some data")
}

fn headers(stream: u32, flags: u8) -> Vec<u8> {
    frame(1, flags | END_HEADERS, stream, &[0x82, 0x84])
}

/// Without END_HEADERS: CONTINUATION must follow.
fn headers_begun(stream: u32, flags: u8) -> Vec<u8> {
    frame(1, flags, stream, &[0x82])
}

fn continuation(stream: u32, flags: u8) -> Vec<u8> {
    frame(9, flags, stream, &[0x84])
}

fn reset(stream: u32) -> Vec<u8> {
    frame(3, 0, stream, &8_u32.to_be_bytes())
}

fn settings() -> Vec<u8> {
    frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])
}

fn goaway(last: u32) -> Vec<u8> {
    let mut payload = last.to_be_bytes().to_vec();
    payload.extend(*b"\0\0\0\0bye");
    frame(7, 0, 0, &payload)
}

fn ping() -> Vec<u8> {
    frame(6, 0, 0, b"12345678")
}

fn opening() -> Vec<u8> {
    [PREFACE, &settings()].concat()
}

/// Both sides have said hello, then `rest`.
fn after_settings(rest: impl IntoIterator<Item = Step>) -> Vec<Step> {
    let mut steps = vec![step(C, opening(), "h2 0 0/0"), step(S, settings(), "h2 0 0/0")];
    steps.extend(rest);
    steps
}

#[test]
fn a_stream_is_in_flight_until_both_sides_ended() {
    check(&[
        (
            "GET",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, headers(1, 0), "h2 1* 1/0"),
                step(S, data(1, 0), "h2 1* 1/0"),
                step(S, data(1, END), "h2 0 1/1"),
            ]),
        ),
        (
            "a response of a head alone",
            after_settings([step(C, headers(1, END), "h2 1 1/0"), step(S, headers(1, END), "h2 0 1/1")]),
        ),
        (
            "POST",
            after_settings([
                step(C, headers(1, 0), "h2 1 1/0"),
                step(C, data(1, 0), "h2 1 1/0"),
                step(C, data(1, END), "h2 1 1/0"),
                step(S, headers(1, END), "h2 0 1/1"),
            ]),
        ),
        (
            "an early response is not the end",
            after_settings([
                step(C, headers(1, 0), "h2 1 1/0"),
                step(S, headers(1, END), "h2 1* 1/1"),
                step(C, data(1, 0), "h2 1* 1/1"),
                step(C, data(1, END), "h2 0 1/1"),
            ]),
        ),
        (
            "an early response and a reset",
            after_settings([
                step(C, headers(1, 0), "h2 1 1/0"),
                step(S, headers(1, END), "h2 1* 1/1"),
                step(S, reset(1), "h2 0 1/1"),
                step(C, data(1, END), "h2 0 1/1"),
            ]),
        ),
        (
            "trailers end a response",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, headers(1, 0), "h2 1* 1/0"),
                step(S, data(1, 0), "h2 1* 1/0"),
                step(S, headers(1, END), "h2 0 1/1"),
            ]),
        ),
        (
            "trailers end a request",
            after_settings([
                step(C, headers(1, 0), "h2 1 1/0"),
                step(C, data(1, 0), "h2 1 1/0"),
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, headers(1, END), "h2 0 1/1"),
            ]),
        ),
        (
            "interim responses end nothing",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, headers(1, 0), "h2 1* 1/0"),
                step(S, headers(1, 0), "h2 1* 1/0"),
                step(S, data(1, END), "h2 0 1/1"),
            ]),
        ),
        (
            "an empty DATA frame ends a stream",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, headers(1, 0), "h2 1* 1/0"),
                step(S, frame(0, END, 1, b""), "h2 0 1/1"),
            ]),
        ),
        (
            "the last DATA frame ends with its payload",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, headers(1, 0), "h2 1* 1/0"),
                step(S, &data(1, END)[..17], "h2 1* 1/0"),
                step(S, &data(1, END)[17..], "h2 0 1/1"),
            ]),
        ),
        (
            "a stream is open from its frame header on",
            after_settings([
                step(C, &headers(1, END)[..8], "h2 0 0/0"),
                step(C, &headers(1, END)[8..9], "h2 1 1/0"),
                step(C, &headers(1, END)[9..], "h2 1 1/0"),
            ]),
        ),
        (
            "several streams, ending in any order",
            after_settings([
                step(C, [headers(1, END), headers(3, 0), headers(5, END)].concat(), "h2 3 3/0"),
                step(S, headers(3, 0), "h2 3 3/0"),
                step(S, headers(5, END), "h2 2 3/1"),
                step(S, headers(1, 0), "h2 2* 3/1"),
                step(C, data(3, END), "h2 2* 3/1"),
                step(S, data(3, END), "h2 1* 3/2"),
                step(C, headers(7, END), "h2 2* 4/2"),
                step(S, data(1, END), "h2 1 4/3"),
                step(S, headers(7, END), "h2 0 4/4"),
            ]),
        ),
        (
            "numbers may be left out",
            after_settings([
                step(C, headers(11, END), "h2 1 1/0"),
                step(S, headers(11, END), "h2 0 1/1"),
                step(C, headers(2_147_483_647, END), "h2 1 2/1"),
            ]),
        ),
        (
            "the reserved bit means nothing",
            after_settings([step(C, headers(0x8000_0001, END), "h2 1 1/0"), step(S, headers(1, END), "h2 0 1/1")]),
        ),
        (
            "a late frame of an ended stream changes nothing",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, headers(1, END), "h2 0 1/1"),
                step(S, data(1, END), "h2 0 1/1"),
                step(C, data(1, END), "h2 0 1/1"),
                step(C, headers(1, END), "h2 0 1/1"),
                step(C, reset(1), "h2 0 1/1"),
            ]),
        ),
        (
            "a response that ends twice completes once",
            after_settings([
                step(C, headers(1, 0), "h2 1 1/0"),
                step(S, headers(1, END), "h2 1* 1/1"),
                step(S, data(1, END), "h2 1* 1/1"),
            ]),
        ),
        (
            "CONNECT stays open in both directions",
            after_settings([
                step(C, headers(1, 0), "h2 1 1/0"),
                step(S, headers(1, 0), "h2 1* 1/0"),
                step(C, data(1, 0), "h2 1* 1/0"),
                step(S, data(1, END), "h2 1* 1/1"),
                step(C, data(1, END), "h2 0 1/1"),
            ]),
        ),
    ]);
}

#[test]
fn a_reset_from_either_side_ends_a_stream() {
    check(&[
        ("by the client", after_settings([step(C, headers(1, 0), "h2 1 1/0"), step(C, reset(1), "h2 0 1/0")])),
        (
            "by the server, before its response",
            after_settings([step(C, headers(1, 0), "h2 1 1/0"), step(S, reset(1), "h2 0 1/0")]),
        ),
        (
            "in the middle of a response",
            after_settings([
                step(C, [headers(1, END), headers(3, END)].concat(), "h2 2 2/0"),
                step(S, headers(1, 0), "h2 2* 2/0"),
                step(C, reset(1), "h2 1 2/0"),
                step(S, data(1, END), "h2 1 2/0"),
                step(S, headers(3, END), "h2 0 2/1"),
            ]),
        ),
        (
            "with its last byte",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, &reset(1)[..12], "h2 1* 1/0"),
                step(S, &reset(1)[12..], "h2 0 1/0"),
            ]),
        ),
        (
            "twice",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(C, reset(1), "h2 0 1/0"),
                step(S, reset(1), "h2 0 1/0"),
            ]),
        ),
        (
            "of a size that isn't one",
            after_settings([step(C, headers(1, END), "h2 1 1/0"), step(S, frame(3, 0, 1, b"12345"), "BadFrame 0 1/0")]),
        ),
    ]);
}

#[test]
fn goaway_ends_the_connection_but_not_the_streams_it_accepts() {
    check(&[
        ("from the server, while idle", after_settings([step(S, goaway(0), "h2 0 last 0/0")])),
        (
            "from the client",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(C, goaway(0), "h2 1 last 1/0"),
                step(S, headers(1, END), "h2 0 last 1/1"),
            ]),
        ),
        (
            "accepted streams go on",
            after_settings([
                step(C, [headers(1, END), headers(3, END)].concat(), "h2 2 2/0"),
                step(S, goaway(3), "h2 2 last 2/0"),
                step(S, headers(1, END), "h2 1 last 2/1"),
                step(S, headers(3, END), "h2 0 last 2/2"),
            ]),
        ),
        (
            "streams above the last one are refused",
            after_settings([
                step(C, [headers(1, END), headers(3, END)].concat(), "h2 2 2/0"),
                step(S, goaway(1), "h2 1 last 2/0"),
                step(S, headers(1, END), "h2 0 last 2/1"),
            ]),
        ),
        (
            "a request that crosses it is refused",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, goaway(1), "h2 1 last 1/0"),
                step(C, headers(3, END), "h2 1 last 2/0"),
                step(S, headers(1, END), "h2 0 last 2/1"),
            ]),
        ),
        (
            "in two steps, as servers shut down gracefully",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, goaway(2_147_483_647), "h2 1 last 1/0"),
                step(C, headers(3, END), "h2 2 last 2/0"),
                step(S, goaway(1), "h2 1 last 2/0"),
                step(S, headers(1, END), "h2 0 last 2/1"),
            ]),
        ),
        (
            "the reserved bit means nothing",
            after_settings([step(C, headers(1, END), "h2 1 1/0"), step(S, goaway(0x8000_0000), "h2 0 last 1/0")]),
        ),
        ("too short", after_settings([step(S, frame(7, 0, 0, b"1234"), "BadFrame 0 0/0")])),
    ]);
}

#[test]
fn other_frames_are_no_exchanges() {
    check(&[
        (
            "SETTINGS and its acknowledgement",
            after_settings([step(C, frame(4, ACK, 0, b""), "h2 0 0/0"), step(S, frame(4, ACK, 0, b""), "h2 0 0/0")]),
        ),
        ("PING both ways", after_settings([step(C, ping(), "h2 0 0/0"), step(S, ping(), "h2 0 0/0")])),
        (
            "WINDOW_UPDATE",
            after_settings([
                step(C, frame(8, 0, 0, &[0, 0, 1, 0]), "h2 0 0/0"),
                step(S, frame(8, 0, 0, &[0, 0, 1, 0]), "h2 0 0/0"),
            ]),
        ),
        (
            "PRIORITY, even of a stream not open yet",
            after_settings([step(C, frame(2, 0, 3, &[0; 5]), "h2 0 0/0"), step(C, headers(1, END), "h2 1 1/0")]),
        ),
        (
            "unknown frames, whatever their flags",
            after_settings([
                step(C, frame(0xee, 0xff, 9, b"PRI * HTTP/2.0"), "h2 0 0/0"),
                step(S, frame(0xee, 0xff, 0, &frame(1, 5, 1, b"")), "h2 0 0/0"),
                step(C, headers(1, END), "h2 1 1/0"),
            ]),
        ),
        (
            "PING during an exchange",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, ping(), "h2 1 1/0"),
                step(C, frame(6, ACK, 0, b"12345678"), "h2 1 1/0"),
                step(S, headers(1, END), "h2 0 1/1"),
            ]),
        ),
        (
            "WINDOW_UPDATE of a stream is not its response",
            after_settings([step(C, headers(1, 0), "h2 1 1/0"), step(S, frame(8, 0, 1, &[0, 0, 1, 0]), "h2 1 1/0")]),
        ),
        (
            "payload may look like frames",
            after_settings([
                step(C, headers(1, 0), "h2 1 1/0"),
                step(C, frame(0, 0, 1, &[headers(3, END), reset(1)].concat()), "h2 1 1/0"),
            ]),
        ),
        (
            "padding is payload",
            after_settings([
                step(C, frame(1, END | END_HEADERS | PADDED, 1, &[3, 0x82, 0, 0, 0]), "h2 1 1/0"),
                step(S, frame(1, END_HEADERS | PADDED, 1, &[3, 0x88, 0, 0, 0]), "h2 1* 1/0"),
                step(S, frame(0, END | PADDED, 1, &[2, b'x', 0, 0]), "h2 0 1/1"),
            ]),
        ),
        (
            "priority in HEADERS is payload",
            after_settings([
                step(C, frame(1, 0x25, 1, &[0, 0, 0, 0, 16, 0x82]), "h2 1 1/0"),
                step(S, headers(1, END), "h2 0 1/1"),
            ]),
        ),
        (
            "a server push is no exchange",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, frame(5, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]), "h2 1 1/0"),
                step(S, headers(1, END), "h2 0 1/1"),
                step(S, headers(2, 0), "h2 0 1/1"),
                step(S, data(2, END), "h2 0 1/1"),
                step(C, reset(2), "h2 0 1/1"),
            ]),
        ),
    ]);
}

#[test]
fn a_field_block_goes_on_in_continuation_frames() {
    check(&[
        (
            "in a request",
            after_settings([
                step(C, headers_begun(1, END), "h2 1 1/0"),
                step(C, continuation(1, 0), "h2 1 1/0"),
                step(C, continuation(1, END_HEADERS), "h2 1 1/0"),
                step(S, headers(1, END), "h2 0 1/1"),
            ]),
        ),
        (
            "the response ends with the block",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, headers_begun(1, END), "h2 1* 1/0"),
                step(S, continuation(1, 0), "h2 1* 1/0"),
                step(S, continuation(1, END_HEADERS), "h2 0 1/1"),
            ]),
        ),
        (
            "END_STREAM means nothing on CONTINUATION",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, headers_begun(1, 0), "h2 1* 1/0"),
                step(S, continuation(1, END_HEADERS | END), "h2 1* 1/0"),
                step(S, data(1, END), "h2 0 1/1"),
            ]),
        ),
        (
            "of a push",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, frame(5, 0, 1, &[0, 0, 0, 2]), "h2 1 1/0"),
                step(S, continuation(1, END_HEADERS), "h2 1 1/0"),
                step(S, headers(1, END), "h2 0 1/1"),
            ]),
        ),
        (
            "the other direction is not bound",
            after_settings([
                step(C, headers_begun(1, END), "h2 1 1/0"),
                step(S, ping(), "h2 1 1/0"),
                step(C, continuation(1, END_HEADERS), "h2 1 1/0"),
            ]),
        ),
        (
            "nothing may come between",
            after_settings([step(C, headers_begun(1, END), "h2 1 1/0"), step(C, ping(), "BadFrame 1 1/0")]),
        ),
        (
            "of another stream",
            after_settings([
                step(C, headers_begun(1, END), "h2 1 1/0"),
                step(C, continuation(3, END_HEADERS), "BadFrame 1 1/0"),
            ]),
        ),
        ("of nothing", after_settings([step(C, continuation(1, END_HEADERS), "BadFrame 1 0/0")])),
    ]);
}

#[test]
fn a_connection_is_http2_by_its_preface_and_settings() {
    check(&[
        ("half a preface", vec![step(C, &PREFACE[..23], "? 1 0/0"), step(C, &PREFACE[23..], "h2 0 0/0")]),
        (
            "a server that speaks first",
            vec![
                step(S, settings(), "? 0 0/0"),
                step(C, opening(), "h2 0 0/0"),
                step(C, headers(1, END), "h2 1 1/0"),
                step(S, headers(1, END), "h2 0 1/1"),
            ],
        ),
        (
            "a server that interrupts",
            vec![
                step(C, &PREFACE[..5], "? 1 0/0"),
                step(S, settings(), "? 1 0/0"),
                step(C, &PREFACE[5..], "h2 0 0/0"),
                step(C, settings(), "h2 0 0/0"),
            ],
        ),
        (
            "a client that isn't HTTP/2 after all",
            vec![step(S, settings(), "? 0 0/0"), step(C, "GET / HTTP/1.1\r\n\r\n", "NotHttp 1 0/0")],
        ),
        (
            "an answer in HTTP/1.1",
            vec![step(C, opening(), "h2 0 0/0"), step(S, "HTTP/1.1 400 Bad Request\r\n\r\n", "BadFrame 0 0/0")],
        ),
        (
            "a server that doesn't begin with SETTINGS",
            vec![step(C, opening(), "h2 0 0/0"), step(S, ping(), "BadFrame 0 0/0")],
        ),
        (
            "a server that begins with an acknowledgement",
            vec![step(C, opening(), "h2 0 0/0"), step(S, frame(4, ACK, 0, b""), "BadFrame 0 0/0")],
        ),
        (
            "a client that doesn't begin with SETTINGS",
            vec![step(C, [PREFACE, &headers(1, END)].concat(), "BadFrame 1 0/0")],
        ),
        (
            "requests need not wait for the server's SETTINGS",
            vec![
                step(C, [opening(), headers(1, END)].concat(), "h2 1 1/0"),
                step(S, settings(), "h2 1 1/0"),
                step(S, headers(1, END), "h2 0 1/1"),
            ],
        ),
        ("empty SETTINGS", vec![step(C, [PREFACE, &frame(4, 0, 0, b"")].concat(), "h2 0 0/0")]),
        (
            "the server's end",
            after_settings([step(C, headers(1, END), "h2 1 1/0"), step(ServerEof, "", "h2 1 last 1/0")]),
        ),
        (
            "the client's end",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(ClientEof, "", "h2 1 last 1/0"),
                step(S, headers(1, END), "h2 0 last 1/1"),
            ]),
        ),
    ]);
}

#[test]
fn frames_that_break_the_protocol_make_the_connection_opaque() {
    check(&[
        ("HEADERS on stream 0", after_settings([step(C, headers(0, END), "BadFrame 1 0/0")])),
        ("DATA on stream 0", after_settings([step(S, data(0, 0), "BadFrame 0 0/0")])),
        ("a client's stream with an even number", after_settings([step(C, headers(2, END), "BadFrame 1 0/0")])),
        ("a response to a stream that isn't open", after_settings([step(S, headers(1, END), "BadFrame 0 0/0")])),
        ("DATA before HEADERS", after_settings([step(C, data(1, END), "BadFrame 1 0/0")])),
        ("a reset of a stream that isn't open", after_settings([step(S, reset(1), "BadFrame 0 0/0")])),
        ("SETTINGS on a stream", after_settings([step(S, frame(4, 0, 1, b""), "BadFrame 0 0/0")])),
        ("SETTINGS of an odd size", after_settings([step(S, frame(4, 0, 0, b"12345"), "BadFrame 0 0/0")])),
        ("PING of another size", after_settings([step(S, frame(6, 0, 0, b"1"), "BadFrame 0 0/0")])),
        (
            "a push from the client",
            after_settings([
                step(C, headers(1, END), "h2 1 1/0"),
                step(C, frame(5, END_HEADERS, 1, &[0, 0, 0, 2]), "BadFrame 1 1/0"),
                step(S, headers(1, END), "BadFrame 0 1/0"),
            ]),
        ),
    ]);
}

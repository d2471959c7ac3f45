//! Where following ends: hostile or endless input costs bounded memory, and a host that refuses breaks nothing.

use idleguard::framing::{Direction, Framing, OpaqueCause, Protocol};

use crate::http2::{PREFACE, frame};
use crate::replay::Observed;
use crate::replay::Side::{C, S};

const GET: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

fn head_of(len: usize) -> Vec<u8> {
    let start = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: ";
    format!("{start}{}\r\n\r\n", "a".repeat(len - start.len() - 4)).into_bytes()
}

#[test]
fn a_head_may_have_64_kib() {
    for (len, state) in [(65_536, "h1 0 1/1"), (65_537, "HeadTooLong 0 1/0"), (200_000, "HeadTooLong 0 1/0")] {
        for event in [1, 1000, 1024, 16_384, 65_535, usize::MAX] {
            let mut observed = Observed::new();
            observed.act(C, GET);
            head_of(len).chunks(event).for_each(|bytes| observed.act(S, bytes));
            assert_eq!(observed.state(), state, "{len} bytes in events of {event}");
        }
    }
}

#[test]
fn a_head_may_have_1024_fields() {
    for (fields, state) in
        [(1, "h1 0 1/1"), (48, "h1 0 1/1"), (49, "h1 0 1/1"), (1024, "h1 0 1/1"), (1025, "HeadTooLong 0 1/0")]
    {
        for event in [1000, usize::MAX] {
            let head = format!("HTTP/1.1 204 No\r\n{}\r\n", "A: b\r\n".repeat(fields));
            let mut observed = Observed::new();
            observed.act(C, GET);
            head.as_bytes().chunks(event).for_each(|bytes| observed.act(S, bytes));
            assert_eq!(observed.state(), state, "{fields} fields");
        }
    }
}

#[test]
fn trailers_and_chunk_extensions_are_bounded() {
    for (body, state) in [
        (format!("0\r\nA: {}\r\n\r\n", "a".repeat(65_000)), "h1 0 1/1"),
        (format!("0\r\nA: {}", "a".repeat(66_000)), "BadChunk 0 1/0"),
        (format!("0\r\n{}\r\n", "A: b\r\n".repeat(30_000)), "BadChunk 0 1/0"),
        (format!("0;{}\r\n\r\n", "a".repeat(4_000)), "h1 0 1/1"),
        (format!("5;{}", "a".repeat(5_000)), "BadChunk 0 1/0"),
        (format!("5{}", " ".repeat(5_000)), "BadChunk 0 1/0"),
    ] {
        for event in [1, 777, usize::MAX] {
            let mut observed = Observed::new();
            observed.act(C, GET);
            observed.act(S, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            body.as_bytes().chunks(event).for_each(|bytes| observed.act(S, bytes));
            assert_eq!(observed.state(), state, "{} in events of {event}", body.get(..8).unwrap_or(&body));
        }
    }
}

#[test]
fn four_thousand_streams_are_followed_at_a_time() {
    let mut observed = Observed::new();
    observed.act(C, &[PREFACE, &frame(4, 0, 0, b"")].concat());
    observed.act(S, &frame(4, 0, 0, b""));
    for index in 0..4096 {
        observed.act(C, &frame(1, 5, index * 2 + 1, b"x"));
    }
    assert_eq!(observed.state(), "h2 4096 4096/0");
    for index in (0..4096).step_by(2) {
        observed.act(S, &frame(1, 5, index * 2 + 1, b"x"));
    }
    assert_eq!(observed.state(), "h2 2048 4096/2048");
    for index in 4096..6144 {
        observed.act(C, &frame(1, 5, index * 2 + 1, b"x"));
    }
    assert_eq!(observed.state(), "h2 4096 6144/2048");
    observed.act(C, &frame(1, 5, 12_289, b"x"));
    assert_eq!(observed.state(), "TooManyExchanges 1 6145/2048");
}

#[test]
fn a_host_that_refuses_makes_the_connection_opaque() {
    for refusal in [None, Some(Vec::new())] {
        let mut framing = Framing::new();
        framing.advance(Direction::Request, 18, |_, _| refusal.clone());
        assert_eq!(framing.protocol(), Protocol::Opaque(OpaqueCause::Refused));
        assert_eq!(framing.in_flight(), 1);
        framing.advance(Direction::Response, 18, |_, _| refusal.clone());
        assert_eq!(framing.in_flight(), 0);
    }
}

#[test]
fn a_host_that_hands_out_too_much_confuses_nobody() {
    let mut framing = Framing::new();
    let stream = [GET, b"\0\0\0\0"].concat();
    framing.advance(Direction::Request, GET.len() as u64, |offset, _| Some(stream[offset as usize..].to_vec()));
    assert_eq!((framing.protocol(), framing.in_flight()), (Protocol::Http1, 1));
}

//! What the framing asks of its host: every call costs, and bodies must not be copied.

use idleguard::framing::{Direction, Framing};

use crate::http2::{PREFACE, frame};

/// Host calls, and bytes handed out by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cost {
    calls: u64,
    bytes: u64,
}

/// Passes `stream` in events of `event` bytes.
fn pass(framing: &mut Framing, direction: Direction, stream: &[u8], event: usize) -> Cost {
    let mut cost = Cost::default();
    for bytes in stream.chunks(event) {
        framing.advance(direction, bytes.len() as u64, |offset, max_len| {
            cost.calls += 1;
            cost.bytes += max_len;
            Some(bytes[offset as usize..][..max_len as usize].to_vec())
        });
    }
    cost
}

fn requested() -> Framing {
    let mut framing = Framing::new();
    let cost = pass(&mut framing, Direction::Request, b"GET /file HTTP/1.1\r\nHost: example\r\n\r\n", usize::MAX);
    assert_eq!(cost.calls, 1);
    framing
}

#[test]
fn of_a_download_with_a_length_only_the_head_is_read() {
    const BODY: u64 = 100 << 20;
    const EVENT: u64 = 16 << 10;
    let head = format!("HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: {BODY}\r\n\r\n").into_bytes();
    let mut framing = requested();
    let cost = pass(&mut framing, Direction::Response, &head, usize::MAX);
    assert_eq!(cost, Cost { calls: 1, bytes: head.len() as u64 });
    let mut passed = 0;
    while passed < BODY {
        assert_eq!(framing.in_flight(), 1, "after {passed} bytes");
        let len = EVENT.min(BODY - passed);
        framing.advance(Direction::Response, len, |offset, _| panic!("a body byte at {offset} was asked for"));
        passed += len;
    }
    assert_eq!(framing.in_flight(), 0);

    // In one event with its head, a body larger than memory costs one window.
    let mut framing = requested();
    let mut calls = 0;
    let progress = framing.advance(Direction::Response, head.len() as u64 + BODY, |offset, max_len| {
        calls += 1;
        assert!(offset == 0 && max_len <= 2048, "{offset} {max_len}");
        let mut bytes = head.clone();
        bytes.resize(max_len as usize, b'x');
        Some(bytes)
    });
    assert_eq!((calls, progress.responses_completed, framing.in_flight()), (1, 1, 0));
}

#[test]
fn of_a_chunked_download_only_heads_and_chunk_lines_are_read() {
    let mut stream = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let chunks = 100_u64;
    for _ in 0..chunks {
        stream.extend(b"4000\r\n");
        stream.resize(stream.len() + 0x4000, b'0');
        stream.extend(b"\r\n");
    }
    stream.extend(b"0\r\n\r\n");
    for event in [usize::MAX, 64 << 10, 16 << 10, 5000] {
        let mut framing = requested();
        let cost = pass(&mut framing, Direction::Response, &stream, event);
        assert_eq!(framing.in_flight(), 0);
        let cuts = (stream.len() / event) as u64;
        assert!(cost.calls <= 3 + chunks + cuts, "{event}: {cost:?}");
        assert!(cost.bytes <= 2048 + (chunks + cuts) * 32 + 300, "{event}: {cost:?}");
    }
}

#[test]
fn small_chunks_are_read_from_one_window() {
    let mut framing = requested();
    pass(&mut framing, Direction::Response, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", usize::MAX);
    let cost =
        pass(&mut framing, Direction::Response, b"5\r\nhello\r\n5\r\nworld\r\n7\r\ngoodbye\r\n0\r\n\r\n", usize::MAX);
    assert_eq!((cost.calls, framing.in_flight()), (1, 0));
}

#[test]
fn a_small_exchange_costs_a_call_in_each_direction() {
    let mut framing = requested();
    let response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    assert_eq!(pass(&mut framing, Direction::Response, response, usize::MAX).calls, 1);
    assert_eq!(framing.in_flight(), 0);
}

#[test]
fn a_long_head_is_read_once_in_growing_windows() {
    let mut head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n".to_vec();
    while head.len() < 60_000 {
        head.extend(format!("X-{}: {}\r\n", head.len(), "v".repeat(90)).bytes());
    }
    head.extend(b"\r\n");
    let mut framing = requested();
    let cost = pass(&mut framing, Direction::Response, &head, usize::MAX);
    assert_eq!(cost.bytes, head.len() as u64);
    assert!(cost.calls <= 7, "{cost:?}");
    assert_eq!((framing.in_flight(), framing.reusable()), (0, true));
}

#[test]
fn of_http2_little_more_than_frame_headers_is_read() {
    let mut framing = Framing::new();
    let opening = [PREFACE, &frame(4, 0, 0, b""), &frame(1, 5, 1, &[0x82; 100])].concat();
    assert_eq!(pass(&mut framing, Direction::Request, &opening, usize::MAX).calls, 1);
    let head = [frame(4, 0, 0, b""), frame(1, 4, 1, &[0x88; 100])].concat();
    assert_eq!(pass(&mut framing, Direction::Response, &head, usize::MAX).calls, 1);
    let frames = 100;
    let mut stream = Vec::new();
    for index in 1..=frames {
        stream.extend(frame(0, u8::from(index == frames), 1, &[0; 16_384]));
    }
    let cost = pass(&mut framing, Direction::Response, &stream, 64 << 10);
    assert_eq!(framing.in_flight(), 0);
    // One call a frame, and one more where an event ends within a frame header.
    assert!(cost.calls <= frames + 2, "{cost:?}");
    assert!(cost.bytes <= (frames + 2) * 256, "{cost:?}");
}

#[test]
fn tunnels_and_opaque_connections_are_not_read() {
    let mut framing = Framing::new();
    pass(&mut framing, Direction::Request, b"\x16\x03\x01", usize::MAX);
    framing.advance(Direction::Response, u64::MAX, |_, _| panic!("asked for"));
    assert_eq!(framing.in_flight(), 0);
}

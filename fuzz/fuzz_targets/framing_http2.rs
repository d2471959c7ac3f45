//! HTTP/2 framing: cutting changes nothing, and a simple reading of whole frames agrees about the open streams.
#![no_main]

mod framing_script;

use std::collections::BTreeMap;

use framing_script::{Event, check, events};
use idleguard::framing::{Direction, Protocol};
use libfuzzer_sys::fuzz_target;

const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

fuzz_target!(|data: &[u8]| {
    let Some((piece, script)) = data.split_first() else { return };
    let mut all = vec![
        Event { direction: Direction::Request, bytes: OPENING, eof: false },
        Event { direction: Direction::Response, bytes: SETTINGS, eof: false },
    ];
    all.extend(events(script));
    check(&all, usize::from(*piece));
    frames(script);
});

/// Takes five bytes at a time for a frame: its direction, type, flags, stream and payload length. All are whole, so a
/// map of streams is enough to know the truth.
fn frames(script: &[u8]) {
    let mut run = framing_script::Run::new(usize::MAX);
    run.pass(Direction::Request, OPENING);
    run.pass(Direction::Response, SETTINGS);
    let mut streams = BTreeMap::<u32, (bool, bool)>::new();
    let (mut newest, mut last_accepted) = (0_u32, u32::MAX);
    for &[way, kind, flags, stream, len] in script.as_chunks::<5>().0 {
        let direction = if way & 1 == 0 { Direction::Request } else { Direction::Response };
        // Streams that a client may open, and frames whose blocks are whole.
        let (kind, flags, stream) = (kind % 8, flags | 0x4, u32::from(stream % 32) * 2 + 1);
        let mut payload = vec![0; usize::from(len)];
        let id = match kind {
            3 => {
                payload.resize(4, 0);
                stream
            }
            4 => {
                payload.truncate(payload.len() / 6 * 6);
                0
            }
            6 => {
                payload.resize(8, 0);
                0
            }
            7 => {
                payload.resize(payload.len() + 8, 0);
                payload[..4].copy_from_slice(&stream.to_be_bytes());
                0
            }
            _ => stream,
        };
        let opens = kind == 1 && direction == Direction::Request && stream > newest;
        // What would be a violation is left out.
        if matches!(kind, 0 | 1 | 3) && stream > newest && !opens || kind == 5 && direction == Direction::Request {
            continue;
        }
        let mut frame = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(id.to_be_bytes());
        frame.extend(payload);
        run.pass(direction, &frame);

        if opens {
            newest = stream;
            if stream <= last_accepted {
                streams.insert(stream, (false, false));
            }
        }
        if matches!(kind, 0 | 1)
            && flags & 1 != 0
            && let Some((request, response)) = streams.get_mut(&stream)
        {
            match direction {
                Direction::Request => *request = true,
                Direction::Response => *response = true,
            }
        }
        if kind == 3 {
            streams.remove(&stream);
        }
        if kind == 7 && direction == Direction::Response {
            last_accepted = last_accepted.min(stream);
        }
        streams.retain(|id, ended| *ended != (true, true) && *id <= last_accepted);
        assert_eq!(run.framing.protocol(), Protocol::Http2);
        assert_eq!(run.framing.in_flight() as usize, streams.len());
    }
}

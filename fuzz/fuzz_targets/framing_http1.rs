//! HTTP/1 framing: cutting changes nothing, and `httparse` agrees about where heads end.
#![no_main]

mod framing_script;

use framing_script::{Run, check, events};
use idleguard::framing::{Direction, OpaqueCause, Protocol};
use libfuzzer_sys::fuzz_target;

const GET: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

fuzz_target!(|data: &[u8]| {
    let Some((piece, script)) = data.split_first() else { return };
    check(&events(script), usize::from(*piece));
    request_heads(script);
    response_heads(script);
});

/// The framing and `httparse` take the same bytes for a request head, except where the framing says that it is stricter.
fn request_heads(bytes: &[u8]) {
    let mut headers = [httparse::EMPTY_HEADER; 1024];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(bytes);
    let mut run = Run::new(usize::MAX);
    match parsed {
        Ok(httparse::Status::Complete(len)) => {
            run.pass(Direction::Request, &bytes[..len - 1]);
            assert!(run.framing.in_flight() >= 1);
            run.pass(Direction::Request, &bytes[len - 1..len]);
            assert_eq!(run.framing.in_flight(), 1);
            let long_method = request.method.is_some_and(|method| method.len() >= 32);
            match run.framing.protocol() {
                Protocol::Http1 | Protocol::Opaque(OpaqueCause::BadLength) => {}
                Protocol::Opaque(OpaqueCause::NotHttp) if long_method => {}
                other => panic!("{other:?} for a head that httparse accepts"),
            }
        }
        Ok(httparse::Status::Partial) => {
            run.pass(Direction::Request, bytes);
            assert!(run.total.requests_started <= 1, "a request follows a head that hasn't ended");
        }
        Err(_) => {}
    }
}

/// No response is over before `httparse` says that its head is.
fn response_heads(bytes: &[u8]) {
    let mut headers = [httparse::EMPTY_HEADER; 1024];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = httparse::ParserConfig::default()
        .allow_obsolete_multiline_headers_in_responses(true)
        .parse_response(&mut response, bytes);
    let mut run = Run::new(usize::MAX);
    run.pass(Direction::Request, GET);
    match parsed {
        Ok(httparse::Status::Complete(len)) => {
            run.pass(Direction::Response, &bytes[..len - 1]);
            assert_eq!((run.total.responses_completed, run.framing.protocol()), (0, Protocol::Http1));
            run.pass(Direction::Response, &bytes[len - 1..len]);
            match (run.framing.protocol(), response.code.unwrap_or_default()) {
                (Protocol::Http1, code) => {
                    assert!(code >= 100 && code != 101);
                    let bodiless = matches!(code, 204 | 304);
                    assert!(!bodiless || run.framing.in_flight() == 0, "{code} has no body");
                    assert!(code >= 200 || run.framing.in_flight() == 1, "{code} is not the end");
                }
                (Protocol::Opaque(OpaqueCause::BadLength), 200..) => {}
                (Protocol::Opaque(OpaqueCause::BadHead), ..100) => {}
                (Protocol::Opaque(OpaqueCause::Unsolicited), 101) => {}
                other => panic!("{other:?} for a head that httparse accepts"),
            }
        }
        Ok(httparse::Status::Partial) => {
            run.pass(Direction::Response, bytes);
            assert_eq!(run.total.responses_completed, 0);
        }
        Err(_) => {}
    }
}

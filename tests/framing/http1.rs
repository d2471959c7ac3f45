//! HTTP/1.1 message sequences (RFC 9112).

use crate::replay::Side::{C, ClientEof, S, ServerEof};
use crate::replay::{Step, check, step};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const HEAD: &str = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST5: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
const POST_CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
const EXPECT: &str = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
const CONNECT: &str = "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n";
const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
const OK0: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const OK5: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
const OK_CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const OK_CLOSE: &str = "HTTP/1.1 200 OK\r\n\r\n";
const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

/// `GET`, then this response head, then this state.
fn response(head: &str, state: &'static str) -> Vec<Step> {
    vec![step(C, GET, "h1 1 1/0"), step(S, head, state)]
}

/// This request head, then this state.
fn request(head: &str, state: &'static str) -> Vec<Step> {
    vec![step(C, head, state)]
}

/// A chunked response to a `GET`, whose body ends in this state.
fn chunks(body: &str, state: &'static str) -> Vec<Step> {
    vec![step(C, GET, "h1 1 1/0"), step(S, OK_CHUNKED, "h1 1* 1/0"), step(S, body, state)]
}

#[test]
fn an_exchange_is_in_flight_from_its_first_byte_until_both_messages_are_over() {
    check(&[
        ("nothing has passed", vec![step(C, "", "? 0 0/0"), step(S, "", "? 0 0/0")]),
        ("the first byte of a request counts", request("G", "h1 1 1/0")),
        ("a P may still be HTTP/2", request("P", "? 1 0/0")),
        ("POST is not the HTTP/2 preface", vec![step(C, "P", "? 1 0/0"), step(C, "O", "h1 1 1/0")]),
        ("PRI can be told late", vec![step(C, "PRI ", "? 1 0/0"), step(C, "/ HTTP/1.1\r\n\r\n", "h1 1 1/0")]),
        ("half a head", request("GET / HTTP/1.1\r\nHost: a\r\n", "h1 1 1/0")),
        ("a whole exchange", vec![step(C, GET, "h1 1 1/0"), step(S, OK0, "h1 0 1/1")]),
        ("the first response byte counts", vec![step(C, GET, "h1 1 1/0"), step(S, "H", "h1 1* 1/0")]),
        (
            "two exchanges",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(S, OK0, "h1 0 1/1"),
                step(C, GET, "h1 1 2/1"),
                step(S, OK0, "h1 0 2/2"),
            ],
        ),
        (
            "a response body is counted",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(S, OK5, "h1 1* 1/0"),
                step(S, "hell", "h1 1* 1/0"),
                step(S, "o", "h1 0 1/1"),
            ],
        ),
        (
            "a request body is counted",
            vec![
                step(C, POST5, "h1 1 1/0"),
                step(C, "hello", "h1 1 1/0"),
                step(S, OK0, "h1 0 1/1"),
                step(C, "G", "h1 1 2/1"),
            ],
        ),
        (
            "a body may look like a head",
            vec![
                step(C, "POST / HTTP/1.1\r\nContent-Length: 18\r\n\r\nGET / HTTP/1.1\r\n\r\n", "h1 1 1/0"),
                step(S, "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "h1 0 1/1"),
            ],
        ),
        (
            "a request body of length 0",
            vec![step(C, "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "h1 1 1/0"), step(S, OK0, "h1 0 1/1")],
        ),
        (
            "an early response is not the end",
            vec![
                step(C, POST5, "h1 1 1/0"),
                step(S, OK0, "h1 1 1/1"),
                step(C, "hell", "h1 1 1/1"),
                step(C, "o", "h1 0 1/1"),
            ],
        ),
        (
            "an early response to a chunked request",
            vec![
                step(C, POST_CHUNKED, "h1 1 1/0"),
                step(C, "5\r\nhello\r\n", "h1 1 1/0"),
                step(S, "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n", "h1 1 1/1"),
                step(C, "5\r\nhello\r\n", "h1 1 1/1"),
                step(C, "0\r\n\r\n", "h1 0 1/1"),
            ],
        ),
        (
            "an early response that outlasts the request",
            vec![
                step(C, POST5, "h1 1 1/0"),
                step(S, OK5, "h1 1* 1/0"),
                step(C, "hello", "h1 1* 1/0"),
                step(S, "hello", "h1 0 1/1"),
            ],
        ),
        (
            "after an early response a second one is a stranger",
            vec![
                step(C, POST5, "h1 1 1/0"),
                step(S, OK0, "h1 1 1/1"),
                step(S, OK0, "Unsolicited 0 last 1/1"),
                step(C, "hello", "Unsolicited 1 last 1/1"),
            ],
        ),
        (
            "the next request may follow in the event that ends the body",
            vec![step(C, POST5, "h1 1 1/0"), step(S, OK0, "h1 1 1/1"), step(C, format!("hello{GET}"), "h1 1 2/1")],
        ),
        (
            "requests may be pipelined",
            vec![
                step(C, format!("{GET}{HEAD}{GET}"), "h1 3 3/0"),
                step(S, OK5, "h1 3* 3/0"),
                step(S, "hello", "h1 2 3/1"),
                step(S, OK5, "h1 1 3/2"),
                step(S, format!("{OK5}hello"), "h1 0 3/3"),
            ],
        ),
        (
            "a pipelined request still on its way",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(C, "GET / HT", "h1 2 2/0"),
                step(S, OK0, "h1 1 2/1"),
                step(C, "TP/1.1\r\n\r\n", "h1 1 2/1"),
                step(S, OK0, "h1 0 2/2"),
            ],
        ),
        (
            "pipelined behind a body",
            vec![
                step(C, format!("{POST5}hello{POST5}"), "h1 2 2/0"),
                step(S, format!("{OK0}{OK0}"), "h1 1 2/2"),
                step(C, "hello", "h1 0 2/2"),
            ],
        ),
        (
            "two responses in one event",
            vec![step(C, format!("{GET}{GET}"), "h1 2 2/0"), step(S, format!("{OK0}{OK0}"), "h1 0 2/2")],
        ),
        (
            "sixteen may be pipelined",
            vec![step(C, GET.repeat(16), "h1 16 16/0"), step(S, OK0.repeat(16), "h1 0 16/16")],
        ),
        (
            "seventeen are too many",
            vec![
                step(C, GET.repeat(17), "TooManyExchanges 1 17/0"),
                step(S, OK0, "TooManyExchanges 0 17/0"),
                step(C, GET, "TooManyExchanges 1 17/0"),
            ],
        ),
        (
            "the seventeenth may come after the first response",
            vec![
                step(C, GET.repeat(16), "h1 16 16/0"),
                step(S, OK0, "h1 15 16/1"),
                step(C, GET, "h1 16 17/1"),
                step(S, OK0.repeat(16), "h1 0 17/17"),
            ],
        ),
    ]);
}

#[test]
fn a_response_without_a_body_is_over_with_its_head() {
    check(&[
        ("HEAD", vec![step(C, HEAD, "h1 1 1/0"), step(S, OK5, "h1 0 1/1"), step(C, GET, "h1 1 2/1")]),
        ("HEAD with a coding", vec![step(C, HEAD, "h1 1 1/0"), step(S, OK_CHUNKED, "h1 0 1/1")]),
        ("HEAD without a length", vec![step(C, HEAD, "h1 1 1/0"), step(S, OK_CLOSE, "h1 0 1/1")]),
        (
            "HEAD is written in capitals",
            vec![step(C, "head / HTTP/1.1\r\n\r\n", "h1 1 1/0"), step(S, OK5, "h1 1* 1/0")],
        ),
        ("204", response("HTTP/1.1 204 No Content\r\n\r\n", "h1 0 1/1")),
        ("204 with a length", response("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", "h1 0 1/1")),
        ("304", response("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "h1 0 1/1")),
        ("304 without a length", response("HTTP/1.1 304 Not Modified\r\n\r\n", "h1 0 1/1")),
        (
            "205 has a length like any other",
            response("HTTP/1.1 205 Reset Content\r\nContent-Length: 1\r\n\r\n", "h1 1* 1/0"),
        ),
        ("a status above 599", response("HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", "h1 0 1/1")),
        ("no reason phrase", response("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "h1 0 1/1")),
        (
            "an odd reason phrase",
            vec![step(C, GET, "h1 1 1/0"), step(S, b"HTTP/1.1 200 \xc3\xa9\r\nContent-Length: 0\r\n\r\n", "h1 0 1/1")],
        ),
    ]);
}

#[test]
fn an_interim_response_ends_nothing() {
    check(&[
        (
            "100-continue",
            vec![
                step(C, EXPECT, "h1 1 1/0"),
                step(S, CONTINUE, "h1 1* 1/0"),
                step(C, "hello", "h1 1* 1/0"),
                step(S, OK0, "h1 0 1/1"),
            ],
        ),
        (
            "100-continue that nobody waited for",
            vec![step(C, format!("{EXPECT}hello"), "h1 1 1/0"), step(S, format!("{CONTINUE}{OK0}"), "h1 0 1/1")],
        ),
        (
            "a refused expectation leaves the body owed",
            vec![
                step(C, EXPECT, "h1 1 1/0"),
                step(S, "HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n", "h1 1 1/1"),
                step(C, "hello", "h1 0 1/1"),
            ],
        ),
        (
            "several",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(S, CONTINUE, "h1 1* 1/0"),
                step(S, "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "h1 1* 1/0"),
                step(S, CONTINUE, "h1 1* 1/0"),
                step(S, OK0, "h1 0 1/1"),
            ],
        ),
        (
            "its fields say nothing about a body or the connection",
            response(
                "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\nConnection: close\r\nKeep-Alive: timeout=1\r\n\r\n",
                "h1 1* 1/0",
            ),
        ),
        ("a status below 100", response("HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n", "BadHead 0 1/0")),
        (
            "HEAD after interim responses is still HEAD",
            vec![step(C, HEAD, "h1 1 1/0"), step(S, format!("{CONTINUE}{OK5}"), "h1 0 1/1")],
        ),
    ]);
}

#[test]
fn chunks_are_followed_to_the_last_one() {
    check(&[
        (
            "a chunk at a time",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(S, OK_CHUNKED, "h1 1* 1/0"),
                step(S, "5\r\n", "h1 1* 1/0"),
                step(S, "hello", "h1 1* 1/0"),
                step(S, "\r\n", "h1 1* 1/0"),
                step(S, "0\r\n", "h1 1* 1/0"),
                step(S, "\r\n", "h1 0 1/1"),
            ],
        ),
        ("only the last chunk", chunks("0\r\n\r\n", "h1 0 1/1")),
        (
            "hexadecimal, either case",
            chunks("1a\r\nabcdefghijklmnopqrstuvwxyz\r\nA\r\n0123456789\r\n0\r\n\r\n", "h1 0 1/1"),
        ),
        ("leading zeros", chunks("0005\r\nhello\r\n000\r\n\r\n", "h1 0 1/1")),
        ("chunk data may look like the last chunk", chunks("5\r\n0\r\n\r\n\r\n", "h1 1* 1/0")),
        ("extensions", chunks("5;a=b;c=\"d e\"\r\nhello\r\n0;x\r\n\r\n", "h1 0 1/1")),
        ("white space before an extension", chunks("5 \t;a=b\r\nhello\r\n0\r\n\r\n", "h1 0 1/1")),
        ("white space that pads the size", chunks("5   \r\nhello\r\n0  \r\n\r\n", "h1 0 1/1")),
        ("trailers", chunks("5\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n", "h1 0 1/1")),
        ("unfinished trailers", chunks("0\r\nA: b\r\n", "h1 1* 1/0")),
        (
            "a response behind the last chunk",
            vec![
                step(C, format!("{GET}{GET}"), "h1 2 2/0"),
                step(S, format!("{OK_CHUNKED}3\r\nabc\r\n0\r\n\r\n{OK5}hel"), "h1 1* 2/1"),
                step(S, "lo", "h1 0 2/2"),
            ],
        ),
        (
            "a chunked request",
            vec![
                step(C, format!("{POST_CHUNKED}5\r\nhello\r\n0\r\n"), "h1 1 1/0"),
                step(C, "\r\n", "h1 1 1/0"),
                step(S, OK0, "h1 0 1/1"),
            ],
        ),
        (
            "coded and chunked",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(S, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\nx\r\n", "h1 1* 1/0"),
                step(S, "0\r\n\r\n", "h1 0 1/1"),
            ],
        ),
        (
            "codings over two fields",
            response(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: ,CHUNKED ,\r\n\r\n0\r\n\r\n",
                "h1 0 1/1",
            ),
        ),
        ("the largest size", chunks("ffffffffffffffff\r\nhello", "h1 1* 1/0")),
        ("seventeen digits", chunks("00000000000000005\r\n", "BadChunk 0 1/0")),
        ("no digits", chunks("\r\n", "BadChunk 0 1/0")),
        ("no digits before an extension", chunks(";a\r\n", "BadChunk 0 1/0")),
        ("no digits after white space", chunks(" 5\r\n", "BadChunk 0 1/0")),
        ("a sign", chunks("+5\r\n", "BadChunk 0 1/0")),
        ("a prefix", chunks("0x5\r\n", "BadChunk 0 1/0")),
        ("digits apart", chunks("5 5\r\n", "BadChunk 0 1/0")),
        ("a bare LF after the size", chunks("5\nhello", "BadChunk 0 1/0")),
        ("a bare LF in an extension", chunks("5;a\nhello", "BadChunk 0 1/0")),
        ("a bare CR after the size", chunks("5\r5", "BadChunk 0 1/0")),
        ("data longer than announced", chunks("5\r\nhello!", "BadChunk 0 1/0")),
        ("a bare LF after the data", chunks("5\r\nhello\n", "BadChunk 0 1/0")),
        ("a bare CR after the data", chunks("5\r\nhello\rx", "BadChunk 0 1/0")),
        ("a bare LF at the end", chunks("0\r\n\n", "BadChunk 0 1/0")),
        ("a bare LF in a trailer", chunks("0\r\nA: b\n", "BadChunk 0 1/0")),
        ("a bare CR in a trailer", chunks("0\r\nA: b\rc", "BadChunk 0 1/0")),
        ("a bare CR at the end", chunks("0\r\n\rx", "BadChunk 0 1/0")),
        (
            "a bad chunk from the client",
            vec![step(C, format!("{POST_CHUNKED}x"), "BadChunk 1 1/0"), step(S, OK0, "BadChunk 0 1/0")],
        ),
    ]);
}

#[test]
fn a_length_is_trusted_only_if_nothing_contradicts_it() {
    check(&[
        (
            "equal lengths",
            response("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "h1 0 1/1"),
        ),
        ("equal lengths in a list", response("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", "h1 0 1/1")),
        ("zeros in front", response("HTTP/1.1 200 OK\r\nContent-Length: 0005\r\n\r\nhello", "h1 0 1/1")),
        ("names in any case", response("HTTP/1.1 200 OK\r\ncOnTeNt-lEnGtH:5\r\n\r\nhello", "h1 0 1/1")),
        (
            "the largest length",
            response("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\nx", "h1 1* 1/0"),
        ),
        (
            "different lengths",
            response("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "BadLength 0 1/0"),
        ),
        ("different lengths in a list", response("HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n", "BadLength 0 1/0")),
        (
            "a length too large",
            response("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n", "BadLength 0 1/0"),
        ),
        ("a signed length", response("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", "BadLength 0 1/0")),
        ("a negative length", response("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "BadLength 0 1/0")),
        ("an empty length", response("HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", "BadLength 0 1/0")),
        ("half a list", response("HTTP/1.1 200 OK\r\nContent-Length: 5,\r\n\r\n", "BadLength 0 1/0")),
        ("a hexadecimal length", response("HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n", "BadLength 0 1/0")),
        (
            "chunked and a length",
            response("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "BadLength 0 1/0"),
        ),
        (
            "chunked twice",
            response("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", "BadLength 0 1/0"),
        ),
        (
            "chunked before another coding",
            response("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", "BadLength 0 1/0"),
        ),
        ("an empty coding", response("HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\n", "BadLength 0 1/0")),
        (
            "chunked in HTTP/1.0",
            response("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "BadLength 0 last 1/0"),
        ),
        (
            "a request with both",
            request("POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "BadLength 1 1/0"),
        ),
        (
            "a request with two lengths",
            vec![
                step(C, "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 50\r\n\r\nhello", "BadLength 1 1/0"),
                step(S, OK0, "BadLength 0 1/0"),
                step(C, GET, "BadLength 1 1/0"),
            ],
        ),
        (
            "a request that isn't chunked at last",
            request("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", "BadLength 1 1/0"),
        ),
        (
            "a length with white space before the colon",
            response("HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n", "BadHead 0 1/0"),
        ),
        (
            "lengths don't matter for HEAD",
            vec![
                step(C, HEAD, "h1 1 1/0"),
                step(S, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "h1 0 1/1"),
            ],
        ),
    ]);
}

#[test]
fn a_response_without_a_length_ends_with_the_connection() {
    check(&[
        (
            "until close",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(S, OK_CLOSE, "h1 1* last 1/0"),
                step(S, "0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "h1 1* last 1/0"),
                step(ServerEof, "", "h1 0 last 1/1"),
            ],
        ),
        (
            "a coding that doesn't delimit",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(S, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n", "h1 1* last 1/0"),
                step(ServerEof, "", "h1 0 last 1/1"),
            ],
        ),
        (
            "a coding as long as chunked",
            response("HTTP/1.1 200 OK\r\nTransfer-Encoding: deflate\r\n\r\n0\r\n\r\n", "h1 1* last 1/0"),
        ),
        (
            "a coding that only looks chunked",
            response("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", "h1 1* last 1/0"),
        ),
        (
            "HTTP/1.0",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(S, "HTTP/1.0 200 OK\r\n\r\nhello", "h1 1* last 1/0"),
                step(ServerEof, "", "h1 0 last 1/1"),
            ],
        ),
        (
            "the client's end ends no response",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(ClientEof, "", "h1 1 last 1/0"),
                step(S, OK_CLOSE, "h1 1* last 1/0"),
                step(ClientEof, "", "h1 1* last 1/0"),
                step(ServerEof, "", "h1 0 last 1/1"),
            ],
        ),
        (
            "a response cut short is not over",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(S, format!("{OK5}hell"), "h1 1* 1/0"),
                step(ServerEof, "", "h1 1* last 1/0"),
            ],
        ),
        (
            "chunks cut short are not over",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(S, format!("{OK_CHUNKED}0\r\n"), "h1 1* 1/0"),
                step(ServerEof, "", "h1 1* last 1/0"),
            ],
        ),
        (
            "a head cut short is not over",
            vec![step(C, GET, "h1 1 1/0"), step(S, "HTTP/1.1 200", "h1 1* 1/0"), step(ServerEof, "", "h1 1* last 1/0")],
        ),
        (
            "a stale connection ends before the first response byte",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(S, OK0, "h1 0 1/1"),
                step(C, GET, "h1 1 2/1"),
                step(ServerEof, "", "h1 1 last 2/1"),
            ],
        ),
        (
            "the end of an idle connection",
            vec![step(C, GET, "h1 1 1/0"), step(S, OK0, "h1 0 1/1"), step(ServerEof, "", "h1 0 last 1/1")],
        ),
        (
            "an end with the request still on its way",
            vec![step(C, POST5, "h1 1 1/0"), step(S, OK_CLOSE, "h1 1* last 1/0"), step(ServerEof, "", "h1 1 last 1/1")],
        ),
    ]);
}

#[test]
fn a_connection_is_not_reusable_once_either_side_says_so() {
    check(&[
        (
            "close from the server",
            response("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "h1 0 last 1/1"),
        ),
        (
            "close from the client",
            vec![
                step(C, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "h1 1 last 1/0"),
                step(S, OK0, "h1 0 last 1/1"),
            ],
        ),
        (
            "close among others, in any case",
            response("HTTP/1.1 200 OK\r\nConnection: foo , CLOSE\r\nContent-Length: 0\r\n\r\n", "h1 0 last 1/1"),
        ),
        (
            "close in a second field",
            response(
                "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                "h1 0 last 1/1",
            ),
        ),
        (
            "not every word with close in it",
            response("HTTP/1.1 200 OK\r\nConnection: closed, x-close\r\nContent-Length: 0\r\n\r\n", "h1 0 1/1"),
        ),
        (
            "Envoy minds Proxy-Connection, too",
            response("HTTP/1.1 200 OK\r\nProxy-Connection: close\r\nContent-Length: 0\r\n\r\n", "h1 0 last 1/1"),
        ),
        ("HTTP/1.0 closes", response("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "h1 0 last 1/1")),
        (
            "HTTP/1.0 that stays",
            response("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", "h1 0 1/1"),
        ),
        (
            "an HTTP/1.0 request",
            vec![step(C, "GET / HTTP/1.0\r\n\r\n", "h1 1 last 1/0"), step(S, OK0, "h1 0 last 1/1")],
        ),
        (
            "an HTTP/1.0 request that stays",
            vec![step(C, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "h1 1 1/0"), step(S, OK0, "h1 0 1/1")],
        ),
        (
            "what comes all the same is followed",
            vec![
                step(C, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "h1 1 last 1/0"),
                step(S, OK0, "h1 0 last 1/1"),
                step(C, GET, "h1 1 last 2/1"),
                step(S, OK0, "h1 0 last 2/2"),
            ],
        ),
    ]);
}

#[test]
fn the_keep_alive_hint_is_read_leniently() {
    let hint = |value: &str, state| {
        response(&format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: {value}\r\n\r\n"), state)
    };
    check(&[
        ("timeout and max", hint("timeout=5, max=100", "h1 0 1/1 timeout=5 max=100")),
        ("timeout alone", hint("timeout=5", "h1 0 1/1 timeout=5")),
        ("max alone", hint("max=1", "h1 0 1/1 max=1")),
        ("zero", hint("timeout=0", "h1 0 1/1 timeout=0")),
        ("names in any case, spaces, unknown parameters", hint(" a=b , TimeOut = 7 ,x", "h1 0 1/1 timeout=7")),
        ("quotes and semicolons", hint("timeout=\"5\"; max=\"3\"", "h1 0 1/1 timeout=5 max=3")),
        ("the smallest holds", hint("timeout=9, timeout=5, timeout=7", "h1 0 1/1 timeout=5")),
        ("two fields", hint("timeout=9\r\nkeep-alive: timeout=4, max=2", "h1 0 1/1 timeout=4 max=2")),
        ("huge", hint("timeout=99999999999999999999999, max=4294967296", "h1 0 1/1 timeout=4294967295 max=4294967295")),
        (
            "negative, fractions, units, words, nothing",
            hint("timeout=-1, timeout=1.5, timeout=5s, max=ten, max=, =, timeout", "h1 0 1/1"),
        ),
        (
            "the latest response counts, and silence takes nothing back",
            vec![
                step(C, GET.repeat(3), "h1 3 3/0"),
                step(S, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: timeout=5\r\n\r\n", "h1 2 3/1 timeout=5"),
                step(S, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: timeout=9\r\n\r\n", "h1 1 3/2 timeout=9"),
                step(S, OK0, "h1 0 3/3 timeout=9"),
            ],
        ),
        ("a request has none to give", request("GET / HTTP/1.1\r\nKeep-Alive: timeout=5\r\n\r\n", "h1 1 1/0")),
    ]);
}

#[test]
fn an_upgrade_or_connect_that_succeeds_is_a_tunnel() {
    check(&[
        (
            "a WebSocket",
            vec![
                step(C, UPGRADE, "h1 1 1/0"),
                step(S, SWITCH, "tunnel 0 last 1/1"),
                step(C, "\u{1}\u{2}", "tunnel 1 last 1/1"),
                step(S, "GET / HTTP/1.1\r\n\r\n", "tunnel 0 last 1/1"),
            ],
        ),
        (
            "tunnel bytes in the event of the 101",
            vec![step(C, UPGRADE, "h1 1 1/0"), step(S, format!("{SWITCH}hello"), "tunnel 0 last 1/1")],
        ),
        (
            "h2c",
            vec![
                step(
                    C,
                    "GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n",
                    "h1 1 1/0",
                ),
                step(
                    S,
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n\0\0\0\u{4}\0\0\0\0\0",
                    "tunnel 0 last 1/1",
                ),
                step(C, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "tunnel 1 last 1/1"),
            ],
        ),
        ("an upgrade that is declined", vec![step(C, UPGRADE, "h1 1 1/0"), step(S, OK0, "h1 0 1/1")]),
        (
            "a 100 before the 101",
            vec![step(C, UPGRADE, "h1 1 1/0"), step(S, format!("{CONTINUE}{SWITCH}"), "tunnel 0 last 1/1")],
        ),
        ("a 101 that nobody asked for", response(SWITCH, "Unsolicited 0 1/0")),
        (
            "CONNECT",
            vec![
                step(C, CONNECT, "h1 1 1/0"),
                step(S, "HTTP/1.1 200 OK\r\n\r\n", "tunnel 0 last 1/1"),
                step(C, "\u{16}\u{3}", "tunnel 1 last 1/1"),
            ],
        ),
        (
            "CONNECT whose answer carries a length",
            vec![step(C, CONNECT, "h1 1 1/0"), step(S, OK5, "tunnel 0 last 1/1")],
        ),
        (
            "CONNECT with bytes that don't wait",
            vec![
                step(C, CONNECT, "h1 1 1/0"),
                step(C, "\u{16}\u{3}", "h1 1 1/0"),
                step(S, "HTTP/1.1 200 OK\r\n\r\n", "tunnel 0 last 1/1"),
            ],
        ),
        (
            "CONNECT refused",
            vec![
                step(C, CONNECT, "h1 1 1/0"),
                step(S, "HTTP/1.1 407 No\r\nContent-Length: 5\r\n\r\n", "h1 1* 1/0"),
                step(S, "hello", "h1 0 1/1"),
                step(C, GET, "h1 1 2/1"),
                step(S, OK0, "h1 0 2/2"),
            ],
        ),
        (
            "CONNECT refused, but bytes didn't wait",
            vec![
                step(C, CONNECT, "h1 1 1/0"),
                step(C, GET, "h1 1 1/0"),
                step(S, "HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", "NotHttp 0 1/0"),
            ],
        ),
        (
            "CONNECT behind another request",
            vec![
                step(C, format!("{GET}{CONNECT}"), "h1 2 2/0"),
                step(S, OK0, "h1 1 2/1"),
                step(S, "HTTP/1.1 200 OK\r\n\r\n", "tunnel 0 last 2/2"),
            ],
        ),
        ("CONNECT with a body", request("CONNECT a:1 HTTP/1.1\r\nContent-Length: 5\r\n\r\n", "BadLength 1 1/0")),
        (
            "the end of a tunnel's direction",
            vec![
                step(C, UPGRADE, "h1 1 1/0"),
                step(S, SWITCH, "tunnel 0 last 1/1"),
                step(C, "x", "tunnel 1 last 1/1"),
                step(ServerEof, "", "tunnel 1 last 1/1"),
            ],
        ),
    ]);
}

#[test]
fn heads_are_read_as_leniently_as_envoy_reads_them() {
    check(&[
        (
            "empty lines before a request",
            vec![
                step(C, "\r\n\r\n", "h1 0 0/0"),
                step(C, GET, "h1 1 1/0"),
                step(S, OK0, "h1 0 1/1"),
                step(C, "\r\n", "h1 0 1/1"),
                step(C, GET, "h1 1 2/1"),
            ],
        ),
        (
            "empty lines before a response",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(S, "\r\n", "h1 1* 1/0"),
                step(S, OK0, "h1 0 1/1"),
                step(S, "\r\n", "h1 0 1/1"),
                step(C, GET, "h1 1 2/1"),
            ],
        ),
        (
            "bare line feeds",
            vec![
                step(C, "GET / HTTP/1.1\nHost: a\n\n", "h1 1 1/0"),
                step(S, "HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", "h1 0 1/1"),
            ],
        ),
        ("mixed line ends", response("HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\nhi", "h1 0 1/1")),
        (
            "a folded field in a response",
            response("HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n", "h1 0 1/1"),
        ),
        ("a folded length", response("HTTP/1.1 200 OK\r\nContent-Length:\r\n 5\r\n\r\nhello", "h1 0 1/1")),
        (
            "bytes above 0x7F in a value",
            vec![
                step(C, b"GET /\xff HTTP/1.1\r\nA: \xff\xfe\r\n\r\n", "h1 1 1/0"),
                step(S, b"HTTP/1.1 200 OK\r\nA: \x80\r\nContent-Length: 0\r\n\r\n", "h1 0 1/1"),
            ],
        ),
        ("a method of its own", vec![step(C, "FOO-BAR * HTTP/1.1\r\n\r\n", "h1 1 1/0"), step(S, OK0, "h1 0 1/1")]),
        ("a folded field in a request", request("GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", "BadHead 1 1/0")),
        ("a field without a colon", request("GET / HTTP/1.1\r\nHost\r\n\r\n", "BadHead 1 1/0")),
        (
            "a control character in a value",
            vec![step(C, GET, "h1 1 1/0"), step(S, b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n", "BadHead 0 1/0")],
        ),
        ("a status of two digits", response("HTTP/1.1 20 OK\r\n\r\n", "BadHead 0 1/0")),
    ]);
}

#[test]
fn what_is_not_http_is_opaque() {
    check(&[
        (
            "TLS",
            vec![
                step(C, b"\x16\x03\x01", "NotHttp 1 1/0"),
                step(S, b"\x16\x03\x03", "NotHttp 0 1/0"),
                step(C, b"\x17", "NotHttp 1 1/0"),
                step(C, GET, "NotHttp 1 1/0"),
            ],
        ),
        (
            "a server that speaks first",
            vec![step(S, "220 mail.example ESMTP\r\n", "BadFrame 0 0/0"), step(C, "EHLO x\r\n", "BadFrame 1 0/0")],
        ),
        (
            "a response to nothing",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(S, OK0, "h1 0 1/1"),
                step(S, "HTTP/1.1 408 Request Timeout\r\n\r\n", "Unsolicited 0 last 1/1"),
            ],
        ),
        (
            "bytes behind a response",
            vec![step(C, GET, "h1 1 1/0"), step(S, format!("{OK5}hello!"), "Unsolicited 0 last 1/1")],
        ),
        (
            "a response before its request's head is there",
            vec![
                step(C, "GET / HT", "h1 1 1/0"),
                step(S, "H", "Unsolicited 0 last 1/0"),
                step(C, "TP/1.1\r\n\r\n", "Unsolicited 1 last 1/0"),
            ],
        ),
        ("a line of words", request("SET key value\r\n", "NotHttp 1 1/0")),
        ("a word and a line end", request("PING\r\n", "NotHttp 1 1/0")),
        ("a method of 32 characters", request("abcdefghijklmnopqrstuvwxyzabcdef / HTTP/1.1\r\n\r\n", "NotHttp 1 1/0")),
        ("a method of 31 characters", request("abcdefghijklmnopqrstuvwxyzabcde / HTTP/1.1\r\n\r\n", "h1 1 1/0")),
        ("a word of 32 characters", request("abcdefghijklmnopqrstuvwxyzabcdef", "NotHttp 1 1/0")),
        ("a version of the future", request("GET / HTTP/3.0\r\n", "NotHttp 1 1/0")),
        ("HTTP/0.9", request("GET /\r\n", "NotHttp 1 1/0")),
        ("half the HTTP/2 preface", request("PRI * HTTP/2.0\r\n\r\nXX", "NotHttp 1 1/0")),
        ("an answer that isn't HTTP", response("ICY 200 OK\r\n", "NotHttp 0 1/0")),
        ("an answer that ends at once", response("HTTP\r\n", "NotHttp 0 1/0")),
        ("an answer of another version", response("HTTP/2 200\r\n", "NotHttp 0 1/0")),
        (
            "a second request that isn't one",
            vec![
                step(C, GET, "h1 1 1/0"),
                step(S, OK0, "h1 0 1/1"),
                step(C, b"\x00", "NotHttp 1 2/1"),
                step(S, b"\x00", "NotHttp 0 2/1"),
            ],
        ),
        (
            "the end of an opaque direction",
            vec![
                step(C, b"\x16", "NotHttp 1 1/0"),
                step(ClientEof, "", "NotHttp 1 last 1/0"),
                step(S, b"\x16", "NotHttp 0 last 1/0"),
                step(ServerEof, "", "NotHttp 0 last 1/0"),
            ],
        ),
    ]);
}

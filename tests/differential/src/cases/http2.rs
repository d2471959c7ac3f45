//! HTTP/2 on one side or on both, and gRPC.

use crate::{
    case::Case,
    far_end::Kind,
    script::{
        Do::{
            self, Await, Data, End, ExpectClose, ExpectData, ExpectEnd, ExpectHead, ExpectReset, Fin, GoAway,
            GoAwayNow, Ping, ResetStream, Rst, Signal, Trailers,
        },
        Framing::{Chunked, Length, Nothing},
    },
    setup::Setup::Http2,
};

const MEGABYTES: usize = 2_000_000;
const CANCEL: u32 = 8;
const REFUSED_STREAM: u32 = 7;
const INTERNAL_ERROR: u32 = 2;

fn get() -> Vec<Do> {
    vec![Do::request("GET", Nothing), End, ExpectEnd]
}

fn ok() -> Vec<Do> {
    vec![ExpectEnd, Do::status(200, Length(2)), Data(2), End]
}

/// HTTP/2 on both sides.
fn both(name: &str, about: &str, client: Vec<Do>, far_end: Vec<Do>) -> Case {
    Case::new(name, about, client, far_end).setup(Http2).http2_client()
}

/// HTTP/2 behind Envoy alone.
fn behind(name: &str, about: &str, client: Vec<Do>, far_end: Vec<Do>) -> Case {
    Case::new(name, about, client, far_end).setup(Http2)
}

/// HTTP/2 in front of Envoy alone.
fn before(name: &str, about: &str, client: Vec<Do>, far_end: Vec<Do>) -> Case {
    Case::new(name, about, client, far_end).http2_client()
}

/// The rows.
pub(super) fn all() -> Vec<Case> {
    [messages(), resets(), ends(), grpc()].into_iter().flatten().collect()
}

fn messages() -> Vec<Case> {
    vec![
        both("h2-get", "HTTP/2 on both sides", get(), ok()),
        before("h2-to-http1", "an HTTP/2 client, an HTTP/1.1 far end", get(), ok()),
        behind("http1-to-h2", "an HTTP/1.1 client, an HTTP/2 far end", get(), ok()),
        both("h2-body-2mb-down", "2 MB", get(), vec![Do::status(200, Chunked), Data(MEGABYTES), End]),
        both(
            "h2-body-2mb-up",
            "2 MB towards the far end",
            vec![Do::request("POST", Length(MEGABYTES)), Data(MEGABYTES), End, ExpectEnd],
            ok(),
        ),
        both(
            "h2-piece-by-piece",
            "each piece is sent when the one before has come",
            vec![
                Do::request("POST", Chunked),
                Data(1),
                Await("1"),
                Data(1),
                End,
                ExpectData(1),
                Signal("2"),
                ExpectEnd,
            ],
            vec![ExpectData(1), Signal("1"), ExpectEnd, Do::status(200, Chunked), Data(1), Await("2"), Data(1), End],
        ),
        both(
            "h2-trailers",
            "trailers both ways",
            vec![Do::request("POST", Chunked).with("te", "trailers"), Data(10), Trailers(&[("x-up", "1")]), ExpectEnd],
            vec![ExpectEnd, Do::status(200, Chunked), Data(10), Trailers(&[("x-down", "2")])],
        ),
        both(
            "h2-early-hints",
            "103 before the answer",
            get(),
            vec![ExpectEnd, Do::status(103, Nothing).with("link", "</a>"), Do::status(200, Length(2)), Data(2), End],
        ),
        both(
            "h2-head",
            "HEAD",
            vec![Do::request("HEAD", Nothing), End, ExpectEnd],
            vec![ExpectEnd, Do::status(200, Length(5000)), End],
        ),
        both("h2-streams", "twenty streams beside each other", vec![], ok()).streams((0..20).map(|_| get()).collect()),
        both("h2-streams-held", "twenty streams, answered when the last has come", vec![], vec![])
            .streams(held(get()))
            .far_end(Kind::Script((0..20).map(|at| vec![held_answer(at)]).collect())),
        before(
            "h2-streams-to-http1",
            "twenty streams to an HTTP/1.1 far end, answered when the last has come",
            vec![],
            vec![],
        )
        .streams(held(get()))
        .far_end(Kind::Script((0..20).map(|at| vec![held_answer(at)]).collect())),
        both(
            "h2-headers",
            "repeated headers, cookies apart",
            vec![
                Do::request("GET", Nothing)
                    .with("cookie", "a=1")
                    .with("cookie", "b=2")
                    .with("x-a", "1")
                    .with("x-a", "2"),
                End,
                ExpectEnd,
            ],
            vec![ExpectEnd, Do::status(200, Length(0)).with("set-cookie", "a=1").with("set-cookie", "b=2"), End],
        ),
    ]
}

fn held(stream: Vec<Do>) -> Vec<Vec<Do>> {
    (0..20).map(|_| stream.clone()).collect()
}

const HERE: [&str; 20] =
    ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19"];

fn held_answer(at: usize) -> Vec<Do> {
    let mut steps = vec![ExpectEnd, Signal(HERE[at])];
    steps.extend(HERE.map(Await));
    steps.extend([Do::status(200, Length(2)), Data(2), End]);
    steps
}

fn resets() -> Vec<Case> {
    vec![
        both(
            "h2-cancel-before-answer",
            "RST_STREAM by the client while it waits",
            vec![Do::request("GET", Nothing), Await("here"), ResetStream(CANCEL)],
            vec![Signal("here"), ExpectEnd],
        ),
        both(
            "h2-cancel-of-whole-request",
            "the same behind a whole request",
            vec![Do::request("GET", Nothing), End, Await("here"), ResetStream(CANCEL)],
            vec![Signal("here"), ExpectReset],
        ),
        both(
            "h2-cancel-in-answer",
            "RST_STREAM by the client in the answer",
            vec![Do::request("POST", Chunked), ExpectData(10), ResetStream(CANCEL)],
            vec![Do::status(200, Chunked), Data(10), ExpectEnd],
        ),
        before(
            "h2-cancel-to-http1",
            "the same before an HTTP/1.1 far end, which sees its connection close",
            vec![Do::request("GET", Nothing), Await("here"), ResetStream(CANCEL)],
            vec![Signal("here"), ExpectClose],
        ),
        both("h2-refused", "REFUSED_STREAM in place of an answer", get(), vec![ExpectEnd, ResetStream(REFUSED_STREAM)]),
        both(
            "h2-reset-before-answer",
            "RST_STREAM in place of an answer",
            get(),
            vec![ExpectEnd, ResetStream(INTERNAL_ERROR)],
        ),
        both(
            "h2-reset-in-answer",
            "RST_STREAM in the answer",
            vec![Do::request("GET", Nothing), End, ExpectData(10), Signal("got"), ExpectEnd],
            vec![ExpectEnd, Do::status(200, Chunked), Data(10), Await("got"), ResetStream(INTERNAL_ERROR)],
        ),
        behind(
            "http1-reset-in-answer",
            "the same before an HTTP/1.1 client",
            vec![Do::request("GET", Nothing), ExpectData(10), Signal("got"), ExpectEnd],
            vec![ExpectEnd, Do::status(200, Chunked), Data(10), Await("got"), ResetStream(INTERNAL_ERROR)],
        ),
        both(
            "h2-early-answer",
            "a whole answer while the body is still coming",
            vec![Do::request("POST", Chunked), Data(10), ExpectEnd],
            vec![ExpectData(10), Do::status(413, Length(2)), Data(2), End],
        ),
        both("h2-client-gone", "a client whose connection closes with two streams open", vec![], vec![])
            .streams(vec![
                vec![Do::request("GET", Nothing), End, Await("0"), Await("1"), Rst],
                vec![Do::request("GET", Nothing), End, Await("0"), Await("1")],
            ])
            .far_end(Kind::Script(vec![vec![vec![Signal("0"), ExpectReset]], vec![vec![Signal("1"), ExpectReset]]])),
    ]
}

fn ends() -> Vec<Case> {
    let one_then_other = || {
        vec![
            vec![Do::request("GET", Nothing), End, ExpectEnd, Signal("first")],
            vec![Await("first"), Do::request("GET", Nothing), End, ExpectEnd],
        ]
    };
    vec![
        both("h2-goaway-behind-answer", "GOAWAY behind the answer, and another request", vec![], vec![])
            .streams(one_then_other())
            .far_end(Kind::Script(vec![
                vec![vec![ExpectEnd, GoAway, Do::status(200, Length(2)), Data(2), End]],
                vec![ok()],
            ])),
        both(
            "h2-goaway-in-answer",
            "GOAWAY in the answer, which is finished",
            vec![Do::request("GET", Nothing), End, ExpectData(10), Signal("got"), ExpectEnd],
            vec![ExpectEnd, Do::status(200, Chunked), Data(10), GoAway, Await("got"), Data(10), End],
        ),
        both(
            "h2-goaway-now",
            "GOAWAY with an error in the answer",
            vec![Do::request("GET", Nothing), End, ExpectData(10), Signal("got"), ExpectEnd],
            vec![ExpectEnd, Do::status(200, Chunked), Data(10), Await("got"), GoAwayNow, ExpectClose],
        ),
        both(
            "h2-fin-in-answer",
            "FIN in the answer",
            vec![Do::request("GET", Nothing), End, ExpectData(10), Signal("got"), ExpectEnd],
            vec![ExpectEnd, Do::status(200, Chunked), Data(10), Await("got"), Fin],
        ),
        both("h2-rst-before-answer", "RST in place of an answer", get(), vec![ExpectEnd, Rst]),
        both(
            "h2-ping-in-answer",
            "PING in the answer, which goes on when it has been answered",
            get(),
            vec![ExpectEnd, Do::status(200, Chunked), Data(10), Ping, Data(10), End],
        ),
        both("h2-ping-between", "PING between two requests", vec![], vec![])
            .streams(vec![
                vec![Do::request("GET", Nothing), End, ExpectEnd, Await("pong"), Signal("first")],
                vec![Await("first"), Do::request("GET", Nothing), End, ExpectEnd],
            ])
            .far_end(Kind::Script(vec![
                vec![vec![ExpectEnd, Do::status(200, Length(2)), Data(2), End, Ping, Signal("pong")]],
                vec![ok()],
            ])),
    ]
}

fn grpc() -> Vec<Case> {
    let call = || Do::request("POST", Chunked).with("content-type", "application/grpc").with("te", "trailers");
    let answer = || Do::status(200, Chunked).with("content-type", "application/grpc");
    vec![
        both(
            "grpc-unary",
            "a call and its answer",
            vec![call(), Data(20), End, ExpectEnd],
            vec![ExpectEnd, answer(), Data(30), Trailers(&[("grpc-status", "0")])],
        ),
        both(
            "grpc-trailers-only",
            "a status without a message",
            vec![call(), Data(20), End, ExpectEnd],
            vec![ExpectEnd, answer().with("grpc-status", "5").with("grpc-message", "not found"), End],
        ),
        both(
            "grpc-bidirectional",
            "message by message, both ways",
            vec![call(), Data(5), ExpectHead, ExpectData(7), Data(5), ExpectData(14), End, ExpectEnd],
            vec![
                answer(),
                ExpectData(5),
                Data(7),
                ExpectData(10),
                Data(7),
                ExpectEnd,
                Trailers(&[("grpc-status", "0")]),
            ],
        ),
        both(
            "grpc-deadline",
            "a client that cancels a stream of messages",
            vec![call(), Data(5), ExpectData(14), ResetStream(CANCEL)],
            vec![ExpectData(5), answer(), Data(7), Data(7), ExpectEnd],
        ),
        both(
            "grpc-broken",
            "a far end that resets between messages",
            vec![call(), Data(5), ExpectData(7), Signal("got"), ExpectEnd],
            vec![ExpectData(5), answer(), Data(7), Await("got"), ResetStream(INTERNAL_ERROR)],
        ),
        both(
            "grpc-no-answer",
            "a far end whose connection breaks before a message",
            vec![call(), Data(5), ExpectEnd],
            vec![ExpectData(5), Rst],
        ),
    ]
}

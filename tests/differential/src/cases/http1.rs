//! HTTP/1.1 on both sides.

use crate::{
    case::Case,
    far_end::Kind,
    script::{
        Do::{
            self, Await, Data, End, ExpectClose, ExpectData, ExpectEnd, ExpectHead, Fin, HalfClose, Rst, Signal,
            Slowly, Trailers,
        },
        Framing::{Chunked, Length, Nothing},
    },
    setup::Setup::{Lenient, Retries},
};

const MEGABYTES: usize = 2_000_000;

fn get() -> Vec<Do> {
    vec![Do::request("GET", Nothing), ExpectEnd]
}

fn ok() -> Vec<Do> {
    vec![ExpectEnd, Do::status(200, Length(2)), Data(2)]
}

/// The rows.
pub(super) fn all() -> Vec<Case> {
    [bodies(), statuses(), old_and_odd(), aborts(), ends(), connections()].into_iter().flatten().collect()
}

fn bodies() -> Vec<Case> {
    vec![
        Case::new("get", "a small answer", get(), ok()),
        Case::new("body-none", "an empty answer", get(), vec![Do::status(200, Length(0))]),
        Case::new(
            "body-2mb-down",
            "2 MB with a length",
            get(),
            vec![Do::status(200, Length(MEGABYTES)), Data(MEGABYTES)],
        ),
        Case::new(
            "body-2mb-down-chunked",
            "2 MB in chunks",
            get(),
            vec![Do::status(200, Chunked), Data(MEGABYTES / 2), Data(1), Data(MEGABYTES / 2), End],
        ),
        Case::new(
            "body-2mb-up",
            "2 MB with a length towards the far end",
            vec![Do::request("POST", Length(MEGABYTES)), Data(MEGABYTES), ExpectEnd],
            ok(),
        ),
        Case::new(
            "body-2mb-up-chunked",
            "2 MB in chunks towards the far end",
            vec![Do::request("POST", Chunked), Data(MEGABYTES / 2), Data(1), Data(MEGABYTES / 2), End, ExpectEnd],
            ok(),
        ),
        Case::new(
            "body-both-ways",
            "1 MB comes back while 1 MB goes up",
            vec![Do::request("POST", Chunked), Data(1000), ExpectHead, Data(1_000_000), End, ExpectEnd],
            vec![Do::status(200, Chunked), ExpectData(1000), Data(1_000_000), ExpectEnd, End],
        ),
        Case::new(
            "body-to-the-end",
            "an answer that ends with its connection",
            get(),
            vec![Do::status(200, Nothing), Data(100_000), Fin],
        ),
        Case::new(
            "slow-reader",
            "a client that reads 1,000 bytes at a time",
            vec![Slowly(1000), Do::request("GET", Nothing), ExpectEnd],
            vec![Do::status(200, Length(300_000)), Data(300_000)],
        ),
        Case::new(
            "slow-far-end",
            "a far end that reads 1,000 bytes at a time",
            vec![Do::request("POST", Length(300_000)), Data(300_000), ExpectEnd],
            vec![Slowly(1000), ExpectEnd, Do::status(200, Length(2)), Data(2)],
        ),
        Case::new(
            "piece-by-piece",
            "each piece is sent when the one before has come",
            vec![Do::request("GET", Nothing), ExpectData(1), Signal("1"), ExpectData(2), Signal("2"), ExpectEnd],
            vec![Do::status(200, Length(3)), Data(1), Await("1"), Data(1), Await("2"), Data(1)],
        ),
        Case::new(
            "piece-by-piece-up",
            "the same towards the far end",
            vec![Do::request("POST", Length(3)), Data(1), Await("1"), Data(1), Await("2"), Data(1), ExpectEnd],
            vec![ExpectData(1), Signal("1"), ExpectData(2), Signal("2"), ExpectEnd, Do::status(200, Length(0))],
        ),
    ]
}

fn statuses() -> Vec<Case> {
    vec![
        Case::new("status-204", "no content", get(), vec![Do::status(204, Nothing)]),
        Case::new(
            "status-304",
            "not modified, with the length of what is not sent",
            get(),
            vec![Do::status(304, Nothing).with("content-length", "5")],
        ),
        Case::new("status-503", "the far end's own 503", get(), vec![Do::status(503, Length(4)), Data(4)]),
        Case::new(
            "head",
            "HEAD, with the length of what is not sent",
            vec![Do::request("HEAD", Nothing), ExpectEnd],
            vec![Do::status(200, Length(5000))],
        ),
        Case::new(
            "early-hints",
            "103 before the answer",
            get(),
            vec![
                Do::status(103, Nothing).with("link", "</style.css>; rel=preload"),
                Do::status(200, Length(2)),
                Data(2),
            ],
        ),
        Case::new(
            "processing",
            "102 twice before the answer",
            get(),
            vec![Do::status(102, Nothing), Do::status(102, Nothing), Do::status(200, Length(2)), Data(2)],
        ),
        Case::new(
            "expect",
            "Expect: 100-continue, answered by Envoy",
            vec![Do::request("POST", Length(5)).with("expect", "100-continue"), ExpectHead, Data(5), ExpectEnd],
            ok(),
        ),
        Case::new(
            "expect-far-end",
            "Expect: 100-continue, answered by the far end",
            vec![Do::request("POST", Length(5)).with("expect", "100-continue"), ExpectHead, Data(5), ExpectEnd],
            vec![Do::status(100, Nothing), ExpectEnd, Do::status(200, Length(2)), Data(2)],
        )
        .setup(Lenient),
        Case::new(
            "expect-refused",
            "Expect: 100-continue, refused by the far end",
            vec![Do::request("POST", Length(5)).with("expect", "100-continue"), ExpectEnd],
            vec![Do::status(417, Length(0))],
        )
        .setup(Lenient),
        Case::new(
            "trailers-down",
            "trailers behind the answer",
            vec![Do::request("GET", Nothing).with("te", "trailers"), ExpectEnd],
            vec![Do::status(200, Chunked), Data(10), Trailers(&[("x-sum", "1"), ("x-more", "2")])],
        )
        .setup(Lenient),
        Case::new(
            "trailers-up",
            "trailers behind the request",
            vec![Do::request("POST", Chunked), Data(10), Trailers(&[("x-sum", "1"), ("x-more", "2")]), ExpectEnd],
            ok(),
        )
        .setup(Lenient),
        Case::new(
            "headers-many",
            "repeated and odd headers both ways",
            vec![
                Do::request("GET", Nothing)
                    .with("x-a", "1")
                    .with("x-a", "2")
                    .with("cookie", "a=b")
                    .with("x-empty", "")
                    .with("x_under", "3"),
                ExpectEnd,
            ],
            vec![
                Do::status(200, Length(0))
                    .with("set-cookie", "a=1")
                    .with("set-cookie", "b=2")
                    .with("x-empty", "")
                    .with("vary", "*"),
            ],
        ),
        Case::new(
            "lane-header",
            "a client that sends our header",
            vec![Do::request("GET", Nothing).with("x-idleguard-lane", "payments=4s"), ExpectEnd],
            ok(),
        )
        .taken_out(&["x-idleguard-lane"]),
        Case::new(
            "forged-address",
            "a client that makes up its address",
            vec![Do::request("GET", Nothing).with("x-forwarded-for", "127.0.0.1"), ExpectEnd],
            ok(),
        ),
    ]
}

fn old_and_odd() -> Vec<Case> {
    vec![
        Case::new("http10", "HTTP/1.0", vec![Do::raw("GET /0 HTTP/1.0\r\n\r\n"), ExpectClose], ok()).setup(Lenient),
        Case::new(
            "http10-keep-alive",
            "HTTP/1.0 with keep-alive",
            vec![Do::raw("GET /0 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), ExpectEnd],
            ok(),
        )
        .setup(Lenient),
        Case::new(
            "http10-far-end",
            "an HTTP/1.0 answer to its end",
            get(),
            vec![Do::raw("HTTP/1.0 200 OK\r\n\r\n0123456789"), Fin],
        ),
        Case::new(
            "http10-far-end-chunked",
            "HTTP/1.0 with chunks and keep-alive",
            get(),
            vec![Do::raw(
                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n",
            )],
        ),
        Case::new(
            "version-12",
            "an answer of version 1.2",
            get(),
            vec![Do::raw("HTTP/1.2 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n")],
        ),
        Case::new(
            "status-line-blanks",
            "two blanks in the status line",
            get(),
            vec![Do::raw(
                "HTTP/1.1  200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n",
            )],
        ),
        Case::new(
            "chunk-size-18-digits",
            "a chunk size with 18 digits",
            get(),
            vec![Do::raw(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n000000000000000005\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n",
            )],
        ),
        Case::new("no-http", "an answer that is no HTTP", get(), vec![Do::raw("SSH-2.0-OpenSSH\r\n"), ExpectClose]),
        Case::new("bad-request", "a request that is no HTTP", vec![Do::raw("nonsense\r\n\r\n"), ExpectClose], ok()),
        Case::new(
            "pipelined",
            "three requests at once",
            vec![
                Do::raw("GET /0 HTTP/1.1\r\nhost: a\r\n\r\n"),
                Do::raw("HEAD /1 HTTP/1.1\r\nhost: a\r\n\r\n"),
                Do::raw("POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"),
                ExpectEnd,
                ExpectEnd,
                ExpectEnd,
            ],
            ok(),
        ),
    ]
}

fn aborts() -> Vec<Case> {
    let gone = || vec![Signal("here"), ExpectClose];
    vec![
        Case::new(
            "client-fin-before-answer",
            "a client that closes while it waits",
            vec![Do::request("GET", Nothing), Await("here"), Fin],
            gone(),
        ),
        Case::new(
            "client-rst-before-answer",
            "a client that resets while it waits",
            vec![Do::request("GET", Nothing), Await("here"), Rst],
            gone(),
        ),
        Case::new(
            "client-half-close",
            "a client that half-closes behind its request",
            vec![Do::request("GET", Nothing), HalfClose, ExpectEnd],
            ok(),
        ),
        Case::new(
            "client-fin-in-body",
            "a client that closes in its body",
            vec![Do::request("POST", Length(1000)), Data(500), Await("here"), Fin],
            vec![ExpectData(500), Signal("here"), ExpectClose],
        ),
        Case::new(
            "client-rst-in-answer",
            "a client that resets in the answer",
            vec![Do::request("GET", Nothing), ExpectData(10), Rst],
            vec![Do::status(200, Length(1000)), Data(10), ExpectClose],
        ),
        Case::new(
            "client-fin-in-answer",
            "a client that closes in the answer",
            vec![Do::request("GET", Nothing), ExpectData(10), Fin],
            vec![Do::status(200, Length(1000)), Data(10), ExpectClose],
        ),
    ]
}

fn ends() -> Vec<Case> {
    vec![
        Case::new(
            "rst-behind-answer",
            "a complete answer, and RST right behind it",
            vec![Do::request("POST", Length(0)), ExpectEnd],
            vec![Do::status(200, Length(2)).with("connection", "close"), Data(2), Rst],
        ),
        Case::new(
            "fin-behind-answer",
            "a complete answer, and FIN right behind it",
            get(),
            vec![Do::status(200, Length(2)), Data(2), Fin],
        ),
        Case::new(
            "connection-close",
            "Connection: close; the far end waits to see how Envoy closes",
            get(),
            vec![Do::status(200, Length(2)).with("connection", "close"), Data(2), ExpectClose],
        ),
        Case::new("fin-before-answer", "FIN in place of an answer", get(), vec![Fin]),
        Case::new("rst-before-answer", "RST in place of an answer", get(), vec![Rst]),
        Case::new("fin-in-head", "FIN in the head", get(), vec![Do::raw("HTTP/1.1 200 OK\r\ncontent-le"), Fin]),
        Case::new("rst-in-head", "RST in the head", get(), vec![Do::raw("HTTP/1.1 200 OK\r\ncontent-le"), Rst]),
        Case::new(
            "fin-in-answer",
            "FIN in the answer",
            vec![Do::request("GET", Nothing), ExpectData(10), Signal("got"), ExpectEnd],
            vec![Do::status(200, Length(1000)), Data(10), Await("got"), Fin],
        ),
        Case::new(
            "rst-in-answer",
            "RST in the answer",
            vec![Do::request("GET", Nothing), ExpectData(10), Signal("got"), ExpectEnd],
            vec![Do::status(200, Length(1000)), Data(10), Await("got"), Rst],
        ),
        Case::new(
            "fin-in-chunks",
            "FIN between chunks",
            vec![Do::request("GET", Nothing), ExpectData(10), Signal("got"), ExpectEnd],
            vec![Do::status(200, Chunked), Data(10), Await("got"), Fin],
        ),
        Case::new(
            "half-close-behind-answer",
            "the far end half-closes",
            get(),
            vec![Do::status(200, Length(2)), Data(2), HalfClose, ExpectClose],
        ),
        Case::new(
            "early-answer",
            "413 while the body is still coming",
            vec![Do::request("POST", Length(100)), Data(10), ExpectEnd],
            vec![ExpectData(10), Do::status(413, Length(2)), Data(2), ExpectClose],
        ),
        Case::new(
            "early-answer-rst",
            "413 and RST while the body is still coming",
            vec![Do::request("POST", Length(100)), Data(10), ExpectEnd],
            vec![ExpectData(10), Do::status(413, Length(2)).with("connection", "close"), Data(2), Rst],
        ),
        Case::new("fin-on-accept", "a far end that closes each connection", get(), vec![])
            .far_end(Kind::OnAccept(vec![Fin], vec![vec![ok()]])),
        Case::new("unasked-408", "408 that nobody asked for, and FIN", get(), vec![]).far_end(Kind::OnAccept(
            vec![Do::raw("HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"), Fin],
            vec![vec![ok()]],
        )),
    ]
}

fn connections() -> Vec<Case> {
    vec![
        Case::new(
            "odd-then-pauses",
            "an odd answer, and on the same connection one that pauses for a second",
            vec![],
            vec![],
        )
        .streams(vec![get(), get()])
        .far_end(Kind::Script(vec![
            vec![vec![
                ExpectEnd,
                Do::raw(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n000000000000000005\r\n01234\r\n0\r\n\r\n",
                ),
            ]],
            vec![vec![
                ExpectEnd,
                Do::status(200, Length(2)),
                Data(1),
                Do::Pause(std::time::Duration::from_secs(1)),
                Data(1),
            ]],
        ])),
        Case::new("ten-in-a-row", "ten requests on one connection", vec![], ok())
            .streams((0..10).map(|_| get()).collect()),
        Case::new("retry-503", "a far end whose second attempt is good", get(), vec![])
            .far_end(Kind::Script(vec![vec![vec![Do::status(503, Length(0))], ok()]]))
            .setup(Retries),
        Case::new(
            "retry-rst",
            "RST, RST, and a good third attempt",
            vec![Do::request("POST", Length(5)), Data(5), ExpectEnd],
            vec![],
        )
        .far_end(Kind::Script(vec![vec![vec![ExpectEnd, Rst], vec![ExpectEnd, Rst], ok()]]))
        .setup(Retries),
        Case::new("retry-in-vain", "503 for ever", get(), vec![Do::status(503, Length(0))]).setup(Retries),
    ]
}

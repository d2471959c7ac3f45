//! Drivers: they take a script's steps in a protocol, and write down what comes.

pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod wire;

/// A protocol that a side speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, without TLS, by prior knowledge.
    Http2,
}

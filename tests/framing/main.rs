//! The framing from outside: tables of message sequences, the host calls it makes, and real libraries as the truth.

#![allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation, clippy::indexing_slicing)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fetches;
mod http1;
mod http2;
mod libraries;
mod limits;
mod replay;

//! The framing from outside: tables of message sequences, the host calls it makes, and real libraries as the truth.

#![allow(
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "in a test a panic is the verdict"
)]

mod fetches;
mod http1;
mod http2;
mod libraries;
mod limits;
mod replay;

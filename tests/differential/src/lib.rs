//! One far end and one client, with plain Envoy and with idleguard between them: is idleguard ever worse than plain?
//!
//! | to add | do |
//! | --- | --- |
//! | a row | a [`case::Case`] in the fitting file under `cases/`; its name goes into `docs/differential.md` by `make differential-docs` |
//! | something that a client or a far end does | a step in [`script::Do`], and its place in `drive/http1.rs` and `drive/http2.rs` |
//! | a far end | a variant of [`far_end::Kind`] |
//! | a way in which Envoy is configured | a variant of [`setup::Setup`] |
//! | an event | a function in `events/`, its row in [`events::all`], and a fault that it finds in [`breaks::in_events`] |
//!
//! Every case runs through plain Envoy, through idleguard with the base in force, and through idleguard with a lane in force. Both
//! sides write down what they see ([`record`]); [`verdict`] compares. Nothing depends on the machine's speed: client and
//! far end wait for each other's words, never for a time.

pub mod breaks;
pub mod case;
pub mod cases;
pub mod docs;
mod drive;
pub mod events;
pub mod far_end;
pub mod middle;
pub mod passage;
pub mod random;
pub mod real;
pub mod record;
pub mod script;
pub mod setup;
pub mod stage;
pub mod suite;
pub mod verdict;

pub use drive::Protocol;

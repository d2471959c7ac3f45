//! How long is idle too long, and which lane follows?

pub mod policy;

pub use policy::{Lane, LbIdleTimeout, Margin, Policy};

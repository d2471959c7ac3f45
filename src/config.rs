//! The plugin configuration: JSON in, [`Config`](self) or a [`ConfigError`] out.

pub mod section;

pub use section::{ConfigError, Section};

//! Who the client is, and which headers the application gets.

use crate::config::{ConfigError, Section};

/// Placeholder until the branch lands.
#[derive(Debug)]
pub struct ClientIp;

impl ClientIp {
    /// Placeholder.
    ///
    /// # Errors
    /// If a key is unknown.
    pub fn from_section(section: Section) -> Result<(Self, Vec<String>), ConfigError> {
        section.into_entries();
        Ok((Self, Vec::new()))
    }
}

//! What users' requests tell about the far end's idle timeout.

use std::time::Duration;

use crate::time::Timestamp;

/// Idle ages below this tell nothing: a connection that was in use a moment ago and ends is a restart, a crash or chance.
pub const SHORTEST_AGE: Duration = Duration::from_millis(500);

/// One request on a connection that had been idle for at least [`SHORTEST_AGE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// When the request was handed to the router. Answers and failures come later, a failure of a silent far end much later, so this
    /// is what orders evidence in time.
    pub sent: Timestamp,
    /// From the end of the last exchange on the connection until then; never longer than it was.
    pub idle_age: Duration,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a request on a reused connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The far end answered: its timeout is longer than the idle age.
    Answered,
    /// The connection broke, or nothing came in time, before the first byte of an answer.
    Failed {
        /// Names the connection (two failures on one connection are one).
        connection: u64,
    },
}

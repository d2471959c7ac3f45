//! What the load balancer does to idle connections.

use std::time::Duration;

/// What happens to a connection whose idle age reaches the timeout. It can be changed at any time.
///
/// The idle age starts at accept and again at each byte that passes, in either direction, while no exchange is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Idle connections stay for ever.
    #[default]
    Stable,
    /// A FIN at this idle age. What arrives later is answered by RST, as by any closed socket.
    FinAt(Duration),
    /// An RST at this idle age.
    RstAt(Duration),
    /// Forgotten without a word at this idle age; the next packet is answered by RST.
    SilentRst(Duration),
    /// From this idle age on everything is read and thrown away: no answer, no close.
    SilentSwallow(Duration),
    /// A 408 that nobody asked for, and a FIN behind it, at this idle age. On HTTP/1.1 without TLS.
    AnnounceAt(Duration),
    /// A FIN when the connection is this old, whether it is idle or not.
    AgeAt(Duration),
}

impl Mode {
    /// The idle age at which connections are dropped; none if they never are.
    pub fn timeout(self) -> Option<Duration> {
        match self {
            Self::Stable | Self::AgeAt(_) => None,
            Self::FinAt(timeout)
            | Self::RstAt(timeout)
            | Self::SilentRst(timeout)
            | Self::SilentSwallow(timeout)
            | Self::AnnounceAt(timeout) => Some(timeout),
        }
    }

    /// The same at another idle age. What was stable is silent now: a timeout alone does not say how.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        match self {
            Self::FinAt(_) => Self::FinAt(timeout),
            Self::RstAt(_) => Self::RstAt(timeout),
            Self::Stable | Self::SilentRst(_) => Self::SilentRst(timeout),
            Self::SilentSwallow(_) => Self::SilentSwallow(timeout),
            Self::AnnounceAt(_) => Self::AnnounceAt(timeout),
            Self::AgeAt(_) => Self::AgeAt(timeout),
        }
    }
}

//! The chunked coding (RFC 9112 §7.1), read a byte at a time where it matters and counted everywhere else.
//!
//! ```text
//! chunked-body = *( chunk-size [ chunk-ext ] CRLF chunk-data CRLF ) 1*("0") [ chunk-ext ] CRLF *( trailer CRLF ) CRLF
//! ```
//!
//! Strict, since a lenient guess would say that an exchange is over while its bytes still flow: at least one digit, at
//! most sixteen, every line ends with CRLF.

use super::{Bytes, OpaqueCause};

/// Beyond this a chunk extension is no longer followed.
const MAX_EXTENSION: u16 = 4096;
/// Beyond this the trailers are no longer followed; the same as for a head.
const MAX_TRAILERS: u32 = 65_536;

/// Where a chunked body stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunked {
    /// In the digits of a chunk line.
    Size { size: Bytes, digits: u8 },
    /// Between the digits and the CR; `named` once a semicolon came, before that only white space may follow.
    Extension { size: Bytes, seen: u16, named: bool },
    /// After the CR of a chunk line.
    SizeEnd { size: Bytes },
    /// In chunk data, which is counted.
    Data { remaining: Bytes },
    /// After chunk data.
    DataEnd,
    /// After chunk data and its CR.
    DataEndLf,
    /// At the start of a trailer line, or of the empty line that ends the body.
    TrailerStart { seen: u32 },
    /// In a trailer line.
    Trailer { seen: u32 },
    /// After the CR of a trailer line.
    TrailerLf { seen: u32 },
    /// After the CR of the empty line.
    EndLf,
}

impl Chunked {
    /// The start of a body.
    pub(super) const START: Self = Self::Size { size: Bytes(0), digits: 0 };

    /// Bytes ahead that need no look.
    pub(super) fn uninteresting(self) -> u64 {
        if let Self::Data { remaining } = self { remaining.0 } else { 0 }
    }

    /// Counts `count` of the uninteresting bytes.
    pub(super) fn skip(&mut self, count: u64) {
        if let Self::Data { remaining } = self {
            let remaining = Bytes(remaining.0.saturating_sub(count));
            *self = if remaining == Bytes(0) { Self::DataEnd } else { Self::Data { remaining } };
        }
    }

    /// Whether the next bytes are trailers.
    pub(super) fn in_trailers(self) -> bool {
        matches!(self, Self::TrailerStart { .. } | Self::Trailer { .. } | Self::TrailerLf { .. } | Self::EndLf)
    }

    /// Reads on, up to the next chunk data or the end of the body. Returns how many bytes were used, and whether the
    /// body is over.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(u64, bool), OpaqueCause> {
        let mut used = 0_u64;
        for &byte in bytes {
            if matches!(self, Self::Data { .. }) {
                break;
            }
            used = used.saturating_add(1);
            match self.after(byte).ok_or(OpaqueCause::BadChunk)? {
                Some(next) => *self = next,
                None => return Ok((used, true)),
            }
        }
        Ok((used, false))
    }

    /// The state after `byte`: `Some(None)` at the end of the body, `None` if the byte may not stand here.
    fn after(self, byte: u8) -> Option<Option<Self>> {
        Some(Some(match self {
            Self::Size { size, digits } => match (char::from(byte).to_digit(16), byte) {
                (Some(digit), _) if digits < 16 => {
                    Self::Size { size: Bytes((size.0 << 4) | u64::from(digit)), digits: digits.saturating_add(1) }
                }
                (None, b'\r') if digits > 0 => Self::SizeEnd { size },
                (None, b';') if digits > 0 => Self::Extension { size, seen: 1, named: true },
                (None, b' ' | b'\t') if digits > 0 => Self::Extension { size, seen: 1, named: false },
                _ => return None,
            },
            Self::Extension { size, .. } if byte == b'\r' => Self::SizeEnd { size },
            Self::Extension { size, seen, named } => {
                let allowed = match byte {
                    b' ' | b'\t' | b';' => true,
                    _ => named && !byte.is_ascii_control(),
                };
                if !allowed || seen >= MAX_EXTENSION {
                    return None;
                }
                Self::Extension { size, seen: seen.saturating_add(1), named: named || byte == b';' }
            }
            Self::SizeEnd { size: Bytes(0) } if byte == b'\n' => Self::TrailerStart { seen: 0 },
            Self::SizeEnd { size } if byte == b'\n' => Self::Data { remaining: size },
            Self::DataEnd if byte == b'\r' => Self::DataEndLf,
            Self::DataEndLf if byte == b'\n' => Self::START,
            Self::TrailerStart { .. } if byte == b'\r' => Self::EndLf,
            Self::Trailer { seen } if byte == b'\r' => Self::TrailerLf { seen },
            Self::TrailerStart { seen } | Self::Trailer { seen } if byte != b'\n' && seen < MAX_TRAILERS => {
                Self::Trailer { seen: seen.saturating_add(1) }
            }
            Self::TrailerLf { seen } if byte == b'\n' => Self::TrailerStart { seen },
            Self::EndLf if byte == b'\n' => return Some(None),
            _ => return None,
        }))
    }
}

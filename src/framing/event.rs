//! One data event, read through as few and as small windows as its framing needs.
//!
//! A window costs a host call and a copy, so what follows a head in the same window is looked at there, and what is
//! only counted is never fetched.

use super::OpaqueCause;

/// How much to fetch when bytes must be looked at.
#[derive(Clone, Copy)]
pub(super) struct Window {
    /// Fetched at once in a large event.
    pub(super) size: u64,
    /// If no more than this is left of the event, all of it is fetched: one copy is cheaper than a second host call.
    pub(super) whole: u64,
}

/// The bytes that one call of [`super::Framing::advance`] was given, and the place reached in them.
pub(super) struct Event<'host> {
    len: u64,
    offset: u64,
    window: Vec<u8>,
    window_at: u64,
    fetch: &'host mut dyn FnMut(u64, u64) -> Option<Vec<u8>>,
}

impl<'host> Event<'host> {
    pub(super) fn new(len: u64, fetch: &'host mut dyn FnMut(u64, u64) -> Option<Vec<u8>>) -> Self {
        Self { len, offset: 0, window: Vec::new(), window_at: 0, fetch }
    }

    /// Bytes not yet consumed.
    pub(super) fn left(&self) -> u64 {
        self.len.saturating_sub(self.offset)
    }

    /// The next bytes, at least one, without consuming them. To be called while bytes are left.
    pub(super) fn peek(&mut self, window: Window) -> Result<&[u8], OpaqueCause> {
        let ahead = usize::try_from(self.offset.saturating_sub(self.window_at)).unwrap_or(usize::MAX);
        if ahead < self.window.len() {
            return self.window.get(ahead..).ok_or(OpaqueCause::Refused);
        }
        let left = self.left();
        let wanted = if left <= window.whole { left } else { left.min(window.size) };
        let fetched = (self.fetch)(self.offset, wanted).filter(|bytes| !bytes.is_empty());
        self.window = fetched.ok_or(OpaqueCause::Refused)?;
        self.window.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        self.window_at = self.offset;
        Ok(&self.window)
    }

    /// Passes over `count` bytes, or to the end; what is not in the window yet is not fetched.
    pub(super) fn consume(&mut self, count: u64) {
        self.offset = self.offset.saturating_add(count).min(self.len);
    }
}

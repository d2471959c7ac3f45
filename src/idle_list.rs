//! A list of idle connections, the one that became idle last on top, threaded through the connections themselves: adding
//! and removing one is constant work, and costs no memory of its own.

use crate::connection::{Connection, ConnectionKey, Order};
use crate::slab::Slab;

const NONE: u32 = u32::MAX;

/// The neighbours of a connection in the list that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    newer: u32,
    older: u32,
}

impl Default for Links {
    fn default() -> Self {
        Self { newer: NONE, older: NONE }
    }
}

/// The ends of a list.
#[derive(Debug)]
pub struct IdleList {
    newest: u32,
    oldest: u32,
    len: usize,
}

impl Default for IdleList {
    fn default() -> Self {
        Self { newest: NONE, oldest: NONE, len: 0 }
    }
}

impl IdleList {
    /// How many are in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The one that has been idle for the longest time.
    pub fn oldest<'a>(&self, connections: &'a Slab<Connection>) -> Option<&'a Connection> {
        connections.get(self.oldest as usize)
    }

    /// Names the one that has been idle for the longest time.
    pub fn oldest_key(&self, connections: &Slab<Connection>) -> Option<ConnectionKey> {
        self.oldest(connections).map(|oldest| ConnectionKey { slot: self.oldest, context: oldest.context })
    }

    /// The one that became idle last.
    pub fn newest<'a>(&self, connections: &'a Slab<Connection>) -> Option<&'a Connection> {
        connections.get(self.newest as usize)
    }

    /// From the one that became idle last down to the oldest.
    pub fn from_newest<'a>(&self, connections: &'a Slab<Connection>) -> impl Iterator<Item = (u32, &'a Connection)> {
        let mut next = self.newest;
        std::iter::from_fn(move || {
            let connection = connections.get(next as usize)?;
            let slot = std::mem::replace(&mut next, connection.links.older);
            Some((slot, connection))
        })
    }

    /// Puts the connection in `slot` on top of this list, which is that of `order`. Does nothing if it is in a list.
    pub fn push(&mut self, connections: &mut Slab<Connection>, slot: u32, order: Order) {
        let Some(connection) = connections.get_mut(slot as usize) else { return };
        if connection.list.is_some() {
            return;
        }
        connection.list = Some(order);
        connection.links = Links { newer: NONE, older: self.newest };
        match connections.get_mut(self.newest as usize) {
            Some(below) => below.links.newer = slot,
            None => self.oldest = slot,
        }
        self.newest = slot;
        self.len = self.len.saturating_add(1);
    }

    /// Takes the connection in `slot`, which must be in this list or in none, out of it.
    pub fn remove(&mut self, connections: &mut Slab<Connection>, slot: u32) {
        let Some(connection) = connections.get_mut(slot as usize) else { return };
        if connection.list.take().is_none() {
            return;
        }
        let links = connection.links;
        match connections.get_mut(links.newer as usize) {
            Some(newer) => newer.links.older = links.older,
            None => self.newest = links.older,
        }
        match connections.get_mut(links.older as usize) {
            Some(older) => older.links.newer = links.newer,
            None => self.oldest = links.newer,
        }
        self.len = self.len.saturating_sub(1);
    }
}

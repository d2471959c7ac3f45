//! Bookkeeping: whatever changes a connection keeps what is counted of it true.

use super::Destination;
use crate::connection::{Connection, ConnectionKey, Generation, Order, Phase};
use crate::idle_list::IdleList;
use crate::time::Timestamp;

impl Destination {
    /// How many connections are remembered, closed ones that the pool may not have heard of included.
    pub fn tracked(&self) -> usize {
        self.connections.len()
    }

    /// Whether there is something for [`Tally::take`](crate::metrics::Tally::take) or [`take_gauges`](Self::take_gauges).
    pub fn has_counted(&self) -> bool {
        self.reported != (self.open, self.idle) || !self.tally.is_empty()
    }

    /// How much more connections are open, and how much more idle, since the last call: changes of two gauges.
    pub fn take_gauges(&mut self) -> (i64, i64) {
        let (open, idle) = std::mem::replace(&mut self.reported, (self.open, self.idle));
        (i64::from(self.open).saturating_sub(i64::from(open)), i64::from(self.idle).saturating_sub(i64::from(idle)))
    }

    pub(super) fn get(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        self.connections.get_mut(key.slot as usize).filter(|connection| connection.context == key.context)
    }

    /// The only way to change a connection's phase, order or fence, because counts depend on them.
    pub(super) fn update(&mut self, key: ConnectionKey, change: impl FnOnce(&mut Connection)) {
        let Some(connection) = self.get(key) else { return };
        let before = Counts::of(connection);
        change(connection);
        let (after, list, generation) = (Counts::of(connection), connection.list, connection.generation);
        for (count, before, after) in
            [(&mut self.idle, before.is_idle, after.is_idle), (&mut self.open, before.is_open, after.is_open)]
        {
            if before != after {
                *count = if after { count.saturating_add(1) } else { count.saturating_sub(1) };
            }
        }
        if before.in_flight != after.in_flight {
            self.flow.on_busy(before.in_flight, after.in_flight);
        }
        if (before.busy, before.unused) != (after.busy, after.unused)
            && let Some(pool) = self.fence.any_pool(generation)
        {
            pool.flow.on_busy(before.busy, after.busy);
            pool.unused = pool.unused.saturating_sub(before.unused).saturating_add(after.unused);
        }
        if let Some(list) = list.filter(|_| before.is_out_of_use != after.is_out_of_use) {
            self.count_out_of_use(list, generation, after.is_out_of_use);
        }
    }

    pub(super) fn count_out_of_use(&mut self, list: Order, generation: Generation, more: bool) {
        let count = match (list, self.fence.any_pool(generation)) {
            (Order::Stacked, Some(pool)) => &mut pool.out_of_use,
            (Order::Stacked, None) => return, // retired, and taken apart
            (Order::Loose, _) => &mut self.loose_out_of_use,
        };
        *count = if more { count.saturating_add(1) } else { count.saturating_sub(1) };
    }

    pub(super) fn unlink(&mut self, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        let Some(list) = connection.list else { return };
        let (is_out_of_use, generation) = (connection.is_out_of_use(), connection.generation);
        if is_out_of_use {
            self.count_out_of_use(list, generation, false);
        }
        let mut retired = IdleList::default();
        let list = match (list, self.fence.any_pool(generation)) {
            (Order::Stacked, Some(pool)) => &mut pool.stack,
            (Order::Stacked, None) => &mut retired,
            (Order::Loose, _) => &mut self.loose,
        };
        list.remove(&mut self.connections, key.slot);
    }

    pub(super) fn forget(&mut self, key: ConnectionKey) {
        self.unlink(key);
        self.update(key, |connection| connection.phase = Phase::Gone);
        self.remove(key);
    }

    pub(super) fn remove(&mut self, key: ConnectionKey) {
        if self.get(key).is_some() {
            self.timers.unset(&mut self.connections, key.slot);
            self.connections.try_remove(key.slot as usize);
        }
    }

    /// The limit was lowered: timers may be too late.
    pub(super) fn requeue_all(&mut self, now: Timestamp) {
        for slot in self.connections.indices() {
            let expires_at = self.connections.get(slot).and_then(|connection| connection.expires_at(self.limit));
            if let (Some(at), Ok(slot)) = (expires_at, u32::try_from(slot)) {
                self.timers.set(&mut self.connections, slot, at, now);
            }
        }
    }
}

/// What of a connection is counted.
struct Counts {
    is_idle: bool,
    is_open: bool,
    is_out_of_use: bool,
    in_flight: usize,
    /// Of its pool, if that is known.
    busy: usize,
    unused: usize,
}

impl Counts {
    fn of(connection: &Connection) -> Self {
        let in_flight = match connection.phase {
            Phase::Busy { in_flight, .. } => in_flight.get() as usize,
            _ => 0,
        };
        let (busy, unused) = match connection.order {
            Order::Stacked => (in_flight, usize::from(connection.phase == Phase::Unused)),
            Order::Loose => (0, 0),
        };
        Self {
            is_idle: connection.idle_since().is_some(),
            is_open: connection.phase != Phase::Gone,
            is_out_of_use: connection.is_out_of_use(),
            in_flight,
            busy,
            unused,
        }
    }
}

pub(super) fn key_of((slot, connection): (u32, &Connection)) -> ConnectionKey {
    ConnectionKey { slot, context: connection.context }
}

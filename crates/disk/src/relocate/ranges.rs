//! Who works on which range of a file: ranges that overlap are worked on one after another, in the order in which they were asked for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
pub(super) struct Ranges {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    /// In the order of their tickets: those that have their turn and those that wait.
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    start: u64,
    end: u64,
}

/// A range that nobody else works on until this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    ranges: &'a Ranges,
    ticket: u64,
}

impl Ranges {
    /// Waits until nobody who came before works on a part of the range.
    pub(super) fn enter(&self, start: u64, len: u64) -> Turn<'_> {
        let end = start.saturating_add(len);
        let mut queue = self.lock();
        let ticket = queue.next;
        queue.next += 1;
        queue.entries.push(Entry { ticket, start, end });
        let turn = Turn { ranges: self, ticket };
        while queue.is_behind(ticket, start, end) {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        turn
    }

    /// The whole file, and what may come behind its end.
    pub(super) fn enter_all(&self) -> Turn<'_> {
        self.enter(0, u64::MAX)
    }

    /// How many work or wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn is_behind(&self, ticket: u64, start: u64, end: u64) -> bool {
        let mut before = self.entries.iter().take_while(|entry| entry.ticket < ticket);
        before.any(|entry| entry.start < end && start < entry.end)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.ranges.lock().entries.retain(|entry| entry.ticket != self.ticket);
        self.ranges.changed.notify_all();
    }
}

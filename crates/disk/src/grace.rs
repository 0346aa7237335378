//! Waiting until every request that may still see the past has left, without holding new ones back.
//!
//! A request counts itself in one of two counters; whoever waits turns new requests to the other counter and waits for the first to
//! become zero, twice: a request that had read the number of the counter but not counted itself yet is met by the second turn.

use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst, fence},
    },
    time::Duration,
};

/// How often a waiting thread asks whether it should give up.
const ASK: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(crate) struct Grace {
    turn: AtomicUsize,
    inside: [AtomicU64; 2],
    /// One at a time.
    turns: Mutex<()>,
    waiting: AtomicBool,
    lock: Mutex<()>,
    left: Condvar,
}

/// A request that is inside.
#[derive(Debug)]
pub(crate) struct Inside<'a> {
    grace: &'a Grace,
    at: usize,
}

impl Grace {
    pub(crate) fn enter(&self) -> Inside<'_> {
        let at = self.turn.load(SeqCst) & 1;
        self.inside[at].fetch_add(1, SeqCst);
        // Pairs with the fence in `wait`: either that sees this request, or this request sees what was done before.
        fence(SeqCst);
        Inside { grace: self, at }
    }

    /// Waits until every request that is inside now has left. What was stored before the call is seen by all that
    /// enter from now on. False: `give_up` said so first.
    pub(crate) fn wait(&self, give_up: &dyn Fn() -> bool) -> bool {
        let _turn = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        fence(SeqCst);
        (0..2).all(|_| self.wait_turn(give_up))
    }

    fn wait_turn(&self, give_up: &dyn Fn() -> bool) -> bool {
        let old = self.turn.fetch_add(1, SeqCst) & 1;
        self.waiting.store(true, SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at once: a request that had read the number of the counter may count itself after it was seen empty.
        let empty = loop {
            let empty = self.inside[old].load(SeqCst) == 0;
            if empty || give_up() {
                break empty;
            }
            guard = match self.left.wait_timeout(guard, ASK) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        };
        self.waiting.store(false, SeqCst);
        empty
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let before = self.grace.inside[self.at].fetch_sub(1, SeqCst);
        if before == 1 && self.grace.waiting.load(SeqCst) {
            let _guard = self.grace.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.grace.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::atomic::AtomicU32, thread};

    #[test]
    fn what_was_replaced_is_not_used_after_the_wait() {
        let grace = Grace::default();
        let current = AtomicUsize::new(0);
        // A value may be used while its flag is up.
        let alive: Vec<AtomicBool> = (0..3000).map(|index| AtomicBool::new(index == 0)).collect();
        let (stop, used) = (AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        let _inside = grace.enter();
                        let value = current.load(SeqCst);
                        thread::yield_now();
                        used.fetch_add(1, SeqCst);
                        assert!(alive[value].load(SeqCst), "value {value} was used after its end");
                    }
                });
            }
            for next in 1..alive.len() {
                alive[next].store(true, SeqCst);
                current.store(next, SeqCst);
                assert!(grace.wait(&|| false));
                alive[next - 1].store(false, SeqCst);
            }
            // The machine may have been busy with other things. One that fails has used the value too.
            while used.load(SeqCst) == 0 {
                thread::yield_now();
            }
            stop.store(true, SeqCst);
        });
        assert!(used.load(SeqCst) > 0);
    }

    #[test]
    fn a_request_that_hangs_can_be_given_up_on() {
        let grace = Grace::default();
        let hanging = grace.enter();
        assert!(!grace.wait(&|| true));
        drop(hanging);
        assert!(grace.wait(&|| false));
    }
}

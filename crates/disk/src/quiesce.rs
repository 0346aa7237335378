//! A readers–writer gate around the layers of a disk: requests are readers, a layer switch is the writer.
//!
//! A request costs a few atomic operations and an uncontended read lock. A writer first shuts the door for new requests, then
//! waits for those inside, with a deadline: a request that hangs on a dead server must not hang the switch for ever.

use crate::grace::{Grace, Inside};
use std::{
    ops::{Deref, DerefMut},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
        atomic::{AtomicBool, Ordering::SeqCst, fence},
    },
    time::Instant,
};

/// A value that many requests use and that is seldom replaced while none does.
#[derive(Debug)]
pub(crate) struct Quiesce<T> {
    value: RwLock<T>,
    door: Door,
    grace: Grace,
    /// Writers take turns.
    writers: Mutex<()>,
}

#[derive(Debug, Default)]
struct Door {
    /// Set while a writer waits or works; requests that find it set wait outside.
    shut: AtomicBool,
    lock: Mutex<()>,
    /// Told when the door opens, and by each request that leaves while it is shut.
    moved: Condvar,
}

/// Requests were still in flight at the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StillBusy;

/// One request's use of the value. Fields drop in this order: first the lock, then the word to a waiting writer.
#[derive(Debug)]
pub(crate) struct Using<'a, T> {
    value: RwLockReadGuard<'a, T>,
    _inside: Inside<'a>,
    _leaving: Leaving<'a>,
}

/// Sole use of the value; requests wait until this is dropped.
#[derive(Debug)]
pub(crate) struct Quiet<'a, T> {
    value: RwLockWriteGuard<'a, T>,
    _shut: Shut<'a>,
    _turn: MutexGuard<'a, ()>,
}

#[derive(Debug)]
struct Leaving<'a>(&'a Door);

#[derive(Debug)]
struct Shut<'a>(&'a Door);

impl Door {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_outside(&self) {
        let mut guard = self.lock();
        while self.shut.load(SeqCst) {
            guard = self.moved.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn shut(&self) -> Shut<'_> {
        self.shut.store(true, SeqCst);
        fence(SeqCst);
        Shut(self)
    }
}

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        let _guard = self.0.lock();
        self.0.shut.store(false, SeqCst);
        self.0.moved.notify_all();
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        // Pairs with the fence in `Door::shut`: either this load sees the door shut, or the writer's attempt to lock
        // sees this request gone.
        fence(SeqCst);
        if self.0.shut.load(SeqCst) {
            let _guard = self.0.lock();
            self.0.moved.notify_all();
        }
    }
}

impl<T> Quiesce<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: RwLock::new(value),
            door: Door::default(),
            grace: Grace::default(),
            writers: Mutex::default(),
        }
    }

    /// Uses the value; waits while a writer works. Must not be nested.
    pub(crate) fn enter(&self) -> Using<'_, T> {
        if self.door.shut.load(SeqCst) {
            self.door.wait_outside();
        }
        let value = self.value.read().unwrap_or_else(PoisonError::into_inner);
        Using { value, _inside: self.grace.enter(), _leaving: Leaving(&self.door) }
    }

    /// Waits until every request that is inside now has left; others come and go meanwhile. False: `give_up` said so.
    pub(crate) fn wait_for_leavers(&self, give_up: &dyn Fn() -> bool) -> bool {
        self.grace.wait(give_up)
    }

    /// Holds new requests back and waits until none is inside.
    pub(crate) fn quiesce(&self, deadline: Instant) -> Result<Quiet<'_, T>, StillBusy> {
        let turn = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let shut = self.door.shut();
        let mut guard = self.door.lock();
        loop {
            match self.value.try_write() {
                Ok(value) => return Ok(Quiet { value, _shut: shut, _turn: turn }),
                Err(TryLockError::Poisoned(poisoned)) => {
                    return Ok(Quiet { value: poisoned.into_inner(), _shut: shut, _turn: turn });
                }
                Err(TryLockError::WouldBlock) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(guard); // opening the door takes this lock
                return Err(StillBusy);
            }
            guard = match self.door.moved.wait_timeout(guard, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

impl<T> Deref for Using<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Deref for Quiet<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Quiet<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            Barrier,
            atomic::{AtomicU32, Ordering::Relaxed},
        },
        thread,
        time::Duration,
    };

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_writer_never_meets_a_request() {
        let gate = Quiesce::new(AtomicU32::new(0));
        let inside = AtomicU32::new(0);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        let value = gate.enter();
                        inside.fetch_add(1, SeqCst);
                        let before = value.load(Relaxed);
                        thread::yield_now();
                        assert_eq!(value.load(Relaxed), before);
                        inside.fetch_sub(1, SeqCst);
                    }
                });
            }
            for _ in 0..2000 {
                let value = gate.quiesce(soon()).unwrap();
                assert_eq!(inside.load(SeqCst), 0);
                value.fetch_add(1, Relaxed);
            }
            stop.store(true, SeqCst);
        });
        assert_eq!(gate.enter().load(Relaxed), 2000);
    }

    #[test]
    fn a_hanging_request_ends_the_wait_and_the_door_opens_again() {
        let gate = Quiesce::new(());
        let (entered, leave) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                let _hanging = gate.enter();
                entered.wait();
                leave.wait();
            });
            entered.wait();
            assert_eq!(gate.quiesce(Instant::now() + Duration::from_millis(5)).err(), Some(StillBusy));
            drop(gate.enter());
            leave.wait();
        });
        assert!(gate.quiesce(soon()).is_ok());
    }
}

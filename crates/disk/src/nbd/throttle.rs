//! Holding requests of one export back as its limit says. A request that waits has a thread of its connection, and nothing
//! else: no lock of the export, no place among the requests that are carried out.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::limit::{Bucket, Cost, RateLimit};

#[derive(Debug)]
pub(super) struct Throttle {
    /// There is a limit: without one a request costs this look.
    on: AtomicBool,
    state: Mutex<State>,
    /// Those that wait have to look again.
    changed: Condvar,
    /// Where the bucket's time begins.
    began: Instant,
}

#[derive(Debug, Default)]
struct State {
    bucket: Bucket,
    /// Counts changes of the limit.
    changes: u64,
    /// How many want everything to go at once.
    hurries: usize,
}

/// As long as this lives, requests of the exports do not wait for their limits. They are counted, and what comes after pays for
/// them.
#[derive(Debug)]
#[must_use]
pub struct Hurry(Vec<Arc<Throttle>>);

impl Hurry {
    pub(super) fn all(throttles: Vec<Arc<Throttle>>) -> Self {
        for throttle in &throttles {
            throttle.lock().hurries += 1;
            throttle.changed.notify_all();
        }
        Self(throttles)
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        for throttle in &self.0 {
            throttle.lock().hurries -= 1;
        }
    }
}

impl Throttle {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            on: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
            began: Instant::now(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that wait now wait as the new limit says.
    pub fn set(&self, limit: RateLimit) {
        let mut state = self.lock();
        if state.bucket.limit() == limit {
            return;
        }
        state.bucket = Bucket::new(limit, self.began.elapsed());
        state.changes += 1;
        self.on.store(!limit.is_unlimited(), Relaxed);
        drop(state);
        self.changed.notify_all();
    }

    pub fn limit(&self) -> RateLimit {
        self.lock().bucket.limit()
    }

    /// Whether requests have to ask.
    pub fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// Those that wait look again whether they still have to.
    pub fn wake(&self) {
        if self.is_on() {
            // Whoever has looked and not begun to wait yet has the lock.
            drop(self.lock());
            self.changed.notify_all();
        }
    }

    /// Takes a request into account. `Some`: how long it has to wait at first; then [`Throttle::wait`] is to be called.
    pub fn admit(&self, cost: Cost) -> Option<Waiting> {
        if !self.is_on() {
            return None;
        }
        let mut state = self.lock();
        let now = self.began.elapsed();
        let delay = state.bucket.step(now, cost);
        let waits = !delay.is_zero() && state.hurries == 0;
        waits.then(|| Waiting { cost, due: now + delay, changes: state.changes })
    }

    /// Waits until the request may go. It goes at once when `over` says that there is no use in waiting.
    pub fn wait(&self, waiting: Waiting, over: impl Fn() -> bool) {
        let Waiting { cost, mut due, mut changes } = waiting;
        let mut state = self.lock();
        loop {
            let now = self.began.elapsed();
            if state.changes != changes {
                changes = state.changes;
                due = now + state.bucket.step(now, cost);
            }
            let left = due.saturating_sub(now);
            if left.is_zero() || state.hurries > 0 || over() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A request that has to wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    cost: Cost,
    /// In the bucket's time.
    due: Duration,
    changes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread};

    const ONE: Cost = Cost { requests: 1, bytes: 512 };
    const LONG: Duration = Duration::from_secs(60);

    /// One request in a thousand seconds: whoever waits for it waits for ever.
    fn stuck() -> (Arc<Throttle>, mpsc::Receiver<()>) {
        let throttle = Throttle::new();
        throttle.set(RateLimit { requests: None, bytes: Some(1) });
        let large = Cost { requests: 1, bytes: 1000 };
        assert!(throttle.admit(large).is_none(), "the first goes at once");
        let waiting = throttle.admit(ONE).expect("the second waits");
        let (gone, went) = mpsc::channel();
        let inside = Arc::clone(&throttle);
        thread::spawn(move || {
            inside.wait(waiting, || false);
            gone.send(()).unwrap();
        });
        assert!(went.recv_timeout(Duration::from_millis(20)).is_err(), "it waits");
        (throttle, went)
    }

    #[test]
    fn a_limit_that_is_taken_away_lets_everything_go() {
        let (throttle, went) = stuck();
        throttle.set(RateLimit::default());
        went.recv_timeout(LONG).unwrap();
        assert!(throttle.admit(ONE).is_none());
    }

    #[test]
    fn a_limit_that_is_raised_holds_for_those_that_wait() {
        let (throttle, went) = stuck();
        throttle.set(RateLimit { requests: None, bytes: Some(1 << 20) });
        went.recv_timeout(LONG).unwrap();
        assert_eq!(throttle.limit().bytes, Some(1 << 20));
    }

    #[test]
    fn in_a_hurry_nothing_waits_and_afterwards_it_is_paid_for() {
        let (throttle, went) = stuck();
        let hurry = Hurry::all(vec![Arc::clone(&throttle)]);
        went.recv_timeout(LONG).unwrap();
        assert!(throttle.admit(ONE).is_none());
        drop(hurry);
        assert!(throttle.admit(ONE).is_some());
    }
}

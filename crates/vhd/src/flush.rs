//! Group commit: many callers, few rounds of `fdatasync`.

use std::sync::{
    Condvar, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// Runs rounds of work so that each caller is covered by a round that began after its call.
#[derive(Debug, Default)]
pub(crate) struct GroupCommit {
    state: Mutex<State>,
    changed: Condvar,
    /// Never false again once true.
    failed: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Rounds begun.
    begun: u64,
    /// Rounds ended well.
    done: u64,
    running: bool,
}

/// An earlier round failed, and with it everything after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EarlierFailure;

impl GroupCommit {
    /// Returns once a round that began after this call has ended. `round` is run by one of the callers at a time. After
    /// a failure no round runs again: the kernel may have dropped the data that the failed one was about.
    pub(crate) fn run<E: From<EarlierFailure>>(
        &self,
        round: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = state.begun + 1;
        loop {
            if self.has_failed() {
                return Err(EarlierFailure.into());
            }
            if state.done >= needed {
                return Ok(());
            }
            if !state.running {
                break;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.running = true;
        state.begun += 1;
        let this = state.begun;
        drop(state);
        let mut outcome = Outcome { group: self, round: this, ok: false };
        let result = round();
        outcome.ok = result.is_ok();
        result
    }

    /// Whether a round has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// From now on no round runs.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }
}

/// Ends the round even if it panics, as failed.
struct Outcome<'a> {
    group: &'a GroupCommit,
    round: u64,
    ok: bool,
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        let mut state = self.group.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running = false;
        if self.ok {
            state.done = self.round;
        } else {
            self.group.fail();
        }
        self.group.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier, atomic::AtomicU32};

    use super::*;

    #[derive(Debug, PartialEq)]
    struct Failed;
    impl From<EarlierFailure> for Failed {
        fn from(_: EarlierFailure) -> Self {
            Self
        }
    }

    #[test]
    fn callers_that_wait_share_one_round() {
        let group = Arc::new(GroupCommit::default());
        let rounds = Arc::new(AtomicU32::new(0));
        let (entered, release) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let first = std::thread::spawn({
            let (group, rounds) = (Arc::clone(&group), Arc::clone(&rounds));
            let (entered, release) = (Arc::clone(&entered), Arc::clone(&release));
            move || {
                group.run::<Failed>(|| {
                    entered.wait();
                    release.wait();
                    rounds.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                })
            }
        });
        entered.wait();
        let waiting: Vec<_> = (0..8)
            .map(|_| {
                let (group, rounds) = (Arc::clone(&group), Arc::clone(&rounds));
                std::thread::spawn(move || {
                    group.run::<Failed>(|| {
                        rounds.fetch_add(1, Ordering::SeqCst);
                        Ok(())
                    })
                })
            })
            .collect();
        release.wait();
        first.join().unwrap().unwrap();
        for thread in waiting {
            thread.join().unwrap().unwrap();
        }
        let total = rounds.load(Ordering::SeqCst);
        assert!((2..=9).contains(&total), "{total} rounds");
    }

    #[test]
    fn nothing_is_acknowledged_after_a_failure() {
        let group = GroupCommit::default();
        assert_eq!(group.run(|| Err(Failed)), Err(Failed));
        assert_eq!(group.run(|| Ok(())), Err(Failed));
        assert!(group.has_failed());
    }
}

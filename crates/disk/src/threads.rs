//! Work on several processors where its order does not matter.

use std::{
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    thread,
};

/// More gain nothing: the storage is what is waited for then.
const MOST: usize = 4;

/// Threads for copying: one for each processor that this process may use, 4 at most.
pub(crate) fn for_copying() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get).min(MOST)
}

/// Does the work for each number below `count`. After a failure nothing more is begun; the first one is returned. With one
/// thread it is the caller's, and the order is that of the numbers. Each thread has a buffer of its own.
pub(crate) fn each<E: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize, &mut Vec<u8>) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let threads = threads.min(count);
    if threads <= 1 {
        let mut buf = Vec::new();
        return (0..count).try_for_each(|number| work(number, &mut buf));
    }
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failure = Mutex::new(None);
    thread::scope(|scope| {
        let run = || {
            let mut buf = Vec::new();
            while !stop.load(Acquire) {
                let number = next.fetch_add(1, Relaxed);
                if number >= count {
                    return;
                }
                if let Err(error) = work(number, &mut buf) {
                    stop.store(true, Release);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        for _ in 1..threads {
            // One that cannot be had is done without.
            let _fewer = thread::Builder::new().name("disk copy".into()).spawn_scoped(scope, run);
        }
        run();
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        collections::{BTreeSet, HashSet},
        sync::Barrier,
    };

    #[test]
    fn everything_is_done_once_by_all_threads() {
        let (meet, ids, done) = (Barrier::new(3), Mutex::new(HashSet::new()), Mutex::new(BTreeSet::new()));
        each::<()>(3, 100, |number, _| {
            if number < 3 {
                meet.wait();
            }
            ids.lock().unwrap().insert(thread::current().id());
            assert!(done.lock().unwrap().insert(number));
            Ok(())
        })
        .unwrap();
        assert_eq!((ids.into_inner().unwrap().len(), done.into_inner().unwrap().len()), (3, 100));
    }

    #[test]
    fn a_failure_ends_it() {
        for threads in [1, 2] {
            let begun = AtomicUsize::new(0);
            let failed = each(threads, 1_000_000, |number, _| {
                begun.fetch_add(1, Relaxed);
                // Whoever failed gets to say so.
                thread::yield_now();
                if number == 5 { Err("no") } else { Ok(()) }
            });
            assert_eq!(failed, Err("no"));
            assert!(begun.into_inner() < 1_000_000);
        }
    }
}

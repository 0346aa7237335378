//! What tasks work on: one mutating operation per thing at a time. Work in the background gives way: whoever wants the same
//! thing asks it to stop and waits for that, and it goes on afterwards.

use super::lock;
use crate::failure::Failure;
use backstay_api::ProblemCode;
use backstay_model::{TaskId, VmId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How long work in the background may take to give way.
const GIVE_WAY: Duration = Duration::from_secs(30);

/// A thing that one task works on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// A virtual machine.
    Vm(VmId),
    /// The files of a machine's checkpoints.
    Files(VmId),
    /// A display name that is being given.
    Name(String),
    /// The set of registered folders.
    Folders,
    /// All machines, which stop with the host.
    Guests,
}

impl Hold {
    fn words(&self) -> String {
        match self {
            Self::Vm(_) => "this virtual machine".into(),
            Self::Files(_) => "the files of its checkpoints".into(),
            Self::Name(name) => format!("the name '{name}'"),
            Self::Folders => "the registered folders".into(),
            Self::Guests => "stopping all machines".into(),
        }
    }
}

#[derive(Debug)]
struct Holder {
    task: TaskId,
    operation: &'static str,
    /// Set for work in the background: tells it to stop.
    stop: Option<Arc<watch::Sender<bool>>>,
}

#[derive(Debug, Default)]
struct Table {
    held: BTreeMap<Hold, Holder>,
    /// Those that wait for work in the background to give way: it does not come back before them.
    awaited: BTreeMap<Hold, usize>,
}

#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    changed: Notify,
}

/// Who holds what.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    shared: Arc<Shared>,
}

/// Things held until dropped.
#[derive(Debug)]
pub(super) struct Held {
    shared: Arc<Shared>,
    holds: Vec<Hold>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = lock(&self.shared.table);
        for hold in &self.holds {
            table.held.remove(hold);
        }
        drop(table);
        self.shared.changed.notify_waiters();
    }
}

/// Things held by work in the background until dropped.
#[derive(Debug)]
pub struct BackgroundHold {
    _held: Held,
    stop: watch::Receiver<bool>,
}

impl BackgroundHold {
    /// Waits until somebody else wants one of the things; for ever if nobody does.
    pub async fn wanted(&self) {
        let mut stop = self.stop.clone();
        if stop.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Keeps work in the background from coming back until dropped.
#[derive(Debug)]
pub struct Way {
    shared: Arc<Shared>,
    holds: Vec<Hold>,
}

impl Drop for Way {
    fn drop(&mut self) {
        let mut table = lock(&self.shared.table);
        for hold in &self.holds {
            if let Some(count) = table.awaited.get_mut(hold) {
                *count -= 1;
                if *count == 0 {
                    table.awaited.remove(hold);
                }
            }
        }
        drop(table);
        self.shared.changed.notify_waiters();
    }
}

impl Holds {
    /// Takes all of `wanted` or nothing.
    pub(super) fn take(&self, id: TaskId, operation: &'static str, wanted: &[Hold]) -> Result<Held, Failure> {
        let mut table = lock(&self.shared.table);
        for hold in wanted {
            if let Some(holder) = table.held.get(hold) {
                let (task, busy_with) = (holder.task, holder.operation);
                return Err(Failure::new(
                    ProblemCode::Busy,
                    format!(
                        "task {task} ({busy_with}) is working on {}: wait for it, or cancel it with `backstay task \
                         cancel {task}`",
                        hold.words()
                    ),
                ));
            }
        }
        for hold in wanted {
            table.held.insert(hold.clone(), Holder { task: id, operation, stop: None });
        }
        drop(table);
        Ok(Held { shared: Arc::clone(&self.shared), holds: wanted.to_vec() })
    }

    /// Asks work in the background that holds one of `wanted` to stop, and waits until it has. It does not come back
    /// before the result is dropped.
    pub(super) async fn make_way(&self, wanted: &[Hold]) -> Way {
        {
            let mut table = lock(&self.shared.table);
            for hold in wanted {
                *table.awaited.entry(hold.clone()).or_default() += 1;
            }
        }
        let way = Way { shared: Arc::clone(&self.shared), holds: wanted.to_vec() };
        let gone = async {
            loop {
                // Before the look, so that no change is missed.
                let changed = self.shared.changed.notified();
                if !self.ask_to_stop(wanted) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(GIVE_WAY, gone).await.is_err() {
            tracing::warn!("work in the background does not give way");
        }
        way
    }

    /// Whether there is somebody to wait for.
    fn ask_to_stop(&self, wanted: &[Hold]) -> bool {
        let table = lock(&self.shared.table);
        let stops = wanted.iter().filter_map(|hold| table.held.get(hold)?.stop.as_ref());
        let mut asked = false;
        for stop in stops {
            stop.send_replace(true);
            asked = true;
        }
        asked
    }

    /// Waits until all of `wanted` are free and takes them, to give them back when somebody else wants one.
    pub(super) async fn background(
        &self,
        id: TaskId,
        operation: &'static str,
        wanted: &[Hold],
    ) -> BackgroundHold {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(hold) = self.try_background(id, operation, wanted) {
                return hold;
            }
            changed.await;
        }
    }

    fn try_background(&self, id: TaskId, operation: &'static str, wanted: &[Hold]) -> Option<BackgroundHold> {
        let mut table = lock(&self.shared.table);
        let free = |hold: &Hold| !table.held.contains_key(hold) && !table.awaited.contains_key(hold);
        if !wanted.iter().all(free) {
            return None;
        }
        let (sender, stop) = watch::channel(false);
        let sender = Arc::new(sender);
        for hold in wanted {
            let holder = Holder { task: id, operation, stop: Some(Arc::clone(&sender)) };
            table.held.insert(hold.clone(), holder);
        }
        drop(table);
        let held = Held { shared: Arc::clone(&self.shared), holds: wanted.to_vec() };
        Some(BackgroundHold { _held: held, stop })
    }

    /// Who holds it, other than in the background.
    #[must_use]
    pub fn holder(&self, hold: &Hold) -> Option<TaskId> {
        let table = lock(&self.shared.table);
        table.held.get(hold).filter(|holder| holder.stop.is_none()).map(|holder| holder.task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn id(n: u128) -> TaskId {
        TaskId(Uuid::from_u128(n))
    }

    #[tokio::test]
    async fn work_in_the_background_gives_way_and_comes_back() {
        let holds = Holds::default();
        let thing = [Hold::Folders];
        let background = holds.background(id(1), "merge", &thing).await;
        assert_eq!(holds.holder(&Hold::Folders), None, "it hinders nobody");
        let (other, wanted) = (holds.clone(), thing.clone());
        let taker = tokio::spawn(async move {
            let _way = other.make_way(&wanted).await;
            other.take(id(2), "start", &wanted)
        });
        background.wanted().await;
        // It wants the thing again at once, but the other comes first.
        let (again, wanted) = (holds.clone(), thing.clone());
        drop(background);
        let back = tokio::spawn(async move { again.background(id(1), "merge", &wanted).await });
        let held = taker.await.unwrap().unwrap();
        assert_eq!(holds.holder(&Hold::Folders), Some(id(2)));
        assert!(holds.take(id(3), "delete", &thing).is_err());
        assert!(!back.is_finished());
        drop(held);
        back.await.unwrap();
    }
}

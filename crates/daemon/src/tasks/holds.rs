//! What tasks work on: one mutating operation per thing at a time.

use super::lock;
use crate::failure::Failure;
use backstay_api::ProblemCode;
use backstay_model::{TaskId, VmId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// A thing that one task works on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// A virtual machine.
    Vm(VmId),
    /// A display name that is being given.
    Name(String),
    /// The set of registered folders.
    Folders,
}

impl Hold {
    fn words(&self) -> String {
        match self {
            Self::Vm(_) => "this virtual machine".into(),
            Self::Name(name) => format!("the name '{name}'"),
            Self::Folders => "the registered folders".into(),
        }
    }
}

type Table = BTreeMap<Hold, (TaskId, &'static str)>;

/// Who holds what.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    table: Arc<Mutex<Table>>,
}

/// Things held until dropped.
#[derive(Debug)]
pub(super) struct Held {
    table: Arc<Mutex<Table>>,
    holds: Vec<Hold>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        for hold in &self.holds {
            table.remove(hold);
        }
    }
}

impl Holds {
    /// Takes all of `wanted` or nothing.
    pub(super) fn take(&self, id: TaskId, operation: &'static str, wanted: &[Hold]) -> Result<Held, Failure> {
        let mut table = lock(&self.table);
        for hold in wanted {
            if let Some((holder, busy_with)) = table.get(hold) {
                return Err(Failure::new(
                    ProblemCode::Busy,
                    format!(
                        "task {holder} ({busy_with}) is working on {}: wait for it, or cancel it with `backstay task \
                         cancel {holder}`",
                        hold.words()
                    ),
                ));
            }
        }
        for hold in wanted {
            table.insert(hold.clone(), (id, operation));
        }
        drop(table);
        Ok(Held { table: Arc::clone(&self.table), holds: wanted.to_vec() })
    }

    /// Who holds it.
    #[must_use]
    pub fn holder(&self, hold: &Hold) -> Option<TaskId> {
        lock(&self.table).get(hold).map(|(id, _)| *id)
    }
}

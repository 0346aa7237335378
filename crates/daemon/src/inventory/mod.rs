//! The machines of this host. Folders are the truth; this is the index over them, held in memory, with what is known of
//! the processes.

mod machine;
mod places;
mod scan;

pub use machine::{Machine, set_generation};
pub use places::{Search, relocate, set_home};
pub use scan::{Found, find_moved, read_config, read_machine, scan};

use crate::durable;
use crate::failure::Failure;
use backstay_api::{ProblemCode, RunInfo};
use backstay_hyperv::VmConfig;
use backstay_model::{VmId, VmState};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::watch;

/// What a machine does, for those who wait for a change.
pub type StateNow = (VmState, Option<String>);

#[derive(Debug)]
struct Slot {
    machine: Machine,
    state: watch::Sender<StateNow>,
}

/// All machines.
#[derive(Debug, Default)]
pub struct Inventory {
    slots: RwLock<BTreeMap<VmId, Slot>>,
    unreadable: RwLock<BTreeMap<PathBuf, String>>,
}

impl Inventory {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<VmId, Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<VmId, Slot>> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Machines by name.
    #[must_use]
    pub fn all(&self) -> Vec<Machine> {
        let mut all: Vec<_> = self.read().values().map(|slot| slot.machine.clone()).collect();
        all.sort_by(|a, b| a.name().cmp(b.name()).then(a.id.cmp(&b.id)));
        all
    }

    /// One machine.
    ///
    /// # Errors
    /// `not-found`.
    pub fn get(&self, id: VmId) -> Result<Machine, Failure> {
        self.read().get(&id).map(|slot| slot.machine.clone()).ok_or_else(|| {
            Failure::not_found(format!("there is no virtual machine {id}: `backstay vm list` shows all"))
        })
    }

    /// The machine that `text` (GUID or name) stands for.
    ///
    /// # Errors
    /// `not-found`; `precondition` when several machines have that name.
    pub fn find(&self, text: &str) -> Result<Machine, Failure> {
        if let Ok(id) = text.parse::<VmId>()
            && let Ok(machine) = self.get(id)
        {
            return Ok(machine);
        }
        let named: Vec<_> = self.all().into_iter().filter(|m| m.name().as_str() == text).collect();
        match named.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(Failure::not_found(format!(
                "there is no virtual machine '{text}': `backstay vm list` shows all"
            ))),
            many => Err(Failure::precondition(format!(
                "{} virtual machines are named '{text}': use a GUID ({}), and rename one",
                many.len(),
                many.iter().map(|m| m.id.to_string()).collect::<Vec<_>>().join(", ")
            ))),
        }
    }

    /// Refuses a name that another machine than `except` has.
    ///
    /// # Errors
    /// `exists`.
    pub fn name_is_free(&self, name: &str, except: Option<VmId>) -> Result<(), Failure> {
        match self.all().iter().find(|m| m.name().as_str() == name && Some(m.id) != except) {
            None => Ok(()),
            Some(other) => Err(Failure::new(
                ProblemCode::Exists,
                format!(
                    "the virtual machine {} is named '{name}' already: choose another name, or rename that one",
                    other.id
                ),
            )),
        }
    }

    /// Adds a machine, or replaces what its folder says about it; what is known of its processes stays.
    pub fn put(&self, mut machine: Machine) {
        let mut slots = self.write();
        if let Some(slot) = slots.get_mut(&machine.id) {
            machine.state = slot.machine.state;
            machine.reason.clone_from(&slot.machine.reason);
            machine.run.clone_from(&slot.machine.run);
            slot.machine = machine;
        } else {
            let state = watch::Sender::new((machine.state, machine.reason.clone()));
            slots.insert(machine.id, Slot { machine, state });
        }
    }

    /// The files that machines other than `id` refer to.
    #[must_use]
    pub fn places_of_others(&self, id: VmId) -> Vec<PathBuf> {
        let slots = self.read();
        let others = slots.values().filter(|slot| slot.machine.id != id);
        others.flat_map(|slot| slot.machine.disk_places()).map(|(file, _)| file).collect()
    }

    /// Forgets a machine.
    pub fn remove(&self, id: VmId) {
        self.write().remove(&id);
    }

    /// Configurations that could not be read, as one line each.
    #[must_use]
    pub fn unreadable(&self) -> Vec<String> {
        self.unreadable_files().iter().map(|(path, reason)| format!("{}: {reason}", path.display())).collect()
    }

    /// Configurations and folders that could not be read, each with its reason.
    #[must_use]
    pub fn unreadable_files(&self) -> BTreeMap<PathBuf, String> {
        self.unreadable.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes a configuration that could not be read, or (with none) that it can be again.
    pub fn set_unreadable(&self, path: PathBuf, reason: Option<String>) {
        let mut lines = self.unreadable.write().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => lines.insert(path, reason),
            None => lines.remove(&path),
        };
    }

    /// Notes what a machine does; the former state comes back if that is a change.
    pub fn set_state(&self, id: VmId, state: VmState, reason: Option<String>) -> Option<VmState> {
        let mut slots = self.write();
        let slot = slots.get_mut(&id)?;
        let before = slot.machine.state;
        slot.machine.state = state;
        slot.machine.reason.clone_from(&reason);
        if !state.is_active() {
            slot.machine.run = None;
        }
        slot.state.send_replace((state, reason));
        (before != state).then_some(before)
    }

    /// Notes a machine's processes.
    pub fn set_run(&self, id: VmId, run: Option<RunInfo>) {
        if let Some(slot) = self.write().get_mut(&id) {
            slot.machine.run = run;
        }
    }

    /// Follows what a machine does.
    ///
    /// # Errors
    /// `not-found`.
    pub fn watch(&self, id: VmId) -> Result<watch::Receiver<StateNow>, Failure> {
        let slots = self.read();
        let slot =
            slots.get(&id).ok_or_else(|| Failure::not_found(format!("there is no virtual machine {id}")))?;
        Ok(slot.state.subscribe())
    }

    /// Replaces a machine's configuration on disk and here. The generation goes up by one.
    ///
    /// # Errors
    /// The file cannot be written; the former one is still there then.
    pub async fn save(&self, machine: &Machine, config: VmConfig) -> Result<Machine, Failure> {
        let former = machine.clone();
        let others = self.places_of_others(machine.id);
        let saved = blocking(move || {
            let mut config = config;
            set_generation(&mut config, former.generation.next());
            durable::replace(&former.config_file, &config.to_bytes())
                .map_err(|e| Failure::file("writing the configuration", &former.config_file, e))?;
            let checkpoints =
                scan::read_checkpoints(&former.layout, former.id, &config, Search::Moved(&others));
            Ok(scan::assemble(&former.layout, &former.config_file, config, checkpoints, Vec::new()))
        })
        .await?;
        self.put(saved);
        self.get(machine.id)
    }
}

impl Inventory {
    /// Reads a machine's checkpoints again, after one of their configurations was changed.
    ///
    /// # Errors
    /// `not-found`.
    pub async fn reread(&self, id: VmId) -> Result<Machine, Failure> {
        let former = self.get(id)?;
        let others = self.places_of_others(id);
        let read = blocking(move || {
            let config = (*former.config).clone();
            let checkpoints =
                scan::read_checkpoints(&former.layout, former.id, &config, Search::Moved(&others));
            Ok(scan::assemble(&former.layout, &former.config_file, config, checkpoints, Vec::new()))
        })
        .await?;
        self.put(read);
        self.get(id)
    }
}

/// Runs `work` where it may wait for disks.
///
/// # Errors
/// As `work`.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            Err(Failure::because(ProblemCode::Internal, "a step ended by a fault of Backstay", error))
        }
    }
}

//! What Now wrote to before a checkpoint with memory was applied. Until the guest runs again that is all that is left of the former
//! Now, so the configuration keeps it apart: it goes when the memory is loaded, and stays where that never happens, also when the
//! daemon ended in between.

use super::App;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::Machine;
use backstay_model::{VmId, VmState};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// What becomes of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Memory is being loaded.
    Wait,
    /// The guest is as it was at the checkpoint: nothing needs them.
    Release,
    /// It is not.
    Keep,
}

/// What the state of a machine says of the memory that was to be loaded into it.
fn fate(state: VmState) -> Fate {
    match state {
        // It may be turned off while memory is being loaded.
        VmState::Starting | VmState::Stopping => Fate::Wait,
        state if state.is_active() => Fate::Release,
        _ => Fate::Keep,
    }
}

/// Settles it as the machine's state says: before the next operation, which may change that.
pub(super) async fn settle_former(app: &Arc<App>, id: VmId) -> Result<Machine, Failure> {
    let machine = app.inventory.get(id)?;
    let files = machine.config.applying();
    if files.is_empty() {
        return Ok(machine);
    }
    let fate = fate(machine.state);
    let settled = end(app, id, fate).await?;
    if fate == Fate::Keep {
        let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        let reason = format!(
            "Backstay ended while a checkpoint was applied, and its memory was not loaded: the machine is off, with the disks of \
             the checkpoint; what it had written to before is kept ({})",
            names.join(", ")
        );
        let kind = "checkpoint.memory-not-loaded";
        let what = Happening { kind, who: "backstay", reason, before: None, after: None };
        app.events.vm(id, settled.name().as_str(), what).await;
    }
    Ok(settled)
}

/// Ends the record.
pub(super) async fn end(app: &Arc<App>, id: VmId, fate: Fate) -> Result<Machine, Failure> {
    let machine = app.inventory.get(id)?;
    let files: BTreeSet<PathBuf> = machine.config.applying();
    if files.is_empty() || fate == Fate::Wait {
        return Ok(machine);
    }
    let mut config = (*machine.config).clone();
    let wrong = |error: backstay_hyperv::ApplyError| Failure::invalid(error.to_string());
    if fate == Fate::Release {
        let mut released = config.released();
        released.extend(files);
        config.set_released(&released).map_err(wrong)?;
    }
    config.set_applying(&BTreeSet::new()).map_err(wrong)?;
    app.inventory.save(&machine, config).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_to_goes_when_the_guest_is_there() {
        for state in [VmState::Running, VmState::Paused, VmState::PausedCritical, VmState::Saving] {
            assert_eq!(fate(state), Fate::Release, "{state}");
        }
        for state in [VmState::Off, VmState::Failed, VmState::Saved] {
            assert_eq!(fate(state), Fate::Keep, "{state}");
        }
        assert_eq!(fate(VmState::Starting), Fate::Wait);
        assert_eq!(fate(VmState::Stopping), Fate::Wait, "perhaps before its memory was loaded");
    }
}

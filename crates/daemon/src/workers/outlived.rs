//! A saved memory whose guest goes on. A worker of the previous release that dies right after it has saved, before QEMU has
//! ended, leaves a state that looks whole to the next worker's host while that worker lets the guest run: at its next start the
//! machine would be loaded from memory that is older than its disks.

use super::LAUNCH_RECORD;
use crate::app::App;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::blocking;
use crate::stamp::Stamp;
use backstay_model::{VmId, VmState};
use backstay_worker::client::WorkerClient;
use backstay_worker::control::{LaunchRecord, Reply, Request};
use backstay_worker::saved_state;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const QUICK: Duration = Duration::from_secs(10);

/// Whether a saved state on disk is older than its machine. `began_with_it`: this run was started from it, and until the guest
/// has executed it stays good.
fn is_outlived(state: VmState, began_with_it: bool, being_saved: bool) -> bool {
    match state {
        _ if being_saved => false,
        VmState::Running => true,
        VmState::Paused | VmState::PausedCritical | VmState::Stopping => !began_with_it,
        _ => false,
    }
}

/// Removes the saved state of a machine that goes on. To be called when its worker was heard.
pub(super) async fn remove_outlived(app: &Arc<App>, vm: VmId, client: &WorkerClient) {
    let Ok(machine) = app.inventory.get(vm) else { return };
    let (descriptor, memory) = (machine.layout.vm_descriptor(vm), machine.layout.vm_memory(vm));
    // Before the question: a save that begins after it makes another file.
    let Ok(found) = Stamp::of(&descriptor) else { return };
    let Ok(Reply::Status(status)) = client.call(Request::Status, QUICK).await else { return };
    let launch = app.workers.run_folder(vm).join(LAUNCH_RECORD);
    let saves =
        ["vm.save", "vm.stop-with-host"].iter().any(|operation| app.tasks.is_working_on(vm, operation));
    if !is_outlived(status.state, began_with_its_own(&launch), saves) {
        return;
    }
    let removed = blocking(move || {
        if Stamp::of(&descriptor).ok() != Some(found) {
            return Ok(false);
        }
        saved_state::remove(&descriptor, &memory)
            .map(|()| true)
            .map_err(|e| Failure::file("deleting the saved memory", &descriptor, e))
    });
    match removed.await {
        Ok(false) => {}
        Ok(true) => {
            let reason = "its worker ended when it was being saved, and the guest went on: that memory is older than the disks";
            let what = Happening {
                kind: "vm.saved-state-discarded",
                who: "backstay",
                reason: reason.into(),
                before: None,
                after: Some(status.state.to_string()),
            };
            app.events.vm(vm, &app.name_of(vm), what).await;
        }
        Err(failure) => {
            tracing::error!(%vm, error = failure.full_message(), "an outdated saved state is left")
        }
    }
}

/// Whether the run was started from the machine's own saved state. One that cannot be read is taken for such a run: that keeps it.
fn began_with_its_own(launch: &Path) -> bool {
    let record =
        std::fs::read(launch).ok().and_then(|text| serde_json::from_slice::<LaunchRecord>(&text).ok());
    record.is_none_or(|record| record.restore.is_some_and(|from| from.once))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_outlived_when_its_guest_goes_on() {
        for own in [false, true] {
            assert!(is_outlived(VmState::Running, own, false));
            for state in [VmState::Starting, VmState::Saving, VmState::Saved, VmState::Off, VmState::Failed] {
                assert!(!is_outlived(state, own, false), "{state}");
            }
            assert!(!is_outlived(VmState::Running, own, true), "a save is at work");
        }
        // Started from it and not let run, it is still what the next start continues from.
        assert!(!is_outlived(VmState::Paused, true, false));
        assert!(is_outlived(VmState::Paused, false, false));
    }
}

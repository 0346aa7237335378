//! Machines that ended while no daemon ran: their workers' last words are in the run folder.

use super::supervise::{Ending, Following};
use super::{ENDED_RECORD, EVENT_SPOOL, LAUNCH_RECORD, ingest};
use crate::app::{App, at_rest};
use crate::failure::{Failure, chain};
use crate::inventory::blocking;
use backstay_model::{VmId, VmState};
use backstay_worker::control::{EventFrame, WorkerEvent};
use backstay_worker::events::read_spool;
use std::sync::Arc;

/// Takes over state, reason and history of a machine whose last run is over, if it has one since the host was booted: it
/// is not one that ran when the host went down.
pub async fn hear_the_end(app: &Arc<App>, vm: VmId) {
    let ending = last_run(app, vm).await;
    let known = app.inventory.get(vm).map_or((VmState::Off, None), |machine| (machine.state, machine.reason));
    let (state, reason) = at_rest(app, vm, ending.unwrap_or(known)).await;
    app.inventory.set_state(vm, state, reason);
}

async fn last_run(app: &Arc<App>, vm: VmId) -> Option<Ending> {
    let folder = app.workers.run_folder(vm);
    let told = blocking(move || {
        if folder.join(LAUNCH_RECORD).exists() || !folder.join(ENDED_RECORD).exists() {
            return Ok(None);
        }
        let spool = folder.join(EVENT_SPOOL);
        read_spool(&spool, 0).map(Some).map_err(|e| Failure::file("reading", &spool, e))
    });
    let told = match told.await {
        Ok(Some(told)) => told,
        Ok(None) => return None,
        Err(failure) => {
            tracing::error!(%vm, error = failure.full_message(), "the events of a machine that ended are lost");
            Vec::new()
        }
    };
    let ending = ending_of(&told);
    let mut cursor = ingest::cursor(app, vm).await;
    if told.last().is_some_and(|last| last.seq < cursor) {
        // A run folder that was lost with a reboot starts to count anew.
        app.events.forget_heard(vm);
        if let Err(error) = app.store.set_cursor(vm, 0).await {
            tracing::error!(%vm, error = chain(&error), "the history cannot be written");
        }
        cursor = 0;
    }
    let mut following = Following { ending: (VmState::Off, None), lost_at_unix_ms: None };
    for event in told.into_iter().filter(|event| event.seq > cursor) {
        ingest::event(app, vm, event, &mut following).await;
    }
    if let Err(error) = app.store.set_boot(vm, String::new()).await {
        tracing::error!(%vm, error = chain(&error), "the end of a machine could not be written");
    }
    Some(ending)
}

/// The last state that was told, also if it is in the history already: states are not kept there.
fn ending_of(told: &[EventFrame]) -> Ending {
    let last = told.iter().rev().find_map(|frame| match &frame.event {
        WorkerEvent::State { to, reason, .. } => Some((*to, reason.clone())),
        _ => None,
    });
    match last {
        Some((state, reason)) if !state.is_active() => (state, (state == VmState::Failed).then_some(reason)),
        _ => (VmState::Off, None),
    }
}

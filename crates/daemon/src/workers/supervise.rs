//! Following one worker from its start to the end of its machine.

use super::{CONTROL_SOCKET, Connection, EVENT_SPOOL, LAUNCH_RECORD, ingest};
use crate::app::{App, at_rest, kick_merges, share_limits};
use crate::events::Happening;
use crate::failure::chain;
use backstay_model::{VmId, VmState};
use backstay_worker::client::{ClientError, WorkerClient};
use backstay_worker::events::read_spool;
use backstay_worker::spawn::{self, SpawnError};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a worker may take to listen after it was started.
const STARTING: Duration = Duration::from_secs(10);

/// How long to try a worker that may still live from a former daemon: its socket either listens or not.
const ADOPTING: Duration = Duration::from_millis(100);

/// After so many failures in a row a worker that cannot be started is told once more.
const LONG_TROUBLE: u32 = 9;

/// Follows the worker of `vm` in a task of its own until the machine has ended. `fresh`: it was just launched.
/// Does nothing when it is followed already.
pub fn supervise(app: &Arc<App>, vm: VmId, fresh: bool) {
    let connection: Arc<Connection> = Arc::new(watch::Sender::new(None));
    {
        let mut table = app.workers.table();
        if table.contains_key(&vm) {
            return;
        }
        table.insert(vm, Arc::clone(&connection));
    }
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let last = follow(&app, vm, &connection, fresh).await;
        let last = at_rest(&app, vm, last).await;
        app.workers.table().remove(&vm);
        if let Err(error) = app.store.set_boot(vm, String::new()).await {
            tracing::error!(%vm, error = chain(&error), "the end of a machine could not be written");
        }
        // Before it can be started again: a worker that was killed together with QEMU could not do it.
        let settings = app.processors.settings().clone();
        let _ = tokio::task::spawn_blocking(move || backstay_worker::processors::tidy(&settings, vm)).await;
        app.inventory.set_state(vm, last.0, last.1);
        app.processors.changed();
        kick_merges(&app);
        // It has been on since the host was booted, and it gave its memory back.
        app.host.started(vm);
        app.host.note_room();
    });
}

/// The state in which the machine ended.
pub(super) type Ending = (VmState, Option<String>);

/// What is known of the workers of one machine beyond the inventory.
pub(super) struct Following {
    pub(super) ending: Ending,
    /// When the connection to the last worker ended, in milliseconds since the Unix epoch.
    pub(super) lost_at_unix_ms: Option<i64>,
}

async fn follow(app: &Arc<App>, vm: VmId, connection: &Connection, fresh: bool) -> Ending {
    let mut following = Following { ending: (VmState::Off, None), lost_at_unix_ms: None };
    let folder = app.workers.run_folder(vm);
    let (control, launch) = (folder.join(CONTROL_SOCKET), folder.join(LAUNCH_RECORD));
    let mut patience = if fresh { STARTING } else { ADOPTING };
    let mut failures = 0u32;
    loop {
        match connect(&control, &launch, patience).await {
            Ok(client) => {
                failures = 0;
                hear(app, vm, connection, Arc::new(client), &mut following).await;
                following.lost_at_unix_ms = Some(jiff::Timestamp::now().as_millisecond());
            }
            Err(error) => tracing::debug!(%vm, error = chain(&error), "no worker answers"),
        }
        connection.send_replace(None);
        if !launch.exists() {
            break;
        }
        // It died before its machine ended, or has not been started since the daemon was.
        tokio::time::sleep(pause_before(failures)).await;
        respawn(app, vm, failures).await;
        failures += 1;
        patience = STARTING;
    }
    // What it said between the last event that was heard and its end.
    let cursor = ingest::cursor(app, vm).await;
    for event in read_spool(&folder.join(EVENT_SPOOL), cursor).unwrap_or_default() {
        ingest::event(app, vm, event, &mut following).await;
    }
    following.ending
}

/// Connects as soon as the worker listens. One whose machine ended at once may be gone before it was ever seen: then there
/// is nothing to wait for.
async fn connect(control: &Path, launch: &Path, patience: Duration) -> Result<WorkerClient, ClientError> {
    let deadline = Instant::now() + patience;
    loop {
        match WorkerClient::connect(control).await {
            Err(error) if Instant::now() >= deadline || !launch.exists() => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            connected => return connected,
        }
    }
}

/// The first attempt is at once; a worker that cannot be started must not eat the host.
fn pause_before(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        1..=3 => Duration::from_millis(500),
        4..=8 => Duration::from_secs(5),
        _ => Duration::from_secs(30),
    }
}

async fn respawn(app: &Arc<App>, vm: VmId, failures: u32) {
    let (executable, folder) = (app.workers.executable.clone(), app.workers.run_folder(vm));
    let started = tokio::task::spawn_blocking(move || spawn::respawn(&executable, &folder)).await;
    let name = app.name_of(vm);
    match started {
        Ok(Ok(pid)) => {
            *app.workers.restart_counts().entry(vm).or_default() += 1;
            let reason = format!("the machine's worker had ended: process {pid} takes over");
            app.events
                .vm(
                    vm,
                    &name,
                    Happening {
                        kind: "worker.respawned",
                        who: "backstay",
                        reason,
                        before: None,
                        after: None,
                    },
                )
                .await;
        }
        // One is there already, for example started by a former daemon in its last moment.
        Ok(Err(SpawnError::Running(_))) | Err(_) => {}
        Ok(Err(error)) => {
            let reason = format!("its worker cannot be started: {}", chain(&error));
            // Without its worker the guest stands still at its next disk request.
            let state = match app.inventory.get(vm).map(|machine| machine.state) {
                Ok(VmState::Starting) => VmState::Starting,
                _ => VmState::PausedCritical,
            };
            app.inventory.set_state(vm, state, Some(reason.clone()));
            if failures == 0 || failures == LONG_TROUBLE {
                app.events
                    .vm(
                        vm,
                        &name,
                        Happening {
                            kind: "worker.failed",
                            who: "backstay",
                            reason,
                            before: None,
                            after: None,
                        },
                    )
                    .await;
            }
        }
    }
}

/// Listens to one worker until its connection ends.
async fn hear(
    app: &Arc<App>,
    vm: VmId,
    connection: &Connection,
    client: Arc<WorkerClient>,
    following: &mut Following,
) {
    let Some(status) = ingest::status(app, vm, &client).await else { return };
    let cursor = ingest::cursor(app, vm).await;
    let cursor = if status.last_event < cursor {
        // A run folder that was lost with a reboot starts to count anew.
        app.events.forget_heard(vm);
        if let Err(error) = app.store.set_cursor(vm, 0).await {
            tracing::error!(%vm, error = chain(&error), "the history cannot be written");
        }
        0
    } else {
        cursor
    };
    let mut events = match client.events(cursor).await {
        Ok(events) => events,
        Err(error) => {
            tracing::warn!(%vm, error = chain(&error), "the worker's events cannot be followed");
            return;
        }
    };
    connection.send_replace(Some(client));
    app.processors.changed();
    let app_too = Arc::clone(app);
    // It may have missed a change while it was away.
    tokio::spawn(async move {
        if let Err(failure) = share_limits(&app_too, vm).await {
            tracing::info!(%vm, error = failure.full_message(), "the limits of its disks may not act");
        }
    });
    while let Some(event) = events.next().await {
        ingest::event(app, vm, event, following).await;
    }
}

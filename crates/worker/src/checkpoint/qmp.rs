//! The migration commands of a checkpoint.

use backstay_qemu::qmp::{MigrateInfo, MigrateParameters, MigrationStatus, Qmp, QmpError, QmpEvent};
use std::time::Duration;
use tokio::time::Instant;

/// Every capability that would change the stream if a former save had left it on.
const ALL: [&str; 3] = ["background-snapshot", "mapped-ram", "multifd"];
/// Parallel writers of a mapped-ram file.
const CHANNELS: u8 = 2;
/// How long a cancelled migration may take to end.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);

/// The number under which QEMU gets a memory file. It opens none by name: it may see none, and have no right to.
const MEMORY_FILE: u32 = 77;

/// Hands QEMU a memory file, opened for writing (a save) or reading (a restore); returns what to call it.
///
/// # Errors
/// As QMP.
pub async fn hand_over(qmp: &Qmp, file: std::fs::File) -> Result<String, QmpError> {
    qmp.add_file(MEMORY_FILE, file.into()).await?;
    Ok(format!("file:/dev/fdset/{MEMORY_FILE}"))
}

/// Takes the memory file back.
pub async fn take_back(qmp: &Qmp) {
    if let Err(error) = qmp.remove_file(MEMORY_FILE).await {
        tracing::debug!(%error, "QEMU keeps a memory file open");
    }
}

/// Sets exactly `capabilities` and removes the bandwidth limit (QEMU's own is 128 MiB/s).
///
/// # Errors
/// As QMP.
pub async fn set_up(qmp: &Qmp, capabilities: &[&str]) -> Result<(), QmpError> {
    // Off first: QEMU checks the set after each request, and some pairs exclude each other.
    let off: Vec<_> = ALL.iter().map(|&name| (name, false)).collect();
    qmp.migrate_set_capabilities(&off).await?;
    let mut on: Vec<_> =
        ALL.iter().filter(|name| capabilities.contains(name)).map(|&name| (name, true)).collect();
    on.push(("events", true));
    qmp.migrate_set_capabilities(&on).await?;
    let channels = capabilities.contains(&"multifd").then_some(CHANNELS);
    qmp.migrate_set_parameters(MigrateParameters {
        max_bandwidth: Some(0),
        multifd_channels: channels,
        ..MigrateParameters::default()
    })
    .await
}

/// QEMU's words if the migration has failed or was cancelled.
#[must_use]
pub fn failure(info: &MigrateInfo) -> Option<String> {
    match info.status {
        MigrationStatus::Failed => Some(info.error_desc.clone().unwrap_or_else(|| "no reason given".into())),
        MigrationStatus::Cancelled | MigrationStatus::Cancelling => Some("it was cancelled".into()),
        _ => None,
    }
}

/// Ends a migration that may be under way and waits for its end, so that the next command finds QEMU at rest.
pub async fn end_migration(qmp: &Qmp) {
    let deadline = Instant::now() + CANCEL_PATIENCE;
    while Instant::now() < deadline {
        match qmp.query_migrate().await {
            Ok(info) if info.status.is_final() || info.status == MigrationStatus::None => return,
            Ok(info) if info.status != MigrationStatus::Cancelling => {
                if qmp.migrate_cancel().await.is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(_) => return, // QEMU is gone, and its migration with it
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tracing::warn!("QEMU did not end a cancelled migration");
}

/// Microseconds between the first `STOP` and the first `RESUME` after it; 0 without them.
pub fn pause_us(events: impl Iterator<Item = QmpEvent>) -> u64 {
    let mut stopped = None;
    for event in events {
        match (event.name.as_str(), stopped) {
            ("STOP", None) => stopped = Some(event.at_unix_us),
            ("RESUME", Some(at)) => return event.at_unix_us.saturating_sub(at),
            _ => {}
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, at_unix_us: u64) -> QmpEvent {
        QmpEvent { name: name.into(), data: serde_json::Value::Null, at_unix_us }
    }

    #[test]
    fn a_pause_is_from_stop_to_resume() {
        let events = [event("MIGRATION", 1), event("STOP", 100), event("STOP", 150), event("RESUME", 400)];
        assert_eq!(pause_us(events.into_iter()), 300);
        assert_eq!(pause_us([event("RESUME", 5)].into_iter()), 0);
    }
}

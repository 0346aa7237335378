//! Tables and their versions.

use super::StoreError;
use rusqlite::Connection;
use std::path::Path;

/// One statement batch per schema version, applied in order.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE task (
        id           TEXT PRIMARY KEY,
        vm           TEXT,
        created_ms   INTEGER NOT NULL,
        final        INTEGER NOT NULL,
        record       TEXT NOT NULL,
        note         TEXT,
        idem_key     TEXT UNIQUE,
        idem_request TEXT
    );
    CREATE INDEX task_by_time ON task (created_ms);
    CREATE INDEX task_by_vm ON task (vm, created_ms);
    CREATE TABLE event (
        seq         INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms       INTEGER NOT NULL,
        vm          TEXT,
        object_kind TEXT NOT NULL,
        name        TEXT NOT NULL,
        kind        TEXT NOT NULL,
        who         TEXT NOT NULL,
        reason      TEXT NOT NULL,
        before      TEXT,
        after       TEXT
    );
    CREATE INDEX event_by_vm ON event (vm, seq);
    CREATE INDEX event_by_time ON event (at_ms);
    CREATE TABLE folder (path TEXT PRIMARY KEY);
    CREATE TABLE runtime (
        vm         TEXT PRIMARY KEY,
        last_event INTEGER NOT NULL,
        boot_id    TEXT NOT NULL
    );
",
    // How much an event asks for attention (0 info, 1 warning, 2 error), and the values that changed, as JSON.
    "
    ALTER TABLE event ADD COLUMN severity INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE event ADD COLUMN changes TEXT;
    UPDATE event SET severity = 2 WHERE kind IN ('vm.qemu-died', 'worker.failed', 'disk.stalled', 'vm.start-failed')
        OR (kind = 'vm.state' AND after IN ('failed', 'paused-critical'));
    UPDATE event SET severity = 1 WHERE kind IN ('vm.warning', 'worker.respawned', 'disk.merge-pending');
    CREATE INDEX event_by_severity ON event (severity, seq) WHERE severity > 0;
",
];

/// The tables as the first version made them.
#[cfg(test)]
pub(super) const FIRST_VERSION: &str = MIGRATIONS[0];

/// Opens the database and brings it to the current version.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::Open { path: path.into(), source };
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    // A task that was answered with 202 must survive power loss.
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(failed)?;
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(StoreError::Newer { path: path.into(), found, known });
    }
    let start = usize::try_from(found).unwrap_or(0);
    for (version, statements) in (1i64..).zip(MIGRATIONS).skip(start) {
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(statements).map_err(failed)?;
        transaction.pragma_update(None, "user_version", version).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(connection)
}

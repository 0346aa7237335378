//! Events in the database.

use super::{Store, StoreError};
use backstay_api::{Event, ObjectKind, ObjectRef};
use backstay_model::VmId;
use jiff::Timestamp;
use rusqlite::{Connection, Row, params};
use tokio::sync::broadcast;

/// An event before it has a number.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// When.
    pub at: Timestamp,
    /// What it is about.
    pub object: ObjectRef,
    /// What happened.
    pub kind: &'static str,
    /// Who did it.
    pub who: String,
    /// Why.
    pub reason: String,
    /// What it was.
    pub before: Option<String>,
    /// What it is now.
    pub after: Option<String>,
}

/// Events that are kept.
const KEPT_EVENTS: i64 = 100_000;

impl Store {
    /// Writes an event, numbers it and tells `live`, so that listeners see numbers in order. An event that came from a worker moves that worker's cursor in the same
    /// transaction, so that it is neither lost nor written twice.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn insert_event(
        &self,
        event: NewEvent,
        cursor: Option<(VmId, u64)>,
        live: broadcast::Sender<Event>,
    ) -> Result<(), StoreError> {
        self.call(move |db| {
            let db = db.transaction()?;
            db.execute(
                "INSERT INTO event (at_ms, vm, object_kind, name, kind, who, reason, before, after)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                params![
                    event.at.as_millisecond(),
                    event.object.id.map(|id| VmId(id).to_string()),
                    event.object.kind.as_str(),
                    event.object.name,
                    event.kind,
                    event.who,
                    event.reason,
                    event.before,
                    event.after
                ],
            )?;
            let seq = db.last_insert_rowid();
            if seq % 1000 == 0 {
                db.execute("DELETE FROM event WHERE seq <= ?1", params![seq - KEPT_EVENTS])?;
            }
            if let Some((vm, last_event)) = cursor {
                write_cursor(&db, vm, last_event)?;
            }
            db.commit()?;
            // Nobody listening is fine.
            let _ = live.send(Event {
                seq: u64::try_from(seq).unwrap_or(0),
                at: event.at,
                object: event.object,
                kind: event.kind.into(),
                who: event.who,
                reason: event.reason,
                before: event.before,
                after: event.after,
            });
            Ok(())
        })
        .await
    }

    /// Events after number `after` and at or after `since`, oldest first; with neither, the newest ones.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn events(
        &self,
        vm: Option<VmId>,
        since: Option<Timestamp>,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        let newest = since.is_none() && after.is_none();
        let order = if newest { "DESC" } else { "ASC" };
        let sql = format!(
            "SELECT seq, at_ms, vm, object_kind, name, kind, who, reason, before, after FROM event
             WHERE (?1 IS NULL OR vm = ?1) AND at_ms >= ?2 AND seq > ?3 ORDER BY seq {order} LIMIT ?4"
        );
        let since = since.map_or(i64::MIN, Timestamp::as_millisecond);
        let after = i64::try_from(after.unwrap_or(0)).unwrap_or(i64::MAX);
        self.call(move |db| {
            let mut query = db.prepare(&sql)?;
            let rows = query.query_map(params![vm.map(|v| v.to_string()), since, after, limit], read)?;
            let mut found: Vec<Event> = rows.collect::<Result<_, _>>()?;
            if newest {
                found.reverse();
            }
            Ok(found)
        })
        .await
    }

    /// The highest number so far.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn last_event(&self) -> Result<u64, StoreError> {
        self.call(|db| {
            let last: i64 = db.query_row("SELECT COALESCE(MAX(seq), 0) FROM event", [], |row| row.get(0))?;
            Ok(u64::try_from(last).unwrap_or(0))
        })
        .await
    }
}

/// Notes how far a worker's events were taken over.
pub(super) fn write_cursor(db: &Connection, vm: VmId, last_event: u64) -> rusqlite::Result<()> {
    db.execute(
        "INSERT INTO runtime (vm, last_event, boot_id) VALUES (?1, ?2, '')
         ON CONFLICT (vm) DO UPDATE SET last_event = ?2",
        params![vm.to_string(), i64::try_from(last_event).unwrap_or(i64::MAX)],
    )?;
    Ok(())
}

fn read(row: &Row<'_>) -> rusqlite::Result<Event> {
    let vm: Option<String> = row.get("vm")?;
    let kind: String = row.get("object_kind")?;
    Ok(Event {
        seq: u64::try_from(row.get::<_, i64>("seq")?).unwrap_or(0),
        at: Timestamp::from_millisecond(row.get("at_ms")?).unwrap_or_default(),
        object: ObjectRef {
            kind: if kind == ObjectKind::Vm.as_str() { ObjectKind::Vm } else { ObjectKind::Host },
            id: vm.and_then(|text| text.parse::<VmId>().ok()).map(|vm| vm.0),
            name: row.get("name")?,
        },
        kind: row.get("kind")?,
        who: row.get("who")?,
        reason: row.get("reason")?,
        before: row.get("before")?,
        after: row.get("after")?,
    })
}

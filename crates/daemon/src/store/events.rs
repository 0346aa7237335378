//! Events in the database.

use super::{Store, StoreError};
use crate::events::Wanted;
use backstay_api::{Change, Event, ObjectKind, ObjectRef, Severity};
use backstay_model::VmId;
use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, Row, params, params_from_iter};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
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
    /// How much it asks for attention.
    pub severity: Severity,
    /// Who did it.
    pub who: String,
    /// Why.
    pub reason: String,
    /// What it was.
    pub before: Option<String>,
    /// What it is now.
    pub after: Option<String>,
    /// Values that changed.
    pub changes: Vec<Change>,
}

/// Events that are kept.
const KEPT_EVENTS: i64 = 100_000;

/// Events that wait because the database's volume is full; beyond that the newest are lost.
const WAITING: usize = 10_000;

/// Events that could not be written yet, in order.
pub(crate) type Late = Arc<Mutex<VecDeque<Writing>>>;

/// An event on its way into the database.
#[derive(Debug)]
pub(crate) struct Writing {
    pub(crate) event: NewEvent,
    /// The worker that told it, and its number there.
    pub(crate) cursor: Option<(VmId, u64)>,
    /// Whom to tell.
    pub(crate) live: broadcast::Sender<Event>,
}

impl Store {
    /// Writes `new` behind all that is late, numbers it and tells `live`, so that listeners see numbers in order. An event
    /// that came from a worker moves that worker's cursor in the same transaction, so that it is neither lost nor written
    /// twice. On a full volume it becomes late itself; returns how many are.
    ///
    /// # Errors
    /// [`StoreError`] of another kind; the event is lost then.
    pub(crate) async fn insert_event(&self, late: Late, new: Option<Writing>) -> Result<usize, StoreError> {
        self.call(move |db| {
            let mut late = late.lock().unwrap_or_else(PoisonError::into_inner);
            late.extend(new);
            while let Some(first) = late.front() {
                match insert(db, first) {
                    Err(error) if error.is_full() => {
                        if late.len() > WAITING {
                            late.pop_back();
                            return Err(error);
                        }
                        return Ok(late.len());
                    }
                    result => {
                        late.pop_front();
                        result?;
                    }
                }
            }
            Ok(0)
        })
        .await
    }

    /// The wanted events, oldest first: with `since` or `after` the first ones from there on, else the newest ones.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn events(&self, wanted: Wanted, limit: u32) -> Result<Vec<Event>, StoreError> {
        let newest = wanted.since.is_none() && wanted.after.is_none();
        let (conditions, mut values) = conditions(&wanted);
        let order = if newest { "DESC" } else { "ASC" };
        let sql = format!(
            "SELECT seq, at_ms, vm, object_kind, name, kind, who, reason, before, after, severity, changes
             FROM event WHERE {conditions} ORDER BY seq {order} LIMIT ?"
        );
        values.push(Value::Integer(limit.into()));
        self.call(move |db| {
            let mut query = db.prepare(&sql)?;
            let rows = query.query_map(params_from_iter(values), read)?;
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

fn insert(db: &mut Connection, writing: &Writing) -> Result<(), StoreError> {
    let event = &writing.event;
    let changes = match event.changes.as_slice() {
        [] => None,
        changes => Some(serde_json::to_string(changes).map_err(StoreError::Record)?),
    };
    let db = db.transaction()?;
    db.execute(
        "INSERT INTO event (at_ms, vm, object_kind, name, kind, who, reason, before, after, severity, changes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        params![
            event.at.as_millisecond(),
            event.object.id.map(|id| VmId(id).to_string()),
            event.object.kind.as_str(),
            event.object.name,
            event.kind,
            event.who,
            event.reason,
            event.before,
            event.after,
            rank(event.severity),
            changes
        ],
    )?;
    let seq = db.last_insert_rowid();
    if seq % 1000 == 0 {
        db.execute("DELETE FROM event WHERE seq <= ?1", params![seq - KEPT_EVENTS])?;
    }
    if let Some((vm, last_event)) = writing.cursor {
        write_cursor(&db, vm, last_event)?;
    }
    db.commit()?;
    let event = event.clone();
    // Nobody listening is fine.
    let _ = writing.live.send(Event {
        seq: u64::try_from(seq).unwrap_or(0),
        at: event.at,
        object: event.object,
        kind: event.kind.into(),
        severity: event.severity,
        who: event.who,
        reason: event.reason,
        before: event.before,
        after: event.after,
        changes: event.changes,
    });
    Ok(())
}

/// A severity as a number that compares.
fn rank(severity: Severity) -> i64 {
    match severity {
        Severity::Info => 0,
        Severity::Warning => 1,
        Severity::Error => 2,
    }
}

/// The same choice as [`Wanted::takes`], for the database: conditions and their values in order.
fn conditions(wanted: &Wanted) -> (String, Vec<Value>) {
    let after = i64::try_from(wanted.after.unwrap_or(0)).unwrap_or(i64::MAX);
    let mut conditions = vec!["seq > ?".to_owned(), "severity >= ?".to_owned()];
    let mut values = vec![Value::Integer(after), Value::Integer(rank(wanted.severity))];
    let mut and = |condition: &str, value: Value| {
        conditions.push(condition.to_owned());
        values.push(value);
    };
    if let Some(vm) = wanted.vm {
        and("vm = ?", Value::Text(vm.to_string()));
    }
    if let Some(since) = wanted.since {
        and("at_ms >= ?", Value::Integer(since.as_millisecond()));
    }
    if let Some(until) = wanted.until {
        and("at_ms < ?", Value::Integer(until.as_millisecond()));
    }
    if let Some(who) = &wanted.who {
        and("who = ?", Value::Text(who.clone()));
    }
    if !wanted.kinds.is_empty() {
        let each = vec!["kind = ? OR substr(kind, 1, length(?) + 1) = ? || '.'"; wanted.kinds.len()];
        conditions.push(format!("({})", each.join(" OR ")));
        values.extend(wanted.kinds.iter().flat_map(|kind| vec![Value::Text(kind.clone()); 3]));
    }
    (conditions.join(" AND "), values)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Event> {
    let vm: Option<String> = row.get("vm")?;
    let kind: String = row.get("object_kind")?;
    let changes: Option<String> = row.get("changes")?;
    Ok(Event {
        seq: u64::try_from(row.get::<_, i64>("seq")?).unwrap_or(0),
        at: Timestamp::from_millisecond(row.get("at_ms")?).unwrap_or_default(),
        object: ObjectRef {
            kind: if kind == ObjectKind::Vm.as_str() { ObjectKind::Vm } else { ObjectKind::Host },
            id: vm.and_then(|text| text.parse::<VmId>().ok()).map(|vm| vm.0),
            name: row.get("name")?,
        },
        kind: row.get("kind")?,
        severity: match row.get::<_, i64>("severity")? {
            0 => Severity::Info,
            1 => Severity::Warning,
            _ => Severity::Error,
        },
        who: row.get("who")?,
        reason: row.get("reason")?,
        before: row.get("before")?,
        after: row.get("after")?,
        changes: changes.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;

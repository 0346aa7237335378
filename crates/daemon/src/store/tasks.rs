//! Tasks in the database. The record is the task as the API shows it, in JSON; the columns are what is searched.

use super::{Store, StoreError};
use backstay_api::Task;
use backstay_model::{CheckpointId, TaskId, VmId};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;

/// What a task needs to be taken up again by the next daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "doing")]
pub enum TaskNote {
    /// A checkpoint that is being taken.
    Checkpoint {
        /// The machine.
        vm: VmId,
        /// Its checkpoint.
        checkpoint: CheckpointId,
        /// Display name.
        name: String,
        /// Free text.
        notes: String,
        /// When it was begun, in milliseconds since the Unix epoch.
        created_unix_ms: i64,
    },
    /// A machine that is being cloned.
    Clone {
        /// Its configuration, written last: where it is missing there is no machine.
        config: PathBuf,
        /// Disks that were made for it.
        files: Vec<PathBuf>,
        /// The disk that is made now, and what children will name it by: another file of that name is somebody else's.
        #[serde(default)]
        next: Option<(PathBuf, Uuid)>,
    },
    /// A checkpoint that is being exported.
    Export {
        /// Its configuration, written last: where it is missing there is no machine.
        config: PathBuf,
        /// What is written before.
        files: Vec<PathBuf>,
        /// The folders for all that, the innermost first.
        folders: Vec<PathBuf>,
    },
}

/// A task that was not finished when its daemon ended.
#[derive(Clone, Debug)]
pub struct StoredTask {
    /// The task.
    pub task: Task,
    /// What it needs to go on.
    pub note: Option<TaskNote>,
}

/// The call a task came from, to recognise its repetition.
#[derive(Clone, Debug)]
pub(crate) struct Idempotency {
    /// The caller's key.
    pub(crate) key: String,
    /// Method, path and body.
    pub(crate) request: String,
}

fn encode(task: &Task) -> Result<String, StoreError> {
    serde_json::to_string(task).map_err(StoreError::Record)
}

fn decode(text: &str) -> Result<Task, StoreError> {
    serde_json::from_str(text).map_err(StoreError::Record)
}

/// Finished tasks that are kept.
const KEPT_TASKS: i64 = 10_000;

impl Store {
    /// Writes a new task.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn insert_task(
        &self,
        task: &Task,
        vm: Option<VmId>,
        idempotency: Option<Idempotency>,
    ) -> Result<(), StoreError> {
        let record = encode(task)?;
        let (id, created) = (task.id.to_string(), task.created.as_millisecond());
        let (key, request) = idempotency.map(|i| (i.key, i.request)).unzip();
        self.call(move |db| {
            db.execute(
                "INSERT INTO task (id, vm, created_ms, final, record, idem_key, idem_request)
                 VALUES (?1, ?2, ?3, 0, ?4, ?5, ?6)",
                params![id, vm.map(|v| v.to_string()), created, record, key, request],
            )?;
            db.execute(
                "DELETE FROM task WHERE final = 1 AND created_ms < (SELECT created_ms FROM task
                 ORDER BY created_ms DESC LIMIT 1 OFFSET ?1)",
                params![KEPT_TASKS],
            )?;
            Ok(())
        })
        .await
    }

    /// Writes a task's change.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn update_task(&self, task: &Task) -> Result<(), StoreError> {
        let record = encode(task)?;
        let (id, is_final) = (task.id.to_string(), task.state.is_final());
        self.call(move |db| {
            db.execute(
                "UPDATE task SET record = ?2, final = ?3 WHERE id = ?1",
                params![id, record, is_final],
            )?;
            Ok(())
        })
        .await
    }

    /// Writes what a task needs to go on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn note_task(&self, task: TaskId, note: &TaskNote) -> Result<(), StoreError> {
        let note = serde_json::to_string(note).map_err(StoreError::Record)?;
        self.call(move |db| {
            db.execute("UPDATE task SET note = ?2 WHERE id = ?1", params![task.to_string(), note])?;
            Ok(())
        })
        .await
    }

    /// What the last checkpoint task of `vm` noted, whether or not it has ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn checkpoint_note(&self, vm: VmId) -> Result<Option<TaskNote>, StoreError> {
        self.call(move |db| {
            let note: Option<String> = db
                .query_row(
                    "SELECT note FROM task WHERE vm = ?1 AND note IS NOT NULL
                     ORDER BY created_ms DESC, rowid DESC LIMIT 1",
                    params![vm.to_string()],
                    |row| row.get(0),
                )
                .optional()?;
            Ok(note.and_then(|text| serde_json::from_str(&text).ok()))
        })
        .await
    }

    /// One task.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn task(&self, task: TaskId) -> Result<Option<Task>, StoreError> {
        self.call(move |db| {
            let record: Option<String> = db
                .query_row("SELECT record FROM task WHERE id = ?1", params![task.to_string()], |row| {
                    row.get(0)
                })
                .optional()?;
            record.as_deref().map(decode).transpose()
        })
        .await
    }

    /// The task that came from the call with this key, and that call.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn task_by_key(&self, key: String) -> Result<Option<(Task, String)>, StoreError> {
        self.call(move |db| {
            let row: Option<(String, Option<String>)> = db
                .query_row("SELECT record, idem_request FROM task WHERE idem_key = ?1", params![key], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()?;
            row.map(|(record, request)| Ok((decode(&record)?, request.unwrap_or_default()))).transpose()
        })
        .await
    }

    /// Tasks, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn tasks(
        &self,
        vm: Option<VmId>,
        active: bool,
        limit: u32,
    ) -> Result<Vec<Task>, StoreError> {
        self.call(move |db| {
            let sql = "SELECT record FROM task WHERE (?1 IS NULL OR vm = ?1) AND (?2 = 0 OR final = 0)
                       ORDER BY created_ms DESC, rowid DESC LIMIT ?3";
            let values = params![vm.map(|v| v.to_string()), active, limit];
            texts(db, sql, values)?.iter().map(|text| decode(text)).collect()
        })
        .await
    }

    /// Tasks that a former daemon did not finish, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn unfinished_tasks(&self) -> Result<Vec<StoredTask>, StoreError> {
        self.call(|db| {
            let mut query =
                db.prepare("SELECT record, note FROM task WHERE final = 0 ORDER BY created_ms, rowid")?;
            let rows = query
                .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?)))?;
            let mut found = Vec::new();
            for row in rows {
                let (record, note) = row?;
                // A note of a newer version is no reason to lose the task: it ends as interrupted.
                let note = note.and_then(|text| serde_json::from_str(&text).ok());
                found.push(StoredTask { task: decode(&record)?, note });
            }
            Ok(found)
        })
        .await
    }
}

fn texts(db: &Connection, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<String>, StoreError> {
    let mut query = db.prepare(sql)?;
    let rows = query.query_map(values, |row| row.get::<_, String>(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

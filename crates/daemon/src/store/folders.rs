//! Registered folders, and what ran last.

use super::{Store, StoreError};
use backstay_model::VmId;
use rusqlite::{OptionalExtension, params};
use std::path::{Path, PathBuf};

impl Store {
    /// Folders that were registered.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn folders(&self) -> Result<Vec<PathBuf>, StoreError> {
        self.call(|db| {
            let mut query = db.prepare("SELECT path FROM folder ORDER BY path")?;
            let rows = query.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|row| Ok(PathBuf::from(row?))).collect()
        })
        .await
    }

    /// Remembers a folder.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn add_folder(&self, path: &Path) -> Result<(), StoreError> {
        let path = path.to_string_lossy().into_owned();
        self.call(move |db| {
            db.execute("INSERT OR IGNORE INTO folder (path) VALUES (?1)", params![path])?;
            Ok(())
        })
        .await
    }

    /// Forgets a folder.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn remove_folder(&self, path: &Path) -> Result<(), StoreError> {
        let path = path.to_string_lossy().into_owned();
        self.call(move |db| {
            db.execute("DELETE FROM folder WHERE path = ?1", params![path])?;
            Ok(())
        })
        .await
    }

    /// The last event of its worker that was taken over, and the boot of the host in which the machine is on (empty: it is
    /// off).
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn runtime(&self, vm: VmId) -> Result<Option<(u64, String)>, StoreError> {
        self.call(move |db| {
            let row: Option<(i64, String)> = db
                .query_row(
                    "SELECT last_event, boot_id FROM runtime WHERE vm = ?1",
                    params![vm.to_string()],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )
                .optional()?;
            Ok(row.map(|(last, boot)| (u64::try_from(last).unwrap_or(0), boot)))
        })
        .await
    }

    /// Notes that a machine is on, in this boot of the host; an empty boot id: that it is off.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn set_boot(&self, vm: VmId, boot: String) -> Result<(), StoreError> {
        self.call(move |db| {
            db.execute(
                "INSERT INTO runtime (vm, last_event, boot_id) VALUES (?1, 0, ?2)
                 ON CONFLICT (vm) DO UPDATE SET boot_id = ?2",
                params![vm.to_string(), boot],
            )?;
            Ok(())
        })
        .await
    }

    /// Notes how far a worker's events were taken over.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn set_cursor(&self, vm: VmId, last_event: u64) -> Result<(), StoreError> {
        self.call(move |db| Ok(super::events::write_cursor(db, vm, last_event)?)).await
    }

    /// Forgets a machine that was deleted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) async fn forget_runtime(&self, vm: VmId) -> Result<(), StoreError> {
        self.call(move |db| {
            db.execute("DELETE FROM runtime WHERE vm = ?1", params![vm.to_string()])?;
            Ok(())
        })
        .await
    }
}

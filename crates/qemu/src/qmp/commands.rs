//! Typed forms of the commands that are used.

use super::{
    BlockDevice, Capability, CpuThread, MigrateInfo, MigrateParameters, Qmp, QmpError, RunState, StatusInfo,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::Path;

impl Qmp {
    async fn ask<T: DeserializeOwned>(&self, command: &str) -> Result<T, QmpError> {
        let value = self.execute(command, Value::Null).await?;
        serde_json::from_value(value)
            .map_err(|source| QmpError::Malformed { command: command.to_owned(), source })
    }

    async fn tell(&self, command: &str, arguments: Value) -> Result<(), QmpError> {
        self.execute(command, arguments).await.map(drop)
    }

    /// Run state.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_status(&self) -> Result<StatusInfo, QmpError> {
        self.ask("query-status").await
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.tell("cont", Value::Null).await
    }

    /// Stops the guest; returns when all disk requests in flight are done and flushed. Hangs (with all other commands)
    /// while a disk server is away, until [`Qmp::yank`].
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.tell("stop", Value::Null).await
    }

    /// Reset button.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn system_reset(&self) -> Result<(), QmpError> {
        self.tell("system_reset", Value::Null).await
    }

    /// ACPI power button.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn system_powerdown(&self) -> Result<(), QmpError> {
        self.tell("system_powerdown", Value::Null).await
    }

    /// Ends QEMU. The connection may end before the answer comes, which is no error here.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn quit(&self) -> Result<(), QmpError> {
        match self.tell("quit", Value::Null).await {
            Err(QmpError::Disconnected { .. }) => Ok(()),
            other => other,
        }
    }

    /// Hands QEMU an open file that it then opens as `/dev/fdset/SET`, in the same way (read or write) only. A file that
    /// was handed over under this number before is forgotten.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn add_file(&self, set: u32, file: std::os::fd::OwnedFd) -> Result<(), QmpError> {
        self.remove_file(set).await?;
        self.execute_with_file("add-fd", json!({ "fdset-id": set }), file).await.map(drop)
    }

    /// Takes back what was handed over; nothing is fine.
    ///
    /// # Errors
    /// As [`Qmp::execute`], except for QEMU's refusal.
    pub async fn remove_file(&self, set: u32) -> Result<(), QmpError> {
        match self.tell("remove-fd", json!({ "fdset-id": set })).await {
            Err(QmpError::Refused { .. }) => Ok(()),
            other => other,
        }
    }

    /// Progress of the current or last migration.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_migrate(&self) -> Result<MigrateInfo, QmpError> {
        self.ask("query-migrate").await
    }

    /// Starts to write memory and devices to `uri` (`unix:/path`, `file:/path`, `tcp:host:port`).
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate(&self, uri: &str) -> Result<(), QmpError> {
        self.tell("migrate", json!({ "uri": uri })).await
    }

    /// Starts to load from `uri`; QEMU must have been started to wait for a state.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate_incoming(&self, uri: &str) -> Result<(), QmpError> {
        self.tell("migrate-incoming", json!({ "uri": uri })).await
    }

    /// Ends the running migration.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate_cancel(&self) -> Result<(), QmpError> {
        self.tell("migrate_cancel", Value::Null).await
    }

    /// Leaves `pre-switchover`.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate_continue(&self) -> Result<(), QmpError> {
        self.tell("migrate-continue", json!({ "state": "pre-switchover" })).await
    }

    /// Switches migration capabilities on and off; those not named keep their state, so name every one that matters.
    ///
    /// # Errors
    /// As [`Qmp::execute`]; for `background-snapshot` QEMU refuses where userfaultfd cannot be used.
    pub async fn migrate_set_capabilities(
        &self,
        capabilities: &[(&'static str, bool)],
    ) -> Result<(), QmpError> {
        let list: Vec<_> =
            capabilities.iter().map(|&(capability, state)| Capability { capability, state }).collect();
        self.tell("migrate-set-capabilities", json!({ "capabilities": list })).await
    }

    /// Sets migration parameters.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn migrate_set_parameters(&self, parameters: MigrateParameters) -> Result<(), QmpError> {
        self.tell("migrate-set-parameters", json!(parameters)).await
    }

    /// Whether background snapshots work in this process: `Err` carries QEMU's reason. Leaves the capability off.
    ///
    /// # Errors
    /// As [`Qmp::execute`], except that a refusal is the inner result.
    pub async fn probe_background_snapshot(&self) -> Result<Result<(), String>, QmpError> {
        let set = |state| {
            self.migrate_set_capabilities(if state {
                &[("mapped-ram", false), ("multifd", false), ("background-snapshot", true)]
            } else {
                &[("background-snapshot", false)]
            })
        };
        match set(true).await {
            Ok(()) => set(false).await.map(Ok),
            Err(QmpError::Refused { desc, .. }) => Ok(Err(desc)),
            Err(other) => Err(other),
        }
    }

    /// Threads of the virtual processors.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_cpus_fast(&self) -> Result<Vec<CpuThread>, QmpError> {
        self.ask("query-cpus-fast").await
    }

    /// Guest devices with their media.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn query_block(&self) -> Result<Vec<BlockDevice>, QmpError> {
        self.ask("query-block").await
    }

    /// Makes a block node.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn blockdev_add(&self, node: Value) -> Result<(), QmpError> {
        self.tell("blockdev-add", node).await
    }

    /// Removes a block node that nothing uses.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn blockdev_del(&self, node: &str) -> Result<(), QmpError> {
        self.tell("blockdev-del", json!({ "node-name": node })).await
    }

    /// Has the guest see another size of a disk. QEMU knows of a larger NBD disk when it has connected anew, which it does with
    /// the next request: until then it refuses, see [`Qmp::touch`].
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn block_resize(&self, node: &str, size: u64) -> Result<(), QmpError> {
        self.tell("block_resize", json!({ "node-name": node, "size": size })).await
    }

    /// Reads the first sector of a node, so that it connects anew where it has to.
    ///
    /// # Errors
    /// As [`Qmp::execute`]; that the read fails is none.
    pub async fn touch(&self, node: &str) -> Result<(), QmpError> {
        // There is no other way to have QEMU send a request at once.
        let line = format!("qemu-io {node} \"read 0 4k\"");
        self.tell("human-monitor-command", json!({ "command-line": line })).await
    }

    /// Bytes that a node has, as QEMU knows it; none if there is no such node.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn node_size(&self, node: &str) -> Result<Option<u64>, QmpError> {
        let nodes = self.execute("query-named-block-nodes", json!({ "flat": true })).await?;
        let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
        let found = nodes.iter().find(|found| found["node-name"] == node);
        Ok(found.and_then(|found| found["image"]["virtual-size"].as_u64()))
    }

    /// Plugs a device in.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn device_add(&self, device: Value) -> Result<(), QmpError> {
        self.tell("device_add", device).await
    }

    /// Asks for a device to go; it is gone when `DEVICE_DELETED` comes, for which a guest may have to do something.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn device_del(&self, id: &str) -> Result<(), QmpError> {
        self.tell("device_del", json!({ "id": id })).await
    }

    /// Whether a guest device with a medium has that id.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn has_drive(&self, id: &str) -> Result<bool, QmpError> {
        // An id, or the path of the device behind it in the tree of objects.
        let is = |device: &BlockDevice| device.qdev.split('/').any(|part| part == id);
        Ok(self.query_block().await?.iter().any(is))
    }

    /// Writes the screen as PNG. QEMU writes the file itself, so its user must be allowed to.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn screendump(&self, path: &Path) -> Result<(), QmpError> {
        self.tell("screendump", json!({ "filename": path, "format": "png" })).await
    }

    /// Plugs the cable of a network card in or out.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn set_link(&self, device: &str, up: bool) -> Result<(), QmpError> {
        self.tell("set_link", json!({ "name": device, "up": up })).await
    }

    /// Breaks the connections of the named block nodes, past any hanging command: their requests fail at once (with
    /// `werror=stop` the guest stops and never sees it) and they reconnect.
    ///
    /// # Errors
    /// As [`Qmp::execute_oob`].
    pub async fn yank(&self, block_nodes: &[String]) -> Result<(), QmpError> {
        let instances: Vec<_> =
            block_nodes.iter().map(|node| json!({ "type": "block-node", "node-name": node })).collect();
        self.execute_oob("yank", json!({ "instances": instances })).await.map(drop)
    }

    /// Asks until the guest has left `inmigrate`: the state is loaded, or QEMU is about to end.
    ///
    /// # Errors
    /// As [`Qmp::execute`]; a state that cannot be loaded ends QEMU, which is seen as a lost connection.
    pub async fn wait_loaded(&self) -> Result<RunState, QmpError> {
        loop {
            let status = self.query_status().await?.status;
            if status != RunState::Inmigrate {
                return Ok(status);
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
}

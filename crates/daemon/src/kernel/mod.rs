//! What the kernel and the disks themselves say about the host's storage becomes events, for the host and for each
//! machine whose files lie there.

mod devices;
mod log;
mod meaning;
mod record;
mod repeats;
mod smart;

pub use smart::watch as watch_disks;

pub use log::watch as watch_log;

use crate::app::App;
use crate::events::Happening;
use crate::inventory::{Machine, blocking};
use devices::Devices;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

/// Machines with files on a device.
async fn machines_on(app: &App, device: &str) -> Vec<Machine> {
    let machines = app.inventory.all();
    let device = device.to_owned();
    let look = move || {
        let devices = Devices::default();
        let lies_there = |machine: &Machine| {
            let mut files: Vec<_> = machine.disk_places().into_iter().map(|(path, _)| path).collect();
            files.push(machine.config_file.clone());
            let mut seen = BTreeSet::new();
            files.iter().any(|file| {
                let Ok(metadata) = std::fs::metadata(file) else { return false };
                seen.insert((metadata.dev(), file.parent().map(std::path::Path::to_path_buf)))
                    && devices.below(metadata.dev(), file).contains(&device)
            })
        };
        Ok(machines.into_iter().filter(lies_there).collect())
    };
    blocking(look).await.unwrap_or_default()
}

/// Tells of a device, and each machine that has files on it.
async fn tell(app: &App, kind: &'static str, device: &str, what: &str, after: Option<String>) {
    let machines = machines_on(app, device).await;
    let names: Vec<&str> = machines.iter().map(|machine| machine.name().as_str()).collect();
    let there = match names.as_slice() {
        [] => "no machine has files there".to_owned(),
        names => format!("files of these machines lie there: {}", names.join(", ")),
    };
    let happening =
        |reason: String| Happening { kind, who: "kernel", reason, before: None, after: after.clone() };
    app.events.host(happening(format!("{device}: {what}; {there}"))).await;
    for machine in &machines {
        let reason = format!("{device}, on which files of it lie: {what}");
        app.events.vm(machine.id, machine.name().as_str(), happening(reason)).await;
    }
}

//! `vm disks`

use crate::context::Context;
use crate::output::{self, Column};
use backstay_api::VmDisk;
use backstay_model::IoLimit;
use clap::Args;

/// Arguments.
#[derive(Debug, Args)]
pub struct DisksArgs {
    /// Name or GUID
    vm: String,
}

const COLUMNS: [Column<VmDisk>; 9] = [
    Column::new("SLOT", |disk| disk.slot.to_string()),
    Column::new("SIZE", |disk| disk.size.map(output::size).unwrap_or_default()),
    Column::new("LAYERS", |disk| disk.chain.len().to_string()),
    Column::new("LIMIT", |disk| disk.limit.map(|l| IoLimit::from(l).to_string()).unwrap_or_default()),
    Column::new("FILE", |disk| disk.path.display().to_string()),
    Column::wide("READS", |disk| disk.stats.map(|s| s.reads.to_string()).unwrap_or_default()),
    Column::wide("WRITES", |disk| disk.stats.map(|s| s.writes.to_string()).unwrap_or_default()),
    Column::wide("READ", |disk| disk.stats.map(|s| output::size(s.read_bytes)).unwrap_or_default()),
    Column::wide("WRITTEN", |disk| disk.stats.map(|s| output::size(s.written_bytes)).unwrap_or_default()),
];

/// Runs it.
pub async fn run(context: &Context, args: &DisksArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let list = client.vm_disks(client.resolve_vm(&args.vm).await?).await?;
    output::list(context.format, &list.items, &COLUMNS, |disk| disk.path.display().to_string())?;
    for disk in &list.items {
        if let Some(error) = &disk.error {
            context.warn(format!("{}: {error}", disk.slot));
        }
    }
    Ok(())
}

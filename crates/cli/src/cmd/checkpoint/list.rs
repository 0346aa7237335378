//! `checkpoint list`

use crate::context::Context;
use crate::output::{self, Column, Format};
use backstay_api::{CheckpointInfo, CheckpointLine, CheckpointList};
use clap::Args;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  backstay checkpoint list web --tree\n  backstay checkpoint list web -o json | jq -r '.items[].id'"
)]
pub struct ListArgs {
    /// The machine: name or GUID
    vm: String,
    /// As a tree that ends in Now
    #[arg(long)]
    tree: bool,
}

const COLUMNS: [Column<CheckpointInfo>; 9] = [
    Column::new("NAME", |c| c.name.clone()),
    Column::new("CREATED", |c| output::time(c.created)),
    Column::new("MEMORY", memory),
    Column::new("DISKS", |c| c.disks.len().to_string()),
    Column::new("ON DISK", |c| output::size(c.bytes_on_disk)),
    Column::wide("METHOD", method),
    Column::wide("ID", |c| c.id.to_string()),
    Column::wide("PARENT", |c| c.parent.map(|parent| parent.to_string()).unwrap_or_default()),
    Column::wide("NOTES", |c| c.notes.clone()),
];

/// Runs it.
pub async fn run(context: &Context, args: &ListArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let list = client.checkpoints(client.resolve_vm(&args.vm).await?).await?;
    match context.format {
        // The whole answer: the order of the lines and the place of Now belong to it.
        Format::Json | Format::Yaml => output::one(context.format, &list, &[], |_| String::new())?,
        Format::Table | Format::Wide if args.tree => tree(context.format, &list)?,
        format => output::list(format, &list.items, &COLUMNS, |c| c.name.clone())?,
    }
    for checkpoint in &list.items {
        for problem in &checkpoint.problems {
            context.warn(format!("checkpoint '{}': {problem}", checkpoint.name));
        }
    }
    tell(context, &list);
    Ok(())
}

/// What deserves attention.
fn tell(context: &Context, list: &CheckpointList) {
    if !list.merge_pending.is_empty() {
        let bytes = list.merge_pending.iter().map(|file| file.bytes_on_disk).sum();
        context.warn(format!(
            "merge pending: {} of deleted checkpoints, {} on disk; `backstay checkpoint merge` goes on with it",
            match list.merge_pending.len() {
                1 => "1 file".into(),
                count => format!("{count} files"),
            },
            output::size(bytes)
        ));
    }
    for warning in &list.warnings {
        context.warn(warning);
    }
}

/// One line of the tree with its checkpoint; none is Now.
#[derive(serde::Serialize)]
struct Row {
    text: String,
    info: Option<CheckpointInfo>,
    bytes_on_disk: u64,
}

fn tree(format: Format, list: &CheckpointList) -> anyhow::Result<()> {
    const TREE: [Column<Row>; 6] = [
        Column::new("CHECKPOINT", |row| row.text.clone()),
        Column::new("CREATED", |row| row.info.as_ref().map(|c| output::time(c.created)).unwrap_or_default()),
        Column::new("MEMORY", |row| row.info.as_ref().map(memory).unwrap_or_default()),
        Column::new("ON DISK", |row| output::size(row.bytes_on_disk)),
        Column::wide("METHOD", |row| row.info.as_ref().map(method).unwrap_or_default()),
        Column::wide("ID", |row| row.info.as_ref().map(|c| c.id.to_string()).unwrap_or_default()),
    ];
    let row = |line: &CheckpointLine| {
        let info = list.items.iter().find(|c| Some(c.id) == line.checkpoint).cloned();
        let bytes_on_disk = info.as_ref().map_or(list.now_bytes_on_disk, |c| c.bytes_on_disk);
        Row { text: format!("{}{}", line.prefix, line.name), info, bytes_on_disk }
    };
    let rows: Vec<Row> = list.tree.iter().map(row).collect();
    output::list(format, &rows, &TREE, |row| row.text.clone())
}

fn memory(checkpoint: &CheckpointInfo) -> String {
    if checkpoint.has_memory { output::size(checkpoint.memory_bytes) } else { "-".into() }
}

/// The word of the API.
pub fn method(checkpoint: &CheckpointInfo) -> String {
    let word = checkpoint.method.and_then(|m| serde_json::to_value(m).ok());
    word.as_ref().and_then(|w| w.as_str()).unwrap_or_default().to_owned()
}

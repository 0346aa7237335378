//! `backstay task`

use crate::context::Context;
use crate::output::{self, Column};
use crate::tasks::{parse_duration, print_task, wait};
use backstay_api::{Task, TaskFilter};
use backstay_model::TaskId;
use clap::{Args, Subcommand};
use std::time::Duration;

/// What the daemon is doing and has done.
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// Tasks, newest first
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// One task with its result
    Show(IdArgs),
    /// Wait for the end of a task; its failure is this command's
    Wait(WaitArgs),
    /// Ask a task to stop, and wait until it has
    Cancel(IdArgs),
}

/// Arguments.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those of this machine: name or GUID
    #[arg(long)]
    vm: Option<String>,
    /// Only those that are not finished
    #[arg(long)]
    active: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

/// Arguments.
#[derive(Debug, Args)]
pub struct IdArgs {
    /// The task's id
    task: TaskId,
}

/// Arguments.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// The task's id
    task: TaskId,
    /// Wait no longer than this (30s, 10m, 2h)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

const COLUMNS: [Column<Task>; 8] = [
    Column::new("ID", |task| task.id.to_string()),
    Column::new("OPERATION", |task| task.operation.clone()),
    Column::new("OBJECT", |task| task.object.name.clone()),
    Column::new("STATE", |task| task.state.as_str().into()),
    Column::new("PROGRESS", |task| format!("{} %", task.progress)),
    Column::new("CREATED", |task| output::time(task.created)),
    Column::wide("WHO", |task| task.who.clone()),
    Column::wide("MESSAGE", |task| {
        task.error.as_ref().map_or_else(|| task.message.clone(), |e| e.detail.clone())
    }),
];

impl TaskCommand {
    /// Runs the command.
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        context.block_on(async {
            let client = context.client()?;
            match self {
                Self::List(args) => {
                    let filter = TaskFilter { vm: args.vm, active: args.active, limit: Some(args.limit) };
                    let list = client.tasks(&filter).await?;
                    output::list(context.format, &list.items, &COLUMNS, |task| task.id.to_string())
                }
                Self::Show(args) => print_task(context.format, &client.task(args.task).await?),
                Self::Wait(args) => {
                    let task = client.task(args.task).await?;
                    let task = wait(context, &client, task, args.timeout).await?;
                    print_task(context.format, &task)
                }
                Self::Cancel(args) => {
                    let asked = client.cancel_task(args.task).await?;
                    let task = client.wait_task(asked, |_| {}).await?;
                    context.note(format!("task {} has ended: {}", task.id, task.state.as_str()));
                    Ok(())
                }
            }
        })
    }
}

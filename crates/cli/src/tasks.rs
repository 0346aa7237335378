//! From a call that changes something to its end: plan, task, waiting, result.

use crate::context::Context;
use crate::exit::Fail;
use crate::output::{self, Column, Format};
use crate::progress::Progress;
use backstay_api::{CallOptions, Client, Outcome, Plan, PlanStep, Problem, ProblemCode, Task, TaskState};
use clap::Args;
use std::cell::RefCell;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How often it is looked whether a task can go on.
const LOOK: Duration = Duration::from_millis(200);

/// Options of every command that changes something through the daemon.
#[derive(Debug, Default, Args)]
pub struct ChangeArgs {
    /// Print what would be done, and do nothing
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    /// Do not wait: print the task's id
    #[arg(long)]
    pub no_wait: bool,
    /// Wait no longer than this (30s, 10m, 2h); the task goes on
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "no_wait")]
    pub timeout: Option<Duration>,
}

impl ChangeArgs {
    /// What the client has to know. The key makes a call that is sent twice one task.
    pub fn options(&self) -> CallOptions {
        CallOptions { dry_run: self.dry_run, idempotency_key: Some(Uuid::new_v4().to_string()) }
    }
}

/// Reads `90`, `30s`, `10m`, `2h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let trimmed = text.trim();
    let (number, unit) =
        trimmed.split_at(trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len()));
    let factor = match unit.trim() {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        _ => 0,
    };
    match number.parse::<u64>() {
        Ok(number) if factor > 0 => Ok(Duration::from_secs(number.saturating_mul(factor))),
        _ => Err("write a number of seconds, or one with s, m or h: 30s, 10m, 2h".into()),
    }
}

/// Follows an outcome to its end and tells it; `done` is the remark on success, made from the finished task.
pub async fn finish(
    context: &Context,
    client: &Client,
    outcome: Outcome,
    args: &ChangeArgs,
    done: impl FnOnce(&Task) -> String,
) -> anyhow::Result<Option<Task>> {
    let task = match outcome {
        Outcome::Plan(plan) => {
            print_plan(context.format, &plan)?;
            for warning in &plan.warnings {
                context.warn(warning);
            }
            return Ok(None);
        }
        Outcome::Task(task) => *task,
    };
    if args.no_wait {
        match context.format {
            Format::Json | Format::Yaml => print_task(context.format, &task)?,
            _ => output::print(&format!("{}\n", task.id))?,
        }
        return Ok(None);
    }
    let task = wait(context, client, task, args.timeout).await?;
    for warning in &task.warnings {
        context.warn(warning);
    }
    match context.format {
        Format::Json | Format::Yaml => print_task(context.format, &task)?,
        Format::Name => output::print(&format!("{}\n", task.object.name))?,
        Format::Table | Format::Wide | Format::Csv => context.note(done(&task)),
    }
    Ok(Some(task))
}

/// Waits for the end of a task; one that failed is an error with the task's problem.
pub async fn wait(
    context: &Context,
    client: &Client,
    task: Task,
    timeout: Option<Duration>,
) -> anyhow::Result<Task> {
    match wait_while_working(context, client, task, timeout, Duration::MAX).await? {
        Waited::Ended(task) => Ok(*task),
        Waited::Stuck(reason) => Err(Fail::degraded(reason)),
    }
}

/// How a wait ended.
pub enum Waited {
    /// With the task.
    Ended(Box<Task>),
    /// It goes on, and can do nothing until something changes: why.
    Stuck(String),
}

/// As [`wait`], but no longer than `patience` while the task can do nothing.
pub async fn wait_while_working(
    context: &Context,
    client: &Client,
    task: Task,
    timeout: Option<Duration>,
    patience: Duration,
) -> anyhow::Result<Waited> {
    let progress = Progress::percent(context);
    let id = task.id;
    let stuck: RefCell<Option<(Instant, String)>> = RefCell::default();
    let on_change = |task: &Task| {
        progress.set(u64::from(task.progress), &task.message);
        let since = stuck.borrow().as_ref().map_or_else(Instant::now, |(since, _)| *since);
        stuck.replace(task.waits_for().map(|reason| (since, reason.to_owned())));
    };
    let is_stuck = async {
        loop {
            tokio::time::sleep(LOOK).await;
            match &*stuck.borrow() {
                Some((since, reason)) if since.elapsed() > patience => return reason.clone(),
                _ => {}
            }
        }
    };
    let waiting = client.wait_task(task, on_change);
    let limit = async {
        match timeout {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let task = tokio::select! {
        ended = waiting => ended?,
        reason = is_stuck => return Ok(Waited::Stuck(reason)),
        () = limit => {
            return Err(Fail::timed_out(format!(
                "task {id} is still running: `backstay task wait {id}` goes on waiting, `backstay task cancel {id}` cancels it"
            )));
        }
        _ = tokio::signal::ctrl_c() => {
            return Err(Fail::interrupted(format!(
                "waiting was interrupted, task {id} goes on: `backstay task cancel {id}` cancels it"
            )));
        }
    };
    drop(progress);
    match task.state {
        TaskState::Failed | TaskState::Cancelled => {
            let fallback = || match task.state {
                TaskState::Cancelled => {
                    Problem::new(ProblemCode::Cancelled, format!("task {id} was cancelled"))
                }
                _ => Problem::new(ProblemCode::Internal, format!("task {id} failed and did not say why")),
            };
            if matches!(context.format, Format::Json | Format::Yaml) {
                print_task(context.format, &task)?;
            }
            Err(task.error.clone().unwrap_or_else(fallback).into())
        }
        _ => Ok(Waited::Ended(Box::new(task))),
    }
}

/// Prints a task with all fields.
pub fn print_task(format: Format, task: &Task) -> anyhow::Result<()> {
    output::one(format, task, &facts(task), |task| task.id.to_string())
}

fn facts(task: &Task) -> Vec<(&'static str, String)> {
    let result = task.result.as_ref().map(|result| serde_json::to_string_pretty(result).unwrap_or_default());
    vec![
        ("Id", task.id.to_string()),
        ("Operation", task.operation.clone()),
        ("Object", format!("{} {}", task.object.kind.as_str(), task.object.name)),
        ("State", task.state.as_str().to_owned()),
        ("Progress", format!("{} %", task.progress)),
        ("Message", task.message.clone()),
        (
            "Cancellable",
            if task.state.is_final() { String::new() } else { output::yes_no(task.cancellable).into() },
        ),
        ("Started by", task.who.clone()),
        ("Created", output::time(task.created)),
        ("Finished", task.finished.map(output::time).unwrap_or_default()),
        ("Error", task.error.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("Warnings", task.warnings.join("\n")),
        ("Result", result.unwrap_or_default()),
    ]
}

/// Prints a plan: the steps as a table, or the whole as data.
pub fn print_plan(format: Format, plan: &Plan) -> anyhow::Result<()> {
    const COLUMNS: [Column<PlanStep>; 3] = [
        Column::new("STEP", |step| step.action.clone()),
        Column::new("OBJECT", |step| step.object.clone()),
        Column::new("DETAIL", |step| step.detail.clone()),
    ];
    match format {
        Format::Json | Format::Yaml => output::one(format, plan, &[], |plan| plan.operation.clone()),
        _ => output::list(format, &plan.steps, &COLUMNS, |step| format!("{} {}", step.action, step.object)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_and_without_a_unit() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        for bad in ["", "m", "-1", "10d", "1.5s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}

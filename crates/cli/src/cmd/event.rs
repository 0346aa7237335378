//! `backstay event`

use crate::context::Context;
use crate::output::{self, Column, Format};
use crate::tasks::parse_duration;
use backstay_api::{Client, ClientError, Event, EventFilter, Severity};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use std::time::Duration;

/// Between two attempts to reach a daemon that is being replaced.
const AGAIN: Duration = Duration::from_millis(500);

/// What happened, who did it, and why.
#[derive(Debug, Subcommand)]
pub enum EventCommand {
    /// Events, oldest first
    #[command(visible_alias = "ls")]
    List(ListArgs),
}

/// Arguments.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  backstay event list --vm web --since 1h\n  backstay event list --type disk,host --severity warning --since 2d\n  backstay event list --who root --type vm.updated -o yaml\n  backstay event list --follow -o json | jq .kind\n\n`backstay explain TYPE` tells what an event means and what to do about it."
)]
pub struct ListArgs {
    /// Only those of this machine: name or GUID
    #[arg(long)]
    vm: Option<String>,
    /// Only those since then: a time (2026-11-23T10:00:00Z) or so long ago (90s, 10m, 2h, 7d)
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Timestamp>,
    /// Only those before then: a time, or so long ago
    #[arg(long, value_name = "TIME", value_parser = parse_since, conflicts_with = "follow")]
    until: Option<Timestamp>,
    /// Only these types, separated by commas: `vm.state` is one, `vm` all that begin with `vm.`
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    kinds: Vec<String>,
    /// Only those of this severity or a higher one
    #[arg(long, value_parser = ["info", "warning", "error"])]
    severity: Option<String>,
    /// Only what this user did; `backstay` and `guest` are what happened by itself
    #[arg(long, value_name = "USER")]
    who: Option<String>,
    /// Only those numbered above this
    #[arg(long, value_name = "N")]
    after: Option<u64>,
    /// At most so many; without --since and --after the newest
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=10000))]
    limit: u32,
    /// Go on with new events as they happen, also when the daemon is replaced; with -o json one object per line
    #[arg(short, long)]
    follow: bool,
}

fn parse_since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let rule = "write a time such as 2026-11-23T10:00:00Z, or how long ago: 90s, 10m, 2h, 7d";
    let days = text.trim().strip_suffix('d').and_then(|days| days.parse::<u32>().ok());
    let ago = match days {
        Some(days) => Duration::from_secs(u64::from(days) * 86_400),
        None => parse_duration(text).map_err(|_| rule)?,
    };
    Timestamp::now().checked_sub(ago).map_err(|_| rule.to_owned())
}

const COLUMNS: [Column<Event>; 8] = [
    Column::new("TIME", |event| output::time(event.at)),
    Column::new("OBJECT", |event| event.object.name.clone()),
    Column::new("EVENT", |event| event.kind.clone()),
    Column::new("WHO", |event| event.who.clone()),
    Column::new("CHANGE", change),
    Column::new("REASON", |event| event.reason.clone()),
    Column::wide("SEVERITY", |event| event.severity.to_string()),
    Column::wide("NUMBER", |event| event.seq.to_string()),
];

fn change(event: &Event) -> String {
    match (&event.before, &event.after) {
        (Some(before), Some(after)) => format!("{before} -> {after}"),
        (None, Some(after)) => after.clone(),
        (Some(before), None) => format!("{before} ->"),
        (None, None) => String::new(),
    }
}

impl EventCommand {
    /// Runs the command.
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self::List(args) = self;
        context.block_on(list(context, args))
    }
}

async fn list(context: &Context, args: ListArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let severity = Severity::ALL.into_iter().find(|s| args.severity.as_deref() == Some(s.as_str()));
    let mut filter = EventFilter {
        vm: args.vm,
        since: args.since,
        until: args.until,
        kind: (!args.kinds.is_empty()).then(|| args.kinds.join(",")),
        severity,
        who: args.who,
        after: args.after,
        limit: Some(args.limit),
    };
    let list = client.events(&filter).await?;
    if !args.follow {
        return output::list(context.format, &list.items, &COLUMNS, |event| event.seq.to_string());
    }
    for event in &list.items {
        line(context.format, event)?;
    }
    filter.since = None;
    filter.limit = None;
    // Numbers only grow, so nothing between list and stream is missed or seen twice.
    filter.after = Some(list.next);
    tokio::select! {
        ended = follow(context, &client, filter) => ended,
        () = reader_gone() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// Prints events as they happen. A daemon that goes away is waited for: the next one has the same history.
async fn follow(context: &Context, client: &Client, mut filter: EventFilter) -> anyhow::Result<()> {
    let (mut heard, mut told) = (false, false);
    loop {
        match client.follow_events(&filter).await {
            Ok(mut stream) => {
                (heard, told) = (true, false);
                while let Ok(Some(event)) = stream.next().await {
                    filter.after = Some(event.seq);
                    line(context.format, &event)?;
                }
            }
            Err(ClientError::Problem(problem)) => return Err(problem.into()),
            Err(error) if !heard => return Err(error.into()),
            Err(_) => {}
        }
        if !std::mem::replace(&mut told, true) {
            context.note("the daemon has gone: waiting for the next one");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Returns when nobody reads standard output any more, which a write would tell only with the next event.
async fn reader_gone() {
    use rustix::event::{PollFd, PollFlags, poll};
    let (gone, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let out = std::io::stdout();
        let mut fds = [PollFd::new(&out, PollFlags::empty())];
        // Without a wanted event only errors and hang-ups are told.
        if matches!(poll(&mut fds, None), Ok(ready) if ready > 0) {
            let _ = gone.send(());
        }
    });
    if told.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// One event on a line of its own.
fn line(format: Format, event: &Event) -> anyhow::Result<()> {
    match format {
        Format::Json => output::print(&(serde_json::to_string(event)? + "\n")),
        Format::Yaml => output::list(format, std::slice::from_ref(event), &COLUMNS, |_| String::new()),
        Format::Name => output::print(&format!("{}\n", event.seq)),
        Format::Table | Format::Wide | Format::Csv => {
            let cells: Vec<String> = COLUMNS
                .iter()
                .filter(|c| !c.wide)
                .map(|c| (c.cell)(event))
                .filter(|c| !c.is_empty())
                .collect();
            output::print(&(cells.join("  ") + "\n"))
        }
    }
}

//! `backstay event`

use crate::context::Context;
use crate::output::{self, Column, Format};
use crate::tasks::parse_duration;
use backstay_api::{Event, EventFilter};
use clap::{Args, Subcommand};
use jiff::Timestamp;

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
    after_long_help = "Examples:\n  backstay event list --vm web --since 1h\n  backstay event list --follow -o json | jq .kind"
)]
pub struct ListArgs {
    /// Only those of this machine: name or GUID
    #[arg(long)]
    vm: Option<String>,
    /// Only those since then: a time (2026-11-23T10:00:00Z) or so long ago (90s, 10m, 2h)
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Timestamp>,
    /// Only those numbered above this
    #[arg(long, value_name = "N")]
    after: Option<u64>,
    /// At most so many; without --since and --after the newest
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=10000))]
    limit: u32,
    /// Go on with new events as they happen; with -o json one object per line
    #[arg(short, long)]
    follow: bool,
}

fn parse_since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let rule = "write a time such as 2026-11-23T10:00:00Z, or how long ago: 90s, 10m, 2h";
    let ago = parse_duration(text).map_err(|_| rule)?;
    Timestamp::now().checked_sub(ago).map_err(|_| rule.to_owned())
}

const COLUMNS: [Column<Event>; 7] = [
    Column::new("TIME", |event| output::time(event.at)),
    Column::new("OBJECT", |event| event.object.name.clone()),
    Column::new("EVENT", |event| event.kind.clone()),
    Column::new("WHO", |event| event.who.clone()),
    Column::new("CHANGE", change),
    Column::new("REASON", |event| event.reason.clone()),
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
    let mut filter =
        EventFilter { vm: args.vm, since: args.since, after: args.after, limit: Some(args.limit) };
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
    let mut stream = client.follow_events(&filter).await?;
    loop {
        tokio::select! {
            event = stream.next() => match event? {
                Some(event) => line(context.format, &event)?,
                None => return Ok(()),
            },
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
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

//! Data on standard output, in the form the user chose.

mod csv;
mod json;
mod table;
mod text;
mod yaml;

pub use text::{duration, size, time, yes_no};

use crate::exit::Closed;
use anyhow::Context as _;
use clap::ValueEnum;
use serde::Serialize;
use std::io::{self, Write};

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people
    Table,
    /// More columns
    Wide,
    /// The fields of the REST API
    Json,
    /// The same as YAML
    Yaml,
    /// Comma-separated, with a header line
    Csv,
    /// Names or ids only
    Name,
}

/// A column of a list.
pub struct Column<T> {
    /// Header.
    pub title: &'static str,
    /// Only in wide tables and CSV.
    pub wide: bool,
    /// The cell.
    pub cell: fn(&T) -> String,
}

impl<T> Column<T> {
    /// A column of every table.
    pub const fn new(title: &'static str, cell: fn(&T) -> String) -> Self {
        Self { title, wide: false, cell }
    }

    /// A column of wide tables.
    pub const fn wide(title: &'static str, cell: fn(&T) -> String) -> Self {
        Self { title, wide: true, cell }
    }
}

/// Prints text as it is. A reader that has gone ends the command quietly ([`Closed`]).
pub fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(text.as_bytes())
}

/// Prints bytes as they are.
pub fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        other => other.context("standard output cannot be written"),
    }
}

/// Prints a list; `name` gives the line of `-o name`.
pub fn list<T: Serialize>(
    format: Format,
    items: &[T],
    columns: &[Column<T>],
    name: fn(&T) -> String,
) -> anyhow::Result<()> {
    match format {
        Format::Json => print(&json::render(&items)?),
        Format::Yaml => print(&yaml::render(&serde_json::to_value(items)?)),
        Format::Name => print(&items.iter().map(|item| name(item) + "\n").collect::<String>()),
        Format::Csv => {
            let titles: Vec<String> = columns.iter().map(|c| csv::key(c.title)).collect();
            print(&csv::render(&titles, &rows(items, &columns.iter().collect::<Vec<_>>())))
        }
        Format::Table | Format::Wide => {
            let shown: Vec<_> = columns.iter().filter(|c| format == Format::Wide || !c.wide).collect();
            let titles: Vec<&str> = shown.iter().map(|c| c.title).collect();
            print(&table::render(&titles, &rows(items, &shown)))
        }
    }
}

fn rows<T>(items: &[T], columns: &[&Column<T>]) -> Vec<Vec<String>> {
    items.iter().map(|item| columns.iter().map(|column| (column.cell)(item)).collect()).collect()
}

/// Prints one thing; `facts` are the lines for people, a fact without a value is left out of tables.
pub fn one<T: Serialize>(
    format: Format,
    item: &T,
    facts: &[(&str, String)],
    name: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    match format {
        Format::Json => print(&json::render(item)?),
        Format::Yaml => print(&yaml::render(&serde_json::to_value(item)?)),
        Format::Name => print(&(name(item) + "\n")),
        Format::Csv => {
            let titles: Vec<String> = facts.iter().map(|(title, _)| csv::key(title)).collect();
            print(&csv::render(&titles, &[facts.iter().map(|(_, value)| value.clone()).collect()]))
        }
        Format::Table | Format::Wide => print(&table::facts(facts)),
    }
}

//! `backstay explain`

use crate::context::Context;
use crate::exit::Fail;
use crate::output::{self, Column, Format};
use backstay_api::explain::{self, CodeGroup, Explanation};
use clap::Args;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  backstay explain busy\n  backstay explain storage.low-space\n  backstay explain 0x80070057\n  backstay explain -2147024809\n  backstay explain --list"
)]
pub struct ExplainArgs {
    /// A problem's code, an event's type, a rule of `disk check`, or an error code of Windows: hexadecimal, decimal,
    /// negative or by name
    #[arg(required_unless_present = "list", allow_hyphen_values = true)]
    code: Option<String>,
    /// Every code that is known
    #[arg(long, conflicts_with = "code")]
    list: bool,
}

const COLUMNS: [Column<Explanation>; 4] = [
    Column::new("CODE", |e| e.code.clone()),
    Column::new("KIND", |e| group(e.group).into()),
    Column::wide("NAME", |e| e.name.clone().unwrap_or_default()),
    Column::new("MEANING", |e| e.meaning.clone()),
];

fn group(group: CodeGroup) -> &'static str {
    match group {
        CodeGroup::Problem => "problem",
        CodeGroup::Event => "event",
        CodeGroup::Finding => "disk check",
        CodeGroup::Windows => "Windows",
    }
}

/// Runs the command. No daemon is needed.
pub fn run(args: &ExplainArgs, context: &Context) -> anyhow::Result<()> {
    let Some(code) = &args.code else {
        return output::list(context.format, &explain::all(), &COLUMNS, |e| e.code.clone());
    };
    let found = explain::explain(code);
    if found.is_empty() {
        return Err(Fail::not_found(explain::unknown(code)));
    }
    match context.format {
        Format::Table | Format::Wide => {
            let texts: Vec<String> = found.iter().map(text).collect();
            output::print(&texts.join("\n"))
        }
        format => output::list(format, &found, &COLUMNS, |e| e.code.clone()),
    }
}

fn text(found: &Explanation) -> String {
    let name = found.name.as_ref().map_or(String::new(), |name| format!("  {name}"));
    let severity = found.severity.map_or(String::new(), |severity| format!(", {severity}"));
    let mut text = format!("{}{name}  ({}{severity})\n{}\n", found.code, group(found.group), found.meaning);
    for (title, lines) in [("Usual causes", &found.causes), ("What to do", &found.cures)] {
        text += &format!("\n{title}:\n");
        for line in lines {
            text += &format!("  - {line}\n");
        }
    }
    text
}

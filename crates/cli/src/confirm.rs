//! Questions before something is lost.

use crate::context::Context;
use crate::exit::Fail;
use std::io::{self, BufRead, IsTerminal, Write};

/// Asks `question` (yes or no). Without a terminal nobody can answer, so the command fails and names the option.
pub fn confirm(context: &Context, question: &str) -> anyhow::Result<()> {
    if context.yes {
        return Ok(());
    }
    let answer = ask(question, "[y/N]")?;
    if matches!(answer.to_ascii_lowercase().as_str(), "y" | "yes") { Ok(()) } else { Err(declined()) }
}

/// Asks for `name` to be typed: for what cannot be undone.
pub fn confirm_name(context: &Context, what: &str, name: &str) -> anyhow::Result<()> {
    if context.yes {
        return Ok(());
    }
    if ask(what, &format!("Type its name ({name}) to go on:"))? == name { Ok(()) } else { Err(declined()) }
}

/// Whether somebody can answer.
pub fn is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Asks a question that can be answered with yes, no or cancel; an empty answer is `usually`. None: cancel.
pub fn choose(question: &str, usually: bool) -> anyhow::Result<Option<bool>> {
    let answer = ask(question, if usually { "[Y/n/cancel]" } else { "[y/N/cancel]" })?;
    Ok(match answer.to_ascii_lowercase().as_str() {
        "" => Some(usually),
        "y" | "yes" => Some(true),
        "n" | "no" => Some(false),
        _ => None,
    })
}

fn ask(question: &str, hint: &str) -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        return Err(Fail::usage(format!(
            "{question} There is no terminal to ask on: add --yes if you mean it"
        )));
    }
    let mut stderr = io::stderr();
    let _ = write!(stderr, "{question} {hint} ");
    let _ = stderr.flush();
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// The end of a command whose question was not answered with yes.
pub fn declined() -> anyhow::Error {
    Fail::error("not confirmed: nothing was changed")
}

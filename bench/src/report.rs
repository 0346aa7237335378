//! The report: tables in Markdown, with the goals and whether they were met.

use std::{
    fmt::{self, Write as _},
    path::Path,
};

use anyhow::Result;

use crate::{
    machine,
    stats::{Runs, short},
};

/// What a row is to reach. Medians decide.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// Ours divided by the peer's: at least this (rates).
    AtLeast(f64),
    /// Ours divided by the peer's: at most this (times).
    AtMost(f64),
    /// Our own value: at most this.
    Limit(f64),
}

/// One comparison.
#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub unit: &'static str,
    pub ours: Runs,
    /// Empty where there is nothing to compare with.
    pub peer: Runs,
    /// Ours divided by the peer's, of each pair.
    pub ratio: Runs,
    pub goal: Option<Goal>,
    /// Why the goal is out of reach where it is; told only then.
    pub cause: &'static str,
}

impl Row {
    pub fn new(name: impl Into<String>, unit: &'static str, goal: Option<Goal>) -> Self {
        let (ours, peer, ratio) = Default::default();
        Self { name: name.into(), unit, ours, peer, ratio, goal, cause: "" }
    }

    /// Adds the results of two runs that belong together.
    pub fn add(&mut self, ours: f64, peer: f64) {
        self.ours.push(ours);
        self.peer.push(peer);
        self.ratio.push(ours / peer);
    }

    /// How it went; `None` without a goal.
    fn verdict(&self) -> Option<Verdict> {
        let (have, met, times) = match self.goal? {
            Goal::AtLeast(goal) => (self.ratio.median(), self.ratio.median() >= goal, "×"),
            Goal::AtMost(goal) => (self.ratio.median(), self.ratio.median() <= goal, "×"),
            Goal::Limit(goal) => (self.ours.median(), self.ours.median() <= goal, ""),
        };
        Some(Verdict { met, have: format!("{}{times}", short(have)) })
    }

    fn wanted(&self) -> String {
        match self.goal {
            Some(Goal::AtLeast(goal)) => format!("≥ {goal}×"),
            Some(Goal::AtMost(goal)) => format!("≤ {goal}×"),
            Some(Goal::Limit(goal)) => format!("≤ {goal} {}", self.unit),
            None => String::new(),
        }
    }
}

struct Verdict {
    met: bool,
    have: String,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict() {
            Some(Verdict { met: true, .. }) => "met",
            Some(Verdict { met: false, .. }) => "**missed**",
            None => "",
        };
        write!(
            f,
            "| {} | {} | {} | {} | {} | {} | {verdict} |",
            self.name,
            self.unit,
            self.ours,
            self.peer,
            self.ratio,
            self.wanted()
        )
    }
}

/// A report under way.
#[derive(Debug)]
pub struct Report {
    text: String,
    goals: Vec<String>,
    load: String,
}

impl Report {
    pub fn new(quick: bool, rounds: usize, scratch: &Path) -> Result<Self> {
        let mut text = String::from("# Benchmarks\n\n");
        let how = if quick { "make bench BENCH_ARGS=--quick" } else { "make bench" };
        writeln!(
            text,
            "Side by side with QEMU's own tools, written by `{how}`. The two sides of a row run in turns, {rounds} pairs. Values are \
             the median [minimum–maximum]; the ratio is Backstay divided by the peer, of each pair. Higher is better for rates, \
             lower for times. On a shared or busy machine absolute values vary a lot: compare the ratios.\n"
        )?;
        for line in machine::describe(scratch) {
            writeln!(text, "- {line}")?;
        }
        writeln!(text, "- {}", jiff::Timestamp::now().strftime("%Y-%m-%d"))?;
        Ok(Self { text, goals: Vec::new(), load: machine::load() })
    }

    /// Starts a section with words on what is compared.
    pub fn section(&mut self, title: &str, words: &str) {
        eprintln!("{title}");
        let _ = write!(
            self.text,
            "\n## {title}\n\n{words}\n\n| | unit | Backstay | peer | ratio | goal | verdict |\n|---|---|---|---|---|---|---|\n"
        );
    }

    pub fn row(&mut self, row: &Row) {
        eprintln!("  {row}");
        let _ = writeln!(self.text, "{row}");
        if let Some(Verdict { met, have }) = row.verdict() {
            let (name, wanted) = (&row.name, row.wanted());
            let verdict = if met { "met" } else { "**missed**" };
            let cause = if met { "" } else { row.cause };
            self.goals.push(format!("| {name} | {wanted} | {have} | {verdict} | {cause} |"));
        }
    }

    pub fn finish(mut self) -> String {
        let _ = write!(
            self.text,
            "\n## Goals\n\n| | goal | median | verdict | cause of the distance |\n|---|---|---|---|---|\n"
        );
        for goal in &self.goals {
            let _ = writeln!(self.text, "{goal}");
        }
        let end = machine::load();
        let _ = writeln!(self.text, "\nLoad average at the start {}, at the end {end}.", self.load);
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_judged_by_the_median_in_its_direction() {
        let verdict = |goal| {
            let mut row = Row::new("x", "ms", Some(goal));
            for ours in [10.0, 30.0, 20.0] {
                row.add(ours, 10.0);
            }
            row.verdict().unwrap().met
        };
        assert!(verdict(Goal::AtLeast(2.0)) && !verdict(Goal::AtLeast(2.5)));
        assert!(verdict(Goal::AtMost(2.0)) && !verdict(Goal::AtMost(1.5)));
        assert!(verdict(Goal::Limit(20.0)) && !verdict(Goal::Limit(19.0)));
    }
}

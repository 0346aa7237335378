//! A small cluster without network: nodes come and go by command, resources start and stop in a second, plans are carried out
//! at once. What is decided is decided by the crate.

mod acts;
mod command;
mod hearts;
mod shows;
mod votes;
mod words;

use backstay_cluster::{
    Attendance, DrainStatus, Failure, GroupName, Lost, MoveKind, MoveRequest, NodeName, NodeState, Policy,
    Quorum, ResourceState, ResumeFailback, Runner, StorageName, SwitchName, Time, Uid, Wanted,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub struct LabNode {
    pub state: NodeState,
    pub drain: DrainStatus,
    pub lost: Option<Lost>,
    pub resume: Option<ResumeFailback>,
    pub memory_mib: u64,
    pub cores: u32,
    pub processors: u32,
    pub storages: BTreeSet<StorageName>,
    pub switches: BTreeSet<SwitchName>,
    pub attendance: Attendance,
    pub paused: bool,
    /// Counts lives; a group remembers the one it belongs to.
    pub life: u64,
    /// Unreachable, and since when.
    pub silent: Option<Time>,
}

#[derive(Default)]
pub struct LabGroup {
    pub owner: Option<NodeName>,
    pub life: u64,
    pub epoch: u64,
    pub wanted: Wanted,
    pub runner: Option<Runner>,
    /// The last states of a runner that is gone.
    pub states: Vec<ResourceState>,
    pub failures: Vec<Failure>,
    pub hand: Option<(NodeName, Option<MoveKind>, Uid)>,
    pub request: Option<MoveRequest>,
    pub drained_from: Option<NodeName>,
    pub refused_by: BTreeSet<NodeName>,
    pub preempted: bool,
    pub shown: String,
}

/// Something that will happen.
pub enum Later {
    Resource { group: GroupName, epoch: u64, resource: usize, up: bool },
    Arrived { group: GroupName, epoch: u64 },
    Silent(NodeName, u64),
}

#[derive(Default)]
pub struct Lab {
    pub now: Time,
    pub hour: u64,
    pub policy: Policy,
    pub nodes: BTreeMap<NodeName, LabNode>,
    pub groups: BTreeMap<GroupName, LabGroup>,
    pub later: Vec<(Time, Later)>,
    pub running: bool,
    pub quiet: bool,
    pub revision: u64,
    pub out: String,
    pub holds: BTreeSet<String>,
    /// Resources that never come online, and live moves that fail.
    pub hanging: BTreeSet<(GroupName, usize)>,
    pub stubborn: BTreeSet<GroupName>,
    pub failing: BTreeSet<(GroupName, NodeName)>,
    pub deaf: BTreeSet<GroupName>,
    pub quorum: Quorum,
    pub hearts: hearts::Hearts,
}

/// How long starting and stopping take.
pub const STEP: Duration = Duration::from_secs(1);
/// How long a live move takes.
pub const LIVE: Duration = Duration::from_secs(5);

/// Runs the commands.
pub fn transcript(commands: &str) -> String {
    let mut lab = Lab::default();
    for line in commands.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        lab.out.push_str(&format!("> {line}\n"));
        if let Err(refusal) = lab.command(line) {
            lab.out.push_str(&format!("refused: {refusal}\n"));
        }
        lab.settle();
    }
    lab.out
}

impl Lab {
    pub fn say(&mut self, text: &str) {
        if !self.quiet {
            self.out.push_str(&format!("{} {text}\n", self.now));
        }
    }

    /// Lets time pass, from event to event.
    pub fn wait(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            self.settle();
            // Windows open and periods end without an event.
            let poll = Time((self.now.0 / 10_000_000 + 1) * 10_000_000);
            let runners =
                self.groups.values().filter_map(|g| g.runner.as_ref()).filter_map(Runner::next_tick);
            let next = self.later.iter().map(|l| l.0).chain(runners).chain([poll]).min().unwrap_or(poll);
            if next > end {
                break;
            }
            self.now = next.max(self.now);
            self.happen();
        }
        self.now = end;
    }

    fn happen(&mut self) {
        while let Some(i) =
            (0..self.later.len()).filter(|i| self.later[*i].0 <= self.now).min_by_key(|i| self.later[*i].0)
        {
            let (_, event) = self.later.remove(i);
            self.event(event);
        }
        let names: Vec<GroupName> = self.groups.keys().cloned().collect();
        for name in names {
            let due = |r: &Runner| r.next_tick().is_some_and(|at| at <= self.now);
            if self.groups[&name].runner.as_ref().is_some_and(due) {
                self.with_runner(&name, |runner, now| runner.tick(now));
            }
        }
    }
}

//! One node: its clock, its processes and what they hold.

use super::clock::Clock;
use super::store::{GROUPS, Records};
use super::world::Event;
use crate::heartbeat::{Agent, Taker};
use crate::{Runner, Time, Uid};
use std::collections::BTreeMap;

/// A virtual machine's processes on one node.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub epoch: u64,
    /// The guest's processors run.
    pub running: bool,
    /// Its worker serves its disk.
    pub worker: bool,
    /// The guest's own count of writes.
    pub counter: u64,
    /// Writes without answer.
    pub in_flight: u32,
    /// Invalidates events of an earlier instance.
    pub generation: u64,
}

/// How a move stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Handing {
    No,
    /// Copying memory, or ending the guest.
    Working,
    /// The guest stands still, writes are waited for.
    Quiet,
    /// The transaction that hands it over is under way.
    Asked,
    /// It is not known whether it was carried out.
    Doubt,
    /// Taking it back.
    Back,
}

/// A group on this node.
#[derive(Clone, Debug)]
pub(super) struct Local {
    pub epoch: u64,
    pub runner: Runner,
    pub instance: Option<Instance>,
    pub handing: Handing,
    /// The order being carried out.
    pub uid: Uid,
    /// Starts of the machine by this owner, for the restart threshold.
    pub restarts: u32,
    /// What the status record says last.
    pub reported: Option<super::store::Status>,
}

/// A request under way at the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Heartbeat(u64),
    ReadMember,
    Fence(usize),
    Claim,
    Plan(usize),
    NodeStep,
    Status(usize),
    Hand(usize),
    ReadOwn(usize),
    Back(usize),
    KeepAlive,
}

pub(super) struct Node {
    pub clock: Clock,
    pub on: bool,
    /// Counts boots.
    pub life: u32,
    pub agent: Agent,
    pub taker: Taker,
    pub cache: Records,
    pub locals: [Option<Local>; GROUPS],
    /// Stopped until this global instant, by process.
    pub agent_stopped: bool,
    pub workers_stopped: bool,
    /// The whole machine stands still.
    pub halted: bool,
    /// It stood still with its clock and has not noticed yet.
    pub stale_clock: bool,
    /// Events that wait for stopped processes.
    pub backlog: Vec<Event>,
    /// No requests reach the store, no answers reach the node.
    pub cut_to: bool,
    pub cut_from: bool,
    pub watch_under_way: bool,
    /// The watch is slow until this global instant.
    pub watch_lags_until: u64,
    /// The storage path stalls until this global instant.
    pub stalled_until: u64,
    /// The published deadline, which outlives the agent.
    pub deadline: Option<Time>,
    /// The latest wake-up that was asked for.
    pub wake: u64,
    pub armed: u64,
    pub fed: u64,
    pub next_request: u64,
    pub requests: BTreeMap<u64, (Purpose, u64)>,
    /// Plans wait until the cache shows this revision.
    pub plan_after: u64,
    pub planned_at: u64,
    /// Writes that left it and have not landed.
    pub in_flight: u32,
    /// The agent is restarting.
    pub agent_down: bool,
    /// The next watchdog reset, on this node's clock.
    pub fed_until: Time,
    /// Epochs that this node has given away.
    pub given: [u64; GROUPS],
    /// A transaction may still be committed that was planned from what has changed since: claim the office again first.
    pub reclaim: bool,
    /// Lease protocol: this life has joined.
    pub joined: bool,
}

impl Node {
    /// The agent can run.
    pub fn agent_runs(&self) -> bool {
        self.on && !self.halted && !self.agent_stopped && !self.agent_down
    }

    /// The workers can run.
    pub fn workers_run(&self) -> bool {
        self.on && !self.halted && !self.workers_stopped
    }

    /// Whether new writes may be submitted: what the worker reads from shared memory.
    pub fn gate(&self, now: u64, stall: std::time::Duration) -> bool {
        let local = self.clock.at(now);
        self.deadline.is_some_and(|d| local + stall < d)
    }
}

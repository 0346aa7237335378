//! A simulator of a whole cluster under one seed: the protocol, the runners and the plans of this crate on nodes whose clocks
//! drift and whose processes are stopped, killed and cut off, on a store that loses its leader and commits late, and on storage
//! of each fencing class. The invariants are checked after every event.
//!
//! It is the crate's own judge: [`run`] gives the first broken invariant, with the seed that repeats it.

mod agents;
mod brain;
mod clock;
mod disk;
mod groups;
mod moves;
mod nemesis;
mod node;
mod rng;
mod rules;
mod store;
mod world;

use crate::FencingClass;
use crate::heartbeat::Timing;

/// How a node knows that it may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The heartbeat transaction.
    Heartbeat,
    /// Answers to keep-alives of a lease of the store. Not safe: kept to show that the simulator sees it.
    LeaseKeepalive,
}

/// What may go wrong. Cuts, crashes, changes of the store's leader, killed guests and agents, drains and moves always may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// Processes are stopped: agent, workers or both.
    pub pauses: bool,
    /// Nodes are stopped with their clock, as virtual machines are.
    pub freezes: bool,
    /// The storage path of a node stalls with writes in it, and lets them through later.
    pub stalls: bool,
    /// A leader of the store that is none any more goes on confirming leases.
    pub stale_leader: bool,
}

/// One kind of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Class of all storages.
    pub class: FencingClass,
    /// The storage refuses old epochs. Off for class S: an unfenced storage that claims to be of class S.
    pub enforces: bool,
    /// Nodes have a watchdog that is fed.
    pub watchdog: bool,
    /// A stalled write fails within this many milliseconds; none: never.
    pub io_timeout_ms: Option<u64>,
    /// The dead-man timer kills the workers.
    pub dead_man: bool,
    /// The dead-man timer ends guests too that nobody could tell to stand still.
    pub guest_guard: bool,
    /// Clocks are wrong by up to so many millionths.
    pub drift_ppm: i64,
    /// How nodes know that they may write.
    pub protocol: Protocol,
    /// What may go wrong.
    pub faults: Faults,
    /// The protocol's times.
    pub timing: Timing,
}

impl Config {
    /// Everything that a class is to survive.
    #[must_use]
    pub fn of(class: FencingClass) -> Self {
        let faults = Faults {
            pauses: true,
            freezes: class == FencingClass::S,
            stalls: class != FencingClass::N,
            stale_leader: false,
        };
        Self {
            class,
            enforces: class == FencingClass::S,
            watchdog: class == FencingClass::W,
            io_timeout_ms: Some(8_000).filter(|_| class != FencingClass::S),
            dead_man: true,
            guest_guard: true,
            drift_ppm: 1_000,
            protocol: Protocol::Heartbeat,
            faults,
            timing: Timing::default(),
        }
    }
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which, `I1` to `I12`.
    pub invariant: &'static str,
    /// Global milliseconds.
    pub at_ms: u64,
    /// What was seen.
    pub what: String,
}

/// What a run reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Faults of all kinds.
    pub faults: u64,
    /// Groups taken from lost nodes.
    pub takeovers: u64,
    /// Groups placed anew because their node came back as another life first.
    pub restarts: u64,
    /// Groups handed over by their owners.
    pub moves: u64,
    /// Failovers because of failed resources.
    pub failovers: u64,
    /// Drains that ended with an empty node.
    pub drains: u64,
    /// Nodes fenced.
    pub fenced: u64,
    /// Processes ended by the dead-man timer.
    pub dead_men: u64,
    /// Resets by a watchdog.
    pub resets: u64,
    /// Writes that landed.
    pub writes: u64,
    /// Writes that the storage refused.
    pub refused: u64,
    /// Transactions of which the sender never learned that they were committed.
    pub late_commits: u64,
    /// Events.
    pub events: u64,
    /// The first broken invariant.
    pub broken: Option<Broken>,
    /// The last lines of the log, if something is broken or all of it was asked for.
    pub log: Vec<String>,
}

impl Outcome {
    /// Adds another run's numbers; keeps the first broken invariant.
    pub fn add(&mut self, other: Self) {
        self.faults += other.faults;
        self.takeovers += other.takeovers;
        self.restarts += other.restarts;
        self.moves += other.moves;
        self.failovers += other.failovers;
        self.drains += other.drains;
        self.fenced += other.fenced;
        self.dead_men += other.dead_men;
        self.resets += other.resets;
        self.writes += other.writes;
        self.refused += other.refused;
        self.late_commits += other.late_commits;
        self.events += other.events;
        if self.broken.is_none() {
            (self.broken, self.log) = (other.broken, other.log);
        }
    }
}

/// One run. Equal arguments give equal outcomes.
#[must_use]
pub fn run(seed: u64, config: &Config) -> Outcome {
    world::World::new(seed, config, false).run()
}

/// The same, and keeps the whole log.
#[must_use]
pub fn run_logged(seed: u64, config: &Config) -> Outcome {
    world::World::new(seed, config, true).run()
}

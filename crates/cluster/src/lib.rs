//! The failover cluster's decisions: nodes and quorum, groups and resources, placement and capacity, heartbeats and fencing.
//!
//! Pure: no files, sockets, clock or randomness. Time, revisions and what was seen are arguments; what is to be done is the
//! answer. The words, defaults and precedences are those of Windows Server's failover clustering; where they differ,
//! `docs/decisions` says why.

mod capacity;
mod check;
mod dependency;
mod failback;
mod failover;
mod fencing;
mod group;
pub mod heartbeat;
mod names;
mod node;
pub mod placement;
mod plan;
mod policy;
mod quorum;
mod resource;
mod restart;
mod runner;
pub mod sim;
mod time;
mod view;
mod vm_heartbeat;

pub use capacity::{Budget, Capacity, StrategyReport, capacity, compare_strategies};
pub use check::{Violation, check};
pub use dependency::{Dependencies, DependencyError};
pub use failback::{Failback, FailbackWindow, WindowError};
pub use failover::Failure;
pub use fencing::{FencingClass, Release};
pub use group::{Group, GroupState, Priority};
pub use names::{GroupName, NameError, NodeName, ResourceName, StorageName, SwitchName};
pub use node::{Attendance, DrainStatus, NodeState, Quarantine};
pub use plan::{Action, Hold, Plan, Reason, Step, Then, Uid, plan};
pub use policy::{Arming, MoveKind, NodePolicy, Policy, Strategy};
pub use quorum::{Quorum, QuorumMode, Vote, Witness};
pub use resource::{
    EmbeddedFailureAction, Needs, OfflineAction, Resource, ResourceKind, ResourceState, VmSettings,
};
pub use restart::{AfterFailure, RestartAction, RestartCount, RestartPolicy};
pub use runner::{Ending, Goal, Report, Runner, RunnerEffect};
pub use time::{Span, Time};
pub use view::{Doing, GroupView, Lost, MoveRequest, NodeView, ResumeFailback, Verdict, View, Wanted};
pub use vm_heartbeat::{GuestSign, GuestWatch, HEARTBEAT_MISSING, SHUTDOWN_PATIENCE};

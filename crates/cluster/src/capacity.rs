//! Capacity: can every machine still run if any N nodes are lost?
//!
//! Never a yes from a sample: yes means that a place was found for every group after every possible loss.

use crate::placement::{Ask, Fleet, Packing, SEARCH, Wish, pack};
use crate::{Group, GroupName, NodeName, Policy, Strategy, View, Wanted};
use std::fmt;

/// How many sets of nodes are looked at, so that the question always gets an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Sets of lost nodes that are looked at.
    pub sets: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { sets: 20_000 }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// After the loss of any so many nodes every group finds a node. All sets were looked at.
    Yes {
        /// Nodes lost at once.
        lose: usize,
        /// Sets of nodes looked at.
        sets: u64,
    },
    /// Losing these nodes leaves groups without a node.
    Breaks {
        /// The nodes.
        nodes: Vec<NodeName>,
        /// Groups that find none, when groups are placed in order of priority.
        homeless: Vec<GroupName>,
        /// Why.
        why: String,
    },
    /// Neither was shown.
    Unknown {
        /// Sets of nodes looked at, none of which breaks.
        looked_at: u64,
        /// All sets there are; none: more than can be counted.
        of: Option<u64>,
        /// A set of which it could not be told.
        undecided: Option<Vec<NodeName>>,
    },
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes { lose, sets } => {
                let nodes = if *lose == 1 { "node is" } else { "nodes are" };
                write!(f, "yes: every machine still runs if any {lose} {nodes} lost ({sets} cases)")
            }
            Self::Breaks { nodes, homeless, why } => {
                let list = |names: &mut dyn Iterator<Item = String>| names.collect::<Vec<_>>().join(", ");
                let nodes = list(&mut nodes.iter().map(ToString::to_string));
                let shown = list(&mut homeless.iter().take(8).map(|g| format!("'{g}'")));
                let more = homeless.len().saturating_sub(8);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                write!(f, "no: without {nodes} there is no room for {shown}{more}: {why}")
            }
            Self::Unknown { looked_at, of, undecided } => {
                let of = of.map_or("too many to count".into(), |of| of.to_string());
                write!(
                    f,
                    "unknown: {looked_at} of {of} cases were looked at and none breaks, which proves nothing"
                )?;
                match undecided {
                    None => Ok(()),
                    Some(nodes) => {
                        let names: Vec<_> = nodes.iter().map(ToString::to_string).collect();
                        write!(f, "; the loss of {} could not be decided", names.join(", "))
                    }
                }
            }
        }
    }
}

/// What one loss leads to.
enum Case {
    Fits,
    Breaks(Vec<GroupName>, String),
    Undecided,
}

/// Whether every group that is wanted online still runs if any `lose` of the nodes that take groups are lost at once.
///
/// Lost groups are placed on what is left as the plan for a real loss places them; groups on other nodes stay where they are.
/// The largest nodes are looked at first, so that a loss that breaks is found early.
#[must_use]
pub fn capacity(policy: &Policy, view: &View, lose: usize, budget: Budget) -> Capacity {
    let fleet = promised(policy, view);
    let mut nodes: Vec<&NodeName> =
        view.nodes.iter().filter(|(_, n)| n.state.takes_groups()).map(|(name, _)| name).collect();
    let groups = policy.by_priority();
    let load = |node: &NodeName| {
        let here = groups.iter().filter(|g| lives_on(view, g, node));
        here.map(|g| g.needs().memory_mib).sum::<u64>()
    };
    nodes.sort_by_cached_key(|n| (std::cmp::Reverse(load(n)), (*n).clone()));
    let of = combinations(nodes.len(), lose);
    if lose == 0 || lose > nodes.len() {
        return if lose == 0 { Capacity::Yes { lose, sets: 0 } } else { all_lost(&nodes, &groups) };
    }
    let mut chosen: Vec<usize> = (0..lose).collect();
    let mut looked_at = 0;
    let mut undecided = None;
    loop {
        if looked_at >= budget.sets {
            return Capacity::Unknown { looked_at, of, undecided };
        }
        looked_at += 1;
        let lost: Vec<&NodeName> = chosen.iter().map(|i| nodes[*i]).collect();
        match one_loss(view, &fleet, &groups, &lost) {
            Case::Fits => {}
            Case::Breaks(homeless, why) => {
                let nodes = lost.into_iter().cloned().collect();
                return Capacity::Breaks { nodes, homeless, why };
            }
            Case::Undecided => {
                undecided.get_or_insert_with(|| lost.into_iter().cloned().collect());
            }
        }
        if !next_combination(&mut chosen, nodes.len()) {
            break;
        }
    }
    match undecided {
        None => Capacity::Yes { lose, sets: looked_at },
        undecided => Capacity::Unknown { looked_at: looked_at.saturating_sub(1), of, undecided },
    }
}

/// Every group where it is or is going to be, also those that are only about to be brought online.
fn promised(policy: &Policy, view: &View) -> Fleet {
    let mut fleet = Fleet::empty(policy, view);
    for group in policy.groups.values() {
        let Some(state) = view.groups.get(&group.name) else { continue };
        if state.uses_owner() || state.wanted == Wanted::Online {
            let ask = fleet.ask(group);
            let going = state.doing.as_ref().and_then(|d| d.to.as_ref());
            if let Some(node) = going.or(state.owner.as_ref()) {
                fleet.occupy(node, &ask);
            }
        }
    }
    fleet
}

fn all_lost(nodes: &[&NodeName], groups: &[&Group]) -> Capacity {
    Capacity::Breaks {
        nodes: nodes.iter().map(|n| (*n).clone()).collect(),
        homeless: groups.iter().map(|g| g.name.clone()).collect(),
        why: "no node is left".into(),
    }
}

/// Whether the loss of `node` makes the group look for another.
fn lives_on(view: &View, group: &Group, node: &NodeName) -> bool {
    view.groups.get(&group.name).is_some_and(|g| {
        let here = g.doing.as_ref().and_then(|d| d.to.as_ref()).or(g.owner.as_ref()) == Some(node);
        here && (g.uses_owner() || g.wanted == Wanted::Online)
    })
}

fn one_loss(view: &View, fleet: &Fleet, groups: &[&Group], lost: &[&NodeName]) -> Case {
    let mut left = fleet.clone();
    lost.iter().for_each(|node| left.close(node));
    let homeless: Vec<&Group> =
        groups.iter().copied().filter(|g| lost.iter().any(|node| lives_on(view, g, node))).collect();
    let asks: Vec<Ask> = homeless.iter().map(|g| left.ask(g)).collect();
    let before = left.clone();
    let mut without = Vec::new();
    for (group, ask) in homeless.iter().zip(&asks) {
        match left.choose(ask, &Wish::default()) {
            Some(node) => left.occupy(&node, ask),
            None => without.push(group.name.clone()),
        }
    }
    if without.is_empty() {
        return Case::Fits;
    }
    match pack(&before, &asks, &mut { SEARCH }) {
        Packing::Found(_) => Case::Fits,
        Packing::Unknown => Case::Undecided,
        Packing::Impossible => {
            let needed: i64 = asks.iter().map(Ask::memory_mib).sum();
            let free = before.all_free();
            let why = match needed > free {
                true => format!("{needed} MiB are needed, {free} are free on nodes that are left"),
                false => format!(
                    "{needed} MiB are needed and {free} are free, but not in one piece for each, or not where storage, \
                     switches, processors and owners allow"
                ),
            };
            Case::Breaks(without, why)
        }
    }
}

/// How many ways there are to choose `k` of `n`; none: more than fit.
fn combinations(n: usize, k: usize) -> Option<u64> {
    let mut count: u128 = 1;
    for i in 0..k {
        count = count * n.saturating_sub(i) as u128 / (i as u128 + 1);
        if count > u128::from(u64::MAX) {
            return None;
        }
    }
    u64::try_from(count).ok()
}

/// The next ascending choice of `n`; false after the last.
fn next_combination(chosen: &mut [usize], n: usize) -> bool {
    let k = chosen.len();
    let Some(i) = (0..k).rev().find(|i| chosen[*i] < n - k + i) else { return false };
    chosen[i] += 1;
    for j in i + 1..k {
        chosen[j] = chosen[j - 1] + 1;
    }
    true
}

/// What one strategy would make of the same groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrategyReport {
    /// The strategy.
    pub strategy: Strategy,
    /// Groups that find no node at all.
    pub unplaced: usize,
    /// Nodes that can be lost, any of them at once; none: not even shown for one.
    pub loses: Option<usize>,
    /// Nodes without any group.
    pub empty_nodes: usize,
    /// The largest machine that would still find a node now, in MiB.
    pub largest_free_mib: i64,
}

/// Places all groups anew under each strategy and says what each could lose.
#[must_use]
pub fn compare_strategies(policy: &Policy, view: &View, budget: Budget) -> Vec<StrategyReport> {
    [Strategy::Spread, Strategy::Reserve].map(|strategy| one_strategy(policy, view, strategy, budget)).into()
}

fn one_strategy(policy: &Policy, view: &View, strategy: Strategy, budget: Budget) -> StrategyReport {
    let policy = Policy { strategy, ..policy.clone() };
    let mut view = view.clone();
    let mut fleet = Fleet::empty(&policy, &view);
    let mut unplaced = 0;
    for group in policy.by_priority() {
        let ask = fleet.ask(group);
        let place = fleet.choose(&ask, &Wish::default());
        unplaced += usize::from(place.is_none());
        if let Some(node) = &place {
            fleet.occupy(node, &ask);
        }
        let state = view.groups.entry(group.name.clone()).or_default();
        state.doing = None;
        state.resources = vec![crate::ResourceState::Online; group.resources.len()];
        state.owner = place;
    }
    let mut loses = None;
    for lose in 1..view.nodes.len() {
        match capacity(&policy, &view, lose, budget) {
            Capacity::Yes { .. } if unplaced == 0 => loses = Some(lose),
            _ => break,
        }
    }
    let used = |n: &NodeName| view.groups.values().any(|g| g.owner.as_ref() == Some(n));
    let empty_nodes = view.nodes.keys().filter(|n| !used(n)).count();
    let largest_free_mib = view.nodes.keys().map(|n| fleet.memory_free(n)).max().unwrap_or(0);
    StrategyReport { strategy, unplaced, loses, empty_nodes, largest_free_mib }
}

impl fmt::Display for StrategyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loses = self.loses.map_or("none for certain".into(), |n| format!("any {n}"));
        write!(
            f,
            "{}: can lose {loses}, {} nodes empty, room for one more machine of {} MiB",
            self.strategy, self.empty_nodes, self.largest_free_mib
        )?;
        match self.unplaced {
            0 => Ok(()),
            n => write!(f, ", {n} groups without a node"),
        }
    }
}

impl Ask {
    fn memory_mib(&self) -> i64 {
        self.memory
    }
}

impl Fleet {
    /// Memory free on all nodes that take groups, in MiB.
    fn all_free(&self) -> i64 {
        self.seats.iter().filter(|s| s.open).map(|s| s.memory_free.max(0)).sum()
    }
}

//! The star rating: how well each node would do for a group, with reasons.

use super::fleet::Fleet;
use crate::{Group, NodeName, NodeState, Policy, StorageName, SwitchName, View};
use backstay_model::Cores;
use std::fmt;

/// Half stars, 0 to 10. None: the group cannot be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stars(pub u8);

impl fmt::Display for Stars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 2, if self.0 % 2 == 1 { 5 } else { 0 })
    }
}

/// Why a group cannot be on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The node takes no groups.
    State(NodeState),
    /// A resource's possible owners do not name it.
    NotPossible,
    /// It does not reach a storage.
    Storage(StorageName),
    /// It has no such switch.
    Switch(SwitchName),
    /// The machine has more virtual processors than the node logical ones.
    Processors(u32, u32),
    /// Not enough memory: needed and free, in MiB.
    Memory(i64, i64),
    /// Not enough processor time: needed and free.
    Cores(Cores, Cores),
    /// A group it must not be with.
    Avoids(crate::GroupName),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => write!(f, "it is {state}"),
            Self::NotPossible => write!(f, "it is no possible owner"),
            Self::Storage(name) => write!(f, "it does not reach the storage '{name}'"),
            Self::Switch(name) => write!(f, "it has no switch '{name}'"),
            Self::Processors(needs, has) => write!(f, "{needs} virtual processors, it has {has}"),
            Self::Memory(needs, free) => write!(f, "{needs} MiB of memory needed, {free} free"),
            Self::Cores(needs, free) => write!(f, "{needs:.2} cores reserved, {free:.2} free"),
            Self::Avoids(group) => write!(f, "'{group}' is there, and anti-affinity is enforced"),
        }
    }
}

/// One node's rating for one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rating {
    /// The node.
    pub node: NodeName,
    /// How good it would be.
    pub stars: Stars,
    /// Why it cannot be; empty where it can.
    pub refusals: Vec<Refusal>,
    /// What speaks for and against it.
    pub reasons: Vec<String>,
}

/// Rates every node for `group`, the best first. The first with stars is the one that placement would choose.
#[must_use]
pub fn rate(policy: &Policy, view: &View, group: &Group) -> Vec<Rating> {
    let mut fleet = Fleet::new(policy, view);
    let ask = fleet.ask(group);
    let there = view.groups.get(&group.name).filter(|g| g.uses_owner()).and_then(|g| g.owner.clone());
    if let Some(owner) = &there {
        // Where it runs it needs no second room.
        fleet.vacate(owner, &ask);
    }
    let best = fleet.choose(&ask, &super::Wish::default());
    let mut ratings: Vec<Rating> = view
        .nodes
        .keys()
        .enumerate()
        .map(|(i, node)| one(policy, view, group, &fleet, &ask, i, node))
        .collect();
    ratings.sort_by_key(|r| {
        let first = best.as_ref() != Some(&r.node);
        (first, std::cmp::Reverse(r.stars), r.node.clone())
    });
    ratings
}

fn one(
    policy: &Policy,
    view: &View,
    group: &Group,
    fleet: &Fleet,
    ask: &super::Ask,
    i: usize,
    node: &NodeName,
) -> Rating {
    let refusals = refusals(policy, view, group, fleet, node);
    let mut reasons = Vec::new();
    let free = fleet.free_after(i, ask).clamp(0, 1000);
    reasons.push(format!("{} % of memory and processors stay free", free / 10));
    if let Some(rank) = group.preference(node) {
        reasons.push(format!("preferred owner {}", rank + 1));
    }
    let crowd = neighbours(policy, view, group, node);
    if !crowd.is_empty() {
        reasons.push(format!("{} should be elsewhere", crowd.join(", ")));
    }
    // Half of the node free is as good as it gets; something that should be avoided costs two stars.
    let stars = u8::try_from((free * 20).div_euclid(1000).clamp(1, 10)).unwrap_or(1);
    let stars = if crowd.is_empty() { stars } else { stars.saturating_sub(4).max(1) };
    Rating {
        node: node.clone(),
        stars: Stars(if refusals.is_empty() { stars } else { 0 }),
        refusals,
        reasons,
    }
}

/// Groups on `node` that `group` avoids.
fn neighbours(policy: &Policy, view: &View, group: &Group, node: &NodeName) -> Vec<String> {
    let here = view.groups.iter().filter(|(_, g)| g.owner.as_ref() == Some(node) && g.uses_owner());
    here.filter_map(|(name, _)| policy.groups.get(name))
        .filter(|g| g.avoids(group))
        .map(|g| format!("'{}'", g.name))
        .collect()
}

fn refusals(policy: &Policy, view: &View, group: &Group, fleet: &Fleet, node: &NodeName) -> Vec<Refusal> {
    let Some(there) = view.nodes.get(node) else { return vec![Refusal::State(NodeState::Down)] };
    let needs = group.needs();
    let mut found = Vec::new();
    if !there.state.takes_groups() {
        found.push(Refusal::State(there.state));
    }
    if !group.possible_on(node) {
        found.push(Refusal::NotPossible);
    }
    found.extend(needs.storages.difference(&there.storages).cloned().map(Refusal::Storage));
    found.extend(needs.switches.difference(&there.switches).cloned().map(Refusal::Switch));
    if needs.processors > there.processors {
        found.push(Refusal::Processors(needs.processors, there.processors));
    }
    let memory = i64::try_from(needs.memory_mib).unwrap_or(i64::MAX);
    if memory > 0 && memory > fleet.memory_free(node) {
        found.push(Refusal::Memory(memory, fleet.memory_free(node)));
    }
    let free = Cores(u64::try_from(fleet.cores_free(node)).unwrap_or(0));
    if needs.cores > Cores::ZERO && needs.cores > free {
        found.push(Refusal::Cores(needs.cores, free));
    }
    if policy.enforced_anti_affinity {
        let here = view.groups.iter().filter(|(_, g)| g.owner.as_ref() == Some(node) && g.uses_owner());
        let near = here.filter_map(|(name, _)| policy.groups.get(name)).filter(|g| g.avoids(group));
        found.extend(near.map(|g| Refusal::Avoids(g.name.clone())));
    }
    found
}

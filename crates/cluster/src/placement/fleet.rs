//! The nodes as arrays of numbers, so that thousands of placements take milliseconds.

use crate::{Group, Needs, NodeName, Policy, Strategy, View};
use std::collections::{BTreeSet, HashMap};

/// A set of small numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    fn insert(&mut self, i: usize) {
        if self.0.len() <= i / 64 {
            self.0.resize(i / 64 + 1, 0);
        }
        self.0[i / 64] |= 1 << (i % 64);
    }

    fn within(&self, other: &Self) -> bool {
        self.0.iter().enumerate().all(|(i, word)| word & !other.0.get(i).copied().unwrap_or(0) == 0)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub name: NodeName,
    /// Takes groups.
    pub open: bool,
    pub reserve: bool,
    pub memory: i64,
    pub memory_free: i64,
    pub cores: i64,
    pub cores_free: i64,
    pub processors: u32,
    pub storages: Bits,
    pub switches: Bits,
    /// Groups here of each anti-affinity class.
    pub crowd: Vec<u32>,
}

/// What one group asks of its node, in the fleet's numbers.
#[derive(Clone, Debug)]
pub struct Ask {
    pub(crate) memory: i64,
    pub(crate) cores: i64,
    pub(crate) processors: u32,
    pub(crate) storages: Bits,
    pub(crate) switches: Bits,
    pub(crate) possible: Option<Bits>,
    /// Best first.
    pub(crate) preferred: Vec<usize>,
    pub(crate) classes: Vec<usize>,
}

impl Ask {
    /// The same group taking no room: it is only given an owner.
    #[must_use]
    pub fn offline(mut self) -> Self {
        (self.memory, self.cores) = (0, 0);
        self
    }
}

/// Nodes to be kept off or avoided in one choice.
#[derive(Clone, Debug, Default)]
pub struct Wish<'a> {
    /// Not these.
    pub never: Vec<&'a NodeName>,
    /// Not these if there is another.
    pub avoid: Vec<&'a NodeName>,
}

/// All nodes with the room they have left.
#[derive(Clone, Debug)]
pub struct Fleet {
    pub(crate) seats: Vec<Seat>,
    index: HashMap<NodeName, usize>,
    storages: HashMap<String, usize>,
    switches: HashMap<String, usize>,
    classes: HashMap<String, usize>,
    strategy: Strategy,
    pub(crate) enforced: bool,
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn number(map: &mut HashMap<String, usize>, name: &str) -> usize {
    if let Some(n) = map.get(name) {
        return *n;
    }
    let next = map.len();
    map.insert(name.to_owned(), next);
    next
}

impl Fleet {
    /// The nodes of `view` with the groups that run on them or are on their way.
    #[must_use]
    pub fn new(policy: &Policy, view: &View) -> Self {
        let mut fleet = Self::empty(policy, view);
        for group in policy.groups.values() {
            let Some(state) = view.groups.get(&group.name) else { continue };
            let target = state.doing.as_ref().and_then(|d| d.to.as_ref());
            let owner = state.owner.as_ref().filter(|_| state.uses_owner());
            if owner.is_none() && target.is_none() {
                continue;
            }
            let ask = fleet.ask(group);
            if let Some(owner) = owner {
                fleet.occupy(owner, &ask);
            }
            if let Some(target) = target.filter(|t| Some(*t) != owner) {
                fleet.occupy(target, &ask);
            }
        }
        fleet
    }

    /// The nodes without any group.
    #[must_use]
    pub fn empty(policy: &Policy, view: &View) -> Self {
        let mut fleet = Self {
            seats: Vec::with_capacity(view.nodes.len()),
            index: HashMap::new(),
            storages: HashMap::new(),
            switches: HashMap::new(),
            classes: HashMap::new(),
            strategy: policy.strategy,
            enforced: policy.enforced_anti_affinity,
        };
        for (name, node) in &view.nodes {
            let mut seat = Seat {
                name: name.clone(),
                open: node.state.takes_groups(),
                reserve: policy.nodes.get(name).is_some_and(|n| n.reserve),
                memory: signed(node.memory_mib),
                memory_free: signed(node.memory_mib),
                cores: signed(node.cores.0),
                cores_free: signed(node.cores.0),
                processors: node.processors,
                storages: Bits::default(),
                switches: Bits::default(),
                crowd: Vec::new(),
            };
            node.storages.iter().for_each(|s| seat.storages.insert(number(&mut fleet.storages, s.as_str())));
            node.switches.iter().for_each(|s| seat.switches.insert(number(&mut fleet.switches, s.as_str())));
            fleet.index.insert(name.clone(), fleet.seats.len());
            fleet.seats.push(seat);
        }
        fleet
    }

    /// What `group` asks, in the fleet's numbers.
    pub fn ask(&mut self, group: &Group) -> Ask {
        let mut storages = Bits::default();
        let mut switches = Bits::default();
        let mut sum = Needs::default();
        let mut possible: Option<BTreeSet<&NodeName>> = None;
        for resource in &group.resources {
            let needs = &resource.needs;
            sum.memory_mib = sum.memory_mib.saturating_add(needs.memory_mib);
            sum.cores = sum.cores + needs.cores;
            sum.processors = sum.processors.max(needs.processors);
            needs.storages.iter().for_each(|s| storages.insert(number(&mut self.storages, s.as_str())));
            needs.switches.iter().for_each(|s| switches.insert(number(&mut self.switches, s.as_str())));
            if let Some(owners) = &resource.possible_owners {
                possible = Some(match possible {
                    None => owners.iter().collect(),
                    Some(before) => owners.iter().filter(|n| before.contains(n)).collect(),
                });
            }
        }
        let possible = possible.map(|owners| {
            let mut bits = Bits::default();
            owners.into_iter().filter_map(|n| self.index.get(n)).for_each(|i| bits.insert(*i));
            bits
        });
        Ask {
            memory: signed(sum.memory_mib),
            cores: signed(sum.cores.0),
            processors: sum.processors,
            storages,
            switches,
            possible,
            preferred: group.preferred.iter().filter_map(|n| self.index.get(n).copied()).collect(),
            classes: group.anti_affinity.iter().map(|c| number(&mut self.classes, c)).collect(),
        }
    }

    /// Puts a group on `node`, whether it fits or not.
    pub fn occupy(&mut self, node: &NodeName, ask: &Ask) {
        if let Some(i) = self.index.get(node) {
            self.change(*i, ask, 1);
        }
    }

    /// Takes a group off `node`.
    pub fn vacate(&mut self, node: &NodeName, ask: &Ask) {
        if let Some(i) = self.index.get(node) {
            self.change(*i, ask, -1);
        }
    }

    pub(crate) fn change(&mut self, i: usize, ask: &Ask, sign: i64) {
        let seat = &mut self.seats[i];
        seat.memory_free -= sign * ask.memory;
        seat.cores_free -= sign * ask.cores;
        for class in &ask.classes {
            if seat.crowd.len() <= *class {
                seat.crowd.resize(class + 1, 0);
            }
            let crowd = &mut seat.crowd[*class];
            *crowd = if sign > 0 { *crowd + 1 } else { crowd.saturating_sub(1) };
        }
    }

    /// The node is no longer there for groups.
    pub fn close(&mut self, node: &NodeName) {
        if let Some(i) = self.index.get(node) {
            self.seats[*i].open = false;
        }
    }

    /// Groups on node `i` that `ask` should avoid.
    pub(crate) fn crowd(&self, i: usize, ask: &Ask) -> u32 {
        ask.classes.iter().map(|c| self.seats[i].crowd.get(*c).copied().unwrap_or(0)).sum()
    }

    /// Whether it could be on node `i` if there were room.
    pub(crate) fn suits(&self, i: usize, ask: &Ask) -> bool {
        let seat = &self.seats[i];
        seat.open
            && ask.processors <= seat.processors
            && ask.storages.within(&seat.storages)
            && ask.switches.within(&seat.switches)
            && ask.possible.as_ref().is_none_or(|p| p.0.get(i / 64).is_some_and(|w| w >> (i % 64) & 1 == 1))
            && !(self.enforced && !ask.classes.is_empty() && self.crowd(i, ask) > 0)
    }

    /// Whether there is room on node `i`. Who reserves nothing is let in also where more is promised than there is.
    pub(crate) fn has_room(&self, i: usize, ask: &Ask) -> bool {
        let seat = &self.seats[i];
        (ask.memory == 0 || ask.memory <= seat.memory_free)
            && (ask.cores == 0 || ask.cores <= seat.cores_free)
    }

    /// Whether a group can go to `node`.
    #[must_use]
    pub fn fits(&self, node: &NodeName, ask: &Ask) -> bool {
        self.index.get(node).is_some_and(|i| self.suits(*i, ask) && self.has_room(*i, ask))
    }

    /// Whether a group could go to `node` if `memory_mib` and hundredths of `cores` were free besides.
    #[must_use]
    pub fn would_fit(&self, node: &NodeName, ask: &Ask, memory_mib: i64, cores: i64) -> bool {
        let Some(i) = self.index.get(node) else { return false };
        let seat = &self.seats[*i];
        self.suits(*i, ask)
            && ask.memory <= seat.memory_free + memory_mib
            && (ask.cores == 0 || ask.cores <= seat.cores_free + cores)
    }

    /// The best node: without groups it avoids, where it did not fail, preferred, no reserve node, and then where the larger
    /// part of memory and processors stays free. Equal ones by name.
    #[must_use]
    pub fn choose(&self, ask: &Ask, wish: &Wish<'_>) -> Option<NodeName> {
        let number = |names: &[&NodeName]| -> Vec<usize> {
            names.iter().filter_map(|n| self.index.get(*n).copied()).collect()
        };
        let (never, avoid) = (number(&wish.never), number(&wish.avoid));
        let mut best: Option<(u32, bool, usize, bool, i64, usize)> = None;
        for i in 0..self.seats.len() {
            if !self.has_room(i, ask) || !self.suits(i, ask) || never.contains(&i) {
                continue;
            }
            let crowd = if ask.classes.is_empty() { 0 } else { self.crowd(i, ask) };
            let rank = ask.preferred.iter().position(|p| *p == i).unwrap_or(ask.preferred.len());
            let reserve = self.strategy == Strategy::Reserve && self.seats[i].reserve;
            let key = (crowd, avoid.contains(&i), rank, reserve, -self.free_after(i, ask), i);
            if best.is_none_or(|b| key < b) {
                best = Some(key);
            }
        }
        best.map(|b| self.seats[b.5].name.clone())
    }

    /// Thousandths of memory or processors that stay free, whichever is less.
    pub(crate) fn free_after(&self, i: usize, ask: &Ask) -> i64 {
        let seat = &self.seats[i];
        let part = |free: i64, ask: i64, all: i64| (free - ask) * 1000 / all.max(1);
        part(seat.memory_free, ask.memory, seat.memory).min(part(seat.cores_free, ask.cores, seat.cores))
    }

    /// Memory left on `node` in MiB; negative where more is promised than there is.
    #[must_use]
    pub fn memory_free(&self, node: &NodeName) -> i64 {
        self.index.get(node).map_or(0, |i| self.seats[*i].memory_free)
    }

    /// Processor time left on `node`, in hundredths of a core.
    #[must_use]
    pub fn cores_free(&self, node: &NodeName) -> i64 {
        self.index.get(node).map_or(0, |i| self.seats[*i].cores_free)
    }

    /// The nodes' names in order.
    pub fn names(&self) -> impl Iterator<Item = &NodeName> {
        self.seats.iter().map(|s| &s.name)
    }
}

//! Whether several groups fit at once: an exact search within a budget.

use super::fleet::{Ask, Fleet};
use crate::NodeName;

/// More groups than this are not searched.
const GROUPS_MAX: usize = 64;

/// Placements that a plan tries where placing one by one does not place all; capacity tries as many, so that what it promises
/// is what a plan does.
pub const SEARCH: u64 = 20_000;

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packing {
    /// They fit, like this: a node for each, in the order they were given.
    Found(Vec<NodeName>),
    /// There is no way to place them all without moving others.
    Impossible,
    /// The budget did not suffice to tell.
    Unknown,
}

struct Search<'a> {
    fleet: Fleet,
    asks: Vec<&'a Ask>,
    /// Memory and cores that groups from here on need together.
    rest: Vec<(i64, i64)>,
    chosen: Vec<usize>,
    budget: &'a mut u64,
}

/// Looks for places for all of `asks`, trying at most `budget` placements; what is used up is subtracted.
#[must_use]
pub fn pack(fleet: &Fleet, asks: &[Ask], budget: &mut u64) -> Packing {
    let nodes = 0..fleet.seats.len();
    let somewhere = |ask: &&Ask| nodes.clone().any(|i| fleet.suits(i, ask) && fleet.has_room(i, ask));
    if !asks.iter().all(|ask| somewhere(&ask)) {
        return Packing::Impossible;
    }
    let mut order: Vec<usize> = (0..asks.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse((asks[*i].memory, asks[*i].cores)));
    let sorted: Vec<&Ask> = order.iter().map(|i| &asks[*i]).collect();
    let mut rest = vec![(0, 0); sorted.len() + 1];
    for i in (0..sorted.len()).rev() {
        rest[i] = (rest[i + 1].0 + sorted[i].memory, rest[i + 1].1 + sorted[i].cores);
    }
    let mut search = Search { fleet: fleet.clone(), asks: sorted, rest, chosen: Vec::new(), budget };
    if !search.enough() {
        return Packing::Impossible;
    }
    if asks.len() > GROUPS_MAX {
        return Packing::Unknown;
    }
    match search.place() {
        None => Packing::Unknown,
        Some(false) => Packing::Impossible,
        Some(true) => {
            let mut found = vec![0; asks.len()];
            order.iter().zip(&search.chosen).for_each(|(ask, seat)| found[*ask] = *seat);
            Packing::Found(found.into_iter().map(|i| fleet.seats[i].name.clone()).collect())
        }
    }
}

impl Search<'_> {
    /// Whether all that is free is as much as all that is needed.
    fn enough(&self) -> bool {
        let open = self.fleet.seats.iter().filter(|s| s.open);
        let free = open.fold((0i64, 0i64), |sum, s| {
            (sum.0.saturating_add(s.memory_free.max(0)), sum.1.saturating_add(s.cores_free.max(0)))
        });
        let need = self.rest[self.chosen.len()];
        need.0 <= free.0 && need.1 <= free.1
    }

    /// Places what is left. `None`: the budget is used up.
    fn place(&mut self) -> Option<bool> {
        let Some(ask) = self.asks.get(self.chosen.len()).copied() else { return Some(true) };
        if !self.enough() {
            return Some(false);
        }
        let mut tried: Vec<usize> = Vec::new();
        for i in 0..self.fleet.seats.len() {
            if !self.fleet.has_room(i, ask) || !self.fleet.suits(i, ask) {
                continue;
            }
            if tried.iter().any(|t| self.alike(*t, i)) {
                continue;
            }
            tried.push(i);
            *self.budget = self.budget.checked_sub(1)?;
            self.fleet.change(i, ask, 1);
            self.chosen.push(i);
            if self.place()? {
                return Some(true);
            }
            self.chosen.pop();
            self.fleet.change(i, ask, -1);
        }
        Some(false)
    }

    /// Whether it makes no difference to any group which of the two it goes to.
    fn alike(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.fleet.seats[a], &self.fleet.seats[b]);
        let named = self.asks.iter().any(|ask| ask.possible.is_some());
        !named
            && a.memory_free == b.memory_free
            && a.cores_free == b.cores_free
            && a.processors == b.processors
            && a.storages == b.storages
            && a.switches == b.switches
            && (!self.fleet.enforced || a.crowd == b.crowd)
    }
}

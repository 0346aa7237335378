//! Dependencies between the resources of one group: online bottom-up, offline top-down.

use crate::{Group, ResourceName, ResourceState};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a resource depends on: every part must hold, and a part holds when one of its resources is online
/// (`([Disk 1] or [Disk 2]) and [Network]`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Dependencies(pub Vec<Vec<ResourceName>>);

impl Dependencies {
    /// All of `names` are needed.
    #[must_use]
    pub fn all(names: impl IntoIterator<Item = ResourceName>) -> Self {
        Self(names.into_iter().map(|name| vec![name]).collect())
    }

    /// Whether `name` is mentioned.
    #[must_use]
    pub fn mentions(&self, name: &ResourceName) -> bool {
        self.0.iter().flatten().any(|n| n == name)
    }

    /// Whether it holds where `online` says which resources are.
    pub fn satisfied(&self, online: impl Fn(&ResourceName) -> bool) -> bool {
        self.0.iter().all(|part| part.iter().any(&online))
    }
}

impl fmt::Display for Dependencies {
    /// As Windows writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.0.iter().enumerate() {
            let and = if i == 0 { "" } else { " and " };
            let names: Vec<_> = part.iter().map(|n| format!("[{n}]")).collect();
            let (open, close) = if part.len() > 1 { ("(", ")") } else { ("", "") };
            write!(f, "{and}{open}{}{close}", names.join(" or "))?;
        }
        Ok(())
    }
}

/// A group whose dependencies make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DependencyError {
    /// A name that no resource of the group has.
    #[error(
        "'{resource}' depends on '{on}', which is not in its group: a dependency stays within the group, move '{on}' there"
    )]
    Unknown {
        /// Who depends.
        resource: ResourceName,
        /// On what.
        on: ResourceName,
    },
    /// A part without alternatives can never hold.
    #[error("'{0}' has a dependency without any alternative: name at least one resource")]
    Empty(ResourceName),
    /// Two resources of one name.
    #[error("two resources are named '{0}': rename one")]
    Twice(ResourceName),
    /// A circle.
    #[error("'{0}' depends on itself, directly or through others: remove one dependency of the circle")]
    Circle(ResourceName),
}

impl Group {
    /// Where `name` is among the resources.
    #[must_use]
    pub fn position(&self, name: &ResourceName) -> Option<usize> {
        self.resources.iter().position(|r| r.name == *name)
    }

    /// The resources in an order in which each comes after what it depends on.
    ///
    /// # Errors
    /// The first dependency that makes no sense.
    pub fn online_order(&self) -> Result<Vec<usize>, DependencyError> {
        for (i, resource) in self.resources.iter().enumerate() {
            if self.resources[..i].iter().any(|r| r.name == resource.name) {
                return Err(DependencyError::Twice(resource.name.clone()));
            }
            if resource.depends_on.0.iter().any(Vec::is_empty) {
                return Err(DependencyError::Empty(resource.name.clone()));
            }
            if let Some(on) = resource.depends_on.0.iter().flatten().find(|n| self.position(n).is_none()) {
                return Err(DependencyError::Unknown { resource: resource.name.clone(), on: on.clone() });
            }
        }
        let mut order = Vec::new();
        while order.len() < self.resources.len() {
            // Every mentioned resource counts here, alternatives too: the order then suits whichever holds.
            let placed = |n: &ResourceName| self.position(n).is_some_and(|p| order.contains(&p));
            let ready = |i: &usize| {
                !order.contains(i) && self.resources[*i].depends_on.0.iter().flatten().all(placed)
            };
            match (0..self.resources.len()).find(ready) {
                Some(next) => order.push(next),
                None => {
                    let stuck = self.resources.iter().enumerate().find(|(i, _)| !order.contains(i));
                    let name = stuck.map(|(_, r)| r.name.clone());
                    return name.map_or(Ok(order), |name| Err(DependencyError::Circle(name)));
                }
            }
        }
        Ok(order)
    }

    /// Whether what resource `i` depends on is online.
    #[must_use]
    pub fn provided(&self, i: usize, states: &[ResourceState]) -> bool {
        let online = |n: &ResourceName| {
            self.position(n).and_then(|p| states.get(p)).is_some_and(|s| *s == ResourceState::Online)
        };
        self.resources[i].depends_on.satisfied(online)
    }

    /// Resources that mention `i` as something they depend on.
    pub fn dependents(&self, i: usize) -> impl Iterator<Item = usize> {
        let name = &self.resources[i].name;
        self.resources.iter().enumerate().filter(|(_, r)| r.depends_on.mentions(name)).map(|(d, _)| d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GroupName, Resource, ResourceKind};

    fn group(resources: &[(&str, &[&[&str]])]) -> Group {
        let name = |n: &str| ResourceName::new(n).unwrap();
        let mut group = Group::new(GroupName::new("g").unwrap());
        for (n, needs) in resources {
            let mut r = Resource::new(name(n), ResourceKind::Command);
            r.depends_on =
                Dependencies(needs.iter().map(|part| part.iter().map(|n| name(n)).collect()).collect());
            group.resources.push(r);
        }
        group
    }

    #[test]
    fn bottom_up_whatever_order_they_are_listed_in() {
        let g = group(&[
            ("vm", &[&["config"]]),
            ("config", &[&["disk1", "disk2"]]),
            ("disk1", &[]),
            ("disk2", &[]),
        ]);
        assert_eq!(g.online_order(), Ok(vec![2, 3, 1, 0]));
        assert_eq!(g.resources[1].depends_on.to_string(), "([disk1] or [disk2])");
        let mut states = [ResourceState::Offline; 4];
        assert!(!g.provided(1, &states));
        states[3] = ResourceState::Online;
        assert!(g.provided(1, &states) && !g.provided(0, &states));
        assert_eq!(g.dependents(3).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let circle = group(&[("a", &[&["b"]]), ("b", &[&["a"]])]).online_order().unwrap_err();
        assert!(circle.to_string().starts_with("'a' depends on itself"));
        let unknown = group(&[("a", &[&["x"]])]).online_order().unwrap_err().to_string();
        assert!(unknown.contains("'a' depends on 'x', which is not in its group"), "{unknown}");
        assert!(group(&[("a", &[]), ("a", &[])]).online_order().is_err());
        assert!(group(&[("a", &[&[]])]).online_order().is_err());
    }
}

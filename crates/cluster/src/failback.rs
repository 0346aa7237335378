//! Failback: a group returns to a node it prefers.

use crate::{Group, NodeName};
use serde::{Deserialize, Serialize};
use std::fmt;

/// `AutoFailbackType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failback {
    /// 0: stay.
    #[default]
    Prevent,
    /// 1: return to a preferred owner. Without preferred owners it has no effect.
    Allow,
}

/// A failback window that is no hour of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the failback window {start}-{end} is not within a day: give hours from 0 to 23")]
pub struct WindowError {
    start: u8,
    end: u8,
}

/// `FailbackWindowStart` and `FailbackWindowEnd`: hours 0 to 23 of the cluster's local time. It opens at the start hour and
/// closes at the end hour; over midnight if the start is later; one hour long if they are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailbackWindow {
    start: u8,
    end: u8,
}

impl FailbackWindow {
    /// A window from `start` to `end`.
    ///
    /// # Errors
    /// [`WindowError`] for anything above 23.
    pub fn new(start: u8, end: u8) -> Result<Self, WindowError> {
        if start > 23 || end > 23 {
            return Err(WindowError { start, end });
        }
        Ok(Self { start, end })
    }

    /// Whether it is open during `hour`.
    #[must_use]
    pub fn is_open(self, hour: u8) -> bool {
        let Self { start, end } = self;
        match start.cmp(&end) {
            std::cmp::Ordering::Less => (start..end).contains(&hour),
            std::cmp::Ordering::Greater => hour >= start || hour < end,
            std::cmp::Ordering::Equal => hour == start,
        }
    }
}

impl fmt::Display for FailbackWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{} h", self.start, self.end)
    }
}

impl Group {
    /// Where `node` is among the preferred owners; 0 is the best.
    #[must_use]
    pub fn preference(&self, node: &NodeName) -> Option<usize> {
        self.preferred.iter().position(|n| n == node)
    }

    /// The preferred owners that are better than `owner`, the best first; empty where failback is not allowed now.
    #[must_use]
    pub fn failback_targets(&self, owner: &NodeName, local_hour: u8) -> &[NodeName] {
        let open = self.failback_window.is_none_or(|w| w.is_open(local_hour));
        if self.failback == Failback::Prevent || !open {
            return &[];
        }
        &self.preferred[..self.preference(owner).unwrap_or(self.preferred.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_open_and_close_on_the_hour() {
        let open = |start, end| {
            let window = FailbackWindow::new(start, end).unwrap();
            (0..24).filter(|h| window.is_open(*h)).collect::<Vec<_>>()
        };
        assert_eq!(open(1, 4), [1, 2, 3]);
        assert_eq!(open(22, 2), [0, 1, 22, 23]);
        assert_eq!(open(5, 5), [5]);
        assert!(FailbackWindow::new(0, 24).is_err());
    }
}

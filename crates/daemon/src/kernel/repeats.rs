//! A failing disk says the same thing thousands of times: it is told once, then each time a while has passed.

use super::meaning::Trouble;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the same trouble is only counted.
const QUIET: Duration = Duration::from_mins(10);
/// Different troubles that are remembered.
const REMEMBERED: usize = 256;

/// Troubles that were told.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    told: BTreeMap<Trouble, (Duration, u64)>,
}

impl Repeats {
    /// Whether to tell a trouble now, and how often it came since it was told last without being told.
    pub(super) fn tell(&mut self, trouble: &Trouble, now: Duration) -> Option<u64> {
        if let Some((at, swallowed)) = self.told.get_mut(trouble) {
            if now.saturating_sub(*at) < QUIET {
                *swallowed += 1;
                return None;
            }
            *at = now;
            return Some(std::mem::take(swallowed));
        }
        if self.told.len() >= REMEMBERED {
            self.told.retain(|_, (at, _)| now.saturating_sub(*at) < QUIET);
        }
        if self.told.len() >= REMEMBERED {
            return None;
        }
        self.told.insert(trouble.clone(), (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::meaning::Kind;
    use super::*;

    #[test]
    fn the_same_trouble_is_told_once_in_a_while_with_its_count() {
        let mut repeats = Repeats::default();
        let trouble = |device: &str| Trouble { kind: Kind::Device, device: device.into(), class: "x".into() };
        let at = Duration::from_secs;
        assert_eq!(repeats.tell(&trouble("sda"), at(0)), Some(0));
        assert_eq!(repeats.tell(&trouble("sda"), at(1)), None);
        assert_eq!(repeats.tell(&trouble("sdb"), at(2)), Some(0));
        assert_eq!(repeats.tell(&trouble("sda"), at(599)), None);
        assert_eq!(repeats.tell(&trouble("sda"), at(601)), Some(2));
        for n in 0..1000 {
            repeats.tell(&trouble(&format!("d{n}")), at(602));
        }
        assert!(repeats.told.len() <= REMEMBERED, "a hostile log does not eat the memory");
        assert_eq!(repeats.tell(&trouble("late"), at(602 + 601)), Some(0));
    }
}

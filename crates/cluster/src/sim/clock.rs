//! One node's clock: it drifts, and may stand still while the node does.

use crate::Time;

#[derive(Clone, Debug)]
pub(super) struct Clock {
    local: u64,
    global: u64,
    ppm: i64,
    frozen: bool,
}

impl Clock {
    /// `offset`: what it shows at the beginning. `ppm`: how much too fast it runs, in millionths.
    pub fn new(offset: u64, ppm: i64) -> Self {
        Self { local: offset, global: 0, ppm, frozen: false }
    }

    /// What it shows at the global instant `now`.
    pub fn at(&self, now: u64) -> Time {
        if self.frozen {
            return Time(self.local);
        }
        let passed = i128::from(now - self.global) * i128::from(1_000_000 + self.ppm) / 1_000_000;
        Time(self.local + u64::try_from(passed).unwrap_or(0))
    }

    /// The global instant at which it will show `local` if nothing happens to it.
    pub fn when(&self, local: Time) -> u64 {
        let ahead = i128::from(local.0.saturating_sub(self.local));
        let global = ahead * 1_000_000 / i128::from(1_000_000 + self.ppm);
        self.global + u64::try_from(global).unwrap_or(0) + 1
    }

    pub fn freeze(&mut self, now: u64) {
        self.local = self.at(now).0;
        self.global = now;
        self.frozen = true;
    }

    pub fn thaw_if_frozen(&mut self, now: u64) {
        if self.frozen {
            self.thaw(now);
        }
    }

    pub fn thaw(&mut self, now: u64) {
        self.global = now;
        self.frozen = false;
    }
}

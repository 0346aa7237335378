//! Processor controls in Hyper-V's terms.

use serde::{Deserialize, Serialize};

/// How many virtual processors a machine has and its share of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuControl {
    /// Virtual processors, 1–240.
    pub count: u32,
    /// Percent of the virtual processors that is always available, 0–100.
    pub reserve_percent: u32,
    /// Percent of the virtual processors that is never exceeded, 1–100.
    pub limit_percent: u32,
    /// Relative weight under contention, 1–10000; 100 is normal.
    pub weight: u32,
}

impl Default for CpuControl {
    fn default() -> Self {
        Self { count: 1, reserve_percent: 0, limit_percent: 100, weight: 100 }
    }
}

/// A processor setting outside its range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CpuError {
    /// No machine has zero processors, and QEMU's PC machine stops at 240 here.
    #[error("{0} virtual processors: a machine has 1 to 240")]
    Count(u32),
    /// Reserve is a percentage.
    #[error("processor reserve {0} %: the range is 0 to 100")]
    Reserve(u32),
    /// Limit is a percentage above zero.
    #[error("processor limit {0} %: the range is 1 to 100")]
    Limit(u32),
    /// Hyper-V's range since 2012.
    #[error("processor weight {0}: the range is 1 to 10000 (100 is normal)")]
    Weight(u32),
    /// A limit below the reserve would make the reserve a lie.
    #[error(
        "processor reserve {reserve} % is above the limit {limit} %: raise the limit or lower the reserve"
    )]
    ReserveAboveLimit {
        /// Percent.
        reserve: u32,
        /// Percent.
        limit: u32,
    },
}

impl CpuControl {
    /// Checks every range.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn validate(&self) -> Result<(), CpuError> {
        if !(1..=240).contains(&self.count) {
            return Err(CpuError::Count(self.count));
        }
        if self.reserve_percent > 100 {
            return Err(CpuError::Reserve(self.reserve_percent));
        }
        if !(1..=100).contains(&self.limit_percent) {
            return Err(CpuError::Limit(self.limit_percent));
        }
        if !(1..=10000).contains(&self.weight) {
            return Err(CpuError::Weight(self.weight));
        }
        if self.reserve_percent > self.limit_percent {
            return Err(CpuError::ReserveAboveLimit {
                reserve: self.reserve_percent,
                limit: self.limit_percent,
            });
        }
        Ok(())
    }
}

//! Processor settings in the units of the host: cores, quota and period, weights.

use crate::CpuControl;
use serde::{Deserialize, Serialize};
use std::{fmt, iter, ops};

/// Shortest and longest period, in microseconds.
const PERIOD_US: (u64, u64) = (20_000, 100_000);

/// The smallest quota that the kernel takes, in microseconds.
const QUOTA_US_MIN: u64 = 1_000;

/// Range of a weight: Hyper-V's, cgroup v2's and systemd's.
const WEIGHT: (u32, u32) = (1, 10_000);

/// Hundredths of a host core: percentages of whole processors are exact in it.
///
/// Prints as `3.0`, `0.33`; with a precision (`{:.2}`) always with so many decimals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cores(pub u64);

impl Cores {
    /// No core.
    pub const ZERO: Self = Self(0);

    /// Whole cores.
    #[must_use]
    pub fn whole(cores: u32) -> Self {
        Self(u64::from(cores) * 100)
    }

    /// As a number, for JSON.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        // Exact: there are fewer cores than 2^50.
        #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
        let hundredths = self.0 as f64;
        hundredths / 100.0
    }

    /// What is left after `other` was taken; nothing below zero.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 100, self.0 % 100);
        match f.precision() {
            Some(0) => write!(f, "{whole}"),
            None | Some(1) if rest % 10 == 0 => write!(f, "{whole}.{}", rest / 10),
            _ => write!(f, "{whole}.{rest:02}"),
        }
    }
}

impl ops::Add for Cores {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl iter::Sum for Cores {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::ZERO, ops::Add::add)
    }
}

/// So much processor time in every period, for all virtual processors of a machine together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Microseconds of processor time, 1,000 or more.
    pub quota_us: u64,
    /// Microseconds, 20,000 to 100,000.
    pub period_us: u64,
}

/// What the host is told about a machine's processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuShare {
    /// Under contention with other machines, 1 to 10,000.
    pub weight: u32,
    /// The limit; none: all that the processors can use.
    pub quota: Option<Quota>,
}

impl CpuShare {
    /// Shares of cgroup v1, where 1,024 is normal; 2 to 262,144.
    #[must_use]
    pub fn v1_shares(&self) -> u64 {
        (u64::from(self.weight) * 1024 / 100).clamp(2, 262_144)
    }
}

impl CpuControl {
    /// What `percent` of the virtual processors is on the host.
    #[must_use]
    pub fn cores(&self, percent: u32) -> Cores {
        Cores(u64::from(self.count) * u64::from(percent))
    }

    /// What is promised to the machine.
    #[must_use]
    pub fn reserved(&self) -> Cores {
        self.cores(self.reserve_percent)
    }

    /// What the machine never exceeds.
    #[must_use]
    pub fn limit(&self) -> Cores {
        self.cores(self.limit_percent)
    }

    /// The limit as quota and period; none at 100 %.
    ///
    /// The period is 1 ms divided by the limit in cores, within 20 to 100 ms: as short as the kernel's smallest quota
    /// (1 ms) permits. A virtual processor that has used up its time stands still until the period ends, and with it
    /// whatever waits for it: a long period is felt, also by QEMU when the processor was in the middle of a device access.
    #[must_use]
    pub fn quota(&self) -> Option<Quota> {
        let hundredths = self.limit().0;
        if self.limit_percent >= 100 || hundredths == 0 {
            return None;
        }
        let period_us = (QUOTA_US_MIN * 100).div_ceil(hundredths).clamp(PERIOD_US.0, PERIOD_US.1);
        let quota_us = (hundredths * period_us).div_ceil(100).max(QUOTA_US_MIN);
        Some(Quota { quota_us, period_us })
    }

    /// What the host is told when no other machine has a reserve: the weight as it is.
    #[must_use]
    pub fn share(&self) -> CpuShare {
        CpuShare { weight: self.weight.clamp(WEIGHT.0, WEIGHT.1), quota: self.quota() }
    }
}

/// The weights that make good the reserves of machines that all want more than there is, in their order.
///
/// Each machine gets its reserve, and the cores that are promised to nobody are divided by the machines' weights:
/// `entitled = reserve + free × weight / all weights`. Weights of the host are in that proportion, scaled so that a machine
/// without a reserve keeps its own weight (1:1): `weight + reserve × all weights / free`. Where that exceeds 10,000, all are
/// scaled down together. If some machines do not use their part, the others share it in the same proportion, so no reserve
/// is ever missed that was promised within `cores`.
#[must_use]
pub fn weights(cores: Cores, machines: &[CpuControl]) -> Vec<u32> {
    let own = |cpu: &CpuControl| f64::from(cpu.weight.clamp(WEIGHT.0, WEIGHT.1));
    let all: f64 = machines.iter().map(own).sum();
    let reserved: Cores = machines.iter().map(CpuControl::reserved).sum();
    let free = cores.saturating_sub(reserved).as_f64();
    let entitled = |cpu: &CpuControl| cpu.reserved().as_f64() + free * own(cpu) / all;
    let most = machines.iter().map(entitled).fold(f64::MIN_POSITIVE, f64::max);
    let top = f64::from(WEIGHT.1);
    let factor = if free > 0.0 { (all / free).min(top / most) } else { top / most };
    let rounded = |cpu: &CpuControl| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 1 to 10,000")]
        let weight = (entitled(cpu) * factor).round().clamp(f64::from(WEIGHT.0), top) as u32;
        weight
    };
    machines.iter().map(rounded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(count: u32, reserve: u32, limit: u32, weight: u32) -> CpuControl {
        CpuControl { count, reserve_percent: reserve, limit_percent: limit, weight }
    }

    #[test]
    fn cores_are_exact_and_short() {
        let shown = |count, limit| cpu(count, 0, limit, 100).limit().to_string();
        assert_eq!([shown(4, 75), shown(1, 33), shown(2, 5), shown(64, 100)], ["3.0", "0.33", "0.1", "64.0"]);
        assert_eq!(format!("{:.2}", Cores::whole(4)), "4.00");
        assert_eq!(format!("{:.2}", Cores(7)), "0.07");
    }

    /// Rows: processors, limit, quota and period in microseconds.
    #[test]
    fn quota_and_period_follow_the_formula() {
        for (count, limit, quota_us, period_us) in [
            (1, 1, 1_000, 100_000),
            (1, 2, 1_000, 50_000),
            (1, 3, 1_001, 33_334),
            (1, 5, 1_000, 20_000),
            (1, 20, 4_000, 20_000),
            (4, 1, 1_000, 25_000),
            (4, 75, 60_000, 20_000),
            (64, 99, 1_267_200, 20_000),
        ] {
            let quota = cpu(count, 0, limit, 100).quota();
            assert_eq!(quota, Some(Quota { quota_us, period_us }), "{limit} % of {count}");
        }
        assert_eq!(cpu(4, 0, 100, 100).quota(), None, "no limit");
    }

    #[test]
    fn a_quota_is_at_least_the_reserve_and_the_limit_and_what_the_kernel_takes() {
        for count in [1, 2, 3, 7, 64, 240] {
            for limit in 1..100 {
                for reserve in [0, limit / 2, limit] {
                    let cpu = cpu(count, reserve, limit, 100);
                    let Quota { quota_us, period_us } = cpu.quota().unwrap();
                    assert!(quota_us >= 1_000 && (20_000..=100_000).contains(&period_us), "{cpu:?}");
                    // In hundredths of microseconds, so that all is exact.
                    let (quota, limit) = (quota_us * 100, cpu.limit().0 * period_us);
                    assert!(quota >= cpu.reserved().0 * period_us && quota >= limit, "{cpu:?}");
                    assert!(quota < limit + limit / 100 + 100, "{cpu:?}");
                }
            }
        }
    }

    #[test]
    fn weights_are_one_to_one_and_shares_proportional_within_the_kernels_range() {
        let shares = |weight| CpuShare { weight, quota: None }.v1_shares();
        assert_eq!([1, 25, 50, 100, 400, 10_000].map(shares), [10, 256, 512, 1024, 4096, 102_400]);
        assert_eq!(cpu(2, 0, 100, 777).share(), CpuShare { weight: 777, quota: None });
    }

    #[test]
    fn without_reserves_everybody_keeps_its_weight() {
        let machines = [cpu(1, 0, 100, 400), cpu(4, 0, 50, 200), cpu(1, 0, 100, 100), cpu(1, 0, 100, 1)];
        assert_eq!(weights(Cores::whole(4), &machines), [400, 200, 100, 1]);
        assert_eq!(weights(Cores::whole(4), &[]), Vec::<u32>::new());
    }

    #[test]
    fn a_reserve_raises_only_its_own_machine() {
        // 2 cores, one of them promised: a gets 1 + 1/3, b and c a third each.
        let machines = [cpu(1, 100, 100, 100), cpu(1, 0, 100, 100), cpu(1, 0, 100, 100)];
        assert_eq!(weights(Cores::whole(2), &machines), [400, 100, 100]);
        // All is promised: only reserves count.
        let machines = [cpu(2, 75, 100, 1), cpu(1, 50, 100, 10_000), cpu(1, 0, 100, 10_000)];
        assert_eq!(weights(Cores::whole(2), &machines), [10_000, 3_333, 1]);
    }

    #[test]
    fn under_full_contention_every_reserve_is_honoured() {
        let reserves = [[100, 0, 0, 0], [50, 50, 50, 50], [100, 100, 90, 0], [10, 20, 30, 40], [1, 1, 1, 97]];
        for cores in [4, 8, 64] {
            for reserve in reserves {
                for weight in [[100; 4], [1, 10_000, 100, 3], [10_000, 1, 1, 1]] {
                    let machine = |i: usize| cpu(cores / 4, reserve[i], 100, weight[i]);
                    let machines: Vec<_> = (0..4).map(machine).collect();
                    let given = weights(Cores::whole(cores), &machines);
                    let all: u32 = given.iter().sum();
                    for (cpu, given) in machines.iter().zip(&given) {
                        let gets = f64::from(cores) * f64::from(*given) / f64::from(all);
                        let promised = cpu.reserved().as_f64();
                        // A weight is a whole number: 1 of 10,000 may be missing.
                        assert!(
                            gets >= promised * 0.998 - 0.001 * f64::from(cores),
                            "{machines:?} {given}: {gets}"
                        );
                    }
                }
            }
        }
    }
}

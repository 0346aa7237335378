//! Limits on what is asked of a disk: when the next request may go. Pure; `nbd::throttle` waits.

use std::time::Duration;

/// Most requests and bytes per second, reads and writes together; `None`: as much as the disk can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests per second; 0 counts as 1.
    pub requests: Option<u64>,
    /// Bytes per second; 0 counts as 1.
    pub bytes: Option<u64>,
}

impl RateLimit {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// What a request takes of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// 1, or 0 for what is not counted.
    pub requests: u64,
    /// Bytes that are moved.
    pub bytes: u64,
}

/// Two buckets of tokens, for requests and for bytes.
///
/// Each keeps the time at which everything it let through so far will have been paid for at the limit's rate. A request
/// waits until those before it are paid for, and never for its own size: however large, it is let through at last, and
/// those that come later pay. So requests go in the order in which they came, and none starves. What is not used is
/// kept for [`Bucket::BURST`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    limit: RateLimit,
    requests_paid: Duration,
    bytes_paid: Duration,
}

impl Bucket {
    /// A disk that rested may do at once what it could have done in this time.
    pub const BURST: Duration = Duration::from_millis(50);

    /// An empty bucket: the first request goes at once, the next ones at the limit's rate.
    #[must_use]
    pub fn new(limit: RateLimit, now: Duration) -> Self {
        Self { limit, requests_paid: now, bytes_paid: now }
    }

    /// The limit.
    #[must_use]
    pub fn limit(&self) -> RateLimit {
        self.limit
    }

    /// Takes a request that came at `now` (a clock that never goes back) into account, and says how long it has to wait.
    #[must_use]
    pub fn step(&mut self, now: Duration, cost: Cost) -> Duration {
        let requests = spend(&mut self.requests_paid, now, self.limit.requests, cost.requests);
        let bytes = spend(&mut self.bytes_paid, now, self.limit.bytes, cost.bytes);
        requests.max(bytes)
    }
}

fn spend(paid: &mut Duration, now: Duration, per_second: Option<u64>, amount: u64) -> Duration {
    let Some(per_second) = per_second else { return Duration::ZERO };
    if amount == 0 {
        return Duration::ZERO;
    }
    let from = (*paid).max(now.saturating_sub(Bucket::BURST));
    *paid = from.saturating_add(time_for(amount, per_second.max(1)));
    from.saturating_sub(now)
}

/// How long `amount` takes at a rate, rounded up.
fn time_for(amount: u64, per_second: u64) -> Duration {
    let nanos = (u128::from(amount) * 1_000_000_000).div_ceil(u128::from(per_second));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: Cost = Cost { requests: 1, bytes: 4096 };
    const SECOND: Duration = Duration::from_secs(1);

    fn limit(requests: Option<u64>, bytes: Option<u64>) -> RateLimit {
        RateLimit { requests, bytes }
    }

    /// The times at which `count` requests go that all come at `now`.
    fn all_at(bucket: &mut Bucket, now: Duration, count: usize, cost: Cost) -> Vec<Duration> {
        (0..count).map(|_| now + bucket.step(now, cost)).collect()
    }

    #[test]
    fn requests_that_come_together_go_at_the_rate_in_their_order() {
        let mut bucket = Bucket::new(limit(Some(100), None), SECOND);
        let times = all_at(&mut bucket, SECOND, 101, ONE);
        assert_eq!(times[0], SECOND, "the first at once");
        assert_eq!(times[100], 2 * SECOND, "a hundred in a second");
        assert!(times.is_sorted());
    }

    #[test]
    fn a_disk_that_rested_may_do_a_little_more_and_no_more_than_that() {
        let mut bucket = Bucket::new(limit(Some(100), None), SECOND);
        let now = 100 * SECOND;
        let times = all_at(&mut bucket, now, 106, ONE);
        assert_eq!(
            times.iter().filter(|at| **at == now).count(),
            6,
            "50 ms at 100 per second, and the first"
        );
        assert_eq!(times[105], now + SECOND);
    }

    #[test]
    fn a_request_larger_than_the_rate_goes_and_the_next_one_pays() {
        let mut bucket = Bucket::new(limit(None, Some(1 << 20)), SECOND);
        let large = Cost { requests: 1, bytes: 32 << 20 };
        assert_eq!(bucket.step(SECOND, large), Duration::ZERO);
        assert_eq!(bucket.step(2 * SECOND, ONE), 31 * SECOND);
        assert_eq!(
            bucket.step(2 * SECOND, Cost { requests: 1, bytes: 0 }),
            Duration::ZERO,
            "no bytes, no wait"
        );
    }

    #[test]
    fn the_stricter_of_both_limits_holds() {
        let mut bucket = Bucket::new(limit(Some(1000), Some(1 << 20)), SECOND);
        let times = all_at(&mut bucket, SECOND, 257, ONE);
        assert_eq!(times[256], 2 * SECOND, "1 MiB is 256 requests of 4 KiB");
        let mut bucket = Bucket::new(limit(Some(10), Some(1 << 30)), SECOND);
        assert_eq!(all_at(&mut bucket, SECOND, 11, ONE)[10], 2 * SECOND);
        let mut bucket = Bucket::new(limit(None, None), SECOND);
        assert!(all_at(&mut bucket, SECOND, 1000, ONE).iter().all(|at| *at == SECOND));
    }

    proptest! {
        /// Over any time, whatever comes when: no more than the rate allows, the burst and one request on top.
        #[test]
        fn the_limit_holds_over_any_time(
            rate in 1..10_000_u64,
            arrivals in prop::collection::vec((0..2_000_000_u64, 1..4096_u64), 1..200),
        ) {
            let mut bucket = Bucket::new(limit(None, Some(rate)), Duration::ZERO);
            let (mut now, mut gone) = (Duration::ZERO, Vec::new());
            for (pause_us, bytes) in arrivals {
                now += Duration::from_micros(pause_us);
                gone.push((now + bucket.step(now, Cost { requests: 1, bytes }), bytes));
            }
            prop_assert!(gone.is_sorted_by_key(|(at, _)| *at), "in their order");
            for first in 0..gone.len() {
                // The last one is paid for by whoever comes next.
                let mut bytes = 0_u64;
                for last in first..gone.len() {
                    let time = gone[last].0 - gone[first].0 + Bucket::BURST;
                    let allowed = time.as_nanos() * u128::from(rate) / 1_000_000_000 + 1;
                    prop_assert!(u128::from(bytes) <= allowed, "{bytes} instead of {allowed}");
                    bytes += gone[last].1;
                }
            }
        }

        /// Nothing is lost: if there is always a request waiting, the rate is reached.
        #[test]
        fn the_rate_is_reached(rate in 1..100_000_u64, sizes in prop::collection::vec(1..4096_u64, 2..200)) {
            let mut bucket = Bucket::new(limit(None, Some(rate)), Duration::ZERO);
            let waits: Vec<_> =
                sizes.iter().map(|bytes| bucket.step(Duration::ZERO, Cost { requests: 1, bytes: *bytes })).collect();
            let before: u64 = sizes[..sizes.len() - 1].iter().sum();
            let time = time_for(before, rate);
            let last = waits[waits.len() - 1];
            prop_assert!(last <= time + Duration::from_micros(1), "{last:?} instead of {time:?}");
        }
    }
}

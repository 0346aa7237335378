//! Counts of durations.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{collections::BTreeMap, time::Duration};

/// Upper ends of buckets for operations, in seconds: from a pause to the copy of a large disk.
pub const OPERATIONS: &[f64] =
    &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0];

/// Upper ends of buckets for pauses of guests, in seconds.
pub const PAUSES: &[f64] = &[0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Durations in buckets since the daemon was started.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    ends: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// An empty one with buckets up to each of `ends` (seconds, ascending) and one for what is longer.
    #[must_use]
    pub fn new(ends: &'static [f64]) -> Self {
        Self { ends, counts: vec![0; ends.len() + 1], sum: 0.0 }
    }

    /// Counts one duration.
    pub fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.ends.iter().position(|end| seconds <= *end).unwrap_or(self.ends.len());
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum += seconds;
    }

    /// For each bucket its upper end (the last one has none) and the durations up to it.
    pub fn cumulative(&self) -> impl Iterator<Item = (Option<f64>, u64)> + '_ {
        let ends = self.ends.iter().copied().map(Some).chain([None]);
        ends.zip(self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        }))
    }

    /// All durations together, in seconds.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// What tasks took, by operation and outcome, and how long guests stood still for checkpoints.
#[derive(Debug)]
pub struct TaskTimes {
    durations: Mutex<BTreeMap<(String, &'static str), Histogram>>,
    pauses: Mutex<Histogram>,
}

impl Default for TaskTimes {
    fn default() -> Self {
        Self { durations: Mutex::default(), pauses: Mutex::new(Histogram::new(PAUSES)) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TaskTimes {
    /// Counts a task that has ended.
    pub fn ended(&self, task: &backstay_api::Task) {
        let took = task.finished.unwrap_or(task.created).as_microsecond() - task.created.as_microsecond();
        let took = Duration::from_micros(u64::try_from(took).unwrap_or(0));
        let mut durations = lock(&self.durations);
        let key = (task.operation.clone(), task.state.as_str());
        durations.entry(key).or_insert_with(|| Histogram::new(OPERATIONS)).observe(took);
        drop(durations);
        let pause = task.result.as_ref().and_then(|result| result.get("pause_us")?.as_u64());
        // A machine that was off did not stand still.
        if let Some(pause) = pause.filter(|pause| *pause > 0) {
            lock(&self.pauses).observe(Duration::from_micros(pause));
        }
    }

    /// Durations by operation and outcome.
    #[must_use]
    pub fn durations(&self) -> BTreeMap<(String, &'static str), Histogram> {
        lock(&self.durations).clone()
    }

    /// Pauses for checkpoints.
    #[must_use]
    pub fn pauses(&self) -> Histogram {
        lock(&self.pauses).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_the_last_one_has_all() {
        let mut pauses = Histogram::new(&[0.01, 0.1]);
        for ms in [5, 10, 50, 5000] {
            pauses.observe(Duration::from_millis(ms));
        }
        let buckets: Vec<_> = pauses.cumulative().collect();
        assert_eq!(buckets, [(Some(0.01), 2), (Some(0.1), 3), (None, 4)]);
        assert_eq!(pauses.count(), 4);
        assert!((pauses.sum() - 5.065).abs() < 1e-9);
    }
}

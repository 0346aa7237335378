//! Instants are arguments: this crate has no clock.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

/// An instant in microseconds on one clock. Which clock is said where it is used: `CLOCK_BOOTTIME` of one node for everything
/// that safety rests on, wall-clock time for periods of minutes and hours. Instants of two clocks cannot be compared.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// So many seconds after the clock's beginning.
    #[must_use]
    pub fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// So many milliseconds after the clock's beginning.
    #[must_use]
    pub fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000))
    }

    /// How long ago `earlier` was; zero if it is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// Earlier by `span`; the clock's beginning at the earliest.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(micros(span)))
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(micros(span)))
    }
}

impl fmt::Display for Time {
    /// Hours, minutes, seconds and milliseconds since the clock's beginning: `0:01:02.500`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0 / 1_000;
        write!(f, "{}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60, ms % 1_000)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Microseconds of `span`; what does not fit is "forever".
#[must_use]
pub(crate) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// A span in words, for reasons and reports: `500 ms`, `3.75 s`, `15 min`, `6 h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        match ms {
            0..1_000 => write!(f, "{ms} ms"),
            _ if ms.is_multiple_of(3_600_000) => write!(f, "{} h", ms / 3_600_000),
            _ if ms.is_multiple_of(60_000) => write!(f, "{} min", ms / 60_000),
            _ if ms.is_multiple_of(1_000) => write!(f, "{} s", ms / 1_000),
            _ => write!(f, "{}.{} s", ms / 1_000, format!("{:03}", ms % 1_000).trim_end_matches('0')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_instants_in_words() {
        let shown = |ms| Span(Duration::from_millis(ms)).to_string();
        assert_eq!(
            [shown(500), shown(3_750), shown(900_000), shown(21_600_000), shown(14_000)],
            ["500 ms", "3.75 s", "15 min", "6 h", "14 s"]
        );
        assert_eq!(Time::from_millis(3_662_005).to_string(), "1:01:02.005");
        assert_eq!(Time::from_secs(1).since(Time::from_secs(2)), Duration::ZERO);
    }
}

//! Medians and spreads.

use std::fmt;

/// Results of repeated runs.
#[derive(Clone, Debug, Default)]
pub struct Runs(Vec<f64>);

impl Runs {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    pub fn median(&self) -> f64 {
        let n = self.0.len();
        match n {
            0 => f64::NAN,
            _ if n % 2 == 1 => self.0[n / 2],
            _ => f64::midpoint(self.0[n / 2 - 1], self.0[n / 2]),
        }
    }
}

impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(min), Some(max)) = (self.0.first(), self.0.last()) else { return write!(f, "–") };
        write!(f, "{} [{}–{}]", short(self.median()), short(*min), short(*max))
    }
}

/// Three significant digits are more than such measurements carry.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 99_950.0 => format!("{:.0}k", value / 1000.0),
        v if v >= 9_995.0 => format!("{:.1}k", value / 1000.0),
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let mut runs = Runs::default();
        for value in [9.0, 1.0, 5.0] {
            runs.push(value);
        }
        assert_eq!(runs.to_string(), "5.00 [1.00–9.00]");
        runs.push(7.0);
        assert_eq!(short(runs.median()), "6.00");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            ["0.12", "12.3", "123", "1234", "12.3k", "123k"],
            [0.123, 12.34, 123.4, 1234.0, 12_340.0, 123_400.0].map(short).each_ref().map(String::as_str)
        );
    }
}

//! Values in words.

use backstay_model::ByteSize;
use jiff::{Timestamp, tz::TimeZone};

/// `40 GiB`
pub fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// Local time to the second: `2026-11-23 10:05:00`.
pub fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The two largest units: `1d 5h`, `12m 3s`, `340 ms`, `12 us`.
pub fn duration(micros: u64) -> String {
    let seconds = micros / 1_000_000;
    match seconds {
        0 if micros < 1000 => format!("{micros} us"),
        0 if micros < 100_000 => format!("{}.{} ms", micros / 1000, micros % 1000 / 100),
        0 => format!("{} ms", micros / 1000),
        1..=59 => format!("{seconds}.{} s", micros % 1_000_000 / 100_000),
        60..=3599 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// `yes` or `no`
pub fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_what_matters_at_their_length() {
        for (micros, text) in [
            (12, "12 us"),
            (14_230, "14.2 ms"),
            (340_999, "340 ms"),
            (2_500_000, "2.5 s"),
            (723_000_000, "12m 3s"),
            (104_400_000_000, "1d 5h"),
        ] {
            assert_eq!(duration(micros), text);
        }
    }
}

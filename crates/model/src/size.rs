//! Sizes as people write them: `40G`, `512KiB`, `1536M`. Suffixes are powers of two.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// A text that is no size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{text}' is not a size: write a number with an optional suffix K, M, G, T (powers of 1024), for example 40G"
)]
pub struct ParseSizeError {
    text: String,
}

impl FromStr for ByteSize {
    type Err = ParseSizeError;
    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let fail = || ParseSizeError { text: text.into() };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, suffix) = trimmed.split_at(digits);
        let unit: u64 = match suffix.trim().to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b')
        {
            "" => 1,
            "k" => 1 << 10,
            "m" => 1 << 20,
            "g" => 1 << 30,
            "t" => 1 << 40,
            "p" => 1 << 50,
            _ => return Err(fail()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: u64 = whole.parse().map_err(|_| fail())?;
        let mut bytes = whole.checked_mul(unit).ok_or_else(fail)?;
        if !fraction.is_empty() {
            if fraction.len() > 6 || unit == 1 {
                return Err(fail());
            }
            let scale = 10u64.pow(u32::try_from(fraction.len()).map_err(|_| fail())?);
            let part: u64 = fraction.parse().map_err(|_| fail())?;
            bytes = bytes.checked_add(unit / scale * part + unit % scale * part / scale).ok_or_else(fail)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for ByteSize {
    /// Binary units with at most two decimals: `40 GiB`, `1.5 MiB`, `512 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut shift = 0u32;
        while shift < 50 && self.0 >> (shift + 10) > 0 {
            shift += 10;
        }
        let unit = UNITS[(shift / 10) as usize];
        let whole = self.0 >> shift;
        let rest = self.0 - (whole << shift);
        let hundredths = (u128::from(rest) * 100) >> shift;
        match hundredths {
            0 => f.pad(&format!("{whole} {unit}")),
            h if h % 10 == 0 => f.pad(&format!("{whole}.{} {unit}", h / 10)),
            h => f.pad(&format!("{whole}.{h:02} {unit}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print() {
        for (text, bytes) in
            [("40G", 40 << 30), ("512KiB", 512 << 10), ("1.5M", 3 << 19), ("4096", 4096), ("2 tb", 2 << 40)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in ["", "G", "1x", "-1", "1.G.5", "99999999999T", "0.5"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        assert_eq!(ByteSize(40 << 30).to_string(), "40 GiB");
        assert_eq!(ByteSize(3 << 19).to_string(), "1.5 MiB");
        assert_eq!(ByteSize(0).to_string(), "0 B");
        assert_eq!(ByteSize(u64::MAX).to_string(), "16383.99 PiB");
    }
}

//! Words of commands: names, sizes, spans, `key=value`.

use std::str::FromStr;
use std::time::Duration;

pub fn name<T: FromStr>(text: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| e.to_string())
}

pub fn names<T: FromStr, C: FromIterator<T>>(text: &str) -> Result<C, String>
where
    T::Err: std::fmt::Display,
{
    text.split(',').filter(|t| !t.is_empty()).map(name).collect()
}

/// `512M`, `4G`; MiB without a letter.
pub fn mib(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.strip_suffix('G') {
        Some(digits) => (digits, 1024),
        None => (text.trim_end_matches('M'), 1),
    };
    Ok(number(digits)? * factor)
}

pub fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("'{text}' is no number"))
}

pub fn small(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("'{text}' is no number"))
}

/// `500ms`, `3.75s`, `15m`, `6h`.
pub fn span(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1.0), ("s", 1_000.0), ("m", 60_000.0), ("h", 3_600_000.0)];
    let found = units.iter().find_map(|(unit, ms)| Some((text.strip_suffix(unit)?.parse::<f64>().ok()?, ms)));
    let (value, ms) = found.ok_or(format!("'{text}' is no span of time"))?;
    Ok(Duration::from_secs_f64((value * ms).round() / 1_000.0))
}

pub fn ms(text: &str) -> Result<u64, String> {
    u64::try_from(span(text)?.as_millis()).map_err(|e| e.to_string())
}

/// The words with and without `=`.
pub fn split<'a>(words: &[&'a str]) -> (Vec<&'a str>, Vec<(&'a str, &'a str)>) {
    let plain = words.iter().copied().filter(|w| !w.contains('=')).collect();
    let pairs = words.iter().filter_map(|w| w.split_once('=')).collect();
    (plain, pairs)
}

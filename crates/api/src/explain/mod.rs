//! What codes mean, what usually causes them and what to do: our own (problems, types of events, rules of `disk check`)
//! and those of Windows that administrators bring along. Plain data, one file per group; nothing here needs a daemon.

mod events;
mod findings;
mod problems;
mod windows_disk;
mod windows_system;

#[cfg(test)]
mod tests;

use crate::{ProblemCode, Severity};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a code comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CodeGroup {
    /// A failed call of Backstay: the `code` of a problem.
    Problem,
    /// The type of an event.
    Event,
    /// A rule of `disk check`.
    Finding,
    /// An error code of Windows.
    Windows,
}

/// An entry of the tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// As it is shown: `busy`, `vm.state`, `0x80070057`.
    code: &'static str,
    group: CodeGroup,
    /// The number behind a Windows code.
    number: Option<u32>,
    /// The constant of a Windows code.
    name: Option<&'static str>,
    severity: Option<Severity>,
    meaning: &'static str,
    causes: &'static [&'static str],
    cures: &'static [&'static str],
}

/// What a code means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The code in its usual form.
    pub code: String,
    /// Where it comes from.
    pub group: CodeGroup,
    /// The constant that programmers call it by.
    #[serde(default)]
    pub name: Option<String>,
    /// How grave it is, for events.
    #[serde(default)]
    pub severity: Option<Severity>,
    /// What it means.
    pub meaning: String,
    /// What usually causes it, the likeliest first.
    pub causes: Vec<String>,
    /// What to do about it.
    pub cures: Vec<String>,
}

impl From<&Entry> for Explanation {
    fn from(entry: &Entry) -> Self {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Self {
            code: entry.code.into(),
            group: entry.group,
            name: entry.name.map(str::to_owned),
            severity: entry.severity,
            meaning: entry.meaning.into(),
            causes: owned(entry.causes),
            cures: owned(entry.cures),
        }
    }
}

const fn problem(
    code: ProblemCode,
    word: &'static str,
    causes: &'static [&'static str],
    cures: &'static [&'static str],
) -> Entry {
    Entry {
        code: word,
        group: CodeGroup::Problem,
        number: None,
        name: None,
        severity: None,
        meaning: code.title(),
        causes,
        cures,
    }
}

const fn event(
    code: &'static str,
    severity: Severity,
    meaning: &'static str,
    causes: &'static [&'static str],
    cures: &'static [&'static str],
) -> Entry {
    Entry {
        code,
        group: CodeGroup::Event,
        number: None,
        name: None,
        severity: Some(severity),
        meaning,
        causes,
        cures,
    }
}

const fn finding(
    code: &'static str,
    meaning: &'static str,
    causes: &'static [&'static str],
    cures: &'static [&'static str],
) -> Entry {
    Entry {
        code,
        group: CodeGroup::Finding,
        number: None,
        name: None,
        severity: None,
        meaning,
        causes,
        cures,
    }
}

const fn windows(
    code: &'static str,
    number: u32,
    name: &'static str,
    meaning: &'static str,
    causes: &'static [&'static str],
    cures: &'static [&'static str],
) -> Entry {
    Entry {
        code,
        group: CodeGroup::Windows,
        number: Some(number),
        name: Some(name),
        severity: None,
        meaning,
        causes,
        cures,
    }
}

fn entries() -> impl Iterator<Item = &'static Entry> {
    let all = [
        problems::ENTRIES,
        events::ENTRIES,
        findings::ENTRIES,
        windows_system::ENTRIES,
        windows_disk::ENTRIES,
    ];
    all.into_iter().flatten()
}

/// Everything that can be explained, by group.
#[must_use]
pub fn all() -> Vec<Explanation> {
    entries().map(Explanation::from).collect()
}

/// How grave an event is. A machine's state counts by what it has become.
#[must_use]
pub fn severity_of(kind: &str, after: Option<&str>) -> Severity {
    if kind == "vm.state" && matches!(after, Some("failed" | "paused-critical")) {
        return Severity::Error;
    }
    entries()
        .find(|entry| entry.group == CodeGroup::Event && entry.code == kind)
        .and_then(|entry| entry.severity)
        .unwrap_or_default()
}

/// What `text` means: a word of ours, the name of a Windows constant, or a Windows code in any of the forms that tools
/// print (`0x80070057`, `80070057`, `-2147024809`, `2147942487`, `87`). Several entries when it is the word of several.
#[must_use]
pub fn explain(text: &str) -> Vec<Explanation> {
    let text = text.trim();
    let same = |entry: &&Entry| {
        entry.code.eq_ignore_ascii_case(text)
            || entry.name.is_some_and(|name| name.eq_ignore_ascii_case(text))
    };
    let named: Vec<_> = entries().filter(same).map(Explanation::from).collect();
    if !named.is_empty() {
        return named;
    }
    let numbers = numbers(text);
    let numbered = entries().filter(|entry| entry.number.is_some_and(|number| numbers.contains(&number)));
    numbered.map(Explanation::from).collect()
}

/// The codes that come closest to one that nobody knows, the closest first: at most five.
#[must_use]
pub fn nearest(text: &str) -> Vec<Explanation> {
    let wanted = text.trim().to_ascii_lowercase();
    let numbers = numbers(&wanted);
    let mut scored: Vec<(u64, &Entry)> = entries()
        .filter_map(|entry| match (entry.number, numbers.first()) {
            // Of the same facility: a failure of the same part of Windows.
            (Some(number), Some(asked)) if number >> 16 == asked >> 16 => {
                Some((u64::from(number.abs_diff(*asked)), entry))
            }
            (None, None) => {
                let distance = distance(&wanted, entry.code);
                let inside = wanted.len() >= 3 && entry.code.contains(wanted.as_str());
                (inside || distance * 3 <= wanted.len().max(3))
                    .then_some((if inside { 0 } else { distance as u64 }, entry))
            }
            _ => None,
        })
        .collect();
    scored.sort_by_key(|(score, _)| *score);
    scored.into_iter().take(5).map(|(_, entry)| Explanation::from(entry)).collect()
}

/// What a number that could not be found says by its parts; none if it is no number.
#[must_use]
pub fn decode(text: &str) -> Option<String> {
    let number = *numbers(text.trim()).first()?;
    let facility = (number >> 16) & 0x7ff;
    let part = match facility {
        0 => "no particular part",
        1 => "remote procedure calls",
        4 => "the interface that reports it (COM, WMI)",
        7 => "Windows itself (Win32)",
        0x3a => "virtual disks",
        0x37 => "the hypervisor's virtualization interface",
        _ => "a part that is not known here",
    };
    let kind = if number & 0x8000_0000 == 0 { "a success or a plain number" } else { "a failure" };
    Some(format!("0x{number:08X} is {kind}; facility {facility}: {part}; code {}", number & 0xffff))
}

/// The answer to a code that nobody knows: what its parts say, and what comes close.
#[must_use]
pub fn unknown(text: &str) -> String {
    let near: Vec<_> = nearest(text).into_iter().map(|found| found.code).collect();
    let near = if near.is_empty() {
        "`backstay explain --list` shows all".to_owned()
    } else {
        format!("close to it: {}", near.join(", "))
    };
    match decode(text) {
        Some(parts) => format!("'{text}' is not known ({parts}); {near}"),
        None => format!("'{text}' is not known; {near}"),
    }
}

/// What a text can stand for as a code of Windows, the likeliest first.
fn numbers(text: &str) -> Vec<u32> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    if let Some(digits) = hex {
        return with_win32(u32::from_str_radix(digits, 16).ok());
    }
    let is_bare_hex = text.len() == 8
        && text.starts_with(['8', 'c', 'C'])
        && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_bare_hex {
        return with_win32(u32::from_str_radix(text, 16).ok());
    }
    if let Ok(signed) = text.parse::<i32>() {
        return with_win32(Some(signed.cast_unsigned()));
    }
    with_win32(text.parse::<u32>().ok())
}

/// A small number is an error of Win32, which most tools show inside an HRESULT.
fn with_win32(number: Option<u32>) -> Vec<u32> {
    match number {
        Some(small) if small < 0x1_0000 => vec![0x8007_0000 | small, small],
        Some(number) => vec![number],
        None => Vec::new(),
    }
}

/// How many letters have to be changed, added or removed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut above = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let here = row[j + 1];
            row[j + 1] = (above + usize::from(from != *to)).min(here + 1).min(row[j] + 1);
            above = here;
        }
    }
    row.last().copied().unwrap_or(0)
}

//! Finding the entries that count (MS-VHDX 2.3.3).

use std::io;

use uuid::Uuid;

use super::entry::{self, EntryInfo, Ring};
use crate::vhdx::layout::PAGE;

/// How often the bytes of a log may be summed: a real one is looked at once or twice.
const PASSES: u64 = 8;

/// The active sequence: from the oldest entry that is needed to the newest; empty if there is none.
pub(crate) fn active(ring: Ring<'_>, log_guid: Uuid) -> io::Result<Vec<EntryInfo>> {
    let mut budget = ring.len.saturating_mul(PASSES);
    let mut best: Vec<EntryInfo> = Vec::new();
    let mut start = 0;
    while start < ring.len {
        let (sequence, end) = sequence_from(ring, start, log_guid, &mut budget)?;
        let Some(head) = sequence.last() else {
            start += PAGE;
            continue;
        };
        let better = best.last().is_none_or(|best| head.sequence > best.sequence);
        if better && let Some(tail) = sequence.iter().position(|entry| entry.at == head.tail) {
            best = sequence;
            best.drain(..tail);
        }
        start += end;
    }
    Ok(best)
}

/// The entries from `start` on that follow each other, and their bytes. Around the end of the ring, but at most once.
fn sequence_from(
    ring: Ring<'_>,
    start: u64,
    log_guid: Uuid,
    budget: &mut u64,
) -> io::Result<(Vec<EntryInfo>, u64)> {
    let mut sequence: Vec<EntryInfo> = Vec::new();
    let mut bytes = 0;
    while bytes < ring.len {
        let Some(next) = entry::read(ring, ring.wrap(start + bytes), log_guid, budget)? else { break };
        let follows = sequence.last().is_none_or(|last| last.sequence.checked_add(1) == Some(next.sequence));
        if !follows || bytes + next.len > ring.len {
            break;
        }
        bytes += next.len;
        sequence.push(next);
    }
    Ok((sequence, bytes))
}

//! Plans for turning a disk into a new VHDX: where each byte of it goes.

use std::{collections::BTreeMap, ops::Range};

use super::{
    bat::{Entry, Geometry, State},
    create::{self, CreateError, CreateKind, CreateOptions},
    layout::HEADERS_AT,
};
use crate::{
    convert::{ConvertPlan, CopyRange},
    plan::{Content, Step},
};

/// Offset of the table in files that this crate makes.
const BAT_AT: u64 = create::BAT_AT;

/// Plans a conversion. `data` are the ranges of the old disk that may hold something else than zeros: ascending, not
/// overlapping, of any alignment; what lies behind the size of the target is left out. The headers come last, so an
/// interrupted conversion is no VHDX.
///
/// # Errors
/// If the target cannot be made, or is a differencing disk.
pub fn plan(options: &CreateOptions, data: &[Range<u64>]) -> Result<ConvertPlan, CreateError> {
    if matches!(options.kind, CreateKind::Differencing(_)) {
        return Err(CreateError::DifferencingTarget);
    }
    let created = create::plan(options)?;
    let block_size =
        options.block_size.unwrap_or_else(|| create::default_block_size(&options.kind, options.size));
    let geometry = Geometry::new(options.size, block_size, options.logical_sector, false);
    let fixed = options.kind == CreateKind::Fixed;
    let first = match fixed {
        true => created.file_len - u64::from(geometry.blocks) * geometry.block_size,
        false => created.file_len,
    };
    let mut places: BTreeMap<u32, u64> = BTreeMap::new();
    let mut copies = Vec::new();
    for range in data {
        let (start, end) = (range.start.min(options.size), range.end.min(options.size));
        let mut disk_offset = start;
        for part in geometry.parts(start, end.saturating_sub(start)) {
            let next = places.len() as u64;
            let number = if fixed { u64::from(part.block) } else { next };
            let place = *places.entry(part.block).or_insert(first + number * geometry.block_size);
            copies.push(CopyRange { disk_offset, file_offset: place + part.within, len: part.len });
            disk_offset += part.len;
        }
    }
    let file_len = if fixed { created.file_len } else { first + places.len() as u64 * geometry.block_size };
    let is_header = |step: &Step| matches!(step, Step::Write { offset, .. } if HEADERS_AT.contains(offset));
    let (headers, mut before): (Vec<Step>, Vec<Step>) =
        created.steps.into_iter().filter(|step| *step != Step::Flush).partition(is_header);
    if let Some(Step::SetLen(len)) = before.first_mut() {
        *len = file_len;
    }
    if !fixed {
        before.extend(table(&geometry, &places));
    }
    let mut after = vec![Step::Flush];
    after.extend(headers);
    after.push(Step::Flush);
    Ok(ConvertPlan { file_len, before, copies, after })
}

/// The entries of the blocks that have a place, neighbours in one step.
fn table(geometry: &Geometry, places: &BTreeMap<u32, u64>) -> Vec<Step> {
    let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
    for (block, place) in places {
        let at = BAT_AT + geometry.entry_at(*block);
        let bytes = Entry::at(State::Full, *place).to_bytes();
        match runs.last_mut() {
            Some((start, run)) if *start + run.len() as u64 == at => run.extend(bytes),
            _ => runs.push((at, bytes.to_vec())),
        }
    }
    let step = |(offset, bytes): (u64, Vec<u8>)| Step::Write {
        what: format!("{} entries of the block allocation table", bytes.len() / 8),
        offset,
        content: Content::Bytes(bytes),
    };
    runs.into_iter().map(step).collect()
}

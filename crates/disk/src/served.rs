//! Looking at a disk that is being served: where its bytes are, whether its top file is sound.

use crate::{
    backend::Backend,
    chain::{Chain, ChainWarning},
    disk::{DRAIN, Disk},
    inspect::{Report, check_image},
    layer::Layer,
    status::data_runs,
    walk::{Place, walk},
};
use backstay_vhd::check::Severity;
use std::{io, sync::Arc, time::Instant};

/// One range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRange {
    /// Offset in the disk, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Where it is; `None`: in no file, it reads as zeros.
    pub place: Option<FileRange>,
}

/// Where a range of a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRange {
    /// Which file of the chain; 0 is the top.
    pub layer: usize,
    /// Offset in that file, in bytes.
    pub offset: u64,
    /// A hole of the file: the disk keeps a place for it, but it takes no space and reads as zeros.
    pub hole: bool,
}

impl Disk {
    /// Tells which file holds what, in order and without gaps: at most `limit` ranges from `offset` on. With `top_only` as
    /// if there were no parents: what they hold is in no file then. Requests go on meanwhile, so ranges that are being
    /// written to are as before or as after.
    ///
    /// # Errors
    /// If a bitmap or the holes of a file cannot be read, or the disk is closed.
    pub fn map(&self, offset: u64, limit: usize, top_only: bool) -> io::Result<Vec<DiskRange>> {
        let chain = self.enter()?;
        let layers = if top_only { chain.layers.get(..1).unwrap_or_default() } else { &chain.layers };
        map_layers(layers, offset, limit)
    }

    /// What was strange about the files when they were opened and still is: writes of a dead process that the top file took
    /// over are flushed with all others.
    #[must_use]
    pub fn lasting_warnings(&self) -> Vec<ChainWarning> {
        let top = self.top_path();
        let passing = |warning: &ChainWarning| warning.is_adoption() && warning.path() == top;
        self.warnings().into_iter().filter(|warning| !passing(warning)).collect()
    }

    /// Checks the structures of the top file; `None` for a raw file, which has none. Only if something looks wrong are
    /// requests held back for a second, sure look.
    ///
    /// # Errors
    /// If the last changes cannot be flushed, requests hang, or the disk is closed.
    pub fn check(&self) -> io::Result<Option<Report>> {
        let look = |chain: &Chain| {
            let top = chain.top()?;
            let format = top.info()?.format();
            Some(check_image(&top.file, format, &top.path, &self.options))
        };
        self.flush()?;
        let report = look(&*self.enter()?);
        if report.as_ref().is_none_or(|report| report.worst().is_none_or(|worst| worst == Severity::Note)) {
            return Ok(report);
        }
        let busy = |_| io::Error::new(io::ErrorKind::TimedOut, "requests have been in flight for 10 seconds");
        let quiet = self.chain.quiesce(Instant::now() + DRAIN).map_err(busy)?;
        match quiet.top() {
            Some(top) if !self.options.read_only => top.flush()?,
            _ => {}
        }
        Ok(look(&quiet))
    }
}

/// At most `limit` ranges from `offset` on.
fn map_layers(layers: &[Arc<Layer>], offset: u64, limit: usize) -> io::Result<Vec<DiskRange>> {
    let size = layers.first().map_or(0, |top| top.size);
    let mut ranges = Vec::new();
    let mut add = |range| {
        add_range(&mut ranges, range);
        // One more than wanted: only then the last wanted one is known to have ended.
        if ranges.len() > limit { Err(io::Error::from(io::ErrorKind::Interrupted)) } else { Ok(()) }
    };
    let walked = walk(layers, offset.min(size), size - offset.min(size), &mut |offset, len, place| {
        let Place::Data { layer, file_offset } = place else {
            return add(DiskRange { offset, len, place: None });
        };
        let index = layers.iter().position(|other| std::ptr::eq(other.as_ref(), layer)).unwrap_or(0);
        let mut done = 0;
        data_runs(layer, file_offset, len, &mut |len, data| {
            let place = FileRange { layer: index, offset: file_offset + done, hole: !data };
            let range = DiskRange { offset: offset + done, len, place: Some(place) };
            done += len;
            add(range)
        })
    });
    match walked {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
        _ => ranges.truncate(limit),
    }
    Ok(ranges)
}

/// Appends a range, merged with the last one if it goes on in disk and file.
fn add_range(ranges: &mut Vec<DiskRange>, range: DiskRange) {
    if let Some(last) = ranges.last_mut() {
        let goes_on = match (last.place, range.place) {
            (None, None) => true,
            (Some(a), Some(b)) => a.layer == b.layer && a.hole == b.hole && a.offset + last.len == b.offset,
            _ => false,
        };
        if goes_on {
            last.len += range.len;
            return;
        }
    }
    ranges.push(range);
}

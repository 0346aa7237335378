//! Data of the source that the new file shares with it instead of a copy.

use super::{ConvertError, ConvertRequest, ConvertTo};
use crate::{
    chain::Chain,
    fs::{DiskFile, FileId},
    layer::Layer,
    share::{Possible, WORTH_SHARING, try_sharing},
    status::data_runs,
    walk::{Place, walk},
};
use std::{io, sync::Arc};

/// Whether data is shared with the source (reflink) instead of copied. What is shared takes no space of its own until either
/// file is written to; file systems that can are XFS, Btrfs and others that copy on write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reflink {
    /// Where it is possible; not for a fixed disk, whose space is to be its own, and not with
    /// [`ConvertRequest::skip_bad`], which has to read everything.
    #[default]
    Auto,
    /// Or the conversion fails. What does not lie in whole blocks of the file system is copied all the same.
    Always,
    /// Everything is copied.
    Never,
}

/// What new and old disks have alike: blocks of both begin at multiples of it in their files, in bytes.
const ALIGN: u64 = 4096;

/// A part of a range that is in a file and not in a hole of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a> {
    /// Offset in the disk.
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) layer: &'a Layer,
    pub(super) file_offset: u64,
}

impl Run<'_> {
    fn goes_on_with(&self, next: &Self) -> bool {
        std::ptr::eq(self.layer, next.layer)
            && self.at + self.len == next.at
            && self.file_offset + self.len == next.file_offset
    }
}

/// Which files data can be shared with.
#[derive(Debug)]
pub(super) struct Sharing {
    files: Vec<FileId>,
    least: u64,
}

impl Sharing {
    /// `new` is the new file, still empty.
    pub(super) fn find(
        request: &ConvertRequest,
        chain: &Chain,
        new: &dyn DiskFile,
    ) -> Result<Self, ConvertError> {
        let mut found = Self { files: Vec::new(), least: WORTH_SHARING };
        let fixed = request.to == ConvertTo::Fixed;
        match request.reflink {
            Reflink::Auto if fixed || request.skip_bad => return Ok(found),
            Reflink::Never => return Ok(found),
            Reflink::Auto => {}
            Reflink::Always => found.least = ALIGN,
        }
        for layer in chain.layers.iter() {
            let possible = try_sharing(new, layer.file.as_ref());
            match possible.map_err(|source| super::write_error(request, source))? {
                Possible::Sharing => found.files.push(layer.id()),
                Possible::CopyByServer if request.reflink == Reflink::Auto => found.files.push(layer.id()),
                _ if request.reflink == Reflink::Always => return Err(not_shared(request, layer, new)),
                _ => {}
            }
        }
        Ok(found)
    }

    pub(super) fn is_possible(&self) -> bool {
        !self.files.is_empty()
    }

    /// Whether a run is shared.
    pub(super) fn takes(&self, run: &Run<'_>) -> bool {
        run.len >= self.least && self.fits(run)
    }

    /// Whether a run can be shared: it lies in whole blocks as it will in the new file, where every byte of a disk has the
    /// place in its block that it has on the disk.
    pub(super) fn fits(&self, run: &Run<'_>) -> bool {
        run.at % ALIGN == run.file_offset % ALIGN && self.files.contains(&run.layer.id())
    }
}

fn not_shared(request: &ConvertRequest, layer: &Layer, new: &dyn DiskFile) -> ConvertError {
    let why = match layer.file.descriptor() {
        None => "it is no ordinary file of this host",
        Some(_) if layer.id().dev != new.id().dev => "they are on different file systems",
        Some(_) => "their file system cannot do that, or an attribute of the file excludes it",
    };
    let (path, source_file) = (request.target.clone(), layer.path.clone());
    ConvertError::NotShared { path, source_file, why }
}

/// Calls `visit` for each part of a range that is in a file and not in a hole of it, in order.
pub(super) fn visit_runs<'a>(
    layers: &'a [Arc<Layer>],
    start: u64,
    len: u64,
    visit: &mut dyn FnMut(Run<'a>),
) -> io::Result<()> {
    walk(layers, start, len, &mut |at, len, place| {
        let Place::Data { layer, file_offset } = place else { return Ok(()) };
        let (mut at, mut file_offset) = (at, file_offset);
        data_runs(layer, file_offset, len, &mut |len, data| {
            if data {
                visit(Run { at, len, layer, file_offset });
            }
            at += len;
            file_offset += len;
            Ok(())
        })
    })
}

/// The same, neighbours together.
pub(super) fn runs_in(layers: &[Arc<Layer>], start: u64, len: u64) -> io::Result<Vec<Run<'_>>> {
    let mut found: Vec<Run<'_>> = Vec::new();
    visit_runs(layers, start, len, &mut |run| match found.last_mut() {
        Some(last) if last.goes_on_with(&run) => last.len += run.len,
        _ => found.push(run),
    })?;
    Ok(found)
}

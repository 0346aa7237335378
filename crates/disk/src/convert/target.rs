//! The new file of a conversion.

use super::{ConvertError, ConvertRequest, ConvertTo, unsynced::Unsynced};
use crate::{
    create::{Like, NewDiskPlan},
    fs::{DiskFile, FileSystem},
    image::{AnyImage, ImageMode},
    layer::Layer,
    share::{CopyError, Filled, fill, fill_image},
    temp::TempFile,
    write::write_run,
};
use backstay_vhd::{Format, SizeRule, Storage};
use std::{io, sync::Arc};

/// Where the bytes go.
pub(super) enum Target {
    /// Disk offset = file offset.
    Flat(Arc<dyn DiskFile>),
    /// Blocks are added.
    Growing(Box<Layer>),
}

impl Target {
    pub(super) fn new(
        fs: &Arc<dyn FileSystem>,
        request: &ConvertRequest,
        temp: &TempFile,
        size: u64,
    ) -> Result<Self, ConvertError> {
        let what = request.what(size);
        let file: Arc<dyn DiskFile> = Arc::new(Unsynced(Arc::clone(temp.file())));
        let plan = NewDiskPlan::new(fs, &request.target, &what, request.identity, &request.target_options())?;
        plan.write_to(file.as_ref())?;
        let format = match (plan.like(), request.to) {
            (Like::Raw, _) | (Like::Vhd(_), ConvertTo::Fixed | ConvertTo::Raw) => {
                return Ok(Self::Flat(file));
            }
            (Like::Vhd(_), ConvertTo::Dynamic { .. }) => Format::Vhd,
            (Like::Vhdx(_), _) => Format::Vhdx,
        };
        let mode = ImageMode {
            format,
            size_rule: SizeRule::default(),
            writable: true,
            // As planned: it is filled, not changed.
            data_write: Some(request.identity.unique_id),
        };
        let storage = Arc::clone(&file) as Arc<dyn Storage>;
        let image = AnyImage::open(storage, &request.target, mode, None)?;
        Ok(Self::Growing(Box::new(Layer::of_image(request.target.clone(), file, image, true, None))))
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Flat(file) => file.write_at(data, offset),
            Self::Growing(layer) => match layer.image() {
                Some(image) => write_run(layer, image, offset, data),
                None => layer.file.write_at(data, offset),
            },
        }
    }

    /// Fills a range from a layer, whatever is in it: shared as far as that is possible.
    pub(super) fn fill(
        &self,
        offset: u64,
        from: (&Layer, u64),
        len: u64,
        buf: &mut Vec<u8>,
    ) -> Result<Filled, CopyError> {
        match self {
            Self::Flat(file) => fill((file.as_ref(), offset), from, len, buf),
            Self::Growing(layer) => match layer.image() {
                Some(image) => fill_image((layer, image), offset, from, len, buf),
                None => fill((layer.file.as_ref(), offset), from, len, buf),
            },
        }
    }

    pub(super) fn start_writeback(&self) {
        match self {
            Self::Flat(file) => file.start_writeback(0, 0),
            Self::Growing(layer) => layer.file.start_writeback(0, 0),
        }
    }

    pub(super) fn finish(&self) -> io::Result<()> {
        match self {
            Self::Flat(_) => Ok(()),
            Self::Growing(layer) => layer.close(),
        }
    }
}

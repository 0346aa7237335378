//! An open disk file with metadata, of either format.

use crate::{
    error::OpenError,
    fs::FileId,
    shadow::{ShadowFile, ShadowKey},
};
use backstay_vhd::{
    DiskType, Format, Image, LayerFormat, ParentLink, Shadow, SizeRule, Storage, Warning, vhdx,
};
use std::{ops::Deref, path::Path, sync::Arc};
use uuid::Uuid;

/// What a file with metadata says about itself, as of its opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageInfo {
    /// A VHD.
    Vhd(Box<backstay_vhd::ImageInfo>),
    /// A VHDX.
    Vhdx(Box<vhdx::ImageInfo>),
}

impl ImageInfo {
    /// Which format it is.
    #[must_use]
    pub fn format(&self) -> Format {
        match self {
            Self::Vhd(_) => Format::Vhd,
            Self::Vhdx(_) => Format::Vhdx,
        }
    }

    /// Kind of disk.
    #[must_use]
    pub fn disk_type(&self) -> DiskType {
        match self {
            Self::Vhd(info) => info.disk_type,
            Self::Vhdx(info) => info.disk_type,
        }
    }

    /// Virtual size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Vhd(info) => info.size,
            Self::Vhdx(info) => info.size,
        }
    }

    /// Bytes in a block; 0 for a fixed VHD, which has none.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        match self {
            Self::Vhd(info) => info.block_size,
            Self::Vhdx(info) => info.block_size,
        }
    }

    /// Number of blocks; 0 for a fixed VHD.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        match self {
            Self::Vhd(info) => info.blocks,
            Self::Vhdx(info) => info.blocks,
        }
    }

    /// Unit of requests in bytes: 512 or 4096.
    #[must_use]
    pub fn sector_size(&self) -> u32 {
        match self {
            Self::Vhd(_) => 512,
            Self::Vhdx(info) => info.logical_sector,
        }
    }

    /// What children name this disk by: the unique id of a VHD, the DataWriteGuid of a VHDX.
    #[must_use]
    pub fn identity(&self) -> Uuid {
        match self {
            Self::Vhd(info) => info.unique_id,
            Self::Vhdx(info) => info.data_write_guid,
        }
    }

    /// Where the parent is; only in a differencing disk.
    #[must_use]
    pub fn parent(&self) -> Option<ParentLink> {
        match self {
            Self::Vhd(info) => info.parent.clone(),
            Self::Vhdx(info) => info.parent.as_ref().map(vhdx::Locator::link),
        }
    }

    /// Whether it is a differencing disk.
    #[must_use]
    pub fn has_parent(&self) -> bool {
        self.disk_type() == DiskType::Differencing
    }

    /// The program that made the file.
    #[must_use]
    pub fn creator(&self) -> String {
        match self {
            Self::Vhd(info) => info.creator_text(),
            Self::Vhdx(info) => info.creator.clone(),
        }
    }

    /// A virtual machine was saved while it used the disk. VHDX has no such mark.
    #[must_use]
    pub fn saved_state(&self) -> bool {
        matches!(self, Self::Vhd(info) if info.saved_state)
    }

    /// What is not as it should be, in words.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        match self {
            Self::Vhd(info) => info.warnings.iter().map(ToString::to_string).collect(),
            Self::Vhdx(info) => info.warnings.iter().map(ToString::to_string).collect(),
        }
    }

    /// Whether writes of a process that died were found beside the file.
    pub(crate) fn adopted(&self) -> bool {
        match self {
            Self::Vhd(info) => info.warnings.iter().any(|w| matches!(w, Warning::WritesAdopted { .. })),
            Self::Vhdx(info) => {
                info.warnings.iter().any(|w| matches!(w, vhdx::Warning::WritesAdopted { .. }))
            }
        }
    }

    /// The shadow the file has; only differencing disks have one.
    ///
    /// The key of a VHDX is the identity towards the guest: its other ids change with its writes. Checkpoints share it,
    /// but not the file.
    pub(crate) fn shadow_key(&self, file: FileId) -> Option<ShadowKey> {
        if !self.has_parent() {
            return None;
        }
        let bits = (self.block_size() / self.sector_size()).div_ceil(8);
        let (id, bitmap_bytes) = match self {
            Self::Vhd(info) => (info.unique_id, bits.next_multiple_of(512)),
            Self::Vhdx(info) => (info.disk_id, bits),
        };
        Some(ShadowKey { file, unique_id: id.into_bytes(), blocks: self.blocks(), bitmap_bytes })
    }
}

/// An open file of either format. What both can do is [`LayerFormat`].
#[derive(Debug)]
pub(crate) enum AnyImage {
    Vhd(Box<Image>),
    Vhdx(Box<vhdx::Image>),
}

impl Deref for AnyImage {
    type Target = dyn LayerFormat;
    fn deref(&self) -> &Self::Target {
        match self {
            Self::Vhd(image) => image.as_ref(),
            Self::Vhdx(image) => image.as_ref(),
        }
    }
}

/// How an image is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ImageMode {
    pub(crate) format: Format,
    pub(crate) size_rule: SizeRule,
    /// Whether it can be written to.
    pub(crate) writable: bool,
    /// The identity of a VHDX from the first write on; a new one if none is given.
    pub(crate) data_write: Option<Uuid>,
}

impl AnyImage {
    pub(crate) fn open(
        storage: Arc<dyn Storage>,
        path: &Path,
        mode: ImageMode,
        shadow: Option<ShadowFile>,
    ) -> Result<Self, OpenError> {
        let shadow = shadow.map(|shadow| Arc::new(shadow) as Arc<dyn Shadow>);
        match mode.format {
            Format::Vhd => {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
                let (writable, size_rule) = (mode.writable, mode.size_rule);
                let how = backstay_vhd::OpenOptions { writable, size_rule, name, shadow };
                let image = Image::open(storage, &how);
                image
                    .map(|image| Self::Vhd(Box::new(image)))
                    .map_err(|source| OpenError::Format { path: path.to_owned(), source })
            }
            Format::Vhdx => {
                let write = mode.writable.then(|| vhdx::WriteIds {
                    file_write: Uuid::new_v4(),
                    data_write: mode.data_write.unwrap_or_else(Uuid::new_v4),
                    log: Uuid::new_v4(),
                });
                let image = vhdx::Image::open(&storage, &vhdx::OpenOptions { write, shadow });
                image.map(|image| Self::Vhdx(Box::new(image))).map_err(|source| {
                    let source = Box::new(source);
                    OpenError::FormatVhdx { path: path.to_owned(), source }
                })
            }
        }
    }

    /// What the file says about itself, as of its opening.
    pub(crate) fn info(&self) -> ImageInfo {
        match self {
            Self::Vhd(image) => ImageInfo::Vhd(Box::new(image.info().clone())),
            Self::Vhdx(image) => ImageInfo::Vhdx(Box::new(image.info().clone())),
        }
    }

    /// Only a VHDX.
    pub(crate) fn vhdx(&self) -> Option<&vhdx::Image> {
        match self {
            Self::Vhdx(image) => Some(image),
            Self::Vhd(_) => None,
        }
    }
}

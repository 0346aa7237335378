//! What a chain needs of one of its files, whatever the format.

use std::{fmt::Debug, sync::Arc};

use uuid::Uuid;

use crate::{
    DiskType, FileSpan, Image, MetaError, ParentLink, ReadExtent, Storage, WriteExtent, WriteTicket,
    compact::{Empty, Layout, Move},
    vhdx,
};

/// A disk format with metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `.vhd`, `.avhd`
    Vhd,
    /// `.vhdx`, `.avhdx`
    Vhdx,
}

impl Format {
    /// The format of a file by its first bytes, of which 8 are enough: only a VHDX begins with its signature. A VHD is known
    /// by its end.
    #[must_use]
    pub fn of_start(bytes: &[u8]) -> Option<Self> {
        bytes.starts_with(b"vhdxfile").then_some(Self::Vhdx)
    }
}

/// An open file of a chain. Requests are as in [`Image`] and [`vhdx::Image`].
pub trait LayerFormat: Send + Sync + Debug {
    /// Which format it is.
    fn format(&self) -> Format;
    /// Kind of disk.
    fn disk_type(&self) -> DiskType;
    /// Virtual size in bytes.
    fn size(&self) -> u64;
    /// Unit of requests in bytes: 512 or 4096.
    fn sector_size(&self) -> u32;
    /// What children name this disk by, as of now: the unique id of a VHD, the DataWriteGuid of a VHDX.
    fn identity(&self) -> Uuid;
    /// As [`LayerFormat::identity`], and it stays so until the disk is closed. Comes before a child is made.
    ///
    /// # Errors
    /// If that has to be written and cannot be.
    fn settle_identity(&self) -> Result<Uuid, MetaError>;
    /// Where the parent is; only in a differencing disk.
    fn parent(&self) -> Option<ParentLink>;
    /// Whether a file of that identity is the parent.
    fn accepts_parent(&self, identity: Uuid) -> bool;
    /// The file.
    fn storage(&self) -> &Arc<dyn Storage>;
    /// Appends where each part of a range is read from.
    ///
    /// # Errors
    /// If the range is not whole sectors inside the disk, or metadata cannot be read.
    fn resolve_read(&self, offset: u64, len: u64, out: &mut Vec<ReadExtent>) -> Result<(), MetaError>;
    /// Finds where a write goes.
    ///
    /// # Errors
    /// As [`Image::begin_write`].
    fn begin_write(&self, offset: u64, len: u64, ticket: &mut WriteTicket) -> Result<(), MetaError>;
    /// Finds what has to be zeroed.
    ///
    /// # Errors
    /// As [`Image::begin_zero`].
    fn begin_zero(&self, offset: u64, len: u64, ticket: &mut WriteTicket) -> Result<(), MetaError>;
    /// Makes a finished write visible.
    ///
    /// # Errors
    /// As [`Image::complete_write`].
    fn complete_write(&self, ticket: &WriteTicket) -> Result<(), MetaError>;
    /// Appends what may be punched out to trim a range.
    ///
    /// # Errors
    /// As [`Image::trim_extents`].
    fn trim_extents(&self, offset: u64, len: u64, out: &mut Vec<WriteExtent>) -> Result<(), MetaError>;
    /// Makes everything that was completed durable.
    ///
    /// # Errors
    /// As [`Image::flush`].
    fn flush(&self) -> Result<(), MetaError>;
    /// Flushes and leaves a file that needs no recovery.
    ///
    /// # Errors
    /// As [`Image::close`].
    fn close(&self) -> Result<(), MetaError>;
    /// Blocks that are in the file now.
    fn allocated_blocks(&self) -> u32;
    /// Whether the disk holds nothing of its own.
    ///
    /// # Errors
    /// If metadata cannot be read.
    fn is_blank(&self) -> Result<bool, MetaError>;
    /// Blocks that a differencing disk can give away to its parent.
    fn held_blocks(&self) -> Vec<u32>;
    /// Bytes of a block that do not come from the parent.
    ///
    /// # Errors
    /// If metadata cannot be read.
    fn held_bytes(&self, block: u32) -> Result<u64, MetaError>;
    /// Gives blocks away, after a crash; a flush makes it so for good.
    ///
    /// # Errors
    /// As [`Image::clear_entries`].
    fn clear_entries(&self, blocks: &[u32]) -> Result<(), MetaError>;
    /// Gives blocks away for readers; the places they had.
    fn drop_blocks(&self, blocks: &[u32]) -> Vec<FileSpan>;
    /// Refuses writes and flushes from now on.
    fn fail(&self);
    /// What lies where in the file, for a compaction; empty for a fixed disk.
    fn layout(&self) -> Layout;
    /// Takes a hole that [`LayerFormat::layout`] told of; false if it is in use by now.
    fn take_place(&self, place: FileSpan) -> bool;
    /// Places that nothing needs any more, durably, and where nobody reads.
    fn free_places(&self, places: &[FileSpan]);
    /// Blocks lose their places; how they are stored instead. The places they had, which are free after a flush and when
    /// nobody reads there. Nobody writes to the blocks meanwhile.
    ///
    /// # Errors
    /// If the table cannot be written. The blocks are as before then, or if even that fails the disk takes no more writes.
    fn forget_blocks(&self, blocks: &[(u32, Empty)]) -> Result<Vec<FileSpan>, MetaError>;
    /// Items are somewhere else: their bytes are there, durably. A flush makes it so for good. Nobody writes to the blocks
    /// meanwhile.
    ///
    /// # Errors
    /// As [`LayerFormat::forget_blocks`].
    fn set_places(&self, moves: &[Move]) -> Result<(), MetaError>;
    /// Moves a sector bitmap block, durably; only a VHDX has those.
    ///
    /// # Errors
    /// As [`LayerFormat::forget_blocks`].
    fn move_bitmap(&self, chunk: u32, to: FileSpan) -> Result<(), MetaError>;
}

/// The requests that both formats have under the same name.
macro_rules! requests {
    () => {
        fn storage(&self) -> &Arc<dyn Storage> {
            self.storage()
        }
        fn resolve_read(&self, offset: u64, len: u64, out: &mut Vec<ReadExtent>) -> Result<(), MetaError> {
            self.resolve_read(offset, len, out)
        }
        fn begin_write(&self, offset: u64, len: u64, ticket: &mut WriteTicket) -> Result<(), MetaError> {
            self.begin_write(offset, len, ticket)
        }
        fn begin_zero(&self, offset: u64, len: u64, ticket: &mut WriteTicket) -> Result<(), MetaError> {
            self.begin_zero(offset, len, ticket)
        }
        fn complete_write(&self, ticket: &WriteTicket) -> Result<(), MetaError> {
            self.complete_write(ticket)
        }
        fn trim_extents(&self, offset: u64, len: u64, out: &mut Vec<WriteExtent>) -> Result<(), MetaError> {
            self.trim_extents(offset, len, out)
        }
        fn flush(&self) -> Result<(), MetaError> {
            self.flush()
        }
        fn close(&self) -> Result<(), MetaError> {
            self.close()
        }
        fn allocated_blocks(&self) -> u32 {
            self.allocated_blocks()
        }
        fn is_blank(&self) -> Result<bool, MetaError> {
            self.is_blank()
        }
        fn held_blocks(&self) -> Vec<u32> {
            self.held_blocks()
        }
        fn held_bytes(&self, block: u32) -> Result<u64, MetaError> {
            self.held_bytes(block)
        }
        fn clear_entries(&self, blocks: &[u32]) -> Result<(), MetaError> {
            self.clear_entries(blocks)
        }
        fn drop_blocks(&self, blocks: &[u32]) -> Vec<FileSpan> {
            self.drop_blocks(blocks)
        }
        fn fail(&self) {
            self.fail();
        }
        fn layout(&self) -> Layout {
            self.layout()
        }
        fn take_place(&self, place: FileSpan) -> bool {
            self.take_place(place)
        }
        fn free_places(&self, places: &[FileSpan]) {
            self.free_places(places);
        }
        fn forget_blocks(&self, blocks: &[(u32, Empty)]) -> Result<Vec<FileSpan>, MetaError> {
            self.forget_blocks(blocks)
        }
        fn set_places(&self, moves: &[Move]) -> Result<(), MetaError> {
            self.set_places(moves)
        }
        fn move_bitmap(&self, chunk: u32, to: FileSpan) -> Result<(), MetaError> {
            self.move_bitmap(chunk, to)
        }
        fn disk_type(&self) -> DiskType {
            self.info().disk_type
        }
        fn size(&self) -> u64 {
            self.info().size
        }
    };
}

impl LayerFormat for Image {
    requests!();

    fn format(&self) -> Format {
        Format::Vhd
    }
    fn sector_size(&self) -> u32 {
        512
    }
    fn identity(&self) -> Uuid {
        self.info().unique_id
    }
    fn settle_identity(&self) -> Result<Uuid, MetaError> {
        Ok(self.info().unique_id)
    }
    fn parent(&self) -> Option<ParentLink> {
        self.info().parent.clone()
    }
    fn accepts_parent(&self, identity: Uuid) -> bool {
        self.info().parent.as_ref().is_some_and(|parent| parent.unique_id == identity)
    }
}

impl LayerFormat for vhdx::Image {
    requests!();

    fn format(&self) -> Format {
        Format::Vhdx
    }
    fn sector_size(&self) -> u32 {
        self.info().logical_sector
    }
    fn identity(&self) -> Uuid {
        self.data_write_guid()
    }
    fn settle_identity(&self) -> Result<Uuid, MetaError> {
        self.settle_identity()
    }
    fn parent(&self) -> Option<ParentLink> {
        self.parent().map(|locator| locator.link())
    }
    fn accepts_parent(&self, identity: Uuid) -> bool {
        self.parent().is_some_and(|locator| locator.accepts(identity))
    }
}

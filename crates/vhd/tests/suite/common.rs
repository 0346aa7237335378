//! Helpers of the tests: disks over simulated files, read and written as a user of the engine would.

use std::sync::Arc;

use backstay_vhd::{
    Image, MetaError, OpenOptions, Shadow, Source, Storage, VhdTime, WriteTicket,
    create::{self, CreateKind, CreateOptions, ParentSpec},
    format::header::Header,
    testing::SimStorage,
};
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes, big_endian::U32};

pub const SMALL_BLOCK: u32 = 512 << 10;

pub fn options(size: u64, kind: CreateKind) -> CreateOptions {
    CreateOptions { size, kind, unique_id: Uuid::from_u128(0x1234), time_stamp: VhdTime(42) }
}

pub fn differencing(block_size: u32) -> CreateKind {
    let parent = ParentSpec {
        unique_id: Uuid::from_u128(0x99),
        time_stamp: VhdTime(0),
        name: "/disks/base.vhd".into(),
        absolute: Some("/disks/base.vhd".into()),
        relative: Some("base.vhd".into()),
    };
    CreateKind::Differencing { block_size, parent }
}

/// A new disk in a simulated file, durable.
pub fn create(options: &CreateOptions) -> Arc<SimStorage> {
    let storage = SimStorage::new();
    create::plan(options).expect("the options are valid").execute(storage.as_ref()).expect("the plan runs");
    storage
}

/// A new disk with blocks that are smaller than those we make, and larger than a word of the bitmap, so that whole disks
/// are small and there are still many blocks.
pub fn create_tiny(size: u64, kind: CreateKind, block_size: u32) -> Arc<SimStorage> {
    let mut bytes = create(&options(size, kind)).to_bytes();
    let mut header = Header::read_from_bytes(&bytes[512..1536]).unwrap();
    header.block_size = U32::new(block_size);
    let blocks = u32::try_from(size.div_ceil(u64::from(block_size))).unwrap();
    assert!(blocks <= 128, "the table has one sector");
    header.max_table_entries = U32::new(blocks);
    bytes[512..1536].copy_from_slice(header.sealed().as_bytes());
    SimStorage::from_bytes(&bytes)
}

pub fn open(storage: &Arc<SimStorage>, shadow: Option<Arc<dyn Shadow>>) -> Image {
    let options = OpenOptions { writable: true, shadow, ..OpenOptions::default() };
    Image::open(Arc::clone(storage) as Arc<dyn Storage>, &options).expect("the disk opens")
}

pub fn open_read_only(storage: &Arc<SimStorage>) -> Image {
    Image::open(Arc::clone(storage) as Arc<dyn Storage>, &OpenOptions::default()).expect("the disk opens")
}

/// Writes as an engine does. `Err` if any step fails: then it is not acknowledged.
pub fn write(image: &Image, offset: u64, data: &[u8]) -> Result<(), MetaError> {
    let mut ticket = WriteTicket::new();
    image.begin_write(offset, data.len() as u64, &mut ticket)?;
    put(image, offset, data, &ticket)?;
    image.complete_write(&ticket)
}

/// Writes the payload of a ticket.
pub fn put(image: &Image, offset: u64, data: &[u8], ticket: &WriteTicket) -> Result<(), MetaError> {
    for extent in ticket.extents() {
        let from = usize::try_from(extent.disk_offset - offset).unwrap();
        let part = &data[from..from + usize::try_from(extent.len).unwrap()];
        image.storage().write_at(part, extent.file_offset).map_err(MetaError::NoSpace)?;
    }
    Ok(())
}

pub fn zero(image: &Image, offset: u64, len: u64) -> Result<(), MetaError> {
    let mut ticket = WriteTicket::new();
    image.begin_zero(offset, len, &mut ticket)?;
    for extent in ticket.extents() {
        image.storage().zero_range(extent.file_offset, extent.len).map_err(MetaError::NoSpace)?;
    }
    image.complete_write(&ticket)
}

pub fn trim(image: &Image, offset: u64, len: u64) -> Result<(), MetaError> {
    let mut extents = Vec::new();
    image.trim_extents(offset, len, &mut extents)?;
    for extent in extents {
        image.storage().zero_range(extent.file_offset, extent.len).map_err(MetaError::NoSpace)?;
    }
    Ok(())
}

/// Reads a range; sectors of the parent come from `parent` (zeros behind its end).
pub fn read(image: &Image, offset: u64, len: usize, parent: &[u8]) -> Vec<u8> {
    let mut extents = Vec::new();
    image.resolve_read(offset, len as u64, &mut extents).expect("the range resolves");
    let mut out = Vec::with_capacity(len);
    for extent in extents {
        let at = out.len();
        out.resize(at + usize::try_from(extent.len).unwrap(), 0);
        match extent.source {
            Source::Data { file_offset } => {
                image.storage().read_at(&mut out[at..], file_offset).expect("data is in the file");
            }
            Source::Zero => {}
            Source::Parent => {
                let from = usize::try_from(offset).unwrap() + at;
                let there = parent.get(from..).unwrap_or_default();
                let part = there.len().min(out.len() - at);
                out[at..at + part].copy_from_slice(&there[..part]);
            }
        }
    }
    assert_eq!(out.len(), len, "the parts cover the range");
    out
}

pub fn read_all(image: &Image, parent: &[u8]) -> Vec<u8> {
    read(image, 0, usize::try_from(image.info().size).unwrap(), parent)
}

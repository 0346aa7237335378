//! Disks over simulated files, read and written as a user of the engine would.

use std::sync::Arc;

use backstay_vhd::{
    MetaError, Shadow, Source, Storage, WriteTicket,
    testing::SimStorage,
    vhdx::{
        Image, Locator, OpenOptions, WriteIds,
        create::{self, CreateKind, CreateOptions},
    },
};
use uuid::Uuid;

pub const MIB: u64 = 1 << 20;
/// DataWriteGuid of the parent that children of these tests name.
pub const PARENT: Uuid = Uuid::from_u128(0x99);

pub fn options(size: u64, kind: CreateKind) -> CreateOptions {
    CreateOptions {
        size,
        kind,
        block_size: Some(1 << 20),
        logical_sector: 512,
        physical_sector: 4096,
        disk_id: Uuid::from_u128(0xd15c),
        file_write_guid: Uuid::from_u128(0xf11e),
        data_write_guid: Uuid::from_u128(0xda7a),
    }
}

pub fn locator() -> Locator {
    Locator {
        linkage: PARENT,
        linkage2: None,
        relative: Some(".\\base.vhdx".into()),
        volume: Some("\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\disks\\base.vhdx".into()),
        absolute: Some("C:\\disks\\base.vhdx".into()),
        other: Vec::new(),
    }
}

pub fn child() -> CreateKind {
    CreateKind::Differencing(locator())
}

/// A new disk in a simulated file, durable.
pub fn create(options: &CreateOptions) -> Arc<SimStorage> {
    let storage = SimStorage::new();
    create::plan(options).expect("the options are valid").execute(storage.as_ref()).expect("the plan runs");
    storage
}

/// Ids of one session: `number` makes them new.
pub fn ids(number: u128) -> WriteIds {
    let id = |kind: u128| Uuid::from_u128((kind << 64) | number);
    WriteIds { file_write: id(1), data_write: id(2), log: id(3) }
}

pub fn as_storage(storage: &Arc<SimStorage>) -> Arc<dyn Storage> {
    Arc::clone(storage) as _
}

pub fn open(storage: &Arc<SimStorage>, session: u128, shadow: Option<Arc<dyn Shadow>>) -> Image {
    let options = OpenOptions { write: Some(ids(session)), shadow };
    Image::open(&as_storage(storage), &options).expect("the disk opens")
}

pub fn open_read_only(storage: &Arc<SimStorage>) -> Image {
    Image::open(&as_storage(storage), &OpenOptions::default()).expect("the disk opens")
}

/// Writes as an engine does. `Err` if any step fails: then it is not acknowledged.
pub fn write(image: &Image, offset: u64, data: &[u8]) -> Result<(), MetaError> {
    let mut ticket = WriteTicket::new();
    image.begin_write(offset, data.len() as u64, &mut ticket)?;
    for extent in ticket.extents() {
        let from = usize::try_from(extent.disk_offset - offset).unwrap();
        let part = &data[from..from + usize::try_from(extent.len).unwrap()];
        image.storage().write_at(part, extent.file_offset).map_err(MetaError::NoSpace)?;
    }
    image.complete_write(&ticket)
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

/// Reads a range; `parent` gives bytes of the parent by their offset.
pub fn read(image: &Image, offset: u64, len: usize, parent: impl Fn(u64, &mut [u8])) -> Vec<u8> {
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
            Source::Parent => parent(offset + at as u64, &mut out[at..]),
        }
    }
    assert_eq!(out.len(), len, "the parts cover the range");
    out
}

pub fn no_parent(_: u64, _: &mut [u8]) {
    panic!("the disk has no parent");
}

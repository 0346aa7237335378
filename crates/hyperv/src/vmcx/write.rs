//! Values to bytes: one generation of everything, closed cleanly, laid out as Hyper-V's own checker wants it.

use super::layout::{
    FLAG_OUTSIDE, Header, KEY_SIGNATURE, KIND_BOOL, KIND_BYTES, KIND_DOUBLE, KIND_FREE, KIND_INT, KIND_NODE,
    KIND_STRING, KIND_UINT, KeyEntry, KeyHeader, LOG_ENTRY, LOG_SIGNATURE, LogHeader, MAX_DEPTH, MAX_ENTRIES,
    NEWEST, NodeData, OBJECT_EMPTY, OBJECT_FILE, OBJECT_KEYS, OBJECT_SIGNATURE, OBJECT_TABLE, OUTSIDE_FROM,
    Object, ObjectHeader, Outside, PAGE, SIGNATURE, VmcxError, checksum,
};
use super::store::{Content, Entry, Store};
use zerocopy::IntoBytes;

/// Space for entries in a key table.
const ROOM: usize = PAGE - size_of::<KeyHeader>();
/// Objects of the first table at least: Hyper-V fills it up.
const LEAST_OBJECTS: usize = (PAGE - size_of::<ObjectHeader>()) / size_of::<Object>();

pub(super) fn to_bytes(store: &Store) -> Result<Vec<u8>, VmcxError> {
    let mut layout = Layout::default();
    layout.place(&store.entries, (0, 0), 1)?;
    layout.close_table();
    // The object table has to be as large as what it lists; a last empty object would lead to a further table.
    let listed = layout.tables.len() + layout.outside.len() + 1;
    let objects = listed.max(LEAST_OBJECTS);
    let table_size = pages(size_of::<ObjectHeader>() + objects * size_of::<Object>());
    let keys_at = OBJECT_TABLE + table_size;
    let mut values_at = keys_at + layout.tables.len() * PAGE;
    let mut list = Vec::with_capacity(objects);
    for number in 0..layout.tables.len() {
        list.push(object(OBJECT_KEYS, keys_at + number * PAGE, PAGE)?);
    }
    for (pointer, value) in &layout.outside {
        list.push(object(OBJECT_FILE, values_at, pages(value.len()))?);
        layout.tables.point(pointer, value.len(), values_at)?;
        values_at += pages(value.len());
    }
    list.resize_with(objects, || {
        sealed_object(Object {
            kind: OBJECT_EMPTY,
            checksum: 0.into(),
            offset: 0.into(),
            size: 0.into(),
            flags: 0,
        })
    });
    let mut bytes = vec![0; values_at + PAGE];
    for (copy, sequence) in [(0, 1), (PAGE, 0)] {
        put(&mut bytes, copy, header(store, sequence, values_at).as_bytes());
    }
    let count = u32::try_from(objects).map_err(|_| too_many())?;
    let table = ObjectHeader { signature: OBJECT_SIGNATURE.into(), count: count.into() };
    put(&mut bytes, OBJECT_TABLE, table.as_bytes());
    put(&mut bytes, OBJECT_TABLE + size_of::<ObjectHeader>(), list.as_bytes());
    for (number, table) in layout.tables.done.iter().enumerate() {
        put(&mut bytes, keys_at + number * PAGE, table);
    }
    let mut at = keys_at + layout.tables.len() * PAGE;
    for (_, value) in &layout.outside {
        put(&mut bytes, at, value);
        at += pages(value.len());
    }
    put(&mut bytes, values_at, log().as_bytes());
    Ok(bytes)
}

fn too_many() -> VmcxError {
    VmcxError::TooMany(MAX_ENTRIES)
}

/// The next multiple of a page, at least one.
fn pages(size: usize) -> usize {
    size.max(1).next_multiple_of(PAGE)
}

/// Everything is placed before the buffer is made, so it fits.
fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + part.len()) {
        place.copy_from_slice(part);
    }
}

fn sealed_object(mut object: Object) -> Object {
    object.checksum = checksum(object.as_bytes(), 1).into();
    object
}

fn object(kind: u8, offset: usize, size: usize) -> Result<Object, VmcxError> {
    let size = u32::try_from(size).map_err(|_| too_many())?;
    // Flag 1: whoever does not know the object must not open the file.
    let offset = (offset as u64).into();
    Ok(sealed_object(Object { kind, checksum: 0.into(), offset, size: size.into(), flags: 1 }))
}

fn header(store: &Store, sequence: u16, log_at: usize) -> Header {
    const PAGE_U32: u32 = 0x1000;
    let mut header = Header {
        signature: SIGNATURE.into(),
        checksum: 0.into(),
        sequence: sequence.into(),
        version: NEWEST.into(),
        data_version: store.data_version.into(),
        flags: 0.into(),
        alignment: PAGE_U32.into(),
        log_offset: (log_at as u64).into(),
        log_size: (PAGE as u64).into(),
        log_header_size: PAGE_U32.into(),
    };
    header.checksum = checksum(header.as_bytes(), 4).into();
    header
}

/// A replay log without entries.
fn log() -> LogHeader {
    const MOST: usize = (PAGE - size_of::<LogHeader>()) / LOG_ENTRY;
    let mut log = LogHeader {
        signature: LOG_SIGNATURE.into(),
        checksum: 0.into(),
        entries: 0.into(),
        reserved: 0,
        most_entries: u32::try_from(MOST).unwrap_or(u32::MAX).into(),
        tracking: 0,
        tracking_offset: 0.into(),
        tracking_size: 0.into(),
        tracking_used: 0.into(),
    };
    log.checksum = checksum(log.as_bytes(), 4).into();
    log
}

/// Finished key tables.
#[derive(Default)]
struct Tables {
    done: Vec<Vec<u8>>,
}

/// Where an entry with a value elsewhere is: table, offset in it, bytes of its name.
struct Pointer {
    table: usize,
    offset: usize,
    name: usize,
}

impl Tables {
    fn len(&self) -> usize {
        self.done.len()
    }

    /// Says where a value is, and seals its entry.
    fn point(&mut self, pointer: &Pointer, size: usize, at: usize) -> Result<(), VmcxError> {
        let size = u32::try_from(size).map_err(|_| too_many())?;
        let value = Outside { size: size.into(), offset: (at as u64).into() };
        let Some(table) = self.done.get_mut(pointer.table) else { return Ok(()) };
        let data = pointer.offset + size_of::<KeyEntry>() + pointer.name;
        put(table, data, value.as_bytes());
        let end = data + size_of::<Outside>();
        let sum = checksum(table.get(pointer.offset..end).unwrap_or_default(), 12);
        put(table, pointer.offset + 12, &sum.to_le_bytes());
        Ok(())
    }
}

/// Entries in their tables.
#[derive(Default)]
struct Layout {
    tables: Tables,
    /// The table that is being filled, with its header.
    open: Vec<u8>,
    /// Where its last entry starts.
    last: usize,
    outside: Vec<(Pointer, Vec<u8>)>,
    count: usize,
}

impl Layout {
    /// Places entries and what is below them; parents come before their children.
    fn place(&mut self, entries: &[Entry], parent: (u16, u32), depth: usize) -> Result<(), VmcxError> {
        if depth > MAX_DEPTH + 1 {
            return Err(VmcxError::TooDeep(MAX_DEPTH));
        }
        for (insertion, entry) in (1u32..).zip(entries) {
            let at = self.entry(entry, parent, insertion)?;
            if let Content::Node { entries, .. } = &entry.content {
                self.place(entries, at, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Places one entry; returns its table's index and its offset.
    fn entry(&mut self, entry: &Entry, parent: (u16, u32), insertion: u32) -> Result<(u16, u32), VmcxError> {
        let refuse =
            |reason| VmcxError::Unwritable { name: String::from_utf8_lossy(&entry.name).into(), reason };
        self.count += 1;
        if self.count > MAX_ENTRIES {
            return Err(too_many());
        }
        if entry.name.contains(&0) {
            return Err(refuse("a name ends at a zero"));
        }
        let name_size =
            u8::try_from(entry.name.len() + 1).map_err(|_| refuse("a name has at most 254 bytes"))?;
        let (kind, value) = encode(&entry.content);
        let is_outside = value.len() >= OUTSIDE_FROM;
        if is_outside && !matches!(kind, KIND_STRING | KIND_BYTES) {
            return Err(refuse("a value of an unknown type has at most 2047 bytes"));
        }
        let mut data = match (kind, is_outside) {
            (_, true) => vec![0; size_of::<Outside>()],
            (KIND_STRING | KIND_BYTES, false) => {
                u32::try_from(value.len()).unwrap_or(0).to_le_bytes().to_vec()
            }
            (_, false) => Vec::new(),
        };
        if !is_outside {
            data.extend_from_slice(&value);
        }
        let size = size_of::<KeyEntry>() + entry.name.len() + 1 + data.len();
        self.make_room(size, matches!(entry.content, Content::Unknown { .. }));
        let offset = self.open.len();
        let index =
            u16::try_from(self.tables.len() + 1).map_err(|_| refuse("there are at most 65535 key tables"))?;
        let header = KeyEntry {
            kind,
            flags: (entry.flags & !FLAG_OUTSIDE) | if is_outside { FLAG_OUTSIDE } else { 0 },
            size: u32::try_from(size).map_err(|_| too_many())?.into(),
            parent_table: parent.0.into(),
            parent_offset: parent.1.into(),
            checksum: 0.into(),
            insertion: insertion.into(),
            name_size,
        };
        self.last = offset;
        self.open.extend_from_slice(header.as_bytes());
        self.open.extend_from_slice(&entry.name);
        self.open.push(0);
        self.open.extend_from_slice(&data);
        let sum = checksum(self.open.get(offset..).unwrap_or_default(), 12);
        put(&mut self.open, offset + 12, &sum.to_le_bytes());
        if is_outside {
            let pointer = Pointer { table: self.tables.len(), offset, name: entry.name.len() + 1 };
            self.outside.push((pointer, value));
        }
        Ok((index, u32::try_from(offset).unwrap_or(u32::MAX)))
    }

    /// Makes sure that an entry of `size` bytes fits, in a new table if need be. One without a `length` of its own must not
    /// be what takes the rest of a table.
    fn make_room(&mut self, size: usize, without_length: bool) {
        let rest = PAGE.checked_sub(self.open.len() + size);
        let takes_the_rest =
            without_length && rest.is_some_and(|rest| rest > 0 && rest <= size_of::<KeyEntry>());
        if !self.open.is_empty() && (rest.is_none() || takes_the_rest) {
            self.close_table();
        }
        if self.open.is_empty() {
            let index = u16::try_from(self.tables.len() + 1).unwrap_or(u16::MAX);
            let mut header = KeyHeader {
                signature: KEY_SIGNATURE.into(),
                index: index.into(),
                sequence: 1.into(),
                checksum: 0.into(),
            };
            header.checksum = checksum(header.as_bytes(), 6).into();
            self.open = header.as_bytes().to_vec();
        }
    }

    /// Fills the open table up: entries have to reach its end exactly. Where a free entry has no room, the last entry
    /// takes the rest.
    fn close_table(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let rest = PAGE - self.open.len();
        if rest > size_of::<KeyEntry>() {
            let free = KeyEntry {
                kind: KIND_FREE,
                flags: 0,
                size: u32::try_from(rest).unwrap_or(0).into(),
                parent_table: 0.into(),
                parent_offset: 0.into(),
                checksum: 0.into(),
                insertion: 0.into(),
                name_size: 0,
            };
            self.open.extend_from_slice(free.as_bytes());
        } else {
            let size = u32::try_from(PAGE - self.last).unwrap_or(0);
            put(&mut self.open, self.last + 2, &size.to_le_bytes());
            // The size is covered by the checksum, the rest is not.
            let sum = checksum(self.open.get(self.last..).unwrap_or_default(), 12);
            put(&mut self.open, self.last + 12, &sum.to_le_bytes());
        }
        self.open.resize(PAGE, 0);
        self.tables.done.push(std::mem::take(&mut self.open));
    }
}

/// Type and value. `ROOM` holds the largest value that is kept inside with the longest name.
fn encode(content: &Content) -> (u8, Vec<u8>) {
    const _: () = assert!(size_of::<KeyEntry>() + 255 + 4 + OUTSIDE_FROM <= ROOM);
    match content {
        Content::Node { tracking, entries } => {
            let next = u32::try_from(entries.len() + 1).unwrap_or(u32::MAX);
            let node = NodeData { tracking: (*tracking).into(), next_insertion: next.into() };
            (KIND_NODE, node.as_bytes().to_vec())
        }
        Content::Int(number) => (KIND_INT, number.to_le_bytes().to_vec()),
        Content::UInt(number) => (KIND_UINT, number.to_le_bytes().to_vec()),
        Content::Double(bits) => (KIND_DOUBLE, bits.to_le_bytes().to_vec()),
        Content::String(units) => (KIND_STRING, units.iter().flat_map(|unit| unit.to_le_bytes()).collect()),
        Content::Bytes(bytes) => (KIND_BYTES, bytes.clone()),
        Content::Bool(value) => (KIND_BOOL, value.to_le_bytes().to_vec()),
        Content::Unknown { kind, data } => (*kind, data.clone()),
    }
}

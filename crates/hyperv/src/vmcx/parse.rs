//! Bytes to values. Offsets and lengths are checked against the file before anything is taken, work is bounded by its
//! size, and nothing recurses before depth is known.

use super::layout::{
    FLAG_OUTSIDE, Header, KEY_SIGNATURE, KIND_BOOL, KIND_BYTES, KIND_DOUBLE, KIND_FREE, KIND_INT, KIND_NODE,
    KIND_STRING, KIND_UINT, KeyEntry, KeyHeader, LOG_SIGNATURE, LogHeader, MAX_BYTES, MAX_DEPTH, MAX_ENTRIES,
    NEWEST, NodeData, OBJECT_FILE, OBJECT_KEYS, OBJECT_OBJECTS, OBJECT_SIGNATURE, OBJECT_TABLE, OLDEST,
    Object, ObjectHeader, Outside, PAGE, VmcxError, checksum, header_at,
};
use super::store::{Content, Entry, Store};
use std::collections::{BTreeMap, BTreeSet};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Doubts that are told one by one.
const MOST_DOUBTS: usize = 20;

pub(super) fn parse(bytes: &[u8]) -> Result<(Store, Vec<String>), VmcxError> {
    if bytes.len() > MAX_BYTES {
        return Err(VmcxError::TooLarge { size: bytes.len(), limit: MAX_BYTES });
    }
    let mut reader = Reader { bytes, doubts: Vec::new() };
    let header = reader.header()?;
    let version = header.version.get();
    if !(OLDEST..=NEWEST).contains(&version) {
        return Err(VmcxError::Version(version));
    }
    reader.log(&header)?;
    let tables = reader.key_tables()?;
    let flat = reader.entries(&tables)?;
    let entries = reader.tree(flat)?;
    let hidden = reader.doubts.len().saturating_sub(MOST_DOUBTS);
    reader.doubts.truncate(MOST_DOUBTS);
    if hidden > 0 {
        reader.doubts.push(format!("{hidden} further doubts"));
    }
    Ok((Store { data_version: header.data_version.get(), entries }, reader.doubts))
}

struct Reader<'a> {
    bytes: &'a [u8],
    doubts: Vec<String>,
}

/// An entry with its parent's place: key table and offset in it, both 0 for none.
struct Flat {
    parent: (u16, u32),
    place: (u16, u32),
    insertion: u32,
    entry: Entry,
}

fn damaged(offset: usize, reason: &'static str) -> VmcxError {
    VmcxError::Damaged { offset: offset as u64, reason }
}

impl<'a> Reader<'a> {
    /// A structure at an offset.
    fn at<T: FromBytes + KnownLayout + Immutable>(&self, offset: usize) -> Result<T, VmcxError> {
        let rest = self.bytes.get(offset..).unwrap_or_default();
        T::read_from_prefix(rest).map(|(found, _)| found).map_err(|_| damaged(offset, "the file ends here"))
    }

    fn slice(&self, offset: u64, size: u32) -> Option<&'a [u8]> {
        let from = usize::try_from(offset).ok()?;
        let to = from.checked_add(usize::try_from(size).ok()?)?;
        self.bytes.get(from..to)
    }

    fn doubt(&mut self, text: impl FnOnce() -> String) {
        // Beyond what is shown they are only counted.
        let shown = self.doubts.len() < MOST_DOUBTS;
        self.doubts.push(if shown { text() } else { String::new() });
    }

    /// The current one of both headers: the newer of those whose checksum fits.
    fn header(&mut self) -> Result<Header, VmcxError> {
        let found: Vec<Header> = [0, PAGE].iter().filter_map(|at| header_at(self.bytes, *at)).collect();
        let fits = |header: &&Header| header.checksum.get() == checksum(header.as_bytes(), 4);
        let newest = |a: &&Header, b: &&Header| a.sequence.get().cmp(&b.sequence.get());
        if let Some(header) = found.iter().filter(fits).max_by(newest) {
            return Ok(*header);
        }
        let header = found.iter().max_by(newest).ok_or(VmcxError::NoHeader)?;
        self.doubt(|| "the checksum of neither header fits".into());
        Ok(*header)
    }

    /// Refuses a file whose log holds changes.
    fn log(&mut self, header: &Header) -> Result<(), VmcxError> {
        let offset = usize::try_from(header.log_offset.get()).unwrap_or(usize::MAX);
        if header.log_size.get() == 0 {
            self.doubt(|| "there is no replay log".into());
            return Ok(());
        }
        let log: LogHeader = self.at(offset)?;
        if log.signature.get() != LOG_SIGNATURE {
            return Err(damaged(offset, "there is no replay log"));
        }
        if log.entries.get() > 0 {
            return Err(VmcxError::Dirty(log.entries.get()));
        }
        if log.checksum.get() != checksum(log.as_bytes(), 4) {
            self.doubt(|| "the checksum of the replay log does not fit".into());
        }
        Ok(())
    }

    /// The current key table of each index.
    fn key_tables(&mut self) -> Result<BTreeMap<u16, (usize, &'a [u8])>, VmcxError> {
        let mut tables: BTreeMap<u16, (u16, usize, &'a [u8])> = BTreeMap::new();
        let (mut open, mut seen) = (vec![OBJECT_TABLE], BTreeSet::new());
        let mut objects = 0usize;
        while let Some(at) = open.pop() {
            if !seen.insert(at) {
                return Err(damaged(at, "an object table leads back to itself"));
            }
            let header: ObjectHeader = self.at(at)?;
            if header.signature.get() != OBJECT_SIGNATURE {
                return Err(damaged(at, "there is no object table"));
            }
            let count = usize::try_from(header.count.get()).unwrap_or(usize::MAX);
            objects = objects.saturating_add(count);
            if objects > MAX_ENTRIES {
                return Err(VmcxError::TooMany(MAX_ENTRIES));
            }
            let size = count.saturating_mul(size_of::<Object>());
            let first = at + size_of::<ObjectHeader>();
            let list = self.bytes.get(first..first.saturating_add(size));
            let list = list.ok_or_else(|| damaged(at, "an object table is longer than the file"))?;
            for (number, raw) in list.chunks_exact(size_of::<Object>()).enumerate() {
                let place = first + number * size_of::<Object>();
                let Ok(object) = Object::read_from_bytes(raw) else { continue };
                self.object(place, &object, &mut open, &mut tables)?;
            }
        }
        let total: usize = tables.values().map(|(_, _, table)| table.len()).sum();
        if total > self.bytes.len() {
            return Err(damaged(OBJECT_TABLE, "key tables lie on top of each other"));
        }
        Ok(tables.into_iter().map(|(index, (_, at, table))| (index, (at, table))).collect())
    }

    fn object(
        &mut self,
        place: usize,
        object: &Object,
        open: &mut Vec<usize>,
        tables: &mut BTreeMap<u16, (u16, usize, &'a [u8])>,
    ) -> Result<(), VmcxError> {
        if !matches!(object.kind, OBJECT_OBJECTS | OBJECT_KEYS | OBJECT_FILE) {
            return Ok(());
        }
        if object.checksum.get() != checksum(object.as_bytes(), 1) {
            self.doubt(|| format!("the checksum of the object at {place:#x} does not fit"));
        }
        let at = usize::try_from(object.offset.get()).unwrap_or(usize::MAX);
        match object.kind {
            OBJECT_OBJECTS => open.push(at),
            OBJECT_KEYS => {
                let table = self.slice(object.offset.get(), object.size.get());
                let table = table.ok_or_else(|| damaged(place, "a key table is outside of the file"))?;
                let header: KeyHeader = self.at(at)?;
                if table.len() < size_of::<KeyHeader>() || header.signature.get() != KEY_SIGNATURE {
                    return Err(damaged(at, "there is no key table"));
                }
                if header.checksum.get() != checksum(header.as_bytes(), 6) {
                    self.doubt(|| format!("the checksum of the key table at {at:#x} does not fit"));
                }
                let (index, sequence) = (header.index.get(), header.sequence.get());
                if tables.get(&index).is_none_or(|(known, ..)| *known < sequence) {
                    tables.insert(index, (sequence, at, table));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// All entries of all tables.
    fn entries(&mut self, tables: &BTreeMap<u16, (usize, &'a [u8])>) -> Result<Vec<Flat>, VmcxError> {
        let mut flat = Vec::new();
        let mut outside = 0usize;
        for (index, (start, table)) in tables {
            let mut at = size_of::<KeyHeader>();
            while let Ok((header, _)) = KeyEntry::read_from_prefix(table.get(at..).unwrap_or_default()) {
                let place = start + at;
                let size = usize::try_from(header.size.get()).unwrap_or(usize::MAX);
                if size < size_of::<KeyEntry>() {
                    // What follows the last entry of a table is zeros.
                    if table.get(at..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0)) {
                        return Err(damaged(place, "an entry is shorter than its header"));
                    }
                    break;
                }
                let raw = table.get(at..at.saturating_add(size));
                let raw = raw.ok_or_else(|| damaged(place, "an entry is longer than its table"))?;
                if header.kind != KIND_FREE {
                    let entry = self.entry(&header, raw, place, &mut outside)?;
                    if flat.len() >= MAX_ENTRIES {
                        return Err(VmcxError::TooMany(MAX_ENTRIES));
                    }
                    flat.push(Flat {
                        parent: (header.parent_table.get(), header.parent_offset.get()),
                        place: (*index, u32::try_from(at).unwrap_or(u32::MAX)),
                        insertion: header.insertion.get(),
                        entry,
                    });
                }
                at += size;
            }
        }
        Ok(flat)
    }

    fn entry(
        &mut self,
        header: &KeyEntry,
        raw: &'a [u8],
        place: usize,
        outside: &mut usize,
    ) -> Result<Entry, VmcxError> {
        let after = raw.get(size_of::<KeyEntry>()..).unwrap_or_default();
        let name_size = usize::from(header.name_size);
        let (name, data) = after
            .split_at_checked(name_size)
            .ok_or_else(|| damaged(place, "a name is longer than its entry"))?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        let is_outside = header.flags & FLAG_OUTSIDE != 0;
        let (value, used) = if is_outside {
            let (pointer, _) =
                Outside::read_from_prefix(data).map_err(|_| damaged(place, "a pointer is cut off"))?;
            let value = self.slice(pointer.offset.get(), pointer.size.get());
            let value = value.ok_or_else(|| damaged(place, "a value is outside of the file"))?;
            *outside += value.len();
            if *outside > self.bytes.len() {
                return Err(damaged(place, "values lie on top of each other"));
            }
            (value, size_of::<Outside>())
        } else {
            inline(header.kind, data).ok_or_else(|| damaged(place, "a value is longer than its entry"))?
        };
        let content = content(header.kind, value)
            .ok_or_else(|| damaged(place, "a value does not have the size of its type"))?;
        let covered = size_of::<KeyEntry>() + name_size + used;
        if raw.get(..covered).is_none_or(|covered| header.checksum.get() != checksum(covered, 12)) {
            let shown = String::from_utf8_lossy(&name).into_owned();
            self.doubt(|| format!("the checksum of '{shown}' at {place:#x} does not fit"));
        }
        Ok(Entry { name, content, flags: header.flags & !FLAG_OUTSIDE })
    }

    /// Hangs every entry below its parent.
    fn tree(&mut self, flat: Vec<Flat>) -> Result<Vec<Entry>, VmcxError> {
        let mut children: BTreeMap<(u16, u32), Vec<usize>> = BTreeMap::new();
        for (number, entry) in flat.iter().enumerate() {
            children.entry(entry.parent).or_default().push(number);
        }
        let mut slots: Vec<Option<Flat>> = flat.into_iter().map(Some).collect();
        for list in children.values_mut() {
            list.sort_by_key(|number| slots.get(*number).and_then(Option::as_ref).map(|f| f.insertion));
        }
        let taken = take(&(0, 0), &mut children, &mut slots, 0)?;
        let lost = slots.iter().flatten().count();
        if lost > 0 {
            self.doubt(|| format!("{lost} entries hang below none that can be reached: they are left out"));
        }
        Ok(taken)
    }
}

/// The entries below a place with all that is below them. Every entry is taken once, so a ring is never entered, and
/// depth is limited.
fn take(
    place: &(u16, u32),
    children: &mut BTreeMap<(u16, u32), Vec<usize>>,
    slots: &mut [Option<Flat>],
    depth: usize,
) -> Result<Vec<Entry>, VmcxError> {
    if depth > MAX_DEPTH {
        return Err(VmcxError::TooDeep(MAX_DEPTH));
    }
    let mut taken = Vec::new();
    for number in children.remove(place).unwrap_or_default() {
        let Some(mut flat) = slots.get_mut(number).and_then(Option::take) else { continue };
        if let Content::Node { entries, .. } = &mut flat.entry.content {
            *entries = take(&flat.place, children, slots, depth + 1)?;
        }
        taken.push(flat.entry);
    }
    Ok(taken)
}

/// The value that follows a name, and how many bytes it takes with its length.
fn inline(kind: u8, data: &[u8]) -> Option<(&[u8], usize)> {
    let fixed = |size: usize| Some((data.get(..size)?, size));
    match kind {
        KIND_INT | KIND_UINT | KIND_DOUBLE => fixed(8),
        KIND_BOOL => fixed(4),
        KIND_NODE => fixed(size_of::<NodeData>()),
        KIND_STRING | KIND_BYTES => {
            let (length, rest) = data.split_first_chunk::<4>()?;
            let size = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            Some((rest.get(..size)?, 4 + size))
        }
        _ => Some((data, data.len())),
    }
}

fn content(kind: u8, value: &[u8]) -> Option<Content> {
    let eight = || value.first_chunk::<8>().copied();
    Some(match kind {
        KIND_INT => Content::Int(i64::from_le_bytes(eight()?)),
        KIND_UINT => Content::UInt(u64::from_le_bytes(eight()?)),
        KIND_DOUBLE => Content::Double(u64::from_le_bytes(eight()?)),
        KIND_BOOL => Content::Bool(u32::from_le_bytes(*value.first_chunk::<4>()?)),
        KIND_NODE => {
            let (node, _) = NodeData::read_from_prefix(value).ok()?;
            Content::Node { tracking: node.tracking.get(), entries: Vec::new() }
        }
        KIND_STRING => {
            let (units, rest) = value.as_chunks::<2>();
            if !rest.is_empty() {
                return None;
            }
            Content::String(units.iter().map(|unit| u16::from_le_bytes(*unit)).collect())
        }
        KIND_BYTES => Content::Bytes(value.to_vec()),
        kind => Content::Unknown { kind, data: value.to_vec() },
    })
}

//! The shadow file: sector bitmaps that readers already see but that may not be in the disk file yet, kept where they
//! outlive this process. Format and rules: docs/formats/shadow.md.

use crate::fs::{DiskFile, FileId, FileSystem, OpenMode};
use backstay_vhd::{Shadow, ShadowSlot};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release},
    },
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian as le};

const MAGIC: [u8; 8] = *b"bsshadow";
const VERSION: u32 = 1;
/// Where the slots begin.
const SLOTS_AT: u64 = 4096;
/// Bytes of a slot before its bitmap.
const SLOT_HEAD_LEN: usize = 8;
const SLOT_HEAD: u64 = SLOT_HEAD_LEN as u64;

/// First bytes of the file (docs/formats/shadow.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: le::U32,
    bitmap_bytes: le::U32,
    blocks: le::U32,
    reserved: le::U32,
    boot_id: [u8; 16],
    dev: le::U64,
    inode: le::U64,
    unique_id: [u8; 16],
}
const _: () = assert!(size_of::<Header>() == 72);

/// Which disk file a shadow belongs to, and its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShadowKey {
    pub(crate) file: FileId,
    pub(crate) unique_id: [u8; 16],
    /// Entries of the block allocation table.
    pub(crate) blocks: u32,
    /// Length of one block's bitmap.
    pub(crate) bitmap_bytes: u32,
}

/// An open shadow file.
#[derive(Debug)]
pub(crate) struct ShadowFile {
    fs: Arc<dyn FileSystem>,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    key: ShadowKey,
    /// For each block the table entry its slot is known to carry; 0 before the slot was looked at.
    slots: Vec<AtomicU32>,
    /// Taken while a slot is made ready for another table entry.
    claim: Mutex<()>,
    /// A write into it failed, and that was told.
    refused: AtomicBool,
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

impl ShadowFile {
    /// Opens the shadow that a dead process left for this disk file, if there is one that is still true. One of an
    /// earlier boot or of another file with the same number is ignored, and removed when opened for writing.
    ///
    /// # Errors
    /// If there is one that cannot be read: what it holds is not known then.
    pub(crate) fn adopt(
        fs: &Arc<dyn FileSystem>,
        folder: &Path,
        key: ShadowKey,
        mode: OpenMode,
    ) -> io::Result<Option<Self>> {
        let path = Self::path(folder, key.file);
        let file = match fs.open(&path, mode) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(None),
            // No process of this user can have left one in a folder that this user may not even look into.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && fs.metadata(&path).is_err() => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut bytes = [0; size_of::<Header>()];
        let complete = match file.read_at(&mut bytes, 0) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(error) => return Err(error),
        };
        if complete && bytes == Self::header(fs, key)?.as_bytes() {
            return Ok(Some(Self::over(fs, path, file, key)));
        }
        if mode == OpenMode::ReadWrite
            && let Err(error) = fs.remove(&path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a shadow file that is void");
        }
        Ok(None)
    }

    /// Creates an empty one.
    pub(crate) fn create(fs: &Arc<dyn FileSystem>, folder: &Path, key: ShadowKey) -> io::Result<Self> {
        fs.create_dir_all(folder)?;
        let path = Self::path(folder, key.file);
        let file = fs.create_new(&path)?;
        let shadow = Self::over(fs, path, file, key);
        if let Err(error) = shadow.begin() {
            let _without_header_it_is_void = fs.remove(&shadow.path);
            return Err(error);
        }
        Ok(shadow)
    }

    fn begin(&self) -> io::Result<()> {
        self.file.set_len(self.slot_at(self.key.blocks))?;
        // Last, so that a file without a header is known to be unfinished.
        self.file.write_at(Self::header(&self.fs, self.key)?.as_bytes(), 0)
    }

    fn over(fs: &Arc<dyn FileSystem>, path: PathBuf, file: Arc<dyn DiskFile>, key: ShadowKey) -> Self {
        let slots = (0..key.blocks).map(|_| AtomicU32::new(0)).collect();
        let (claim, refused) = (Mutex::default(), AtomicBool::new(false));
        Self { fs: Arc::clone(fs), path, file, key, slots, claim, refused }
    }

    fn header(fs: &Arc<dyn FileSystem>, key: ShadowKey) -> io::Result<Header> {
        Ok(Header {
            magic: MAGIC,
            version: VERSION.into(),
            bitmap_bytes: key.bitmap_bytes.into(),
            blocks: key.blocks.into(),
            reserved: 0.into(),
            boot_id: fs.boot_id()?,
            dev: key.file.dev.into(),
            inode: key.file.inode.into(),
            unique_id: key.unique_id,
        })
    }

    fn slot_at(&self, block: u32) -> u64 {
        SLOTS_AT + u64::from(block) * (SLOT_HEAD + u64::from(self.key.bitmap_bytes))
    }

    /// Makes the slot carry `bat_sector`: an empty bitmap first, then the entry, so that a process that dies in
    /// between leaves bits that nobody believes.
    fn claim_slot(&self, block: u32, bat_sector: u32, known: &AtomicU32) -> io::Result<()> {
        let _guard = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        if known.load(Acquire) == bat_sector {
            return Ok(());
        }
        let at = self.slot_at(block);
        let mut found = le::U32::new(0);
        self.file.read_at(found.as_mut_bytes(), at)?;
        if found.get() != bat_sector {
            let empty = vec![0; usize::try_from(self.key.bitmap_bytes).unwrap_or(0)];
            self.file.write_at(le::U32::new(0).as_bytes(), at)?;
            self.file.write_at(&empty, at + SLOT_HEAD)?;
            self.file.write_at(le::U32::new(bat_sector).as_bytes(), at)?;
        }
        known.store(bat_sector, Release);
        Ok(())
    }

    fn put_bits(&self, block: u32, bat_sector: u32, first_byte: usize, bytes: &[u8]) -> io::Result<()> {
        let known = self.slots.get(block as usize).ok_or_else(|| Self::outside(block))?;
        if first_byte as u64 + bytes.len() as u64 > u64::from(self.key.bitmap_bytes) {
            return Err(Self::outside(block));
        }
        if known.load(Acquire) != bat_sector {
            self.claim_slot(block, bat_sector, known)?;
        }
        self.file.write_at(bytes, self.slot_at(block) + SLOT_HEAD + first_byte as u64)
    }

    /// Where the shadow of a file is.
    pub(crate) fn path(folder: &Path, file: FileId) -> PathBuf {
        folder.join(format!("{:x}-{:x}.shadow", file.dev, file.inode))
    }

    /// Whether a file of that name is there.
    pub(crate) fn exists(fs: &Arc<dyn FileSystem>, folder: &Path, file: FileId) -> bool {
        fs.metadata(&Self::path(folder, file)).is_ok()
    }

    fn outside(block: u32) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, format!("block {block} has no slot in the shadow file"))
    }
}

impl Shadow for ShadowFile {
    fn put(&self, block: u32, bat_sector: u32, first_byte: usize, bytes: &[u8]) -> io::Result<()> {
        self.put_bits(block, bat_sector, first_byte, bytes).inspect_err(|error| {
            if !self.refused.swap(true, Relaxed) {
                let path = self.path.display();
                tracing::warn!(%path, %error, "no space for a write's bits in memory; such writes are flushed one by one");
            }
        })
    }

    fn load(&self) -> io::Result<Vec<ShadowSlot>> {
        let mut found = Vec::new();
        let slot_len = SLOT_HEAD + u64::from(self.key.bitmap_bytes);
        let mut bytes = vec![0; usize::try_from(slot_len).unwrap_or(0)];
        let mut block = 0;
        while block < self.key.blocks {
            let at = self.slot_at(block);
            let Some(data) = self.file.next_data(at)? else { break };
            if data >= at + slot_len {
                let next = data.saturating_sub(SLOTS_AT) / slot_len;
                block = u32::try_from(next).unwrap_or(u32::MAX);
                continue;
            }
            self.file.read_at(&mut bytes, at)?;
            if let Ok((entry, _)) = le::U32::read_from_prefix(&bytes)
                && let Some(bits) = bytes.get(SLOT_HEAD_LEN..)
                && entry.get() != 0
            {
                if let Some(known) = self.slots.get(block as usize) {
                    known.store(entry.get(), Relaxed);
                }
                found.push(ShadowSlot { block, bat_sector: entry.get(), bits: bits.to_vec() });
            }
            block += 1;
        }
        Ok(found)
    }

    fn forget(&self, block: u32) -> io::Result<()> {
        let known = self.slots.get(block as usize).ok_or_else(|| Self::outside(block))?;
        // Known are those that were found and those that were put.
        if known.load(Acquire) == 0 {
            return Ok(());
        }
        self.file.write_at(le::U32::new(0).as_bytes(), self.slot_at(block))?;
        known.store(0, Release);
        Ok(())
    }

    /// Removes the file: everything in it is in the disk file.
    fn clear(&self) -> io::Result<()> {
        match self.fs.remove(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::HostFs;

    fn key(inode: u64) -> ShadowKey {
        ShadowKey { file: FileId { dev: 7, inode }, unique_id: [9; 16], blocks: 5000, bitmap_bytes: 512 }
    }

    #[test]
    fn bits_outlive_the_opening_and_a_moved_block_starts_empty() {
        let folder = tempfile::tempdir().unwrap();
        let fs = HostFs::shared();
        let shadow = ShadowFile::create(&fs, folder.path(), key(1)).unwrap();
        shadow.put(3, 159, 10, &[0xf0, 0x0f]).unwrap();
        shadow.put(4999, 8000, 511, &[1]).unwrap();
        shadow.put(7, 100, 0, &[0xff; 512]).unwrap();
        shadow.put(7, 200, 1, &[2]).unwrap();
        assert!(shadow.put(5000, 1, 0, &[1]).is_err());
        assert!(shadow.put(0, 1, 511, &[1, 1]).is_err());
        drop(shadow);

        let shadow = ShadowFile::adopt(&fs, folder.path(), key(1), OpenMode::ReadWrite).unwrap().unwrap();
        let slots = shadow.load().unwrap();
        let bits = |block: u32| slots.iter().find(|slot| slot.block == block).unwrap();
        assert_eq!(slots.len(), 3);
        assert_eq!((bits(3).bat_sector, &bits(3).bits[9..13]), (159, &[0, 0xf0, 0x0f, 0][..]));
        assert_eq!((bits(4999).bat_sector, bits(4999).bits[511]), (8000, 1));
        assert_eq!(bits(7).bat_sector, 200);
        assert!(bits(7).bits.iter().enumerate().all(|(at, byte)| *byte == if at == 1 { 2 } else { 0 }));

        shadow.put(3, 159, 0, &[0x80]).unwrap();
        let again = shadow.load().unwrap();
        assert_eq!(
            &again.iter().find(|slot| slot.block == 3).unwrap().bits[..12],
            &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0x0f]
        );
    }

    #[test]
    fn the_shadow_of_another_file_or_boot_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let fs = HostFs::shared();
        ShadowFile::create(&fs, folder.path(), key(1)).unwrap().put(1, 1, 0, &[1]).unwrap();
        let other = ShadowKey { unique_id: [8; 16], ..key(1) };
        assert!(ShadowFile::adopt(&fs, folder.path(), other, OpenMode::ReadWrite).unwrap().is_none());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

        let shadow = ShadowFile::create(&fs, folder.path(), key(1)).unwrap();
        shadow.put(1, 1, 0, &[1]).unwrap();
        shadow.file.write_at(&[0xee; 16], 24).unwrap(); // the boot id
        assert!(ShadowFile::adopt(&fs, folder.path(), key(1), OpenMode::Read).unwrap().is_none());
        assert!(ShadowFile::adopt(&fs, folder.path(), key(1), OpenMode::ReadWrite).unwrap().is_none());
        assert!(ShadowFile::create(&fs, folder.path(), key(1)).unwrap().load().unwrap().is_empty());
    }
}

//! A file system that loses what a real one can lose: content by [`SimStorage`]; creations, renames and removals each on
//! their own until the folder is synced; everything below `/run` with the power.

use backstay_disk::fs::{
    DiskFile, FileId, FileKind, FileMeta, FileSystem, Holder, LockKind, OpenMode, Shared,
};
use backstay_vhd::{
    Storage,
    testing::{Rng, SimStorage},
};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

#[derive(Debug, Default)]
pub struct SimFs {
    names: Mutex<Names>,
    power: Arc<Power>,
    locks: Arc<Locks>,
}

#[derive(Clone, Debug, Default)]
struct Names {
    now: BTreeMap<PathBuf, u64>,
    durable: BTreeMap<PathBuf, u64>,
    /// What happened since, oldest first; each entry is lost or kept as a whole.
    pending: Vec<Vec<(PathBuf, Option<u64>)>>,
    files: BTreeMap<u64, Arc<SimStorage>>,
    boot: u8,
}

/// Counts what is done to the whole machine, and ends it.
#[derive(Debug, Default)]
pub struct Power {
    state: Mutex<PowerState>,
}

#[derive(Debug, Default)]
struct PowerState {
    operations: u64,
    flushes: u64,
    off: bool,
    dies_at_operation: Option<u64>,
    dies_at_flush: Option<u64>,
    swallow: Option<u64>,
    memory_writes: u64,
    memory_full_at: Option<u64>,
    room: Option<u64>,
    shares: bool,
    shared_bytes: u64,
}

impl Power {
    /// Everything fails from the `count`th change (write, length, hole, name, flush) from now on.
    pub fn die_after_operations(&self, count: u64) {
        let mut state = self.state.lock().unwrap();
        state.dies_at_operation = Some(state.operations + count);
    }

    /// From now on files can share whole pages.
    pub fn share(&self) {
        self.state.lock().unwrap().shares = true;
    }

    /// Bytes that were shared so far.
    pub fn shared_bytes(&self) -> u64 {
        self.state.lock().unwrap().shared_bytes
    }

    /// So many bytes are free from now on, whatever is written.
    pub fn set_room(&self, bytes: u64) {
        self.state.lock().unwrap().room = Some(bytes);
    }

    /// Everything fails from the `count`th flush from now on; that one does nothing.
    pub fn die_after_flushes(&self, count: u64) {
        let mut state = self.state.lock().unwrap();
        state.dies_at_flush = Some(state.flushes + count);
    }

    /// The `count`th flush from now on does nothing and says it did: a program that forgot it.
    pub fn swallow_flush(&self, count: u64) {
        let mut state = self.state.lock().unwrap();
        state.swallow = Some(state.flushes + count);
    }

    /// From the `count`th write below `/run` from now on there is no space left there.
    pub fn fill_memory_after(&self, count: u64) {
        let mut state = self.state.lock().unwrap();
        state.memory_full_at = Some(state.memory_writes + count);
    }

    fn memory_write(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.memory_writes += 1;
        match state.memory_full_at {
            Some(full_at) if state.memory_writes > full_at => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn alive(&self) -> io::Result<()> {
        if self.state.lock().unwrap().off {
            Err(io::Error::other("the simulated machine is off"))
        } else {
            Ok(())
        }
    }

    fn operation(&self) -> io::Result<()> {
        self.alive()?;
        let mut state = self.state.lock().unwrap();
        state.off |= state.dies_at_operation == Some(state.operations);
        state.operations += 1;
        drop(state);
        self.alive()
    }

    /// Whether the flush is to be done.
    fn flush(&self) -> io::Result<bool> {
        self.operation()?;
        let mut state = self.state.lock().unwrap();
        state.off |= state.dies_at_flush == Some(state.flushes);
        let swallowed = state.swallow == Some(state.flushes);
        state.flushes += 1;
        drop(state);
        self.alive()?;
        Ok(!swallowed)
    }
}

/// Who holds which lock: file, opening, kind.
#[derive(Debug, Default)]
struct Locks {
    held: Mutex<Vec<(u64, u64, LockKind)>>,
    openings: Mutex<u64>,
}

impl SimFs {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn power(&self) -> &Power {
        &self.power
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap()
    }

    /// The machine after power loss.
    pub fn power_cut(&self, seed: u64) -> Arc<Self> {
        let mut rng = Rng::new(seed ^ 0x5eed);
        let mut names = self.names().clone();
        let mut kept = names.durable.clone();
        for change in &names.pending {
            if rng.one_in(2) {
                apply(&mut kept, change);
            }
        }
        kept.retain(|path, _| !path.starts_with("/run"));
        names.files = names
            .files
            .iter()
            .map(|(inode, file)| (*inode, file.power_cut(rng.next())))
            .filter(|(inode, _)| kept.values().any(|kept| kept == inode))
            .collect();
        names.boot += 1;
        (names.now, names.durable, names.pending) = (kept.clone(), kept, Vec::new());
        Arc::new(Self { names: Mutex::new(names), ..Self::default() })
    }

    /// The machine after the power loss that is the worst for those who rely on an order: of what was not flushed, the places in files
    /// that `keep` names have their last content, and all others what was durable. Names are durable.
    pub fn power_cut_keeping(&self, longest: bool, keep: impl Fn(&Path, u64) -> bool) -> Arc<Self> {
        let mut names = self.names().clone();
        let kept: BTreeMap<PathBuf, u64> =
            names.now.clone().into_iter().filter(|(path, _)| !path.starts_with("/run")).collect();
        names.files = kept
            .iter()
            .map(|(path, inode)| (*inode, names.files[inode].power_cut_keeping(longest, |at| keep(path, at))))
            .collect();
        names.boot += 1;
        (names.now, names.durable, names.pending) = (kept.clone(), kept, Vec::new());
        Arc::new(Self { names: Mutex::new(names), ..Self::default() })
    }

    /// The machine as the next process finds it after a kill: nothing is lost, nothing more is durable.
    pub fn kill(&self) -> Arc<Self> {
        let mut names = self.names().clone();
        names.files = names.files.iter().map(|(inode, file)| (*inode, file.kill())).collect();
        Arc::new(Self { names: Mutex::new(names), ..Self::default() })
    }

    pub fn exists(&self, path: &str) -> bool {
        self.names().now.contains_key(Path::new(path))
    }

    fn inode(&self, path: &Path) -> io::Result<u64> {
        self.power.alive()?;
        self.names().now.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn change(&self, change: Vec<(PathBuf, Option<u64>)>) -> io::Result<()> {
        self.power.operation()?;
        let mut names = self.names();
        apply(&mut names.now, &change);
        names.pending.push(change);
        Ok(())
    }

    fn opened(&self, path: &Path, inode: u64) -> Arc<dyn DiskFile> {
        let mut openings = self.locks.openings.lock().unwrap();
        *openings += 1;
        Arc::new(SimFile {
            storage: Arc::clone(&self.names().files[&inode]),
            inode,
            opening: *openings,
            in_memory: path.starts_with("/run"),
            power: Arc::clone(&self.power),
            locks: Arc::clone(&self.locks),
        })
    }
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, change: &[(PathBuf, Option<u64>)]) {
    for (path, inode) in change {
        match inode {
            Some(inode) => names.insert(path.clone(), *inode),
            None => names.remove(path),
        };
    }
}

impl FileSystem for SimFs {
    fn open(&self, path: &Path, _mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.opened(path, self.inode(path)?))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if self.inode(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = self.names().files.keys().last().copied().unwrap_or(0) + 1;
        self.change(vec![(path.to_owned(), Some(inode))])?;
        self.names().files.insert(inode, SimStorage::new());
        Ok(self.opened(path, inode))
    }

    fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        let inode = self.inode(from)?;
        if !replace && self.inode(to).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.change(vec![(to.to_owned(), Some(inode)), (from.to_owned(), None)])
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inode(path)?;
        self.change(vec![(path.to_owned(), None)])
    }

    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        if !self.power.flush()? {
            return Ok(());
        }
        let mut names = self.names();
        let pending = std::mem::take(&mut names.pending);
        for change in pending {
            if change.iter().any(|(path, _)| path.parent() == Some(folder)) {
                apply(&mut names.durable, &change);
            } else {
                names.pending.push(change);
            }
        }
        Ok(())
    }

    fn create_dir_all(&self, _folder: &Path) -> io::Result<()> {
        self.power.alive()
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        let inside = |path: &PathBuf| {
            (path.parent() == Some(folder)).then(|| path.file_name()).flatten().map(Into::into)
        };
        Ok(self.names().now.keys().filter_map(inside).collect())
    }

    fn metadata(&self, path: &Path) -> io::Result<FileMeta> {
        let inode = self.inode(path)?;
        let len = self.names().files[&inode].len()?;
        let id = FileId { dev: 1, inode };
        Ok(FileMeta { id, kind: FileKind::File, len, allocated: len, modified: 0 })
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        self.power.alive()?;
        Ok(path.to_owned())
    }

    fn free_space(&self, _folder: &Path) -> io::Result<u64> {
        // Now much, now little: what is done to save space is done at some places and not at others.
        let state = self.power.state.lock().unwrap();
        let changing = if state.operations.is_multiple_of(2) { 1 << 30 } else { 1 << 40 };
        Ok(state.room.unwrap_or(changing))
    }

    fn holder(&self, _id: FileId) -> Option<Holder> {
        None
    }

    fn boot_id(&self) -> io::Result<[u8; 16]> {
        Ok([self.names().boot; 16])
    }
}

#[derive(Debug)]
struct SimFile {
    storage: Arc<SimStorage>,
    inode: u64,
    opening: u64,
    in_memory: bool,
    power: Arc<Power>,
    locks: Arc<Locks>,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.locks.held.lock().unwrap().retain(|(_, opening, _)| *opening != self.opening);
    }
}

impl Storage for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.power.alive()?;
        self.storage.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.power.alive()?;
        self.storage.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.power.operation()?;
        if self.in_memory {
            self.power.memory_write()?;
        }
        self.storage.write_at(buf, offset)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.power.operation()?;
        self.storage.zero_range(offset, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.power.operation()?;
        self.storage.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.power.operation()?;
        self.storage.allocate(offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        if self.power.flush()? { self.storage.flush() } else { Ok(()) }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.storage.next_data(offset)
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        self.storage.next_hole(offset)
    }
}

impl DiskFile for SimFile {
    fn id(&self) -> FileId {
        FileId { dev: 1, inode: self.inode }
    }

    fn lock(&self, kind: LockKind) -> io::Result<()> {
        let mut held = self.locks.held.lock().unwrap();
        let refused = held.iter().any(|(inode, opening, other)| {
            let exclusive = kind == LockKind::Exclusive || *other == LockKind::Exclusive;
            *inode == self.inode && *opening != self.opening && exclusive
        });
        if refused {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        held.retain(|(_, opening, _)| *opening != self.opening);
        held.push((self.inode, self.opening, kind));
        Ok(())
    }

    fn unlock(&self) -> io::Result<()> {
        self.locks.held.lock().unwrap().retain(|(_, opening, _)| *opening != self.opening);
        Ok(())
    }

    fn punches(&self) -> bool {
        true
    }

    fn may_share(&self, from: &dyn DiskFile) -> bool {
        self.power.state.lock().unwrap().shares && from.id().dev == 1
    }

    /// Until the next flush each sector of the range may be what it was, a hole, or what it is to be, as after a write. What
    /// the other file got since its last flush counts, and need not be durable there.
    fn share_range(
        &self,
        from: &dyn DiskFile,
        from_offset: u64,
        to_offset: u64,
        len: u64,
    ) -> io::Result<Shared> {
        const PAGE: u64 = 4096;
        if !self.may_share(from) || from_offset % PAGE != to_offset % PAGE {
            return Ok(Shared::Nothing);
        }
        let first = from_offset.next_multiple_of(PAGE);
        let end = (from_offset + len).min(from.len()?) / PAGE * PAGE;
        if first >= end {
            return Ok(Shared::Nothing);
        }
        let (start, len) = (first - from_offset, end - first);
        let to = |at: u64| to_offset + start + (at - first);
        self.power.operation()?;
        if self.storage.len()? < to(end) {
            self.storage.set_len(to(end))?;
        }
        self.storage.zero_range(to(first), len)?;
        let mut at = first;
        while let Some(data) = from.next_data(at)?.filter(|data| *data < end) {
            let hole = from.next_hole(data)?.min(end);
            let mut bytes = vec![0; usize::try_from(hole - data).unwrap()];
            from.read_at(&mut bytes, data)?;
            self.power.operation()?;
            self.storage.write_at(&bytes, to(data))?;
            at = hole;
        }
        self.power.state.lock().unwrap().shared_bytes += len;
        Ok(Shared::Space { start, len })
    }
}

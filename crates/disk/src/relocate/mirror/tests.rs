use super::*;
use crate::fs::HostFs;
use std::{
    path::Path,
    sync::atomic::AtomicUsize,
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A file whose writes of `held` wait until they are let go, and that fails writes of `fails` after half of them.
#[derive(Debug)]
struct Odd {
    file: Arc<dyn DiskFile>,
    held: u8,
    arrived: AtomicBool,
    let_go: AtomicBool,
    fails: u8,
    writes: AtomicUsize,
}

impl Odd {
    fn new(folder: &Path, name: &str, held: u8, fails: u8) -> Arc<Self> {
        let file = HostFs::shared().create_new(&folder.join(name)).unwrap();
        let no = || AtomicBool::new(false);
        Arc::new(Self { file, held, arrived: no(), let_go: no(), fails, writes: AtomicUsize::new(0) })
    }
}

fn until(what: impl Fn() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < limit, "it does not come about");
        thread::yield_now();
    }
}

impl Storage for Odd {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.writes.fetch_add(1, SeqCst);
        if buf[0] == self.held {
            self.arrived.store(true, SeqCst);
            until(|| self.let_go.load(SeqCst));
        }
        if buf[0] == self.fails {
            self.file.write_at(&buf[..buf.len() / 2], offset)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_at(buf, offset)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.zero_range(offset, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.file.next_data(offset)
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        self.file.next_hole(offset)
    }
}

impl DiskFile for Odd {
    fn id(&self) -> FileId {
        self.file.id()
    }

    fn lock(&self, kind: LockKind) -> io::Result<()> {
        self.file.lock(kind)
    }

    fn unlock(&self) -> io::Result<()> {
        self.file.unlock()
    }

    fn punches(&self) -> bool {
        self.file.punches()
    }
}

fn byte(file: &dyn DiskFile, at: u64) -> u8 {
    let mut byte = [0];
    file.read_at(&mut byte, at).unwrap();
    byte[0]
}

#[test]
fn of_two_writes_to_one_place_the_same_one_is_the_later_in_both_files() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Odd::new(folder.path(), "old", 0, 0), Odd::new(folder.path(), "new", 1, 0));
    let mirror = Mirror::new(old.clone(), new.clone());
    thread::scope(|scope| {
        scope.spawn(|| mirror.write_at(&[1; 512], 4096).unwrap());
        // It is in the old file, and on its way into the new one.
        until(|| new.arrived.load(SeqCst));
        let second = scope.spawn(|| mirror.write_at(&[2; 512], 4096).unwrap());
        // Elsewhere nobody waits.
        mirror.write_at(&[3; 512], 0).unwrap();
        until(|| mirror.ranges.len() == 2 || second.is_finished());
        new.let_go.store(true, SeqCst);
    });
    assert_eq!((byte(&*old, 4096), byte(&*new, 4096)), (2, 2));
    assert_eq!((byte(&*old, 0), byte(&*new, 0)), (3, 3));
    assert!(mirror.failure().is_none());
}

#[test]
fn a_file_that_is_not_alike_any_more_is_never_taken_for_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let of = |old_fails, new_fails, name: &str| {
        let old = Odd::new(folder.path(), &format!("{name}-old"), 0, old_fails);
        (old.clone(), Odd::new(folder.path(), &format!("{name}-new"), 0, new_fails))
    };
    // Half of it is in the old file.
    let (old, new) = of(7, 0, "a");
    let mirror = Mirror::new(old, new.clone());
    assert_eq!(mirror.write_at(&[7; 512], 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(mirror.failure().unwrap().kind(), io::ErrorKind::StorageFull);
    assert!(mirror.failure().is_some(), "also when it was told before");
    // The new one only: the guest does not notice, and nothing more goes there.
    let (old, new) = of(0, 7, "b");
    let mirror = Mirror::new(old.clone(), new.clone());
    mirror.write_at(&[7; 512], 0).unwrap();
    assert!(mirror.failure().is_some());
    mirror.write_at(&[8; 512], 0).unwrap();
    assert_eq!((byte(&*old, 0), new.writes.load(SeqCst)), (8, 1));
}

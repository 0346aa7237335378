//! Media that do not give all bytes back: which are lost is told to the sector, and the rest is saved.

use crate::support::{assert_same, child_of, dynamic, folder, open, report, stamp, with_shadow};
use backstay_disk::{
    Backend as _, BadRange, ConvertError, ConvertReport, ConvertRequest, ConvertTo, DiskOptions, convert,
    fs::{DiskFile, FileId, FileMeta, FileSystem, Holder, HostFs, LockKind, OpenMode},
};
use backstay_vhd::Storage;
use std::{
    ffi::OsString,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

/// The host's files, of which one has places that cannot be read.
#[derive(Debug)]
struct BadFs {
    host: Arc<dyn FileSystem>,
    file: PathBuf,
    lost: Vec<Range<u64>>,
}

#[derive(Debug)]
struct BadFile {
    file: Arc<dyn DiskFile>,
    lost: Vec<Range<u64>>,
}

impl FileSystem for BadFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.host.open(path, mode)?;
        let is_it = self.host.metadata(&self.file)?.id == file.id();
        let lost = if is_it { self.lost.clone() } else { Vec::new() };
        Ok(Arc::new(BadFile { file, lost }))
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.host.create_new(path)
    }
    fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        self.host.rename(from, to, replace)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.host.remove(path)
    }
    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        self.host.sync_dir(folder)
    }
    fn create_dir_all(&self, folder: &Path) -> io::Result<()> {
        self.host.create_dir_all(folder)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        self.host.list(folder)
    }
    fn metadata(&self, path: &Path) -> io::Result<FileMeta> {
        self.host.metadata(path)
    }
    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        self.host.canonicalize(path)
    }
    fn free_space(&self, folder: &Path) -> io::Result<u64> {
        self.host.free_space(folder)
    }
    fn holder(&self, id: FileId) -> Option<Holder> {
        self.host.holder(id)
    }
    fn boot_id(&self) -> io::Result<[u8; 16]> {
        self.host.boot_id()
    }
}

impl Storage for BadFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        if self.lost.iter().any(|lost| lost.start < end && offset < lost.end) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
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

impl DiskFile for BadFile {
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

const SIZE: u64 = 12 << 20;

fn run(
    file: &Path,
    lost: &[Range<u64>],
    source: &Path,
    target: &Path,
    skip_bad: bool,
) -> Result<ConvertReport, ConvertError> {
    let fs: Arc<dyn FileSystem> =
        Arc::new(BadFs { host: HostFs::shared(), file: file.to_owned(), lost: lost.to_vec() });
    let request =
        ConvertRequest { skip_bad, ..ConvertRequest::new(source.into(), target.into(), ConvertTo::Raw) };
    convert(&fs, &request, &|_| {}, &AtomicBool::new(false))
}

fn range(offset: u64, len: u64, file: &Path, at: u64) -> BadRange {
    BadRange { offset, len, file: file.to_owned(), file_offset: Some(at) }
}

#[test]
fn lost_sectors_of_a_raw_disk_become_zeros_and_are_told_exactly() {
    let folder = folder();
    let (source, target) = (folder.path().join("a.raw"), folder.path().join("b.raw"));
    let mut model = stamp(0, SIZE, 1);
    std::fs::write(&source, &model).unwrap();
    // One sector, some across the border of what one thread copies at a time, not whole sectors, and the last.
    let lost = [
        (5 << 20)..(5 << 20) + 512,
        (4 << 20) - 1024..(4 << 20) + 1536,
        (7 << 20) + 100..(7 << 20) + 600,
        SIZE - 512..SIZE,
    ];
    let expected = [((4 << 20) - 1024, 2560), (5 << 20, 512), (7 << 20, 1024), (SIZE - 512, 512)];
    let refused = run(&source, &lost[..1], &source, &target, false).unwrap_err();
    let words = report(&refused);
    assert!(words.contains("512 bytes from 5242880 of the disk, at 5242880 in "), "{words}");
    assert!(words.contains("a.raw") && words.contains("--skip-bad"), "{words}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left of it");

    let done = run(&source, &lost, &source, &target, true).unwrap_or_else(|e| panic!("{}", report(&e)));
    assert_eq!(done.bad, expected.map(|(at, len)| range(at, len, &source, at)));
    for (at, len) in expected {
        model[usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap()].fill(0);
    }
    assert_same(&std::fs::read(&target).unwrap(), &model, "all but the lost sectors");
}

#[test]
fn a_lost_sector_of_a_parent_is_told_with_the_parents_name() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let base = dynamic(folder.path(), "a.vhdx", SIZE);
    let disk = open(&base, DiskOptions::default());
    disk.write(0, &stamp(0, 4 << 20, 1)).unwrap();
    disk.close().unwrap();
    child_of(&base, &path("b.avhdx"));
    let disk = open(&path("b.avhdx"), with_shadow(folder.path()));
    disk.write(8192, &stamp(8192, 8192, 2)).unwrap();
    disk.close().unwrap();
    let disk = open(&path("b.avhdx"), DiskOptions::read_only());
    let map = backstay_disk::map_file(&HostFs::shared(), &base, &DiskOptions::default()).unwrap();
    drop(disk);
    let backstay_vhd::map::MapKind::Data { file_offset } = map[0].kind else { panic!("{:?}", map[0]) };
    // Two sectors before what the child holds, and three below it, which nobody reads.
    let lost = file_offset + 8192 - 1024..file_offset + 8192 + 1536;
    let done = run(&base, std::slice::from_ref(&lost), &path("b.avhdx"), &path("c.raw"), true).unwrap();
    assert_eq!(done.bad, [range(8192 - 1024, 1024, &base, file_offset + 8192 - 1024)]);
    let content = std::fs::read(path("c.raw")).unwrap();
    assert_same(&content[8192..16384], &stamp(8192, 8192, 2), "the child's own");
    assert_eq!(content[8192 - 1024..8192], [0; 1024]);
    assert_same(&content[16384..4 << 20], &stamp(16384, (4 << 20) - 16384, 1), "the rest");
}

#[test]
fn only_lost_bytes_are_skipped_and_not_a_full_disk() {
    let folder = folder();
    let source = folder.path().join("a.raw");
    std::fs::write(&source, stamp(0, SIZE, 1)).unwrap();
    let done = run(&source, &[], &source, &folder.path().join("b.raw"), true).unwrap();
    assert_eq!(done.bad, []);
    assert_same(&std::fs::read(folder.path().join("b.raw")).unwrap(), &stamp(0, SIZE, 1), "a good disk");
}

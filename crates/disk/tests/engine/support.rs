//! What the tests share.

use backstay_disk::{Backend, Disk, DiskOptions, Identity, NewDisk, create_disk, fs::HostFs};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

pub const SECTOR: u64 = 512;
pub const BLOCK_SIZE: u32 = 512 << 10;

/// Both formats of disks that grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Vhd,
    Vhdx,
}

impl Form {
    /// A name of a first disk.
    pub fn disk(self, name: &str) -> String {
        format!("{name}.{}", if self == Self::Vhd { "vhd" } else { "vhdx" })
    }

    /// A name of a layer.
    pub fn layer(self, name: &str) -> String {
        format!("{name}.{}", if self == Self::Vhd { "avhd" } else { "avhdx" })
    }
}

/// The smallest blocks of the format that a name stands for, so that small disks have several.
pub fn block_size(path: &Path) -> u32 {
    let vhdx = path.extension().is_some_and(|extension| extension == "vhdx" || extension == "avhdx");
    if vhdx { 1 << 20 } else { BLOCK_SIZE }
}

/// A folder for disks. In memory where possible: these tests sync a lot.
pub fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// Options with a shadow folder beside the disks, as the product uses them.
pub fn with_shadow(folder: &Path) -> DiskOptions {
    DiskOptions { runtime_dir: Some(folder.join("shadow")), ..DiskOptions::default() }
}

pub fn dynamic(folder: &Path, name: &str, size: u64) -> PathBuf {
    let path = folder.join(name);
    make(&path, &NewDisk::Dynamic { size, block_size: block_size(&path) });
    path
}

pub fn child_of(parent: &Path, path: &Path) {
    make(path, &NewDisk::Differencing { parent: parent.to_owned(), block_size: block_size(path) });
}

pub fn make(path: &Path, what: &NewDisk) {
    create_disk(&HostFs::shared(), path, what, Identity::fresh()).unwrap();
}

pub fn open(path: &Path, options: DiskOptions) -> Arc<Disk> {
    Disk::open(path, options).unwrap_or_else(|error| panic!("{}", report(&error)))
}

/// An error with its causes, as a user reads it.
pub fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

pub fn read_all(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.size()).unwrap()];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

/// The first differing sector, for a readable failure.
#[track_caller]
pub fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        let sector = at / 512;
        panic!(
            "{what}: sector {sector} (offset {:#x}) differs: found {:02x?}…, expected {:02x?}…",
            sector * 512,
            &found[sector * 512..sector * 512 + 20],
            &expected[sector * 512..sector * 512 + 20]
        );
    }
}

/// Content that tells its place and its writer in every sector.
pub fn stamp(offset: u64, len: u64, writer: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for sector in offset / SECTOR..(offset + len) / SECTOR {
        let mut one = [0x5a; 512];
        one[..8].copy_from_slice(&sector.to_le_bytes());
        one[8..16].copy_from_slice(&writer.to_le_bytes());
        bytes.extend(one);
    }
    bytes
}

/// This test program, to be run as another process that does one of its ignored tests.
pub fn other_process(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", test, "--nocapture"]);
    command
}

/// What 7-Zip reads from a disk, through its whole chain.
pub fn seven_zip(path: &Path) -> Vec<u8> {
    let out = folder();
    let mut command = Command::new("7zz");
    let kind = if block_size(path) == BLOCK_SIZE { "-tVHD" } else { "-tVHDX" };
    command.args(["x", kind, "-y"]).arg(format!("-o{}", out.path().display())).arg(path);
    let run = command.output().unwrap();
    assert!(run.status.success(), "7zz {}: {}", path.display(), String::from_utf8_lossy(&run.stdout));
    let only = std::fs::read_dir(out.path()).unwrap().next().unwrap().unwrap().path();
    std::fs::read(only).unwrap()
}

/// Whether a program is there; says so if not.
pub fn have(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()));
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

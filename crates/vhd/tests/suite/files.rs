//! Real files: a plain storage, the images of other systems, and the programs that act as oracles.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, OnceLock},
};

use backstay_vhd::{
    Image, OpenOptions, Source, Storage,
    create::{self, CreateOptions},
};

/// A file without any cleverness.
#[derive(Debug)]
pub struct FileStorage(pub File);

impl FileStorage {
    pub fn open(path: &Path) -> Arc<Self> {
        Arc::new(Self(File::options().read(true).write(true).open(path).unwrap()))
    }

    pub fn open_read_only(path: &Path) -> Arc<Self> {
        Arc::new(Self(File::open(path).unwrap()))
    }

    pub fn create(path: &Path) -> Arc<Self> {
        Arc::new(Self(File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap()))
    }
}

impl Storage for FileStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }
    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.write_all_at(&vec![0; len as usize], offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < self.len()?).then_some(offset))
    }
    fn next_hole(&self, _offset: u64) -> io::Result<u64> {
        self.len()
    }
}

/// Makes a disk and opens it for writing.
pub fn create_file(path: &Path, options: &CreateOptions) -> Image {
    let storage = FileStorage::create(path);
    create::plan(options).expect("the options are valid").execute(storage.as_ref()).expect("the plan runs");
    open_file(path)
}

pub fn open_file(path: &Path) -> Image {
    let options = OpenOptions { writable: true, ..OpenOptions::default() };
    Image::open(FileStorage::open(path), &options).expect("the disk opens")
}

/// Calls `each` with the content of a chain (top first), a part at a time.
pub fn read_chain(chain: &[Image], mut each: impl FnMut(&[u8])) {
    const PART: u64 = 1 << 20;
    let size = chain[0].info().size;
    let mut offset = 0;
    let mut bytes = Vec::new();
    while offset < size {
        let len = PART.min(size - offset);
        bytes.clear();
        bytes.resize(len as usize, 0);
        read_layer(chain, offset, &mut bytes);
        each(&bytes);
        offset += len;
    }
}

fn read_layer(chain: &[Image], offset: u64, out: &mut [u8]) {
    let Some((top, parents)) = chain.split_first() else { return };
    let inside = top.info().size.saturating_sub(offset).min(out.len() as u64);
    let mut extents = Vec::new();
    top.resolve_read(offset.min(top.info().size), inside, &mut extents).expect("the range resolves");
    let mut at = 0;
    for extent in extents {
        let part = &mut out[at..at + extent.len as usize];
        match extent.source {
            Source::Data { file_offset } => {
                top.storage().read_at(part, file_offset).expect("the data is there")
            }
            Source::Zero => part.fill(0),
            Source::Parent => read_layer(parents, offset + at as u64, part),
        }
        at += extent.len as usize;
    }
}

/// Whether a program can be run; says so if not.
pub fn have(program: &str) -> bool {
    let found =
        Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

/// Runs a program; its output.
pub fn run(program: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}{}", String::from_utf8_lossy(&output.stdout));
    output.stdout
}

/// The content of a disk as 7-Zip sees it, parents included.
pub fn seven_zip(path: &Path) -> Vec<u8> {
    run("7zz", &["x", "-so", "-tVHD", path.to_str().unwrap()])
}

/// The content of a disk as QEMU sees it.
pub fn qemu(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("qemu-raw");
    run("qemu-img", &["convert", "-f", "vpc", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}

/// The unpacked images of other systems; `None`, said once, where there are none.
pub fn fixtures() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(unpack).as_deref()
}

fn unpack() -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures");
    let folder = std::env::var_os("BACKSTAY_FIXTURES").map_or(default, PathBuf::from).join("disks");
    let archive = folder.join("images.tar.xz");
    let Ok(metadata) = fs::metadata(&archive) else {
        println!("skipped: {} is absent (set BACKSTAY_FIXTURES)", archive.display());
        return None;
    };
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("vhd-fixtures-{}", metadata.len()));
    if !to.is_dir() {
        // Under another name first: tests of another process may look at the same time.
        let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        run("tar", &["-xJf", archive.to_str().unwrap(), "-C", temporary.path().to_str().unwrap()]);
        fs::copy(folder.join("expected.json"), temporary.path().join("expected.json")).unwrap();
        if fs::rename(temporary.path(), &to).is_ok() {
            let _gone = temporary.keep();
        }
    }
    Some(to)
}

/// A file of the fixtures, decompressed if needed.
pub fn fixture_file(folder: &Path, path: &str, scratch: &Path) -> PathBuf {
    let packed = folder.join(path);
    let program = match packed.extension().and_then(|ext| ext.to_str()) {
        Some("bz2") => "bzip2",
        Some("gz") => "gzip",
        _ => return packed,
    };
    let out = scratch.join(packed.file_stem().unwrap());
    let mut child =
        Command::new(program).arg("-dc").arg(&packed).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut to = File::create(&out).unwrap();
    io::copy(&mut child.stdout.take().unwrap().by_ref(), &mut to).unwrap();
    assert!(child.wait().unwrap().success(), "{program} {}", packed.display());
    out
}

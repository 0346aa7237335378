//! Writing a whole chain as one new file, and making sure of it. Blocking.

use crate::failure::Failure;
use backstay_api::ProblemCode;
use backstay_disk::{
    Backend, BadRange, ConvertError, ConvertRequest, ConvertTo, DEFAULT_BLOCK_SIZE, Disk, DiskOptions,
    convert, fs::HostFs,
};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// What is compared at a time, in bytes.
const PIECE: u64 = 1 << 20;

fn look() -> DiskOptions {
    crate::disks::look_options()
}

/// Writes what `source` shows through its chain to the new file `target`: fixed if the file at the bottom is, else dynamic.
/// `progress` gets bytes done and bytes in total; setting `cancel` ends it soon, and no file is left. With `skip_bad` sectors
/// that cannot be read become zeros, and are told.
///
/// # Errors
/// `cancelled`, `no-space`, `exists`, `damaged`, `in-use`.
pub fn flatten(
    source: &Path,
    target: &Path,
    skip_bad: bool,
    progress: &(dyn Fn(u64, u64) + Sync),
    cancel: &AtomicBool,
) -> Result<Vec<BadRange>, Failure> {
    let request = ConvertRequest {
        options: look(),
        skip_bad,
        ..ConvertRequest::new(source.into(), target.into(), form_of(source)?)
    };
    let twice = |at: backstay_disk::Progress| progress(at.done / 2, at.total);
    let bad = convert(&HostFs::shared(), &request, &twice, cancel).map_err(failure)?.bad;
    let later = |done, total| progress(total / 2 + done / 2, total);
    let checked = compare(source, target, &bad, &later, cancel);
    if checked.is_err() {
        let _ = crate::durable::remove(target);
    }
    checked.map(|()| bad)
}

/// The form of the file at the bottom of the chain.
fn form_of(source: &Path) -> Result<ConvertTo, Failure> {
    let disk = Disk::open(source, look()).map_err(crate::disks::open_failure)?;
    let layers = disk.chain();
    let fixed = layers.last().is_none_or(|base| {
        base.image.as_ref().is_none_or(|image| image.disk_type() == backstay_vhd::DiskType::Fixed)
    });
    let _ = disk.close();
    Ok(if fixed { ConvertTo::Fixed } else { ConvertTo::Dynamic { block_size: DEFAULT_BLOCK_SIZE } })
}

fn failure(error: ConvertError) -> Failure {
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |cause| cause.source());
    let full = causes.into_iter().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull)
    });
    let code = match &error {
        _ if full => ProblemCode::NoSpace,
        ConvertError::Cancelled { .. } => ProblemCode::Cancelled,
        ConvertError::Target(backstay_disk::CreateError::NoSpace { .. }) => ProblemCode::NoSpace,
        ConvertError::Target(backstay_disk::CreateError::Exists { .. }) => ProblemCode::Exists,
        ConvertError::Source(backstay_disk::OpenError::InUse { .. }) => ProblemCode::InUse,
        ConvertError::Source(_) | ConvertError::Unreadable { .. } => ProblemCode::Damaged,
        _ => ProblemCode::Unavailable,
    };
    Failure::because(code, "a disk could not be written as one file", error)
}

/// Reads both disks and compares them, apart from what could not be read.
fn compare(
    source: &Path,
    target: &Path,
    bad: &[BadRange],
    progress: &dyn Fn(u64, u64),
    cancel: &AtomicBool,
) -> Result<(), Failure> {
    let open = |path: &Path| Disk::open(path, look()).map_err(crate::disks::open_failure);
    let (from, to) = (open(source)?, open(target)?);
    let read = |path: &Path, error| Failure::file("reading", path, error);
    let size = from.size();
    let differs = |offset| {
        Failure::new(
            ProblemCode::Damaged,
            format!(
                "{} is not what was written to it, near byte {offset}: its storage lost or changed data, and it was removed",
                target.display()
            ),
        )
    };
    if to.size() != size {
        return Err(differs(0));
    }
    let piece = usize::try_from(PIECE).unwrap_or(usize::MAX);
    let (mut here, mut there) = (vec![0; piece], vec![0; piece]);
    let mut at = 0;
    let mut bad = bad.iter().peekable();
    while at < size {
        if cancel.load(Relaxed) {
            return Err(crate::tasks::cancelled());
        }
        let until = bad.peek().map_or(size, |range| range.offset);
        if let Some(range) = bad.next_if(|range| range.offset <= at) {
            at = at.max(range.offset + range.len);
            continue;
        }
        let len = PIECE.min(until - at);
        let part = usize::try_from(len).unwrap_or(piece);
        if !(is_zero(&from, at, len) && is_zero(&to, at, len)) {
            from.read(at, &mut here[..part]).map_err(|e| read(source, e))?;
            to.read(at, &mut there[..part]).map_err(|e| read(target, e))?;
            if here[..part] != there[..part] {
                return Err(differs(at));
            }
        }
        at += len;
        progress(at, size);
    }
    Ok(())
}

/// Whether a range holds nothing, by the structures alone.
fn is_zero(disk: &Disk, at: u64, len: u64) -> bool {
    disk.block_status(at, len, 1).is_ok_and(|ranges| ranges.first().is_some_and(|r| r.zero && r.len >= len))
}

//! The body of the fuzz target: whatever a guest wrote, nothing panics, and what counts as free is inside of the volume.

use super::{Volume, ext, fat, identify, ntfs, space::volume_free};
use std::io;

/// Bytes of the volume that is played.
const LEN: u64 = 8 << 20;

/// Plays `data` as the start of a volume; the rest is zeros.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn fuzz_volume(data: &[u8]) {
    let read = |at: u64, buf: &mut [u8]| -> io::Result<()> {
        for (index, byte) in (at..).zip(buf.iter_mut()) {
            *byte = usize::try_from(index).ok().and_then(|index| data.get(index)).copied().unwrap_or(0);
        }
        Ok(())
    };
    let volume = Volume::new(&read, LEN, 512);
    assert!(identify(&volume).is_ok(), "everything can be read");
    // By name too: the signature alone keeps most input out.
    let found = [
        ext::free(&volume),
        fat::free(&volume),
        ntfs::free(&volume),
        volume_free(&volume).map(|(_, free)| free),
    ];
    for free in found.into_iter().flatten() {
        let free = free.finish(512);
        assert!(free.total() <= LEN, "more is free than there is");
        assert!(free.used_in(LEN, 1 << 20) == [(LEN, 1 << 20)], "something behind the end is free");
    }
}

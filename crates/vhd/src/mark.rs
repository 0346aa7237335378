//! The flag in the footer that tells other programs that a machine was saved while it used the disk.

use zerocopy::IntoBytes;

use crate::{
    Storage,
    errors::{IoContext, OpenError},
    format::footer::{DiskType, FOOTER_LEN},
    locate::{self, Place},
};

/// Sets or clears the flag "saved state" in the footer and its copy. The file must not be in use. Returns whether
/// anything was written; nothing is flushed.
///
/// # Errors
/// If the file is no VHD, or cannot be read or written.
pub fn mark_saved(storage: &dyn Storage, saved: bool) -> Result<bool, OpenError> {
    let len = storage.len().open_context("read the length of the file", 0)?;
    let found = locate::footer(storage, len)?;
    let wanted = u8::from(saved);
    // A short footer of old programs has no room for the flag's neighbours: left as it is.
    if found.footer.saved_state == wanted || found.place == Place::ShortEnd {
        return Ok(false);
    }
    let mut footer = found.footer;
    footer.saved_state = wanted;
    let footer = footer.sealed();
    if found.place == Place::End {
        let at = len - FOOTER_LEN as u64;
        storage.write_at(footer.as_bytes(), at).open_context("write the footer", at)?;
    }
    if matches!(footer.kind(), Some(DiskType::Dynamic | DiskType::Differencing)) {
        storage.write_at(footer.as_bytes(), 0).open_context("write the copy of the footer", 0)?;
    }
    Ok(true)
}

//! What a file says of itself and of the disk that it is made on, and nothing else: it can be told where the rest of the file is
//! damaged, its parent is away, or somebody has it open.

use std::sync::Arc;

use thiserror::Error;
use uuid::Uuid;

use crate::{
    Format, Storage,
    errors::{IoContext, OpenError},
    format::footer::DiskType,
    locate, open, vhdx,
};

/// The ids by which a file is known and knows its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kinship {
    /// What its children name it by.
    pub identity: Uuid,
    /// What it names its parent by: none for a disk without parent, two for a VHDX whose parent was about to be written to.
    pub parents: Vec<Uuid>,
}

/// Why it cannot be told what a disk is made on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KinshipError {
    /// Of a VHD.
    #[error(transparent)]
    Vhd(#[from] OpenError),
    /// Of a VHDX.
    #[error(transparent)]
    Vhdx(#[from] vhdx::OpenError),
}

/// Reads the ids of a disk; none of a file that is no VHD and no VHDX.
///
/// # Errors
/// The file cannot be read, or it is a disk and just these structures are damaged.
pub fn kinship(storage: &Arc<dyn Storage>) -> Result<Option<Kinship>, KinshipError> {
    let len = storage.len().open_context("read the length of the file", 0)?;
    let mut start = [0; 8];
    if len >= start.len() as u64 {
        storage.read_at(&mut start, 0).open_context("read the start of the file", 0)?;
    }
    if Format::of_start(&start) == Some(Format::Vhdx) {
        return Ok(Some(vhdx::kinship(storage)?));
    }
    let found = match locate::footer(storage.as_ref(), len) {
        Err(OpenError::NotVhd) => return Ok(None),
        found => found?,
    };
    let mut parents = Vec::new();
    if found.footer.kind() == Some(DiskType::Differencing) {
        let at = found.footer.data_offset.get();
        let header = open::read_header(storage.as_ref(), at, found.data_end, len)?;
        parents.push(Uuid::from_bytes(header.parent_unique_id));
    }
    Ok(Some(Kinship { identity: Uuid::from_bytes(found.footer.unique_id), parents }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SimStorage;

    fn of(bytes: &[u8]) -> Result<Option<Kinship>, KinshipError> {
        let storage: Arc<dyn Storage> = SimStorage::from_bytes(bytes);
        kinship(&storage)
    }

    #[test]
    fn what_is_no_disk_is_nobodys_child() {
        for bytes in [&[][..], &[1; 100], &[0; 511], &[7; 4096]] {
            assert!(of(bytes).unwrap().is_none());
        }
    }

    #[test]
    fn a_vhdx_that_is_cut_off_is_not_taken_for_a_file_of_somebody_else() {
        assert!(matches!(of(b"vhdxfile and no more"), Err(KinshipError::Vhdx(_))));
    }
}

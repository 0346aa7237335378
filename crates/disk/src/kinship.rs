//! Whose child a file is: read without its lock and without its parent, so that it can be told of every file that can be read.

use crate::fs::{FileKind, FileSystem, OpenMode};
use backstay_vhd::{Kinship, Storage};
use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Why it is not known what a file is made on.
#[derive(Debug, thiserror::Error)]
#[error("what {} is made on cannot be read", path.display())]
pub struct KinshipError {
    /// The file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// The ids of a disk and of its parent; none of a file that is no disk with metadata, and of one that is gone.
///
/// # Errors
/// [`KinshipError`].
pub fn kinship(fs: &Arc<dyn FileSystem>, path: &Path) -> Result<Option<Kinship>, KinshipError> {
    let failed = |source: Box<dyn Error + Send + Sync>| KinshipError { path: path.to_owned(), source };
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let file = match fs.metadata(path) {
        Ok(meta) if meta.kind != FileKind::File => return Ok(None),
        Ok(_) => fs.open(path, OpenMode::Read),
        Err(error) => Err(error),
    };
    match file {
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(failed(error.into())),
        Ok(file) => backstay_vhd::kinship(&(file as Arc<dyn Storage>)).map_err(|error| failed(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Disk, DiskOptions, Identity, NewDisk, create_disk, fs::HostFs};

    #[test]
    fn a_child_is_known_by_its_head_whatever_became_of_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let (base, child) = (folder.path().join("base.vhd"), folder.path().join("child.vhd"));
        let (host, dynamic) = (HostFs::shared(), NewDisk::Dynamic { size: 8 << 20, block_size: 2 << 20 });
        create_disk(&host, &base, &dynamic, Identity::fresh()).unwrap();
        let differencing = NewDisk::Differencing { parent: base.clone(), block_size: 2 << 20 };
        create_disk(&host, &child, &differencing, Identity::fresh()).unwrap();
        let (below, above) =
            (kinship(&host, &base).unwrap().unwrap(), kinship(&host, &child).unwrap().unwrap());
        assert!(below.parents.is_empty());
        assert_eq!(above.parents, [below.identity]);
        assert_ne!(above.identity, below.identity);

        // Somebody has both open, and it is the same.
        let open = Disk::open(&child, DiskOptions::default()).unwrap();
        assert_eq!(kinship(&host, &child).unwrap().unwrap(), above);
        open.close().unwrap();
        // Its table is damaged and its parent is away: it cannot be opened any more.
        let mut bytes = std::fs::read(&child).unwrap();
        let table = usize::try_from(u64::from_be_bytes(bytes[528..536].try_into().unwrap())).unwrap();
        bytes[table..table + 4].fill(0);
        std::fs::write(&child, &bytes).unwrap();
        assert!(Disk::open(&child, DiskOptions::read_only()).is_err());
        std::fs::rename(&base, folder.path().join("away")).unwrap();
        assert_eq!(kinship(&host, &child).unwrap().unwrap(), above);
        // The head itself: it is a child of something, and nobody can tell of what.
        bytes[512 + 0x28] ^= 1;
        std::fs::write(&child, &bytes).unwrap();
        let refused = kinship(&host, &child).unwrap_err();
        assert!(refused.to_string().contains("child.vhd"), "{refused}");
        assert!(kinship(&host, &base).unwrap().is_none(), "gone");
        assert!(kinship(&host, folder.path()).unwrap().is_none(), "a folder");
    }
}

//! Hyper-V's folder layout: what is where below a folder that holds virtual machines.

use backstay_model::{CheckpointId, VmId, VmName};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Folder with the configurations.
const MACHINES: &str = "Virtual Machines";
/// Folder with new disks.
const DISKS: &str = "Virtual Hard Disks";
/// Folder with checkpoints.
const SNAPSHOTS: &str = "Snapshots";

/// A folder in Hyper-V's layout.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The layout that the configuration file `file` belongs to: the folder above `Virtual Machines`.
    #[must_use]
    pub fn of_config(file: &Path) -> Option<Self> {
        let folder = file.parent()?;
        let is_machines = folder.file_name()?.to_str()?.eq_ignore_ascii_case(MACHINES);
        if is_machines { Some(Self::new(folder.parent()?)) } else { None }
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `Virtual Machines`.
    #[must_use]
    pub fn machines(&self) -> PathBuf {
        self.root.join(MACHINES)
    }

    /// `Virtual Hard Disks`.
    #[must_use]
    pub fn disks(&self) -> PathBuf {
        self.root.join(DISKS)
    }

    /// `Snapshots`.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.root.join(SNAPSHOTS)
    }

    /// A machine's configuration.
    #[must_use]
    pub fn vm_config(&self, vm: VmId) -> PathBuf {
        self.machines().join(format!("{vm}.xml"))
    }

    /// A machine's folder for its saved state.
    #[must_use]
    pub fn vm_folder(&self, vm: VmId) -> PathBuf {
        self.machines().join(vm.to_string())
    }

    /// A saved machine's memory.
    #[must_use]
    pub fn vm_memory(&self, vm: VmId) -> PathBuf {
        self.vm_folder(vm).join(format!("{vm}.bin"))
    }

    /// What it takes to load it; while it exists the machine is saved.
    #[must_use]
    pub fn vm_descriptor(&self, vm: VmId) -> PathBuf {
        self.vm_folder(vm).join(format!("{vm}.vsv"))
    }

    /// The configuration as it was at a checkpoint.
    #[must_use]
    pub fn checkpoint_config(&self, checkpoint: CheckpointId) -> PathBuf {
        self.snapshots().join(format!("{checkpoint}.xml"))
    }

    /// A checkpoint's folder for its memory.
    #[must_use]
    pub fn checkpoint_folder(&self, checkpoint: CheckpointId) -> PathBuf {
        self.snapshots().join(checkpoint.to_string())
    }

    /// A checkpoint's memory stream.
    #[must_use]
    pub fn checkpoint_memory(&self, checkpoint: CheckpointId) -> PathBuf {
        self.checkpoint_folder(checkpoint).join(format!("{checkpoint}.bin"))
    }

    /// What it takes to load the stream.
    #[must_use]
    pub fn checkpoint_descriptor(&self, checkpoint: CheckpointId) -> PathBuf {
        self.checkpoint_folder(checkpoint).join(format!("{checkpoint}.vsv"))
    }

    /// A machine's folder for differencing disks.
    #[must_use]
    pub fn layers(&self, vm: VmId) -> PathBuf {
        self.snapshots().join(vm.to_string())
    }

    /// The name of a new differencing disk above `below`: `NAME_<GUID>.avhd`, where NAME is that of the first disk.
    #[must_use]
    pub fn new_layer(&self, vm: VmId, below: &Path, guid: Uuid) -> PathBuf {
        let name = Self::first_name(below);
        // 200 bytes leave room below NAME_MAX (255) for a GUID and an extension.
        let mut end = name.len().min(200);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        let extension = if is_vhdx(below) { "avhdx" } else { "avhd" };
        self.layers(vm).join(format!("{}_{:X}.{extension}", &name[..end], guid.hyphenated()))
    }

    /// The name of the first disk of a file's chain, without extension and without the GUID that a checkpoint added.
    #[must_use]
    pub fn first_name(file: &Path) -> String {
        let stem = file.file_stem().map_or_else(|| "disk".into(), |s| s.to_string_lossy().into_owned());
        match stem.rsplit_once('_') {
            Some((name, tail)) if is_layer(file) && Uuid::try_parse(tail).is_ok() => name.into(),
            _ => stem,
        }
    }

    /// A free name for a new disk of a machine: `NAME.vhdx`, `NAME-1.vhdx` …, or with another extension.
    #[must_use]
    pub fn new_disk(&self, name: &VmName, extension: &str, taken: impl Fn(&Path) -> bool) -> PathBuf {
        free_disk(&self.disks(), &name.file_stem(), extension, taken)
    }

    /// Looks below this folder for a file whose recorded path `old` does not exist: the longest tail of the old path
    /// that exists here. Both kinds of slashes separate.
    #[must_use]
    pub fn relocate(&self, old: &Path) -> Option<PathBuf> {
        let text = old.to_string_lossy();
        let parts: Vec<&str> =
            text.split(['/', '\\']).filter(|p| !p.is_empty() && *p != "." && *p != "..").collect();
        (1..=parts.len().min(4))
            .rev()
            .filter_map(|count| {
                let tail: PathBuf = parts.get(parts.len() - count..)?.iter().collect();
                let candidate = self.root.join(tail);
                candidate.is_file().then_some(candidate)
            })
            .next()
            .or_else(|| {
                let name = parts.last()?;
                [self.disks(), self.machines()].into_iter().map(|f| f.join(name)).find(|p| p.is_file())
            })
    }
}

/// Extension of new disks.
pub const NEW_DISK: &str = "vhdx";

/// A free name in a folder: `STEM.EXTENSION`, `STEM-1.EXTENSION` …
#[must_use]
pub fn free_disk(folder: &Path, stem: &str, extension: &str, taken: impl Fn(&Path) -> bool) -> PathBuf {
    let named = |n: u32| match n {
        0 => folder.join(format!("{stem}.{extension}")),
        n => folder.join(format!("{stem}-{n}.{extension}")),
    };
    (0u32..).map(named).find(|path| !taken(path)).unwrap_or_else(|| named(0))
}

/// The extension of a disk of the same format as `file`, which may be a layer: `vhdx`, else `vhd`.
#[must_use]
pub fn extension_like(file: &Path) -> &'static str {
    if is_vhdx(file) { "vhdx" } else { "vhd" }
}

fn is_vhdx(file: &Path) -> bool {
    has_extension(file, &["vhdx", "avhdx"])
}

/// Whether the file is a layer that a checkpoint made.
#[must_use]
pub fn is_layer(file: &Path) -> bool {
    has_extension(file, &["avhd", "avhdx"])
}

fn has_extension(file: &Path, wanted: &[&str]) -> bool {
    file.extension()
        .and_then(|e| e.to_str())
        .is_some_and(|e| wanted.iter().any(|wanted| e.eq_ignore_ascii_case(wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_keep_the_first_disks_name() {
        let layout = Layout::new("/v");
        let vm = VmId(Uuid::from_u128(1));
        let first = layout.new_layer(vm, Path::new("/d/my_disk.vhd"), Uuid::from_u128(2));
        assert_eq!(
            first,
            Path::new(
                "/v/Snapshots/00000000-0000-0000-0000-000000000001/my_disk_00000000-0000-0000-0000-000000000002.avhd"
            )
        );
        let second = layout.new_layer(vm, &first, Uuid::from_u128(3));
        assert!(second.ends_with("my_disk_00000000-0000-0000-0000-000000000003.avhd"), "{second:?}");
        let long = format!("/d/{}.vhd", "ж".repeat(120));
        let layer = layout.new_layer(vm, Path::new(&long), Uuid::from_u128(4));
        assert!(layer.file_name().unwrap().len() <= 255);
    }

    #[test]
    fn a_moved_file_is_found_by_the_longest_tail() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        std::fs::create_dir_all(layout.disks()).unwrap();
        std::fs::write(layout.disks().join("a.vhd"), b"x").unwrap();
        std::fs::write(folder.path().join("a.vhd"), b"y").unwrap();
        let windows = Path::new("D:\\VMs\\web\\Virtual Hard Disks\\a.vhd");
        assert_eq!(layout.relocate(windows), Some(layout.disks().join("a.vhd")));
        assert_eq!(layout.relocate(Path::new("/gone/b.vhd")), None);
    }
}

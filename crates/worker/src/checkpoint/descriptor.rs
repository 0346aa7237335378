//! The `.vsv` file: what it takes to load a memory stream. Format: docs/formats/saved-state.md.

use backstay_model::{CheckpointDisk, CheckpointId, MemoryMethod, VmId};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::{fmt, io};

/// [`Descriptor::format`]: tells our files from Hyper-V's own `.vsv`, which are binary.
pub const FORMAT: &str = "backstay-saved-state";
/// Newest [`Descriptor::version`] this program reads.
pub const VERSION: u32 = 1;
/// A descriptor is a few KiB; anything beyond is not ours.
const MAX_LEN: u64 = 1 << 20;

/// How the bytes of the `.bin` file are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StreamFormat {
    /// QEMU's migration stream in one zstd frame with content checksum.
    Zstd,
    /// QEMU's `mapped-ram` file: every page at its fixed place, sparse.
    MappedRam,
}

/// The virtual hardware that a stream fits: QEMU loads it only into the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Versioned QEMU machine type.
    pub machine_type: String,
    /// QEMU's name of the processor model.
    pub cpu_model: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Every drive and card by place and kind, sorted: `disk ide:0:0`, `nic 0 e1000`.
    pub devices: Vec<String>,
}

/// Content of a `.vsv` file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// The machine.
    pub vm: VmId,
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// Milliseconds since the Unix epoch at the instant the checkpoint shows.
    pub created_unix_ms: i64,
    /// QEMU that wrote the stream, for example `10.0.2`.
    pub qemu_version: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// The virtual hardware.
    pub hardware: Hardware,
    /// The guest executed at that instant; it was paused otherwise, and is paused again after loading.
    pub running: bool,
    /// How memory was captured.
    pub method: MemoryMethod,
    /// QEMU migration capabilities that loading needs, by QEMU's names; all others are off.
    pub capabilities: Vec<String>,
    /// Layout of the `.bin` file.
    pub stream: StreamFormat,
    /// Length of QEMU's stream in bytes, before compression; for `mapped-ram` the length of the file.
    pub stream_len: u64,
    /// Length of the `.bin` file in bytes.
    pub file_len: u64,
    /// CRC-32C of the `.bin` file.
    pub crc32c: u32,
    /// The disks' files that hold their content at that instant.
    pub disks: Vec<CheckpointDisk>,
    /// For a saved machine, what every file of its disks' chains was when they had been closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileStamp>,
}

/// What a file was at some instant: whoever writes to it changes this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    /// The file.
    pub path: PathBuf,
    /// Bytes.
    pub len: u64,
    /// Nanoseconds since the Unix epoch of its last change.
    pub modified_unix_ns: i64,
    /// Device and inode: a copy of the file is another one.
    pub identity: (u64, u64),
}

/// A descriptor that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// The file cannot be read.
    #[error("the descriptor {path} cannot be read")]
    Read {
        /// The `.vsv` file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not one of ours.
    #[error(
        "{path} does not describe a memory state of Backstay: states saved by Hyper-V cannot continue here, start the machine from the disks of the checkpoint instead"
    )]
    Foreign {
        /// The `.vsv` file.
        path: PathBuf,
    },
    /// Written by a later version.
    #[error("{path} has version {version}; this program reads up to {VERSION}: use a newer one")]
    TooNew {
        /// The `.vsv` file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Ours, but broken.
    #[error("the descriptor {path} is damaged")]
    Damaged {
        /// The `.vsv` file.
        path: PathBuf,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
}

/// Reads a `.vsv` file.
///
/// # Errors
/// [`DescriptorError`].
pub fn read_descriptor(path: &Path) -> Result<Descriptor, DescriptorError> {
    #[derive(Deserialize)]
    struct Head {
        format: String,
        version: u32,
    }
    let read = |source| DescriptorError::Read { path: path.into(), source };
    let foreign = || DescriptorError::Foreign { path: path.into() };
    if std::fs::metadata(path).map_err(read)?.len() > MAX_LEN {
        return Err(foreign());
    }
    let bytes = std::fs::read(path).map_err(read)?;
    let head: Head = serde_json::from_slice(&bytes).map_err(|_| foreign())?;
    if head.format != FORMAT {
        return Err(foreign());
    }
    if head.version > VERSION {
        return Err(DescriptorError::TooNew { path: path.into(), version: head.version });
    }
    serde_json::from_slice(&bytes).map_err(|source| DescriptorError::Damaged { path: path.into(), source })
}

/// Length and checksum of a `.bin` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Bytes.
    pub len: u64,
    /// CRC-32C.
    pub crc32c: u32,
}

/// What the host would load the stream into, and the stream as it is now.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// Version of the QEMU that would load it.
    pub qemu_version: String,
    /// `kvm` or `tcg`, as the machine would be started.
    pub accelerator: String,
    /// Virtual hardware of the configuration that would be started.
    pub hardware: Hardware,
    /// The `.bin` file; none if it is missing.
    pub memory_file: Option<FileFacts>,
}

/// Why a memory state cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// QEMU here is older than the one that wrote the state.
    QemuTooOld {
        /// It wrote the state.
        saved: String,
        /// It is installed here.
        here: String,
    },
    /// KVM's and TCG's device states differ.
    Accelerator {
        /// At the checkpoint.
        saved: String,
        /// Here.
        here: String,
    },
    /// One property of the virtual hardware differs.
    Hardware {
        /// Which.
        what: &'static str,
        /// At the checkpoint.
        saved: String,
        /// In the configuration.
        here: String,
    },
    /// The `.bin` file does not exist.
    Missing,
    /// The `.bin` file has another length.
    Length {
        /// By the descriptor.
        saved: u64,
        /// Of the file.
        here: u64,
    },
    /// A disk's file is not what it was.
    Disk {
        /// The file.
        path: PathBuf,
        /// What is different.
        what: String,
    },
    /// The `.bin` file's content changed.
    Checksum {
        /// By the descriptor.
        saved: u32,
        /// Of the file.
        here: u32,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QemuTooOld { saved, here } => {
                write!(f, "it was saved by QEMU {saved} and this host has the older {here}: upgrade QEMU")
            }
            Self::Accelerator { saved, here } => write!(
                f,
                "it was saved under {saved} and the machine would start under {here}: set the accelerator to {saved}"
            ),
            Self::Hardware { what, saved, here } => {
                write!(f, "{what} was {saved} and is now {here}")
            }
            Self::Missing => f.write_str("its memory file is missing"),
            Self::Disk { path, what } => {
                write!(f, "{} {what}, and the memory fits only what it was", path.display())
            }
            Self::Length { saved, here } => {
                write!(f, "its memory file has {here} bytes instead of {saved}: it was cut short or replaced")
            }
            Self::Checksum { saved, here } => {
                write!(f, "its memory file is damaged (CRC-32C {here:08x} instead of {saved:08x})")
            }
        }
    }
}

/// Decides whether a state can be loaded, before anything is torn down for it. A newer QEMU loads older states of the
/// same machine type.
///
/// # Errors
/// Every reason against it.
pub fn check_restorable(descriptor: &Descriptor, host: &HostFacts) -> Result<(), Vec<Reason>> {
    let mut reasons = Vec::new();
    if version_key(&host.qemu_version) < version_key(&descriptor.qemu_version) {
        let (saved, here) = (descriptor.qemu_version.clone(), host.qemu_version.clone());
        reasons.push(Reason::QemuTooOld { saved, here });
    }
    if host.accelerator != descriptor.accelerator {
        let (saved, here) = (descriptor.accelerator.clone(), host.accelerator.clone());
        reasons.push(Reason::Accelerator { saved, here });
    }
    reasons.extend(hardware_reasons(&descriptor.hardware, &host.hardware));
    reasons.extend(check_memory_file(descriptor, host.memory_file.as_ref()));
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

/// Why the `.bin` file is not what was saved; none: it is.
#[must_use]
pub fn check_memory_file(descriptor: &Descriptor, found: Option<&FileFacts>) -> Option<Reason> {
    match found {
        None => Some(Reason::Missing),
        Some(file) if file.len != descriptor.file_len => {
            Some(Reason::Length { saved: descriptor.file_len, here: file.len })
        }
        Some(file) if file.crc32c != descriptor.crc32c => {
            Some(Reason::Checksum { saved: descriptor.crc32c, here: file.crc32c })
        }
        Some(_) => None,
    }
}

fn hardware_reasons(saved: &Hardware, here: &Hardware) -> Vec<Reason> {
    let pairs = [
        ("the machine type", saved.machine_type.clone(), here.machine_type.clone()),
        ("the processor model", saved.cpu_model.clone(), here.cpu_model.clone()),
        ("the number of processors", saved.cpus.to_string(), here.cpus.to_string()),
        ("memory", format!("{} MiB", saved.memory_mib), format!("{} MiB", here.memory_mib)),
        ("the set of devices", saved.devices.join(", "), here.devices.join(", ")),
    ];
    let differ = pairs.into_iter().filter(|(_, saved, here)| saved != here);
    differ.map(|(what, saved, here)| Reason::Hardware { what, saved, here }).collect()
}

/// The leading numbers of a version: `10.0.2 (Debian 1:10.0.2+ds)` is 10, 0, 2.
fn version_key(version: &str) -> [u64; 3] {
    let end = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
    let mut numbers = version[..end].split('.').map(|n| n.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn descriptor() -> Descriptor {
        Descriptor {
            format: FORMAT.into(),
            version: VERSION,
            vm: VmId(Uuid::from_u128(1)),
            checkpoint: CheckpointId(Uuid::from_u128(2)),
            created_unix_ms: 1_700_000_000_000,
            qemu_version: "10.0.2".into(),
            accelerator: "tcg".into(),
            hardware: Hardware {
                machine_type: "pc-i440fx-10.0".into(),
                cpu_model: "max".into(),
                cpus: 1,
                memory_mib: 64,
                devices: vec!["disk ide:0:0".into()],
            },
            running: true,
            method: MemoryMethod::Background,
            capabilities: vec!["background-snapshot".into()],
            stream: StreamFormat::Zstd,
            stream_len: 1000,
            file_len: 100,
            crc32c: 7,
            disks: vec![],
            files: vec![],
        }
    }

    fn host() -> HostFacts {
        let d = descriptor();
        HostFacts {
            qemu_version: d.qemu_version,
            accelerator: d.accelerator,
            hardware: d.hardware,
            memory_file: Some(FileFacts { len: d.file_len, crc32c: d.crc32c }),
        }
    }

    #[test]
    fn the_same_or_a_newer_qemu_loads_it_an_older_one_does_not() {
        assert_eq!(check_restorable(&descriptor(), &host()), Ok(()));
        for newer in ["10.0.3", "10.1.0 (Debian 1:10.1)", "11.0.0"] {
            assert_eq!(
                check_restorable(&descriptor(), &HostFacts { qemu_version: newer.into(), ..host() }),
                Ok(())
            );
        }
        let reasons = check_restorable(&descriptor(), &HostFacts { qemu_version: "9.2.4".into(), ..host() })
            .unwrap_err();
        assert!(matches!(reasons[..], [Reason::QemuTooOld { .. }]), "{reasons:?}");
    }

    #[test]
    fn every_difference_is_named_at_once() {
        let mut other = host();
        other.accelerator = "kvm".into();
        other.hardware.memory_mib = 128;
        other.hardware.machine_type = "pc-q35-10.0".into();
        other.memory_file = None;
        let text: Vec<_> =
            check_restorable(&descriptor(), &other).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(text.len(), 4, "{text:?}");
        assert!(text.iter().any(|t| t.contains("64 MiB") && t.contains("128 MiB")), "{text:?}");
    }

    #[test]
    fn a_changed_or_cut_file_is_refused() {
        let changed = HostFacts { memory_file: Some(FileFacts { len: 100, crc32c: 8 }), ..host() };
        assert!(matches!(
            check_restorable(&descriptor(), &changed).unwrap_err()[..],
            [Reason::Checksum { .. }]
        ));
        let cut = HostFacts { memory_file: Some(FileFacts { len: 99, crc32c: 7 }), ..host() };
        assert!(matches!(check_restorable(&descriptor(), &cut).unwrap_err()[..], [Reason::Length { .. }]));
    }

    #[test]
    fn files_of_others_and_of_later_versions_are_told_apart_from_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.vsv");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_descriptor(&path)
        };
        assert_eq!(read(&serde_json::to_vec(&descriptor()).unwrap()).unwrap(), descriptor());
        assert!(matches!(read(b"\0\0vsv"), Err(DescriptorError::Foreign { .. })));
        let newer = Descriptor { version: VERSION + 1, ..descriptor() };
        assert!(matches!(read(&serde_json::to_vec(&newer).unwrap()), Err(DescriptorError::TooNew { .. })));
        let damaged = br#"{"format":"backstay-saved-state","version":1}"#;
        assert!(matches!(read(damaged), Err(DescriptorError::Damaged { .. })));
    }
}

//! Disks of other programs (qcow2, VMDK, VDI) as sources of a conversion. QEMU's `qemu-nbd` reads them, in a process of its
//! own under limits, and what it shows looks to the rest of the engine like a raw file. Nothing is unpacked on the way.
//!
//! These files come from anybody and name others by path. The names are read here first; a file outside of the folder of
//! the source is read only if that was asked for.

mod client;
mod header;
mod server;

pub use header::HeaderError;

use crate::fs::{DiskFile, FileKind, FileSystem, OpenMode, folder_of};
use client::NbdFile;
use header::{Reference, references};
use server::{Limits, Tool};
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

/// Most files that one disk may be made of.
const MOST_FILES: usize = 256;

/// Formats that QEMU reads for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignFormat {
    /// QEMU's own, versions 2 and 3.
    Qcow2,
    /// VMware's, in one file or several.
    Vmdk,
    /// VirtualBox's.
    Vdi,
}

impl ForeignFormat {
    /// The format a file name stands for: `.qcow2`, `.vmdk`, `.vdi`.
    #[must_use]
    pub fn of_name(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "qcow2" => Some(Self::Qcow2),
            "vmdk" => Some(Self::Vmdk),
            "vdi" => Some(Self::Vdi),
            _ => None,
        }
    }

    /// As QEMU calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
        }
    }
}

impl fmt::Display for ForeignFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a disk of another program is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignSource {
    /// What it is.
    pub format: ForeignFormat,
    /// Also read files outside of its folder that it names.
    pub outside: bool,
}

/// What a named file is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// What the file differs from.
    Parent,
    /// Its data.
    Data,
    /// A part of the disk.
    Extent,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parent => "parent",
            Self::Data => "data",
            Self::Extent => "part",
        })
    }
}

/// Why a disk of another program is not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForeignError {
    /// QEMU's tools are missing.
    #[error(
        "'{program}' is not installed, and {format} files are read by it: install the package 'qemu-utils'"
    )]
    NoTool {
        /// Which program.
        program: &'static str,
        /// Of which format the source is.
        format: ForeignFormat,
    },
    /// A file that belongs to the disk is not there or cannot be looked at.
    #[error("cannot look at {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The head breaks a rule.
    #[error("{} cannot be used as a {format}", path.display())]
    Header {
        /// Which file.
        path: PathBuf,
        /// What it was taken for.
        format: ForeignFormat,
        /// The rule.
        #[source]
        source: HeaderError,
    },
    /// It names a file somewhere else.
    #[error(
        "{} names {} as its {what}, which is outside of its folder: a file that came from somebody else could have any file of this host read that way; if you trust it, add --outside",
        path.display(),
        other.display()
    )]
    Outside {
        /// The file.
        path: PathBuf,
        /// What it names.
        other: PathBuf,
        /// What for.
        what: What,
    },
    /// It names something that is never read.
    #[error("{} names '{name}' as its {what}: {reason}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// As it is written.
        name: String,
        /// What for.
        what: What,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// More files than any disk needs.
    #[error("{} is made of more than {} files, or names itself", path.display(), MOST_FILES)]
    TooMany {
        /// The file.
        path: PathBuf,
    },
    /// QEMU refused it.
    #[error("QEMU cannot read {}: {words}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What it said.
        words: String,
    },
    /// QEMU did not answer.
    #[error("QEMU has not opened {} within {seconds} s; it was ended", path.display())]
    Silent {
        /// The file.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// The process or its socket.
    #[error("cannot read {} through QEMU", path.display())]
    Process {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody asked for it.
    #[error("interrupted while {} was opened", path.display())]
    Cancelled {
        /// The file.
        path: PathBuf,
    },
}

/// A disk of another program, open for reading. Dropping it ends the process that reads it.
#[derive(Debug)]
pub(crate) struct Foreign {
    /// What it shows.
    pub(crate) file: Arc<dyn DiskFile>,
    /// Bytes of the disk.
    pub(crate) size: u64,
    /// The files it is made of, the source first.
    pub(crate) files: Vec<PathBuf>,
}

impl Foreign {
    /// Checks what the source names, then has QEMU open it.
    pub(crate) fn open(
        fs: &Arc<dyn FileSystem>,
        path: &Path,
        how: ForeignSource,
        cancel: &AtomicBool,
    ) -> Result<Self, ForeignError> {
        let files = files_of(fs, path, how)?;
        let top = files.first().cloned().unwrap_or_else(|| path.to_owned());
        let id = fs.metadata(&top).map_err(|source| ForeignError::Io { path: top.clone(), source })?.id;
        let facts = server::probe(&top, how.format, cancel)?;
        // QEMU is asked as well: it reads the same header with other eyes.
        if facts.names_parent && files.len() < 2 {
            let reason = "QEMU sees a parent there that Backstay does not";
            return Err(ForeignError::Name { path: top, name: String::new(), what: What::Parent, reason });
        }
        let tool = Tool::start(&top, how.format, &Limits::SERVER)?;
        let file = NbdFile::connect(tool, &top, id, cancel)?;
        let size = file.size();
        Ok(Self { file: Arc::new(file), size, files })
    }
}

/// All files a disk is made of, itself first; refused where one of them may not be read.
pub(crate) fn files_of(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    how: ForeignSource,
) -> Result<Vec<PathBuf>, ForeignError> {
    let real = |path: &Path| {
        fs.canonicalize(path).map_err(|source| ForeignError::Io { path: path.to_owned(), source })
    };
    let top = real(path)?;
    let folder = folder_of(&top).to_owned();
    let (mut found, mut seen) = (vec![top.clone()], BTreeSet::from([top.clone()]));
    let mut waiting = vec![(top, how.format)];
    while let Some((path, format)) = waiting.pop() {
        for reference in named_by(fs, &path, format)? {
            let other = place(&path, &reference)?;
            let other = real(&other)?;
            if !how.outside && !other.starts_with(&folder) {
                return Err(ForeignError::Outside { path, other, what: reference.what });
            }
            let io = |source| ForeignError::Io { path: other.clone(), source };
            if fs.metadata(&other).map_err(io)?.kind != FileKind::File && !how.outside {
                return Err(wrong(&path, &reference, "it is no ordinary file"));
            }
            let next = format_of(fs, &path, &reference, &other)?;
            if !seen.insert(other.clone()) {
                // A part that is named twice is read twice; a parent cannot be its own.
                if reference.what == What::Parent {
                    return Err(ForeignError::TooMany { path });
                }
                continue;
            }
            if found.len() >= MOST_FILES {
                return Err(ForeignError::TooMany { path });
            }
            found.push(other.clone());
            waiting.extend(next.map(|format| (other, format)));
        }
    }
    Ok(found)
}

fn named_by(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    format: ForeignFormat,
) -> Result<Vec<Reference>, ForeignError> {
    let io = |source| ForeignError::Io { path: path.to_owned(), source };
    let file = fs.open(path, OpenMode::Read).map_err(io)?;
    references(format, file.as_ref()).map_err(|source| ForeignError::Header {
        path: path.to_owned(),
        format,
        source,
    })
}

fn wrong(path: &Path, reference: &Reference, reason: &'static str) -> ForeignError {
    let name = String::from_utf8_lossy(&reference.name).into_owned();
    ForeignError::Name { path: path.to_owned(), name, what: reference.what, reason }
}

/// Where a named file is: beside the one that names it, unless the name says where.
fn place(path: &Path, reference: &Reference) -> Result<PathBuf, ForeignError> {
    let name = reference.name.as_slice();
    if name.is_empty() {
        return Err(wrong(path, reference, "it does not say which file"));
    }
    // As QEMU tells protocols from paths: `nbd://host`, `json:{…}`.
    let colon = name.iter().position(|byte| *byte == b':');
    let slash = name.iter().position(|byte| *byte == b'/');
    if colon.is_some_and(|colon| slash.is_none_or(|slash| colon < slash)) {
        return Err(wrong(path, reference, "that is no path, and nothing else is read"));
    }
    Ok(folder_of(path).join(OsStr::from_bytes(name)))
}

/// What a named file is itself; none: raw data.
fn format_of(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    reference: &Reference,
    other: &Path,
) -> Result<Option<ForeignFormat>, ForeignError> {
    match reference.format.as_deref() {
        None | Some("raw" | "file") => Ok(None),
        Some("qcow2") => Ok(Some(ForeignFormat::Qcow2)),
        // QEMU finds out by itself what the parent of a VMDK is, so it has to be one.
        Some("vmdk") => named_by(fs, other, ForeignFormat::Vmdk).map(|_| Some(ForeignFormat::Vmdk)),
        Some("") => Err(wrong(
            path,
            reference,
            "its format is not written beside it, and is never guessed from content that a guest can write: \
             `qemu-img rebase -u -b PARENT -F FORMAT` says it",
        )),
        Some(_) => Err(wrong(path, reference, "it is of a format that is not read")),
    }
}

//! Finding the parent of a differencing disk: which paths to try in which order, and why each was not it.
//!
//! The paths are decided here; a [`ParentGate`] of the caller looks at files.

use std::{
    error::Error,
    fmt, io,
    path::{Component, Path, PathBuf},
};

use uuid::Uuid;

use crate::{LocatorKind, ParentLink, VhdTime, info::ParentLocator};

/// Where parents may be.
#[derive(Clone, Debug, Default)]
pub struct ParentSearch {
    /// The folder of the child, symbolic links resolved.
    pub child_folder: PathBuf,
    /// If set, nothing outside of this folder (a real path) is looked at.
    pub root: Option<PathBuf>,
    /// Parents whose place is known.
    pub known: Vec<(Uuid, PathBuf)>,
    /// What stored absolute paths mean here.
    pub path_map: Vec<PathMapping>,
}

/// A drive, share or folder of another machine and where its files are here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathMapping {
    /// Such as `D:\`, `\\server\share` or `C:\VMs`. Case and the kind of slash do not matter.
    pub from: String,
    /// The folder here.
    pub to: PathBuf,
}

/// What made a path a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CandidateSource {
    /// A relative path stored in the child.
    Relative,
    /// The caller's list of known parents.
    Known,
    /// An absolute path stored in the child.
    Absolute,
    /// An absolute path stored in the child, through the caller's map.
    Mapped,
    /// The file name stored in the child, in the child's folder.
    SameFolder,
}

impl fmt::Display for CandidateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relative => "the relative path stored in the disk",
            Self::Known => "the path known for this parent",
            Self::Absolute => "the absolute path stored in the disk",
            Self::Mapped => "the absolute path stored in the disk, through the path map",
            Self::SameFolder => "the stored file name, in the folder of the disk",
        })
    }
}

/// A path to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The path, without `.` and `..`.
    pub path: PathBuf,
    /// Why it is tried.
    pub source: CandidateSource,
}

/// A path that was tried, and why it was not the parent.
#[derive(Debug)]
pub struct Tried {
    /// The path.
    pub path: PathBuf,
    /// Why it was tried.
    pub source: CandidateSource,
    /// Why it was not it.
    pub reason: Rejection,
}

/// Why a file is not the parent.
#[derive(Debug)]
#[non_exhaustive]
pub enum Rejection {
    /// Nothing is there, under no spelling of the name.
    NotFound,
    /// Outside of the folder that the search is confined to.
    OutsideRoot,
    /// Another disk.
    OtherDisk(Uuid),
    /// It cannot be opened as a disk.
    Unusable(Box<dyn Error + Send + Sync>),
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("there is no such file"),
            Self::OutsideRoot => f.write_str("it is outside of the folder that parents are allowed in"),
            Self::OtherDisk(id) => write!(f, "it is another disk, {id}"),
            Self::Unusable(error) => {
                write!(f, "{error}")?;
                let mut source = error.source();
                while let Some(error) = source {
                    write!(f, ": {error}")?;
                    source = error.source();
                }
                Ok(())
            }
        }
    }
}

/// No candidate is the parent.
#[derive(Debug)]
pub struct ParentError {
    /// The parent's unique id.
    pub unique_id: Uuid,
    /// Everything that was tried, in order.
    pub tried: Vec<Tried>,
}

impl fmt::Display for ParentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the parent disk {} was not found; ", self.unique_id)?;
        if self.tried.is_empty() {
            return f.write_str("the disk stores no path to it; set one with the program that made the disk");
        }
        f.write_str("tried")?;
        for tried in &self.tried {
            write!(f, "\n  {} ({}): {}", tried.path.display(), tried.source, tried.reason)?;
        }
        f.write_str("\nput the parent, or a symbolic link to it, at one of these places")
    }
}

impl Error for ParentError {}

/// The identity of a file that may be the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParentIdentity {
    /// Its unique id.
    pub unique_id: Uuid,
    /// When the file was last modified, if known.
    pub modified: Option<VhdTime>,
}

/// Looks at files for [`find`].
pub trait ParentGate {
    /// The path with symbolic links resolved.
    ///
    /// # Errors
    /// `NotFound` if nothing is there, or as the file system.
    fn real_path(&self, path: &Path) -> io::Result<PathBuf>;

    /// An existing path that equals `path` but for the case of letters; `None` if there is none.
    ///
    /// # Errors
    /// As the file system.
    fn match_case(&self, path: &Path) -> io::Result<Option<PathBuf>>;

    /// Opens the file as a disk and tells which one it is.
    ///
    /// # Errors
    /// Why it cannot be opened as a disk.
    fn identify(&self, path: &Path) -> Result<ParentIdentity, Box<dyn Error + Send + Sync>>;
}

/// The parent.
#[derive(Debug)]
pub struct FoundParent {
    /// Its real path.
    pub path: PathBuf,
    /// What led to it.
    pub source: CandidateSource,
    /// The child recorded a time of modification, and the file has another one: it may have been written to since. Copying
    /// a file changes its time too, so this is worth a warning, not a refusal.
    pub time_differs: bool,
    /// What was tried before.
    pub tried: Vec<Tried>,
}

/// Tries the candidates in order, each exactly and then without regard to case. The unique id decides.
///
/// # Errors
/// If no candidate is the parent.
pub fn find(
    link: &ParentLink,
    search: &ParentSearch,
    gate: &dyn ParentGate,
) -> Result<FoundParent, ParentError> {
    let mut tried = Vec::new();
    for Candidate { path, source } in candidates(link, search) {
        match probe(link, search, gate, &path) {
            Ok((path, time_differs)) => return Ok(FoundParent { path, source, time_differs, tried }),
            Err(reason) => tried.push(Tried { path, source, reason }),
        }
    }
    Err(ParentError { unique_id: link.unique_id, tried })
}

fn probe(
    link: &ParentLink,
    search: &ParentSearch,
    gate: &dyn ParentGate,
    path: &Path,
) -> Result<(PathBuf, bool), Rejection> {
    // Before anything is looked at: a confined search must not even tell what exists elsewhere.
    confine(search, path)?;
    let unusable = |error: io::Error| Rejection::Unusable(Box::new(error));
    let real = match gate.real_path(path) {
        Ok(real) => real,
        Err(error) if is_absent(&error) => {
            let other = gate.match_case(path).map_err(unusable)?.ok_or(Rejection::NotFound)?;
            gate.real_path(&other).map_err(unusable)?
        }
        Err(error) => return Err(unusable(error)),
    };
    confine(search, &real)?;
    let identity = gate.identify(&real).map_err(Rejection::Unusable)?;
    if identity.unique_id != link.unique_id {
        return Err(Rejection::OtherDisk(identity.unique_id));
    }
    let time_differs = link.time_stamp != VhdTime(0)
        && identity.modified.is_some_and(|modified| modified != link.time_stamp);
    Ok((real, time_differs))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn confine(search: &ParentSearch, path: &Path) -> Result<(), Rejection> {
    match &search.root {
        Some(root) if !path.starts_with(root) => Err(Rejection::OutsideRoot),
        _ => Ok(()),
    }
}

/// The paths to try, in order, each once: relative paths; the caller's known parents; absolute paths, mapped or (if they
/// are paths of this system) as they are; the bare file name beside the child.
#[must_use]
pub fn candidates(link: &ParentLink, search: &ParentSearch) -> Vec<Candidate> {
    let mut list = List { search, found: Vec::new() };
    let texts = |wanted: &[LocatorKind]| -> Vec<&str> {
        let of_kind = |locator: &&ParentLocator| wanted.contains(&locator.kind);
        link.locators.iter().filter(of_kind).filter_map(|locator| locator.path.as_deref()).collect()
    };
    let absolute = texts(&[LocatorKind::Absolute, LocatorKind::Absolute8Bit]);
    for text in texts(&[LocatorKind::Relative, LocatorKind::Relative8Bit]) {
        list.relative(text);
    }
    // Xen keeps relative paths in the absolute locator, some programs in the name.
    for text in absolute.iter().copied().chain([link.unicode_name.as_str()]) {
        if !is_absolute(text) && text.contains(['/', '\\']) {
            list.relative(text);
        }
    }
    for (_, path) in search.known.iter().filter(|(id, _)| *id == link.unique_id) {
        list.add(path, CandidateSource::Known);
    }
    for text in absolute.iter().copied().chain([link.unicode_name.as_str()]) {
        list.absolute(text);
    }
    for text in texts(&[LocatorKind::MacUrl]) {
        if let Some(path) = text.strip_prefix("file://localhost").or_else(|| text.strip_prefix("file://")) {
            list.absolute(path);
        }
    }
    for text in [link.unicode_name.as_str()].into_iter().chain(absolute.iter().copied()) {
        list.beside(text);
    }
    list.found
}

struct List<'a> {
    search: &'a ParentSearch,
    found: Vec<Candidate>,
}

impl List<'_> {
    fn add(&mut self, path: &Path, source: CandidateSource) {
        let path = normalize(path);
        if !self.found.iter().any(|candidate| candidate.path == path) {
            self.found.push(Candidate { path, source });
        }
    }

    fn relative(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let path = self.search.child_folder.join(native(text).trim_start_matches('/'));
        self.add(&path, CandidateSource::Relative);
    }

    fn absolute(&mut self, text: &str) {
        if !is_absolute(text) {
            return;
        }
        let plain = strip_device_prefix(text);
        for mapping in &self.search.path_map {
            if let Some(rest) = strip_mapping(&plain, &mapping.from) {
                self.add(&mapping.to.join(rest), CandidateSource::Mapped);
            }
        }
        if text.starts_with('/') {
            self.add(Path::new(text), CandidateSource::Absolute);
        }
    }

    fn beside(&mut self, text: &str) {
        // A path of this system may have back-slashes in names; any other has them between names.
        let separators: &[char] = if text.starts_with('/') { &['/'] } else { &['/', '\\'] };
        let name = text.rsplit(separators).next().unwrap_or_default();
        if !name.is_empty() && name != "." && name != ".." {
            self.add(&self.search.child_folder.join(name), CandidateSource::SameFolder);
        }
    }
}

/// Whether a stored path starts at a root: `/…`, `\\server\…`, `\…`, `C:…`.
fn is_absolute(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes, [b'/' | b'\\', ..]) || matches!(bytes, [drive, b':', ..] if drive.is_ascii_alphabetic())
}

/// A stored relative path with the slashes of this system. One that starts with `./` or `../` is such a path already and
/// may have back-slashes in names.
fn native(text: &str) -> String {
    if text.starts_with("./") || text.starts_with("../") { text.to_owned() } else { text.replace('\\', "/") }
}

/// Without `\\?\` and with `\\` for `\\?\UNC\`; slashes made uniform.
fn strip_device_prefix(text: &str) -> String {
    let uniform = text.replace('\\', "/");
    match uniform.strip_prefix("//?/UNC/") {
        Some(share) => format!("//{share}"),
        None => uniform.strip_prefix("//?/").unwrap_or(&uniform).to_owned(),
    }
}

/// What is behind the mapped prefix; `None` if the path is not below it.
fn strip_mapping(path: &str, from: &str) -> Option<String> {
    let from = strip_device_prefix(from);
    let from = from.trim_end_matches('/');
    let head = path.get(..from.len())?;
    let rest = path.get(from.len()..)?;
    let matches = !from.is_empty() && head.to_lowercase() == from.to_lowercase();
    (matches && (rest.is_empty() || rest.starts_with('/'))).then(|| rest.trim_start_matches('/').to_owned())
}

/// Resolves `.` and `..` by the text alone.
fn normalize(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

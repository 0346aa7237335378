//! The configuration as a whole.

use crate::error::{ApplyError, ParseError};
use crate::tree::{Element, Node, Value, is_xml_char};
use crate::{read, write};
use backstay_model::{DriveSlot, VmId, VmSpec};
use std::path::{Path, PathBuf};

/// Milliseconds from 1601-01-01 (FILETIME's origin) to 1970-01-01 (Unix').
const EPOCH_DIFFERENCE_MS: i64 = 11_644_473_600_000;

/// A virtual machine's configuration file as a lossless tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig {
    pub(crate) before: Vec<Node>,
    pub(crate) root: Element,
    pub(crate) after: Vec<Node>,
}

impl VmConfig {
    /// Reads a configuration: UTF-16 of either byte order with or without mark, or UTF-8 (whatever its declaration
    /// says).
    ///
    /// # Errors
    /// Text that is not well-formed XML, uses entities of its own, is beyond the limits (16 MiB, 64 levels, 200 000
    /// elements and attributes), or is no configuration.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let document = read::parse(&read::decode(bytes)?)?;
        if document.root.name != "configuration" {
            return Err(ParseError::OtherRoot(document.root.name.chars().take(60).collect()));
        }
        Ok(Self { before: document.before, root: document.root, after: document.after })
    }

    /// The file's bytes as Hyper-V writes them: UTF-16LE with byte-order mark and CRLF.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        write::to_bytes(&self.before, &self.root, &self.after)
    }

    /// The complete tree of a new machine as Windows Server 2012 R2 lays it out. `created` is a FILETIME (100 ns since
    /// 1601); instance GUIDs that the specification does not name are derived from the machine's.
    ///
    /// # Errors
    /// As [`VmConfig::apply_spec`].
    pub fn new(spec: &VmSpec, created: u64) -> Result<Self, ApplyError> {
        crate::template::build(spec, created)
    }

    /// The root element, `<configuration>`.
    #[must_use]
    pub fn root(&self) -> &Element {
        &self.root
    }

    /// The element at a path below the root, for example `properties/name`.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Element> {
        self.root.at(path)
    }

    /// Sets a typed leaf, making what is missing of its path.
    ///
    /// # Errors
    /// A string with a character that XML cannot hold.
    pub fn set(&mut self, path: &str, value: &Value) -> Result<(), ApplyError> {
        if let Value::String(text) = value {
            check_text("value", text)?;
        }
        self.root.set(path, value);
        Ok(())
    }

    /// The machine's GUID, if the file names one.
    #[must_use]
    pub fn id(&self) -> Option<VmId> {
        self.root.string("properties/global_id")?.parse().ok()
    }

    /// `properties/version`: 1280 (5.0) for 2012 R2.
    #[must_use]
    pub fn version(&self) -> Option<i64> {
        self.root.integer("properties/version")
    }

    /// Creation time as FILETIME.
    #[must_use]
    pub fn created(&self) -> Option<u64> {
        match self.root.at("properties/creation_time")?.value()? {
            Value::Bytes(bytes) => Some(u64::from_le_bytes(bytes.try_into().ok()?)),
            _ => None,
        }
    }

    /// The file in a drive, whether disk or CD/DVD image; as written, so it may be a Windows path.
    #[must_use]
    pub fn drive_path(&self, slot: DriveSlot) -> Option<PathBuf> {
        let path = self.drive(slot)?.string("pathname")?;
        (!path.is_empty()).then(|| PathBuf::from(path))
    }

    /// Puts another file into an existing drive; its other settings stay.
    ///
    /// # Errors
    /// There is no drive, or the path cannot be written.
    pub fn set_drive_path(&mut self, slot: DriveSlot, path: &Path) -> Result<(), ApplyError> {
        let text = path_text(path)?;
        let missing = || ApplyError::NoDrive(slot);
        let place = self.drive_place(slot).ok_or_else(missing)?;
        let drive = self.root.at_mut(&place).ok_or_else(missing)?;
        if drive.string("type").is_none_or(|kind| kind == "NONE") {
            return Err(missing());
        }
        drive.set_str("pathname", text);
        Ok(())
    }
}

/// FILETIME (100 ns since 1601) of a Unix time in milliseconds; times before 1601 become 0.
#[must_use]
pub fn filetime_from_unix_ms(unix_ms: i64) -> u64 {
    u64::try_from(unix_ms.saturating_add(EPOCH_DIFFERENCE_MS)).unwrap_or(0).saturating_mul(10_000)
}

/// Unix time in milliseconds of a FILETIME.
#[must_use]
pub fn unix_ms_from_filetime(filetime: u64) -> i64 {
    i64::try_from(filetime / 10_000).unwrap_or(i64::MAX).saturating_sub(EPOCH_DIFFERENCE_MS)
}

/// Refuses text that XML cannot hold.
pub(crate) fn check_text(what: &'static str, text: &str) -> Result<(), ApplyError> {
    match text.chars().find(|c| !is_xml_char(*c)) {
        Some(c) => Err(ApplyError::Character { what, character: c.into() }),
        None => Ok(()),
    }
}

/// A path as the text of a leaf.
pub(crate) fn path_text(path: &Path) -> Result<&str, ApplyError> {
    let text = path.to_str().ok_or_else(|| ApplyError::PathEncoding(path.into()))?;
    check_text("path", text)?;
    Ok(text)
}

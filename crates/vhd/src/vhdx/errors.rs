//! Why a file cannot be opened as a VHDX.

use std::{fmt, io};

use thiserror::Error;
use uuid::Uuid;

/// A structure of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Structure {
    /// "vhdxfile" at the start.
    FileIdentifier,
    /// One of the two headers.
    Header,
    /// One of the two region tables.
    RegionTable,
    /// The metadata table.
    MetadataTable,
    /// A metadata item.
    MetadataItem,
    /// The parent locator.
    ParentLocator,
    /// The block allocation table.
    Bat,
    /// The log.
    Log,
}

impl Structure {
    /// Short name of the rule that the structure is whole, stable: for scripts.
    #[must_use]
    pub const fn rule(self) -> &'static str {
        match self {
            Self::FileIdentifier => "is-vhdx",
            Self::Header => "header",
            Self::RegionTable => "region-table",
            Self::MetadataTable | Self::MetadataItem => "metadata",
            Self::ParentLocator => "parent-locator",
            Self::Bat => "block-table",
            Self::Log => "log",
        }
    }
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FileIdentifier => "the file identifier",
            Self::Header => "the header",
            Self::RegionTable => "the region table",
            Self::MetadataTable => "the metadata table",
            Self::MetadataItem => "the metadata item",
            Self::ParentLocator => "the parent locator",
            Self::Bat => "the block allocation table",
            Self::Log => "the log",
        })
    }
}

/// Why a file cannot be opened as a VHDX.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be read or written.
    #[error("cannot {action} at offset {offset}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No file identifier.
    #[error(
        "this is not a VHDX: the file does not begin with \"vhdxfile\"; say the format if it is a raw disk or a VHD"
    )]
    NotVhdx,
    /// Both headers are unusable.
    #[error(
        "neither header is usable (at offset 65536: {first}; at offset 131072: {second}): the file is damaged or incomplete; copy it again"
    )]
    NoHeader {
        /// What is wrong with the first one.
        first: String,
        /// What is wrong with the second one.
        second: String,
    },
    /// A rule of the format is broken.
    #[error("{what} at offset {offset} breaks a rule of the format: {rule}")]
    Invalid {
        /// The structure.
        what: Structure,
        /// Where in the file, in bytes.
        offset: u64,
        /// The rule, and what was found.
        rule: String,
    },
    /// A part that has to be understood and is not.
    #[error(
        "the file needs a program that understands {what} {id} (listed at offset {offset}); open it with the program that made it"
    )]
    Unknown {
        /// "the region" or "the metadata item".
        what: &'static str,
        /// Its id.
        id: Uuid,
        /// Where it is listed, in bytes.
        offset: u64,
    },
    /// Another program did not finish.
    #[error(
        "the file is marked as incomplete (at offset {offset}): the program that was filling it did not finish; make it again"
    )]
    Incomplete {
        /// Where the mark is listed, in bytes.
        offset: u64,
    },
    /// Bytes are missing.
    #[error("the file is incomplete: {what} ends at {needed} but the file at {len}; copy it again")]
    Truncated {
        /// The structure that is cut off.
        what: String,
        /// First byte after it.
        needed: u64,
        /// Length of the file.
        len: u64,
    },
    /// Two structures share bytes.
    #[error(
        "{first} and {second} overlap at offset {offset}: the file is corrupt; `backstay disk check` lists the damage"
    )]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The one that starts inside it.
        second: String,
        /// Where it starts.
        offset: u64,
    },
    /// The ids of a session are not usable.
    #[error("a disk is opened for writing with three different new ids, none of them zero")]
    Ids,
    /// The bits that a dead process left could not be read.
    #[error("cannot read the list of writes that an earlier process left behind")]
    Shadow(#[source] io::Error),
}

impl OpenError {
    pub(crate) fn invalid(what: Structure, offset: u64, rule: impl Into<String>) -> Self {
        Self::Invalid { what, offset, rule: rule.into() }
    }

    /// Short name of the broken rule, stable: for scripts.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::Io { .. } | Self::Shadow(_) => "readable",
            Self::NotVhdx => "is-vhdx",
            Self::NoHeader { .. } => "header",
            Self::Invalid { what, .. } => what.rule(),
            Self::Unknown { .. } => "understood",
            Self::Incomplete { .. } => "finished",
            Self::Truncated { .. } => "complete",
            Self::Overlap { .. } => "no-overlap",
            Self::Ids => "ids",
        }
    }
}

/// Adds what was tried to an I/O error.
pub(crate) fn io_at(action: &'static str, offset: u64) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { action, offset, source }
}

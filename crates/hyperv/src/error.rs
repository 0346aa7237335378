//! What can be wrong with a configuration, and with a change to it.

use backstay_model::DriveSlot;
use std::path::PathBuf;

/// Why bytes are no configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Real files have some tens of KiB.
    #[error("the configuration has {size} bytes, at most {limit} are read")]
    TooLarge {
        /// Bytes given.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The bytes are text in none of the encodings that occur.
    #[error("the configuration is not valid {encoding} text (at byte {offset})")]
    Encoding {
        /// `UTF-16` or `UTF-8`.
        encoding: &'static str,
        /// Where the first bad unit starts.
        offset: usize,
    },
    /// The text breaks a rule of XML.
    #[error("the configuration is not well-formed XML at character {offset}: {reason}")]
    Malformed {
        /// Position in the text after decoding, in bytes of UTF-8.
        offset: u64,
        /// The broken rule.
        reason: String,
    },
    /// Document types and entities of one's own are never expanded.
    #[error(
        "the configuration declares a document type or uses the entity '{0}': neither occurs in Hyper-V's files"
    )]
    Entity(String),
    /// Elements are nested deeper than any real file.
    #[error("elements are nested more than {0} deep")]
    TooDeep(usize),
    /// More elements than any real file.
    #[error("the configuration has more than {0} elements and attributes")]
    TooMany(usize),
    /// XML, but something else.
    #[error("the root element is <{0}>: a Hyper-V configuration starts with <configuration>")]
    OtherRoot(String),
    /// XML, but no export.
    #[error("the root element is <{0}>: an export starts with <DECLARATIONS>")]
    NoCim(String),
    /// Nothing in it.
    #[error("the file has no XML element: it is empty or was cut off")]
    Empty,
}

/// Why a specification cannot be written into a configuration; the configuration is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// XML 1.0 has no way to write most control characters.
    #[error(
        "the {what} contains the character U+{character:04X}, which a configuration file cannot hold: remove it"
    )]
    Character {
        /// What holds it, for example `name`.
        what: &'static str,
        /// Its code point.
        character: u32,
    },
    /// The file is text; a name in another encoding cannot be written.
    #[error("the path {} is not valid UTF-8: rename the file", .0.display())]
    PathEncoding(PathBuf),
    /// Two drives in one slot.
    #[error("two drives are attached at {0}: each slot takes one")]
    SlotTaken(DriveSlot),
    /// Two network cards with one GUID.
    #[error("two network cards have the GUID {0}")]
    NicTwice(backstay_model::NicId),
    /// A path was set where no drive is.
    #[error("there is no drive at {0}")]
    NoDrive(DriveSlot),
    /// The built-in model of a new configuration cannot be read: a fault of this program.
    #[error("the built-in configuration template is damaged")]
    Template(#[source] ParseError),
}

/// Something in a configuration that this product reads differently than it is written, or not at all. The node
/// itself stays in the tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// A value that every configuration has is missing or unreadable.
    #[error("{path} is missing or unreadable: {used} is used")]
    Missing {
        /// Path below the root, for example `settings/memory/bank/size`.
        path: String,
        /// What is taken in its place.
        used: String,
    },
    /// A value outside of its range was moved into it.
    #[error("{path} is '{found}': {used} is used")]
    Adjusted {
        /// Path below the root.
        path: String,
        /// As written.
        found: String,
        /// What is taken in its place.
        used: String,
    },
    /// A drive with a medium that cannot be given to the machine.
    #[error("the drive at {at} has a medium of type '{kind}': it is left out")]
    Medium {
        /// Slot or place.
        at: String,
        /// Hyper-V's word.
        kind: String,
    },
    /// More controllers, units or devices than a machine can have.
    #[error("{what} is beyond the limit of this product: it is left out")]
    Beyond {
        /// The thing.
        what: String,
    },
    /// A device that has no counterpart here.
    #[error("the device '{name}' ({device}) has no counterpart: it is left out")]
    Device {
        /// Display name in the manifest.
        name: String,
        /// Device class GUID.
        device: String,
    },
    /// Dynamic memory is not offered; the machine gets its start-up size.
    #[error("dynamic memory is on: the machine gets its start-up memory of {0} MiB")]
    DynamicMemory(u64),
    /// No machine type was ever pinned: the configuration comes from Hyper-V.
    #[error("the configuration names no machine type: one has to be chosen before the machine starts")]
    NoMachineType,
}

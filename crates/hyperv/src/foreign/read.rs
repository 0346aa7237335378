//! Which form some bytes have, and the reader for it.

use super::machine::{Document, SourceKind};
use super::path::file_name;
use super::{collector, exp, from_tree};
use crate::error::ParseError;
use crate::{VmConfig, cim::CimDocument, vmcx};
use uuid::Uuid;

/// What a file's place says about its content: checkpoints lie in `Snapshots` and are named after their GUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The GUID that is the file's name.
    pub guid: Option<Uuid>,
    /// Whether it lies in a folder named `Snapshots`.
    pub in_snapshots: bool,
}

impl Place {
    /// The place of a path of either kind. Letter case does not matter.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let name = file_name(path);
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let folder = path.strip_suffix(name).unwrap_or_default().trim_end_matches(['/', '\\']);
        Self {
            guid: Uuid::try_parse(stem).ok(),
            in_snapshots: file_name(folder).eq_ignore_ascii_case("snapshots"),
        }
    }
}

/// Why bytes could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// None of the forms.
    #[error(
        "the file is no configuration of Hyper-V (.xml, .exp, .vmcx) and not what backstay-collect.ps1 writes"
    )]
    Unknown,
    /// A `.xml` that cannot be read.
    #[error("the .xml configuration cannot be read")]
    Xml(#[source] ParseError),
    /// A `.exp` that cannot be read.
    #[error("the .exp export cannot be read")]
    Exp(#[source] ParseError),
    /// A `.exp` with other things in it.
    #[error(
        "the .exp export describes no virtual machine: it has no Msvm_VirtualSystemSettingData and no Msvm_VirtualSystemGlobalSettingData"
    )]
    ExpWithoutMachine,
    /// A `.vmcx` that cannot be read.
    #[error("the .vmcx configuration cannot be read")]
    Vmcx(#[source] vmcx::VmcxError),
    /// A `.vmcx` with other things in it: saved states have the same form.
    #[error(
        "the file has the form of a .vmcx but holds no configuration: a .vmrs or .vmgs file is not what is looked for"
    )]
    VmcxWithoutConfiguration,
    /// The collector's file cannot be read.
    #[error("the collector's file cannot be read: {0}")]
    Collector(String),
    /// The collector's file is newer than this program.
    #[error(
        "the collector's file has version {found}, this program reads up to {known}: use the backstay-collect.ps1 that came with it, or update"
    )]
    CollectorVersion {
        /// The file's.
        found: u64,
        /// Ours.
        known: u64,
    },
}

/// The form of some bytes by their beginning; none when it is none of them. Nothing is checked beyond that.
#[must_use]
pub fn sniff(bytes: &[u8]) -> Option<SourceKind> {
    if vmcx::looks_like(bytes) {
        return Some(SourceKind::Vmcx);
    }
    let start = beginning(bytes);
    if start.starts_with('{') || start.starts_with('[') {
        return Some(SourceKind::Collector);
    }
    match first_element(&start)? {
        "configuration" => Some(SourceKind::Xml),
        name if crate::cim::ROOTS.contains(&name) => Some(SourceKind::Exp),
        _ => None,
    }
}

/// The first characters as text, whatever the encoding; what is not ASCII is of no interest here.
fn beginning(bytes: &[u8]) -> String {
    const LOOKED_AT: usize = 8192;
    let ascii: String =
        bytes.iter().take(LOOKED_AT).filter(|b| b.is_ascii() && **b != 0).map(|b| char::from(*b)).collect();
    ascii.trim_start().to_owned()
}

/// The name of the first element after declarations and comments.
fn first_element(mut text: &str) -> Option<&str> {
    loop {
        text = text.get(text.find('<')?..)?;
        let end = match text {
            t if t.starts_with("<!--") => "-->",
            t if t.starts_with("<?") => "?>",
            t if t.starts_with("<!") => return None,
            t => {
                let name = t.get(1..)?;
                return name.split(|c: char| c.is_whitespace() || matches!(c, '>' | '/')).next();
            }
        };
        text = text.get(text.find(end)? + end.len()..)?;
    }
}

/// Reads a configuration of whatever form.
///
/// # Errors
/// The bytes have none of the forms, or break the rules of the one they have. Nothing panics and memory stays bounded
/// (16 MiB of input, 200 000 elements, 64 levels), whatever the bytes are.
pub fn read(bytes: &[u8], place: Place) -> Result<Vec<Document>, ReadError> {
    match sniff(bytes) {
        Some(SourceKind::Xml | SourceKind::Own) => Ok(vec![read_xml(bytes, place)?]),
        Some(SourceKind::Exp) => read_exp(bytes, place),
        Some(SourceKind::Vmcx) => Ok(vec![read_vmcx(bytes, place)?]),
        Some(SourceKind::Collector) => read_collected(bytes),
        None => Err(ReadError::Unknown),
    }
}

/// Reads a `.xml` of Windows Server 2008 to 2012 R2, or one of ours ([`SourceKind::Own`]).
///
/// # Errors
/// As [`VmConfig::parse`].
pub fn read_xml(bytes: &[u8], place: Place) -> Result<Document, ReadError> {
    let config = VmConfig::parse(bytes).map_err(ReadError::Xml)?;
    let ours = config.get("backstay/machine_type").is_some_and(|leaf| !leaf.text().is_empty());
    let kind = if ours { SourceKind::Own } else { SourceKind::Xml };
    Ok(from_tree::document(config.root(), kind, place))
}

/// Reads a `.exp` of Windows Server 2008 and 2008 R2: one machine, with the checkpoints that are in the same file, or
/// checkpoints alone.
///
/// # Errors
/// No well-formed XML, or no machine in it.
pub fn read_exp(bytes: &[u8], place: Place) -> Result<Vec<Document>, ReadError> {
    let document = CimDocument::parse(bytes).map_err(ReadError::Exp)?;
    exp::documents(&document, place).ok_or(ReadError::ExpWithoutMachine)
}

/// Reads a `.vmcx` of Windows Server 2016 and later. Best effort: what the reader doubted is in
/// [`Machine::not_understood`](super::Machine::not_understood).
///
/// # Errors
/// A file that was not closed cleanly, an older version of the format, damage.
pub fn read_vmcx(bytes: &[u8], place: Place) -> Result<Document, ReadError> {
    let (store, doubts) = vmcx::Store::parse(bytes).map_err(ReadError::Vmcx)?;
    let root = store.configuration().ok_or(ReadError::VmcxWithoutConfiguration)?;
    let mut document = from_tree::document(&root, SourceKind::Vmcx, place);
    from_tree::add_doubts(&mut document, &doubts);
    Ok(document)
}

/// Reads what `backstay-collect.ps1` wrote: any number of machines with their checkpoints.
///
/// # Errors
/// No JSON, not the collector's, or of a later version.
pub fn read_collected(bytes: &[u8]) -> Result<Vec<Document>, ReadError> {
    collector::documents(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_known_by_their_beginning() {
        let utf16: Vec<u8> = "\u{feff}<?xml version=\"1.0\"?><!-- a > b --><configuration>"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        for (bytes, kind) in [
            (&b"<configuration/>"[..], Some(SourceKind::Xml)),
            (&utf16, Some(SourceKind::Xml)),
            (b"\xEF\xBB\xBF <DECLARATIONS>", Some(SourceKind::Exp)),
            (b"<INSTANCE CLASSNAME='x'>", Some(SourceKind::Exp)),
            (b"\xEF\xBB\xBF{\"format\":", Some(SourceKind::Collector)),
            (b"<!DOCTYPE configuration []><configuration/>", None),
            (b"<domain/>", None),
            (b"<", None),
            (b"<!--", None),
            (b"", None),
            (&[0xFF; 100], None),
        ] {
            assert_eq!(sniff(bytes), kind, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_place_tells_checkpoints_from_machines() {
        let guid = Uuid::from_u128(0x0AA3_94FA_7C4A_4070_BA32_773D_43B2_8A68);
        let name = "0AA394FA-7C4A-4070-BA32-773D43B28A68";
        let found = Place::of(&format!("D:\\export\\web\\SNAPSHOTS\\{name}.xml"));
        assert_eq!(found, Place { guid: Some(guid), in_snapshots: true });
        let found = Place::of(&format!("/vm/Virtual Machines/{}.vmcx", name.to_lowercase()));
        assert_eq!(found, Place { guid: Some(guid), in_snapshots: false });
        assert_eq!(Place::of("config.xml"), Place::default());
        assert_eq!(Place::of(""), Place::default());
    }
}

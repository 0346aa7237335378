//! Which other files a qcow2 or VMDK names: read here, before QEMU opens anything, because QEMU follows the names. Such a
//! file may come from anybody, and `/etc/shadow` reads well as an extent.

use super::{ForeignFormat, What};
use backstay_vhd::Storage;
use std::io;

/// Longest descriptor of a VMDK that is read, in bytes; QEMU reads no longer one either.
const MOST_TEXT: u64 = 1 << 20;
/// Longest name in a qcow2, in bytes.
const MOST_NAME: u32 = 1023;
/// Most header extensions of a qcow2 that are looked at.
const MOST_EXTENSIONS: usize = 64;

const QCOW2: &[u8; 4] = b"QFI\xfb";
const VMDK4: &[u8; 4] = b"KDMV";
const VMDK3: &[u8; 4] = b"COWD";
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE_NAME: u32 = 0x4441_5441;
/// Incompatible feature of a qcow2: its data is in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// A file that another one names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// What it is there for.
    pub(super) what: What,
    /// As it is written.
    pub(super) name: Vec<u8>,
    /// Format that is written beside it; none: raw data, or not said.
    pub(super) format: Option<String>,
}

/// Why the head of a file cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The head cannot be read.
    #[error("its head cannot be read")]
    Read(#[source] io::Error),
    /// It breaks a rule.
    #[error("{0}")]
    Rule(String),
}

fn rule(words: impl Into<String>) -> HeaderError {
    HeaderError::Rule(words.into())
}

/// The files that `file` names.
pub(super) fn references(format: ForeignFormat, file: &dyn Storage) -> Result<Vec<Reference>, HeaderError> {
    match format {
        ForeignFormat::Qcow2 => qcow2(file),
        ForeignFormat::Vmdk => vmdk(file),
        // Has no field for a name.
        ForeignFormat::Vdi => Ok(Vec::new()),
    }
}

/// What there is of a range, at most to the end of the file.
fn bytes(file: &dyn Storage, offset: u64, len: u64) -> Result<Vec<u8>, HeaderError> {
    let there = file.len().map_err(HeaderError::Read)?.saturating_sub(offset).min(len);
    let mut bytes = vec![0; usize::try_from(there).unwrap_or(0)];
    file.read_at(&mut bytes, offset).map_err(HeaderError::Read)?;
    Ok(bytes)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn qcow2(file: &dyn Storage) -> Result<Vec<Reference>, HeaderError> {
    let head = bytes(file, 0, 104)?;
    if !head.starts_with(QCOW2) {
        return Err(rule("it does not begin as a qcow2 does"));
    }
    let version = be32(&head, 4);
    if !(2..=3).contains(&version) {
        return Err(rule(format!("its version is {version}, and only 2 and 3 are qcow2")));
    }
    if be32(&head, 32) != 0 {
        return Err(rule("it is encrypted"));
    }
    let (incompatible, header_len) = match version {
        3 => (be64(&head, 72), u64::from(be32(&head, 100))),
        _ => (0, 72),
    };
    let (mut backing_format, mut data_file) = (None, None);
    let mut at = header_len;
    for _ in 0..MOST_EXTENSIONS {
        let extension = bytes(file, at, 8)?;
        let (kind, len) = (be32(&extension, 0), be32(&extension, 4));
        if extension.len() < 8 || kind == 0 {
            break;
        }
        if matches!(kind, BACKING_FORMAT | DATA_FILE_NAME) {
            if len > MOST_NAME {
                return Err(rule(format!(
                    "a name in its header has {len} bytes, at most {MOST_NAME} are allowed"
                )));
            }
            let content = bytes(file, at + 8, u64::from(len))?;
            match kind {
                BACKING_FORMAT => backing_format = Some(String::from_utf8_lossy(&content).into_owned()),
                _ => data_file = Some(content),
            }
        }
        at = at + 8 + u64::from(len).next_multiple_of(8);
    }
    let mut found = Vec::new();
    let (backing_at, backing_len) = (be64(&head, 8), be32(&head, 16));
    if backing_at != 0 {
        if backing_len > MOST_NAME {
            return Err(rule(format!(
                "the name of its parent has {backing_len} bytes, at most {MOST_NAME} are allowed"
            )));
        }
        let name = bytes(file, backing_at, u64::from(backing_len))?;
        found.push(Reference { what: What::Parent, name, format: Some(backing_format.unwrap_or_default()) });
    }
    if incompatible & EXTERNAL_DATA != 0 || data_file.is_some() {
        let name = data_file.unwrap_or_default();
        found.push(Reference { what: What::Data, name, format: None });
    }
    Ok(found)
}

fn vmdk(file: &dyn Storage) -> Result<Vec<Reference>, HeaderError> {
    let head = bytes(file, 0, 512)?;
    if head.starts_with(VMDK3) {
        return Err(rule(
            "it is a VMDK of an old ESX (COWD), which is not read: convert it with VMware's tools",
        ));
    }
    if !head.starts_with(VMDK4) {
        let len = file.len().map_err(HeaderError::Read)?;
        if len > MOST_TEXT {
            return Err(rule("it does not begin as a VMDK does, and is too long for a descriptor"));
        }
        let text = bytes(file, 0, MOST_TEXT)?;
        if !contains(&text, b"# Disk DescriptorFile") {
            return Err(rule("it does not begin as a VMDK does"));
        }
        let mut found = extents(&text)?;
        found.extend(parent(&text));
        return Ok(found);
    }
    let (capacity, text_at, text_len) = (le64(&head, 12), le64(&head, 28), le64(&head, 36));
    let text_at =
        text_at.checked_mul(512).ok_or_else(|| rule("the place of its descriptor is beyond any file"))?;
    let text = bytes(file, text_at, text_len.saturating_mul(512).clamp(512, MOST_TEXT))?;
    // QEMU looks for the parent there whatever the header says.
    let usual = bytes(file, 512, MOST_TEXT.min(20 << 10))?;
    let mut found: Vec<Reference> = parent(&text).into_iter().chain(parent(&usual)).collect();
    found.dedup();
    if capacity == 0 {
        // Then what is inside is only a description of other files.
        found.extend(extents(&text)?);
    }
    Ok(found)
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

/// The extents of a descriptor: `RW 4192256 SPARSE "disk-s001.vmdk"`, with a file for all but zeros.
fn extents(text: &[u8]) -> Result<Vec<Reference>, HeaderError> {
    let mut found = Vec::new();
    for line in text.split(|byte| matches!(byte, b'\n' | b'\r' | 0)) {
        let Some(open) = line.iter().position(|byte| *byte == b'"') else { continue };
        let (before, behind) = line.split_at(open);
        let before = String::from_utf8_lossy(before);
        let words: Vec<&str> = before.split_whitespace().collect();
        let &[access, sectors, kind] = words.as_slice() else { continue };
        if !matches!(access, "RW" | "RDONLY" | "NOACCESS") || sectors.parse::<i64>().is_err() {
            continue;
        }
        let name = behind.get(1..).unwrap_or_default();
        let Some(end) = name.iter().position(|byte| *byte == b'"') else {
            return Err(rule("the name of an extent in its descriptor has no end"));
        };
        let format = matches!(kind, "SPARSE" | "VMFSSPARSE" | "SESPARSE").then(|| "vmdk".to_owned());
        found.push(Reference {
            what: What::Extent,
            name: name.get(..end).unwrap_or_default().to_vec(),
            format,
        });
    }
    Ok(found)
}

/// The parent that a descriptor names, wherever in it.
fn parent(text: &[u8]) -> Option<Reference> {
    const HINT: &[u8] = b"parentFileNameHint";
    let at = text.windows(HINT.len()).position(|window| window == HINT)?;
    let behind = text.get(at + HINT.len()..)?;
    let open = behind.iter().take(8).position(|byte| *byte == b'"').map_or(0, |quote| quote + 1);
    let name = behind.get(open..)?;
    let end = name.iter().position(|byte| matches!(byte, b'"' | b'\n' | b'\r' | 0)).unwrap_or(name.len());
    Some(Reference { what: What::Parent, name: name.get(..end)?.to_vec(), format: Some("vmdk".into()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_vhd::testing::SimStorage;

    fn of(format: ForeignFormat, content: &[u8]) -> Result<Vec<Reference>, HeaderError> {
        let file = SimStorage::new();
        file.write_at(content, 0).unwrap();
        references(format, file.as_ref())
    }

    fn names(found: &[Reference]) -> Vec<(What, String)> {
        found.iter().map(|one| (one.what, String::from_utf8_lossy(&one.name).into_owned())).collect()
    }

    #[test]
    fn a_descriptor_tells_its_extents_and_its_parent_however_it_is_written() {
        let text = b"# Disk DescriptorFile\nversion=1\r\nparentFileNameHint=\"/etc/passwd\"\n\
            RW 20480 FLAT \"a b.vmdk\" 0\nRDONLY 4 SPARSE \"../x.vmdk\"\nRW 63 ZERO\n# RW 1 \"no\"\nddb.x = \"y\"\n";
        let found = of(ForeignFormat::Vmdk, text).unwrap();
        let expected =
            [(What::Extent, "a b.vmdk"), (What::Extent, "../x.vmdk"), (What::Parent, "/etc/passwd")];
        assert_eq!(names(&found), expected.map(|(what, name)| (what, name.to_owned())));
        assert_eq!(found[1].format.as_deref(), Some("vmdk"));
        assert!(of(ForeignFormat::Vmdk, b"hello").is_err());
        assert!(of(ForeignFormat::Vmdk, b"COWD").is_err());
    }

    #[test]
    fn a_sparse_vmdk_without_a_capacity_is_a_descriptor() {
        let mut file = vec![0; 1024];
        file[..4].copy_from_slice(VMDK4);
        file[28..36].copy_from_slice(&1u64.to_le_bytes());
        file[36..44].copy_from_slice(&1u64.to_le_bytes());
        let text = b"RW 8 FLAT \"/dev/vda\" 0\n";
        file[512..512 + text.len()].copy_from_slice(text);
        assert_eq!(names(&of(ForeignFormat::Vmdk, &file).unwrap()), [(What::Extent, "/dev/vda".into())]);
        file[12] = 8;
        assert_eq!(of(ForeignFormat::Vmdk, &file).unwrap(), []);
    }

    #[test]
    fn a_qcow2_names_its_parent_and_its_data_file() {
        let mut file = vec![0; 1024];
        file[..4].copy_from_slice(QCOW2);
        file[7] = 3;
        assert_eq!(of(ForeignFormat::Qcow2, &file).unwrap(), []);
        file[8..16].copy_from_slice(&512u64.to_be_bytes());
        file[19] = 7;
        file[512..519].copy_from_slice(b"../b.qc");
        file[79] = 4;
        file[103] = 104;
        file[104..108].copy_from_slice(&BACKING_FORMAT.to_be_bytes());
        file[111] = 5;
        file[112..117].copy_from_slice(b"qcow2");
        let found = of(ForeignFormat::Qcow2, &file).unwrap();
        assert_eq!(names(&found), [(What::Parent, "../b.qc".into()), (What::Data, String::new())]);
        assert_eq!(found[0].format.as_deref(), Some("qcow2"));
        file[7] = 1;
        assert!(of(ForeignFormat::Qcow2, &file).is_err());
    }
}

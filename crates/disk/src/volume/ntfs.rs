//! NTFS: the volume's flags, the end of its journal, hibernation, and the bitmap of clusters. By the layout that ntfs-3g and the kernel's driver
//! (`fs/ntfs3`) read.

use super::{
    FreeMap, Left, Volume, as_usize,
    bits::clear_runs,
    number::{le16, le32, le64},
    strange,
};

/// Records of the master file table with fixed numbers.
const MFT_MIRROR: u64 = 1;
const LOG_FILE: u64 = 2;
const VOLUME: u64 = 3;
const ROOT: u64 = 5;
const BITMAP: u64 = 6;

/// Kinds of attributes.
const ATTRIBUTE_LIST: u32 = 0x20;
const VOLUME_INFORMATION: u32 = 0x70;
const DATA: u32 = 0x80;
const INDEX_ROOT: u32 = 0x90;
const INDEX_ALLOCATION: u32 = 0xa0;
const END: u32 = 0xffff_ffff;

/// Dirty, the journal is resized, upgraded, mounted by an old Windows, repaired: all that make others mount it read-only.
const NOT_CLEAN: u16 = 0x402f;
/// Of the journal: the volume was unmounted.
const IS_CLEAN: u16 = 2;
const NO_CLIENT: u16 = 0xffff;
/// Bytes of the bitmap that are read at once.
const PIECE: u64 = 1 << 20;
/// Most bytes of the root folder's index that are looked through.
const MOST_INDEX: u64 = 8 << 20;
/// Most runs of a file that are followed.
const MOST_RUNS: usize = 1 << 20;

/// Takes a piece of a file and its place, and says whether to go on.
type Visit<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<bool, Left>;

/// What the first sector says.
#[derive(Debug)]
struct Head {
    sector: u64,
    cluster: u64,
    clusters: u64,
    mft: u64,
    mirror: u64,
    record: usize,
}

/// A stretch of a file: clusters of the volume, or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    at: Option<u64>,
    len: u64,
}

/// Content of an attribute.
#[derive(Debug)]
enum Content {
    Resident(Vec<u8>),
    Elsewhere { runs: Vec<Run>, len: u64 },
}

/// Whether a first sector is that of an NTFS.
pub(super) fn is_ntfs(boot: &[u8]) -> bool {
    boot.get(3..11) == Some(b"NTFS    ")
}

/// Bytes that the file system reaches, with the copy of its first sector behind it.
pub(super) fn size(boot: &[u8]) -> Option<u64> {
    le64(boot, 40).checked_add(1)?.checked_mul(u64::from(le16(boot, 11)))
}

impl Head {
    fn parse(boot: &[u8], volume: &Volume<'_>) -> Result<Self, Left> {
        let out_of_range = || strange("the first sector of its NTFS is out of range");
        let byte = |at: usize| boot.get(at).copied().unwrap_or(0);
        let sector = u64::from(le16(boot, 11));
        // Above 128 the number is the negative power of two.
        let per_cluster = match byte(13) {
            few @ 1..=128 if few.is_power_of_two() => u64::from(few),
            many @ 0xf4..=0xf8 => 1_u64 << (256 - u64::from(many)),
            _ => return Err(out_of_range()),
        };
        if !(512..=4096).contains(&sector) || !sector.is_power_of_two() {
            return Err(out_of_range());
        }
        let cluster = sector * per_cluster;
        let record = match byte(64).cast_signed() {
            clusters @ 1..=127 => u64::from(clusters.unsigned_abs()) * cluster,
            power @ -16..=-9 => 1 << power.unsigned_abs(),
            _ => return Err(out_of_range()),
        };
        let sectors = le64(boot, 40);
        let head = Self {
            sector,
            cluster,
            clusters: sectors / per_cluster,
            mft: le64(boot, 48),
            mirror: le64(boot, 56),
            record: as_usize(record),
        };
        let inside = sectors.checked_mul(sector).is_some_and(|len| len <= volume.len());
        let places = head.mft < head.clusters && head.mirror < head.clusters;
        let whole = (512..=65536).contains(&record) && cluster <= 2 << 20;
        if inside && places && whole { Ok(head) } else { Err(out_of_range()) }
    }

    /// One of the first records; they lie at the start of the table, in one piece.
    fn record(&self, volume: &Volume<'_>, number: u64) -> Result<Vec<u8>, Left> {
        let at = self.mft * self.cluster + number * self.record as u64;
        let mut bytes = volume.bytes(at, self.record)?;
        let words = || strange(format!("record {number} of its master file table is damaged"));
        let whole = bytes.starts_with(b"FILE") && fix_up(&mut bytes) && le16(&bytes, 22) & 1 != 0;
        // Since Windows XP a record knows its number.
        let numbered = le16(&bytes, 4) >= 48;
        if whole && (!numbered || u64::from(le32(&bytes, 44)) == number) { Ok(bytes) } else { Err(words()) }
    }

    /// The content of the first attribute of a kind; of data, that without a name.
    fn attribute(&self, record: &[u8], kind: u32) -> Result<Option<Content>, Left> {
        let damaged = || strange("an attribute in its master file table is damaged");
        let mut at = usize::from(le16(record, 20));
        let mut found = None;
        for _ in 0..self.record / 8 {
            let (this, len) = (le32(record, at), as_usize(u64::from(le32(record, at + 4))));
            if this == END {
                return Ok(found);
            }
            let end =
                at.checked_add(len).filter(|end| len >= 24 && *end <= record.len()).ok_or_else(damaged)?;
            let bytes = record.get(at..end).unwrap_or_default();
            // What is elsewhere is in no one's record here.
            if this == ATTRIBUTE_LIST {
                return Err(strange("the records of its metadata are in many pieces"));
            }
            let plain = kind != DATA || bytes.get(9) == Some(&0);
            if this == kind && plain && found.is_none() {
                found = Some(self.content(bytes)?);
            }
            at = end;
        }
        Err(damaged())
    }

    fn content(&self, bytes: &[u8]) -> Result<Content, Left> {
        let damaged = || strange("an attribute in its master file table is damaged");
        // Compressed, encrypted or sparse.
        if le16(bytes, 12) != 0 {
            return Err(strange("a file of its metadata is compressed or encrypted"));
        }
        if bytes.get(8) == Some(&0) {
            let (len, at) = (as_usize(u64::from(le32(bytes, 16))), usize::from(le16(bytes, 20)));
            let content = at.checked_add(len).and_then(|end| bytes.get(at..end)).ok_or_else(damaged)?;
            return Ok(Content::Resident(content.to_vec()));
        }
        let len = le64(bytes, 48);
        let runs = self.runs(bytes.get(usize::from(le16(bytes, 32))..).ok_or_else(damaged)?)?;
        let there = runs.iter().fold(0_u64, |sum, run| sum.saturating_add(run.len));
        // It begins with its first cluster, and all of it is listed.
        if le64(bytes, 16) != 0 || there.checked_mul(self.cluster).is_none_or(|there| there < len) {
            return Err(damaged());
        }
        Ok(Content::Elsewhere { runs, len })
    }

    fn runs(&self, mut bytes: &[u8]) -> Result<Vec<Run>, Left> {
        let damaged = || strange("a list of clusters in its master file table is damaged");
        let (mut runs, mut at) = (Vec::new(), 0_i64);
        while let Some((head, rest)) = bytes.split_first().filter(|(head, _)| **head != 0) {
            let (len_bytes, at_bytes) = (usize::from(head & 15), usize::from(head >> 4));
            let fields = rest.split_at_checked(len_bytes + at_bytes);
            let (fields, behind) =
                fields.filter(|_| (1..=8).contains(&len_bytes) && at_bytes <= 8).ok_or_else(damaged)?;
            let (len, offset) = fields.split_at(len_bytes);
            let len = u64::try_from(signed(len))
                .ok()
                .filter(|len| *len > 0 && *len <= self.clusters)
                .ok_or_else(damaged)?;
            let place = match at_bytes {
                0 => None,
                _ => {
                    at = at.checked_add(signed(offset)).ok_or_else(damaged)?;
                    let place = u64::try_from(at)
                        .ok()
                        .filter(|at| at.checked_add(len).is_some_and(|end| end <= self.clusters));
                    Some(place.ok_or_else(damaged)?)
                }
            };
            runs.push(Run { at: place, len });
            if runs.len() > MOST_RUNS {
                return Err(damaged());
            }
            bytes = behind;
        }
        Ok(runs)
    }

    /// Reads a file's content by its clusters, in pieces, as long as `visit` says so.
    fn each_piece(&self, volume: &Volume<'_>, content: &Content, visit: Visit<'_>) -> Result<(), Left> {
        let (runs, len) = match content {
            Content::Resident(bytes) => return visit(0, bytes).map(drop),
            Content::Elsewhere { runs, len } => (runs, *len),
        };
        let mut at = 0;
        for run in runs {
            let (mut done, end) = (0, (run.len * self.cluster).min(len - at));
            while done < end {
                let part = PIECE.min(end - done);
                let bytes = match run.at {
                    Some(first) => volume.bytes(first * self.cluster + done, as_usize(part))?,
                    None => vec![0; as_usize(part)],
                };
                if !visit(at, &bytes)? {
                    return Ok(());
                }
                (at, done) = (at + part, done + part);
            }
            if at >= len {
                break;
            }
        }
        Ok(())
    }

    fn start_of(&self, volume: &Volume<'_>, content: &Content, len: usize) -> Result<Vec<u8>, Left> {
        let mut start = Vec::new();
        self.each_piece(volume, content, &mut |_, bytes| {
            start.extend_from_slice(bytes);
            Ok(start.len() < len)
        })?;
        start.truncate(len);
        Ok(start)
    }
}

/// A number of some bytes with its sign.
fn signed(bytes: &[u8]) -> i64 {
    let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
    let mut all = [if negative { 0xff } else { 0 }; 8];
    if let Some(low) = all.get_mut(..bytes.len()) {
        low.copy_from_slice(bytes);
    }
    i64::from_le_bytes(all)
}

/// Puts back the last two bytes of each 512, which say whether a record was torn; false if one was.
fn fix_up(bytes: &mut [u8]) -> bool {
    const STRIDE: usize = 512;
    let (at, count) = (usize::from(le16(bytes, 4)), usize::from(le16(bytes, 6)));
    if count == 0 || (count - 1) * STRIDE != bytes.len() || at + count * 2 > STRIDE - 2 {
        return false;
    }
    let mark = le16(bytes, at);
    for index in 1..count {
        let end = index * STRIDE - 2;
        if le16(bytes, end) != mark {
            return false;
        }
        let original = le16(bytes, at + index * 2).to_le_bytes();
        if let Some(place) = bytes.get_mut(end..end + 2) {
            place.copy_from_slice(&original);
        }
    }
    true
}

/// What the file system says is free, in bytes of the volume.
pub(super) fn free(volume: &Volume<'_>) -> Result<FreeMap, Left> {
    let head = Head::parse(&volume.bytes(0, 512)?, volume)?;
    check_flags(volume, &head)?;
    check_journal(volume, &head)?;
    check_hibernation(volume, &head)?;
    let missing = || strange("its NTFS has no bitmap of its clusters");
    let content = head.attribute(&head.record(volume, BITMAP)?, DATA)?.ok_or_else(missing)?;
    let own = match &content {
        Content::Elsewhere { runs, len } if len.checked_mul(8).is_some_and(|bits| bits >= head.clusters) => {
            runs.clone()
        }
        _ => return Err(missing()),
    };
    let mut free = FreeMap::default();
    head.each_piece(volume, &content, &mut |at, bytes| {
        let first = at * 8;
        clear_runs(bytes, head.clusters.saturating_sub(first), |bit, count| {
            free.add((first + bit) * head.cluster, (first + bit + count) * head.cluster);
        });
        Ok(first < head.clusters)
    })?;
    // Clusters that are in use beyond doubt: with one of them free the bitmap is not what it should be.
    let known = [0, head.mft, head.mirror].into_iter().chain(own.iter().filter_map(|run| run.at));
    let sorted = free.clone().finish(head.sector);
    for cluster in known {
        if sorted.used_in(cluster * head.cluster, head.cluster) != [(cluster * head.cluster, head.cluster)] {
            return Err(strange(format!(
                "its bitmap says that cluster {cluster} is free, which holds metadata: `chkdsk /f` in the machine puts it right"
            )));
        }
    }
    Ok(free)
}

fn check_flags(volume: &Volume<'_>, head: &Head) -> Result<(), Left> {
    let content = head.attribute(&head.record(volume, VOLUME)?, VOLUME_INFORMATION)?;
    let Some(Content::Resident(bytes)) = content.filter(|_| head.record(volume, MFT_MIRROR).is_ok()) else {
        return Err(strange("its NTFS does not say in which state it is"));
    };
    match le16(&bytes, 10) & NOT_CLEAN {
        0 => Ok(()),
        flags => Err(Left::Dirty(format!(
            "its NTFS is marked as not clean ({flags:#x}), and Windows wants to check it"
        ))),
    }
}

/// A volume that was not unmounted may have in its journal, or in a memory that was saved, what its bitmap does not say yet.
fn check_journal(volume: &Volume<'_>, head: &Head) -> Result<(), Left> {
    const RESTART: &[u8] = b"RSTR";
    let strange_log = || strange("the journal of its NTFS cannot be understood");
    let content = head.attribute(&head.record(volume, LOG_FILE)?, DATA)?.ok_or_else(strange_log)?;
    let first = head.start_of(volume, &content, 8192)?;
    if !first.is_empty() && first.iter().all(|byte| *byte == 0xff) {
        return Ok(());
    }
    let page_len = as_usize(u64::from(le32(&first, 16)));
    if !first.starts_with(RESTART) || !(512..=65536).contains(&page_len) || !page_len.is_power_of_two() {
        return Err(strange_log());
    }
    let both = head.start_of(volume, &content, 2 * page_len)?;
    let pages = both.chunks(page_len).filter_map(|page| restart(page.to_vec()));
    // Each is written in turn; the newer one counts.
    let newest = pages.max_by_key(|(sequence, _)| *sequence).ok_or_else(strange_log)?;
    if newest.1 {
        return Ok(());
    }
    Err(Left::Dirty(
        "its NTFS was not unmounted, or Windows keeps a part of it in memory (fast startup)".into(),
    ))
}

/// Of a restart page: its sequence number, and whether the volume was unmounted; none of a torn one.
fn restart(mut page: Vec<u8>) -> Option<(u64, bool)> {
    if !page.starts_with(b"RSTR") || !fix_up(&mut page) {
        return None;
    }
    let at = usize::from(le16(&page, 24));
    let area = page.get(at..).filter(|area| area.len() >= 48)?;
    let (in_use, flags) = (le16(area, 12), le16(area, 14));
    Some((le64(area, 0), in_use == NO_CLIENT || flags & IS_CLEAN != 0))
}

/// A Windows that hibernates has files in memory. Its image begins with a word, and with none once it is of no use.
fn check_hibernation(volume: &Volume<'_>, head: &Head) -> Result<(), Left> {
    let root = head.record(volume, ROOT)?;
    let mut images = Vec::new();
    let mut block = 4096;
    for kind in [INDEX_ROOT, INDEX_ALLOCATION] {
        let Some(content) = head.attribute(&root, kind)? else { continue };
        let mut index = match &content {
            Content::Elsewhere { len, .. } if *len > MOST_INDEX => {
                return Err(strange("the root folder of its NTFS is too large to be looked through"));
            }
            Content::Elsewhere { len, .. } => head.start_of(volume, &content, as_usize(*len))?,
            Content::Resident(bytes) => {
                block = as_usize(u64::from(le32(bytes, 8))).clamp(512, 65536);
                bytes.clone()
            }
        };
        for part in index.chunks_mut(block).filter(|part| part.starts_with(b"INDX")) {
            if !fix_up(part) {
                return Err(strange("the root folder of its NTFS is damaged"));
            }
        }
        images.extend(named(&index, "hiberfil.sys"));
    }
    images.sort_unstable();
    images.dedup();
    images.into_iter().try_for_each(|record| check_image(volume, head, record))
}

/// Numbers of records that an index names so.
fn named(index: &[u8], name: &str) -> Vec<u64> {
    /// Of an entry, and of the name in it, before the name's letters.
    const BEFORE: usize = 16 + 66;
    let wanted: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let is_it = |window: &[u8]| {
        window.iter().zip(&wanted).all(|(found, wanted)| found.to_ascii_lowercase() == *wanted)
    };
    let places = index.windows(wanted.len()).enumerate().filter(|(_, window)| is_it(window));
    let entry = |(at, _): (usize, &[u8])| at.checked_sub(BEFORE).map(|at| le64(index, at) & 0xffff_ffff_ffff);
    places.filter_map(entry).collect()
}

fn check_image(volume: &Volume<'_>, head: &Head, number: u64) -> Result<(), Left> {
    let table = head.attribute(&head.record(volume, 0)?, DATA)?;
    let Some(Content::Elsewhere { runs, .. }) = table else {
        return Err(strange("its master file table is damaged"));
    };
    let mut at = number.saturating_mul(head.record as u64);
    let place = runs.iter().find_map(|run| {
        let len = run.len * head.cluster;
        if at < len {
            run.at.map(|first| first * head.cluster + at)
        } else {
            at -= len;
            None
        }
    });
    // An entry of an index that is not in use any more may name anything.
    let Some(mut bytes) = place.and_then(|place| volume.bytes(place, head.record).ok()) else {
        return Ok(());
    };
    if !bytes.starts_with(b"FILE") || !fix_up(&mut bytes) || le16(&bytes, 22) & 1 == 0 {
        return Ok(());
    }
    let hibernated = || Left::Dirty("Windows hibernates on its NTFS".into());
    // Its list of clusters may be in several records: nothing is known then, and it is there.
    let content = head.attribute(&bytes, DATA).map_err(|_| hibernated())?;
    let start = content.map_or(Ok(Vec::new()), |content| head.start_of(volume, &content, 4))?;
    match start.to_ascii_lowercase().as_slice() {
        b"hibr" | b"rstr" => Err(hibernated()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head { sector: 512, cluster: 4096, clusters: 1 << 20, mft: 4, mirror: 8, record: 1024 }
    }

    #[test]
    fn lists_of_clusters_count_from_the_one_before() {
        // 0x18 clusters at 0x5634, 4 of a hole, 0x20 at 0x5634 - 0x100.
        let bytes = [0x21, 0x18, 0x34, 0x56, 0x01, 0x04, 0x21, 0x20, 0x00, 0xff, 0x00];
        let runs = head().runs(&bytes).unwrap();
        assert_eq!(
            runs,
            [
                Run { at: Some(0x5634), len: 0x18 },
                Run { at: None, len: 4 },
                Run { at: Some(0x5534), len: 0x20 }
            ]
        );
        for wrong in [
            &[0x21, 0x18, 0x34][..],
            &[0x11, 0x00, 0x01],
            &[0x11, 0x08, 0x80],
            &[0xf1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        ] {
            assert!(head().runs(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_a_journal_that_was_closed_is_clean() {
        let page = |in_use: u16, flags: u16, sequence: u64| {
            let mut page = vec![0; 4096];
            page[..4].copy_from_slice(b"RSTR");
            (page[4], page[6], page[24]) = (30, 9, 64);
            page[64..72].copy_from_slice(&sequence.to_le_bytes());
            page[76..78].copy_from_slice(&in_use.to_le_bytes());
            page[78..80].copy_from_slice(&flags.to_le_bytes());
            page
        };
        assert_eq!(restart(page(0, 0, 5)), Some((5, false)), "somebody writes to it");
        assert_eq!(restart(page(0, IS_CLEAN, 6)), Some((6, true)));
        assert_eq!(restart(page(NO_CLIENT, 0, 7)), Some((7, true)));
        let mut torn = page(NO_CLIENT, 0, 7);
        torn[1022] = 1;
        assert_eq!(restart(torn), None);
    }

    #[test]
    fn torn_records_are_seen() {
        let mut record = vec![0; 1024];
        record[4] = 48;
        record[6] = 3;
        for at in [48, 510, 1022] {
            record[at] = 7;
        }
        (record[50], record[52]) = (1, 2);
        let mut whole = record.clone();
        assert!(fix_up(&mut whole));
        assert_eq!((whole[510], whole[1022]), (1, 2));
        record[1022] = 6;
        assert!(!fix_up(&mut record));
    }

    #[test]
    fn names_in_an_index_lead_to_their_records() {
        let mut index = vec![0; 300];
        index[40..48].copy_from_slice(&(77_u64 | 5 << 48).to_le_bytes());
        let name: Vec<u8> = "HiberFil.sys".encode_utf16().flat_map(u16::to_le_bytes).collect();
        index[122..122 + name.len()].copy_from_slice(&name);
        assert_eq!(named(&index, "hiberfil.sys"), [77]);
        assert!(named(&index, "pagefile.sys").is_empty());
    }
}

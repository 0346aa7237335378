//! Another parent for a differencing disk, in place, without an instant at which a crash would leave a torn header.
//!
//! The header is two sectors and its texts are more, so it cannot be replaced in one step. But the footer, one sector, says
//! where the header is:
//! 1. a whole new header with its texts goes to a free place, and is made durable;
//! 2. the footer at the end and the copy at the start are told to point there, and made durable;
//! 3. now the old header belongs to nobody: it is written anew in its old place, and made durable;
//! 4. both footers point to the old place again, and are made durable; the free place is free again.
//!
//! At every instant each of the footers points to a whole header, the old or the new one. No journal is needed, and every reader
//! of VHD finds the right header even where a crash stopped it half way.

use std::fmt;

use zerocopy::{
    FromBytes, IntoBytes,
    big_endian::{U16, U32, U64},
};

use crate::{
    create::{CreateError, ParentSpec, name_units, relative_text},
    errors::{IoContext, MetaError},
    format::{
        SECTOR, align_up,
        bat::{ABSENT, Blocks},
        footer::{FOOTER_LEN, Footer},
        header::{HEADER_LEN, Header},
        locator::{LocatorEntry, LocatorKind, MAX_LOCATOR_LEN, encode_utf16le},
    },
    image::{Image, SparseImage},
    merge::FileSpan,
    plan::{self, Content, PlanError, Step},
};

/// Why a plan for another parent cannot be made or carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReparentError {
    /// A path is too long.
    #[error("cannot describe the parent")]
    Spec(#[source] CreateError),
    /// Only differencing disks have one.
    #[error("this is not a differencing disk, so it has no parent")]
    NotDifferencing,
    /// Foreign disks with tiny blocks.
    #[error(
        "the blocks of this disk are too small ({0} bytes) for its new header; convert the disk into one with larger blocks"
    )]
    NoRoom(u64),
    /// The header could not be read again.
    #[error("the header at offset {0} is not what it was when the disk was opened")]
    Header(u64),
    /// The metadata of the disk.
    #[error("cannot change the disk's metadata")]
    Meta(#[from] MetaError),
    /// A step failed.
    #[error("cannot write the new header")]
    Write(#[from] PlanError),
}

/// What is written where to give a disk another parent; printable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReparentPlan {
    /// To the free place: a header, and texts.
    pub scratch: Vec<Step>,
    /// To the place of the header: the same header for that place.
    pub home: Vec<Step>,
    /// The texts did not fit where the old ones are: those in the free place stay in use.
    pub keeps_scratch: bool,
}

impl fmt::Display for ReparentPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.scratch.iter().chain(&self.home).try_for_each(|step| writeln!(f, "{step}"))
    }
}

/// A text for a locator.
struct Text {
    code: [u8; 4],
    what: &'static str,
    bytes: Vec<u8>,
}

/// Plans it. `header` is the present one at `home`; `scratch` is a free place; `may_hold(span)` says whether a present
/// text may be overwritten there with more bytes.
///
/// # Errors
/// If a path is too long, or the free place too small.
pub fn plan(
    header: &Header,
    home: u64,
    scratch: FileSpan,
    parent: &ParentSpec,
    may_hold: &dyn Fn(FileSpan) -> bool,
) -> Result<ReparentPlan, ReparentError> {
    let texts = texts(parent)?;
    let mut new = header.clone();
    new.parent_unique_id = *parent.unique_id.as_bytes();
    new.parent_time_stamp = U32::new(parent.time_stamp.0);
    new.parent_name.fill(U16::new(0));
    for (to, from) in new.parent_name.iter_mut().zip(name_units(&parent.name)) {
        *to = U16::new(from);
    }
    // Other programs' names for the old parent are wrong from now on.
    new.locators = std::array::from_fn(|_| LocatorEntry::default());
    let mut there = new.clone();
    let mut at = scratch.offset + HEADER_LEN as u64;
    let mut scratch_steps = Vec::new();
    let mut home_steps = Vec::new();
    let mut keeps_scratch = false;
    for (slot, text) in texts.iter().enumerate() {
        let space = align_up(text.bytes.len() as u64, SECTOR).unwrap_or(u64::MAX);
        let copy = entry(text, at, space);
        scratch_steps.push(write(text.what, at, &text.bytes));
        let old = header.locators.iter().find(|old| old.code == text.code);
        let fits = old.filter(|old| {
            let span = FileSpan { offset: old.data_offset.get(), len: text.bytes.len() as u64 };
            span.len <= old.reserved_bytes() && may_hold(span)
        });
        let stays = match fits {
            Some(old) => {
                let mut stays = entry(text, old.data_offset.get(), 0);
                stays.data_space = old.data_space;
                home_steps.push(write(text.what, stays.data_offset.get(), &text.bytes));
                stays
            }
            None => {
                keeps_scratch = true;
                copy.clone()
            }
        };
        if let (Some(there), Some(stay)) = (there.locators.get_mut(slot), new.locators.get_mut(slot)) {
            (*there, *stay) = (copy, stays);
        }
        at += space;
    }
    if at > scratch.offset + scratch.len {
        return Err(ReparentError::NoRoom(scratch.len));
    }
    scratch_steps.push(write("the new header", scratch.offset, there.sealed().as_bytes()));
    home_steps.push(write("the header", home, new.sealed().as_bytes()));
    Ok(ReparentPlan { scratch: scratch_steps, home: home_steps, keeps_scratch })
}

fn texts(parent: &ParentSpec) -> Result<Vec<Text>, ReparentError> {
    let absolute = parent.absolute.as_deref().map(encode_utf16le);
    let relative = parent.relative.as_deref().map(relative_text).as_deref().map(encode_utf16le);
    let all = [
        (LocatorKind::W2KU, "the absolute parent locator", absolute),
        (LocatorKind::W2RU, "the relative parent locator", relative),
    ];
    let kept = all.into_iter().filter_map(|(code, what, bytes)| {
        bytes.filter(|bytes| !bytes.is_empty()).map(|bytes| Text { code, what, bytes })
    });
    let texts: Vec<Text> = kept.collect();
    match texts.iter().find(|text| text.bytes.len() > MAX_LOCATOR_LEN as usize) {
        Some(text) => Err(ReparentError::Spec(CreateError::PathTooLong(text.bytes.len()))),
        None => Ok(texts),
    }
}

fn entry(text: &Text, offset: u64, space: u64) -> LocatorEntry {
    LocatorEntry {
        code: text.code,
        data_space: U32::new(u32::try_from(space).unwrap_or(u32::MAX)),
        data_length: U32::new(u32::try_from(text.bytes.len()).unwrap_or(u32::MAX)),
        reserved: U32::new(0),
        data_offset: U64::new(offset),
    }
}

fn write(what: &str, offset: u64, bytes: &[u8]) -> Step {
    Step::Write { what: what.to_owned(), offset, content: Content::Bytes(bytes.to_vec()) }
}

impl Image {
    /// Gives a differencing disk that is open for writing another parent, which must read the same. Requests go on
    /// meanwhile. [`Image::info`] stays as of the opening. Calls must not overlap.
    ///
    /// # Errors
    /// [`ReparentError`]; the file names the old or the new parent then.
    pub fn reparent(&self, parent: &ParentSpec) -> Result<(), ReparentError> {
        self.check_writable()?;
        let (sparse, _) = self.differencing().ok_or(ReparentError::NotDifferencing)?;
        let place = sparse.allocator().take()?;
        let scratch = FileSpan { offset: u64::from(place) * SECTOR, len: sparse.blocks.stored_len() };
        let (mut footer, home, plan) = match self.plan_reparent(sparse, scratch, parent) {
            Ok(planned) => planned,
            Err(error) => {
                sparse.allocator().give_back(place);
                return Err(error);
            }
        };
        plan::execute(&plan.scratch, self.storage.as_ref())?;
        self.sync_file(scratch.offset)?;
        footer.data_offset = U64::new(scratch.offset);
        self.point_footers(sparse, &footer)?;
        plan::execute(&plan.home, self.storage.as_ref())?;
        self.sync_file(home)?;
        footer.data_offset = U64::new(home);
        self.point_footers(sparse, &footer)?;
        if !plan.keeps_scratch {
            // Zeros again, durable, before anything else may be put there.
            self.storage
                .zero_range(scratch.offset, scratch.len)
                .meta_context("free the space of the new header", scratch.offset)?;
            self.sync_file(scratch.offset)?;
            sparse.allocator().give_back(place);
        } else {
            sparse.allocator().keep(place);
        }
        Ok(())
    }

    fn plan_reparent(
        &self,
        sparse: &SparseImage,
        scratch: FileSpan,
        parent: &ParentSpec,
    ) -> Result<(Footer, u64, ReparentPlan), ReparentError> {
        let bytes = sparse.allocator().footer();
        let footer = Footer::read_from_bytes(&bytes).map_err(|_| ReparentError::Header(0))?;
        let home = footer.data_offset.get();
        let mut bytes = [0; HEADER_LEN];
        self.storage.read_at(&mut bytes, home).meta_context("read the header", home)?;
        let header = Header::parse(&bytes).map_err(|_| ReparentError::Header(home))?;
        let plan = plan(&header, home, scratch, parent, &|span| may_hold(sparse, &header, home, span))?;
        Ok((footer, home, plan))
    }

    /// Both footers, in any order: what either points to is whole.
    fn point_footers(&self, sparse: &SparseImage, footer: &Footer) -> Result<(), ReparentError> {
        let bytes = footer.clone().sealed().to_bytes();
        sparse.allocator().set_footer(bytes)?;
        self.storage.write_at(&bytes, 0).meta_context("write the copy of the footer", 0)?;
        Ok(self.sync_file(0)?)
    }
}

/// Whether a text there would share bytes with nothing but the text that is there now.
fn may_hold(sparse: &SparseImage, header: &Header, home: u64, span: FileSpan) -> bool {
    let end = span.offset.saturating_add(span.len);
    let meets = |start: u64, len: u64| start < end && span.offset < start.saturating_add(len);
    let table = (header.table_offset.get(), Blocks::table_len(header.max_table_entries.get()));
    let others = header.locators.iter().filter(|other| !other.is_empty());
    let texts = others.filter(|other| other.data_offset.get() != span.offset);
    let blocks = (0..sparse.blocks.count).map(|block| sparse.entry(block)).filter(|entry| *entry != ABSENT);
    !(meets(0, FOOTER_LEN as u64)
        || meets(home, HEADER_LEN as u64)
        || meets(table.0, table.1)
        || texts.into_iter().any(|other| meets(other.data_offset.get(), u64::from(other.data_length.get())))
        || blocks.into_iter().any(|entry| meets(u64::from(entry) * SECTOR, sparse.blocks.stored_len()))
        || end > sparse.first_free)
}

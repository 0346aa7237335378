//! Which footer counts: the one at the end, an old short one, the copy at the start, or one that a longer file left behind.

use crate::{
    Storage,
    errors::{IoContext, OpenError},
    format::{
        footer::{DiskType, FOOTER_LEN, Footer, FooterError},
        header::{HEADER_LEN, Header},
    },
    info::Warning,
};

const LEN: u64 = FOOTER_LEN as u64;

/// The footer that counts.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) footer: Footer,
    pub(crate) place: Place,
    /// First byte behind the data: the footer at the end, or the end of the file without one.
    pub(crate) data_end: u64,
    pub(crate) warnings: Vec<Warning>,
}

/// Where the footer was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The last 512 bytes.
    End,
    /// The last 511 bytes, as before Virtual PC 2004.
    ShortEnd,
    /// Only the copy at the start is good.
    Start,
    /// Of a fixed disk, before the end: growing it was cut off, and nothing lies behind.
    Inside,
}

impl Found {
    /// Whether a footer of this disk is at the end of the file.
    pub(crate) fn at_end(&self) -> bool {
        self.place != Place::Start
    }

    fn end(footer: Footer, place: Place, len: u64) -> Self {
        let data_end = if place == Place::ShortEnd { len - (LEN - 1) } else { len - LEN };
        Self { footer, place, data_end, warnings: Vec::new() }
    }
}

/// Finds it. The order is that of other programs: end, short end, start.
pub(crate) fn footer(storage: &dyn Storage, len: u64) -> Result<Found, OpenError> {
    if len < LEN - 1 {
        return Err(OpenError::NotVhd);
    }
    let (place, trailing) = read_trailing(storage, len)?;
    let mut start = [0; FOOTER_LEN];
    let copy = if len >= LEN {
        storage.read_at(&mut start, 0).open_context("read the copy of the footer", 0)?;
        Footer::parse(&start)
    } else {
        Err(FooterError::NotAFooter)
    };
    let copy_is_sparse = copy.as_ref().is_ok_and(is_sparse);
    let copy_has_header = match &copy {
        Ok(copy) if copy_is_sparse => has_header(storage, copy, len)?,
        _ => false,
    };
    match (trailing, copy) {
        (Err(FooterError::Poisoned), _) => Err(OpenError::Poisoned),
        (Ok(footer), copy) if is_fixed(&footer) => {
            let found = Found::end(footer, place, len);
            // The start of a fixed disk is the guest's: what looks like a footer there counts only if this footer
            // cannot be right, as when a dynamic file lost its own and ends in a guest's nested disk.
            match copy {
                Ok(copy) if copy_has_header && found.footer.current_size.get() != found.data_end => {
                    Ok(at_start(copy, len, Warning::TrailingFooterForeign { repaired: false }))
                }
                _ => Ok(found),
            }
        }
        (_, Err(FooterError::Poisoned)) => Err(OpenError::Poisoned),
        (Ok(footer), Ok(copy)) => {
            if footer.unique_id != copy.unique_id && copy_has_header {
                return Ok(at_start(copy, len, Warning::TrailingFooterForeign { repaired: false }));
            }
            let mut found = Found::end(footer, place, len);
            if found.footer != copy {
                found.warnings.push(Warning::FooterCopyDiffers);
            }
            Ok(found)
        }
        (Ok(footer), Err(_)) => {
            let mut found = Found::end(footer, place, len);
            if found.footer.kind().is_some() {
                found.warnings.push(Warning::FooterCopyBad);
            }
            Ok(found)
        }
        (Err(_), Ok(copy)) if copy_is_sparse => {
            Ok(at_start(copy, len, Warning::TrailingFooterBad { repaired: false }))
        }
        (Err(trailing), copy) => {
            let inside = match trailing {
                FooterError::NotAFooter => inside(storage, len)?,
                _ => None,
            };
            inside.map_or_else(|| Err(refusal(trailing, copy.err(), &start)), Ok)
        }
    }
}

/// The footer of a fixed disk whose file was made longer and has no footer at its new end: the last bytes of the file
/// that are not zeros, right behind the disk whose size it tells. Nothing else can look so by chance.
fn inside(storage: &dyn Storage, len: u64) -> Result<Option<Found>, OpenError> {
    const LOOK: u64 = 1 << 20;
    let mut last = None;
    let mut at = 0;
    while let Some(data) = storage.next_data(at).open_context("look for a footer", at)? {
        at = storage.next_hole(data).open_context("look for a footer", data)?.min(len);
        last = Some((data, at));
        if at <= data || at >= len {
            break;
        }
    }
    let Some((data, end)) = last else { return Ok(None) };
    let mut end = end / LEN * LEN;
    let lowest = data.max(end.saturating_sub(LOOK));
    let mut bytes = [0; FOOTER_LEN];
    while let Some(at) = end.checked_sub(LEN).filter(|at| *at + LEN > lowest) {
        storage.read_at(&mut bytes, at).open_context("look for a footer", at)?;
        if bytes.iter().any(|byte| *byte != 0) {
            let footer = Footer::parse(&bytes).ok().filter(|f| is_fixed(f) && f.current_size.get() == at);
            return Ok(footer.map(|footer| Found {
                footer,
                place: Place::Inside,
                data_end: at,
                warnings: vec![Warning::TrailingFooterBad { repaired: false }],
            }));
        }
        end = at;
    }
    Ok(None)
}

fn at_start(footer: Footer, len: u64, warning: Warning) -> Found {
    Found { footer, place: Place::Start, data_end: len, warnings: vec![warning] }
}

fn is_sparse(footer: &Footer) -> bool {
    matches!(footer.kind(), Some(DiskType::Dynamic | DiskType::Differencing))
}

/// Whether there is a good header where the footer says.
fn has_header(storage: &dyn Storage, footer: &Footer, len: u64) -> Result<bool, OpenError> {
    let offset = footer.data_offset.get();
    if offset.checked_add(HEADER_LEN as u64).is_none_or(|end| end > len) {
        return Ok(false);
    }
    let mut bytes = [0; HEADER_LEN];
    storage.read_at(&mut bytes, offset).open_context("read the header", offset)?;
    Ok(Header::parse(&bytes).is_ok())
}

fn is_fixed(footer: &Footer) -> bool {
    footer.kind() == Some(DiskType::Fixed)
}

fn read_trailing(storage: &dyn Storage, len: u64) -> Result<(Place, Result<Footer, FooterError>), OpenError> {
    let mut last = Err(FooterError::NotAFooter);
    let mut bytes = [0; FOOTER_LEN];
    if let Some(at) = len.checked_sub(LEN) {
        storage.read_at(&mut bytes, at).open_context("read the footer", at)?;
        last = Footer::parse(&bytes);
    }
    if !matches!(last, Err(FooterError::NotAFooter)) {
        return Ok((Place::End, last));
    }
    let at = len - (LEN - 1);
    let mut short = [0; FOOTER_LEN];
    if let Some(part) = short.get_mut(..FOOTER_LEN - 1) {
        storage.read_at(part, at).open_context("read the footer", at)?;
    }
    match Footer::parse(&short) {
        Err(FooterError::NotAFooter) => Ok((Place::End, last)),
        short => Ok((Place::ShortEnd, short)),
    }
}

/// The most telling reason why there is no footer.
fn refusal(trailing: FooterError, copy: Option<FooterError>, start: &[u8; FOOTER_LEN]) -> OpenError {
    if start.starts_with(b"vhdxfile") {
        return OpenError::IsVhdx;
    }
    match (trailing, copy) {
        (FooterError::NotAFooter, None | Some(FooterError::NotAFooter)) => OpenError::NotVhd,
        (FooterError::NotAFooter, Some(copy)) => OpenError::Footer(copy),
        (trailing, _) => OpenError::Footer(trailing),
    }
}

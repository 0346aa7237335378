//! Memory that begins at a page, as transfers past the page cache want it.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

const PAGE: usize = 4096;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// A buffer that grows.
#[derive(Default)]
pub(crate) struct Pages(Vec<Page>);

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").field("bytes", &self.len()).finish()
    }
}

impl Pages {
    /// Room for `len` bytes; what is in it is left from before.
    pub(crate) fn room(&mut self, len: usize) -> &mut [u8] {
        let pages = len.div_ceil(PAGE);
        if self.0.len() < pages {
            self.0.resize(pages, Page::new_zeroed());
        }
        self.0.as_mut_slice().as_mut_bytes().get_mut(..len).unwrap_or_default()
    }

    /// The first `len` bytes.
    pub(crate) fn bytes(&self, len: usize) -> &[u8] {
        self.0.as_slice().as_bytes().get(..len).unwrap_or_default()
    }

    /// Bytes that are kept.
    pub(crate) fn len(&self) -> usize {
        self.0.len() * PAGE
    }
}

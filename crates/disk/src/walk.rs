//! Which file of a chain holds which part of a range.

use crate::{
    flat::{FlatIndex, Layers},
    layer::Layer,
};
use backstay_vhd::{ReadExtent, Source, WriteTicket};
use std::{
    cell::RefCell,
    io,
    ops::{Deref, DerefMut},
    sync::Arc,
};

/// Where one part of a range is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// In a file.
    Data {
        /// Which.
        layer: &'a Layer,
        /// Where in the file.
        file_offset: u64,
    },
    /// In none: zeros.
    Nowhere,
}

/// Calls `visit(position, len, place)` for each part of a range, in order and without gaps. The range may pass the end
/// of a lower layer: there is nothing behind it.
pub(crate) fn walk<'a>(
    layers: &'a [Arc<Layer>],
    offset: u64,
    len: u64,
    visit: &mut dyn FnMut(u64, u64, Place<'a>) -> io::Result<()>,
) -> io::Result<()> {
    walk_from(layers, 0, None, offset, len, visit)
}

/// As [`walk`], with what is known about the layers below the top.
pub(crate) fn walk_known<'a>(
    layers: &'a Layers,
    offset: u64,
    len: u64,
    visit: &mut dyn FnMut(u64, u64, Place<'a>) -> io::Result<()>,
) -> io::Result<()> {
    walk_from(layers, 0, layers.flat(), offset, len, visit)
}

/// As [`walk`] for the layers below the first.
pub(crate) fn walk_below<'a>(
    layers: &'a [Arc<Layer>],
    offset: u64,
    len: u64,
    visit: &mut dyn FnMut(u64, u64, Place<'a>) -> io::Result<()>,
) -> io::Result<()> {
    walk_from(layers, 1, None, offset, len, visit)
}

fn walk_from<'a>(
    layers: &'a [Arc<Layer>],
    depth: usize,
    below: Option<&FlatIndex>,
    offset: u64,
    len: u64,
    visit: &mut dyn FnMut(u64, u64, Place<'a>) -> io::Result<()>,
) -> io::Result<()> {
    let Some(layer) = layers.get(depth) else { return visit(offset, len, Place::Nowhere) };
    let inside = layer.size.saturating_sub(offset).min(len);
    let mut extents = Scratch::<Vec<ReadExtent>>::take();
    if inside > 0 {
        layer.resolve(offset, inside, &mut extents)?;
    }
    let mut at = offset;
    for extent in extents.iter() {
        match extent.source {
            Source::Data { file_offset } => {
                visit(at, extent.len, Place::Data { layer: layer.as_ref(), file_offset })?;
            }
            Source::Zero => visit(at, extent.len, Place::Nowhere)?,
            Source::Parent => match below {
                Some(flat) => flat.walk(layers, at, extent.len, visit)?,
                None => walk_from(layers, depth + 1, None, at, extent.len, visit)?,
            },
        }
        at += extent.len;
    }
    if inside < len { visit(at, len - inside, Place::Nowhere) } else { Ok(()) }
}

/// Something reusable that a request borrows from its thread, so that no request allocates.
#[derive(Debug)]
pub(crate) struct Scratch<T: Reusable>(T);

/// What [`Scratch`] can lend.
pub(crate) trait Reusable: Default + 'static {
    fn pool<R>(with: impl FnOnce(&RefCell<Vec<Self>>) -> R) -> R;
    fn wipe(&mut self);
}

thread_local! {
    static EXTENTS: RefCell<Vec<Vec<ReadExtent>>> = const { RefCell::new(Vec::new()) };
    static TICKETS: RefCell<Vec<WriteTicket>> = const { RefCell::new(Vec::new()) };
}

impl Reusable for Vec<ReadExtent> {
    fn pool<R>(with: impl FnOnce(&RefCell<Vec<Self>>) -> R) -> R {
        EXTENTS.with(with)
    }
    fn wipe(&mut self) {
        self.clear();
    }
}

impl Reusable for WriteTicket {
    fn pool<R>(with: impl FnOnce(&RefCell<Vec<Self>>) -> R) -> R {
        TICKETS.with(with)
    }
    fn wipe(&mut self) {}
}

impl<T: Reusable> Scratch<T> {
    pub(crate) fn take() -> Self {
        Self(T::pool(|pool| pool.borrow_mut().pop()).unwrap_or_default())
    }
}

impl<T: Reusable> Drop for Scratch<T> {
    fn drop(&mut self) {
        let mut value = std::mem::take(&mut self.0);
        value.wipe();
        T::pool(|pool| pool.borrow_mut().push(value));
    }
}

impl<T: Reusable> Deref for Scratch<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Reusable> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

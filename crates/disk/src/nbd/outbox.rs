//! Replies on their way to the client: small ones collect, large ones leave at once together with what collected.

use std::{io::IoSlice, os::fd::AsFd};

use rustix::{
    io::Errno as Os,
    net::{SendAncillaryBuffer, SendFlags, sendmsg},
};

/// Replies up to this length are copied and collected, in bytes.
const SMALL: usize = 64 << 10;
/// Collected replies are sent at the latest when they reach this length, in bytes.
const FULL: usize = 256 << 10;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    pending: Vec<u8>,
    broken: bool,
}

/// The client is gone. Nothing can be sent any more.
#[derive(Debug)]
pub(super) struct Broken;

impl Outbox {
    /// Adds one reply made of `parts`.
    pub fn push(&mut self, socket: impl AsFd, parts: &[&[u8]]) -> Result<(), Broken> {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        if len > SMALL {
            return self.send(socket, parts);
        }
        for part in parts {
            self.pending.extend_from_slice(part);
        }
        if self.pending.len() >= FULL { self.flush(socket) } else { Ok(()) }
    }

    /// Adds a reply of `head` and `len` bytes that `fill` stores; nothing if that fails.
    pub fn push_filled<E>(
        &mut self,
        head: &[u8],
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.pending.len();
        self.pending.extend_from_slice(head);
        let data = self.pending.len();
        self.pending.resize(data + len, 0);
        let filled = fill(&mut self.pending[data..]);
        if filled.is_err() {
            self.pending.truncate(start);
        }
        filled
    }

    pub fn is_full(&self) -> bool {
        self.pending.len() >= FULL
    }

    /// Sends what collected.
    pub fn flush(&mut self, socket: impl AsFd) -> Result<(), Broken> {
        if self.pending.is_empty() && !self.broken { Ok(()) } else { self.send(socket, &[]) }
    }

    fn send(&mut self, socket: impl AsFd, parts: &[&[u8]]) -> Result<(), Broken> {
        let sent = if self.broken { Err(Broken) } else { send_all(socket, &self.pending, parts) };
        self.pending.clear();
        self.broken |= sent.is_err();
        sent
    }
}

fn send_all(socket: impl AsFd, first: &[u8], parts: &[&[u8]]) -> Result<(), Broken> {
    let mut slices: Vec<IoSlice<'_>> = [first].iter().chain(parts).map(|p| IoSlice::new(p)).collect();
    let mut left = slices.as_mut_slice();
    // Drops empty leading slices.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        // At most this many slices per call (IOV_MAX).
        let batch = &left[..left.len().min(1024)];
        match sendmsg(&socket, batch, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
            Ok(0) => return Err(Broken),
            Ok(n) => IoSlice::advance_slices(&mut left, n),
            Err(Os::INTR) => {}
            Err(_) => return Err(Broken),
        }
    }
    Ok(())
}

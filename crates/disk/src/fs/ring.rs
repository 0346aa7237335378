//! Many reads and writes of files in one system call, by io_uring.
//!
//! Each thread that needs one has a ring of its own, so nothing is shared and nothing is locked. A call returns when all of its
//! transfers have ended: the kernel writes into no buffer that a caller has back.

use super::RingFile;
use io_uring::{IoUring, opcode, squeue, types::Fd};
use rustix::fd::AsRawFd;
use std::{
    cell::RefCell,
    io,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// Transfers under way at a time.
const ENTRIES: u32 = 64;

/// Cleared where the kernel has no io_uring, or does not let this process have one.
static AVAILABLE: AtomicBool = AtomicBool::new(true);

thread_local! {
    static RING: RefCell<Option<IoUring>> = const { RefCell::new(None) };
}

/// The memory of a transfer.
#[derive(Debug)]
pub(crate) enum Buf<'a> {
    /// Filled from the file.
    Read(&'a mut [u8]),
    /// Written to the file.
    Write(&'a [u8]),
}

/// One read or write. Memory, offset and length are aligned as [`RingFile`] wants it.
#[derive(Debug)]
pub(crate) struct Transfer<'a> {
    pub(crate) file: RingFile<'a>,
    pub(crate) offset: u64,
    pub(crate) buf: Buf<'a>,
}

impl Buf<'_> {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Read(buf) => buf,
            Self::Write(buf) => buf,
        }
    }
}

impl Transfer<'_> {
    fn entry(&mut self, index: usize) -> squeue::Entry {
        let fd = Fd(self.file.file.as_raw_fd());
        // A length that does not fit is a short transfer, whose rest is done otherwise.
        let short = |len: usize| u32::try_from(len).unwrap_or(1 << 30);
        let entry = match &mut self.buf {
            Buf::Read(buf) => {
                opcode::Read::new(fd, buf.as_mut_ptr(), short(buf.len())).offset(self.offset).build()
            }
            Buf::Write(buf) => {
                opcode::Write::new(fd, buf.as_ptr(), short(buf.len())).offset(self.offset).build()
            }
        };
        entry.user_data(index as u64)
    }

    /// What is left after `done` bytes, in the plain way.
    fn finish(&mut self, done: usize) -> io::Result<()> {
        let offset = self.offset + done as u64;
        match &mut self.buf {
            Buf::Read(buf) => {
                let rest = buf.get_mut(done..).unwrap_or_default();
                if rest.is_empty() { Ok(()) } else { self.file.file.read_exact_at(rest, offset) }
            }
            Buf::Write(buf) => {
                let rest = buf.get(done..).unwrap_or_default();
                if rest.is_empty() { Ok(()) } else { self.file.file.write_all_at(rest, offset) }
            }
        }
    }

    fn ended(&mut self, result: i32) -> io::Result<()> {
        match usize::try_from(result) {
            Ok(done) => self.finish(done),
            Err(_) => match -result {
                libc::EINTR | libc::EAGAIN => self.finish(0),
                // The device wants it aligned in some other way.
                libc::EINVAL => {
                    self.file.file = self.file.cached;
                    self.finish(0)
                }
                error => Err(io::Error::from_raw_os_error(error)),
            },
        }
    }
}

/// Whether this process can have rings, as far as is known.
pub(crate) fn available() -> bool {
    AVAILABLE.load(Relaxed)
}

/// Carries all transfers out, at the same time where the kernel lets it. `done` is told of each once, in the order in which they
/// end.
pub(crate) fn run(transfers: &mut [Transfer<'_>], done: &mut dyn FnMut(usize, &Buf<'_>, io::Result<()>)) {
    // A callback that came back here would find none, and be served without.
    let Some(mut ring) = RING.take().or_else(new_ring) else {
        for (index, transfer) in transfers.iter_mut().enumerate() {
            let result = transfer.file.pass(&transfer.buf).and_then(|()| transfer.finish(0));
            done(index, &transfer.buf, result);
        }
        return;
    };
    let mut flight = Flight { ring: &mut ring, under_way: 0 };
    let mut next = 0;
    while next < transfers.len() || flight.under_way > 0 {
        while next < transfers.len() && flight.under_way < ENTRIES as usize {
            let Some(transfer) = transfers.get_mut(next) else { break };
            // The gate is asked at the moment a write is handed over.
            match transfer.file.pass(&transfer.buf) {
                Ok(()) => flight.push(&transfer.entry(next)),
                Err(error) => done(next, &transfer.buf, Err(error)),
            }
            next += 1;
        }
        if flight.under_way > 0 {
            for (index, result) in flight.wait() {
                if let Some(transfer) = transfers.get_mut(index) {
                    let result = transfer.ended(result);
                    done(index, &transfer.buf, result);
                }
            }
        }
    }
    drop(flight);
    RING.set(Some(ring));
}

fn new_ring() -> Option<IoUring> {
    if !available() {
        return None;
    }
    // One thread submits and nobody else reaps: the kernel need not interrupt it.
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(ENTRIES)
        .or_else(|_| IoUring::new(ENTRIES));
    ring.inspect_err(|error| {
        let full = [libc::ENOMEM, libc::EMFILE, libc::ENFILE];
        if !error.raw_os_error().is_some_and(|errno| full.contains(&errno)) {
            AVAILABLE.store(false, Relaxed);
            tracing::info!(%error, "no io_uring for this process; disks are read and written by threads");
        }
    })
    .ok()
}

/// A ring with transfers under way. It is not let go before they have ended, however the caller ends.
struct Flight<'a> {
    ring: &'a mut IoUring,
    under_way: usize,
}

impl Flight<'_> {
    fn push(&mut self, entry: &squeue::Entry) {
        #[expect(unsafe_code, reason = "the queue is handed memory by address")]
        // SAFETY: the buffer and the descriptor outlive the transfer: `run` borrows both, and neither it nor `Drop` returns
        // before the transfer has ended. The queue has room: no more than its entries are under way.
        let pushed = unsafe { self.ring.submission().push(entry) };
        debug_assert!(pushed.is_ok(), "no more than ENTRIES are under way");
        if pushed.is_ok() {
            self.under_way += 1;
        }
    }

    /// Hands over what was pushed and waits until something has ended.
    fn wait(&mut self) -> Vec<(usize, i32)> {
        loop {
            // What it fails with passes: an interruption, or too much under way elsewhere.
            let waited = self.ring.submit_and_wait(1);
            let ended: Vec<_> = self
                .ring
                .completion()
                .map(|entry| (usize::try_from(entry.user_data()).unwrap_or(usize::MAX), entry.result()))
                .collect();
            self.under_way -= ended.len().min(self.under_way);
            if !ended.is_empty() {
                return ended;
            }
            if waited.is_err() {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        while self.under_way > 0 {
            self.wait();
        }
    }
}

//! One connection after the handshake: threads that take turns at reading requests.
//!
//! One thread at a time leads: it reads requests, answers cached reads itself and collects the replies. Before a request
//! that may wait for a device it lays the reader aside where another thread can pick it up, carries the request out, and
//! takes the reader back if nobody did. So a fast device is served by one thread without hand-overs, and a slow one by up
//! to [`MAX_IN_FLIGHT`] threads. Nothing here is shared between connections but the export itself, and no lock of the
//! export is held while a reply is sent: a client that does not read its replies delays nobody else.

use std::{
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use zerocopy::IntoBytes;

use super::{
    export::{Export, Run, errno},
    negotiate::Session,
    outbox::{Broken, Outbox},
    proto::{ChunkHead, DataChunk, Errno, HoleChunk, SimpleReply, StatusEntry, chunk},
    reader::Reader,
    request::{Decision, Op, Request, judge},
    throttle::Waiting,
};
use crate::{ZeroMode, fs::Pages};

/// Requests a connection carries out at the same time, and the threads it may have for that.
const MAX_IN_FLIGHT: usize = 32;
/// Threads of a connection whose requests wait for the disk's limit and that are not counted among those; so many requests may
/// come between a flush and its turn.
const MAX_PARKED: usize = 128;
/// Payload a connection may hold in memory, in bytes; one request always fits.
const MAX_HELD: u64 = 64 << 20;
/// Requests with less payload are not counted, in bytes.
pub(super) const UNCOUNTED: u32 = 64 << 10;
/// Reads up to this length are answered by the leader if they are cached, in bytes.
const INLINE: u32 = 32 << 10;
/// Reads from this length on ask for holes first, in bytes.
pub(super) const SPARSE_MIN: u32 = 64 << 10;
/// Pieces of a read with holes.
const SPARSE_RUNS: usize = 64;
/// Runs in one status reply.
const STATUS_RUNS: usize = 4096;
/// A thread keeps a payload buffer up to this length between requests, in bytes.
const KEEP_BUFFER: usize = 2 << 20;
/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(10);
/// Stack of one thread, in bytes.
const STACK: usize = 512 << 10;

type OnEnd = Box<dyn Fn() + Send + Sync>;

pub(super) struct Conn {
    pub(super) stream: Arc<UnixStream>,
    pub(super) export: Arc<Export>,
    pub(super) session: Session,
    pool: Mutex<Pool>,
    /// A reader was laid aside, or the connection ended.
    wake: Condvar,
    /// Payload memory was released.
    room: Condvar,
    /// No more requests come.
    over: AtomicBool,
    out: Mutex<Outbox>,
    on_end: OnEnd,
    /// The disk takes many requests at a time.
    pub(super) batches: bool,
}

#[derive(Debug)]
struct Pool {
    /// Where a leader that may have to wait leaves the reader.
    reader: Option<Reader>,
    threads: usize,
    /// Threads whose requests wait for the disk's limit.
    parked: usize,
    idle: usize,
    /// A thread was woken or started for the reader and has not looked yet.
    alerted: bool,
    ended: bool,
    held: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Conn {
    pub fn new(stream: Arc<UnixStream>, export: Arc<Export>, session: Session, on_end: OnEnd) -> Arc<Self> {
        let pool =
            Pool { reader: None, threads: 1, parked: 0, idle: 0, alerted: false, ended: false, held: 0 };
        let batches = export.batches();
        Arc::new(Self {
            stream,
            batches,
            export,
            session,
            pool: Mutex::new(pool),
            wake: Condvar::new(),
            room: Condvar::new(),
            over: AtomicBool::new(false),
            out: Mutex::default(),
            on_end,
        })
    }

    /// Serves on this thread and on more as needed; returns when this thread is no longer needed. `rest` holds the bytes
    /// that were read with the handshake. `on_end` is called when the last thread is done.
    pub fn serve(self: Arc<Self>, rest: &[u8]) {
        let reader = Reader::new(rest, self.batches);
        Worker { conn: self, payload: Pages::default() }.run(Some(reader));
    }

    pub(super) fn flush(&self) {
        let sent = lock(&self.out).flush(&*self.stream);
        self.note(sent);
    }

    pub(super) fn push(&self, parts: &[&[u8]]) {
        let sent = lock(&self.out).push(&*self.stream, parts);
        self.note(sent);
    }

    /// A client that cannot be answered is not worth listening to.
    fn note(&self, sent: Result<(), Broken>) {
        if sent.is_err() {
            // Fails only if the socket is down already.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }

    /// Lays the reader aside and sees to it that somebody can pick it up while this thread is busy.
    pub(super) fn offer(self: &Arc<Self>, reader: Reader) {
        let mut pool = lock(&self.pool);
        pool.reader = Some(reader);
        if pool.alerted {
            return;
        }
        if pool.idle > 0 {
            pool.alerted = true;
            drop(pool);
            self.wake.notify_one();
            return;
        }
        if pool.threads - pool.parked.min(MAX_PARKED) < MAX_IN_FLIGHT {
            pool.alerted = true;
            pool.threads += 1;
            drop(pool);
            let conn = Arc::clone(self);
            let follower = move || Worker { conn, payload: Pages::default() }.run(None);
            let name = format!("nbd {}", self.export.name);
            let spawned =
                thread::Builder::new().name(name.replace('\0', "?")).stack_size(STACK).spawn(follower);
            if spawned.is_ok() {
                return;
            }
            // The closure was dropped unrun, so its thread was never counted down.
            pool = lock(&self.pool);
            pool.alerted = false;
            pool.threads -= 1;
        }
        drop(pool);
        // Nobody comes, so nobody else would send what collected.
        self.flush();
    }

    fn reclaim(&self) -> Option<Reader> {
        lock(&self.pool).reader.take()
    }

    /// Waits for the reader; `None` when this thread is no longer needed.
    fn follow(&self) -> Option<Reader> {
        let mut pool = lock(&self.pool);
        pool.alerted = false;
        pool.idle += 1;
        let reader = loop {
            if let Some(reader) = pool.reader.take() {
                break Some(reader);
            }
            if pool.ended {
                break None;
            }
            let (guard, wait) = self.wake.wait_timeout(pool, IDLE).unwrap_or_else(PoisonError::into_inner);
            pool = guard;
            pool.alerted = false;
            if wait.timed_out() && pool.reader.is_none() {
                break None;
            }
        };
        pool.idle -= 1;
        reader
    }

    /// No more requests; those in flight finish, without waiting for the disk's limit: the client waits for nothing else.
    fn end(&self) {
        lock(&self.pool).ended = true;
        self.wake.notify_all();
        self.over.store(true, Relaxed);
        self.export.throttle.wake();
    }

    /// Waits until the disk's limit lets a request go.
    fn park(&self, waiting: Waiting) {
        lock(&self.pool).parked += 1;
        self.export.throttle.wait(waiting, || self.over.load(Relaxed));
        lock(&self.pool).parked -= 1;
    }

    fn thread_ends(&self) {
        let panicked = thread::panicking();
        let mut pool = lock(&self.pool);
        pool.threads -= 1;
        pool.ended |= panicked;
        let last = pool.threads == 0;
        drop(pool);
        if panicked {
            let _ = self.stream.shutdown(Shutdown::Both);
            self.wake.notify_all();
        }
        if last {
            self.flush();
            let _ = self.stream.shutdown(Shutdown::Both);
            (self.on_end)();
        }
    }

    /// Waits until `request` may hold its payload in memory; returns the amount to release.
    fn hold(&self, request: &Request) -> u64 {
        let counted = matches!(request.op, Op::Read { .. } | Op::Write) && request.len > UNCOUNTED;
        let amount = if counted { u64::from(request.len) } else { 0 };
        let fits = |pool: &Pool| amount == 0 || pool.held == 0 || pool.held + amount <= MAX_HELD;
        let mut pool = lock(&self.pool);
        if !fits(&pool) {
            drop(pool);
            self.flush();
            pool = lock(&self.pool);
        }
        while !fits(&pool) {
            pool = self.room.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
        pool.held += amount;
        amount
    }

    fn release(&self, amount: u64) {
        if amount > 0 {
            lock(&self.pool).held -= amount;
            self.room.notify_all();
        }
    }

    /// Answers a short read whose data is at hand; says whether it did.
    fn answer_inline(&self, request: &Request) -> bool {
        let Op::Read { .. } = request.op else { return false };
        // A leader that waits would hold all others up.
        if self.export.throttle.is_on() || request.len > INLINE || request.len == 0 {
            return false;
        }
        let (cookie, len) = (request.cookie, request.len as usize);
        let simple = SimpleReply::new(cookie, None);
        let data = data_chunk(request, request.offset, request.len, true);
        let head = if self.session.structured { data.as_bytes() } else { simple.as_bytes() };
        let mut out = lock(&self.out);
        if out.push_filled(head, len, |buf| self.export.try_read(request.offset, buf)).is_err() {
            return false;
        }
        if out.is_full() {
            let sent = out.flush(&*self.stream);
            self.note(sent);
        }
        true
    }

    /// Carries a request out and answers. `payload` holds a write's data, and is room for a read's.
    fn execute(&self, request: &Request, payload: &mut Pages) {
        let (offset, len) = (request.offset, u64::from(request.len));
        let result = match request.op {
            Op::Read { whole } => return self.read(request, whole, payload.room(request.len as usize)),
            Op::BlockStatus { one } => return self.block_status(request, one),
            Op::Write => self.export.write(offset, payload.bytes(request.len as usize)),
            Op::Flush => self.export.flush(),
            Op::Trim => self.export.trim(offset, len),
            Op::Cache => self.export.cache(offset, len),
            Op::WriteZeroes { no_hole, fast } => {
                self.export.write_zeroes(offset, len, ZeroMode { may_unmap: !no_hole, fast_only: fast })
            }
        };
        let stores = matches!(request.op, Op::Write | Op::Trim | Op::WriteZeroes { .. });
        let result = result.and_then(|()| if request.fua && stores { self.export.flush() } else { Ok(()) });
        match result {
            Ok(()) => self.push(&[SimpleReply::new(request.cookie, None).as_bytes()]),
            Err(error) => self.fail(request, &error),
        }
    }

    /// The answer to a read without holes.
    pub(super) fn answer_read(&self, request: &Request, bytes: &[u8]) {
        match (self.session.structured, bytes.is_empty()) {
            (false, _) => self.push(&[SimpleReply::new(request.cookie, None).as_bytes(), bytes]),
            (true, true) => self.push(&[ChunkHead::new(request.cookie, chunk::NONE, true, 0).as_bytes()]),
            (true, false) => {
                self.push(&[data_chunk(request, request.offset, request.len, true).as_bytes(), bytes]);
            }
        }
    }

    pub(super) fn fail(&self, request: &Request, error: &io::Error) {
        let errno = errno(error);
        if errno != Errno::NotSup {
            tracing::warn!(export = self.export.name, ?request, %error, "request failed");
        }
        let structured = matches!(request.op, Op::Read { .. } | Op::BlockStatus { .. });
        self.refuse(request.cookie, errno, &error.to_string(), structured);
    }

    /// `chunked`: the command is answered by chunks where structured replies are in use.
    fn refuse(&self, cookie: u64, errno: Errno, why: &str, chunked: bool) {
        if !(chunked && self.session.structured) {
            self.push(&[SimpleReply::new(cookie, Some(errno)).as_bytes()]);
            return;
        }
        let why = &why.as_bytes()[..why.floor_char_boundary(1024)];
        // At most 1024 bytes of text.
        #[expect(clippy::cast_possible_truncation, reason = "limited to 1024 above")]
        let len = why.len() as u16;
        let head = ChunkHead::new(cookie, chunk::ERROR, true, 6 + u32::from(len));
        self.push(&[head.as_bytes(), &(errno as u32).to_be_bytes(), &len.to_be_bytes(), why]);
    }

    fn read(&self, request: &Request, whole: bool, buf: &mut [u8]) {
        if self.session.structured && !whole && request.len >= SPARSE_MIN {
            // Costs a look into tables in memory; on an error the read below says what is wrong.
            let runs =
                self.export.zeros_to_skip(request.offset, request.len, SPARSE_RUNS).unwrap_or_default();
            if runs.iter().any(|run| run.zero) {
                return self.read_sparse(request, &runs, buf);
            }
        }
        if let Err(error) = self.export.read(request.offset, buf) {
            return self.fail(request, &error);
        }
        self.answer_read(request, buf);
    }

    fn read_sparse(&self, request: &Request, runs: &[Run], buf: &mut [u8]) {
        let covered: u32 = runs.iter().map(|run| run.len).sum();
        let rest = Run { len: request.len - covered, hole: false, zero: false };
        let runs: Vec<Run> = runs.iter().copied().chain((rest.len > 0).then_some(rest)).collect();
        let mut pieces: Vec<(Vec<u8>, &[u8])> = Vec::with_capacity(runs.len());
        let (mut at, mut left) = (request.offset, buf);
        for (i, run) in runs.iter().enumerate() {
            let done = i + 1 == runs.len();
            let (part, tail) = left.split_at_mut(run.len as usize);
            left = tail;
            if run.zero {
                pieces.push((hole_chunk(request, at, run.len, done).as_bytes().to_vec(), &[]));
            } else {
                if let Err(error) = self.export.read(at, part) {
                    return self.fail(request, &error);
                }
                pieces.push((data_chunk(request, at, run.len, done).as_bytes().to_vec(), part));
            }
            at += u64::from(run.len);
        }
        let parts: Vec<&[u8]> = pieces.iter().flat_map(|(head, data)| [head.as_slice(), *data]).collect();
        self.push(&parts);
    }

    fn block_status(&self, request: &Request, one: bool) {
        let limit = if one { 1 } else { STATUS_RUNS };
        let runs = match self.export.status(request.offset, request.len, limit) {
            Ok(runs) => runs,
            Err(error) => return self.fail(request, &error),
        };
        let entries: Vec<StatusEntry> = runs.into_iter().map(StatusEntry::from).collect();
        let body = entries.as_slice().as_bytes();
        // At most STATUS_RUNS entries of 8 bytes.
        let len = 4 + u32::try_from(body.len()).unwrap_or(0);
        let head = ChunkHead::new(request.cookie, chunk::BLOCK_STATUS, true, len);
        self.push(&[head.as_bytes(), &super::proto::BASE_ALLOCATION_ID.to_be_bytes(), body]);
    }
}

fn data_chunk(request: &Request, offset: u64, len: u32, done: bool) -> DataChunk {
    let head = ChunkHead::new(request.cookie, chunk::OFFSET_DATA, done, len + 8);
    DataChunk { head, offset: offset.into() }
}

fn hole_chunk(request: &Request, offset: u64, len: u32, done: bool) -> HoleChunk {
    let head = ChunkHead::new(request.cookie, chunk::OFFSET_HOLE, done, 12);
    HoleChunk { head, offset: offset.into(), len: len.into() }
}

/// One thread of a connection.
pub(super) struct Worker {
    conn: Arc<Conn>,
    pub(super) payload: Pages,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.conn.thread_ends();
    }
}

impl Worker {
    fn run(mut self, mut reader: Option<Reader>) {
        loop {
            let Some(mine) = reader.take().or_else(|| self.conn.follow()) else { return };
            if self.lead(mine).is_err() {
                self.conn.end();
                return;
            }
        }
    }

    /// Reads and serves requests until another thread took over; fails when there will be no more.
    fn lead(&mut self, mut reader: Reader) -> io::Result<()> {
        let conn = Arc::clone(&self.conn);
        loop {
            let head = reader.head(&conn)?;
            match judge(&head, &conn.session, conn.export.limits()) {
                Decision::Disconnect | Decision::Drop => return Err(io::ErrorKind::ConnectionAborted.into()),
                Decision::Refuse { cookie, errno, why, payload } => {
                    reader.payload(&conn, self.payload.room(payload as usize))?;
                    let command = u16::from_be_bytes([head[6], head[7]]);
                    let chunked =
                        matches!(command, super::proto::cmd::READ | super::proto::cmd::BLOCK_STATUS);
                    conn.refuse(cookie, errno, why, chunked);
                }
                Decision::Do(request) => {
                    if conn.answer_inline(&request) {
                        continue;
                    }
                    let served = match conn.joins(&request) {
                        true => self.carry_out_together(&conn, request, reader)?,
                        false => self.carry_out(&conn, &request, reader)?,
                    };
                    match served {
                        Some(mine) => reader = mine,
                        None => return Ok(()),
                    }
                }
            }
        }
    }

    /// Serves a request that may wait; returns the reader if no other thread took over meanwhile.
    fn carry_out(
        &mut self,
        conn: &Arc<Conn>,
        request: &Request,
        mut reader: Reader,
    ) -> io::Result<Option<Reader>> {
        let held = conn.hold(request);
        if request.op == Op::Write {
            reader.payload(conn, self.payload.room(request.len as usize))?;
        }
        // While nobody else reads, so that requests go in their order.
        let waiting = request.cost().and_then(|cost| conn.export.throttle.admit(cost));
        conn.offer(reader);
        if let Some(waiting) = waiting {
            conn.park(waiting);
        }
        conn.execute(request, &mut self.payload);
        conn.release(held);
        Ok(self.go_on(conn))
    }

    /// The reader after a request, if nobody took over.
    pub(super) fn go_on(&mut self, conn: &Conn) -> Option<Reader> {
        if self.payload.len() > KEEP_BUFFER {
            self.payload = Pages::default();
        }
        let reader = conn.reclaim();
        if reader.is_none() {
            conn.flush();
        }
        reader
    }
}

//! What `qemu-nbd` shows, as a file that can only be read: a client of the NBD protocol with structured replies and block
//! status. The server reads a hostile file, so its answers are checked too.

use super::{
    ForeignError,
    server::{CONNECTIONS, MOMENT, PATIENCE, Tool},
};
use crate::fs::{DiskFile, FileId, LockKind};
use backstay_vhd::Storage;
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// How long one answer may take: a slow disk, but not for ever.
const ANSWER: Duration = Duration::from_secs(120);
/// Longest range whose status is asked for at once, in bytes.
const STATUS: u64 = 1 << 30;
/// Longest answer that is no data, in bytes.
const MOST_ANSWER: u32 = 1 << 20;
/// Options that the server may answer one request with.
const MOST_REPLIES: usize = 64;

const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x3_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE: u32 = 0x6744_6698;
const STRUCTURED: u32 = 0x668e_33ef;
const BASE: &[u8] = b"base:allocation";

/// The disk as a file.
#[derive(Debug)]
pub(super) struct NbdFile {
    id: FileId,
    size: u64,
    free: Mutex<Vec<Conn>>,
    returned: Condvar,
    /// The last range of zeros that was found: in a sparse disk the next question falls into it too.
    zeros: Mutex<(u64, u64)>,
    /// Dropped last: the connections end first.
    _tool: Tool,
}

#[derive(Debug)]
struct Conn {
    stream: UnixStream,
    size: u64,
    context: u32,
    cookie: u64,
}

impl NbdFile {
    /// Connects as soon as the server listens.
    pub(super) fn connect(
        mut tool: Tool,
        path: &Path,
        id: FileId,
        cancel: &AtomicBool,
    ) -> Result<Self, ForeignError> {
        let deadline = Instant::now() + PATIENCE;
        let failed = |source| ForeignError::Process { path: path.to_owned(), source };
        let first = loop {
            if let Ok(stream) = UnixStream::connect(tool.socket()) {
                match Conn::new(stream) {
                    Ok(conn) => break conn,
                    Err(error) => {
                        let words = tool.ended();
                        return Err(words.map_or_else(
                            || failed(error),
                            |words| ForeignError::Refused { path: path.to_owned(), words },
                        ));
                    }
                }
            }
            if let Some(words) = tool.ended() {
                return Err(ForeignError::Refused { path: path.to_owned(), words });
            }
            if cancel.load(Relaxed) {
                return Err(ForeignError::Cancelled { path: path.to_owned() });
            }
            if Instant::now() > deadline {
                return Err(ForeignError::Silent { path: path.to_owned(), seconds: PATIENCE.as_secs() });
            }
            thread::sleep(MOMENT);
        };
        let size = first.size;
        let mut free = vec![first];
        for _ in 1..CONNECTIONS.min(4) {
            let conn = UnixStream::connect(tool.socket()).and_then(Conn::new).map_err(failed)?;
            if conn.size != size {
                return Err(failed(wrong("the size changes")));
            }
            free.push(conn);
        }
        let (free, returned, zeros) = (Mutex::new(free), Condvar::new(), Mutex::new((0, 0)));
        Ok(Self { id, size, free, returned, zeros, _tool: tool })
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Does `work` with a connection that nobody else uses. One that failed in the middle of an answer is not used again.
    fn with<T>(&self, work: impl FnOnce(&mut Conn) -> Result<T, Failed>) -> io::Result<T> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut conn = loop {
            match free.pop() {
                Some(conn) => break conn,
                None => free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(free);
        let result = work(&mut conn);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(Failed::Broken(error)) = &result {
            tracing::debug!(%error, "qemu-nbd does not answer as it should");
            // Whoever waits must not wait for ever: the next use fails at once.
            let _closed_anyway = conn.stream.shutdown(std::net::Shutdown::Both);
        }
        free.push(conn);
        drop(free);
        self.returned.notify_one();
        result.map_err(|failed| match failed {
            Failed::Answer(error) | Failed::Broken(error) => error,
        })
    }

    /// The first range from `offset` on whose kind is told, and whether it may hold data.
    fn run_at(&self, offset: u64) -> io::Result<(u64, bool)> {
        let known = *self.zeros.lock().unwrap_or_else(PoisonError::into_inner);
        if (known.0..known.1).contains(&offset) {
            return Ok((known.1 - offset, false));
        }
        let (len, data) = self.with(|conn| conn.status(offset, (self.size - offset).min(STATUS)))?;
        if !data {
            let mut known = self.zeros.lock().unwrap_or_else(PoisonError::into_inner);
            let joins = known.1 == offset && known.1 > known.0;
            *known = (if joins { known.0 } else { offset }, offset + len);
        }
        Ok((len, data))
    }

    /// The first place at or after `offset` where data begins, or ends; the size when there is none.
    fn find(&self, offset: u64, wanted: bool) -> io::Result<u64> {
        let mut at = offset;
        while at < self.size {
            let (len, data) = self.run_at(at)?;
            if data == wanted {
                return Ok(at);
            }
            at += len;
        }
        Ok(self.size)
    }
}

fn read_only() -> io::Error {
    io::ErrorKind::ReadOnlyFilesystem.into()
}

impl Storage for NbdFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.with(|conn| conn.read(buf, offset))
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn zero_range(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let at = self.find(offset, true)?;
        Ok((at < self.size).then_some(at))
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        self.find(offset, false)
    }
}

impl DiskFile for NbdFile {
    fn id(&self) -> FileId {
        self.id
    }

    // QEMU has its own on the files.
    fn lock(&self, _kind: LockKind) -> io::Result<()> {
        Ok(())
    }

    fn unlock(&self) -> io::Result<()> {
        Ok(())
    }

    fn punches(&self) -> bool {
        false
    }
}

/// How a request failed.
enum Failed {
    /// The server said so; the connection is good.
    Answer(io::Error),
    /// The connection is of no use any more.
    Broken(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

fn wrong(words: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("qemu-nbd answers wrongly: {words}"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// What one part of an answer is.
struct Chunk {
    last: bool,
    kind: u16,
    len: u32,
}

impl Conn {
    fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        let mut conn = Self { stream, size: 0, context: 0, cookie: 0 };
        let hello: [u8; 18] = conn.take()?;
        if !hello.starts_with(b"NBDMAGIC") || u64_at(&hello, 8) != OPTION {
            return Err(wrong("no greeting"));
        }
        // Fixed newstyle, without the padding of old times.
        conn.stream.write_all(&3u32.to_be_bytes())?;
        conn.option(8, &[], &mut |_, _| Ok(()))?;
        let mut context = None;
        let mut query = vec![0, 0, 0, 0, 0, 0, 0, 1];
        query.extend(u32::try_from(BASE.len()).unwrap_or(0).to_be_bytes());
        query.extend(BASE);
        conn.option(10, &query, &mut |kind, bytes| {
            if kind == 4 && bytes.get(4..) == Some(BASE) {
                context = Some(u32_at(bytes, 0));
            }
            Ok(())
        })?;
        let mut size = None;
        conn.option(7, &[0; 6], &mut |kind, bytes| {
            if kind == 3 && bytes.starts_with(&[0, 0]) && bytes.len() >= 12 {
                size = Some(u64_at(bytes, 2));
            }
            Ok(())
        })?;
        conn.context = context.ok_or_else(|| wrong("it does not tell what is zeros"))?;
        conn.size = size.filter(|size| *size <= i64::MAX.unsigned_abs()).ok_or_else(|| wrong("no size"))?;
        Ok(conn)
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn take_many(&mut self, len: u32) -> io::Result<Vec<u8>> {
        if len > MOST_ANSWER {
            return Err(wrong("too much"));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Asks for an option; `each` gets what comes before the end.
    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        each: &mut dyn FnMut(u32, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let head = [&OPTION.to_be_bytes()[..], &option.to_be_bytes(), &len.to_be_bytes(), data].concat();
        self.stream.write_all(&head)?;
        for _ in 0..MOST_REPLIES {
            let reply: [u8; 20] = self.take()?;
            if u64_at(&reply, 0) != OPTION_REPLY || u32_at(&reply, 8) != option {
                return Err(wrong("another option"));
            }
            let (kind, bytes) = (u32_at(&reply, 12), self.take_many(u32_at(&reply, 16))?);
            match kind {
                1 => return Ok(()),
                kind if kind >> 31 != 0 => return Err(wrong(&String::from_utf8_lossy(&bytes))),
                kind => each(kind, &bytes)?,
            }
        }
        Err(wrong("no end of options"))
    }

    fn request(&mut self, kind: u16, offset: u64, len: u32) -> io::Result<()> {
        self.cookie += 1;
        let mut head = [0; 28];
        head[..4].copy_from_slice(&REQUEST.to_be_bytes());
        head[6..8].copy_from_slice(&kind.to_be_bytes());
        head[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        head[16..24].copy_from_slice(&offset.to_be_bytes());
        head[24..].copy_from_slice(&len.to_be_bytes());
        self.stream.write_all(&head)
    }

    fn chunk(&mut self) -> Result<Chunk, Failed> {
        let magic: [u8; 4] = self.take()?;
        match u32::from_be_bytes(magic) {
            STRUCTURED => {
                let head: [u8; 16] = self.take()?;
                if u64_at(&head, 4) != self.cookie {
                    return Err(wrong("another request").into());
                }
                let kind = u16::from_be_bytes([head[2], head[3]]);
                Ok(Chunk { last: head[1] & 1 != 0, kind, len: u32_at(&head, 12) })
            }
            SIMPLE => {
                let head: [u8; 12] = self.take()?;
                match u32_at(&head, 0) {
                    0 => Err(wrong("an answer without structure").into()),
                    number => Err(Failed::Answer(errno(number))),
                }
            }
            _ => Err(wrong("no answer").into()),
        }
    }

    /// Reads the rest of a part that is an error, or of one that is of no use.
    fn other(&mut self, chunk: &Chunk) -> Result<Option<io::Error>, Failed> {
        let bytes = self.take_many(chunk.len)?;
        Ok((chunk.kind >> 15 != 0).then(|| errno(u32_at(&bytes, 0))))
    }

    fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<(), Failed> {
        let asked = u32::try_from(buf.len()).map_err(|_| wrong("a read that is too long"))?;
        self.request(0, offset, asked)?;
        let (mut failed, mut filled) = (None, 0u64);
        loop {
            let chunk = self.chunk()?;
            match chunk.kind {
                1 if chunk.len >= 8 => {
                    let at = u64::from_be_bytes(self.take()?);
                    let part = part_of(buf, offset, at, chunk.len - 8)?;
                    self.stream.read_exact(part)?;
                    filled += u64::from(chunk.len - 8);
                }
                2 if chunk.len == 12 => {
                    let head: [u8; 12] = self.take()?;
                    part_of(buf, offset, u64_at(&head, 0), u32_at(&head, 8))?.fill(0);
                    filled += u64::from(u32_at(&head, 8));
                }
                _ => failed = self.other(&chunk)?.or(failed),
            }
            if chunk.last {
                break;
            }
        }
        match failed {
            Some(error) => Err(Failed::Answer(error)),
            None if filled == u64::from(asked) => Ok(()),
            None => Err(wrong("not all that was asked for").into()),
        }
    }

    /// The first run of a range: its length, and whether it may hold data.
    fn status(&mut self, offset: u64, len: u64) -> Result<(u64, bool), Failed> {
        let asked = u32::try_from(len).map_err(|_| wrong("a range that is too long"))?;
        self.request(7, offset, asked)?;
        let (mut failed, mut run) = (None, None);
        loop {
            let chunk = self.chunk()?;
            match chunk.kind {
                5 => {
                    let bytes = self.take_many(chunk.len)?;
                    if u32_at(&bytes, 0) == self.context {
                        run = Some(first_run(bytes.get(4..).unwrap_or_default()));
                    }
                }
                _ => failed = self.other(&chunk)?.or(failed),
            }
            if chunk.last {
                break;
            }
        }
        match (failed, run) {
            (Some(error), _) => Err(Failed::Answer(error)),
            (None, Some((run, data))) if run > 0 => Ok((run.min(len), data)),
            (None, _) => Err(wrong("no status").into()),
        }
    }
}

/// Descriptors of one kind at the beginning: their length together, and whether they may hold data.
fn first_run(bytes: &[u8]) -> (u64, bool) {
    let is_data = |entry: &[u8; 8]| u32_at(entry, 4) & 2 == 0;
    let entries = bytes.as_chunks::<8>().0;
    let Some(data) = entries.first().map(is_data) else { return (0, false) };
    let run = entries.iter().take_while(|entry| is_data(entry) == data);
    (run.map(|entry| u64::from(u32_at(entry.as_slice(), 0))).sum(), data)
}

/// The part of the buffer that an answer is about.
fn part_of(buf: &mut [u8], offset: u64, at: u64, len: u32) -> io::Result<&mut [u8]> {
    let start = at.checked_sub(offset).and_then(|start| usize::try_from(start).ok());
    let range = start.and_then(|start| Some(start..start.checked_add(usize::try_from(len).ok()?)?));
    range.and_then(|range| buf.get_mut(range)).ok_or_else(|| wrong("bytes that nobody asked for"))
}

/// The protocol's numbers are those of Linux.
fn errno(number: u32) -> io::Error {
    io::Error::from_raw_os_error(i32::try_from(number).unwrap_or(libc::EIO))
}

//! What the NBD tests share: a disk in memory that remembers what was asked of it, and a small client.
#![expect(dead_code, reason = "every test binary uses a part")]

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use backstay_disk::{
    Backend, BlockStatus, ZeroMode,
    nbd::{ExportSpec, Server},
};

/// Longest wait for anything; only a hang gets that far.
pub const LONG: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;

/// A call that reached the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Write(u64, u64),
    Zero(u64, u64, ZeroMode),
    Trim(u64, u64),
    Flush,
}

/// A disk in memory with a volatile cache: `durable` is what a power cut would leave.
#[derive(Debug)]
pub struct Ram {
    state: Mutex<State>,
    /// Calls wait here while it is closed.
    pub gate: Gate,
    pub read_only: bool,
    /// What the next write or flush answers.
    pub failure: Mutex<Option<io::ErrorKind>>,
}

#[derive(Debug)]
struct State {
    live: Vec<u8>,
    durable: Vec<u8>,
    allocated: Vec<bool>,
    calls: Vec<Call>,
}

/// Holds calls back until it is opened, and counts those that wait.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<Held>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Held {
    /// Calls with a number below this wait.
    before: u64,
    /// The number of the next call.
    next: u64,
    waiting: usize,
    /// Calls that may pass although it is closed.
    tickets: usize,
}

impl Gate {
    pub fn close(&self) {
        self.state.lock().unwrap().before = u64::MAX;
    }

    /// Holds only the calls that wait already.
    pub fn close_behind(&self) {
        let mut state = self.state.lock().unwrap();
        state.before = state.next;
    }

    pub fn open(&self) {
        self.state.lock().unwrap().before = 0;
        self.changed.notify_all();
    }

    /// Lets one of the waiting calls pass, and returns when it did.
    pub fn admit_one(&self) {
        let mut state = self.state.lock().unwrap();
        state.tickets += 1;
        self.changed.notify_all();
        let (state, _) = self.changed.wait_timeout_while(state, LONG, |s| s.tickets > 0).unwrap();
        assert_eq!(state.tickets, 0, "no call came");
    }

    /// Waits until `n` calls wait.
    pub fn wait_for(&self, n: usize) {
        let state = self.state.lock().unwrap();
        let (state, _) = self.changed.wait_timeout_while(state, LONG, |s| s.waiting < n).unwrap();
        assert!(state.waiting >= n, "only {} of {n} calls arrived together", state.waiting);
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        let number = state.next;
        state.next += 1;
        state.waiting += 1;
        self.changed.notify_all();
        while number < state.before && state.tickets == 0 {
            state = self.changed.wait(state).unwrap();
        }
        state.tickets = state.tickets.saturating_sub(1);
        state.waiting -= 1;
        self.changed.notify_all();
    }

    fn is_closed(&self) -> bool {
        self.state.lock().unwrap().before == u64::MAX
    }
}

impl Ram {
    pub fn new(size: usize) -> Arc<Self> {
        Arc::new(Self::build(size, false))
    }

    pub fn build(size: usize, read_only: bool) -> Self {
        let state = State {
            live: vec![0; size],
            durable: vec![0; size],
            allocated: vec![false; size / BLOCK],
            calls: Vec::new(),
        };
        Self { state: Mutex::new(state), gate: Gate::default(), read_only, failure: Mutex::default() }
    }

    pub fn fill(&self, at: usize, data: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.live[at..at + data.len()].copy_from_slice(data);
        let last = (at + data.len()).div_ceil(BLOCK);
        state.allocated[at / BLOCK..last].fill(true);
    }

    pub fn live(&self) -> Vec<u8> {
        self.state.lock().unwrap().live.clone()
    }

    pub fn durable(&self) -> Vec<u8> {
        self.state.lock().unwrap().durable.clone()
    }

    pub fn calls(&self) -> Vec<Call> {
        self.state.lock().unwrap().calls.clone()
    }

    fn failure(&self) -> io::Result<()> {
        self.failure.lock().unwrap().map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn check(&self, offset: u64, len: u64) {
        assert!(
            offset.is_multiple_of(512) && len.is_multiple_of(512) && len > 0,
            "{offset}+{len} is not aligned"
        );
        assert!(offset + len <= self.size(), "{offset}+{len} is outside the disk");
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) {
        let (at, end) = (offset as usize, (offset + len) as usize);
        let mut state = self.state.lock().unwrap();
        state.live[at..end].fill(0);
        if unmap {
            let (first, last) = (at.div_ceil(BLOCK), end / BLOCK);
            if first < last {
                state.allocated[first..last].fill(false);
            }
        }
    }
}

impl Backend for Ram {
    fn size(&self) -> u64 {
        self.state.lock().unwrap().live.len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset, buf.len() as u64);
        self.gate.pass();
        let at = offset as usize;
        buf.copy_from_slice(&self.state.lock().unwrap().live[at..at + buf.len()]);
        Ok(())
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.gate.is_closed() { Err(io::ErrorKind::WouldBlock.into()) } else { self.read(offset, buf) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len() as u64);
        self.gate.pass();
        self.failure()?;
        self.fill(offset as usize, data);
        self.state.lock().unwrap().calls.push(Call::Write(offset, data.len() as u64));
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> io::Result<()> {
        self.check(offset, len);
        self.gate.pass();
        self.failure()?;
        self.zero(offset, len, mode.may_unmap);
        self.state.lock().unwrap().calls.push(Call::Zero(offset, len, mode));
        Ok(())
    }

    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len);
        self.gate.pass();
        self.zero(offset, len, true);
        self.state.lock().unwrap().calls.push(Call::Trim(offset, len));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.gate.pass();
        self.failure()?;
        let mut state = self.state.lock().unwrap();
        state.durable = state.live.clone();
        state.calls.push(Call::Flush);
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64, limit: usize) -> io::Result<Vec<BlockStatus>> {
        self.check(offset, len);
        let state = self.state.lock().unwrap();
        let (mut runs, mut at, end) = (Vec::<BlockStatus>::new(), offset, offset + len);
        while at < end {
            let next = ((at / BLOCK as u64 + 1) * BLOCK as u64).min(end);
            let hole = !state.allocated[at as usize / BLOCK];
            let full = runs.len() == limit;
            match runs.last_mut() {
                Some(run) if run.hole == hole => run.len += next - at,
                _ if full => break,
                _ => runs.push(BlockStatus { len: next - at, hole, zero: hole }),
            }
            at = next;
        }
        Ok(runs)
    }
}

/// A server on a socket in a directory of its own, with one export "disk".
pub struct Rig {
    pub dir: tempfile::TempDir,
    pub socket: PathBuf,
    pub server: Server,
    pub ram: Arc<Ram>,
}

impl Rig {
    pub fn new(size: usize) -> Self {
        Self::with(Ram::build(size, false))
    }

    pub fn with(ram: Ram) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd.sock");
        let server = Server::bind(&socket, 0o600).unwrap();
        let ram = Arc::new(ram);
        server.add_export(spec("disk", &ram)).unwrap();
        Self { dir, socket, server, ram }
    }

    pub fn client(&self) -> Client {
        Client::go(&self.socket, "disk", true)
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket.display())
    }
}

pub fn spec(name: &str, ram: &Arc<Ram>) -> ExportSpec {
    let backend: Arc<dyn Backend> = Arc::<Ram>::clone(ram);
    ExportSpec { name: name.into(), description: "a disk in memory".into(), backend, read_only: false }
}

/// Bytes without pattern.
pub fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        out.extend_from_slice(&seed.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// A client that says exactly what it is told to.
#[derive(Debug)]
pub struct Client {
    pub stream: UnixStream,
    pub structured: bool,
    next: u64,
}

/// One piece of a reply to a read.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Data(u64, Vec<u8>),
    Hole(u64, u32),
}

/// An answer: the error number or what came.
pub type Answer = Result<Vec<Piece>, u32>;

impl Client {
    /// Connects and reads the greeting.
    pub fn raw(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        let mut client = Self { stream, structured: false, next: 0 };
        assert_eq!(&client.take(18), b"NBDMAGICIHAVEOPT\x00\x03");
        client
    }

    /// A whole handshake by `OPT_GO`.
    pub fn go(socket: &Path, export: &str, structured: bool) -> Self {
        let mut client = Self::raw(socket);
        client.send(&3u32.to_be_bytes());
        client.structured = structured;
        if structured {
            assert_eq!(client.option(8, b"").last().unwrap().0, 1);
            let query = counted(b"base:allocation");
            let data = [counted(export.as_bytes()), 1u32.to_be_bytes().to_vec(), query].concat();
            assert_eq!(client.option(10, &data).last().unwrap().0, 1);
        }
        let replies = client.option(7, &[counted(export.as_bytes()), vec![0, 0]].concat());
        assert_eq!(replies.last().unwrap().0, 1, "{replies:?}");
        client
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.stream.read_exact(&mut buf).unwrap();
        buf
    }

    fn number<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().unwrap()
    }

    /// Sends an option; returns the types and data of its replies up to the last one.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let len = u32::try_from(data.len()).unwrap();
        self.send(&[b"IHAVEOPT", &option.to_be_bytes()[..], &len.to_be_bytes(), data].concat());
        let mut replies = Vec::new();
        loop {
            assert_eq!(u64::from_be_bytes(self.number()), 0x0003_e889_0455_65a9);
            assert_eq!(u32::from_be_bytes(self.number()), option);
            let kind = u32::from_be_bytes(self.number());
            let len = u32::from_be_bytes(self.number());
            replies.push((kind, self.take(len as usize)));
            if kind == 1 || kind >= 1 << 31 {
                return replies;
            }
        }
    }

    /// Sends a request without waiting; returns its cookie.
    pub fn request(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> u64 {
        self.next += 1;
        let cookie = self.next;
        self.send(&request(command, flags, cookie, offset, len, payload));
        cookie
    }

    /// Receives one reply: its cookie and answer. Only reads may carry data when replies are simple.
    pub fn reply(&mut self, simple_data: usize) -> (u64, Answer) {
        let (mut pieces, mut error) = (Vec::new(), None);
        loop {
            let magic = u32::from_be_bytes(self.number());
            if magic == 0x6744_6698 {
                let errno = u32::from_be_bytes(self.number());
                let cookie = u64::from_be_bytes(self.number());
                if errno != 0 {
                    return (cookie, Err(errno));
                }
                return (cookie, Ok(vec![Piece::Data(0, self.take(simple_data))]));
            }
            assert_eq!(magic, 0x668e_33ef);
            assert!(self.structured);
            let flags = u16::from_be_bytes(self.number());
            let kind = u16::from_be_bytes(self.number());
            let cookie = u64::from_be_bytes(self.number());
            let len = u32::from_be_bytes(self.number()) as usize;
            let body = self.take(len);
            let word = |at: usize| u64::from_be_bytes(body[at..at + 8].try_into().unwrap());
            match kind {
                0 => {}
                1 => pieces.push(Piece::Data(word(0), body[8..].to_vec())),
                2 => pieces.push(Piece::Hole(word(0), u32::from_be_bytes(body[8..12].try_into().unwrap()))),
                5 => pieces.push(Piece::Data(0, body[4..].to_vec())),
                _ => error = Some(u32::from_be_bytes(body[..4].try_into().unwrap())),
            }
            if flags & 1 != 0 {
                return (cookie, error.map_or(Ok(pieces), Err));
            }
        }
    }

    /// One request and its answer.
    pub fn call(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> Answer {
        let cookie = self.request(command, flags, offset, len, payload);
        let data = if command == 0 && !self.structured { len as usize } else { 0 };
        let (got, answer) = self.reply(data);
        assert_eq!(got, cookie);
        answer
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        let mut out = Vec::new();
        for piece in self.call(0, 0, offset, len, b"")? {
            match piece {
                Piece::Data(_, data) => out.extend(data),
                Piece::Hole(_, len) => out.resize(out.len() + len as usize, 0),
            }
        }
        assert_eq!(out.len(), len as usize);
        Ok(out)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        self.call(1, 0, offset, u32::try_from(data.len()).unwrap(), data).map(drop)
    }

    /// Waits until the server closed the connection; whatever still comes is dropped.
    pub fn expect_close(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::ConnectionReset, "{e}"),
        }
    }
}

/// The bytes of a request.
pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32, payload: &[u8]) -> Vec<u8> {
    [
        &0x2560_9513u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
        payload,
    ]
    .concat()
}

pub fn counted(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

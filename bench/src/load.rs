//! A small NBD client that keeps a fixed number of requests in flight. One thread, simple replies, no copies it can avoid: what
//! is measured is the server.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// What to do with each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Read,
    Write,
}

/// Which block comes next.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// Evenly spread over the disk, by this seed.
    Random(u64),
    /// From the start, this many bytes apart, around again at the end.
    Steps(u64),
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Time(Duration),
    Count(u64),
}

/// A run.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub op: Op,
    pub block: u32,
    pub depth: u64,
    pub order: Order,
    pub until: Until,
}

/// What a run did.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// Operations per second.
    pub rate: f64,
    /// Operations.
    pub count: f64,
}

/// A connection to an export named "disk".
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    size: u64,
    buf: Vec<u8>,
    filled: usize,
}

/// Small and good enough to spread offsets and to fill blocks with what does not compress.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let words = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        words.take(len).collect()
    }
}

impl Client {
    pub fn connect(socket: &Path) -> Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        let mut hello = [0; 18];
        stream.read_exact(&mut hello)?;
        ensure!(hello.starts_with(b"NBDMAGICIHAVEOPT"), "not an NBD server");
        // Flags: fixed newstyle, no zeroes. Then OPT_EXPORT_NAME.
        stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04disk")?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        let size = u64::from_be_bytes(export[..8].try_into()?);
        Ok(Self { stream, size, buf: vec![0; 1 << 20], filled: 0 })
    }

    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Runs a job. Writes end with one flush, which counts.
    pub fn run(&mut self, job: Job) -> Result<Ran> {
        let mut random = Random::new(match job.order {
            Order::Random(seed) => seed,
            Order::Steps(_) => 1,
        });
        let payload = if job.op == Op::Write { random.bytes(job.block as usize) } else { Vec::new() };
        let blocks = self.size / u64::from(job.block);
        let (mut sent, mut done, mut out) = (0, 0, Vec::new());
        let start = Instant::now();
        loop {
            let more = match job.until {
                Until::Time(limit) => start.elapsed() < limit,
                Until::Count(count) => sent < count,
            };
            while more && sent - done < job.depth {
                let offset = match job.order {
                    Order::Random(_) => random.next() % blocks * u64::from(job.block),
                    Order::Steps(step) => sent * step % self.size,
                };
                head(&mut out, job.op, offset, job.block);
                out.extend_from_slice(&payload);
                sent += 1;
            }
            self.stream.write_all(&out)?;
            out.clear();
            if sent == done {
                break;
            }
            done += self.receive(job)?;
        }
        if job.op == Op::Write {
            self.flush()?;
        }
        let count = as_f64(done);
        Ok(Ran { rate: count / start.elapsed().as_secs_f64(), count })
    }

    pub fn flush(&mut self) -> Result<()> {
        let mut out = Vec::new();
        request(&mut out, 3, 0, 0);
        self.stream.write_all(&out)?;
        while self.receive(Job {
            op: Op::Write,
            block: 0,
            depth: 1,
            order: Order::Steps(0),
            until: Until::Count(1),
        })? == 0
        {}
        Ok(())
    }

    /// Writes `data` at `offset` and waits for the reply.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let len = u32::try_from(data.len())?;
        let mut out = Vec::new();
        head(&mut out, Op::Write, offset, len);
        self.stream.write_all(&out)?;
        self.stream.write_all(data)?;
        while self.receive(Job {
            op: Op::Write,
            block: len,
            depth: 1,
            order: Order::Steps(0),
            until: Until::Count(1),
        })? == 0
        {}
        Ok(())
    }

    /// Waits for replies; returns how many came whole.
    fn receive(&mut self, job: Job) -> Result<u64> {
        let each = 16 + if job.op == Op::Read { job.block as usize } else { 0 };
        if self.buf.len() < each + (256 << 10) {
            self.buf.resize(each + (256 << 10), 0);
        }
        let n = self.stream.read(&mut self.buf[self.filled..])?;
        ensure!(n > 0, "the server hung up");
        self.filled += n;
        let (mut at, mut count) = (0, 0);
        while self.filled - at >= each {
            let head = &self.buf[at..at + 8];
            if head != [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0] {
                bail!("the server answered {head:02x?}");
            }
            at += each;
            count += 1;
        }
        self.buf.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(count)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut out = Vec::new();
        request(&mut out, 2, 0, 0);
        // The server may be gone already.
        let _ = self.stream.write_all(&out).context("goodbye");
    }
}

fn head(out: &mut Vec<u8>, op: Op, offset: u64, len: u32) {
    request(out, u16::from(op == Op::Write), offset, len);
}

fn request(out: &mut Vec<u8>, command: u16, offset: u64, len: u32) {
    out.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
    out.extend_from_slice(&0_u16.to_be_bytes());
    out.extend_from_slice(&command.to_be_bytes());
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
}

/// Counts and sizes here are far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub const fn as_f64(n: u64) -> f64 {
    n as f64
}

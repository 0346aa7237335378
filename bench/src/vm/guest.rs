//! Talking to the microguest.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use backstay_e2e::{Console, PATIENCE};

/// How long to wait for an answer before asking again; also how fine "until the guest answers" is.
const ASK_AGAIN: Duration = Duration::from_millis(10);
/// Memory that is left as the BIOS and the loader had it.
const LEFT: u64 = 16;

static NONCE: AtomicU32 = AtomicU32::new(0xBE9C_0000);

/// A conversation.
#[derive(Debug)]
pub struct Guest(Console);

impl Guest {
    /// Waits until a guest that is starting is ready.
    pub fn booting(socket: &Path) -> Result<Self> {
        let mut console = Console::connect(socket)?;
        console.until("MG READY disks=")?;
        console.until("\n")?;
        Ok(Self(console))
    }

    /// Joins a guest that is ready.
    pub fn attach(socket: &Path) -> Result<Self> {
        // What the console repeats of the past is skipped: no two numbers are equal.
        let nonce = NONCE.fetch_add(1, Relaxed);
        let mut console = Console::connect(socket)?;
        console.send(&format!("\x1be{nonce:08x}"))?;
        console.until(&format!("e{nonce:08x}\n"))?;
        Ok(Self(console))
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        self.0.send(command)?;
        Ok(self.0.until("\n")?.trim().to_owned())
    }

    /// Fills memory, all but [`LEFT`] MiB, with pseudo-random words; their sum as of [`Guest::sum`].
    pub fn fill(&mut self, memory: u64) -> Result<u32> {
        let said = self.ask(&format!("f{:02x}", (memory - LEFT) / 16))?;
        ensure!(said == "d", "the guest said {said}");
        self.sum()
    }

    /// The sum of the words of the first 240 MiB of what was filled.
    pub fn sum(&mut self) -> Result<u32> {
        number(&self.ask("sf0")?, 's')
    }

    /// Increments the counter in memory and returns it.
    pub fn count(&mut self) -> Result<u32> {
        number(&self.ask("c")?, 'c')
    }

    /// Asks until `done`; the longest time without an answer in milliseconds.
    pub fn longest_silence(&mut self, done: &AtomicBool) -> Result<f64> {
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        while !done.load(Relaxed) {
            self.ask("p")?;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        Ok(longest.as_secs_f64() * 1e3)
    }
}

fn number(said: &str, tag: char) -> Result<u32> {
    let digits = said.strip_prefix(tag).with_context(|| format!("the guest said {said}"))?;
    Ok(u32::from_str_radix(digits, 16)?)
}

/// Asks for the counter until an answer comes that `is_it`; milliseconds since `start`. The socket may not be there yet, and
/// may belong to somebody who is about to go.
pub fn first_answer(start: Instant, socket: &Path, is_it: impl Fn(u32) -> bool) -> Result<f64> {
    while start.elapsed() < PATIENCE {
        let Ok(stream) = UnixStream::connect(socket) else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        if let Some(elapsed) = listen(start, stream, &is_it)? {
            return Ok(elapsed);
        }
    }
    anyhow::bail!("the guest did not come back in {} s", PATIENCE.as_secs())
}

/// `None` when the connection ends first.
fn listen(start: Instant, mut stream: UnixStream, is_it: &impl Fn(u32) -> bool) -> Result<Option<f64>> {
    stream.set_read_timeout(Some(ASK_AGAIN))?;
    // The console repeats the past: only a counter right after this number was asked for here.
    let echo = format!("e{:08x}", NONCE.fetch_add(1, Relaxed));
    let question = format!("\x1b{echo}c");
    let (mut heard, mut buffer, mut asked) = (Vec::new(), [0; 4096], None::<Instant>);
    let mut echoed = false;
    while start.elapsed() < PATIENCE {
        if asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
            asked = Some(Instant::now());
            if stream.write_all(question.as_bytes()).is_err() {
                return Ok(None);
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(n) => heard.extend_from_slice(&buffer[..n]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return Ok(None),
        }
        while let Some(end) = heard.iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&heard[..end]).trim().to_owned();
            heard.drain(..=end);
            if echoed && number(&line, 'c').is_ok_and(is_it) {
                return Ok(Some(start.elapsed().as_secs_f64() * 1e3));
            }
            echoed = line == echo;
        }
    }
    Ok(None)
}

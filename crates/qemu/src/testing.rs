//! For tests of this and other crates: a guest that boots in a fraction of a second and answers on its serial port.
//!
//! The microguest is 4.6 KB of 16-bit code. It reads and writes disk sectors, keeps a counter in memory, fills memory
//! with a pattern and sums it: enough to see what a guest sees after a checkpoint, a revert or a lost disk server.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Size of the boot disk in bytes.
pub const IMAGE_SIZE: u64 = 1 << 20;
/// The first sector that the guest's code does not occupy.
pub const FIRST_FREE_LBA: u32 = 9;

const SOURCE: &str = include_str!("../tests/guest/microguest.S");
/// A loaded machine without hardware acceleration boots the guest in some seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Assembles the guest (once per target folder) and returns its 4608 bytes. Needs `as` and `ld` of binutils.
///
/// # Errors
/// The assembler or linker is missing or fails.
pub fn microguest_code() -> io::Result<Vec<u8>> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let cached = cache_dir().join(format!("microguest-{:08x}.bin", fnv(SOURCE)));
    if let Ok(code) = std::fs::read(&cached) {
        return Ok(code);
    }
    std::fs::create_dir_all(cache_dir())?;
    let mine = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let file = |extension: &str| cache_dir().join(format!("microguest-{mine}.{extension}"));
    let (source, object, binary) = (file("S"), file("o"), file("bin"));
    std::fs::write(&source, SOURCE)?;
    run(Command::new("as").arg("--32").arg("-o").arg(&object).arg(&source))?;
    let mut link = Command::new("ld");
    link.args(["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o"]);
    run(link.arg(&binary).arg(&object))?;
    let code = std::fs::read(&binary)?;
    std::fs::rename(&binary, &cached)?;
    std::fs::remove_file(&source)?;
    std::fs::remove_file(&object)?;
    Ok(code)
}

/// Writes a bootable raw image of [`IMAGE_SIZE`] bytes.
///
/// # Errors
/// As [`microguest_code`], or the file cannot be written.
pub fn microguest_image(path: &Path) -> io::Result<()> {
    let mut image = microguest_code()?;
    image.resize(usize::try_from(IMAGE_SIZE).unwrap_or(usize::MAX), 0);
    std::fs::write(path, image)
}

fn run(command: &mut Command) -> io::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}; install 'binutils'")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{name}: {}", String::from_utf8_lossy(&output.stderr))))
}

/// The folder of the running test executable's target folder, so that `cargo clean` removes it.
fn cache_dir() -> PathBuf {
    let target = std::env::current_exe().ok().and_then(|exe| {
        let deps = exe.ancestors().find(|dir| dir.ends_with("deps"))?;
        Some(deps.parent()?.parent()?.to_owned())
    });
    target.unwrap_or_else(std::env::temp_dir).join("guest")
}

/// Names the cached file after the source, so that an edited guest is built again.
fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// What a sector of one repeated byte reads as.
#[must_use]
pub fn filled(byte: u8) -> Sector {
    let word = u16::from_le_bytes([byte, byte]);
    Sector { head: [byte; 8], sum: word.wrapping_mul(256) }
}

/// What the guest saw in a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sector {
    /// Its first bytes.
    pub head: [u8; 8],
    /// Sum of its 256 little-endian words, modulo 2^16.
    pub sum: u16,
}

/// Talks to a microguest through its serial port.
#[derive(Debug)]
pub struct Guest {
    stream: UnixStream,
    text: Vec<u8>,
    patience: Duration,
}

impl Guest {
    /// Connects to a serial socket: QEMU's own, or a worker's console socket.
    ///
    /// # Errors
    /// Nobody listens within a minute.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path).await {
                Ok(stream) => break stream,
                Err(error) if tokio::time::Instant::now() >= deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        Ok(Self { stream, text: Vec::new(), patience: PATIENCE })
    }

    /// Changes how long an answer may take (a minute).
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Waits for the boot message and returns the number of disks the firmware found. Connect before the guest runs:
    /// what it said earlier is only in the log.
    ///
    /// # Errors
    /// The guest does not boot in time.
    pub async fn ready(&mut self) -> io::Result<u8> {
        loop {
            let line = self.line().await?;
            if let Some(at) = line.find("MG READY disks=") {
                let count = line[at + "MG READY disks=".len()..].trim();
                return u8::from_str_radix(count, 16).map_err(|_| unexpected(&line));
            }
        }
    }

    /// Ignores what was said before (a console's past, the answer to a command of a lost connection) and waits until the
    /// guest answers. A command that another connection had sent only half of is given up, not completed by accident.
    ///
    /// # Errors
    /// The guest does not answer in time.
    pub async fn resync(&mut self) -> io::Result<()> {
        const QUIET: Duration = Duration::from_millis(400);
        let deadline = tokio::time::Instant::now() + self.patience;
        loop {
            self.stream.write_all(b"\x1bp").await?;
            let mut answered = false;
            while let Ok(line) = tokio::time::timeout(QUIET, self.line()).await {
                answered = line? == "pong";
            }
            if answered {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the guest does not answer"));
            }
        }
    }

    /// Whether the guest answers at all.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn ping(&mut self) -> io::Result<()> {
        match self.ask("p").await?.as_str() {
            "pong" => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Adds one to the counter in memory and returns it: 1 after boot.
    ///
    /// # Errors
    /// No answer in time.
    pub async fn count(&mut self) -> io::Result<u32> {
        let line = self.ask("c").await?;
        hex(&line, "c")
    }

    /// Reads a sector of the firmware's disk `disk` (0, 1 …).
    ///
    /// # Errors
    /// The firmware reports an error, or no answer in time.
    pub async fn read(&mut self, disk: u8, lba: u32) -> io::Result<Sector> {
        let line = self.ask(&format!("r{:02x}{lba:08x}", 0x80 + disk)).await?;
        let fail = || unexpected(&line);
        let (head, sum) = line.strip_prefix('r').and_then(|rest| rest.split_once(' ')).ok_or_else(fail)?;
        let head = u64::from_str_radix(head, 16).map_err(|_| fail())?.to_be_bytes();
        let sum = u16::from_str_radix(sum, 16).map_err(|_| fail())?;
        Ok(Sector { head, sum })
    }

    /// Fills a sector with one byte.
    ///
    /// # Errors
    /// The firmware reports an error, or no answer in time.
    pub async fn write(&mut self, disk: u8, lba: u32, byte: u8) -> io::Result<()> {
        match self.ask(&format!("w{:02x}{lba:08x}{byte:02x}", 0x80 + disk)).await?.as_str() {
            "w" => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Fills `mib` MiB of memory above the first with a pattern that depends on the counter.
    ///
    /// # Errors
    /// No answer in time.
    pub async fn dirty(&mut self, mib: u8) -> io::Result<()> {
        match self.ask(&format!("d{mib:02x}")).await?.as_str() {
            "d" => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Sums the little-endian 32-bit words of `mib` MiB of memory above the first.
    ///
    /// # Errors
    /// No answer in time.
    pub async fn sum(&mut self, mib: u8) -> io::Result<u32> {
        let line = self.ask(&format!("s{mib:02x}")).await?;
        hex(&line, "s")
    }

    /// Powers off by ACPI; there is no answer.
    ///
    /// # Errors
    /// The socket is closed.
    pub async fn power_off(&mut self) -> io::Result<()> {
        self.stream.write_all(b"o").await
    }

    async fn ask(&mut self, command: &str) -> io::Result<String> {
        self.stream.write_all(command.as_bytes()).await?;
        self.line().await
    }

    /// The next line without its end.
    async fn line(&mut self) -> io::Result<String> {
        let (stream, text) = (&mut self.stream, &mut self.text);
        let read = async {
            loop {
                if let Some(end) = text.iter().position(|&byte| byte == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).collect();
                    return Ok(String::from_utf8_lossy(&line).trim().to_owned());
                }
                if stream.read_buf(text).await? == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the serial port closed"));
                }
            }
        };
        let limit = self.patience;
        match tokio::time::timeout(limit, read).await {
            Ok(line) => line,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {limit:?}; so far: {:?}", String::from_utf8_lossy(&self.text)),
            )),
        }
    }
}

fn hex(line: &str, prefix: &str) -> io::Result<u32> {
    line.strip_prefix(prefix)
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .ok_or_else(|| unexpected(line))
}

fn unexpected(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the guest answered {line:?}"))
}

//! The NBD servers that are compared, each a process of its own.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use backstay_disk::{
    Backend, CacheMode, Disk, DiskOptions,
    nbd::{ExportSpec, Server},
};

use crate::machine::{cpu, memory_of};

const GRACE: Duration = Duration::from_secs(10);

/// The role of a server process: the same engine and server that serve a guest.
pub fn serve(file: &Path, socket: &Path, cache: CacheMode) -> Result<()> {
    let shadow = tempfile::tempdir_in(tmpfs())?;
    let runtime_dir = Some(shadow.path().to_owned());
    let options = DiskOptions { runtime_dir, cache, ..DiskOptions::default() };
    let disk = Disk::open(file, options)?;
    let server = Server::bind(socket, 0o600)?;
    let backend: Arc<dyn Backend> = Arc::<Disk>::clone(&disk);
    let (name, description) = ("disk".into(), String::new());
    server.add_export(ExportSpec { name, description, backend, read_only: false })?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let end = server.shutdown(GRACE);
    disk.close()?;
    if end.stuck > 0 { bail!("{} connections did not end", end.stuck) } else { Ok(()) }
}

/// Where a host's `/run` would be.
pub fn tmpfs() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() }
}

/// Which server.
#[derive(Clone, Copy, Debug)]
pub enum Who {
    Ours,
    /// `qemu-nbd` with that format.
    Qemu(&'static str),
}

/// A server of one disk.
#[derive(Debug)]
pub struct Running {
    child: Child,
    ours: bool,
    pub socket: PathBuf,
    pub uri: String,
}

impl Running {
    pub fn start(who: Who, file: &Path, socket: PathBuf) -> Result<Self> {
        Self::start_with(who, file, socket, CacheMode::Writeback)
    }

    /// With or without the page cache.
    pub fn start_with(who: Who, file: &Path, socket: PathBuf, cache: CacheMode) -> Result<Self> {
        let child = match who {
            Who::Ours => start_ours(file, &socket, cache)?,
            Who::Qemu(format) => start_qemu(format, file, &socket, cache)?,
        };
        let uri = format!("nbd+unix:///disk?socket={}", socket.display());
        Ok(Self { child, ours: matches!(who, Who::Ours), socket, uri })
    }

    /// Processor time the server has used, in seconds.
    pub fn cpu(&self) -> Result<f64> {
        cpu(self.child.id().into())
    }

    /// Resident memory of the server in MiB.
    pub fn memory(&self) -> Result<f64> {
        memory_of(self.child.id().into(), "VmRSS:")
    }

    /// Ends the server in order; its file is whole afterwards.
    pub fn stop(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        if !self.ours {
            let pid = rustix::process::Pid::from_child(&self.child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { bail!("a server ended with {status}") }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended unless an error is on its way up.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start_ours(file: &Path, socket: &Path, cache: CacheMode) -> Result<Child> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("serve")
        .args([file, socket])
        .args((cache == CacheMode::None).then_some("--past-cache"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("no output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    if line.trim() == "ready" { Ok(child) } else { bail!("the server of {} did not start", file.display()) }
}

fn start_qemu(format: &str, file: &Path, socket: &Path, cache: CacheMode) -> Result<Child> {
    let (cache, aio) = match cache {
        CacheMode::Writeback => ("--cache=writeback", "--aio=threads"),
        CacheMode::None => ("--cache=none", "--aio=io_uring"),
    };
    let mut child = Command::new("qemu-nbd")
        .args(["-t", "-e", "32", "-x", "disk", cache, aio, "--discard=unmap", "-f", format, "-k"])
        .args([socket, file])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run qemu-nbd (package qemu-utils)")?;
    let start = Instant::now();
    while UnixStream::connect(socket).is_err() {
        if start.elapsed() > GRACE || child.try_wait()?.is_some() {
            let _ = child.kill();
            bail!("qemu-nbd does not serve {}", file.display());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(child)
}

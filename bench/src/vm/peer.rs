//! The same guest in a QEMU of its own: saved by QEMU to a file, restored by QEMU from it.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use backstay_e2e::{PATIENCE, microguest_image};
use serde_json::{Value, json};

use crate::vm::guest::{Guest, first_answer};

/// How QEMU lays its file out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Stream,
    MappedRam,
}

impl Format {
    const fn file(self) -> &'static str {
        match self {
            Self::Stream => "stream.bin",
            Self::MappedRam => "mapped-ram.bin",
        }
    }

    const fn fast(self) -> bool {
        matches!(self, Self::MappedRam)
    }
}

/// Two saved states and how to load them.
#[derive(Debug)]
pub struct Peer {
    folder: PathBuf,
    /// A short name of it, for sockets.
    run: tempfile::TempDir,
    executable: PathBuf,
    /// Of the product's QEMU, with folder and disk exchanged.
    args: Vec<String>,
    sum: u32,
}

impl Peer {
    /// Boots a guest like that of process `like`, whose sockets are in `its_run`, fills its memory and saves it.
    pub fn new(folder: &Path, its_run: &Path, like: u64, memory: u64) -> Result<Self> {
        let run = tempfile::Builder::new().prefix("bsp-").tempdir_in("/dev/shm")?;
        let line = fs::read(format!("/proc/{like}/cmdline")).context("QEMU's command line")?;
        let disk = folder.join("disk.raw");
        fs::copy(microguest_image(), &disk)?;
        let (from, to) = (its_run.to_string_lossy(), run.path().to_string_lossy());
        let mut args: Vec<String> = line
            .split(|byte| *byte == 0)
            .filter(|arg| !arg.is_empty())
            .map(|arg| String::from_utf8_lossy(arg).replace(&*from, &to))
            .collect();
        let executable = fs::read_link(format!("/proc/{like}/exe"))?;
        args.remove(0);
        for arg in args.iter_mut().filter(|arg| arg.starts_with('{') && arg.contains("\"nbd\"")) {
            *arg = local_disk(arg, &disk)?;
        }
        args.retain(|arg| arg != "-S");
        let mut peer = Self { folder: folder.to_owned(), run, executable, args, sum: 0 };
        peer.save(memory)?;
        Ok(peer)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.run.path().join(name)
    }

    fn start(&self, more: &[&str]) -> Result<Process> {
        let log = File::create(self.folder.join("qemu.log"))?;
        let mut command = Command::new(&self.executable);
        command.args(&self.args).args(more).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Process(command.spawn().context("cannot run QEMU")?))
    }

    fn save(&mut self, memory: u64) -> Result<()> {
        let mut process = self.start(&[])?;
        let socket = self.socket("serial.sock");
        wait(&socket)?;
        let mut guest = Guest::booting(&socket)?;
        self.sum = guest.fill(memory)?;
        let mut qmp = Qmp::connect(&self.socket("qmp.sock"))?;
        for format in [Format::Stream, Format::MappedRam] {
            let capabilities =
                ["mapped-ram", "multifd"].map(|c| json!({"capability": c, "state": format.fast()}));
            qmp.call("migrate-set-capabilities", &json!({ "capabilities": capabilities }))?;
            qmp.call("migrate-set-parameters", &json!({ "max-bandwidth": 0, "downtime-limit": 2000 }))?;
            qmp.call(
                "migrate",
                &json!({ "uri": format!("file:{}", self.folder.join(format.file()).display()) }),
            )?;
            qmp.wait_saved()?;
            qmp.call("cont", &json!({}))?;
        }
        qmp.call("quit", &json!({}))?;
        process.0.wait()?;
        for format in [Format::Stream, Format::MappedRam] {
            File::open(self.folder.join(format.file()))?.sync_all()?;
        }
        Ok(())
    }

    /// Milliseconds from the start of QEMU until the guest answers.
    pub fn restore(&self, format: Format) -> Result<f64> {
        let uri = format!("file:{}", self.folder.join(format.file()).display());
        let globals = ["-global", "migration.mapped-ram=on", "-global", "migration.x-multifd=on"];
        let mut more = vec!["-incoming", uri.as_str()];
        if format.fast() {
            more.extend(globals);
        }
        // Sockets of the last QEMU would only be in the way.
        for socket in ["serial.sock", "qmp.sock", "qmp2.sock", "vnc.sock"] {
            let _ = fs::remove_file(self.socket(socket));
        }
        let start = Instant::now();
        let mut process = self.start(&more)?;
        let socket = self.socket("serial.sock");
        let elapsed = first_answer(start, &socket, |_| true);
        let elapsed =
            elapsed.with_context(|| fs::read_to_string(self.folder.join("qemu.log")).unwrap_or_default())?;
        ensure!(Guest::attach(&socket)?.sum()? == self.sum, "the peer came back with other memory");
        Qmp::connect(&self.socket("qmp.sock"))?.call("quit", &json!({}))?;
        process.0.wait()?;
        Ok(elapsed)
    }
}

/// The node's options with a raw file instead of a server.
fn local_disk(options: &str, disk: &Path) -> Result<String> {
    let mut options: Value = serde_json::from_str(options)?;
    if options["driver"] == "nbd" {
        let name = options["node-name"].take();
        options = json!({ "driver": "file", "node-name": name, "filename": disk, "discard": "unmap" });
    }
    Ok(options.to_string())
}

fn wait(socket: &Path) -> Result<()> {
    let start = Instant::now();
    while !socket.exists() {
        ensure!(start.elapsed() < PATIENCE, "{} did not appear", socket.display());
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended unless an error is on its way up.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Just enough of QEMU's control protocol.
struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn connect(socket: &Path) -> Result<Self> {
        wait(socket)?;
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self(BufReader::new(stream));
        qmp.0.read_line(&mut String::new())?;
        qmp.call("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    fn call(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.0.get_mut().write_all(line.as_bytes())?;
        loop {
            let mut line = String::new();
            ensure!(self.0.read_line(&mut line)? > 0, "QEMU hung up at {command}");
            let mut answer: Value = serde_json::from_str(&line)?;
            if answer.get("event").is_some() {
                continue;
            }
            if answer.get("error").is_some() {
                bail!("{command}: {answer}");
            }
            return Ok(answer["return"].take());
        }
    }

    fn wait_saved(&mut self) -> Result<()> {
        loop {
            let info = self.call("query-migrate", &json!({}))?;
            match info["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => bail!("QEMU could not save: {info}"),
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

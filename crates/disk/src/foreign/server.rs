//! QEMU's programs as processes of their own: limited in memory, without core dumps, in a process group of their own so
//! that Ctrl-C reaches us first, and ended when we are done.

use super::{ForeignError, ForeignFormat};
use serde::Deserialize;
use std::{
    fs,
    io::{self, Read},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const PROBE: &str = "qemu-img";
const SERVER: &str = "qemu-nbd";
/// How long QEMU may take to open a file.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks whether it has.
pub(super) const MOMENT: Duration = Duration::from_millis(10);
/// Most of what a program says that is kept, in bytes.
const MOST_WORDS: u64 = 1 << 20;
/// Connections that it serves at the same time.
pub(super) const CONNECTIONS: usize = 8;
const FOLDER: &str = "backstay-nbd-";

/// What a process may take.
#[derive(Debug)]
pub(super) struct Limits {
    /// KiB of address space.
    address_space: u64,
    /// Seconds of processor time; 0: any.
    processor: u64,
}

impl Limits {
    const PROBE: Self = Self { address_space: 2 << 20, processor: 20 };
    pub(super) const SERVER: Self = Self { address_space: 8 << 20, processor: 0 };
}

/// What `qemu-img info` says.
#[derive(Debug, Deserialize)]
pub(super) struct Facts {
    #[serde(rename = "virtual-size")]
    size: u64,
    #[serde(default)]
    encrypted: bool,
    #[serde(rename = "backing-filename", default)]
    parent: Option<String>,
    #[serde(skip)]
    pub(super) names_parent: bool,
}

/// A shell sets the limits and becomes the program, so that it never runs without them.
fn limited(program: &str, limits: &Limits) -> Command {
    const SCRIPT: &str = "ulimit -c 0 && ulimit -v \"$1\" && { [ \"$2\" = 0 ] || ulimit -t \"$2\"; } || exit 126; shift 2; exec \"$@\"";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", SCRIPT, "limits"]);
    command.args([limits.address_space.to_string(), limits.processor.to_string()]).arg(program);
    command.env("LC_ALL", "C").env("MALLOC_ARENA_MAX", "2").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn need(program: &'static str, format: ForeignFormat) -> Result<(), ForeignError> {
    if is_installed(program) { Ok(()) } else { Err(ForeignError::NoTool { program, format }) }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _what_there_is = pipe.by_ref().take(MOST_WORDS).read_to_end(&mut bytes);
        // Nobody waits for the rest, but the program must not wait for us.
        let _ = io::copy(&mut pipe, &mut io::sink());
        bytes
    })
}

/// The last line of what a program said, without its name.
fn last_words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line =
        text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it ended without a word");
    let line = line.strip_prefix(&format!("{PROBE}: ")).or_else(|| line.strip_prefix(&format!("{SERVER}: ")));
    line.map_or_else(
        || text.lines().next_back().unwrap_or("it ended without a word").to_owned(),
        str::to_owned,
    )
}

/// Has `qemu-img` look at a file whose names were checked.
pub(super) fn probe(path: &Path, format: ForeignFormat, cancel: &AtomicBool) -> Result<Facts, ForeignError> {
    need(PROBE, format)?;
    let failed = |source| ForeignError::Process { path: path.to_owned(), source };
    let mut command = limited(PROBE, &Limits::PROBE);
    command.args(["info", "--output=json", "-f", format.name()]).arg(path).stdout(Stdio::piped());
    let mut child = Ended(command.spawn().map_err(failed)?);
    let out = child.0.stdout.take().map(collect);
    let err = child.0.stderr.take().map(collect);
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.0.try_wait().map_err(failed)? {
            break status;
        }
        if cancel.load(Relaxed) {
            return Err(ForeignError::Cancelled { path: path.to_owned() });
        }
        if Instant::now() > deadline {
            return Err(ForeignError::Silent { path: path.to_owned(), seconds: PATIENCE.as_secs() });
        }
        thread::sleep(MOMENT);
    };
    let said = |thread: Option<JoinHandle<Vec<u8>>>| thread.and_then(|t| t.join().ok()).unwrap_or_default();
    let (out, err) = (said(out), said(err));
    let refused = |words: String| ForeignError::Refused { path: path.to_owned(), words };
    if !status.success() {
        return Err(refused(last_words(&err)));
    }
    let mut facts: Facts = serde_json::from_slice(&out)
        .map_err(|error| refused(format!("what {PROBE} says of it is no answer: {error}")))?;
    if facts.encrypted {
        return Err(refused("it is encrypted".into()));
    }
    if facts.size == 0 {
        return Err(refused("it has no content".into()));
    }
    facts.names_parent = facts.parent.is_some();
    Ok(facts)
}

/// A child that is ended when it is not needed any more.
#[derive(Debug)]
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A `qemu-nbd` that serves one file for reading.
#[derive(Debug)]
pub(super) struct Tool {
    child: Ended,
    folder: PathBuf,
    errors: Option<JoinHandle<Vec<u8>>>,
    format: ForeignFormat,
}

impl Tool {
    /// Starts it; it ends by itself when the last connection is closed, so also when we are killed.
    pub(super) fn start(path: &Path, format: ForeignFormat, limits: &Limits) -> Result<Self, ForeignError> {
        need(SERVER, format)?;
        let failed = |source| ForeignError::Process { path: path.to_owned(), source };
        sweep();
        let folder =
            std::env::temp_dir().join(format!("{FOLDER}{}-{}", std::process::id(), uuid::Uuid::new_v4()));
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
        let mut command = limited(SERVER, limits);
        command.args([
            "--read-only",
            "--format",
            format.name(),
            "--shared",
            &CONNECTIONS.to_string(),
            "--socket",
        ]);
        command.arg(folder.join("s")).arg(path);
        let child = command.spawn().inspect_err(|_| drop(fs::remove_dir_all(&folder))).map_err(failed)?;
        let mut child = Ended(child);
        let errors = child.0.stderr.take().map(collect);
        Ok(Self { child, folder, errors, format })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// What it said, if it has ended.
    pub(super) fn ended(&mut self) -> Option<String> {
        self.child.0.try_wait().ok().flatten()?;
        let said = self.errors.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        Some(format!("{} ({})", last_words(&said), self.format))
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _gone_already = self.child.0.kill();
        let _ = self.child.0.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Removes the folders that killed processes left.
fn sweep() {
    let own = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid =
            name.to_str().and_then(|name| name.strip_prefix(FOLDER)).and_then(|rest| rest.split('-').next());
        let dead =
            pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists());
        if dead && entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == own) {
            let _somebody_else_may_have = fs::remove_dir_all(entry.path());
        }
    }
}

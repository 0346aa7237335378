//! The connection: commands with numbers in one direction, answers and events in the other.
//!
//! One task reads, one writes; callers wait on channels, so dropping a caller's future leaves the connection intact.
//! QEMU stops reading when eight in-band commands wait, which would also block out-of-band ones: a semaphore keeps
//! fewer than that in flight, and a command that timed out keeps its place until QEMU answers it.

use super::{Greeting, QmpError, QmpEvent};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot, watch};

/// How long a command may take unless the caller says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// QEMU's queue holds eight.
const IN_FLIGHT: usize = 6;
/// QEMU's answers are small; a line beyond this means the peer is broken or hostile.
const LINE_MAX: usize = 16 << 20;
/// A subscriber that falls further behind sees `Lagged` and has to ask QEMU for its state.
const EVENTS_BUFFERED: usize = 1024;

type Answer = Result<Value, (String, String)>;

struct Waiting {
    answer: oneshot::Sender<Answer>,
    _place: Option<OwnedSemaphorePermit>,
}

/// Between the handles and the reading task.
struct Shared {
    waiting: Mutex<Option<HashMap<u64, Waiting>>>,
    events: broadcast::Sender<QmpEvent>,
    closed: watch::Sender<bool>,
}

impl Shared {
    /// `None` inside: the connection has ended.
    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, Waiting>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        *self.waiting() = None;
        self.closed.send_replace(true);
    }
}

struct Inner {
    shared: Arc<Shared>,
    lines: mpsc::UnboundedSender<Outgoing>,
    places: Arc<Semaphore>,
    greeting: Greeting,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// An id that no former connection used, of this process or of one that died: QEMU may still answer those.
fn next_id() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    u64::from(std::process::id()) << 32 | COUNT.fetch_add(1, Ordering::Relaxed)
}

/// A connection to one QEMU. Clones share it; it closes with the last one.
#[derive(Clone)]
pub struct Qmp {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Qmp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qmp").field("greeting", &self.inner.greeting).finish_non_exhaustive()
    }
}

impl Qmp {
    /// Connects, waits for the greeting and negotiates capabilities (out of band where offered). Retries for up to
    /// `patience` while the socket does not exist or nobody listens yet.
    ///
    /// # Errors
    /// [`QmpError::Connect`], [`QmpError::NoGreeting`] or [`QmpError::NotQmp`] after `patience`.
    pub async fn connect(path: &Path, patience: Duration) -> Result<Self, QmpError> {
        let deadline = tokio::time::Instant::now() + patience;
        let stream = loop {
            match UnixStream::connect(path).await {
                Ok(stream) => break stream,
                Err(source) if tokio::time::Instant::now() >= deadline => {
                    return Err(QmpError::Connect { path: path.to_owned(), source });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        match tokio::time::timeout_at(deadline, Self::handshake(path, stream)).await {
            Ok(result) => result,
            Err(_) => Err(QmpError::NoGreeting { path: path.to_owned(), after: patience }),
        }
    }

    async fn handshake(path: &Path, stream: UnixStream) -> Result<Self, QmpError> {
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        let greeting = wait_for_greeting(path, &mut read).await?;
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Some(HashMap::new())),
            events: broadcast::channel(EVENTS_BUFFERED).0,
            closed: watch::channel(false).0,
        });
        let (lines, mut to_write) = mpsc::unbounded_channel::<Outgoing>();
        tokio::spawn(async move {
            while let Some(line) = to_write.recv().await {
                if write_line(&mut write, line).await.is_err() {
                    break; // the reader sees the end too and tells everyone
                }
            }
        });
        let for_reader = Arc::clone(&shared);
        let reader = tokio::spawn(async move {
            while let Ok(Some(line)) = read_line(&mut read).await {
                dispatch(&for_reader, &line);
            }
            for_reader.close();
        });
        let oob = greeting.oob;
        let qmp = Self {
            inner: Arc::new(Inner {
                shared,
                lines,
                places: Arc::new(Semaphore::new(IN_FLIGHT)),
                greeting,
                reader,
            }),
        };
        let enable: &[&str] = if oob { &["oob"] } else { &[] };
        qmp.execute("qmp_capabilities", json!({ "enable": enable })).await?;
        Ok(qmp)
    }

    /// What QEMU said when we connected.
    #[must_use]
    pub fn greeting(&self) -> &Greeting {
        &self.inner.greeting
    }

    /// Events from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.inner.shared.events.subscribe()
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        *self.inner.shared.closed.borrow()
    }

    /// Returns when the connection has ended.
    pub async fn closed(&self) {
        let mut closed = self.inner.shared.closed.subscribe();
        // The sender lives as long as `self`, so waiting can only end with `true`.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Runs one command. `arguments` is an object, or `Null` for none.
    ///
    /// # Errors
    /// QEMU's refusal, 30 s without an answer, or a lost connection.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_within(command, arguments, DEFAULT_TIMEOUT).await
    }

    /// As [`Qmp::execute`] with another time limit. QEMU may still carry out a command that timed out.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn execute_within(
        &self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let run = async {
            // The semaphore is never closed; if it were, no place is needed.
            let place = Arc::clone(&self.inner.places).acquire_owned().await.ok();
            self.send("execute", command, arguments, place, None).await
        };
        self.within(command, limit, run).await
    }

    /// Runs one command that hands an open file over.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn execute_with_file(
        &self,
        command: &str,
        arguments: Value,
        file: OwnedFd,
    ) -> Result<Value, QmpError> {
        let run = async {
            let place = Arc::clone(&self.inner.places).acquire_owned().await.ok();
            self.send("execute", command, arguments, place, Some(file)).await
        };
        self.within(command, DEFAULT_TIMEOUT, run).await
    }

    /// Runs one command past all others, also past one that hangs.
    ///
    /// # Errors
    /// As [`Qmp::execute`], and [`QmpError::NoOutOfBand`].
    pub async fn execute_oob(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        if !self.inner.greeting.oob {
            return Err(QmpError::NoOutOfBand { command: command.to_owned() });
        }
        self.within(command, DEFAULT_TIMEOUT, self.send("exec-oob", command, arguments, None, None)).await
    }

    async fn within(
        &self,
        command: &str,
        limit: Duration,
        run: impl Future<Output = Result<Value, QmpError>>,
    ) -> Result<Value, QmpError> {
        match tokio::time::timeout(limit, run).await {
            Ok(result) => result,
            Err(_) => Err(QmpError::Timeout { command: command.to_owned(), after: limit }),
        }
    }

    async fn send(
        &self,
        verb: &str,
        command: &str,
        arguments: Value,
        place: Option<OwnedSemaphorePermit>,
        file: Option<OwnedFd>,
    ) -> Result<Value, QmpError> {
        let disconnected = || QmpError::Disconnected { command: command.to_owned() };
        let id = next_id();
        let mut request = Map::new();
        request.insert(verb.to_owned(), command.into());
        request.insert("id".to_owned(), id.into());
        if !arguments.is_null() {
            request.insert("arguments".to_owned(), arguments);
        }
        let mut line = Value::Object(request).to_string().into_bytes();
        line.push(b'\n');
        let (answer, answered) = oneshot::channel();
        match self.inner.shared.waiting().as_mut() {
            Some(waiting) => waiting.insert(id, Waiting { answer, _place: place }),
            None => return Err(disconnected()),
        };
        self.inner.lines.send(Outgoing { line, file }).map_err(|_| disconnected())?;
        match answered.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err((class, desc))) => Err(QmpError::Refused { command: command.to_owned(), class, desc }),
            Err(_) => Err(disconnected()),
        }
    }
}

/// A command on its way to QEMU.
struct Outgoing {
    line: Vec<u8>,
    /// Goes with its first byte.
    file: Option<OwnedFd>,
}

async fn write_line(write: &mut OwnedWriteHalf, outgoing: Outgoing) -> std::io::Result<()> {
    let Outgoing { line, file } = outgoing;
    let sent = match file {
        None => 0,
        Some(file) => {
            write
                .as_ref()
                .async_io(Interest::WRITABLE, || {
                    let stream: &UnixStream = write.as_ref();
                    send_with_file(stream, &line, &file)
                })
                .await?
        }
    };
    write.write_all(&line[sent..]).await
}

/// Sends as much of `line` as fits, and the file with it.
fn send_with_file(stream: &UnixStream, line: &[u8], file: &OwnedFd) -> std::io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let files = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(std::io::Error::other("no room for an open file in a message"));
    }
    let parts = [std::io::IoSlice::new(line)];
    Ok(sendmsg(stream, &parts, &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
}

/// One line without its end; `None` at the end of the stream.
async fn read_line(
    read: &mut (impl AsyncRead + AsyncBufReadExt + Unpin),
) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let part = read.fill_buf().await?;
        if part.is_empty() {
            return Ok(None);
        }
        let (taken, done) = match part.iter().position(|&byte| byte == b'\n') {
            Some(end) => (end + 1, true),
            None => (part.len(), false),
        };
        line.extend_from_slice(&part[..taken]);
        read.consume(taken);
        if done {
            return Ok(Some(line));
        }
        if line.len() > LINE_MAX {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "line too long"));
        }
    }
}

/// QEMU keeps what it could not send to a connection that broke, perhaps from the middle of a line on, for the next one. At
/// most so many lines of that are passed over.
const LEFT_BEHIND: usize = 256;

/// Whether a line can be what was meant for a former connection.
fn is_left_behind(line: &[u8]) -> bool {
    line.trim_ascii_end().ends_with(b"}")
}

async fn wait_for_greeting(
    path: &Path,
    read: &mut (impl AsyncRead + AsyncBufReadExt + Unpin),
) -> Result<Greeting, QmpError> {
    let mut more = LEFT_BEHIND;
    loop {
        let line = match read_line(read).await {
            Ok(Some(line)) => line,
            Ok(None) => return Err(QmpError::Disconnected { command: "the greeting".to_owned() }),
            Err(source) => return Err(QmpError::Connect { path: path.to_owned(), source }),
        };
        if let Some(greeting) = parse_greeting(&line) {
            return Ok(greeting);
        }
        let text = String::from_utf8_lossy(&line).chars().take(200).collect::<String>();
        if more == 0 || !is_left_behind(&line) {
            return Err(QmpError::NotQmp { path: path.to_owned(), text });
        }
        tracing::debug!(text, "QEMU answers a former connection");
        more -= 1;
    }
}

fn parse_greeting(line: &[u8]) -> Option<Greeting> {
    let value: Value = serde_json::from_slice(line).ok()?;
    let qmp = value.get("QMP")?;
    let version = qmp.pointer("/version/qemu")?;
    let number = |key: &str| version.get(key)?.as_u64().and_then(|n| u32::try_from(n).ok());
    Some(Greeting {
        version: (number("major")?, number("minor")?, number("micro")?),
        package: qmp.pointer("/version/package").and_then(Value::as_str).unwrap_or_default().to_owned(),
        oob: qmp.get("capabilities")?.as_array()?.iter().any(|capability| capability == "oob"),
    })
}

/// Hands one line to whoever waits for it.
fn dispatch(shared: &Shared, line: &[u8]) {
    let Ok(mut value) = serde_json::from_slice::<Value>(line) else {
        tracing::warn!(line = %String::from_utf8_lossy(line), "QEMU sent a line that is not JSON");
        return;
    };
    if let Some(name) = value.get("event").and_then(Value::as_str) {
        let part =
            |key: &str| value.pointer(&format!("/timestamp/{key}")).and_then(Value::as_u64).unwrap_or(0);
        let at_unix_us = part("seconds").saturating_mul(1_000_000).saturating_add(part("microseconds"));
        let (name, data) = (name.to_owned(), value["data"].take());
        // An error only says that nobody listens.
        let _ = shared.events.send(QmpEvent { name, data, at_unix_us });
        return;
    }
    let waiting = value
        .get("id")
        .and_then(Value::as_u64)
        .and_then(|id| shared.waiting().as_mut().and_then(|waiting| waiting.remove(&id)));
    let Some(waiting) = waiting else {
        tracing::warn!(answer = %value, "QEMU answered a command that nobody sent");
        return;
    };
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let answer = match value.get("error") {
        Some(error) => Err((text(error, "class"), text(error, "desc"))),
        None => Ok(value["return"].take()),
    };
    // The caller may have given up.
    let _ = waiting.answer.send(answer);
}

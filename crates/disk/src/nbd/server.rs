//! The listening side: exports by name, connections, orderly ends.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    io::Read,
    net::Shutdown as Half,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};

use super::{
    conn::Conn,
    export::Export,
    negotiate::{Catalog, ExportInfo, Negotiation, Session, Step},
    proto::MAX_STRING,
    throttle::Hurry,
};
use crate::{Backend, RateLimit};

/// A client that does not finish its handshake in this time is cut off.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// Connections at the same time, over all exports.
const MAX_CONNECTIONS: usize = 4096;
/// Pause after a failed accept, such as when the process has no descriptor left.
const BACK_OFF: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Why a server could not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another server answers on the socket.
    #[error("{path} is in use by another server; end that server or choose another socket path")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket has that name.
    #[error("{path} exists and is not a socket; remove it or choose another socket path")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot listen on {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why an export could not be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The name is taken.
    #[error("an export named \"{name}\" exists already; remove it first or choose another name")]
    Exists {
        /// The name.
        name: String,
    },
    /// There is no such export.
    #[error("there is no export named \"{name}\"")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The protocol limits names.
    #[error("the export name is {len} bytes long; the NBD protocol allows at most 4096")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
}

/// An export to add.
#[derive(Debug)]
pub struct ExportSpec {
    /// What clients ask for; may be empty.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// What to serve.
    pub backend: Arc<dyn Backend>,
    /// Refuse writes even if the backend would take them.
    pub read_only: bool,
}

/// How connections ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Shutdown {
    /// Connections that were cut because they did not finish in time (clients that do not read their replies).
    pub cut: usize,
    /// Connections whose requests are still held up in the backend. While there are any, the backend is in use.
    pub stuck: usize,
}

/// A running NBD server on a unix socket. Dropping it shuts it down without grace.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    stop: Arc<OwnedFd>,
    accepting: Option<JoinHandle<()>>,
    /// The socket file and its device and inode numbers, if this server made it.
    path: Option<(PathBuf, (u64, u64))>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// A connection ended.
    gone: Condvar,
}

#[derive(Debug, Default)]
struct State {
    exports: BTreeMap<String, Arc<Export>>,
    connections: HashMap<u64, Connection>,
    next: u64,
    closing: bool,
}

#[derive(Debug)]
struct Connection {
    stream: Arc<UnixStream>,
    /// None during the handshake.
    export: Option<Arc<Export>>,
}

impl Server {
    /// Listens on a socket at `path` with permission bits `mode`. A socket file on which nobody listens is replaced.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(path: &Path, mode: u32) -> Result<Self, BindError> {
        let fail = |source: io::Error| BindError::Io { path: path.to_owned(), source };
        let fd = match bind_once(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                bind_once(path)
            }
            other => other,
        };
        let fd = fd.map_err(fail)?;
        // Nobody can connect before `listen`, so the mode is right from the start.
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(fail)?;
        listen(&fd, 128).map_err(|e| fail(e.into()))?;
        let meta = fs::symlink_metadata(path).map_err(fail)?;
        let mut server = Self::from_listener(UnixListener::from(fd)).map_err(fail)?;
        server.path = Some((path.to_owned(), (meta.dev(), meta.ino())));
        Ok(server)
    }

    /// Serves on a socket that listens already, such as one handed over by another process. Its file stays at the end.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn from_listener(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let accepting = {
            let (shared, stop) = (Arc::clone(&shared), Arc::clone(&stop));
            thread::Builder::new()
                .name("nbd accept".into())
                .spawn(move || accept(&listener, &stop, &shared))?
        };
        Ok(Self { shared, stop, accepting: Some(accepting), path: None })
    }

    /// Adds an export; clients can ask for it from now on.
    ///
    /// # Errors
    /// See [`ExportError`].
    pub fn add_export(&self, spec: ExportSpec) -> Result<(), ExportError> {
        let ExportSpec { name, description, backend, read_only } = spec;
        if name.len() > MAX_STRING {
            return Err(ExportError::TooLong { len: name.len() });
        }
        let mut state = self.shared.lock();
        if state.exports.contains_key(&name) {
            return Err(ExportError::Exists { name });
        }
        let export = Arc::new(Export::new(name.clone(), description, backend, read_only));
        state.exports.insert(name, export);
        Ok(())
    }

    /// Removes an export: no new clients, and the present ones are closed after their requests in flight are answered.
    /// A client that does not take its replies within `grace` is cut off. When the result says `stuck: 0`, nothing uses
    /// the backend any more.
    ///
    /// # Errors
    /// [`ExportError::Unknown`].
    pub fn remove_export(&self, name: &str, grace: Duration) -> Result<Shutdown, ExportError> {
        let mut state = self.shared.lock();
        let Some(export) = state.exports.remove(name) else {
            return Err(ExportError::Unknown { name: name.to_owned() });
        };
        drop(state);
        Ok(self.shared.close(grace, |_, c| c.export.as_ref().is_some_and(|e| Arc::ptr_eq(e, &export))))
    }

    /// Closes the connections that an export has now, after their requests in flight are answered: clients that come back learn
    /// its size anew.
    ///
    /// # Errors
    /// [`ExportError::Unknown`].
    pub fn renew(&self, name: &str, grace: Duration) -> Result<Shutdown, ExportError> {
        let state = self.shared.lock();
        let Some(export) = state.exports.get(name) else {
            return Err(ExportError::Unknown { name: name.to_owned() });
        };
        let is_of = |c: &Connection| c.export.as_ref().is_some_and(|e| Arc::ptr_eq(e, export));
        let present: Vec<u64> =
            state.connections.iter().filter(|(_, c)| is_of(c)).map(|(id, _)| *id).collect();
        drop(state);
        Ok(self.shared.close(grace, |id, _| present.contains(&id)))
    }

    /// Limits an export from now on, requests that wait already included. A limit is that of the export: all its
    /// clients share it.
    ///
    /// # Errors
    /// [`ExportError::Unknown`].
    pub fn set_limit(&self, name: &str, limit: RateLimit) -> Result<(), ExportError> {
        let export = self.shared.lock().exports.get(name).cloned();
        let export = export.ok_or_else(|| ExportError::Unknown { name: name.to_owned() })?;
        export.throttle.set(limit);
        Ok(())
    }

    /// The limit of an export; none is also that of one that does not exist.
    #[must_use]
    pub fn limit(&self, name: &str) -> RateLimit {
        self.shared.lock().exports.get(name).map(|export| export.throttle.limit()).unwrap_or_default()
    }

    /// Lets all requests go that wait for limits, and those that come, until the result is dropped: for whoever waits until a
    /// client has no requests in flight.
    pub fn hurry(&self) -> Hurry {
        let state = self.shared.lock();
        Hurry::all(state.exports.values().map(|export| Arc::clone(&export.throttle)).collect())
    }

    /// Names of the exports.
    #[must_use]
    pub fn exports(&self) -> Vec<String> {
        self.shared.lock().exports.keys().cloned().collect()
    }

    /// Number of clients connected to the export of that name.
    #[must_use]
    pub fn clients(&self, name: &str) -> usize {
        let state = self.shared.lock();
        state.connections.values().filter(|c| c.export.as_ref().is_some_and(|e| e.name == name)).count()
    }

    /// Stops accepting, answers the requests in flight, closes. A client that does not take its replies within `grace` is
    /// cut off, and the backends get as long again to come back.
    pub fn shutdown(mut self, grace: Duration) -> Shutdown {
        self.end(grace)
    }

    fn end(&mut self, grace: Duration) -> Shutdown {
        if let Some(accepting) = self.accepting.take() {
            // The only ways to fail are a full counter and a closed descriptor; it is neither.
            let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
            let _ = accepting.join();
            if let Some((path, id)) = &self.path
                && fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == *id)
                && let Err(error) = fs::remove_file(path)
            {
                tracing::warn!(path = %path.display(), %error, "the NBD socket file could not be removed");
            }
        }
        self.shared.lock().closing = true;
        self.shared.close(grace, |_, _| true)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.end(Duration::ZERO);
    }
}

fn bind_once(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(fd)
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let fail = |source: io::Error| BindError::Io { path: path.to_owned(), source };
    let meta = fs::symlink_metadata(path).map_err(fail)?;
    if !meta.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(fail),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // It answers, or it is busy.
        _ => Err(BindError::InUse { path: path.to_owned() }),
    }
}

fn accept(listener: &UnixListener, stop: &OwnedFd, shared: &Arc<Shared>) {
    loop {
        let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        if poll(&mut fds, None).is_err() {
            continue;
        }
        if !fds[0].revents().is_empty() {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => shared.start(stream),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                tracing::warn!(%error, "an NBD client could not be accepted");
                let _ = poll(&mut [PollFd::new(stop, PollFlags::IN)], Some(&BACK_OFF));
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(self: &Arc<Self>, stream: UnixStream) {
        let stream = Arc::new(stream);
        let mut state = self.lock();
        if state.closing || state.connections.len() >= MAX_CONNECTIONS {
            tracing::warn!("an NBD client was turned away: too many connections");
            return;
        }
        let id = state.next;
        state.next += 1;
        state.connections.insert(id, Connection { stream: Arc::clone(&stream), export: None });
        drop(state);
        let shared = Arc::clone(self);
        let run = move || shared.handshake(id, stream);
        if let Err(error) = thread::Builder::new().name("nbd client".into()).stack_size(512 << 10).spawn(run)
        {
            tracing::warn!(%error, "no thread for an NBD client");
            self.forget(id);
        }
    }

    fn handshake(self: Arc<Self>, id: u64, stream: Arc<UnixStream>) {
        let agreed = negotiate(&stream, &*self).and_then(|(session, rest)| {
            stream.set_read_timeout(None)?;
            stream.set_write_timeout(None)?;
            Ok((session, rest))
        });
        let (session, rest) = match agreed {
            Ok(agreed) => agreed,
            Err(error) => {
                tracing::debug!(%error, "an NBD handshake ended");
                return self.forget(id);
            }
        };
        let Some(export) = self.attach(id, &session.export) else { return self.forget(id) };
        let shared = Arc::clone(&self);
        Conn::new(stream, export, session, Box::new(move || shared.forget(id))).serve(&rest);
    }

    /// Ties a connection to its export, unless that was removed meanwhile.
    fn attach(&self, id: u64, name: &str) -> Option<Arc<Export>> {
        let mut state = self.lock();
        let export = state.exports.get(name).filter(|_| !state.closing).cloned()?;
        state.connections.get_mut(&id)?.export = Some(Arc::clone(&export));
        Some(export)
    }

    fn forget(&self, id: u64) {
        self.lock().connections.remove(&id);
        self.gone.notify_all();
    }

    fn close(&self, grace: Duration, which: impl Fn(u64, &Connection) -> bool) -> Shutdown {
        // First only the receiving half: requests that arrived are still served and answered.
        self.hang_up(&which, Half::Read);
        if self.wait(grace, &which) == 0 {
            return Shutdown { cut: 0, stuck: 0 };
        }
        let cut = self.hang_up(&which, Half::Both);
        Shutdown { cut, stuck: self.wait(grace.max(Duration::from_secs(1)), &which) }
    }

    fn hang_up(&self, which: &impl Fn(u64, &Connection) -> bool, half: Half) -> usize {
        let state = self.lock();
        let chosen = state.connections.iter().filter(|(id, c)| which(**id, c));
        chosen
            .map(|(_, c)| {
                let half = if c.export.is_none() { Half::Both } else { half };
                // Fails only if the client hung up first.
                let _ = c.stream.shutdown(half);
            })
            .count()
    }

    /// Waits for the chosen connections to end; returns how many did not.
    fn wait(&self, limit: Duration, which: &impl Fn(u64, &Connection) -> bool) -> usize {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            let left = state.connections.iter().filter(|(id, c)| which(**id, c)).count();
            let time = deadline.saturating_duration_since(Instant::now());
            if left == 0 || time.is_zero() {
                return left;
            }
            state = self.gone.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Catalog for Shared {
    fn names(&self) -> Vec<String> {
        self.lock().exports.keys().cloned().collect()
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        let state = self.lock();
        let only =
            || if name.is_empty() && state.exports.len() == 1 { state.exports.values().next() } else { None };
        let export = state.exports.get(name).or_else(only).cloned();
        drop(state);
        // Asks the backend, which must not hold up the other connections.
        export.map(|export| export.info())
    }
}

fn negotiate(mut stream: &UnixStream, catalog: &dyn Catalog) -> io::Result<(Session, Vec<u8>)> {
    stream.set_read_timeout(Some(HANDSHAKE))?;
    stream.set_write_timeout(Some(HANDSHAKE))?;
    send(stream, &Negotiation::greeting())?;
    let deadline = Instant::now() + HANDSHAKE;
    let (mut negotiation, mut out, mut buf) = (Negotiation::default(), Vec::new(), vec![0; 4096]);
    loop {
        let n = stream.read(&mut buf)?;
        if n == 0 || Instant::now() > deadline {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let step = negotiation.feed(&buf[..n], catalog, &mut out);
        send(stream, &out)?;
        out.clear();
        match step {
            Step::More => {}
            Step::Ready(session) => return Ok((session, negotiation.rest())),
            Step::Close => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

/// Like `write_all`, but a client that hung up is an error and never a signal.
fn send(socket: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    use rustix::net::{SendFlags, send};
    while !bytes.is_empty() {
        match send(&socket, bytes, SendFlags::NOSIGNAL) {
            Ok(n) => bytes = &bytes[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

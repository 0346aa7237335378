//! The control socket's client side, for the daemon and for tests.

use crate::control::{EventFrame, Reply, ReplyFrame, Request, RequestFrame, ServerFrame, WorkerError};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A call that got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the worker has ended, or never started.
    #[error("no worker answers at {socket}")]
    Connect {
        /// The control socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection ended before the answer came: the worker may or may not have acted.
    #[error("the worker at {socket} closed the connection before it answered")]
    Disconnected {
        /// The control socket.
        socket: PathBuf,
    },
    /// No answer in time: the worker may still act.
    #[error("the worker at {socket} did not answer within {seconds} s")]
    Timeout {
        /// The control socket.
        socket: PathBuf,
        /// The time that passed.
        seconds: u64,
    },
    /// The worker refused or failed.
    #[error(transparent)]
    Worker(WorkerError),
}

type Pending = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Result<Reply, WorkerError>>>>>>;

/// A connection to one worker. Calls may overlap.
#[derive(Debug)]
pub struct WorkerClient {
    socket: PathBuf,
    write: tokio::sync::Mutex<OwnedWriteHalf>,
    pending: Pending,
    next: AtomicU64,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for WorkerClient {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl WorkerClient {
    /// Connects to `worker.sock` of a run folder.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let (read, write) = open(socket).await?.into_split();
        let pending: Pending = Arc::new(Mutex::new(Some(HashMap::new())));
        let reader = tokio::spawn(read_replies(BufReader::new(read).lines(), Arc::clone(&pending)));
        Ok(Self {
            socket: socket.into(),
            write: tokio::sync::Mutex::new(write),
            pending,
            next: AtomicU64::new(1),
            reader,
        })
    }

    /// Connects as soon as a worker listens: for a worker that was just started.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nobody listened within `patience`.
    pub async fn connect_within(socket: &Path, patience: Duration) -> Result<Self, ClientError> {
        let deadline = Instant::now() + patience;
        loop {
            match Self::connect(socket).await {
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                connected => return connected,
            }
        }
    }

    /// Sends one request and waits for its reply.
    ///
    /// # Errors
    /// The worker's refusal, or a lost connection, or no answer within `patience`.
    pub async fn call(&self, request: Request, patience: Duration) -> Result<Reply, ClientError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let lost = || ClientError::Disconnected { socket: self.socket.clone() };
        let (sender, receiver) = oneshot::channel();
        match self.pending.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(pending) => pending.insert(id, sender),
            None => return Err(lost()),
        };
        let exchange = async {
            let mut line = serde_json::to_vec(&RequestFrame { id, request }).map_err(|_| lost())?;
            line.push(b'\n');
            self.write.lock().await.write_all(&line).await.map_err(|_| lost())?;
            receiver.await.map_err(|_| lost())?.map_err(ClientError::Worker)
        };
        let answer = tokio::time::timeout(patience, exchange).await;
        if let Some(pending) = self.pending.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            pending.remove(&id);
        }
        let seconds = patience.as_secs();
        answer.unwrap_or_else(|_| Err(ClientError::Timeout { socket: self.socket.clone(), seconds }))
    }

    /// Follows the worker's events on a connection of their own, from number `after` + 1 on.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::Disconnected`].
    pub async fn events(&self, after: u64) -> Result<EventStream, ClientError> {
        EventStream::connect(&self.socket, after).await
    }
}

async fn open(socket: &Path) -> Result<UnixStream, ClientError> {
    UnixStream::connect(socket).await.map_err(|source| ClientError::Connect { socket: socket.into(), source })
}

async fn read_replies(mut lines: Lines<BufReader<OwnedReadHalf>>, pending: Pending) {
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(ServerFrame::Reply(ReplyFrame { id, result })) = serde_json::from_str(&line) else {
            continue; // an event nobody asked for, or a frame of a newer worker
        };
        let waiting =
            pending.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(|p| p.remove(&id));
        if let Some(waiting) = waiting {
            let _ = waiting.send(result);
        }
    }
    // Dropping the senders tells every caller that the connection is lost.
    pending.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// A worker's events, oldest first.
#[derive(Debug)]
pub struct EventStream {
    lines: Lines<BufReader<OwnedReadHalf>>,
    // Held so that the worker does not see the end of our requests.
    _write: OwnedWriteHalf,
}

impl EventStream {
    /// Connects and asks for the events after number `after`.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::Disconnected`].
    pub async fn connect(socket: &Path, after: u64) -> Result<Self, ClientError> {
        let (read, mut write) = open(socket).await?.into_split();
        let lost = |_| ClientError::Disconnected { socket: socket.into() };
        let frame = RequestFrame { id: 0, request: Request::Subscribe { after } };
        let mut line = serde_json::to_vec(&frame).map_err(io::Error::from).map_err(lost)?;
        line.push(b'\n');
        write.write_all(&line).await.map_err(lost)?;
        Ok(Self { lines: BufReader::new(read).lines(), _write: write })
    }

    /// The next event; `None` when the worker has ended. Events of a newer worker that this version does not know are
    /// skipped.
    pub async fn next(&mut self) -> Option<EventFrame> {
        loop {
            let line = self.lines.next_line().await.ok()??;
            if let Ok(ServerFrame::Event(event)) = serde_json::from_str(&line) {
                return Some(event);
            }
        }
    }
}

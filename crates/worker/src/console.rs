//! The serial console for any number of viewers: QEMU's side takes one connection, which this module holds. Viewers get
//! the recent past first, then what comes live; what any of them types goes to the guest. Nothing typed is lost while
//! there is no guest or it does not read: a limited amount is held, then the viewer has to wait.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

/// Bytes of the past that a new viewer sees.
const SCROLLBACK: usize = 64 << 10;
/// Bytes that may wait for one viewer; a viewer that falls further behind is disconnected.
const VIEWER_BACKLOG: usize = 1 << 20;
/// Largest piece of typed input, in bytes.
const INPUT_CHUNK: usize = 1 << 10;
/// Pieces of typed input that are held for the guest: 64 KiB, then the viewers wait.
const INPUT_QUEUE: usize = 64;
/// How long to wait before a serial port that could not be reached is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// The last bytes the guest wrote.
#[derive(Debug, Default)]
struct Scrollback {
    bytes: VecDeque<u8>,
}

impl Scrollback {
    fn push(&mut self, chunk: &[u8]) {
        let chunk = &chunk[chunk.len().saturating_sub(SCROLLBACK)..];
        let excess = (self.bytes.len() + chunk.len()).saturating_sub(SCROLLBACK);
        self.bytes.drain(..excess);
        self.bytes.extend(chunk);
    }

    fn snapshot(&self) -> Vec<u8> {
        self.bytes.iter().copied().collect()
    }
}

/// Where the guest's serial port is now; changes when QEMU is started again.
pub type SerialPort = Option<PathBuf>;

/// Serves viewers on `listener` until `port`'s sender is gone. Viewers stay connected while QEMU is restarted.
/// `past`: what the guest wrote to a former worker, for the scrollback.
pub async fn serve(listener: UnixListener, mut port: watch::Receiver<SerialPort>, past: Vec<u8>) {
    let (input, typed) = mpsc::channel::<Vec<u8>>(INPUT_QUEUE);
    let mut hub =
        Hub { scrollback: Scrollback::default(), viewers: Vec::new(), input, typed, unsent: Vec::new() };
    hub.scrollback.push(&past);
    loop {
        let path = port.borrow_and_update().clone();
        let ended = match path {
            Some(path) => match UnixStream::connect(&path).await {
                Ok(stream) => hub.pump(&listener, &mut port, stream).await,
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "the serial port cannot be reached");
                    // A port of a QEMU that has ended: the owner will say so, or there is nothing to lose by trying.
                    hub.idle(&listener, &mut port, Some(RETRY)).await
                }
            },
            None => hub.idle(&listener, &mut port, None).await,
        };
        if ended.is_break() {
            return;
        }
    }
}

/// The end of the serial port's log: what viewers of a former worker have seen last. Empty if it cannot be read.
#[must_use]
pub fn past_of(log: &Path) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::open(log)?;
        let mut bytes = vec![0; SCROLLBACK];
        let start = file.metadata()?.len().saturating_sub(SCROLLBACK as u64);
        let mut len = 0;
        while len < bytes.len() {
            match file.read_at(&mut bytes[len..], start + len as u64)? {
                0 => break,
                more => len += more,
            }
        }
        bytes.truncate(len);
        Ok(bytes)
    };
    read().unwrap_or_else(|error| {
        tracing::info!(%error, path = %log.display(), "the console starts without its past");
        Vec::new()
    })
}

struct Hub {
    scrollback: Scrollback,
    viewers: Vec<Viewer>,
    input: mpsc::Sender<Vec<u8>>,
    typed: mpsc::Receiver<Vec<u8>>,
    /// Taken from `typed`, not yet by the guest.
    unsent: Vec<u8>,
}

/// What is on its way to one viewer.
struct Viewer {
    chunks: mpsc::UnboundedSender<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
}

impl Viewer {
    /// Queues a chunk; false when the viewer is gone or too far behind.
    fn push(&self, chunk: &[u8]) -> bool {
        if self.waiting.fetch_add(chunk.len(), Relaxed) > VIEWER_BACKLOG {
            tracing::warn!("a console viewer that does not read was disconnected");
            return false;
        }
        self.chunks.send(chunk.to_vec()).is_ok()
    }
}

/// Whether the console as a whole is over.
type Ended = std::ops::ControlFlow<()>;

impl Hub {
    /// While there is no guest, at most for `limit`: viewers may come, what they type is held.
    async fn idle(
        &mut self,
        listener: &UnixListener,
        port: &mut watch::Receiver<SerialPort>,
        limit: Option<Duration>,
    ) -> Ended {
        let limit = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(limit);
        loop {
            tokio::select! {
                changed = port.changed() => return if changed.is_ok() { Ended::Continue(()) } else { Ended::Break(()) },
                accepted = listener.accept() => self.welcome(accepted),
                () = &mut limit => return Ended::Continue(()),
            }
        }
    }

    /// While the guest's port is connected.
    async fn pump(
        &mut self,
        listener: &UnixListener,
        port: &mut watch::Receiver<SerialPort>,
        guest: UnixStream,
    ) -> Ended {
        let (mut from_guest, mut to_guest) = guest.into_split();
        let mut buffer = vec![0; 4096];
        loop {
            // Every branch can be dropped without loss; input that the guest does not take never holds back its output.
            tokio::select! {
                read = from_guest.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return self.idle(listener, port, None).await,
                    Ok(len) => self.show(&buffer[..len]),
                },
                accepted = listener.accept() => self.welcome(accepted),
                changed = port.changed() => {
                    return if changed.is_ok() { Ended::Continue(()) } else { Ended::Break(()) };
                }
                Some(chunk) = self.typed.recv(), if self.unsent.is_empty() => self.unsent = chunk,
                sent = to_guest.write(&self.unsent), if !self.unsent.is_empty() => match sent {
                    Ok(len) => drop(self.unsent.drain(..len)),
                    Err(_) => return self.idle(listener, port, None).await,
                },
            }
        }
    }

    fn show(&mut self, chunk: &[u8]) {
        self.scrollback.push(chunk);
        self.viewers.retain(|viewer| viewer.push(chunk));
    }

    fn welcome(&mut self, accepted: io::Result<(UnixStream, tokio::net::unix::SocketAddr)>) {
        let Ok((stream, _)) =
            accepted.inspect_err(|error| tracing::warn!(%error, "no console viewer accepted"))
        else {
            return;
        };
        let (read, write) = stream.into_split();
        let (chunks, queue) = mpsc::unbounded_channel();
        let viewer = Viewer { chunks, waiting: Arc::default() };
        tokio::spawn(view(read, write, queue, Arc::clone(&viewer.waiting), self.input.clone()));
        viewer.push(&self.scrollback.snapshot());
        self.viewers.retain(|viewer| !viewer.chunks.is_closed());
        self.viewers.push(viewer);
    }
}

/// One viewer, until it goes or is dropped for being slow.
async fn view(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
    input: mpsc::Sender<Vec<u8>>,
) {
    let showing = async {
        while let Some(chunk) = queue.recv().await {
            if write.write_all(&chunk).await.is_err() {
                return;
            }
            waiting.fetch_sub(chunk.len(), Relaxed);
        }
    };
    let typing = async {
        let mut buffer = [0; INPUT_CHUNK];
        while let Ok(len) = read.read(&mut buffer).await {
            if len == 0 || input.send(buffer[..len].to_vec()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = typing => {}
        () = showing => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrollback_keeps_the_newest_bytes() {
        let mut past = Scrollback::default();
        past.push(&vec![b'a'; SCROLLBACK - 1]);
        past.push(b"bc");
        let bytes = past.snapshot();
        assert_eq!((bytes.len(), &bytes[bytes.len() - 3..]), (SCROLLBACK, &b"abc"[..]));
        past.push(&vec![b'z'; 3 * SCROLLBACK]);
        assert!(past.snapshot().iter().all(|b| *b == b'z'));
    }

    #[tokio::test]
    async fn viewers_see_the_past_share_the_port_and_a_stuck_one_harms_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (serial, console) = (dir.path().join("serial"), dir.path().join("console"));
        let qemu = UnixListener::bind(&serial).unwrap();
        let (port, watch) = watch::channel(Some(serial));
        tokio::spawn(serve(UnixListener::bind(&console).unwrap(), watch, b"past ".to_vec()));
        let (mut guest, _) = qemu.accept().await.unwrap();
        guest.write_all(b"boot ").await.unwrap();

        let mut first = UnixStream::connect(&console).await.unwrap();
        let mut bytes = [0; 5];
        first.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"past ", "what a former worker showed");
        first.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"boot ");
        let _stuck = UnixStream::connect(&console).await.unwrap();
        let mut late = UnixStream::connect(&console).await.unwrap();
        let mut all = [0; 10];
        late.read_exact(&mut all).await.unwrap();
        assert_eq!(&all, b"past boot ", "a late viewer sees the past");

        late.write_all(b"typed").await.unwrap();
        guest.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"typed");

        // Far more than a socket and the backlog hold: the viewer that never reads must not stop the one that does.
        let piece = vec![b'x'; 64 << 10];
        for _ in 0..128 {
            guest.write_all(&piece).await.unwrap();
            let mut seen = vec![0; piece.len()];
            first.read_exact(&mut seen).await.unwrap();
            assert!(seen == piece);
        }
        drop(port);
    }

    /// What is typed before the guest is there, more than is held, while QEMU is replaced: the guest gets every byte once.
    #[tokio::test]
    async fn typing_is_held_for_a_guest_that_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second, console) =
            (dir.path().join("first"), dir.path().join("second"), dir.path().join("console"));
        let (port, watch) = watch::channel(None);
        tokio::spawn(serve(UnixListener::bind(&console).unwrap(), watch, Vec::new()));
        let typed: Vec<u8> = (0..600_000_u32).flat_map(u32::to_le_bytes).collect();
        let viewer = UnixStream::connect(&console).await.unwrap();
        let (mut shown, mut keys) = viewer.into_split();
        let typing = tokio::spawn({
            let typed = typed.clone();
            async move { keys.write_all(&typed).await.map(|()| keys) }
        });
        // The port is named before anybody listens there, as when a worker is quicker than QEMU.
        port.send_replace(Some(first.clone()));
        tokio::time::sleep(2 * RETRY).await;
        let qemu = UnixListener::bind(&first).unwrap();
        let (mut guest, _) = qemu.accept().await.unwrap();
        let mut got = vec![0; 100_000];
        guest.read_exact(&mut got).await.unwrap();
        assert!(!typing.is_finished(), "the viewer has to wait for a guest that does not read");

        port.send_replace(Some(second.clone()));
        let qemu = UnixListener::bind(&second).unwrap();
        // What the first one's socket holds is what QEMU would have taken.
        let mut rest = Vec::new();
        guest.read_to_end(&mut rest).await.unwrap();
        got.extend(rest);
        let (mut guest, _) = qemu.accept().await.unwrap();
        let mut rest = vec![0; typed.len() - got.len()];
        guest.read_exact(&mut rest).await.unwrap();
        got.extend(rest);
        assert!(got == typed, "every byte, once, in order");
        drop(typing.await.unwrap().unwrap());
        assert_eq!(shown.read(&mut [0; 8]).await.unwrap(), 0, "the end of typing ends the view");
    }

    #[test]
    fn the_past_is_the_end_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("serial.log");
        assert!(past_of(&log).is_empty());
        std::fs::write(&log, "short").unwrap();
        assert_eq!(past_of(&log), b"short");
        let long: Vec<u8> = (0..40_000_u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&log, &long).unwrap();
        assert_eq!(past_of(&log), long[long.len() - SCROLLBACK..]);
    }
}

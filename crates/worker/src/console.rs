//! The serial console for any number of viewers: QEMU's side takes one connection, which this module holds. Viewers get
//! the recent past first, then what comes live; what any of them types goes to the guest.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

/// Bytes of the past that a new viewer sees.
const SCROLLBACK: usize = 64 << 10;
/// Bytes that may wait for one viewer; a viewer that falls further behind is disconnected.
const VIEWER_BACKLOG: usize = 1 << 20;
/// Chunks of typed input that may wait for the guest.
const INPUT_QUEUE: usize = 64;

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
pub async fn serve(listener: UnixListener, mut port: watch::Receiver<SerialPort>) {
    let (input, mut typed) = mpsc::channel::<Vec<u8>>(INPUT_QUEUE);
    let mut hub = Hub { scrollback: Scrollback::default(), viewers: Vec::new(), input };
    loop {
        let path = port.borrow_and_update().clone();
        let guest = match path {
            Some(path) => match UnixStream::connect(&path).await {
                Ok(stream) => Some(stream),
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "the serial port cannot be reached");
                    None
                }
            },
            None => None,
        };
        let ended = match guest {
            Some(stream) => hub.pump(&listener, &mut port, &mut typed, stream).await,
            None => hub.idle(&listener, &mut port, &mut typed).await,
        };
        if ended.is_break() {
            return;
        }
    }
}

struct Hub {
    scrollback: Scrollback,
    viewers: Vec<Viewer>,
    input: mpsc::Sender<Vec<u8>>,
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
    /// While there is no guest: viewers may come, what they type is lost (as on a real port with nothing behind it).
    async fn idle(
        &mut self,
        listener: &UnixListener,
        port: &mut watch::Receiver<SerialPort>,
        typed: &mut mpsc::Receiver<Vec<u8>>,
    ) -> Ended {
        loop {
            tokio::select! {
                changed = port.changed() => return if changed.is_ok() { Ended::Continue(()) } else { Ended::Break(()) },
                accepted = listener.accept() => self.welcome(accepted),
                _ = typed.recv() => {}
            }
        }
    }

    /// While the guest's port is connected.
    async fn pump(
        &mut self,
        listener: &UnixListener,
        port: &mut watch::Receiver<SerialPort>,
        typed: &mut mpsc::Receiver<Vec<u8>>,
        guest: UnixStream,
    ) -> Ended {
        let (mut from_guest, to_guest) = guest.into_split();
        let (forward, forwarded) = mpsc::channel(1);
        let writer = tokio::spawn(write_chunks(to_guest, forwarded));
        let mut buffer = vec![0; 4096];
        let ended = loop {
            tokio::select! {
                read = from_guest.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => break self.idle(listener, port, typed).await,
                    Ok(len) => self.show(&buffer[..len]),
                },
                accepted = listener.accept() => self.welcome(accepted),
                changed = port.changed() => break if changed.is_ok() { Ended::Continue(()) } else { Ended::Break(()) },
                // Input is taken only when the guest took the last one, so a guest that does not read holds back
                // typing but never its output.
                Ok(permit) = forward.reserve() => tokio::select! {
                    Some(chunk) = typed.recv() => permit.send(chunk),
                    read = from_guest.read(&mut buffer) => match read {
                        Ok(0) | Err(_) => break self.idle(listener, port, typed).await,
                        Ok(len) => self.show(&buffer[..len]),
                    },
                    accepted = listener.accept() => self.welcome(accepted),
                    changed = port.changed() => break if changed.is_ok() { Ended::Continue(()) } else { Ended::Break(()) },
                },
            }
        };
        writer.abort();
        ended
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

async fn write_chunks(mut write: OwnedWriteHalf, mut chunks: mpsc::Receiver<Vec<u8>>) {
    while let Some(chunk) = chunks.recv().await {
        if write.write_all(&chunk).await.is_err() {
            return;
        }
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
        let mut buffer = [0; 512];
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
        tokio::spawn(serve(UnixListener::bind(&console).unwrap(), watch));
        let (mut guest, _) = qemu.accept().await.unwrap();
        guest.write_all(b"boot ").await.unwrap();

        let mut first = UnixStream::connect(&console).await.unwrap();
        let mut bytes = [0; 5];
        first.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"boot ");
        let _stuck = UnixStream::connect(&console).await.unwrap();
        let mut late = UnixStream::connect(&console).await.unwrap();
        late.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"boot ", "a late viewer sees the past");

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
}

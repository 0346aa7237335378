//! The control socket's server side: many connections, each a reader, a writer and one task per request.

use crate::control::{Reply, ReplyFrame, Request, RequestFrame, ServerFrame, WorkerError, WorkerErrorCode};
use crate::events::Spool;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// Longest request line in bytes.
const MAX_LINE: u64 = 1 << 20;
/// Frames that may wait for a slow client; then its requests wait, nobody else's.
const OUT_QUEUE: usize = 64;

/// A request on its way to the owner of the machine.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes; dropped without an answer means the worker ended.
    pub reply: oneshot::Sender<Result<Reply, WorkerError>>,
}

/// Whether the worker is about to end.
type Ending = watch::Receiver<bool>;

/// Serves connections until `ending` is true, then lets every client have its last answers and events.
pub async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>, spool: Arc<Spool>, mut ending: Ending) {
    let (mut connections, for_each) = (JoinSet::new(), ending.clone());
    loop {
        tokio::select! {
            () = over(&mut ending) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (calls, spool) = (calls.clone(), Arc::clone(&spool));
                    connections.spawn(connection(stream, calls, spool, for_each.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a control connection could not be accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: UnixStream, calls: mpsc::Sender<Call>, spool: Arc<Spool>, mut ending: Ending) {
    let (read, write) = stream.into_split();
    let (out, frames) = mpsc::channel(OUT_QUEUE);
    let writer = tokio::spawn(write_frames(write, frames));
    let for_events = ending.clone();
    tokio::select! {
        read = read_requests(read, &calls, &spool, out, for_events) => if let Err(error) = read {
            tracing::warn!(%error, "a control connection ended");
        },
        () = over(&mut ending) => {}
    }
    // Replies still under way are written; the last sender to go ends the writer.
    let _ = writer.await;
}

async fn write_frames(mut write: OwnedWriteHalf, mut frames: mpsc::Receiver<ServerFrame>) {
    while let Some(frame) = frames.recv().await {
        let Ok(mut line) = serde_json::to_vec(&frame) else { continue };
        line.push(b'\n');
        if write.write_all(&line).await.is_err() {
            return;
        }
    }
}

async fn read_requests(
    read: OwnedReadHalf,
    calls: &mpsc::Sender<Call>,
    spool: &Arc<Spool>,
    out: mpsc::Sender<ServerFrame>,
    ending: Ending,
) -> io::Result<()> {
    let mut reader = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        if read == 0 {
            return Ok(());
        }
        if !line.ends_with(b"\n") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a request longer than 1 MiB or cut short",
            ));
        }
        match serde_json::from_slice::<RequestFrame>(&line) {
            Ok(RequestFrame { id, request: Request::Subscribe { after } }) => {
                let _ = out.send(reply(id, Ok(Reply::Done))).await;
                tokio::spawn(send_events(after, Arc::clone(spool), out.clone(), ending.clone()));
            }
            Ok(frame) => {
                tokio::spawn(answer(frame, calls.clone(), out.clone()));
            }
            Err(error) => {
                let _ = out.send(refuse_unreadable(&line, &error)).await;
            }
        }
    }
}

/// Returns when the worker is about to end.
async fn over(ending: &mut Ending) {
    let _ = ending.wait_for(|ending| *ending).await;
}

fn reply(id: u64, result: Result<Reply, WorkerError>) -> ServerFrame {
    ServerFrame::Reply(ReplyFrame { id, result })
}

fn refuse_unreadable(line: &[u8], error: &serde_json::Error) -> ServerFrame {
    #[derive(serde::Deserialize)]
    struct OnlyId {
        #[serde(default)]
        id: u64,
    }
    let id = serde_json::from_slice::<OnlyId>(line).map_or(0, |only| only.id);
    let message = format!("this worker does not know the request: {error}");
    reply(id, Err(WorkerError { code: WorkerErrorCode::Unknown, message }))
}

async fn answer(frame: RequestFrame, calls: mpsc::Sender<Call>, out: mpsc::Sender<ServerFrame>) {
    let (sender, receiver) = oneshot::channel();
    let sent = calls.send(Call { request: frame.request, reply: sender }).await;
    let result = match sent {
        Ok(()) => receiver.await.ok(),
        Err(_) => None,
    };
    let result = result.unwrap_or_else(|| {
        Err(WorkerError { code: WorkerErrorCode::Failed, message: "the worker is ending".into() })
    });
    let _ = out.send(reply(frame.id, result)).await;
}

async fn send_events(mut after: u64, spool: Arc<Spool>, out: mpsc::Sender<ServerFrame>, mut ending: Ending) {
    let mut follow = spool.follow();
    loop {
        follow.borrow_and_update();
        let last = *ending.borrow();
        let events = match spool.after(after) {
            Ok(events) => events,
            Err(error) => return tracing::warn!(%error, "events could not be read back"),
        };
        for event in events {
            after = event.seq;
            if out.send(ServerFrame::Event(event)).await.is_err() {
                return;
            }
        }
        if last {
            return;
        }
        tokio::select! {
            changed = follow.changed() => if changed.is_err() { return },
            () = over(&mut ending) => {}
            () = out.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{ClientError, WorkerClient};
    use crate::control::WorkerEvent;
    use std::time::Duration;
    use tokio::time::timeout;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn warning(text: &str) -> WorkerEvent {
        WorkerEvent::Warning { message: text.into() }
    }

    #[tokio::test]
    async fn calls_overlap_events_follow_and_unknown_requests_are_answered() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("worker.sock");
        let spool = Arc::new(Spool::open(&dir.path().join("events.jsonl")).unwrap());
        spool.append(1, warning("one"));
        spool.append(2, warning("two"));
        let (calls, mut owner) = mpsc::channel(4);
        let (ending, ended) = watch::channel(false);
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(serve(listener, calls, Arc::clone(&spool), ended));

        let client = Arc::new(WorkerClient::connect(&socket).await.unwrap());
        let slow = tokio::spawn({
            let client = Arc::clone(&client);
            async move { client.call(Request::Pause, PATIENCE).await }
        });
        let held = owner.recv().await.unwrap();
        let quick = tokio::spawn({
            let client = Arc::clone(&client);
            async move { client.call(Request::Resume, PATIENCE).await }
        });
        let refusal = WorkerError { code: WorkerErrorCode::Precondition, message: "not paused".into() };
        owner.recv().await.unwrap().reply.send(Err(refusal)).unwrap();
        let error = quick.await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "not paused");
        held.reply.send(Ok(Reply::Done)).unwrap();
        assert!(matches!(slow.await.unwrap(), Ok(Reply::Done)));

        let mut events = client.events(1).await.unwrap();
        assert_eq!(timeout(PATIENCE, events.next()).await.unwrap().unwrap().seq, 2);
        spool.append(3, warning("three"));
        assert_eq!(timeout(PATIENCE, events.next()).await.unwrap().unwrap().seq, 3);

        let mut raw = UnixStream::connect(&socket).await.unwrap();
        raw.write_all(b"{\"id\":7,\"request\":{\"do\":\"teleport\"}}\n").await.unwrap();
        let line = BufReader::new(&mut raw).lines().next_line().await.unwrap().unwrap();
        assert!(line.contains("\"id\":7") && line.contains("unknown"), "{line}");

        spool.append(4, warning("last"));
        drop(owner);
        ending.send_replace(true);
        assert_eq!(timeout(PATIENCE, events.next()).await.unwrap().unwrap().seq, 4);
        assert!(timeout(PATIENCE, events.next()).await.unwrap().is_none(), "then the stream ends");
        drop(raw);
        timeout(PATIENCE, server).await.unwrap().unwrap();
        let gone = client.call(Request::Hello, PATIENCE).await.unwrap_err();
        assert!(matches!(gone, ClientError::Worker(_) | ClientError::Disconnected { .. }), "{gone:?}");
    }
}

//! The event spool: numbered without gaps, kept in the run folder, sent to every subscriber from any number on.

use crate::control::{EventFrame, WorkerEvent};
use backstay_model::VmState;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// Events kept in memory; older ones are read from the file.
const RECENT: usize = 256;
/// Length in bytes at which the file is shortened to the newest events: it lies in memory, and a machine may run for years.
const MAX_LEN: u64 = 4 << 20;

/// Appends events to a file and lets readers follow. Events outlive the process (they are in the page cache), not the
/// host: after a power loss no machine of this run exists anyway.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    inner: Mutex<Inner>,
    last: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    recent: VecDeque<EventFrame>,
    last: u64,
    len: u64,
}

impl Spool {
    /// Opens the file, creating it if needed, and continues its numbers. A last line that a crash cut short is removed.
    ///
    /// # Errors
    /// As the file system.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let (events, good_len) = read_events(&file, 0)?;
        if good_len != file.metadata()?.len() {
            file.set_len(good_len)?;
        }
        file.flush()?;
        let last = events.last().map_or(0, |e| e.seq);
        let skip = events.len().saturating_sub(RECENT);
        Ok(Self {
            path: path.into(),
            inner: Mutex::new(Inner {
                file,
                recent: events.into_iter().skip(skip).collect(),
                last,
                len: good_len,
            }),
            last: watch::Sender::new(last),
        })
    }

    /// Number of the newest event, 0 if there is none.
    #[must_use]
    pub fn last(&self) -> u64 {
        *self.last.borrow()
    }

    /// Appends one event. An event that cannot be written (full file system) still reaches live subscribers.
    pub fn append(&self, at_unix_ms: i64, event: WorkerEvent) -> EventFrame {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let frame = EventFrame { seq: inner.last + 1, at_unix_ms, event };
        let written = serde_json::to_vec(&frame).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            inner.len += line.len() as u64;
            inner.file.write_all(&line)
        });
        if let Err(error) = written {
            tracing::error!(%error, seq = frame.seq, "an event could not be kept");
        }
        inner.last = frame.seq;
        if inner.recent.len() == RECENT {
            inner.recent.pop_front();
        }
        inner.recent.push_back(frame.clone());
        if inner.len > MAX_LEN
            && let Err(error) = self.start_anew(&mut inner)
        {
            tracing::error!(%error, "the event file could not be shortened");
        }
        self.last.send_replace(frame.seq);
        frame
    }

    /// Replaces the file by the newest events.
    fn start_anew(&self, inner: &mut Inner) -> io::Result<()> {
        shorten(&self.path, 0)?;
        inner.file = OpenOptions::new().read(true).append(true).open(&self.path)?;
        inner.len = inner.file.metadata()?.len();
        Ok(())
    }

    /// Events after number `after`, oldest first, as far back as they are kept.
    ///
    /// # Errors
    /// As the file system, when they are no longer in memory.
    pub fn after(&self, after: u64) -> io::Result<Vec<EventFrame>> {
        {
            let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let oldest = inner.recent.front().map_or(inner.last + 1, |e| e.seq);
            if after + 1 >= oldest {
                return Ok(inner.recent.iter().filter(|e| e.seq > after).cloned().collect());
            }
        }
        read_events(&File::open(&self.path)?, after).map(|(events, _)| events)
    }

    /// The state that was told last, by this worker or a former one.
    #[must_use]
    pub fn last_state(&self) -> Option<VmState> {
        let events = self.after(0).unwrap_or_default();
        events.into_iter().rev().find_map(|frame| match frame.event {
            WorkerEvent::State { to, .. } => Some(to),
            _ => None,
        })
    }

    /// A value that changes with every new event.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

/// Reads an event file of a worker that may have ended; a line cut short at the end is ignored.
///
/// # Errors
/// As the file system. A missing file holds no events.
pub fn read_spool(path: &Path, after: u64) -> io::Result<Vec<EventFrame>> {
    match File::open(path) {
        Ok(file) => read_events(&file, after).map(|(events, _)| events),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Drops all but the newest events of a file that has grown beyond `max_len` bytes; numbers go on.
///
/// # Errors
/// As the file system.
pub fn shorten(path: &Path, max_len: u64) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > max_len => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => return Ok(()),
    }
    let events = read_spool(path, 0)?;
    let mut kept = Vec::new();
    for event in events.iter().skip(events.len().saturating_sub(RECENT)) {
        serde_json::to_writer(&mut kept, event)?;
        kept.push(b'\n');
    }
    crate::durable::replace(path, &kept)
}

/// Whole events after `after`, and the length of the file up to the last line that is whole. A line this version cannot
/// read (a newer worker's event) is skipped.
fn read_events(file: &File, after: u64) -> io::Result<(Vec<EventFrame>, u64)> {
    let (mut events, mut good_len, mut line) = (Vec::new(), 0u64, Vec::new());
    let mut reader = BufReader::new(file);
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Ok((events, good_len));
        }
        good_len += read as u64;
        match serde_json::from_slice::<EventFrame>(&line) {
            Ok(frame) if frame.seq > after => events.push(frame),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "skipped an event that cannot be read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(text: &str) -> WorkerEvent {
        WorkerEvent::Warning { message: text.into() }
    }

    #[test]
    fn numbers_go_on_after_a_crash_that_cut_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let spool = Spool::open(&path).unwrap();
        spool.append(1, warning("one"));
        spool.append(2, warning("two"));
        drop(spool);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"seq\":3,\"at_un").unwrap();

        let spool = Spool::open(&path).unwrap();
        assert_eq!(spool.last(), 2);
        assert_eq!(spool.append(3, warning("three")).seq, 3);
        let seqs: Vec<_> = read_spool(&path, 1).unwrap().iter().map(|e| e.seq).collect();
        assert_eq!(seqs, [2, 3]);
    }

    #[test]
    fn a_shortened_file_keeps_the_newest_and_goes_on_counting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let spool = Spool::open(&path).unwrap();
        for n in 0..400 {
            spool.append(n, warning("x"));
        }
        shorten(&path, 1000).unwrap();
        let kept = read_spool(&path, 0).unwrap();
        assert_eq!((kept.len(), kept.last().unwrap().seq), (RECENT, 400));
        assert_eq!(Spool::open(&path).unwrap().append(0, warning("y")).seq, 401);
    }

    #[test]
    fn the_file_of_a_machine_that_runs_for_years_stays_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let spool = Spool::open(&path).unwrap();
        for n in 0..600 {
            spool.append(n, warning(&"x".repeat(10_000)));
        }
        assert!(std::fs::metadata(&path).unwrap().len() <= MAX_LEN);
        let kept = spool.after(0).unwrap();
        assert!(kept.len() >= RECENT && kept.last().unwrap().seq == 600, "{}", kept.len());
        assert!(kept.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1), "no gap among those");
    }

    #[test]
    fn events_older_than_memory_come_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("events.jsonl")).unwrap();
        for n in 0..600 {
            spool.append(n, warning("x"));
        }
        assert_eq!(spool.after(0).unwrap().len(), 600);
        assert_eq!(spool.after(590).unwrap().len(), 10);
        assert!(spool.after(600).unwrap().is_empty());
    }
}

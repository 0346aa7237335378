//! The logs of a run folder lie in memory and their writers never stop: each is cut when it gets long, and what was in it
//! last is kept beside it.

use crate::durable;
use crate::run_dir::RunDir;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest log of the guest's serial port, in bytes; there may be as much in the former part.
const SERIAL_LEN: u64 = 4 << 20;
/// Longest log of a program, in bytes; likewise.
const PROGRAM_LEN: u64 = 1 << 20;
/// How often lengths are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes copied at a time.
const PIECE: usize = 256 << 10;

/// Where the former part of a log is: `NAME.1`.
#[must_use]
pub fn former(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Keeps the logs of a run folder short for ever.
pub async fn keep_short(run: RunDir) {
    let logs =
        [(run.serial_log(), SERIAL_LEN), (run.qemu_log(), PROGRAM_LEN), (run.worker_log(), PROGRAM_LEN)];
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for (log, limit) in &logs {
            let long = std::fs::metadata(log).is_ok_and(|metadata| metadata.len() > *limit);
            if !long {
                continue;
            }
            let (path, limit) = (log.clone(), *limit);
            let cut = tokio::task::spawn_blocking(move || shorten(&path, limit)).await;
            if let Ok(Err(error)) = cut {
                tracing::warn!(%error, log = %log.display(), "a log could not be cut");
            }
        }
    }
}

/// Moves the last `limit` bytes of a log to its former part and empties it. Its writer, who appends, goes on; what it
/// writes in the microseconds between the last look and the cut is lost.
///
/// # Errors
/// As the file system; the log is as before then.
fn shorten(log: &Path, limit: u64) -> io::Result<()> {
    // Not following a link: the folder may belong to QEMU's group.
    let nofollow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).write(true).custom_flags(nofollow).open(log)?;
    let kept = former(log);
    let temporary = durable::temporary(&kept);
    durable::remove(&temporary)?;
    let copied = copy_end(&file, &temporary, limit).and_then(|()| std::fs::rename(&temporary, &kept));
    if copied.is_err() {
        let _ = durable::remove(&temporary);
    }
    copied?;
    file.set_len(0)
}

fn copy_end(log: &File, to: &Path, limit: u64) -> io::Result<()> {
    let copy = OpenOptions::new().write(true).create_new(true).mode(0o640).open(to)?;
    let mut at = log.metadata()?.len().saturating_sub(limit);
    let (mut written, mut buffer) = (0, vec![0; PIECE]);
    loop {
        match log.read_at(&mut buffer, at)? {
            0 => return Ok(()),
            len => {
                copy.write_all_at(&buffer[..len], written)?;
                at += len as u64;
                written += len as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_long_log_is_cut_and_its_writer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serial.log");
        let mut writer = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        let text: String = (0..100_000).map(|n| format!("line {n}\n")).collect();
        for round in 0..3 {
            writer.write_all(text.as_bytes()).unwrap();
            shorten(&path, 5000).unwrap();
            writer.write_all(format!("after {round}\n").as_bytes()).unwrap();
            let kept = std::fs::read_to_string(former(&path)).unwrap();
            assert!(kept.len() == 5000 && kept.ends_with("line 99999\n"), "{}", kept.len());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("after {round}\n"));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn a_link_in_place_of_a_log_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (precious, log) = (dir.path().join("precious"), dir.path().join("serial.log"));
        std::fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, &log).unwrap();
        assert!(shorten(&log, 1).is_err());
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    }
}

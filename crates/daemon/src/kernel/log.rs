//! Following the kernel's messages.

use super::meaning::meaning;
use super::record::Record;
use super::repeats::Repeats;
use super::tell;
use crate::app::App;
use crate::events::Happening;
use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const DEVICE: &str = "/dev/kmsg";
/// Longer than any record; a shorter buffer is refused by the kernel.
const RECORD_MAX: usize = 16 << 10;
/// Between two notes of how far it was read.
const NOTE_EVERY: Duration = Duration::from_secs(2);

/// Follows the kernel's messages in a task of its own. What was said while no daemon ran is caught up on.
pub fn watch(app: &Arc<App>) {
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let error = match start(&app) {
            Ok((device, last)) => {
                app.host.set_kernel_log("followed".into());
                follow(&app, &device, last).await
            }
            Err(error) => error,
        };
        tracing::warn!(%error, "the kernel's messages are not followed");
        app.host.set_kernel_log(format!("not followed: {DEVICE} cannot be read ({error})"));
        let reason =
            format!("{DEVICE} cannot be read ({error}): errors of this host's disks do not become events");
        let what =
            Happening { kind: "host.watch-failed", who: "backstay", reason, before: None, after: None };
        app.events.host(what).await;
    });
}

/// A file that goes with the boot: the number of the last record that was read.
fn mark(app: &App) -> PathBuf {
    app.config.run_dir.join("kmsg")
}

fn start(app: &App) -> io::Result<(AsyncFd<OwnedFd>, u64)> {
    let device = open(DEVICE, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let last = std::fs::read_to_string(mark(app)).ok().and_then(|text| text.trim().parse().ok());
    // Without a mark what was said so far is older than this service.
    seek(&device, if last.is_some() { SeekFrom::Start(0) } else { SeekFrom::End(0) })?;
    #[expect(
        deprecated,
        reason = "the replacement is unsafe for owners that could lie; OwnedFd keeps its promise"
    )]
    let device = AsyncFd::with_interest(device, Interest::READABLE)?;
    Ok((device, last.unwrap_or(0)))
}

async fn follow(app: &Arc<App>, device: &AsyncFd<OwnedFd>, mut last: u64) -> io::Error {
    let (begun, mut repeats) = (Instant::now(), Repeats::default());
    let (mut buffer, mut noted) = (vec![0; RECORD_MAX], None::<Instant>);
    loop {
        let read = device.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer[..])?)).await;
        let record = match read {
            Ok(len) => Record::parse(buffer.get(..len).unwrap_or_default()),
            // The kernel wrote faster than we read: the next read goes on with the oldest that is left.
            Err(error) if error.raw_os_error() == Some(Errno::PIPE.raw_os_error()) => continue,
            Err(error) => return error,
        };
        let Some(record) = record.filter(|record| record.seq > last) else { continue };
        last = record.seq;
        if let Some(trouble) = meaning(&record)
            && let Some(before) = repeats.tell(&trouble, begun.elapsed())
        {
            let more = if before > 0 { format!("; {before} times more before this") } else { String::new() };
            let what = format!("{} (the kernel says: {}){more}", trouble.class, record.message);
            tell(app, trouble.kind.event(), &trouble.device, &what, Some(trouble.class.clone())).await;
            noted = None;
        }
        if noted.is_none_or(|at| at.elapsed() > NOTE_EVERY) {
            noted = Some(Instant::now());
            if let Err(error) = std::fs::write(mark(app), last.to_string()) {
                tracing::debug!(%error, "it is not noted how far the kernel's messages were read");
            }
        }
    }
}

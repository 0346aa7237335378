//! The daemon's life: one per state folder, from its lock to its last task.

use crate::app::{App, recover};
use crate::config::Config;
use crate::durable;
use crate::events::{EventHub, Happening};
use crate::failure::Failure;
use crate::host::Host;
use crate::http;
use crate::inventory::Inventory;
use crate::kernel::{watch_disks, watch_log};
use crate::notify;
use crate::store::{Store, StoreError};
use crate::tasks::TaskEngine;
use crate::workers::Workers;
use backstay_api::ProblemCode;
use backstay_qemu::paths::RunPaths;
use rustix::fs::{FlockOperation, Mode};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};

/// How long running tasks may take to end when the daemon is stopped; the next one takes up the rest.
const LAST_TASKS: Duration = Duration::from_secs(10);

/// Below the run folder: a folder for each machine that is on.
const RUNS: &str = "vms";

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another daemon has this state folder.
    #[error(
        "the state folder {folder} is in use by another daemon (process {pid}): stop that one, or name another folder"
    )]
    Taken {
        /// The folder.
        folder: PathBuf,
        /// The other daemon.
        pid: String,
    },
    /// A folder or the socket cannot be made.
    #[error("{what} {path} failed")]
    File {
        /// The step.
        what: &'static str,
        /// Its object.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The database.
    #[error("the database cannot be used")]
    Store(#[source] StoreError),
    /// Settings or folders.
    #[error("the daemon cannot start")]
    Setup(#[source] Failure),
    /// Metrics by TCP.
    #[error("metrics cannot be served on {address}: choose another port in [metrics] listen")]
    Metrics {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The API.
    #[error("the API cannot be served")]
    Serve(#[source] std::io::Error),
}

/// Runs a daemon until it is told to stop (SIGTERM, SIGINT). Machines run on.
///
/// # Errors
/// [`RunError`].
pub async fn run(config: Config) -> Result<(), RunError> {
    // Guests' disks, memory and configurations are nobody else's business.
    rustix::process::umask(Mode::from_raw_mode(0o027));
    let failed =
        |source| RunError::File { what: "listening to signals of", path: "this process".into(), source };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    run_until(config, async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await
}

/// Runs a daemon until `stop` resolves. Machines run on.
///
/// # Errors
/// [`RunError`].
pub async fn run_until(
    config: Config,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RunError> {
    check_run_dir(&config).map_err(RunError::Setup)?;
    let runs = config.run_dir.join(RUNS);
    durable::create_folder(&config.state_dir).map_err(file("making", &config.state_dir))?;
    durable::create_passage(&runs).map_err(file("making", &runs))?;
    let _lock = lock(&config.state_dir)?;
    let listener = listen(&config.socket)?;
    let app = assemble(config).map_err(RunError::Setup)?;
    let app = app.map_err(RunError::Store)?;
    tokio::spawn(crate::app::keep_processors(Arc::clone(&app)));
    recover(&app).await.map_err(RunError::Setup)?;
    let reason = format!("version {} started as process {}", env!("CARGO_PKG_VERSION"), std::process::id());
    app.events.host(happening("daemon.started", reason)).await;
    serve_metrics(&app).await?;
    watch_log(&app);
    watch_disks(&app);
    tracing::info!(socket = %app.config.socket.display(), "listening");
    notify::watch(&app.config.socket);
    notify::ready(app.inventory.all().len());
    serve(&app, listener, stop).await?;
    notify::stopping();
    app.tasks.drain(LAST_TASKS).await;
    app.events.host(happening("daemon.stopped", "it was told to".into())).await;
    let _ = std::fs::remove_file(&app.config.socket);
    Ok(())
}

/// Serves metrics by TCP where that is configured.
async fn serve_metrics(app: &Arc<App>) -> Result<(), RunError> {
    let Some(address) = app.config.metrics.listen else { return Ok(()) };
    let failed = |source| RunError::Metrics { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(metrics = %address, "metrics are served");
    tokio::spawn(http::serve_metrics(Arc::clone(app), listener));
    Ok(())
}

/// Machines' sockets must have names that the kernel takes. Better told now than when the first one is started.
fn check_run_dir(config: &Config) -> Result<(), Failure> {
    let folder = config.run_dir.join("vms").join(uuid::Uuid::nil().to_string());
    RunPaths::new(folder).map(drop).map_err(|error| {
        let words = format!("run_dir {} cannot hold the sockets of machines", config.run_dir.display());
        Failure::because(ProblemCode::Invalid, words, error)
    })
}

/// Serves until `stop` resolves. Calls that never end by themselves (followed events) do not hold it up.
async fn serve(
    app: &Arc<App>,
    listener: UnixListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RunError> {
    let (told, tell) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        stop.await;
        let _ = told.send(true);
    });
    let (mut first, mut second) = (tell.clone(), tell);
    let graceful = async move {
        let _ = first.wait_for(|stop| *stop).await;
    };
    let patience = async move {
        let _ = second.wait_for(|stop| *stop).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    tokio::select! {
        served = http::serve(Arc::clone(app), listener, graceful) => served.map_err(RunError::Serve),
        () = patience => Ok(()),
    }
}

fn happening(kind: &'static str, reason: String) -> Happening<'static> {
    Happening { kind, who: "backstay", reason, before: None, after: None }
}

pub(crate) fn assemble(config: Config) -> Result<Result<Arc<App>, StoreError>, Failure> {
    let host = Host::new(&config.qemu, &config.state_dir, &config.run_dir)?;
    let executable = match &config.worker {
        Some(executable) => executable.clone(),
        None => std::env::current_exe()
            .map_err(|e| Failure::file("finding the executable of", Path::new("this process"), e))?,
    };
    let store = match Store::open(&config.state_dir.join("backstay.db")) {
        Ok(store) => store,
        Err(error) => return Ok(Err(error)),
    };
    Ok(Ok(Arc::new(App {
        tasks: TaskEngine::new(store.clone()),
        inventory: Inventory::default(),
        events: EventHub::new(store.clone()),
        workers: Workers::new(executable, config.run_dir.join(RUNS)),
        chains: Arc::default(),
        mergers: crate::app::Mergers::default(),
        attaching: tokio::sync::Mutex::default(),
        host,
        promises: crate::app::Promises::default(),
        processors: crate::app::Processors::new(config.processors.clone()),
        store,
        config,
    })))
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RunError {
    let path = path.to_path_buf();
    move |source| RunError::File { what, path, source }
}

/// One daemon per state folder: whoever comes second is refused with the first one's process number.
fn lock(folder: &Path) -> Result<File, RunError> {
    let path = folder.join("daemon.lock");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(&path)
        .map_err(file("opening", &path))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid);
            return Err(RunError::Taken { folder: folder.into(), pid: pid.trim().into() });
        }
        Err(error) => return Err(file("locking", &path)(error.into())),
    }
    lock.set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(file("writing", &path))?;
    Ok(lock)
}

/// Listens on the socket. A file that a former daemon left is replaced: the state folder's lock says that it is dead.
fn listen(socket: &Path) -> Result<UnixListener, RunError> {
    if let Some(folder) = socket.parent() {
        durable::create_passage(folder).map_err(file("making", folder))?;
    }
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        let other =
            std::io::Error::other("another daemon answers there: choose another socket or stop that daemon");
        return Err(file("listening on", socket)(other));
    }
    match std::fs::symlink_metadata(socket) {
        Ok(found) if !found.file_type().is_socket() => {
            let other = "it is not a socket: choose another name for the socket, or move that file away";
            return Err(file("listening on", socket)(std::io::Error::other(other)));
        }
        _ => durable::remove(socket).map_err(file("replacing", socket))?,
    }
    let listener = UnixListener::bind(socket).map_err(file("listening on", socket))?;
    std::fs::set_permissions(socket, Permissions::from_mode(0o660)).map_err(file("guarding", socket))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_folder_too_deep_for_sockets_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().join("r".repeat(60));
        let config = Config::in_folders(folder.path().join("state"), &run_dir);
        let refused = run_until(config, async {}).await.unwrap_err();
        let words = crate::failure::chain(&refused);
        assert!(words.contains(run_dir.to_str().unwrap()) && words.contains("shorter path"), "{words}");
        assert!(!run_dir.exists(), "nothing was made");
    }

    #[tokio::test]
    async fn only_a_socket_that_nobody_serves_gives_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        std::fs::write(&path, "precious").unwrap();
        let refused = listen(&path).unwrap_err();
        let words = crate::failure::chain(&refused);
        assert!(words.contains("not a socket") && words.contains(path.to_str().unwrap()), "{words}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();

        let first = listen(&path).unwrap();
        assert!(crate::failure::chain(&listen(&path).unwrap_err()).contains("another daemon"));
        drop(first);
        listen(&path).unwrap();
    }
}

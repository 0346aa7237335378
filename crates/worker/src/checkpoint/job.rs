//! Takes one checkpoint as planned. Every step that can be undone is noted before it is made; a failure undoes them.

use super::descriptor::{Descriptor, FORMAT, FileFacts, Hardware, StreamFormat, VERSION};
pub use super::error::JobError;
use super::error::{FIRST_PAGE, qemu, told_if_full};
use super::memory_file::Fresh;
use super::plan::Plan;
use super::qmp::{self, hand_over, set_up, take_back};
use super::stream::{self, Written};
use super::tops::Tops;
use crate::control::{CheckpointOutcome, LayerSwitch};
use crate::disks::{DiskSet, DisksError};
use crate::durable;
use crate::report::chain_of;
use crate::run_dir::{RunDir, share_with};
use backstay_disk::{Switch, Switched};
use backstay_model::{DriveSlot, VmId};
use backstay_qemu::qmp::{MigrateInfo, Qmp};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// How long our end of a broken stream may take to say why.
const BROKEN: Duration = Duration::from_secs(5);
/// How often QEMU is asked while the guest stands still.
const POLL_STOPPED: Duration = Duration::from_micros(300);
/// How often QEMU is asked while the guest runs.
const POLL_RUNNING: Duration = Duration::from_millis(20);

/// What the descriptor says about the machine.
#[derive(Clone, Debug)]
pub struct SavedFacts {
    /// The machine.
    pub vm: VmId,
    /// QEMU's version.
    pub qemu_version: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Virtual hardware.
    pub hardware: Hardware,
    /// User and group of QEMU.
    pub qemu_uid_gid: Option<(u32, u32)>,
}

/// A checkpoint's numbers while it is taken, and the wish to end it.
#[derive(Debug)]
pub struct Progress {
    written: Arc<AtomicU64>,
    total: AtomicU64,
    pause_us: AtomicU64,
    cancel: watch::Sender<bool>,
}

impl Progress {
    /// Nothing done yet of about `total` bytes.
    #[must_use]
    pub fn new(total: u64) -> Self {
        let cancel = watch::Sender::new(false);
        Self { written: Arc::default(), total: total.into(), pause_us: AtomicU64::new(0), cancel }
    }

    /// Asks the job to give up.
    pub fn cancel(&self) {
        self.cancel.send_replace(true);
    }

    /// The numbers now.
    #[must_use]
    pub fn outcome(&self, plan: &Plan) -> CheckpointOutcome {
        CheckpointOutcome::Writing {
            pause_us: self.pause_us.load(Relaxed),
            written: self.written.load(Relaxed),
            total: self.total.load(Relaxed),
            method: plan.method,
            method_reason: plan.reason.clone(),
        }
    }

    fn seen(&self, info: &MigrateInfo, stream: StreamFormat) {
        if let Some(ram) = info.ram {
            self.total.store(ram.total, Relaxed);
            if stream == StreamFormat::MappedRam {
                self.written.store(ram.transferred, Relaxed);
            }
        }
    }
}

/// `checkpoint.json`: what a worker that takes over must clean up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    /// The plan's id.
    pub checkpoint: backstay_model::CheckpointId,
    /// The guest executed and has to execute again.
    pub running: bool,
    /// The machine ends when it is complete.
    #[serde(default)]
    pub save: bool,
    /// The disks' steps.
    pub switches: Vec<LayerSwitch>,
    /// The memory file.
    pub memory_file: PathBuf,
    /// The descriptor; once it exists the checkpoint is complete.
    pub descriptor_file: PathBuf,
}

impl Intent {
    /// Removes what was written of a checkpoint that will not be one.
    pub fn remove_memory(&self) {
        let (memory, descriptor) = (&self.memory_file, &self.descriptor_file);
        for path in [memory, &durable::temporary(memory), &durable::temporary(descriptor)] {
            let _ = durable::remove(path);
        }
    }
}

/// What has been done so far.
#[derive(Debug, Default)]
struct Done {
    prepared: bool,
    switch: Option<Switch>,
    migrating: bool,
    resumed: bool,
    memory: Option<Fresh>,
    receiver: Option<JoinHandle<io::Result<Written>>>,
}

/// One checkpoint (or save) with everything it needs.
#[derive(Debug)]
pub struct Job {
    /// What to do.
    pub plan: Plan,
    /// QEMU.
    pub qmp: Qmp,
    /// The machine's disks.
    pub disks: Arc<DiskSet>,
    /// The run folder.
    pub run: RunDir,
    /// For the descriptor.
    pub facts: SavedFacts,
    /// Shared with the owner.
    pub progress: Arc<Progress>,
}

impl Job {
    /// Takes the checkpoint. `running` is told as soon as the guest runs again (at the end for ways that stop it until
    /// then). When the result is `Failed`, the guest runs (or is paused) as before.
    pub async fn run(self, running: oneshot::Sender<()>) -> CheckpointOutcome {
        let (started, mut done) = (Instant::now(), Done::default());
        tracing::info!(plan = %serde_json::to_string(&self.plan).unwrap_or_default(), "checkpoint begins");
        match self.take(&mut done, running).await {
            Ok(written) => {
                // The record of a save stays until QEMU has ended: a worker that takes over must not let the guest run.
                if !self.plan.save {
                    self.clean_run_dir();
                }
                CheckpointOutcome::Complete {
                    pause_us: self.progress.pause_us.load(Relaxed),
                    total_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
                    memory_bytes: written.file.len,
                    method: self.plan.method,
                    method_reason: self.plan.reason.clone(),
                }
            }
            Err(error) => {
                let message = chain_of(&error);
                tracing::warn!(%message, "checkpoint failed");
                let kept_layers = self.undo(done).await;
                CheckpointOutcome::Failed { message, kept_layers }
            }
        }
    }

    async fn take(&self, done: &mut Done, running: oneshot::Sender<()>) -> Result<Written, JobError> {
        let plan = &self.plan;
        let memory = Fresh::create(&plan.memory_file).map_err(JobError::Memory)?;
        let file = memory.file().map_err(JobError::Memory)?;
        done.memory = Some(memory);
        self.announce().await?;
        done.prepared = true;
        done.switch = Some(self.on_disks(DiskSet::prepare).await?);
        set_up(&self.qmp, &plan.capabilities).await.map_err(qemu("take the migration settings"))?;
        if *self.progress.cancel.borrow() {
            return Err(JobError::Cancelled);
        }
        let (written, created_unix_ms) = match plan.stream {
            StreamFormat::Zstd => self.background(done, file, running).await?,
            StreamFormat::MappedRam => self.to_file(done, file, running).await?,
        };
        if plan.save {
            // The descriptor says that the disks are as memory knows them.
            self.on_disks(|disks, _| disks.flush()).await?;
            if *self.progress.cancel.borrow() {
                return Err(JobError::Cancelled);
            }
        }
        self.finish(done, written, created_unix_ms).await?;
        Ok(written)
    }

    /// Disks at the stop, memory by background snapshot: the guest runs on while it is written.
    async fn background(
        &self,
        done: &mut Done,
        file: std::fs::File,
        running: oneshot::Sender<()>,
    ) -> Result<(Written, i64), JobError> {
        let socket = self.run.stream();
        let receiver = self.listen(&socket, file)?;
        let receiver = done.receiver.insert(receiver);
        let mut events = self.qmp.events();
        if self.plan.running {
            // Stopping the guest flushes its disks: what is dirty now need not be waited for then.
            self.on_disks(|disks, _| disks.flush()).await?;
        }
        // Requests that wait for their disk's limit would keep the guest from being stopped, or make its pause longer.
        let hurry = self.disks.hurry();
        let mut watch = StopWatch::start();
        if self.plan.running {
            self.qmp.stop().await.map_err(qemu("stop the guest"))?;
        }
        watch.lap("stop");
        let switched = self.flip(&mut done.switch).await?;
        watch.lap("disks");
        let created = now_unix_ms();
        done.migrating = true;
        self.qmp.migrate(&format!("unix:{}", socket.display())).await.map_err(qemu("start saving"))?;
        watch.lap("migrate");
        self.first_page(receiver).await?;
        watch.lap("first page");
        if self.plan.resume {
            self.qmp.cont().await.map_err(qemu("continue the guest"))?;
            drop(hurry);
            watch.lap("continue");
            done.resumed = true;
            self.note_pause(&mut events);
            tracing::info!(laps = watch.words(), "the guest runs again");
        }
        let _ = running.send(());
        tokio::task::spawn_blocking(move || switched.finish());
        let saved = self.saved(POLL_RUNNING).await;
        // A full disk shows on our side first; QEMU then only knows that its socket broke. Our side ends when QEMU's does.
        let received = match saved {
            Ok(()) => Ok(joined(&mut *receiver).await),
            Err(JobError::Cancelled) => Err(JobError::Cancelled),
            Err(error) => match tokio::time::timeout(BROKEN, joined(&mut *receiver)).await {
                Ok(Err(source)) => Ok(Err(source)),
                Ok(Ok(_)) | Err(_) => Err(error),
            },
        };
        let written =
            received?.map_err(|source| JobError::Receive { path: self.plan.memory_file.clone(), source })?;
        Ok((written, created))
    }

    /// Memory by QEMU itself into the file; the guest is stopped at the end of it, and there the disks are cut.
    async fn to_file(
        &self,
        done: &mut Done,
        file: std::fs::File,
        running: oneshot::Sender<()>,
    ) -> Result<(Written, i64), JobError> {
        let mut events = self.qmp.events();
        if self.plan.running && !self.plan.resume {
            let _hurry = self.disks.hurry();
            self.qmp.stop().await.map_err(qemu("stop the guest"))?;
        }
        let path = done.memory.as_ref().map(Fresh::path).unwrap_or(&self.plan.memory_file);
        let for_qemu = OpenOptions::new().write(true).open(path);
        let for_qemu = for_qemu.map_err(|source| JobError::Receive { path: path.into(), source })?;
        let uri = hand_over(&self.qmp, for_qemu).await.map_err(qemu("take the memory file"))?;
        done.migrating = true;
        self.qmp.migrate(&uri).await.map_err(qemu("start saving"))?;
        let saved = self.saved(if self.plan.resume { POLL_STOPPED } else { POLL_RUNNING }).await;
        take_back(&self.qmp).await;
        saved.map_err(|error| told_if_full(error, path, &self.plan.memory_file))?;
        let switched = self.flip(&mut done.switch).await?;
        let created = now_unix_ms();
        if self.plan.resume {
            self.qmp.cont().await.map_err(qemu("continue the guest"))?;
            done.resumed = true;
            self.note_pause(&mut events);
            let _ = running.send(());
        }
        tokio::task::spawn_blocking(move || switched.finish());
        let facts = blocking({
            let path = path.to_path_buf();
            move || file.sync_all().and_then(|()| stream::file_facts(&path))
        })
        .await
        .and_then(|facts| facts.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(|source| JobError::Receive { path: self.plan.memory_file.clone(), source })?;
        Ok((Written { stream_len: facts.len, file: facts }, created))
    }

    /// Writes down what is about to happen: for the next worker, and for everyone who looks for the top of a disk.
    async fn announce(&self) -> Result<(), JobError> {
        let plan = &self.plan;
        let intent = Intent {
            checkpoint: plan.checkpoint,
            running: plan.running,
            save: plan.save,
            switches: plan.switches.clone(),
            memory_file: plan.memory_file.clone(),
            descriptor_file: plan.descriptor_file.clone(),
        };
        let (intent_path, tops, switches) = (self.run.intent(), self.run.tops(), plan.switches.clone());
        blocking(move || {
            durable::replace_json(&intent_path, &intent)?;
            if switches.is_empty() {
                return Ok(());
            }
            Tops::announce(&tops, &switches)
        })
        .await
        .map_err(|source| JobError::RunFile { path: self.run.tops(), source })
    }

    fn listen(
        &self,
        socket: &Path,
        file: std::fs::File,
    ) -> Result<JoinHandle<io::Result<Written>>, JobError> {
        let failed = |source| JobError::RunFile { path: socket.into(), source };
        durable::remove(socket).map_err(failed)?;
        let listener = UnixListener::bind(socket).map_err(failed)?;
        share_with(socket, self.facts.qemu_uid_gid.map(|(_, gid)| gid)).map_err(failed)?;
        let written = Arc::clone(&self.progress.written);
        Ok(tokio::spawn(async move {
            let stream = listener.accept().await?.0.into_std()?;
            stream.set_nonblocking(false)?;
            blocking(move || stream::receive(stream, &file, &written)).await
        }))
    }

    async fn on_disks<T: Send + 'static>(
        &self,
        act: impl FnOnce(&DiskSet, &[LayerSwitch]) -> Result<T, DisksError> + Send + 'static,
    ) -> Result<T, JobError> {
        let (disks, switches) = (Arc::clone(&self.disks), self.plan.switches.clone());
        match tokio::task::spawn_blocking(move || act(&disks, &switches)).await {
            Ok(result) => result.map_err(JobError::Disks),
            Err(panic) => Err(JobError::Save(panic.to_string())),
        }
    }

    /// The cut: from here on the guest writes into the new files.
    async fn flip(&self, prepared: &mut Option<Switch>) -> Result<Switched, JobError> {
        let Some(prepared) = prepared.take() else { return Err(JobError::Cancelled) };
        // On this thread: waking another one costs more than the step, and the guest stands still.
        tokio::task::block_in_place(|| self.disks.flip(prepared, &self.plan.switches))
            .map_err(JobError::Disks)
    }

    /// Waits until the device state is taken and writes are tracked. Before that QEMU would stop the guest again by
    /// itself, and the memory would be of a later instant than the disks.
    async fn first_page(&self, receiver: &mut JoinHandle<io::Result<Written>>) -> Result<(), JobError> {
        let deadline = Instant::now() + FIRST_PAGE;
        loop {
            let info = self.qmp.query_migrate().await.map_err(qemu("tell how far it is"))?;
            self.progress.seen(&info, self.plan.stream);
            if let Some(error) = qmp::failure(&info) {
                // If our end broke, that is the cause.
                if receiver.is_finished()
                    && let Ok(Err(source)) = receiver.await
                {
                    return Err(JobError::Receive { path: self.plan.memory_file.clone(), source });
                }
                return Err(JobError::Save(error));
            }
            if info.first_page_saved() {
                return Ok(());
            }
            if *self.progress.cancel.borrow() {
                return Err(JobError::Cancelled);
            }
            if Instant::now() > deadline {
                return Err(JobError::Stuck);
            }
            tokio::time::sleep(POLL_STOPPED).await;
        }
    }

    /// Waits until QEMU has written everything.
    async fn saved(&self, poll: Duration) -> Result<(), JobError> {
        let mut cancel = self.progress.cancel.subscribe();
        loop {
            let info = self.qmp.query_migrate().await.map_err(qemu("tell how far it is"))?;
            self.progress.seen(&info, self.plan.stream);
            if let Some(error) = qmp::failure(&info) {
                return Err(JobError::Save(error));
            }
            if info.status == backstay_qemu::qmp::MigrationStatus::Completed {
                return Ok(());
            }
            if *cancel.borrow() {
                return Err(JobError::Cancelled);
            }
            let _ = tokio::time::timeout(poll, cancel.changed()).await;
        }
    }

    fn note_pause(&self, events: &mut tokio::sync::broadcast::Receiver<backstay_qemu::qmp::QmpEvent>) {
        let pause = qmp::pause_us(std::iter::from_fn(|| events.try_recv().ok()));
        self.progress.pause_us.store(pause, Relaxed);
    }

    /// Gives memory its name, then writes the descriptor: from there on the checkpoint exists.
    async fn finish(&self, done: &mut Done, written: Written, created_unix_ms: i64) -> Result<(), JobError> {
        let descriptor = self.descriptor(written, created_unix_ms);
        let Some(mut memory) = done.memory.take() else { return Err(JobError::Cancelled) };
        let path = self.plan.descriptor_file.clone();
        let (memory, result) = tokio::task::spawn_blocking(move || {
            let named = memory.publish().map_err(JobError::Memory);
            let result = named.and_then(|()| {
                durable::replace_json(&path, &descriptor).map_err(|source| JobError::RunFile { path, source })
            });
            (memory, result)
        })
        .await
        .map_err(|panic| JobError::Save(panic.to_string()))?;
        match result {
            Ok(()) => memory.keep(),
            Err(_) => done.memory = Some(memory),
        }
        result
    }

    fn descriptor(&self, written: Written, created_unix_ms: i64) -> Descriptor {
        let (plan, facts) = (&self.plan, self.facts.clone());
        let FileFacts { len, crc32c } = written.file;
        Descriptor {
            format: FORMAT.into(),
            version: VERSION,
            vm: facts.vm,
            checkpoint: plan.checkpoint,
            created_unix_ms,
            qemu_version: facts.qemu_version,
            accelerator: facts.accelerator,
            hardware: facts.hardware,
            running: plan.executes,
            method: plan.method,
            capabilities: plan.capabilities.iter().map(|&name| name.to_owned()).collect(),
            stream: plan.stream,
            stream_len: written.stream_len,
            file_len: len,
            crc32c,
            disks: self.disks.at_checkpoint(&plan.switches),
            files: Vec::new(),
        }
    }

    /// Puts everything back. Returns the disks that stay on their new file because the guest has written to it.
    async fn undo(&self, mut done: Done) -> Vec<DriveSlot> {
        if done.migrating {
            qmp::end_migration(&self.qmp).await;
        }
        if let Some(receiver) = done.receiver.take() {
            receiver.abort();
        }
        drop(done.switch.take());
        let kept = if done.prepared { self.undo_disks().await } else { Vec::new() };
        if self.plan.save {
            // Before the guest runs: whoever finds a descriptor must not take its memory for that of the disks.
            let descriptor = &self.plan.descriptor_file;
            let removed = durable::remove(descriptor).and_then(|()| durable::sync_folder_of(descriptor));
            if let Err(error) = removed {
                tracing::warn!(%error, "the descriptor of a save that failed was left");
            }
        }
        if self.plan.running
            && !done.resumed
            && let Err(error) = self.qmp.cont().await
        {
            tracing::warn!(error = %chain_of(&error), "the guest could not be continued");
        }
        drop(done.memory.take()); // removes what was written
        let _ = durable::remove(&self.plan.descriptor_file);
        self.clean_run_dir();
        kept
    }

    async fn undo_disks(&self) -> Vec<DriveSlot> {
        let (disks, switches) = (Arc::clone(&self.disks), self.plan.switches.clone());
        let undone = tokio::task::spawn_blocking(move || disks.unflip(&switches)).await;
        undone.unwrap_or_else(|_| self.plan.switches.iter().map(|s| s.slot).collect())
    }

    fn clean_run_dir(&self) {
        for path in [self.run.intent(), self.run.stream()] {
            if let Err(error) = durable::remove(&path) {
                tracing::warn!(%error, path = %path.display(), "a file of the checkpoint was left");
            }
        }
    }
}

/// What a pause consists of.
struct StopWatch {
    last: Instant,
    laps: Vec<(&'static str, Duration)>,
}

impl StopWatch {
    fn start() -> Self {
        Self { last: Instant::now(), laps: Vec::new() }
    }

    fn lap(&mut self, what: &'static str) {
        let now = Instant::now();
        self.laps.push((what, now - self.last));
        self.last = now;
    }

    /// `stop 1.2 ms, disks 0.3 ms …`
    fn words(&self) -> String {
        let lap = |(what, took): &(&str, Duration)| format!("{what} {:.1} ms", took.as_secs_f64() * 1e3);
        self.laps.iter().map(lap).collect::<Vec<_>>().join(", ")
    }
}

async fn joined(receiver: &mut JoinHandle<io::Result<Written>>) -> io::Result<Written> {
    receiver.await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(act).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

fn now_unix_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

//! Requests from the control socket.

use super::checkpoints::Wish;
use super::{Answer, Owner, ReplyTo, fail, refuse};
use crate::control::{CheckpointOutcome, PROTOCOL_VERSION, Reply, Request, WorkerStatus};
use crate::inspect;
use crate::processors::ProcessorOrder;
use crate::server::Call;
use backstay_disk::{Disk, MergeControl};
use backstay_model::{CheckpointId, DriveSlot, MemoryMethod, VmState, VmVerb};
use backstay_qemu::lifecycle::{Event as Life, UserRequest};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest picture of a screen in bytes.
const PICTURE_MAX: u64 = 256 << 20;

impl Owner {
    pub(super) async fn call(&mut self, call: Call) {
        let Call { request, reply } = call;
        let answer = match request {
            Request::Hello => Ok(Reply::Hello {
                protocol: PROTOCOL_VERSION,
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
            }),
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::Pause => return self.verb(UserRequest::Pause, reply).await,
            Request::Resume => return self.verb(UserRequest::Resume, reply).await,
            Request::Reset => return self.verb(UserRequest::Reset, reply).await,
            Request::Shutdown => return self.verb(UserRequest::Shutdown, reply).await,
            Request::TurnOff => return self.turn_off(reply).await,
            Request::Screenshot { path } => return self.screenshot(path, reply),
            Request::Checkpoint(request) => return self.ask(Wish::Checkpoint(request), reply),
            Request::Save(request) => return self.ask(Wish::Save(request), reply),
            Request::CheckpointStatus { checkpoint } => Ok(Reply::Checkpoint(self.outcome(checkpoint))),
            Request::CancelCheckpoint { checkpoint } => self.cancel(checkpoint),
            Request::MergeLayer(request) => self.merge_layer(request),
            Request::MergeStatus { upper } => Ok(Reply::Merge(self.merge_status(&upper))),
            Request::MergeRate { upper, rate } => self.change_merge(&upper, |control| control.set_rate(rate)),
            Request::CancelMerge { upper } => self.change_merge(&upper, MergeControl::cancel),
            Request::SetProcessors(order) => return self.set_processors(order, reply),
            Request::SetDiskLimits { limits } => self.set_disk_limits(&limits),
            Request::AddDisk { drive } => return self.add_disk(drive, reply),
            Request::RemoveDisk { slot } => return self.remove_disk(slot, reply),
            Request::MoveDisk { slot, to } => self.move_disk(slot, to),
            Request::MoveStatus { to } => Ok(Reply::Move(self.move_status(&to))),
            Request::CancelMove { to } => self.cancel_move(&to),
            Request::CompactDisk { slot, rate } => self.compact_disk(slot, rate),
            Request::CompactStatus { slot } => Ok(Reply::Compact(self.compact_status(slot))),
            Request::CancelCompact => {
                self.stop_compacting();
                Ok(Reply::Done)
            }
            Request::GrowDisk { slot, size } => return self.grow_disk(slot, size, reply),
            Request::Disks => return self.disks(reply),
            Request::DiskMap { slot, top_only, offset, limit } => {
                return self.look_into(slot, reply, move |disk| {
                    inspect::map(disk, top_only, offset, limit).map(Reply::DiskMap)
                });
            }
            Request::DiskCheck { slot } => {
                return self.look_into(slot, reply, |disk| inspect::check(disk).map(Reply::DiskCheck));
            }
            // The control socket answers it.
            Request::Subscribe { .. } => Ok(Reply::Done),
        };
        let _ = reply.send(answer);
    }

    fn outcome(&self, checkpoint: CheckpointId) -> CheckpointOutcome {
        match &self.job {
            Some(job) if job.plan.checkpoint == checkpoint => job.progress.outcome(&job.plan),
            _ if self.is_asking_for(checkpoint) => CheckpointOutcome::Writing {
                pause_us: 0,
                written: 0,
                total: self.record.spec.memory_mib << 20,
                method: MemoryMethod::Background,
                method_reason: "the way is being chosen".into(),
            },
            _ => self.outcomes.get(&checkpoint).cloned().unwrap_or(CheckpointOutcome::Unknown),
        }
    }

    fn cancel(&mut self, checkpoint: CheckpointId) -> Answer {
        match &self.job {
            Some(job) if job.plan.checkpoint == checkpoint => job.progress.cancel(),
            _ if self.is_asking_for(checkpoint) => self.stop_asking(),
            _ => {
                let words = "is not being written: there is nothing to cancel";
                return refuse(format!("{checkpoint} {words}"));
            }
        }
        Ok(Reply::Done)
    }

    fn status(&self) -> WorkerStatus {
        WorkerStatus {
            state: self.state,
            reason: self.reason.clone(),
            spec: self.record.spec.clone(),
            qemu_pid: self.machine.as_ref().map(|machine| machine.process.pid()),
            accelerator: self.instance.accelerator.clone(),
            accelerator_reason: self.instance.accelerator_reason.clone(),
            qemu_version: self.instance.qemu_version.clone(),
            started_unix_ms: self.instance.started_unix_ms,
            recoveries: self.recoveries(),
            last_event: self.spool.last(),
            console_socket: self.run.console(),
            vnc_socket: self.run.vnc(),
            processors: self.processors.shown(),
        }
    }

    /// Kept for the next worker, and done at once where a QEMU is; the reply comes when it is done.
    fn set_processors(&mut self, order: ProcessorOrder, reply: ReplyTo) {
        let (name, has) = (&self.record.spec.name, self.record.spec.cpu.count);
        if order.control.count != has {
            let words = format!("'{name}' has {has} virtual processors until it is turned off");
            return drop(reply.send(refuse(words)));
        }
        if let Err(error) = order.control.validate() {
            return drop(reply.send(refuse(error.to_string())));
        }
        if let Err(why) = self.note(|instance| instance.processors = Some(order)) {
            return drop(reply.send(refuse(why)));
        }
        let Some(machine) = &self.machine else { return drop(reply.send(Ok(Reply::Done))) };
        let done = self.processors.apply(machine.qmp.clone(), machine.process.pid(), order);
        tokio::spawn(async move {
            let answer = match done.await {
                Ok(Ok(())) => Ok(Reply::Done),
                Ok(Err(why)) => refuse(why),
                Err(_) => refuse("the machine has ended"),
            };
            let _ = reply.send(answer);
        });
    }

    fn disks(&self, reply: ReplyTo) {
        let (disks, removed) = (Arc::clone(&self.disks), self.instance.removed.iter().copied().collect());
        tokio::task::spawn_blocking(move || reply.send(Ok(Reply::Disks { disks: disks.status(), removed })));
    }

    fn look_into(
        &self,
        slot: DriveSlot,
        reply: ReplyTo,
        look: impl FnOnce(&Disk) -> io::Result<Reply> + Send + 'static,
    ) {
        let disks = Arc::clone(&self.disks);
        tokio::task::spawn_blocking(move || {
            let answer = match disks.disk(slot) {
                Ok(disk) => look(&disk).or_else(|error| fail(&error)),
                Err(error) => refuse(error.to_string()),
            };
            reply.send(answer)
        });
    }

    /// Whether a verb fits now; `false`: it is so already.
    fn verb_allowed(&self, verb: VmVerb) -> Result<bool, String> {
        let name = &self.record.spec.name;
        let holds = self.asking.is_some() || self.job.as_ref().is_some_and(super::ActiveJob::holds_guest);
        if !backstay_model::allowed(name, self.state, verb).map_err(|refusal| refusal.to_string())? {
            return Ok(false);
        }
        if holds {
            let what = match self.state {
                VmState::Saving => format!("'{name}' is being saved"),
                _ => format!("a checkpoint of '{name}' is being taken"),
            };
            return Err(format!("{what}: try again in a moment"));
        }
        if verb == VmVerb::Resume && self.guard.stands() {
            let why = self.reason.as_deref().unwrap_or("its volume is nearly full");
            return Err(format!("the guest of '{name}' goes on by itself as soon as there is room: {why}"));
        }
        Ok(true)
    }

    async fn verb(&mut self, request: UserRequest, reply: ReplyTo) {
        let verb = match request {
            UserRequest::Pause => VmVerb::Pause,
            UserRequest::Resume => VmVerb::Resume,
            UserRequest::Reset => VmVerb::Reset,
            UserRequest::Shutdown => VmVerb::Shutdown,
            UserRequest::TurnOff => VmVerb::TurnOff,
        };
        match self.verb_allowed(verb) {
            Ok(true) => self.request(request, reply).await,
            Ok(false) => drop(reply.send(Ok(Reply::Done))),
            Err(message) => drop(reply.send(refuse(message))),
        }
    }

    /// Pulls the plug: nothing may delay it for long. The reply comes when the disks are closed.
    async fn turn_off(&mut self, reply: ReplyTo) {
        self.turning_off.push(reply);
        self.stop_asking();
        if let Some(job) = &self.job {
            job.progress.cancel();
        }
        self.feed(Life::User(UserRequest::TurnOff)).await;
    }

    fn screenshot(&self, path: PathBuf, reply: ReplyTo) {
        let Some(qmp) = self.qmp() else {
            return drop(reply.send(refuse("there is no screen: the machine has no QEMU now")));
        };
        let own = self.run.screenshot();
        tokio::spawn(async move {
            let answer = match qmp.screendump(&own).await {
                Err(error) => fail(&error),
                Ok(()) => match deliver(&own, &path) {
                    Ok(()) => Ok(Reply::Done),
                    Err(error) => refuse(format!("{} cannot be written: {error}", path.display())),
                },
            };
            let _ = reply.send(answer);
        });
    }
}

/// Copies under a temporary name, because the target may be on another file system. The source is QEMU's: a link in its
/// place would be somebody else's file.
fn deliver(from: &Path, to: &Path) -> io::Result<()> {
    let result = crate::durable::open_regular(from).and_then(|picture| copy_to(&picture, to));
    let _ = std::fs::remove_file(from);
    result
}

fn copy_to(picture: &File, to: &Path) -> io::Result<()> {
    let temporary = crate::durable::temporary(to);
    crate::durable::remove(&temporary)?;
    let mut copy = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
    let copied = io::copy(&mut picture.take(PICTURE_MAX), &mut copy).map(drop);
    let result = copied.and_then(|()| std::fs::rename(&temporary, to));
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_place_of_a_picture_gives_nothing_away() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("secret"), "secret").unwrap();
        std::os::unix::fs::symlink(at("secret"), at("screen.png")).unwrap();
        assert!(deliver(&at("screen.png"), &at("out.png")).is_err());
        assert!(!at("out.png").exists() && at("secret").exists());
        std::fs::write(at("screen.png"), "picture").unwrap();
        deliver(&at("screen.png"), &at("out.png")).unwrap();
        assert_eq!(std::fs::read_to_string(at("out.png")).unwrap(), "picture");
        assert!(!at("screen.png").exists());
    }
}

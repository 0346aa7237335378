//! Folders of cgroup v1's `cpu` hierarchy. Threads can be moved one by one, so QEMU's own stay where they are.

use super::folder::{FoldersExt, move_into};
use super::{ALL_WEIGHT, ControlError, Driver, Folders, Threads, VCPU};
use backstay_model::CpuShare;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `cpu.shares` of a group that weighs 100.
const NORMAL_SHARES: u32 = 1024;

/// A machine's folder below that of all machines.
#[derive(Debug)]
pub(super) struct Files {
    folders: Arc<dyn Folders>,
    all: PathBuf,
    machine: PathBuf,
}

/// Makes the group of all machines.
pub(super) fn prepare(folders: &(impl Folders + ?Sized), all: &Path) -> Result<(), ControlError> {
    if folders.group(all)? {
        folders.set(&all.join("cpu.shares"), &(NORMAL_SHARES * ALL_WEIGHT / 100).to_string())?;
    }
    Ok(())
}

impl Files {
    pub(super) fn new(folders: Arc<dyn Folders>, all: PathBuf, machine: &str) -> Self {
        Self { folders, machine: all.join(machine), all }
    }
}

impl Driver for Files {
    fn apply(&self, threads: &Threads, share: &CpuShare) -> Result<(), ControlError> {
        let folders = self.folders.as_ref();
        prepare(folders, &self.all)?;
        folders.group(&self.machine)?;
        folders.set(&self.machine.join("cpu.shares"), &share.v1_shares().to_string())?;
        confine(folders, &self.machine, threads, share)
    }

    fn remove(&self) -> Result<(), ControlError> {
        self.folders.drop_group(&self.machine.join(VCPU))?;
        self.folders.drop_group(&self.machine).map(drop)
    }

    fn place(&self) -> String {
        format!("cgroup v1, {}", self.machine.display())
    }
}

/// The limit, in a machine's group that is there.
pub(super) fn confine(
    folders: &(impl Folders + ?Sized),
    machine: &Path,
    threads: &Threads,
    share: &CpuShare,
) -> Result<(), ControlError> {
    let vcpu = machine.join(VCPU);
    folders.group(&vcpu)?;
    let quota = vcpu.join("cpu.cfs_quota_us");
    match share.quota {
        // The limit first: it holds when the threads come.
        Some(limit) => {
            folders.set(&vcpu.join("cpu.cfs_period_us"), &limit.period_us.to_string())?;
            folders.set(&quota, &limit.quota_us.to_string())?;
        }
        None => folders.set(&quota, "-1")?,
    }
    move_into(folders, &vcpu.join("tasks"), threads.vcpus.iter().copied())
}

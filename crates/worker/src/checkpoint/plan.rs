//! Decides how a checkpoint is taken, before anything is touched.

use super::descriptor::StreamFormat;
use crate::control::{CheckpointRequest, LayerSwitch, SaveRequest};
use backstay_model::{CheckpointId, DriveSlot, MemoryMethod};
use serde::Serialize;
use std::path::PathBuf;

/// Capabilities of a save by QEMU itself into a file.
const STOPPED: [&str; 2] = ["mapped-ram", "multifd"];

/// What the machine does now, as far as a checkpoint cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// The guest executes.
    Running,
    /// It is paused by request.
    Paused,
    /// It is paused, and the stopped save that wrote its last checkpoint has locked its state until it runs again.
    PausedAfterSave,
    /// It stands still because a volume is nearly full, and for nothing else.
    Held,
    /// It is stopped because a disk does not answer.
    Stalled,
    /// Anything else: starting, stopping.
    Other,
}

/// Everything the decision depends on.
#[derive(Clone, Debug)]
pub struct Situation {
    /// What the machine does.
    pub activity: Activity,
    /// A checkpoint that still writes memory.
    pub busy: Option<CheckpointId>,
    /// The file on top of each disk.
    pub tops: Vec<(DriveSlot, PathBuf)>,
    /// Why background snapshots cannot be used; none if they can.
    pub no_background: Option<String>,
}

/// Everything that will be done. Printed into the log; leaves no choices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// How memory is captured.
    pub method: MemoryMethod,
    /// Why that way.
    pub reason: String,
    /// QEMU migration capabilities that are switched on; all others are switched off.
    pub capabilities: Vec<&'static str>,
    /// Layout of the memory file.
    pub stream: StreamFormat,
    /// The guest executes now.
    pub running: bool,
    /// It has to execute again afterwards.
    pub resume: bool,
    /// The guest executes when this memory is loaded: it does now, or would if nothing held it.
    pub executes: bool,
    /// The machine ends afterwards.
    pub save: bool,
    /// The disks' steps.
    pub switches: Vec<LayerSwitch>,
    /// Where memory goes.
    pub memory_file: PathBuf,
    /// Where the descriptor goes.
    pub descriptor_file: PathBuf,
}

/// Why no checkpoint is taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// One at a time.
    #[error("checkpoint {0} is still being written: wait for it, or cancel it")]
    Busy(CheckpointId),
    /// A stalled disk would hang QEMU in the middle.
    #[error("a disk of the machine does not answer: a checkpoint is possible when its storage is back")]
    Stalled,
    /// It would take what is left.
    #[error("a volume of the machine is nearly full: a checkpoint is possible when there is room on it")]
    Held,
    /// Not in this state.
    #[error("the machine is starting or stopping: a checkpoint is possible while it runs or is paused")]
    State,
    /// QEMU's limit.
    #[error(
        "a second checkpoint or save in one pause needs background snapshots, which this host lacks: resume the machine and pause it again"
    )]
    PausedAfterSave,
    /// The caller's picture of the disks is stale.
    #[error("disk {slot} has {top} on top, not {from}: read the machine's disks again")]
    Top {
        /// Which disk.
        slot: DriveSlot,
        /// Its top.
        top: PathBuf,
        /// What the request says.
        from: PathBuf,
    },
    /// A disk that is not attached, or named twice.
    #[error("the checkpoint names disk {0}, which the machine does not have, or twice")]
    UnknownDisk(DriveSlot),
    /// A disk would be left out.
    #[error("the checkpoint leaves out disk {0}: a checkpoint holds all disks")]
    MissingDisk(DriveSlot),
    /// Files are named from the root.
    #[error("{0} is not an absolute path")]
    Relative(PathBuf),
}

/// Makes the plan.
///
/// # Errors
/// [`PlanError`]; nothing was touched.
pub fn plan(request: &CheckpointRequest, situation: &Situation) -> Result<Plan, PlanError> {
    if situation.activity == Activity::Held {
        return Err(PlanError::Held);
    }
    let running = may_begin(situation)?;
    check_disks(request, &situation.tops)?;
    let files = [&request.memory_file, &request.descriptor_file];
    let targets = request.disks.iter().map(|d| &d.to);
    if let Some(path) = files.into_iter().chain(targets).find(|path| !path.is_absolute()) {
        return Err(PlanError::Relative(path.clone()));
    }
    let (method, reason) = choose(running, situation.no_background.as_deref());
    let (capabilities, stream) = match method {
        MemoryMethod::Background => (vec!["background-snapshot"], StreamFormat::Zstd),
        MemoryMethod::LiveMappedRam | MemoryMethod::Stopped => (STOPPED.to_vec(), StreamFormat::MappedRam),
    };
    Ok(Plan {
        checkpoint: request.checkpoint,
        method,
        reason,
        capabilities,
        stream,
        running,
        executes: running,
        resume: running,
        save: false,
        switches: request.disks.clone(),
        memory_file: request.memory_file.clone(),
        descriptor_file: request.descriptor_file.clone(),
    })
}

/// Plans a save: the machine ends afterwards, so its disks stay as they are and the fastest way is the stopped one.
///
/// # Errors
/// [`PlanError`]; nothing was touched.
pub fn plan_save(request: &SaveRequest, situation: &Situation) -> Result<Plan, PlanError> {
    let running = may_begin(situation)?;
    let files = [&request.memory_file, &request.descriptor_file];
    if let Some(path) = files.into_iter().find(|path| !path.is_absolute()) {
        return Err(PlanError::Relative(path.clone()));
    }
    Ok(Plan {
        checkpoint: request.id,
        method: MemoryMethod::Stopped,
        reason: "the machine ends afterwards".into(),
        capabilities: STOPPED.to_vec(),
        stream: StreamFormat::MappedRam,
        running,
        executes: running || situation.activity == Activity::Held,
        resume: false,
        save: true,
        switches: Vec::new(),
        memory_file: request.memory_file.clone(),
        descriptor_file: request.descriptor_file.clone(),
    })
}

fn may_begin(situation: &Situation) -> Result<bool, PlanError> {
    if let Some(busy) = situation.busy {
        return Err(PlanError::Busy(busy));
    }
    match situation.activity {
        Activity::Running => Ok(true),
        Activity::Paused | Activity::Held => Ok(false),
        Activity::PausedAfterSave => Err(PlanError::PausedAfterSave),
        Activity::Stalled => Err(PlanError::Stalled),
        Activity::Other => Err(PlanError::State),
    }
}

/// A paused machine too is saved by a background snapshot where that works: after any other save QEMU refuses a second
/// one until the guest has run.
fn choose(running: bool, no_background: Option<&str>) -> (MemoryMethod, String) {
    match (running, no_background) {
        (true, None) => (
            MemoryMethod::Background,
            "userfaultfd is available: the guest stands still for milliseconds".into(),
        ),
        (false, None) => {
            (MemoryMethod::Background, "the machine is paused, and userfaultfd is available".into())
        }
        (true, Some(why)) => (
            MemoryMethod::LiveMappedRam,
            format!("no background snapshot: {why}; the guest stands still for the last round"),
        ),
        (false, Some(why)) => {
            (MemoryMethod::Stopped, format!("the machine is paused; no background snapshot: {why}"))
        }
    }
}

fn check_disks(request: &CheckpointRequest, tops: &[(DriveSlot, PathBuf)]) -> Result<(), PlanError> {
    for (index, disk) in request.disks.iter().enumerate() {
        let top = tops.iter().find(|(slot, _)| *slot == disk.slot).map(|(_, top)| top);
        let twice = request.disks[..index].iter().any(|other| other.slot == disk.slot);
        match top {
            Some(top) if !twice && *top == disk.from => {}
            Some(top) if !twice => {
                let (top, from) = (top.clone(), disk.from.clone());
                return Err(PlanError::Top { slot: disk.slot, top, from });
            }
            _ => return Err(PlanError::UnknownDisk(disk.slot)),
        }
    }
    match tops.iter().find(|(slot, _)| !request.disks.iter().any(|d| d.slot == *slot)) {
        Some((slot, _)) => Err(PlanError::MissingDisk(*slot)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const SLOT: DriveSlot = DriveSlot::Ide { controller: 0, unit: 0 };

    fn request() -> CheckpointRequest {
        CheckpointRequest {
            checkpoint: CheckpointId(Uuid::from_u128(1)),
            disks: vec![LayerSwitch { slot: SLOT, from: "/d/a.vhd".into(), to: "/d/a_1.avhd".into() }],
            memory_file: "/c/1.bin".into(),
            descriptor_file: "/c/1.vsv".into(),
        }
    }

    fn situation(activity: Activity) -> Situation {
        Situation { activity, busy: None, tops: vec![(SLOT, "/d/a.vhd".into())], no_background: None }
    }

    #[test]
    fn the_way_follows_from_state_and_host() {
        let no = Some("no userfaultfd".to_owned());
        for (activity, no_background, method, running) in [
            (Activity::Running, None, MemoryMethod::Background, true),
            (Activity::Paused, None, MemoryMethod::Background, false),
            (Activity::Running, no.clone(), MemoryMethod::LiveMappedRam, true),
            (Activity::Paused, no.clone(), MemoryMethod::Stopped, false),
        ] {
            let plan = plan(&request(), &Situation { no_background, ..situation(activity) }).unwrap();
            assert_eq!((plan.method, plan.running), (method, running), "{activity:?}");
            // Together they make files that QEMU cannot load.
            let both = ["background-snapshot", "mapped-ram"].iter().all(|c| plan.capabilities.contains(c));
            assert!(!both, "{:?}", plan.capabilities);
        }
    }

    /// Its disks answer, so its memory need not be lost with the host; loaded again it goes on.
    #[test]
    fn a_guest_that_only_a_full_volume_holds_is_saved_as_one_that_runs() {
        let request_of_save = SaveRequest {
            id: request().checkpoint,
            memory_file: "/c/1.bin".into(),
            descriptor_file: "/c/1.vsv".into(),
        };
        let save = |activity| plan_save(&request_of_save, &situation(activity));
        let held = save(Activity::Held).unwrap();
        assert!(!held.running && held.executes && held.save);
        assert!(!save(Activity::Paused).unwrap().executes);
        assert!(save(Activity::Running).unwrap().executes);
        assert_eq!(save(Activity::Stalled), Err(PlanError::Stalled));
        assert_eq!(plan(&request(), &situation(Activity::Held)), Err(PlanError::Held));
    }

    #[test]
    fn a_second_one_a_stalled_disk_and_a_stale_picture_are_refused() {
        let other = CheckpointId(Uuid::from_u128(9));
        let busy = Situation { busy: Some(other), ..situation(Activity::Running) };
        assert_eq!(plan(&request(), &busy), Err(PlanError::Busy(other)));
        assert_eq!(plan(&request(), &situation(Activity::Stalled)), Err(PlanError::Stalled));
        let moved = Situation { tops: vec![(SLOT, "/d/b.avhd".into())], ..situation(Activity::Running) };
        assert!(matches!(plan(&request(), &moved), Err(PlanError::Top { .. })));
        let second = DriveSlot::Ide { controller: 0, unit: 1 };
        let mut more = situation(Activity::Running);
        more.tops.push((second, "/d/c.vhd".into()));
        assert_eq!(plan(&request(), &more), Err(PlanError::MissingDisk(second)));
        let mut twice = request();
        twice.disks.push(twice.disks[0].clone());
        assert_eq!(plan(&twice, &situation(Activity::Running)), Err(PlanError::UnknownDisk(SLOT)));
    }
}

//! Machines as the API shows them.

use super::App;
use crate::inventory::Machine;
use backstay_api::{
    CheckpointDiskInfo, CheckpointInfo, CheckpointLine, CheckpointList, DiskLimit, Drive, DriveKind, Nic,
    PendingFile, Vm, VmBlocked,
};
use backstay_model::{Checkpoint, DriveMedia, DriveSpec, NicAttachment, NicSpec, VmVerb, allowed};
use jiff::Timestamp;

const VERBS: [VmVerb; 14] = [
    VmVerb::Start,
    VmVerb::Shutdown,
    VmVerb::TurnOff,
    VmVerb::Pause,
    VmVerb::Resume,
    VmVerb::Reset,
    VmVerb::Save,
    VmVerb::DiscardSavedState,
    VmVerb::Delete,
    VmVerb::Rename,
    VmVerb::Configure,
    VmVerb::Checkpoint,
    VmVerb::ApplyCheckpoint,
    VmVerb::Console,
];

/// What is in a drive, in words.
#[must_use]
pub fn media_words(media: &DriveMedia) -> String {
    match media {
        DriveMedia::Disk(path) => format!("disk {}", path.display()),
        DriveMedia::Device(path) => format!("device {} of the host", path.display()),
        DriveMedia::Iso(path) => format!("CD/DVD image {}", path.display()),
        DriveMedia::EmptyOptical => "empty CD/DVD drive".into(),
    }
}

/// A machine as the API shows it.
#[must_use]
pub fn vm(app: &App, machine: &Machine) -> Vm {
    let spec = &machine.spec;
    Vm {
        id: machine.id,
        name: spec.name.to_string(),
        notes: spec.notes.clone(),
        state: machine.state,
        state_reason: machine.reason.clone(),
        generation: machine.generation.0,
        hardware: spec.hardware,
        memory_mib: spec.memory_mib,
        cpus: spec.cpu.count,
        cpu_reserve: spec.cpu.reserve_percent,
        cpu_limit: spec.cpu.limit_percent,
        cpu_weight: spec.cpu.weight,
        cpu_reserve_cores: spec.cpu.reserved().as_f64(),
        cpu_limit_cores: spec.cpu.limit().as_f64(),
        drives: spec.drives.iter().map(drive).collect(),
        scsi_controllers: spec.all_scsi_controllers().into_iter().collect(),
        nics: spec.nics.iter().map(nic).collect(),
        boot_order: spec.boot_order.clone(),
        bios_guid: spec.bios_guid,
        machine_type: spec.machine_type.clone(),
        accel: spec.accel,
        recovery: spec.recovery,
        host_start: spec.host_start,
        host_stop: spec.host_stop,
        start_delay_s: spec.start_delay_s,
        start_order: spec.start_order,
        config_file: machine.config_file.clone(),
        folder: machine.layout.root().into(),
        template: machine.is_template(),
        checkpoints: u32::try_from(machine.checkpoints.all().len()).unwrap_or(u32::MAX),
        now_parent: machine.now_parent(),
        run: machine.run.clone(),
        task: app.tasks.working_on(machine.id),
        blocked: blocked(machine),
        warnings: machine.warnings.iter().cloned().chain(tree_warnings(app, machine)).collect(),
    }
}

fn drive(spec: &DriveSpec) -> Drive {
    let (kind, path) = match &spec.media {
        DriveMedia::Disk(path) | DriveMedia::Device(path) => (DriveKind::Disk, Some(path.clone())),
        DriveMedia::Iso(path) => (DriveKind::Iso, Some(path.clone())),
        DriveMedia::EmptyOptical => (DriveKind::EmptyOptical, None),
    };
    let pass_through = matches!(spec.media, DriveMedia::Device(_));
    Drive { slot: spec.slot, kind, path, pass_through, limit: DiskLimit::shown(spec.limit) }
}

fn nic(nic: &NicSpec) -> Nic {
    let (attachment, switch) = match &nic.attachment {
        NicAttachment::Disconnected => ("disconnected", None),
        NicAttachment::User => ("user", None),
        NicAttachment::Switch(name) => ("switch", Some(name.clone())),
    };
    Nic { id: nic.id, mac: nic.mac, model: nic.model, attachment: attachment.into(), switch }
}

fn blocked(machine: &Machine) -> Vec<VmBlocked> {
    let refusal = |verb: VmVerb| match allowed(machine.name(), machine.state, verb) {
        Ok(true) => super::template::refusal(machine, verb),
        Ok(false) => Some(format!("'{}' is {} already", machine.name(), machine.state)),
        Err(refusal) => Some(refusal.to_string()),
    };
    VERBS
        .into_iter()
        .filter_map(|verb| refusal(verb).map(|reason| VmBlocked { verb: verb.as_str().into(), reason }))
        .collect()
}

/// What deserves attention about a machine's checkpoints.
#[must_use]
pub fn tree_warnings(app: &App, machine: &Machine) -> Vec<String> {
    let (tree, settings) = (&machine.checkpoints, app.config.checkpoints);
    let name = machine.name();
    let mut warnings = Vec::new();
    let all = tree.all();
    let row = std::iter::successors(tree.now_parent(), |c| c.parent.and_then(|id| tree.get(id)));
    let depth = u32::try_from(row.take(all.len()).count()).unwrap_or(u32::MAX);
    if depth >= settings.warn_depth {
        warnings.push(format!(
            "Now of '{name}' continues from a row of {depth} checkpoints, and what was never written since is looked for in \
             all their files: delete those that are not needed any more"
        ));
    }
    let count = u32::try_from(all.len()).unwrap_or(u32::MAX);
    if count.saturating_add(5) > settings.limit {
        warnings.push(format!("'{name}' has {count} of at most {} checkpoints", settings.limit));
    }
    let now = Timestamp::now().as_millisecond();
    let days = |c: &Checkpoint| (now - c.created_unix_ms) / 86_400_000;
    if let Some(oldest) = all.first().filter(|c| days(c) >= i64::from(settings.warn_days)) {
        warnings.push(format!(
            "the checkpoint '{}' of '{name}' is {} days old: its files grow with every change, and it is no backup, because \
             it lies on the same storage as the disks",
            oldest.name,
            days(oldest)
        ));
    }
    warnings
}

/// Bytes that a file takes on disk; 0 if it is not there.
fn bytes_on_disk(file: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(file).map_or(0, |m| m.blocks() * 512)
}

/// A machine's checkpoints with the tree. Blocking: looks at file sizes.
#[must_use]
pub fn checkpoints(app: &App, machine: &Machine) -> CheckpointList {
    let tree = &machine.checkpoints;
    let pending = |file: std::path::PathBuf| {
        let bytes_on_disk = bytes_on_disk(&file);
        PendingFile { file, bytes_on_disk }
    };
    let line = |line: backstay_model::TreeLine| {
        let name = line.checkpoint.and_then(|id| tree.get(id)).map_or("Now".into(), |c| c.name.clone());
        CheckpointLine { prefix: line.prefix, checkpoint: line.checkpoint, name }
    };
    CheckpointList {
        items: tree.all().into_iter().map(|c| checkpoint(machine, c)).collect(),
        now_parent: machine.now_parent(),
        tree: tree.lines().into_iter().map(line).collect(),
        now_bytes_on_disk: machine.disks().iter().map(|(_, file)| bytes_on_disk(file)).sum(),
        limit: app.config.checkpoints.limit,
        merge_pending: machine.config.released().into_iter().map(pending).collect(),
        merge_task: app.mergers.task(machine.id),
        warnings: tree_warnings(app, machine),
    }
}

fn checkpoint(machine: &Machine, checkpoint: &Checkpoint) -> CheckpointInfo {
    let length = |path: &std::path::Path| std::fs::metadata(path).map(|m| m.len());
    let mut problems = Vec::new();
    let mut disks = Vec::new();
    for disk in &checkpoint.disks {
        let file_size = length(&disk.file).unwrap_or_else(|error| {
            problems.push(format!("{} ({}): {error}", disk.file.display(), disk.slot));
            0
        });
        disks.push(CheckpointDiskInfo { slot: disk.slot, file: disk.file.clone(), file_size });
    }
    let mut on_disk: u64 = checkpoint.disks.iter().map(|disk| bytes_on_disk(&disk.file)).sum();
    let mut memory_bytes = 0;
    if checkpoint.has_memory {
        let memory = machine.layout.checkpoint_memory(checkpoint.id);
        for file in [machine.layout.checkpoint_descriptor(checkpoint.id), memory.clone()] {
            if let Err(error) = length(&file) {
                problems.push(format!("{}: {error}", file.display()));
            }
        }
        memory_bytes = length(&memory).unwrap_or(0);
        on_disk += bytes_on_disk(&memory);
    }
    CheckpointInfo {
        id: checkpoint.id,
        name: checkpoint.name.clone(),
        notes: checkpoint.notes.clone(),
        parent: checkpoint.parent,
        created: Timestamp::from_millisecond(checkpoint.created_unix_ms).unwrap_or_default(),
        has_memory: checkpoint.has_memory,
        method: checkpoint.method,
        memory_bytes,
        disks,
        bytes_on_disk: on_disk,
        problems,
    }
}

//! The files of an export that other hosts read.

use super::convert::{Difference, Level};
use super::from_tree;
use super::hardware::{Bus, Drive, DriveKind, DriveQos, Settings, Vlan};
use super::machine::{Checkpoint, Document, Machine, SourceKind};
use super::read::Place;
use super::write_exp;
use crate::VmConfig;
use crate::error::ApplyError;
use backstay_model::{DriveMedia, DriveSlot, NicAttachment, VirtualHardware, VmId};
use uuid::Uuid;

/// Who is to read an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Windows Server 2008 and 2008 R2: `.exp`, VHD disks, generation 1.
    Hyperv2008,
    /// Windows Server 2012 R2 and later: `.xml`.
    Hyperv2012R2,
    /// This product: `.xml`. For a machine of ours the files that it has say more than a [`Machine`] can: copy those.
    Backstay,
}

/// One file of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportFile {
    /// Path below the export's folder, with slashes: `Virtual Machines/<GUID>.xml`.
    pub path: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// Why a machine cannot be exported for a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Files are named by GUIDs.
    #[error("{0} has no GUID, and an export's files are named by it")]
    NoGuid(String),
    /// Two checkpoints with one GUID.
    #[error("two checkpoints have the GUID {0}")]
    GuidTwice(Uuid),
    /// Generation 2 came with Windows Server 2012 R2.
    #[error("the machine is of generation 2, which Windows Server 2008 does not know: export it for 2012r2")]
    Generation2,
    /// VHDX came with Windows Server 2012.
    #[error(
        "the disk {0} is no VHD, and Windows Server 2008 knows no other format: convert it to VHD, or export for 2012r2"
    )]
    NotVhd(String),
    /// A text that XML cannot hold.
    #[error("the configuration cannot be written")]
    Apply(#[from] ApplyError),
}

/// The configuration files of an export, and what of the machine the target does not have. The drives' paths are written
/// as they are: the caller puts those of the exported disks into `machine` first. Disks and saved memory are the caller's.
///
/// # Errors
/// The target cannot have the machine.
pub fn export_files(
    machine: &Machine,
    target: Target,
) -> Result<(Vec<ExportFile>, Vec<Difference>), ExportError> {
    let id = machine
        .id
        .filter(|id| !id.is_nil())
        .ok_or_else(|| ExportError::NoGuid(format!("'{}'", machine.name)))?;
    let mut seen = vec![id];
    for checkpoint in &machine.checkpoints {
        let guid = checkpoint.id.filter(|id| !id.is_nil());
        let guid =
            guid.ok_or_else(|| ExportError::NoGuid(format!("the checkpoint '{}'", checkpoint.name)))?;
        if seen.contains(&guid) {
            return Err(ExportError::GuidTwice(guid));
        }
        seen.push(guid);
    }
    let mut differences = Vec::new();
    let files = match target {
        Target::Hyperv2008 => {
            check_2008(machine)?;
            limits(machine, 4, 64 << 10, &mut differences);
            exp_files(machine, id)
        }
        Target::Hyperv2012R2 => {
            limits(machine, 64, 1 << 20, &mut differences);
            xml_files(machine, id)?
        }
        Target::Backstay => xml_files(machine, id)?,
    };
    if target != Target::Backstay {
        what_no_file_says(&machine.settings, &mut differences);
    }
    Ok((files, differences))
}

fn states(machine: &Machine) -> impl Iterator<Item = (&Settings, VirtualHardware)> {
    let now = std::iter::once((&machine.settings, machine.generation));
    now.chain(machine.checkpoints.iter().map(|c| (&c.settings, c.generation)))
}

fn check_2008(machine: &Machine) -> Result<(), ExportError> {
    for (settings, generation) in states(machine) {
        if generation == VirtualHardware::Gen2 {
            return Err(ExportError::Generation2);
        }
        let other = settings.drives().find(|(_, d)| d.kind.is_disk_image() && d.kind != DriveKind::Vhd);
        if let Some((_, drive)) = other {
            return Err(ExportError::NotVhd(drive.path.clone()));
        }
    }
    Ok(())
}

/// What the target accepts at most.
fn limits(machine: &Machine, processors: u32, memory_mib: u64, differences: &mut Vec<Difference>) {
    let mut add = |what: &str, was: String, most: String, cure: &str| {
        let why = format!("the target accepts at most {most}");
        let was_too = was.clone();
        differences.push(Difference {
            level: Level::Stop,
            what: what.into(),
            was,
            becomes: was_too,
            why,
            cure: cure.into(),
        });
    };
    let found = machine.settings.processors.count;
    if found > processors {
        add(
            "processors",
            found.to_string(),
            processors.to_string(),
            "give the machine fewer processors before the export",
        );
    }
    let found = machine.settings.memory.startup_mib;
    if found > memory_mib {
        add(
            "memory",
            format!("{found} MiB"),
            format!("{memory_mib} MiB"),
            "give the machine less memory before the export",
        );
    }
}

/// What the files of the target have no documented place for.
fn what_no_file_says(settings: &Settings, differences: &mut Vec<Difference>) {
    let mut add = |what: String, was: String, cure: &str| {
        differences.push(Difference {
            level: Level::Attention,
            what,
            was,
            becomes: "not written".into(),
            why: "the target keeps it in a form that is not documented".into(),
            cure: cure.into(),
        });
    };
    for nic in &settings.nics {
        if nic.vlan != Vlan::None {
            add(
                format!("VLAN of network card '{}'", nic.name),
                format!("{:?}", nic.vlan),
                "set it on the target after the import",
            );
        }
    }
    if settings.tpm {
        add("TPM".into(), "there".into(), "its content stays here");
    }
    for device in &settings.other_devices {
        add(format!("device '{}'", device.name), device.host_resource.clone(), "");
    }
}

fn xml_files(machine: &Machine, id: Uuid) -> Result<Vec<ExportFile>, ExportError> {
    let vm = VmId(id);
    let path = format!("Virtual Machines/{vm}.xml");
    let mut files = vec![ExportFile { path, bytes: machine.to_config(vm)?.to_bytes() }];
    for checkpoint in &machine.checkpoints {
        let path = format!("Snapshots/{}.xml", name_of(checkpoint));
        let config = machine.checkpoint_to_config(checkpoint, vm)?;
        files.push(ExportFile { path, bytes: config.to_bytes() });
    }
    Ok(files)
}

fn exp_files(machine: &Machine, id: Uuid) -> Vec<ExportFile> {
    let path = format!("Virtual Machines/{}.exp", VmId(id));
    let mut files = vec![ExportFile { path, bytes: write_exp::machine(machine, id).to_bytes() }];
    for checkpoint in &machine.checkpoints {
        let path = format!("Snapshots/{}.exp", name_of(checkpoint));
        files.push(ExportFile { path, bytes: write_exp::checkpoint(machine, checkpoint, id).to_bytes() });
    }
    files
}

fn name_of(checkpoint: &Checkpoint) -> String {
    VmId(checkpoint.id.unwrap_or_default()).to_string()
}

/// A machine of ours and its checkpoints as neutral descriptions, for an export: virtio disks come to places that others
/// have, and everything that only exists here is told.
#[must_use]
pub fn from_config(config: &VmConfig, checkpoints: &[VmConfig]) -> (Machine, Vec<Difference>) {
    let mut differences = Vec::new();
    let mut machine = match from_tree::document(config.root(), SourceKind::Xml, Place::default()) {
        Document::Machine(machine) => *machine,
        // Somebody gave a checkpoint for a machine: its settings are those of now.
        Document::Checkpoint(checkpoint) => Machine {
            id: config.id().map(|id| id.0),
            name: checkpoint.name,
            settings: checkpoint.settings,
            generation: checkpoint.generation,
            ..Machine::empty(SourceKind::Xml)
        },
    };
    ours(config, &mut machine.settings, machine.generation, &mut differences);
    for config in checkpoints {
        if let Document::Checkpoint(mut checkpoint) =
            from_tree::document(config.root(), SourceKind::Xml, Place { guid: None, in_snapshots: true })
        {
            ours(config, &mut checkpoint.settings, checkpoint.generation, &mut Vec::new());
            machine.adopt(*checkpoint);
        }
    }
    machine.settle_tree();
    (machine, differences)
}

/// What is in our own node: virtio disks, limits, cards on QEMU's own network.
fn ours(
    config: &VmConfig,
    settings: &mut Settings,
    generation: VirtualHardware,
    differences: &mut Vec<Difference>,
) {
    let (spec, _) = config.spec();
    for drive in &spec.drives {
        let (kind, path) = match &drive.media {
            DriveMedia::Disk(path) => (DriveKind::of_disk(&path.to_string_lossy()), path.to_string_lossy()),
            DriveMedia::Device(path) => (DriveKind::PassThrough, path.to_string_lossy()),
            DriveMedia::Iso(path) => (DriveKind::Iso, path.to_string_lossy()),
            DriveMedia::EmptyOptical => (DriveKind::EmptyOptical, "".into()),
        };
        let qos = DriveQos { max_iops: drive.limit.iops.unwrap_or(0), min_iops: 0 };
        if let DriveSlot::Virtio { .. } = drive.slot {
            let moved = Drive { location: 0, kind, path: path.into_owned(), qos };
            let place = find_place(settings, generation, moved);
            differences.push(Difference {
                level: Level::Attention,
                what: format!("drive {}", drive.slot),
                was: "virtio".into(),
                becomes: place,
                why: "other hosts have no virtio disks".into(),
                cure: "give the guest the other hosts' drivers before the export: vm switch-drivers --to compatible".into(),
            });
        } else if qos != DriveQos::default() {
            let found = settings.controllers.iter_mut().find_map(|c| {
                let at = c.drives.iter().position(|d| c.slot(d) == Some(drive.slot))?;
                c.drives.get_mut(at)
            });
            if let Some(found) = found {
                found.qos = qos;
            }
        }
    }
    for (nic, ours) in settings.nics.iter_mut().zip(&spec.nics) {
        if ours.attachment == NicAttachment::User {
            nic.connected = false;
            differences.push(Difference {
                level: Level::Attention,
                what: format!("network card {}", ours.mac),
                was: "on the host's own network".into(),
                becomes: "unplugged".into(),
                why: "other hosts have switches only".into(),
                cure: "plug it into a switch on the target".into(),
            });
        }
    }
}

/// Puts a drive to the first free place: IDE in generation 1 while there is one, so that it can be started from; else SCSI.
fn find_place(settings: &mut Settings, generation: VirtualHardware, mut drive: Drive) -> String {
    let ide = (0..2).flat_map(|controller| (0..2).map(move |unit| (Bus::Ide, controller, unit)));
    let scsi = (0..4).flat_map(|controller| (0..64).map(move |lun| (Bus::Scsi, controller, lun)));
    let on_ide = generation == VirtualHardware::Gen1;
    for (bus, number, location) in ide.filter(|_| on_ide).chain(scsi) {
        let taken = settings.drives().any(|(c, d)| (c.bus, c.number, d.location) == (bus, number, location));
        if taken {
            continue;
        }
        drive.location = location;
        return match settings.controller_mut(bus, number).put(drive) {
            Ok(()) => format!("{} {number}:{location}", if bus == Bus::Ide { "IDE" } else { "SCSI" }),
            Err(_) => "nowhere".into(),
        };
    }
    "nowhere: every place is taken".into()
}

//! Drives of a request: where they go, whether their files can be used.

use super::App;
use super::controllers::check_size;
use super::devices::{check_device, is_device};
use super::usage::{FileKey, same_file, usage, used_by};
use crate::disks;
use crate::failure::Failure;
use crate::inventory::blocking;
use crate::layout::{Layout, NEW_DISK};
use backstay_api::{Blocker, Compat, DiskType, DriveKind, DriveRequest, NicRequest, ProblemCode};
use backstay_model::{
    DriveMedia, DriveSlot, DriveSpec, MacAddress, NicAttachment, NicId, NicSpec, VirtualHardware, VmId,
    VmName,
};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A disk that has to be made before the machine can have it.
#[derive(Clone, Debug)]
pub(super) struct DiskToMake {
    pub(super) path: PathBuf,
    pub(super) size: u64,
    pub(super) disk_type: DiskType,
}

/// Drives with their places, and disks to be made for them.
#[derive(Debug, Default)]
pub(super) struct Placed {
    pub(super) drives: Vec<DriveSpec>,
    pub(super) make: Vec<DiskToMake>,
}

/// Finds a place for every drive. `taken` are the drives that are there already.
pub(super) fn place(
    requests: &[DriveRequest],
    taken: &[DriveSpec],
    places: &Places,
    layout: &Layout,
    name: &VmName,
) -> Result<Placed, Failure> {
    let mut slots: BTreeSet<DriveSlot> = taken.iter().map(|d| d.slot).collect();
    for request in requests {
        if let Some(slot) = request.slot
            && !slots.insert(slot)
        {
            return Err(Failure::invalid(format!("two drives are attached at {slot}: each slot takes one")));
        }
    }
    let mut placed = Placed::default();
    for request in requests {
        let slot = match request.slot {
            Some(slot) => slot,
            None => next_slot(request.kind, places, &mut slots)?,
        };
        let media = media(request, layout, name, &mut placed.make)?;
        placed.drives.push(DriveSpec::new(slot, media));
    }
    Ok(placed)
}

/// Where drives go that name no place.
#[derive(Clone, Debug)]
pub(super) enum Places {
    /// Anywhere; the machine is off.
    All(VirtualHardware),
    /// On these SCSI controllers; it runs.
    Scsi(BTreeSet<u8>),
}

/// Disks from the first IDE place on, CD/DVD from the second controller on; SCSI when IDE is full.
fn next_slot(
    kind: DriveKind,
    places: &Places,
    slots: &mut BTreeSet<DriveSlot>,
) -> Result<DriveSlot, Failure> {
    let ide = |controller, unit| DriveSlot::Ide { controller, unit };
    let ide_places = match (places, kind) {
        (Places::Scsi(_) | Places::All(VirtualHardware::Gen2), _) => vec![],
        (Places::All(_), DriveKind::Disk) => vec![ide(0, 0), ide(0, 1), ide(1, 0), ide(1, 1)],
        (Places::All(_), _) => vec![ide(1, 0), ide(1, 1), ide(0, 1), ide(0, 0)],
    };
    let controllers: Vec<u8> = match places {
        Places::All(_) => (0..4).collect(),
        Places::Scsi(there) => there.iter().copied().collect(),
    };
    let luns = |controller| (0..64).map(move |lun| DriveSlot::Scsi { controller, lun });
    let scsi = controllers.into_iter().flat_map(luns);
    ide_places.into_iter().chain(scsi).find(|slot| slots.insert(*slot)).ok_or_else(|| match places {
        Places::All(_) => {
            Failure::invalid("no place is left for another drive: a machine has 4 IDE and 256 SCSI places")
        }
        Places::Scsi(there) => Failure::precondition(format!(
            "no place is left on the machine's SCSI controllers ({} with 64 places each): turn it off to attach more",
            there.len()
        )),
    })
}

fn media(
    request: &DriveRequest,
    layout: &Layout,
    name: &VmName,
    make: &mut Vec<DiskToMake>,
) -> Result<DriveMedia, Failure> {
    let wrong = |text: &str| Err(Failure::invalid(text));
    match (request.kind, &request.path, &request.create) {
        (DriveKind::EmptyOptical, None, None) => Ok(DriveMedia::EmptyOptical),
        (DriveKind::EmptyOptical, ..) => {
            wrong("an empty CD/DVD drive has no file: leave path and create out")
        }
        (DriveKind::Iso, Some(path), None) => Ok(DriveMedia::Iso(absolute(path)?)),
        (DriveKind::Iso, ..) => wrong("a CD/DVD image needs its path, and cannot be created"),
        (DriveKind::Disk, Some(path), None) if is_device(path) => Ok(DriveMedia::Device(absolute(path)?)),
        (DriveKind::Disk, Some(path), None) => Ok(DriveMedia::Disk(absolute(path)?)),
        (DriveKind::Disk, None, None) => wrong("a disk needs its path, or create with a size"),
        (DriveKind::Disk, path, Some(new)) => {
            if new.size == 0 || !new.size.is_multiple_of(512) {
                return Err(Failure::invalid(format!(
                    "a disk of {} bytes: the size is a multiple of 512, at least 512",
                    new.size
                )));
            }
            let path = match path {
                Some(path) => absolute(path)?,
                None => layout.new_disk(name, NEW_DISK, |p| p.exists() || make.iter().any(|m| m.path == p)),
            };
            if path.exists() {
                return Err(Failure::new(
                    ProblemCode::Exists,
                    format!(
                        "{} exists already: choose another name, or attach it without create",
                        path.display()
                    ),
                ));
            }
            make.push(DiskToMake { path: path.clone(), size: new.size, disk_type: new.disk_type });
            Ok(DriveMedia::Disk(path))
        }
    }
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    if path.is_absolute() && path.to_str().is_some() {
        return Ok(path.into());
    }
    Err(Failure::invalid(format!(
        "{} is not an absolute path in UTF-8: give the file from / on",
        path.display()
    )))
}

/// Checks that the files of `drives` exist, can be read, and are used by nobody else. All that is wrong is told at once.
/// Returns warnings.
pub(super) async fn check_files(
    app: &App,
    vm: VmId,
    drives: &[DriveSpec],
    to_make: &[DiskToMake],
    compat: Option<Compat>,
) -> Result<Vec<String>, Failure> {
    let usage = usage(app, Some((vm, super::usage::Part::Checkpoints))).await?;
    let mut blockers: Vec<Blocker> = Vec::new();
    let mut warnings = Vec::new();
    if !usage.unknown.is_empty() && drives.iter().any(|d| matches!(d.media, DriveMedia::Disk(_))) {
        warnings.push(format!(
            "whether nobody else uses these disks is not sure, because it is not known which files are needed by {}",
            usage.unknown.join("; ")
        ));
    }
    for drive in drives {
        let found = match &drive.media {
            DriveMedia::EmptyOptical => continue,
            DriveMedia::Iso(path) => check_iso(path).map(|()| Vec::new()),
            DriveMedia::Device(_) => match check_device(app, vm, drive, drives).await {
                Ok((device, told)) => with_size(drive.slot, device.size, compat, told),
                Err(refusal) => Err(refusal),
            },
            DriveMedia::Disk(path) if to_make.iter().any(|m| m.path == *path) => {
                let size = to_make.iter().find(|m| m.path == *path).map_or(0, |m| m.size);
                with_size(drive.slot, size, compat, Vec::new())
            }
            DriveMedia::Disk(path) => match usage.of(path).first() {
                Some(holder) => Err(used_by(path, holder)),
                None => {
                    let path = same_file(path);
                    let probed = blocking(move || disks::probe(&path)).await;
                    probed.and_then(|chain| {
                        match merged_now(app, &chain.files())
                            .or_else(|| usage.conflict(vm, &chain.files(), None))
                        {
                            Some(refusal) => Err(refusal),
                            None => with_size(drive.slot, chain.size, compat, chain.warnings),
                        }
                    })
                }
            },
        };
        match found {
            Ok(told) => warnings.extend(told),
            Err(failure) => blockers.push(Blocker {
                code: failure.code(),
                detail: format!("{}: {}", drive.slot, failure.full_message()),
                cure: None,
            }),
        }
    }
    match blockers.as_slice() {
        [] => Ok(warnings),
        [one] => Err(Failure::new(one.code, one.detail.clone())),
        [first, ..] => {
            let count = blockers.len();
            Err(Failure::new(first.code, format!("{count} drives cannot be attached"))
                .with_blockers(blockers))
        }
    }
}

/// Why nobody can have a chain of files now, the top first: one of them is being merged, and goes or gets another content.
fn merged_now(app: &App, files: &[PathBuf]) -> Option<Failure> {
    let keys: Vec<FileKey> = files.iter().map(|file| FileKey::of(file)).collect();
    for machine in app.inventory.all() {
        // One that is off is merged by nobody else.
        let goes_on = machine.state.is_active() || app.mergers.task(machine.id).is_some();
        let Some(merging) = machine.config.merging().filter(|_| goes_on) else { continue };
        for file in [merging.upper, merging.lower] {
            if keys.contains(&FileKey::of(&file)) {
                let words = format!(
                    "{} is made of {}, which is being merged because a checkpoint of '{}' was deleted: try again when that is done",
                    files.first().unwrap_or(&file).display(),
                    file.display(),
                    machine.name()
                );
                return Some(Failure::new(ProblemCode::InUse, words));
            }
        }
    }
    None
}

/// Adds to the warnings what a controller has against the size.
fn with_size(
    slot: DriveSlot,
    size: u64,
    compat: Option<Compat>,
    mut warnings: Vec<String>,
) -> Result<Vec<String>, Failure> {
    warnings.extend(check_size(slot, size, compat)?);
    Ok(warnings)
}

fn check_iso(path: &Path) -> Result<(), Failure> {
    let opened = std::fs::File::open(path).and_then(|f| f.metadata());
    match opened {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(Failure::invalid(format!("{} is not a file", path.display()))),
        Err(error) => Err(Failure::file("reading", path, error)),
    }
}

/// Network cards with ids and addresses.
pub(super) fn nics(requests: &[NicRequest]) -> Vec<NicSpec> {
    let nic = |request: &NicRequest| NicSpec {
        id: NicId(Uuid::new_v4()),
        mac: request.mac.unwrap_or_else(new_mac),
        model: request.model,
        attachment: match (&request.switch, request.disconnected) {
            (_, true) => NicAttachment::Disconnected,
            (Some(switch), false) => NicAttachment::Switch(switch.clone()),
            (None, false) => NicAttachment::User,
        },
    };
    requests.iter().map(nic).collect()
}

/// A locally administered address of QEMU's range.
pub(super) fn new_mac() -> MacAddress {
    let random = Uuid::new_v4().into_bytes();
    MacAddress([0x52, 0x54, 0x00, random[0], random[1], random[2]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_api::NewDisk;

    fn disk(slot: Option<&str>) -> DriveRequest {
        DriveRequest {
            slot: slot.map(|s| s.parse().unwrap()),
            kind: DriveKind::Disk,
            path: None,
            create: Some(NewDisk { size: 1 << 20, disk_type: DiskType::Dynamic }),
        }
    }

    fn slots(requests: &[DriveRequest]) -> Vec<String> {
        let layout = Layout::new("/nowhere");
        let name = VmName::new("web").unwrap();
        let placed = place(requests, &[], &Places::All(VirtualHardware::Gen1), &layout, &name).unwrap();
        placed.drives.iter().map(|d| d.slot.to_string()).collect()
    }

    #[test]
    fn drives_without_a_place_take_the_next_free_one() {
        let optical = DriveRequest { slot: None, kind: DriveKind::EmptyOptical, path: None, create: None };
        assert_eq!(slots(&[disk(None), optical.clone(), disk(None)]), ["ide:0:0", "ide:1:0", "ide:0:1"]);
        assert_eq!(slots(&[disk(None), disk(Some("ide:0:0"))]), ["ide:0:1", "ide:0:0"]);
        let many: Vec<_> = (0..5).map(|_| disk(None)).collect();
        assert_eq!(slots(&many)[4], "scsi:0:0");
    }

    #[test]
    fn new_disks_are_named_after_the_machine_and_never_twice() {
        let layout = Layout::new("/nowhere");
        let name = VmName::new("a/b").unwrap();
        let gen1 = Places::All(VirtualHardware::Gen1);
        let placed = place(&[disk(None), disk(None)], &[], &gen1, &layout, &name).unwrap();
        let files: Vec<_> =
            placed.make.iter().map(|m| m.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(files, ["a_b.vhdx", "a_b-1.vhdx"]);
    }

    #[test]
    fn a_slot_asked_for_twice_and_a_relative_path_are_refused() {
        let layout = Layout::new("/nowhere");
        let name = VmName::new("web").unwrap();
        let twice = [disk(Some("ide:0:0")), disk(Some("ide:0:0"))];
        let gen1 = Places::All(VirtualHardware::Gen1);
        assert!(place(&twice, &[], &gen1, &layout, &name).is_err());
        let relative = DriveRequest { path: Some("a.vhd".into()), create: None, ..disk(None) };
        let error = place(&[relative], &[], &gen1, &layout, &name).unwrap_err();
        assert!(error.to_string().contains("a.vhd is not an absolute path"), "{error}");
    }
}

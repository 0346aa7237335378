//! The decision: who on this host has a claim to a device. Pure.

use super::{
    Node, Number,
    sysfs::{Stacked, Surroundings},
};
use std::{fmt, path::PathBuf};

/// What somebody does with a device, or with a partition of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A file system on it is mounted.
    Mounted {
        /// The device or partition.
        part: String,
        /// Where.
        at: PathBuf,
    },
    /// The host swaps to it.
    Swap {
        /// The device or partition.
        part: String,
    },
    /// It is a member of a RAID.
    Raid {
        /// The device or partition.
        part: String,
        /// `md0`.
        array: String,
        /// `raid1`; empty if not told.
        level: String,
    },
    /// A logical volume is on it.
    Lvm {
        /// The device or partition.
        part: String,
        /// `vg-root`.
        volume: String,
    },
    /// It is one path of several to the same disk.
    Multipath {
        /// The device or partition.
        part: String,
        /// `mpatha`.
        map: String,
    },
    /// An encrypted volume is on it.
    Encrypted {
        /// The device or partition.
        part: String,
        /// `cryptroot`.
        map: String,
    },
    /// The device mapper or another driver has built something on it.
    Stacked {
        /// The device or partition.
        part: String,
        /// What.
        by: String,
    },
    /// A file system of several devices has it.
    Member {
        /// The device or partition.
        part: String,
        /// Id of the file system.
        of: String,
    },
    /// A loop device shows a part of it.
    Loop {
        /// The device or partition.
        part: String,
        /// `loop0`.
        by: String,
    },
    /// Somebody has it open for himself alone.
    Exclusive,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { part, at } => {
                write!(f, "{part} is mounted at {}: `umount` it, and take it out of /etc/fstab", at.display())
            }
            Self::Swap { part } => write!(f, "the host swaps to {part}: `swapoff` it"),
            Self::Raid { part, array, level } if level.is_empty() => {
                write!(f, "{part} is a member of the RAID {array}: use /dev/{array} instead, or stop it")
            }
            Self::Raid { part, array, level } => {
                write!(
                    f,
                    "{part} is a member of the RAID {array} ({level}): use /dev/{array} instead, or stop it"
                )
            }
            Self::Lvm { part, volume } => write!(
                f,
                "the logical volume {volume} is on {part}: use that instead, or deactivate its group (`vgchange -an`)"
            ),
            Self::Multipath { part, map } => {
                write!(f, "{part} is one of several paths to {map}: use /dev/mapper/{map} instead")
            }
            Self::Encrypted { part, map } => {
                write!(
                    f,
                    "the encrypted volume {map} on {part} is open: `cryptsetup close {map}`, or use /dev/mapper/{map}"
                )
            }
            Self::Stacked { part, by } => {
                write!(f, "{by} is built on {part}: use that instead, or take it apart")
            }
            Self::Member { part, of } => {
                write!(
                    f,
                    "{part} belongs to the mounted btrfs {of}: unmount that, or remove the device from it"
                )
            }
            Self::Loop { part, by } => write!(f, "the loop device {by} shows {part}: `losetup -d /dev/{by}`"),
            Self::Exclusive => f.write_str(
                "another program has it open for itself alone, for example another virtual machine",
            ),
        }
    }
}

/// Who has a claim to the device: to itself, to a partition of it, or to the disk that it is a partition of.
#[must_use]
pub fn claims(about: &Surroundings) -> Vec<Claim> {
    let mut found = Vec::new();
    for node in about.concerned() {
        let part = || format!("/dev/{}", node.name);
        let is_it = |number: &Option<Number>| *number == Some(node.number);
        let mounts = about.mounts.iter().filter(|mount| is_it(&mount.number) || is_it(&mount.source));
        found.extend(mounts.map(|mount| Claim::Mounted { part: part(), at: mount.at.clone() }));
        if about.swaps.iter().any(is_it) {
            found.push(Claim::Swap { part: part() });
        }
        found.extend(node.holders.iter().map(|holder| stacked(node, holder)));
        let members = about.members.iter().filter(|(device, _)| *device == node.name);
        found.extend(members.map(|(_, of)| Claim::Member { part: part(), of: of.clone() }));
        let loops = about.loops.iter().filter(|(_, shown)| is_it(shown));
        found.extend(loops.map(|(by, _)| Claim::Loop { part: part(), by: by.clone() }));
    }
    // A file system of several mounts is one reason.
    found.dedup();
    found
}

/// What a driver above means. The device mapper writes who made a map at the beginning of its uuid.
fn stacked(node: &Node, holder: &Stacked) -> Claim {
    let part = format!("/dev/{}", node.name);
    let Some(mapped) = &holder.mapped else {
        return match &holder.raid_level {
            Some(level) => Claim::Raid { part, array: holder.name.clone(), level: level.clone() },
            None => Claim::Stacked { part, by: format!("/dev/{}", holder.name) },
        };
    };
    let (uuid, name) = (mapped.uuid.as_str(), mapped.name.clone());
    // kpartx prefixes the uuid of what it splits: `part1-mpath-…`.
    let made_by = uuid.split('-').find(|word| !word.starts_with("part")).unwrap_or_default();
    match made_by {
        "LVM" => Claim::Lvm { part, volume: name },
        "mpath" => Claim::Multipath { part, map: name },
        "CRYPT" => Claim::Encrypted { part, map: name },
        "DMRAID" => Claim::Raid { part, array: format!("mapper/{name}"), level: String::new() },
        _ => Claim::Stacked { part, by: format!("/dev/mapper/{name}") },
    }
}

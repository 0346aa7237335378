//! `vm set`, and the settings it shares with `vm create`

use super::show::processors;
use crate::context::{Context, absolute};
use crate::exit::Fail;
use crate::tasks::{self, ChangeArgs, parse_duration};
use backstay_api::{
    Compat, DiskLimitChange, DiskType, DriveKind, DriveRequest, NewDisk, NicRequest, VmUpdate,
};
use backstay_model::{
    AccelPolicy, BootDevice, ByteSize, DriveSlot, HostStartAction, HostStopAction, MacAddress, NicId,
    NicModel, RecoveryAction,
};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Change settings, attach and detach drives and network cards. What is not named stays. Notes, limits of \
                  disks and the processors' reserve, limit and weight can be changed at any time, and act at once; \
                  hard disks on SCSI are attached and detached while the machine runs too. Everything else needs it \
                  off.",
    after_long_help = "Examples:\n  backstay vm set web --cpus 4 --cpu-limit 75\n  backstay vm set web --disk scsi:0:1=data.vhd\n  \
                       backstay vm set web --remove-drive ide:1:0\n  \
                       backstay vm set web --disk-limit scsi:0:1=iops:500,rate:20M"
)]
pub struct SetArgs {
    /// Name or GUID
    vm: String,
    /// Memory, for example 4G
    #[arg(short, long, value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<u64>,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    devices: DeviceArgs,
    /// Detach the drive in this place; its file stays. A guest that runs is not asked: unmount the disk there first
    #[arg(long, value_name = "SLOT")]
    remove_drive: Vec<DriveSlot>,
    /// Limit the disk in this place, reads and writes together: iops:N per second, rate:SIZE per second, or none
    #[arg(long, value_name = "SLOT=LIMIT", value_parser = parse_limit)]
    disk_limit: Vec<DiskLimitChange>,
    /// Remove the network card with this GUID
    #[arg(long, value_name = "GUID")]
    remove_nic: Vec<NicId>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Settings of a machine.
#[derive(Debug, Args)]
pub struct SettingArgs {
    /// Virtual processors, 1 to as many as the host has
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=240))]
    pub cpus: Option<u32>,
    /// Percent of the machine's processors that is promised to it, 0 to 100; a start is refused when the host cannot keep it
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub cpu_reserve: Option<u32>,
    /// Percent of the machine's processors that is never exceeded, 1 to 100
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub cpu_limit: Option<u32>,
    /// Relative weight when processors are short, 1 to 10000; 100 is normal
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10000))]
    pub cpu_weight: Option<u32>,
    /// Free text
    #[arg(long)]
    pub notes: Option<String>,
    /// Boot order, for example hard-drive,optical
    #[arg(long, value_name = "DEVICES", value_delimiter = ',', value_enum)]
    pub boot: Vec<Boot>,
    /// What executes the guest
    #[arg(long, value_enum)]
    pub accel: Option<Accel>,
    /// What happens when QEMU ends by itself
    #[arg(long, value_enum, value_name = "ACTION")]
    pub recovery: Option<Recovery>,
    /// What happens when the host starts
    #[arg(long, alias = "start-action", value_enum, value_name = "ACTION")]
    pub host_start: Option<HostStart>,
    /// How long the host waits after its own start before it starts the machine, for example 30s or 2m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub start_delay: Option<Duration>,
    /// Machines with a smaller number are started first and stopped last
    #[arg(long, value_name = "N")]
    pub start_order: Option<u32>,
    /// What happens when the host stops
    #[arg(long, alias = "stop-action", value_enum, value_name = "ACTION")]
    pub host_stop: Option<HostStop>,
}

/// Drives and network cards to attach.
#[derive(Debug, Args)]
pub struct DeviceArgs {
    /// Attach a virtual hard disk, or a block device of the host (/dev/disk/by-id/…), which the machine then has for itself
    #[arg(short, long, alias = "add-disk", value_name = "[SLOT=]PATH")]
    pub disk: Vec<String>,
    /// Make a disk of this size and attach it
    #[arg(long, value_name = "[SLOT=]SIZE")]
    pub new_disk: Vec<String>,
    /// Give the new disks all their space at once
    #[arg(long, requires = "new_disk")]
    pub fixed: bool,
    /// Refuse disks that this Hyper-V cannot use where they are: 2008 has no IDE disk above 127 GiB
    #[arg(long, value_enum, value_name = "SYSTEM")]
    pub compat: Option<System>,
    /// Attach a CD/DVD image
    #[arg(long, value_name = "[SLOT=]PATH")]
    pub iso: Vec<String>,
    /// Attach an empty CD/DVD drive
    #[arg(long, value_name = "SLOT")]
    pub optical: Vec<DriveSlot>,
    /// Add a network card on this virtual switch
    #[arg(long, value_name = "NAME")]
    pub switch: Option<String>,
    /// Add a network card with this address
    #[arg(long)]
    pub mac: Option<MacAddress>,
    /// Add a network card of this model
    #[arg(long, value_enum, value_name = "MODEL")]
    pub nic_model: Option<Model>,
    /// Add a network card with its cable unplugged
    #[arg(long, conflicts_with = "switch")]
    pub disconnected: bool,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident => $model:ident { $($(#[$vdoc:meta])* $variant:ident => $target:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, ValueEnum)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }
        impl From<$name> for $model {
            fn from(word: $name) -> Self {
                match word { $($name::$variant => Self::$target),+ }
            }
        }
    };
}

words!(
    /// Accelerator.
    Accel => AccelPolicy {
        /// KVM where it works, else software emulation
        Auto => Auto,
        /// KVM or refuse
        Kvm => Kvm,
        /// Software emulation
        Tcg => Tcg,
    }
);
words!(
    /// Recovery action.
    Recovery => RecoveryAction {
        /// Stay off
        None => None,
        /// Start again
        Restart => Restart,
    }
);
words!(
    /// At the start of the host.
    HostStart => HostStartAction {
        /// Stay off
        Nothing => Nothing,
        /// Start if it ran when the host went down
        StartIfRunning => StartIfRunning,
        /// Always start
        Start => Start,
    }
);
words!(
    /// At the end of the host.
    HostStop => HostStopAction {
        /// Pull the plug
        TurnOff => TurnOff,
        /// Write memory to disk; the next start continues from it
        Save => Save,
        /// Ask the guest to shut down; one that does not follow is saved
        Shutdown => Shutdown,
    }
);
words!(
    /// Boot source.
    Boot => BootDevice {
        /// CD/DVD
        Optical => Optical,
        /// Hard disk
        HardDrive => HardDrive,
        /// Network
        Network => Network,
        /// Floppy
        Floppy => Floppy,
    }
);
words!(
    /// A system whose limits are kept.
    System => Compat {
        /// Windows Server 2008
        #[value(name = "2008")]
        Hyperv2008 => Hyperv2008,
    }
);
words!(
    /// Network card.
    Model => NicModel {
        /// Intel 82545EM
        E1000 => E1000,
        /// virtio-net
        Virtio => Virtio,
    }
);

/// Memory in MiB from a size.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = text.parse::<ByteSize>().map_err(|e| e.to_string())?.0;
    if bytes == 0 || bytes % (1 << 20) != 0 {
        return Err(format!(
            "{bytes} bytes are no whole number of MiB: write it with a suffix, for example 2G or 512M"
        ));
    }
    Ok(bytes >> 20)
}

/// `scsi:0:1=iops:500,rate:20M`; what is not named stays, `none` takes a limit away.
fn parse_limit(text: &str) -> Result<DiskLimitChange, String> {
    let wrong = || {
        format!(
            "'{text}' is no limit: write SLOT=iops:500,rate:20M, one of both, or SLOT=none, for example scsi:0:1=iops:500"
        )
    };
    let (slot, limits) = text.split_once('=').ok_or_else(wrong)?;
    let slot: DriveSlot = slot.parse().map_err(|e: backstay_model::ParseSlotError| e.to_string())?;
    let mut change = DiskLimitChange { slot, iops: None, bytes_per_second: None };
    for part in limits.split(',') {
        match part.split_once(':') {
            Some(("iops", "none")) => change.iops = Some(0),
            Some(("iops", number)) => change.iops = Some(number.parse().map_err(|_| wrong())?),
            Some(("rate", "none")) => change.bytes_per_second = Some(0),
            Some(("rate", size)) => {
                change.bytes_per_second = Some(size.parse::<ByteSize>().map_err(|e| e.to_string())?.0);
            }
            None if part == "none" && limits == "none" => {
                (change.iops, change.bytes_per_second) = (Some(0), Some(0));
            }
            _ => return Err(wrong()),
        }
    }
    Ok(change)
}

impl SettingArgs {
    fn names_processors(&self) -> bool {
        self.cpus.or(self.cpu_reserve).or(self.cpu_limit).or(self.cpu_weight).is_some()
    }

    /// The start delay in seconds; one that is too long is refused with the rule by the daemon.
    pub fn start_delay_s(&self) -> Option<u32> {
        self.start_delay.map(|delay| u32::try_from(delay.as_secs()).unwrap_or(u32::MAX))
    }

    /// The boot order, if one was given.
    pub fn boot_order(&self) -> Option<Vec<BootDevice>> {
        (!self.boot.is_empty()).then(|| self.boot.iter().map(|boot| (*boot).into()).collect())
    }
}

impl DeviceArgs {
    /// The network cards asked for: one at most, all options describe it.
    pub fn nics(&self) -> Vec<NicRequest> {
        if self.switch.is_none() && self.mac.is_none() && self.nic_model.is_none() && !self.disconnected {
            return Vec::new();
        }
        vec![NicRequest {
            mac: self.mac,
            model: self.nic_model.map(Into::into).unwrap_or_default(),
            switch: self.switch.clone(),
            disconnected: self.disconnected,
        }]
    }

    /// The drives asked for.
    pub fn drives(&self) -> anyhow::Result<Vec<DriveRequest>> {
        let mut drives = Vec::new();
        for text in &self.disk {
            let (slot, path) = split_slot(text);
            drives.push(DriveRequest { slot, kind: DriveKind::Disk, path: Some(full(path)?), create: None });
        }
        for text in &self.new_disk {
            let (slot, size) = split_slot(text);
            // What stands before a size is meant as a place.
            let place = text.split_once('=').and_then(|(slot, _)| slot.parse::<DriveSlot>().err());
            let wrong = |error: &dyn std::fmt::Display| Fail::usage(format!("--new-disk {text}: {error}"));
            if let Some(error) = place {
                return Err(wrong(&error));
            }
            let size: ByteSize = size.parse().map_err(|error| wrong(&error))?;
            let disk_type = if self.fixed { DiskType::Fixed } else { DiskType::Dynamic };
            let create = Some(NewDisk { size: size.0, disk_type });
            drives.push(DriveRequest { slot, kind: DriveKind::Disk, path: None, create });
        }
        for text in &self.iso {
            let (slot, path) = split_slot(text);
            drives.push(DriveRequest { slot, kind: DriveKind::Iso, path: Some(full(path)?), create: None });
        }
        for slot in &self.optical {
            drives.push(DriveRequest {
                slot: Some(*slot),
                kind: DriveKind::EmptyOptical,
                path: None,
                create: None,
            });
        }
        Ok(drives)
    }
}

fn full(path: &str) -> anyhow::Result<PathBuf> {
    absolute(path.as_ref())
}

/// Splits `SLOT=REST`; a path may contain `=` itself, so only what names a slot counts.
fn split_slot(text: &str) -> (Option<DriveSlot>, &str) {
    match text.split_once('=') {
        Some((slot, rest)) => match slot.parse() {
            Ok(slot) => (Some(slot), rest),
            Err(_) => (None, text),
        },
        None => (None, text),
    }
}

/// Runs it.
pub async fn run(context: &Context, args: &SetArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let settings = &args.settings;
    let body = VmUpdate {
        generation: None,
        notes: settings.notes.clone(),
        memory_mib: args.memory,
        cpus: settings.cpus,
        cpu_reserve: settings.cpu_reserve,
        cpu_limit: settings.cpu_limit,
        cpu_weight: settings.cpu_weight,
        boot_order: settings.boot_order(),
        accel: settings.accel.map(Into::into),
        recovery: settings.recovery.map(Into::into),
        host_start: settings.host_start.map(Into::into),
        host_stop: settings.host_stop.map(Into::into),
        start_delay_s: settings.start_delay_s(),
        start_order: settings.start_order,
        compat: args.devices.compat.map(Into::into),
        disk_limits: args.disk_limit.clone(),
        add_drives: args.devices.drives()?,
        remove_drives: args.remove_drive.clone(),
        add_nics: args.devices.nics(),
        remove_nics: args.remove_nic.clone(),
    };
    if body == VmUpdate::default() {
        return Err(Fail::usage("nothing to change: name at least one setting (`backstay vm set --help`)"));
    }
    let vm = client.resolve_vm(&args.vm).await?;
    let outcome = client.update_vm(vm, &body, &args.change.options()).await?;
    let done = tasks::finish(context, &client, outcome, &args.change, |task| {
        format!("'{}' is changed", task.object.name)
    })
    .await?;
    if done.is_some() && settings.names_processors() {
        let vm = client.vm(vm).await?;
        context.note(format!("'{}' has processors: {}", vm.name, processors(&vm)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_in_front_of_a_path_is_told_from_an_equals_sign_in_it() {
        assert_eq!(
            split_slot("scsi:0:1=/a=b.vhd"),
            (Some(DriveSlot::Scsi { controller: 0, lun: 1 }), "/a=b.vhd")
        );
        assert_eq!(split_slot("/a=b.vhd"), (None, "/a=b.vhd"));
        assert_eq!(split_slot("a.vhd"), (None, "a.vhd"));
    }

    #[test]
    fn limits_name_what_they_change() {
        let limit = |text| parse_limit(text).map(|l| (l.slot.to_string(), l.iops, l.bytes_per_second));
        let slot = || "scsi:0:1".to_owned();
        assert_eq!(limit("scsi:0:1=iops:500,rate:20M"), Ok((slot(), Some(500), Some(20 << 20))));
        assert_eq!(limit("scsi:0:1=rate:20M"), Ok((slot(), None, Some(20 << 20))));
        assert_eq!(limit("scsi:0:1=iops:none"), Ok((slot(), Some(0), None)));
        assert_eq!(limit("scsi:0:1=none"), Ok((slot(), Some(0), Some(0))));
        for wrong in [
            "scsi:0:1",
            "scsi:0:1=",
            "scsi:0:1=500",
            "scsi:0:1=iops:x",
            "scsi:9:1=none",
            "scsi:0:1=none,iops:5",
        ] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_is_whole_mebibytes() {
        assert_eq!(parse_memory("2G"), Ok(2048));
        assert!(parse_memory("2048").unwrap_err().contains("suffix"));
        assert!(parse_memory("0").is_err());
    }
}

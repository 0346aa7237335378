//! Random machines, trees and bytes.

use backstay_hyperv::{
    CheckpointMeta, LayerStep, PendingCheckpoint, Value, VmConfig, filetime_from_unix_ms,
    unix_ms_from_filetime,
};
use backstay_model::{
    AccelPolicy, BootDevice, CheckpointId, CpuControl, DriveMedia, DriveSlot, DriveSpec, HostStartAction,
    HostStopAction, IoLimit, MacAddress, MemoryMethod, Merging, NicAttachment, NicId, NicModel, NicSpec,
    RecoveryAction, VirtualHardware, VmId, VmName, VmSpec,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use std::path::PathBuf;
use uuid::Uuid;

const SAMPLE: &[u8] = include_bytes!("data/sample-utf16.xml");

fn guid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

/// Text with everything XML could trip over.
fn text() -> impl Strategy<Value = String> {
    let odd =
        select(vec!['&', '<', '>', '"', '\'', '\n', '\r', '\t', ' ', ']', 'ж', '語', '\u{1F600}', '\u{85}']);
    vec(prop_oneof![odd, prop::char::range('!', '~')], 0..12).prop_map(|c| c.into_iter().collect())
}

fn name() -> impl Strategy<Value = VmName> {
    text().prop_filter_map("a name", |t| VmName::new(t).ok())
}

fn path() -> impl Strategy<Value = PathBuf> {
    text().prop_map(|t| PathBuf::from(format!("/vm/{t}.vhd")))
}

fn slot() -> impl Strategy<Value = DriveSlot> {
    prop_oneof![
        (0..2u8, 0..2u8).prop_map(|(controller, unit)| DriveSlot::Ide { controller, unit }),
        (0..4u8, 0..64u8).prop_map(|(controller, lun)| DriveSlot::Scsi { controller, lun }),
        (0..16u8).prop_map(|index| DriveSlot::Virtio { index }),
    ]
}

fn media() -> impl Strategy<Value = DriveMedia> {
    prop_oneof![
        path().prop_map(DriveMedia::Disk),
        path().prop_map(DriveMedia::Device),
        path().prop_map(DriveMedia::Iso),
        Just(DriveMedia::EmptyOptical),
    ]
}

fn nic() -> impl Strategy<Value = (NicId, NicSpec)> {
    let attachment = prop_oneof![
        Just(NicAttachment::Disconnected),
        Just(NicAttachment::User),
        text().prop_map(|t| NicAttachment::Switch(format!("s{t}"))),
    ];
    (guid(), any::<[u8; 5]>(), any::<bool>(), attachment).prop_map(|(id, mac, virtio, attachment)| {
        let mac = MacAddress([2, mac[0], mac[1], mac[2], mac[3], mac[4]]);
        let model = if virtio { NicModel::Virtio } else { NicModel::E1000 };
        (NicId(id), NicSpec { id: NicId(id), mac, model, attachment })
    })
}

fn cpu() -> impl Strategy<Value = CpuControl> {
    (1..=240u32, 1..=100u32, 0..=100u32, 1..=10_000u32).prop_map(|(count, limit, reserve, weight)| {
        CpuControl { count, reserve_percent: reserve.min(limit), limit_percent: limit, weight }
    })
}

fn actions() -> impl Strategy<Value = (AccelPolicy, RecoveryAction, HostStartAction, HostStopAction)> {
    (
        select(vec![AccelPolicy::Auto, AccelPolicy::Kvm, AccelPolicy::Tcg]),
        select(vec![RecoveryAction::None, RecoveryAction::Restart]),
        select(vec![HostStartAction::Nothing, HostStartAction::StartIfRunning, HostStartAction::Start]),
        select(vec![HostStopAction::TurnOff, HostStopAction::Save, HostStopAction::Shutdown]),
    )
}

fn limit() -> impl Strategy<Value = IoLimit> {
    let (least, most) = (IoLimit::LEAST_BYTES_PER_SECOND, i64::MAX as u64);
    (prop::option::of(IoLimit::LEAST_IOPS..=most), prop::option::of(least..=most))
        .prop_map(|(iops, bytes_per_second)| IoLimit { iops, bytes_per_second })
}

fn drive((slot, (media, limit)): (DriveSlot, (DriveMedia, IoLimit))) -> DriveSpec {
    let limit = if matches!(media, DriveMedia::Disk(_)) { limit } else { IoLimit::default() };
    DriveSpec { limit, ..DriveSpec::new(slot, media) }
}

fn spec() -> impl Strategy<Value = VmSpec> {
    use BootDevice::{Floppy, HardDrive, Network, Optical};
    let hardware = select(vec![VirtualHardware::Gen1, VirtualHardware::Gen2]);
    let boot = subsequence(vec![Optical, HardDrive, Network, Floppy], 0..=4).prop_shuffle();
    let words = (guid(), name(), text(), guid(), "[a-z0-9.-]{0,12}");
    let controllers = prop::collection::btree_set(0..4_u8, 0..4);
    let devices = (btree_map(slot(), (media(), limit()), 0..8), controllers, vec(nic(), 0..4));
    (words, hardware, 1..12u64 << 20, cpu(), devices, boot, actions()).prop_map(
        |(
            (id, name, notes, bios_guid, machine_type),
            hardware,
            memory_mib,
            cpu,
            (drives, scsi_controllers, nics),
            boot_order,
            a,
        )| {
            VmSpec {
                id: VmId(id),
                name,
                notes,
                hardware,
                memory_mib,
                cpu,
                drives: drives.into_iter().map(drive).collect(),
                scsi_controllers,
                nics: nics.into_iter().map(|(_, nic)| nic).collect(),
                boot_order,
                bios_guid,
                machine_type,
                accel: a.0,
                recovery: a.1,
                host_start: a.2,
                host_stop: a.3,
                start_delay_s: cpu.weight * 8,
                start_order: cpu.count,
            }
        },
    )
}

fn step() -> impl Strategy<Value = LayerStep> {
    (slot(), path(), path()).prop_map(|(slot, from, to)| LayerStep { slot, from, to })
}

fn meta() -> impl Strategy<Value = CheckpointMeta> {
    let method = select(vec![
        None,
        Some(MemoryMethod::Background),
        Some(MemoryMethod::LiveMappedRam),
        Some(MemoryMethod::Stopped),
    ]);
    (guid(), text(), text(), prop::option::of(guid()), any::<i64>(), any::<bool>(), method).prop_map(
        |(id, name, notes, parent, created_unix_ms, has_memory, method)| CheckpointMeta {
            id: CheckpointId(id),
            name,
            notes,
            parent: parent.map(CheckpointId),
            created_unix_ms,
            has_memory,
            method,
        },
    )
}

proptest! {
    #[test]
    fn a_new_machine_reads_back_as_specified(spec in spec(), created in any::<u64>()) {
        let config = VmConfig::new(&spec, created).unwrap();
        let bytes = config.to_bytes();
        let read = VmConfig::parse(&bytes).unwrap();
        prop_assert_eq!(&read, &config);
        prop_assert_eq!(read.to_bytes(), bytes);
        prop_assert_eq!(read.spec().0, spec.clone());
        prop_assert_eq!(read.created(), Some(created));
        prop_assert_eq!(read.id(), Some(spec.id));
    }

    #[test]
    fn any_machine_can_become_any_other_and_unknown_nodes_stay(spec in spec()) {
        let mut config = VmConfig::parse(SAMPLE).unwrap();
        config.apply_spec(&spec).unwrap();
        prop_assert_eq!(config.spec().0, spec);
        let unknown = config.get("settings/unknown_to_us").unwrap();
        prop_assert_eq!(unknown.value(), Some(Value::Double(1.5)));
        prop_assert_eq!(unknown.attribute("answer"), Some("42"));
        let manifest = config.get("manifest").unwrap();
        let vdevs: Vec<_> = manifest.children().filter(|e| e.name().starts_with("vdev")).collect();
        let size = manifest.child("size").unwrap().value();
        prop_assert_eq!(size, Some(Value::Integer(i64::try_from(vdevs.len()).unwrap())));
        prop_assert!(vdevs.iter().any(|v| v.child("name").unwrap().text() == "Synthetic Fibre Channel Port"));
        let names: Vec<_> = vdevs.iter().map(|v| v.name().to_owned()).collect();
        let expected: Vec<_> = (1..=vdevs.len()).map(|n| format!("vdev{n:03}")).collect();
        prop_assert_eq!(names, expected);
    }

    #[test]
    fn two_changes_equal_one(first in spec(), second in spec()) {
        let mut config = VmConfig::new(&first, 0).unwrap();
        config.apply_spec(&second).unwrap();
        prop_assert_eq!(config.spec().0, second.clone());
        let once = config.to_bytes();
        config.apply_spec(&second).unwrap();
        prop_assert_eq!(config.to_bytes(), once);
    }

    #[test]
    fn our_own_data_survives_the_file(
        meta in meta(),
        parent in prop::option::of(guid()),
        pending in prop::option::of((guid(), vec(step(), 0..4))),
        kept in vec(step(), 0..4),
        released in prop::collection::btree_set("/[a-zж]{1,9}\\.avhd".prop_map(std::path::PathBuf::from), 0..4),
        deleting in prop::collection::btree_set(guid().prop_map(CheckpointId), 0..4),
    ) {
        let parent = parent.map(CheckpointId);
        let pending = pending.map(|(id, layers)| PendingCheckpoint { checkpoint: CheckpointId(id), layers });
        let untouched = VmConfig::parse(SAMPLE).unwrap();
        let mut config = untouched.clone();
        config.set_checkpoint_meta(Some(&meta)).unwrap();
        config.set_now_parent(parent);
        config.set_pending(pending.as_ref()).unwrap();
        config.set_kept_layers(&kept).unwrap();
        let mut read = VmConfig::parse(&config.to_bytes()).unwrap();
        prop_assert_eq!(read.checkpoint_meta(), Some(meta.clone()));
        prop_assert_eq!(read.now_parent(), parent);
        prop_assert_eq!(read.pending(), pending);
        prop_assert_eq!(read.kept_layers(), kept.clone());
        prop_assert_eq!(read.spec(), untouched.spec());
        let checkpoint = read.checkpoint().unwrap();
        prop_assert_eq!((checkpoint.id, checkpoint.disks.len()), (meta.id, 3));

        // The older list is part of the newer one, and becomes it.
        let from: std::collections::BTreeSet<_> = kept.iter().map(|step| step.from.clone()).collect();
        prop_assert_eq!(read.released(), from);
        let merging = released.first().map(|file| Merging { upper: file.clone(), lower: "/base.vhd".into() });
        read.set_released(&released).unwrap();
        read.set_deleting(&deleting);
        read.set_merging(merging.as_ref()).unwrap();
        read.set_applying(&released).unwrap();
        read.set_merge_rate(Some(u64::MAX));
        let mut read = VmConfig::parse(&read.to_bytes()).unwrap();
        prop_assert_eq!((read.released(), read.deleting(), read.merging()), (released.clone(), deleting, merging));
        prop_assert_eq!((read.applying(), read.merge_rate()), (released.clone(), Some(u64::MAX)));
        prop_assert!(read.kept_layers().is_empty());
        let flag = read.get("global_settings/disk_merge_pending").and_then(|leaf| leaf.value());
        prop_assert_eq!(flag == Some(Value::Bool(true)), !released.is_empty());
        read.set_released(&std::collections::BTreeSet::new()).unwrap();
        read.set_deleting(&std::collections::BTreeSet::new());
        read.set_merging(None).unwrap();
        read.set_applying(&std::collections::BTreeSet::new()).unwrap();
        read.set_merge_rate(None);
        prop_assert!(read.applying().is_empty() && read.merge_rate().is_none());
        prop_assert!(read.released().is_empty() && read.deleting().is_empty() && read.merging().is_none());

        read.set_checkpoint_meta(None).unwrap();
        read.set_now_parent(None);
        read.set_pending(None).unwrap();
        read.set_kept_layers(&[]).unwrap();
        prop_assert_eq!((read.checkpoint(), read.now_parent(), read.pending()), (None, None, None));
        prop_assert!(read.kept_layers().is_empty());
    }

    #[test]
    fn leaves_of_every_type_survive(bytes in vec(any::<u8>(), 0..200), number in any::<i64>(), text in text()) {
        let mut config = VmConfig::parse(b"<configuration/>").unwrap();
        let values = [
            Value::Bytes(bytes), Value::Integer(number), Value::String(text), Value::Bool(true), Value::Double(0.1),
        ];
        for (index, value) in values.iter().enumerate() {
            config.set(&format!("a/b{index}"), value).unwrap();
        }
        let read = VmConfig::parse(&config.to_bytes()).unwrap();
        for (index, value) in values.iter().enumerate() {
            prop_assert_eq!(read.get(&format!("a/b{index}")).unwrap().value(), Some(value.clone()));
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = VmConfig::parse(&bytes).map(|config| config.spec());
    }

    #[test]
    fn damaged_files_are_refused_or_stay_stable(edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut text = String::from_utf16(
            &SAMPLE[2..].chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect::<Vec<_>>(),
        ).unwrap().into_bytes();
        for (at, byte) in &edits {
            let at = at.index(text.len());
            // Mostly letters and markup: pure noise would only ever test the decoder.
            text[at] = b"<>/=\"'& !?-[]0aZ"[usize::from(byte % 16)];
        }
        if let Ok(mut config) = VmConfig::parse(&text) {
            let bytes = config.to_bytes();
            let again = VmConfig::parse(&bytes).unwrap();
            prop_assert_eq!(&again, &config);
            prop_assert_eq!(again.to_bytes(), bytes);
            let (spec, _) = config.spec();
            config.apply_spec(&spec).unwrap();
            prop_assert_eq!(config.spec().0, spec);
        }
    }

    #[test]
    fn times_convert_both_ways(unix_ms in -11_644_473_600_000i64..100_000_000_000_000) {
        prop_assert_eq!(unix_ms_from_filetime(filetime_from_unix_ms(unix_ms)), unix_ms);
    }
}

//! Many disks in one machine: Hyper-V's largest has four on IDE and 64 on each of four SCSI controllers.

use crate::FIRST;
use backstay_e2e::{Host, Linux, Micro, linux_image};
use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What a process takes: descriptors, threads, KiB of memory.
fn taken(pid: u64) -> (usize, usize, u64) {
    let count = |name: &str| fs::read_dir(format!("/proc/{pid}/{name}")).map_or(0, Iterator::count);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = rss.and_then(|rss| rss.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    (count("fd"), count("task"), kib)
}

#[test]
fn a_machine_has_as_many_disks_as_it_was_given() {
    let host = Host::start();
    let mut slots: Vec<String> = ["ide:0:1", "ide:1:0", "ide:1:1"].map(str::to_owned).into();
    slots.extend((0..4).flat_map(|c| [0, 1, 31, 63].map(|lun| format!("scsi:{c}:{lun}"))));
    let drives: Vec<String> = slots.iter().map(|slot| format!("{slot}=1M")).collect();
    let more: Vec<&str> = drives.iter().flat_map(|drive| ["--new-disk", drive.as_str()]).collect();
    host.create_micro("m", "ide:0:0", &more);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, seen) = Micro::booting(&host.console("m"));
    assert!(seen >= 16, "the BIOS looks at 16 of them: {seen}");
    for drive in 1..16 {
        guest.write(FIRST + drive, 7, drive).unwrap();
    }
    for drive in 1..16 {
        guest.expect(FIRST + drive, 7, drive);
    }
    let disks = host.json(&["vm", "disks", "m"]);
    let disks = disks.as_array().or_else(|| disks["items"].as_array()).unwrap();
    assert_eq!(disks.len(), 20);
    let written = disks.iter().filter(|disk| disk["stats"]["writes"].as_u64() > Some(0)).count();
    assert_eq!(written, 15, "{disks:?}");
    host.ok(&["checkpoint", "create", "m", "c"]);
    guest.write(FIRST + 5, 7, 0x55).unwrap();
    host.ok(&["checkpoint", "revert", "m", "--yes"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    for drive in 1..16 {
        guest.expect(FIRST + drive, 7, drive);
    }
    let refused = host.refused(5, &["vm", "set", "m", "--remove-drive", "ide:1:1"]);
    assert!(refused.contains("running"), "IDE changes only while it is off: {refused}");
}

#[test]
fn what_a_controller_cannot_take_is_refused_or_told() {
    let host = Host::start();
    let create = |name: &'static str, more: &[&'static str]| {
        let args = [&["vm", "create", name, "--memory", "16M", "--no-network"], more].concat();
        host.run(&args)
    };
    let large = create("large", &["--new-disk", "ide:0:0=200G"]);
    assert!(large.code == 0 && large.err.contains("28-bit IDE"), "{}", large.err);
    let strict = create("strict", &["--new-disk", "ide:0:0=200G", "--compat", "2008"]);
    assert!(strict.code == 2 && strict.err.contains("--compat 2008"), "{} {}", strict.code, strict.err);
    let scsi = create("scsi", &["--new-disk", "scsi:0:0=200G", "--compat", "2008"]);
    assert!(scsi.code == 0 && scsi.err.contains("knows IDE only"), "{}", scsi.err);
    let both = create("both", &["--new-disk", "ide:0:0=1G", "--new-disk", "scsi:0:0=200G"]);
    assert!(both.code == 0 && !both.err.contains("warning"), "{}", both.err);
    for (drive, rule) in [("scsi:0:0=65T", "64 TiB"), ("scsi:4:0=1G", "scsi:C:L"), ("ide:0:2=1G", "ide:C:U")]
    {
        let refused = create("no", &["--new-disk", drive]);
        assert!(refused.code == 2 && refused.err.contains(rule), "{drive}: {} {}", refused.code, refused.err);
    }
    let vhd = host.refused(2, &["disk", "create", "big.vhd", "--size", "2041G"]);
    assert!(vhd.contains("2040 GiB"), "{vhd}");
}

/// The largest machine boots, sees every disk where it was attached, writes to each, and has a checkpoint.
#[test]
#[ignore = "minutes: 260 disks under emulation; part of `make soak`"]
fn soak_260_disks() {
    let Some(image) = linux_image() else { return };
    let host = Host::start();
    let disk = host.vhd_from(&image, "demo.vhd");
    let mut slots: Vec<String> = ["ide:0:1", "ide:1:0", "ide:1:1"].map(str::to_owned).into();
    slots.extend((0..4).flat_map(|c| (0..64).map(move |lun| format!("scsi:{c}:{lun}"))));
    let drives: Vec<String> = slots.iter().map(|slot| format!("{slot}=1M")).collect();
    let boot = format!("ide:0:0={}", disk.display());
    let mut args = vec!["vm", "create", "demo", "--memory", "512M", "--no-network", "--disk", &boot];
    args.extend(drives.iter().flat_map(|drive| ["--new-disk", drive.as_str()]));
    host.ok(&args);
    host.ok(&["vm", "start", "demo"]);
    // It looks for disks on each of 256 places before and while it starts.
    let patience = Duration::from_mins(15);
    let mut guest = Linux::booting_within(&host.console("demo"), patience);
    let limit = Instant::now() + patience;
    while guest.run("ls /sys/block | grep -c ^sd") != "260" {
        assert!(Instant::now() < limit, "the guest sees {}", guest.run("ls /sys/block | grep -c ^sd"));
        sleep(Duration::from_secs(1));
    }
    // Each disk gets its own serial number, which is where it is attached, as its first bytes.
    guest.run(
        "for d in /sys/block/sd*; do n=${d##*/}; s=$(tail -c +5 $d/device/vpd_pg80 2>/dev/null | tr -d '\\0 '); \
         [ \"${s#scsi}\" = \"$s\" ] || { echo $s; cat /dev/zero; } 2>/dev/null | head -c 512 >/dev/$n; done; sync",
    );
    let (worker, qemu) = (host.pid("demo", "worker_pid"), host.pid("demo", "qemu_pid"));
    println!("260 disks: worker {:?}, QEMU {:?} (descriptors, threads, KiB)", taken(worker), taken(qemu));
    host.ok(&["checkpoint", "create", "demo", "c"]);
    println!("on 260 new layers: worker {:?}", taken(worker));
    assert_eq!(guest.run("cat /sys/block/sd*/size | sort -n | uniq -c | wc -l"), "2", "1 MiB, and the first");
    host.ok(&["checkpoint", "delete", "demo", "c", "--yes"]);
    guest.run("sync");
    host.ok(&["vm", "turn-off", "demo"]);
    let disks = host.json(&["vm", "disks", "demo"]);
    let disks = disks.as_array().or_else(|| disks["items"].as_array()).unwrap();
    let of_slot: BTreeMap<&str, &str> =
        disks.iter().map(|d| (d["slot"].as_str().unwrap(), d["path"].as_str().unwrap())).collect();
    assert_eq!(of_slot.len(), 260);
    for slot in slots.iter().filter(|slot| slot.starts_with("scsi")) {
        let raw = host.folder().join("one.raw");
        host.ok(&["disk", "convert", of_slot[slot.as_str()], raw.to_str().unwrap()]);
        let content = fs::read(&raw).unwrap();
        fs::remove_file(&raw).unwrap();
        let expected = format!("{}\n", slot.replacen(':', "", 1).replace(':', "-"));
        assert!(content.starts_with(expected.as_bytes()), "{slot}: {:?}", &content[..16]);
    }
}

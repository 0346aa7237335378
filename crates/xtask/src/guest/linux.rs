//! The Linux guest: Debian's cloud kernel, busybox, an ext4 data partition, a shell on the serial port. Boots by BIOS
//! from IDE, SCSI and virtio disks.

use super::packages::Packages;
use super::{cached, key};
use crate::cmd::{command, output, text};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;

const THIS: &str = include_str!("linux.rs");
const INIT: &str = include_str!("../../../../e2e/guest/init.sh");
const POWER_BUTTON: &str = include_str!("../../../../e2e/guest/power-button.sh");
const PROFILE: &str = include_str!("../../../../e2e/guest/profile.sh");
const BOOT_MENU: &str = include_str!("../../../../e2e/guest/syslinux.cfg");

/// Drivers of every bus a machine can have, the power button, and CD/DVD. File systems ext2–4 are built in.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "virtio_net",
    "virtio_balloon",
    "ata_piix",
    "sd_mod",
    "sr_mod",
    "isofs",
    "button",
    "evdev",
];

// Two partitions: FAT to boot from, ext4 that survives.
const SECTOR: u64 = 512;
const BOOT_START: u64 = 2048;
const BOOT_MIB: u64 = 24;
const DATA_START: u64 = BOOT_START + BOOT_MIB * 2048;
const DATA_MIB: u64 = 64;
const DISK_MIB: u64 = 1 + BOOT_MIB + DATA_MIB + 1;
const SYSLINUX_MBR: &str = "/usr/lib/SYSLINUX/mbr.bin";
/// Every time stamp in the image, so that two builds are identical.
const EPOCH: &str = "1700000000";

pub fn build(place: &Path, packages: &Packages) -> Result<()> {
    let names = format!("{:?} {:?}", packages.kernel.file_name(), packages.userland.file_name());
    let parts = [THIS, INIT, POWER_BUTTON, PROFILE, BOOT_MENU, &names].map(str::as_bytes);
    cached(place, "linux", &key(&parts), "disk.img", |work| {
        for deb in [&packages.kernel, &packages.userland] {
            let deb = deb.to_str().context("the cache's path is not UTF-8")?;
            output(&mut command(work, "dpkg", &["-x", deb, "x"]))?;
        }
        let version = kernel_version(work)?;
        fs::copy(work.join("x/boot").join(format!("vmlinuz-{version}")), work.join("vmlinuz"))?;
        initramfs(work, &version)?;
        disk(work)?;
        fs::remove_dir_all(work.join("x"))?;
        fs::remove_dir_all(work.join("root"))?;
        Ok(())
    })
}

fn kernel_version(work: &Path) -> Result<String> {
    for entry in fs::read_dir(work.join("x/boot"))? {
        if let Some(version) = entry?.file_name().to_str().and_then(|n| n.strip_prefix("vmlinuz-")) {
            return Ok(version.to_owned());
        }
    }
    bail!("the kernel package has no /boot/vmlinuz-*")
}

/// Lays out the initial root file system and packs it as `initrd`.
fn initramfs(work: &Path, version: &str) -> Result<()> {
    let root = work.join("root");
    for folder in ["bin", "dev", "proc", "sys", "tmp", "data", "mnt", "modules", "etc/acpi/PWRF"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox =
        ["x/bin/busybox", "x/usr/bin/busybox"].map(|p| work.join(p)).into_iter().find(|p| p.is_file());
    fs::copy(busybox.context("the busybox package has no busybox")?, root.join("bin/busybox"))?;
    script(&root.join("init"), INIT)?;
    script(&root.join("etc/acpi/PWRF/00000080"), POWER_BUTTON)?;
    fs::write(root.join("etc/profile"), PROFILE)?;
    fs::write(root.join("modules/order"), modules(work, version)?.join("\n") + "\n")?;

    let names = text(&mut command(&root, "find", &["."]))?;
    let mut names: Vec<_> = names.lines().collect();
    names.sort_unstable();
    let stamp = format!("@{EPOCH}");
    let mut touch = vec!["-h", "-d", &stamp];
    touch.extend(&names);
    output(&mut command(&root, "touch", &touch))?;
    pack(&root, &names, &work.join("initrd"))
}

/// Copies the modules with everything they need, without debug data; returns their names in loading order.
fn modules(work: &Path, version: &str) -> Result<Vec<String>> {
    // unpacked packages have no modules.dep yet
    output(&mut command(work, "depmod", &["-b", "x", version]))?;
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        let said = text(&mut command(work, "modprobe", &["-d", "x", "-S", version, "-D", module]))?;
        for path in said.lines().filter_map(|l| l.strip_prefix("insmod ")).map(str::trim) {
            let name = path.rsplit('/').next().unwrap_or(path).to_owned();
            if order.contains(&name) {
                continue;
            }
            let to = format!("root/modules/{name}");
            output(&mut command(work, "strip", &["-g", "-o", &to, path]))?;
            order.push(name);
        }
    }
    Ok(order)
}

fn pack(root: &Path, names: &[&str], to: &Path) -> Result<()> {
    let archive = to.with_extension("cpio");
    let mut cpio = command(root, "cpio", &["--quiet", "--reproducible", "-o", "-H", "newc", "-R", "0:0"])
        .stdin(Stdio::piped())
        .stdout(fs::File::create(&archive)?)
        .spawn()
        .context("cannot run cpio (`make deps` installs it)")?;
    cpio.stdin.take().context("cpio takes no input")?.write_all((names.join("\n") + "\n").as_bytes())?;
    if !cpio.wait()?.success() {
        bail!("cpio failed");
    }
    let archive = archive.to_str().context("the target folder's path is not UTF-8")?;
    fs::write(to, output(&mut command(root, "gzip", &["-9nc", archive]))?)?;
    Ok(fs::remove_file(archive)?)
}

/// Puts kernel and initramfs on a disk that a BIOS boots.
fn disk(work: &Path) -> Result<()> {
    fs::write(work.join("syslinux.cfg"), BOOT_MENU)?;
    let image = fs::File::create(work.join("disk.img"))?;
    image.set_len(DISK_MIB << 20)?;
    partition(work)?;

    let offset = BOOT_START.to_string();
    let kib = (BOOT_MIB * 1024).to_string();
    let fat = ["-F", "16", "-n", "BOOT", "--invariant", "--offset", &offset, "disk.img", &kib];
    output(&mut command(work, "mkfs.vfat", &fat))?;
    for (file, name) in [("vmlinuz", "::vmlinuz"), ("initrd", "::initrd"), ("syslinux.cfg", "::syslinux.cfg")]
    {
        output(command(work, "mcopy", &["-i", "disk.img@@1M", file, name]).env("SOURCE_DATE_EPOCH", EPOCH))?;
    }
    let bytes = (BOOT_START * SECTOR).to_string();
    output(&mut command(work, "syslinux", &["--install", "-t", &bytes, "disk.img"]))?;
    image.write_all_at(&fs::read(SYSLINUX_MBR).with_context(|| format!("cannot read {SYSLINUX_MBR}"))?, 0)?;

    // Fixed identifiers and times: the image's checksum depends on nothing but what is in it.
    let options = format!(
        "offset={},hash_seed=6261636b-7374-6179-0000-000000000001,nodiscard,lazy_itable_init=0",
        DATA_START * SECTOR
    );
    let size = format!("{DATA_MIB}M");
    let uuid = "6261636b-7374-6179-0000-000000000002";
    let ext4 = ["-q", "-F", "-t", "ext4", "-L", "data", "-U", uuid, "-E", &options, "disk.img", &size];
    output(command(work, "mke2fs", &ext4).env("E2FSPROGS_FAKE_TIME", EPOCH))?;
    Ok(())
}

fn partition(work: &Path) -> Result<()> {
    let table = format!(
        "label: dos\nlabel-id: 0x42535459\nstart={BOOT_START}, size={}, type=6, bootable\nstart={DATA_START}, size={}, type=83\n",
        BOOT_MIB * 2048,
        DATA_MIB * 2048
    );
    let mut sfdisk = command(work, "sfdisk", &["-q", "disk.img"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run sfdisk (`make deps` installs it)")?;
    sfdisk.stdin.take().context("sfdisk takes no input")?.write_all(table.as_bytes())?;
    if !sfdisk.wait()?.success() {
        bail!("sfdisk failed");
    }
    Ok(())
}

fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

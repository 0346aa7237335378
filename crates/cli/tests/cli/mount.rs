//! `disk mount`: a disk as files, judged by the file system tools of Linux.

use crate::support::{backstay, err, out};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const MIB: u64 = 1 << 20;

fn disk(folder: &Path, args: &[&str]) -> Output {
    backstay(&["disk"]).args(args).current_dir(folder).output().unwrap()
}

fn made(folder: &Path, args: &[&str]) {
    let output = disk(folder, args);
    assert!(output.status.success(), "{args:?}: {}", err(&output));
}

/// Shows `args` in the folder `at`; none where this machine lets nobody mount.
fn mount(folder: &Path, args: &[&str]) -> Option<Child> {
    let _may_be_there = fs::create_dir(folder.join("at"));
    let mut child = backstay(&["disk", "mount"])
        .args(args)
        .arg("at")
        .current_dir(folder)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    if line.contains("is shown in at") {
        return Some(child);
    }
    child.wait().unwrap();
    let possible = File::options().read(true).write(true).open("/dev/fuse").is_ok()
        && rustix::process::getuid().is_root();
    assert!(!possible || line.contains("not permitted"), "{line}");
    println!("skipped: FUSE cannot be used here ({})", line.trim());
    None
}

fn ended(mut child: Child) {
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn signalled(child: Child, signal: Signal) {
    kill_process(Pid::from_child(&child), signal).unwrap();
    ended(child);
}

fn names(folder: &Path) -> Vec<(String, u64)> {
    let list = fs::read_dir(folder.join("at")).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<_> = list
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len()))
        .collect();
    names.sort();
    names
}

fn tool(folder: &Path, program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}{}", out(&output), err(&output));
    output
}

/// A table with one Linux partition from 1 MiB on.
fn table(sectors: u32) -> [u8; 512] {
    let mut first = [0; 512];
    first[446 + 4] = 0x83;
    first[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    first[446 + 12..446 + 16].copy_from_slice(&sectors.to_le_bytes());
    first[510..].copy_from_slice(&[0x55, 0xaa]);
    first
}

#[test]
fn a_file_system_is_made_in_a_partition_and_read_from_the_chain() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    made(dir, &["create", "base.vhdx", "--size", "64M"]);
    let Some(child) = mount(dir, &["base.vhdx"]) else { return };
    assert_eq!(names(dir), [("disk".to_owned(), 64 * MIB)]);
    // The table is written as it is by partitioning tools, and seen at the next mount.
    let whole = OpenOptions::new().write(true).open(dir.join("at/disk")).unwrap();
    whole.write_all_at(&table(62 * 2048), 0).unwrap();
    whole.sync_all().unwrap();
    drop(whole);
    signalled(child, Signal::TERM);

    made(dir, &["create", "top.avhdx", "--parent", "base.vhdx"]);
    let child = mount(dir, &["top.avhdx"]).unwrap();
    assert_eq!(names(dir), [("disk".to_owned(), 64 * MIB), ("p1".to_owned(), 62 * MIB)]);
    tool(dir, "mkfs.ext4", &["-q", "-F", "at/p1"]);
    fs::write(dir.join("letter"), b"it holds your machines up").unwrap();
    tool(dir, "debugfs", &["-w", "-R", "write letter letter", "at/p1"]);
    // `umount` ends the command as a signal does.
    tool(dir, "umount", &["at"]);
    ended(child);

    let check = disk(dir, &["check", "top.avhdx"]);
    assert_eq!((check.status.code(), out(&check).as_str()), (Some(0), ""), "closed cleanly");
    made(dir, &["convert", "top.avhdx", "flat.raw"]);
    let flat = fs::read(dir.join("flat.raw")).unwrap();
    fs::write(dir.join("p1.raw"), &flat[1 << 20..63 << 20]).unwrap();
    tool(dir, "e2fsck", &["-fn", "p1.raw"]);
    let letter = tool(dir, "debugfs", &["-R", "cat letter", "p1.raw"]);
    assert_eq!(letter.stdout, b"it holds your machines up");
    // The parent was not touched.
    made(dir, &["convert", "base.vhdx", "base.raw"]);
    let base = fs::read(dir.join("base.raw")).unwrap();
    assert!(base[512..].iter().all(|byte| *byte == 0));

    // Read-only: the same bytes, and nobody can change them.
    let child = mount(dir, &["top.avhdx", "--read-only"]).unwrap();
    assert!(fs::read(dir.join("at/disk")).unwrap() == flat);
    assert!(OpenOptions::new().write(true).open(dir.join("at/disk")).is_err());
    made(dir, &["info", "top.avhdx"]);
    signalled(child, Signal::INT);
}

#[test]
fn bytes_are_written_anywhere_and_holes_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    made(dir, &["create", "d.vhd", "--size", "16M"]);
    let Some(child) = mount(dir, &["d.vhd"]) else { return };
    let file = OpenOptions::new().read(true).write(true).open(dir.join("at/disk")).unwrap();
    let mut model = vec![0_u8; 16 << 20];
    for (value, (at, len)) in (1..).zip([(5_usize, 1000_usize), (8 << 20, 70_000), ((16 << 20) - 3, 3)]) {
        file.write_all_at(&vec![value; len], at as u64).unwrap();
        model[at..at + len].fill(value);
    }
    // A file as long as the disk does not get longer.
    assert!(file.write_at(&[1], 16 * MIB).is_err());
    assert!(file.set_len(17 * MIB).is_err());
    rustix::fs::fallocate(
        &file,
        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
        8 * MIB + 100,
        1000,
    )
    .unwrap();
    model[(8 << 20) + 100..(8 << 20) + 1100].fill(0);
    file.sync_all().unwrap();
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(4 << 20)).unwrap();
    assert_eq!(data, 8 * MIB);
    assert!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(16 << 20)).is_err());
    drop(file);
    assert!(fs::read(dir.join("at/disk")).unwrap() == model);
    signalled(child, Signal::HUP);
    made(dir, &["convert", "d.vhd", "d.raw"]);
    assert!(fs::read(dir.join("d.raw")).unwrap() == model);
}

#[test]
fn folders_and_disks_that_cannot_be_shown_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    made(dir, &["create", "d.vhd", "--size", "8M"]);
    fs::create_dir(dir.join("full")).unwrap();
    File::create(dir.join("full/file")).unwrap().write_all(b"mine").unwrap();
    let output = disk(dir, &["mount", "d.vhd", "full"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(err(&output).contains("full is not empty"), "{}", err(&output));
    let output = disk(dir, &["mount", "d.vhd", "nowhere"]);
    assert_ne!(output.status.code(), Some(0));
    assert!(err(&output).contains("nowhere"), "{}", err(&output));
    fs::create_dir(dir.join("empty")).unwrap();
    let output = disk(dir, &["mount", "none.vhd", "empty"]);
    assert_ne!(output.status.code(), Some(0));
    assert!(err(&output).contains("none.vhd"), "{}", err(&output));
}

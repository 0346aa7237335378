//! Disks that nobody uses and that get another size: larger, or smaller over space that is not in use.

use crate::{
    resize::{KINDS, Kind, new_disk, nothing_is_wrong, others_agree},
    support::{Form, assert_same, child_of, folder, have, open, read_all, report, stamp, with_shadow},
};
use backstay_disk::{
    Backend, DiskOptions, NewDisk, NewSize, ResizeControl, ResizeError, UsedBy, create_disk, fs::HostFs,
    mark_saved_state, plan_resize, resize_offline,
};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const MIB: u64 = 1 << 20;

fn resize(path: &Path, size: NewSize) -> Result<backstay_disk::ResizePlan, ResizeError> {
    resize_offline(&HostFs::shared(), path, size, &with_shadow(path.parent().unwrap()), &ResizeControl::new())
}

fn plan(path: &Path, size: NewSize) -> Result<backstay_disk::ResizePlan, ResizeError> {
    plan_resize(&HostFs::shared(), path, size, &DiskOptions::read_only())
}

fn content(path: &Path) -> Vec<u8> {
    read_all(&open(path, DiskOptions::read_only()))
}

fn write(path: &Path, at: u64, data: &[u8]) {
    let disk = open(path, with_shadow(path.parent().unwrap()));
    disk.write(at, data).unwrap();
    disk.close().unwrap();
}

#[test]
fn a_disk_shrinks_down_to_its_last_byte_and_no_further() {
    for (form, kind) in [Form::Vhd, Form::Vhdx].into_iter().flat_map(|form| KINDS.map(|kind| (form, kind))) {
        let folder = folder();
        let path = new_disk(folder.path(), form, kind, 10 * MIB);
        if kind == Kind::Differencing {
            // Below its parent it cannot go.
            resize(&path, NewSize::Bytes(30 * MIB)).unwrap();
            assert!(matches!(
                resize(&path, NewSize::Bytes(10 * MIB - 4096)),
                Err(ResizeError::WouldLose { minimum, .. }) if minimum == 10 * MIB
            ));
        } else {
            resize(&path, NewSize::Bytes(30 * MIB)).unwrap();
        }
        write(&path, 13 * MIB, &stamp(13 * MIB, 4096, 1));
        // Zeros may go, whether or not they have a block.
        write(&path, 29 * MIB, &stamp(29 * MIB, 8192, 1));
        write(&path, 29 * MIB, &[0; 8192]);
        let mut expected = content(&path);
        let minimum = 13 * MIB + 4096;
        let before = std::fs::metadata(&path).unwrap().len();
        let refused = resize(&path, NewSize::Bytes(13 * MIB)).unwrap_err();
        assert!(
            matches!(&refused, ResizeError::WouldLose { minimum: found, .. } if *found == minimum),
            "{form:?} {kind:?}: {}",
            report(&refused)
        );
        assert!(refused.to_string().contains(&format!("4096 bytes of data at {}", 13 * MIB)), "{refused}");
        let seen = plan(&path, NewSize::Minimum).unwrap();
        assert_eq!((seen.new, seen.minimum), (minimum, Some((minimum, UsedBy::Data))));
        assert_same(&content(&path), &expected, "a plan and a refusal change nothing");
        resize(&path, NewSize::Bytes(20 * MIB)).unwrap_or_else(|error| panic!("{}", report(&error)));
        resize(&path, NewSize::Minimum).unwrap();
        expected.truncate(usize::try_from(minimum).unwrap());
        assert_same(&content(&path), &expected, "shrunk");
        nothing_is_wrong(&path);
        others_agree(&path, kind, &expected);
        if kind == Kind::Fixed {
            assert!(std::fs::metadata(&path).unwrap().len() < before, "a fixed file gets shorter");
        }
        // What was there does not come back.
        resize(&path, NewSize::Bytes(31 * MIB)).unwrap();
        expected.resize(usize::try_from(31 * MIB).unwrap(), 0);
        assert_same(&content(&path), &expected, "and grown");
        nothing_is_wrong(&path);
        others_agree(&path, kind, &expected);
    }
}

#[test]
fn an_empty_disk_may_become_one_sector() {
    for form in [Form::Vhd, Form::Vhdx] {
        let folder = folder();
        let path = new_disk(folder.path(), form, Kind::Dynamic, 10 * MIB);
        assert_eq!(plan(&path, NewSize::Minimum).unwrap().minimum, Some((512, UsedBy::Nothing)));
        let text = plan(&path, NewSize::Bytes(5 * MIB)).unwrap().to_string();
        assert!(text.contains("a disk of 5242880 bytes"), "{text}");
        resize(&path, NewSize::Minimum).unwrap();
        assert_eq!(content(&path), [0; 512]);
        assert_eq!(plan(&path, NewSize::Bytes(512)).unwrap().old, 512);
        assert!(matches!(resize(&path, NewSize::Bytes(0)), Err(ResizeError::Unsuitable { .. })));
    }
}

/// What `sfdisk` makes of a list of partitions, on a disk of ours; the bytes.
fn partitioned(path: &Path, size: u64, script: &str) -> Vec<u8> {
    let raw = path.with_extension("sfdisk");
    std::fs::File::create(&raw).unwrap().set_len(size).unwrap();
    let mut run = Command::new("sfdisk")
        .args(["--quiet", "--no-reread"])
        .arg(&raw)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    run.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(run.wait().unwrap().success());
    let bytes = std::fs::read(&raw).unwrap();
    let disk = open(path, with_shadow(path.parent().unwrap()));
    disk.write(0, &bytes).unwrap();
    disk.close().unwrap();
    bytes
}

/// What `sfdisk` says about the content of a disk; panics where it complains.
fn partitions(path: &Path) -> String {
    let raw = path.with_extension("sfdisk");
    std::fs::write(&raw, content(path)).unwrap();
    let verify = Command::new("sfdisk").arg("--verify").arg(&raw).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&verify.stdout), String::from_utf8_lossy(&verify.stderr));
    assert!(verify.status.success() && said.contains("No errors detected"), "{said}");
    let dump = Command::new("sfdisk").arg("--dump").arg(&raw).output().unwrap();
    let said = String::from_utf8_lossy(&dump.stderr).into_owned();
    assert!(said.is_empty(), "{said}");
    String::from_utf8(dump.stdout).unwrap()
}

#[test]
fn a_gpt_disk_shrinks_to_its_last_partition_and_the_table_comes_along() {
    if !have("sfdisk") {
        return;
    }
    for form in [Form::Vhd, Form::Vhdx] {
        let folder = folder();
        let path = new_disk(folder.path(), form, Kind::Dynamic, 32 * MIB);
        partitioned(
            &path,
            32 * MIB,
            "label: gpt\nstart=2048, size=8192, name=a\nstart=20480, size=4097, name=b\n",
        );
        // Behind the last partition: nobody's. One of them in the block that will be the last.
        let minimum = (20480 + 4097 + 33) * 512;
        write(&path, 25 * MIB, &stamp(25 * MIB, 4096, 1));
        write(&path, minimum, &stamp(minimum, 4096, 2));
        let named = |dump: &str| -> Vec<String> {
            dump.lines().filter(|line| line.contains("name=")).map(str::to_owned).collect()
        };
        let before = partitions(&path);
        let seen = plan(&path, NewSize::Minimum).unwrap();
        assert_eq!(seen.minimum, Some((minimum, UsedBy::Gpt { partition: 2 })));
        assert!(seen.moves_partition_table);
        let refused = resize(&path, NewSize::Bytes(minimum - 512)).unwrap_err();
        assert!(refused.to_string().contains("partition 2"), "{refused}");
        for size in [30 * MIB, minimum] {
            resize(&path, NewSize::Bytes(size)).unwrap();
            let after = partitions(&path);
            assert_eq!(named(&after), named(&before));
            assert!(after.contains(&format!("last-lba: {}", size / 512 - 34)), "{after}");
            nothing_is_wrong(&path);
        }
        others_agree(&path, Kind::Dynamic, &content(&path));
        resize(&path, NewSize::Bytes(32 * MIB)).unwrap();
        let new = &content(&path)[usize::try_from(minimum).unwrap()..];
        assert!(new.iter().all(|byte| *byte == 0), "what was cut off does not come back");
        // A damaged table tells nothing.
        let disk = open(&path, with_shadow(folder.path()));
        let mut header = [0; 512];
        disk.read(512, &mut header).unwrap();
        header[40] ^= 1;
        disk.write(512, &header).unwrap();
        disk.close().unwrap();
        assert!(matches!(resize(&path, NewSize::Minimum), Err(ResizeError::PartitionTable { .. })));
    }
}

#[test]
fn an_mbr_disk_shrinks_to_its_last_partition() {
    if !have("sfdisk") {
        return;
    }
    let folder = folder();
    let path = new_disk(folder.path(), Form::Vhdx, Kind::Fixed, 32 * MIB);
    partitioned(
        &path,
        32 * MIB,
        "label: dos\nstart=2048, size=8192, type=83\nstart=16384, size=8192, type=5\nstart=18432, size=2048, type=83\n",
    );
    let minimum = (16384 + 8192) * 512;
    assert_eq!(plan(&path, NewSize::Minimum).unwrap().minimum, Some((minimum, UsedBy::Mbr { partition: 2 })));
    resize(&path, NewSize::Minimum).unwrap();
    partitions(&path);
    nothing_is_wrong(&path);
    others_agree(&path, Kind::Fixed, &content(&path));
}

#[test]
fn a_disk_that_is_needed_as_it_is_stays_so() {
    for form in [Form::Vhd, Form::Vhdx] {
        let folder = folder();
        let path = new_disk(folder.path(), form, Kind::Dynamic, 4 * MIB);
        let child: PathBuf = folder.path().join(form.layer("child"));
        child_of(&path, &child);
        for size in [NewSize::Bytes(8 * MIB), NewSize::Minimum] {
            let refused = resize(&path, size).unwrap_err();
            assert!(matches!(refused, ResizeError::HasChildren { .. }), "{refused}");
            assert!(refused.to_string().contains(child.to_str().unwrap()), "{refused}");
        }
        resize(&child, NewSize::Bytes(8 * MIB)).unwrap();
        assert_eq!(content(&child).len() as u64, 8 * MIB);
        let busy = open(&child, with_shadow(folder.path()));
        assert!(matches!(resize(&child, NewSize::Bytes(9 * MIB)), Err(ResizeError::Open { .. })));
        busy.close().unwrap();
    }
    let folder = folder();
    let path = new_disk(folder.path(), Form::Vhd, Kind::Dynamic, 4 * MIB);
    mark_saved_state(&path, true).unwrap();
    assert!(matches!(resize(&path, NewSize::Bytes(8 * MIB)), Err(ResizeError::SavedState { .. })));
    let raw = folder.path().join("a.raw");
    create_disk(&HostFs::shared(), &raw, &NewDisk::Raw { size: 4 * MIB }, backstay_disk::Identity::fresh())
        .unwrap();
    resize(&raw, NewSize::Bytes(2 * MIB)).unwrap();
    assert_eq!(std::fs::metadata(&raw).unwrap().len(), 2 * MIB);
}

/// A file system that has the whole disk finds its device too small if its end is cut off, though there are only zeros.
#[test]
fn a_file_system_without_partitions_is_in_use_to_its_end() {
    let made: [(&str, &[&str], &str); 3] = [
        ("mkfs.ext4", &["-q", "-F", "-E", "nodiscard"], "an ext file system"),
        ("mkfs.fat", &["-F", "32", "-s", "1"], "FAT"),
        ("mkswap", &[], "swap"),
    ];
    for (program, arguments, name) in made {
        if !have(program) {
            continue;
        }
        let folder = folder();
        let path = new_disk(folder.path(), Form::Vhdx, Kind::Dynamic, 64 * MIB);
        let image = folder.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(48 * MIB).unwrap();
        let run = Command::new(program).args(arguments).arg(&image).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        write(&path, 0, &std::fs::read(&image).unwrap());
        let seen = plan(&path, NewSize::Minimum).unwrap();
        let (minimum, by) = seen.minimum.unwrap();
        assert!((47 * MIB..=48 * MIB).contains(&minimum), "{program}: {minimum}");
        assert_eq!(by.to_string(), name);
        let refused = resize(&path, NewSize::Bytes(40 * MIB)).unwrap_err();
        assert!(refused.to_string().contains(name), "{refused}");
        resize(&path, NewSize::Bytes(50 * MIB)).unwrap();
        assert_same(&content(&path)[..48 << 20], &std::fs::read(&image).unwrap(), program);
    }
}

#[test]
fn what_a_damaged_table_does_not_tell_is_not_guessed() {
    let folder = folder();
    let path = new_disk(folder.path(), Form::Vhdx, Kind::Dynamic, 32 * MIB);
    let mut first = [0; 512];
    first[510..].copy_from_slice(&[0x55, 0xaa]);
    first[446 + 4] = 0x83;
    first[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    first[446 + 12..446 + 16].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    write(&path, 0, &first);
    // Its partition ends behind the disk.
    assert!(matches!(resize(&path, NewSize::Minimum), Err(ResizeError::PartitionTable { .. })));
    // Only the first sector of a GUID partition table is lost.
    first.fill(0);
    write(&path, 0, &first);
    let mut header = [0; 512];
    header[..8].copy_from_slice(b"EFI PART");
    write(&path, 512, &header);
    assert!(matches!(resize(&path, NewSize::Minimum), Err(ResizeError::PartitionTable { .. })));
    assert_eq!(content(&path).len() as u64, 32 * MIB);
}

/// Hyper-V keeps the disks of checkpoints in a folder beside that of the disks.
#[test]
fn a_child_in_the_folder_of_checkpoints_is_found() {
    for (form, inside) in
        [(Form::Vhd, "Snapshots/0b2f"), (Form::Vhdx, "../Snapshots/0b2f"), (Form::Vhdx, "../Snapshots")]
    {
        let folder = folder();
        let disks = folder.path().join("Virtual Hard Disks");
        let snapshots = disks.join(inside);
        std::fs::create_dir_all(&disks).unwrap();
        std::fs::create_dir_all(&snapshots).unwrap();
        let path = new_disk(&disks, form, Kind::Dynamic, 4 * MIB);
        let child = snapshots.canonicalize().unwrap().join(form.layer("child"));
        child_of(&path, &child);
        let refused = resize(&path, NewSize::Bytes(8 * MIB)).unwrap_err();
        assert!(matches!(&refused, ResizeError::HasChildren { .. }), "{refused}");
        assert!(refused.to_string().contains(child.to_str().unwrap()), "{refused}");
        assert_eq!(backstay_disk::children_beside(&HostFs::shared(), &path), std::slice::from_ref(&child));
        // One that cannot be read hinders nobody.
        std::fs::write(child.with_file_name(form.layer("broken")), [7; 4096]).unwrap();
        std::fs::remove_file(&child).unwrap();
        resize(&path, NewSize::Bytes(8 * MIB)).unwrap();
    }
}

/// A disk that became smaller than its parent, or whose parent grew elsewhere.
#[test]
fn what_a_larger_parent_holds_behind_the_end_does_not_come_up() {
    let folder = folder();
    let path = new_disk(folder.path(), Form::Vhd, Kind::Dynamic, 4 * MIB);
    let child = folder.path().join("child.avhd");
    child_of(&path, &child);
    let away = folder.path().join("away");
    std::fs::create_dir(&away).unwrap();
    std::fs::rename(&child, away.join("child.avhd")).unwrap();
    resize(&path, NewSize::Bytes(8 * MIB)).unwrap();
    write(&path, 6 * MIB, &stamp(6 * MIB, 4096, 5));
    std::fs::rename(away.join("child.avhd"), &child).unwrap();
    for size in [8 * MIB, 20 * MIB] {
        let refused = resize(&child, NewSize::Bytes(size)).unwrap_err();
        assert!(matches!(refused, ResizeError::ParentLarger { .. }), "{refused}");
        assert!(plan(&child, NewSize::Bytes(size)).is_err());
    }
    let disk = open(&child, with_shadow(folder.path()));
    assert!(matches!(disk.grow(8 * MIB), Err(ResizeError::ParentLarger { .. })));
    disk.write(0, &stamp(0, 512, 6)).unwrap();
    disk.close().unwrap();
}

#[test]
fn a_resize_is_cancelled_before_anything_is_changed() {
    for form in [Form::Vhd, Form::Vhdx] {
        let folder = folder();
        let path = new_disk(folder.path(), form, Kind::Fixed, 8 * MIB);
        write(&path, 0, &stamp(0, 4096, 1));
        let before = std::fs::read(&path).unwrap();
        let control = ResizeControl::new();
        control.cancel();
        for size in [NewSize::Bytes(64 * MIB), NewSize::Minimum] {
            let options = with_shadow(folder.path());
            let ended = resize_offline(&HostFs::shared(), &path, size, &options, &control);
            assert!(matches!(ended, Err(ResizeError::Cancelled { .. })), "{ended:?}");
        }
        assert!(std::fs::read(&path).unwrap() == before);
        let control = ResizeControl::new();
        let options = with_shadow(folder.path());
        resize_offline(&HostFs::shared(), &path, NewSize::Bytes(64 * MIB), &options, &control).unwrap();
        let (done, total) = control.progress();
        assert!(done == total && total >= 56 * MIB, "{done} of {total}");
    }
}

//! `backstay disk merge` and `reparent`.

use crate::support::{backstay, err, out};
use backstay_disk::{Backend, Disk, DiskOptions};
use std::path::Path;
use std::process::{Command, Output};

fn disk(folder: &Path, args: &[&str]) -> Output {
    backstay(&["disk"]).args(args).current_dir(folder).output().unwrap()
}

fn done(folder: &Path, args: &[&str]) -> String {
    let output = disk(folder, args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", err(&output));
    out(&output)
}

fn write(folder: &Path, name: &str, offset: u64, byte: u8) {
    let options = DiskOptions { runtime_dir: DiskOptions::default_runtime_dir(), ..DiskOptions::default() };
    let disk = Disk::open(&folder.join(name), options).unwrap();
    disk.write(offset, &[byte; 8192]).unwrap();
    disk.close().unwrap();
}

fn byte(folder: &Path, name: &str, offset: u64) -> u8 {
    let disk = Disk::open(&folder.join(name), DiskOptions::read_only()).unwrap();
    let mut sector = [0; 512];
    disk.read(offset, &mut sector).unwrap();
    sector[0]
}

#[test]
fn a_chain_is_merged_and_other_children_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    done(dir, &["create", "base.vhd", "--size", "16M"]);
    write(dir, "base.vhd", 0, 1);
    done(dir, &["create", "one.avhd", "--parent", "base.vhd"]);
    write(dir, "one.avhd", 3 << 20, 2);
    done(dir, &["create", "two.avhd", "--parent", "one.avhd"]);
    done(dir, &["create", "branch.avhd", "--parent", "one.avhd"]);
    write(dir, "two.avhd", 9 << 20, 3);
    write(dir, "branch.avhd", 9 << 20, 4);

    let refused = disk(dir, &["merge", "two.avhd"]);
    assert_eq!(refused.status.code(), Some(5), "{}", err(&refused));
    assert!(err(&refused).contains("branch.avhd"), "{}", err(&refused));
    let plan = done(dir, &["merge", "one.avhd", "--dry-run"]);
    for told in
        ["move 8192 bytes in 1 blocks", "base.vhd, a dynamic disk", "two.avhd a child", "branch.avhd a child"]
    {
        assert!(plan.contains(told), "{told}: {plan}");
    }
    assert!(dir.join("one.avhd").exists());

    done(dir, &["merge", "one.avhd"]);
    assert!(!dir.join("one.avhd").exists());
    assert_eq!([0, 3 << 20, 9 << 20].map(|at| byte(dir, "two.avhd", at)), [1, 2, 3]);
    assert_eq!([0, 3 << 20, 9 << 20].map(|at| byte(dir, "branch.avhd", at)), [1, 2, 4]);
    std::fs::remove_file(dir.join("branch.avhd")).unwrap();
    done(dir, &["create", "three.avhd", "--parent", "two.avhd"]);
    write(dir, "three.avhd", 12 << 20, 5);
    let wrong = disk(dir, &["merge", "two.avhd", "--into", "three.avhd"]);
    assert!(err(&wrong).contains("is not a parent of"), "{}", err(&wrong));
    done(dir, &["merge", "three.avhd", "--into", "base.vhd", "--rate", "100M"]);
    assert_eq!([0, 3 << 20, 9 << 20, 12 << 20].map(|at| byte(dir, "base.vhd", at)), [1, 2, 3, 5]);
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1);
    if let Ok(seen) =
        Command::new("qemu-img").args(["check", "-f", "vpc", "base.vhd"]).current_dir(dir).output()
    {
        // It has no check for this format; it opens the file, though.
        assert!(!err(&seen).contains("Could not open"), "{}", err(&seen));
    }
}

#[test]
fn a_moved_parent_is_told_to_its_child() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    done(dir, &["create", "base.vhd", "--size", "16M"]);
    done(dir, &["create", "other.vhd", "--size", "16M"]);
    write(dir, "base.vhd", 0, 1);
    done(dir, &["create", "child.avhd", "--parent", "base.vhd"]);
    std::fs::create_dir(dir.join("elsewhere")).unwrap();
    std::fs::rename(dir.join("base.vhd"), dir.join("elsewhere/moved.vhd")).unwrap();
    let wrong = disk(dir, &["reparent", "child.avhd", "--parent", "other.vhd"]);
    assert!(err(&wrong).contains("its content would be destroyed"), "{}", err(&wrong));
    assert_eq!(wrong.status.code(), Some(5));
    let planned = disk(dir, &["reparent", "child.avhd", "--parent", "other.vhd", "--dry-run"]);
    assert_eq!(
        (planned.status.code(), err(&planned)),
        (Some(5), err(&wrong)),
        "a plan is refused like the work"
    );
    done(dir, &["reparent", "child.avhd", "--parent", "elsewhere/moved.vhd", "--dry-run"]);
    assert!(Disk::open(&dir.join("child.avhd"), DiskOptions::read_only()).is_err());
    done(dir, &["reparent", "child.avhd", "--parent", "elsewhere/moved.vhd"]);
    assert_eq!(byte(dir, "child.avhd", 0), 1);
}

/// Whatever writes to it destroys what its child reads.
#[test]
fn a_parent_is_shown_for_reading_only() {
    for (base, child) in [("base.vhd", "child.avhd"), ("base.vhdx", "child.avhdx")] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        done(dir, &["create", base, "--size", "16M"]);
        done(dir, &["create", child, "--parent", base]);
        std::fs::create_dir(dir.join("shown")).unwrap();
        for command in [["mount", base, "shown"].as_slice(), &["serve", base, "--socket", "socket"]] {
            let refused = disk(dir, command);
            assert_eq!(refused.status.code(), Some(5), "{command:?}: {}", err(&refused));
            let said = err(&refused);
            assert!(
                said.contains("is the parent of") && said.contains(child) && said.contains("--read-only"),
                "{said}"
            );
        }
        // What its file systems do not need is read by the child too.
        let refused = disk(dir, &["compact", base, "--free-space"]);
        assert_eq!(refused.status.code(), Some(5), "{}", err(&refused));
        let told = disk(dir, &["compact", child, "--free-space"]);
        assert!(
            told.status.success() && err(&told).contains("it holds nothing that is known"),
            "{}",
            err(&told)
        );
    }
}

#[test]
fn a_row_is_merged_down_to_its_first_disk_and_a_branch_is_not() {
    for (base, child) in [("base.vhd", "avhd"), ("base.vhdx", "avhdx")] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        done(dir, &["create", base, "--size", "16M"]);
        let lone = disk(dir, &["merge", base, "--subtree"]);
        assert_eq!(lone.status.code(), Some(5), "{}", err(&lone));
        write(dir, base, 0, 1);
        let name = |name: &str| format!("{name}.{child}");
        let (one, two, three, branch) = (name("one"), name("two"), name("three"), name("branch"));
        for (parent, child, at, byte) in
            [(base, &one, 3 << 20, 2), (one.as_str(), &two, 6 << 20, 3), (two.as_str(), &three, 9 << 20, 4)]
        {
            done(dir, &["create", child, "--parent", parent]);
            write(dir, child, at, byte);
        }
        done(dir, &["create", &branch, "--parent", &one]);
        let refused = disk(dir, &["merge", base, "--subtree"]);
        assert_eq!(refused.status.code(), Some(5), "{}", err(&refused));
        assert!(err(&refused).contains(&two) && err(&refused).contains(&branch), "{}", err(&refused));
        assert_eq!(byte(dir, &three, 9 << 20), 4, "nothing was begun");
        let into = disk(dir, &["merge", &three, "--into", base]);
        assert_eq!(into.status.code(), Some(5), "{}", err(&into));
        assert!(dir.join(&three).exists(), "nothing was begun of a row that cannot be ended");
        std::fs::remove_file(dir.join(&branch)).unwrap();

        let plan = done(dir, &["merge", base, "--subtree", "--dry-run"]);
        assert!(plan.find(&three) < plan.find(&one) && plan.contains(&two), "{plan}");
        done(dir, &["merge", base, "--subtree"]);
        assert_eq!([0, 3 << 20, 6 << 20, 9 << 20].map(|at| byte(dir, base, at)), [1, 2, 3, 4]);
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1);
    }
}

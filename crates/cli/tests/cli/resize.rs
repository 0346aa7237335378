//! `backstay disk resize` and `compact`.

use crate::support::{backstay, err, out};
use backstay_disk::{Backend, Disk, DiskOptions};
use std::path::Path;
use std::process::Output;

fn disk(folder: &Path, args: &[&str]) -> Output {
    backstay(&["disk"]).args(args).current_dir(folder).output().unwrap()
}

fn done(folder: &Path, args: &[&str]) -> String {
    let output = disk(folder, args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", err(&output));
    out(&output)
}

fn refused(folder: &Path, args: &[&str], code: i32) -> String {
    let output = disk(folder, args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", err(&output));
    err(&output)
}

fn write(folder: &Path, name: &str, offset: u64, byte: u8) {
    let options = DiskOptions { runtime_dir: DiskOptions::default_runtime_dir(), ..DiskOptions::default() };
    let disk = Disk::open(&folder.join(name), options).unwrap();
    disk.write(offset, &vec![byte; 1 << 20]).unwrap();
    disk.close().unwrap();
}

fn size(folder: &Path, name: &str) -> u64 {
    Disk::open(&folder.join(name), DiskOptions::read_only()).unwrap().size()
}

#[test]
fn a_disk_is_resized_and_a_refusal_names_what_would_be_lost() {
    for name in ["a.vhd", "a.vhdx"] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        done(dir, &["create", name, "--size", "64M"]);
        write(dir, name, 9 << 20, 1);
        let plan = done(dir, &["resize", name, "80M", "--dry-run"]);
        assert!(plan.contains("67108864 bytes, a disk of 83886080 bytes"), "{plan}");
        assert_eq!(size(dir, name), 64 << 20);
        done(dir, &["resize", name, "80M"]);
        assert_eq!(size(dir, name), 80 << 20);
        let lost = refused(dir, &["resize", name, "9M"], 5);
        assert!(lost.contains("1048576 bytes of data at 9437184") && lost.contains("10485760"), "{lost}");
        assert!(refused(dir, &["resize", name, "1000"], 2).contains("multiple of 512"));
        refused(dir, &["resize", name], 2);
        refused(dir, &["resize", name, "10M", "--minimum"], 2);
        let plan = done(dir, &["resize", name, "--minimum", "--dry-run"]);
        assert!(plan.contains("it could have 10485760 bytes: there ends data"), "{plan}");
        done(dir, &["resize", name, "--minimum"]);
        assert_eq!(size(dir, name), 10 << 20);
        let child = format!("b.a{}", name.trim_start_matches("a."));
        done(dir, &["create", &child, "--parent", name]);
        assert!(refused(dir, &["resize", name, "80M"], 5).contains(&child));
        refused(dir, &["resize", "gone.vhdx", "80M"], 3);
    }
}

#[test]
fn a_disk_is_compacted() {
    for name in ["a.vhd", "a.vhdx"] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        done(dir, &["create", name, "--size", "64M", "--block-size", "1M"]);
        for at in [1, 2, 3, 4, 5] {
            write(dir, name, at << 20, 7);
        }
        for at in [1, 3] {
            write(dir, name, at << 20, 0);
        }
        let len = || std::fs::metadata(dir.join(name)).unwrap().len();
        let before = len();
        let plan = done(dir, &["compact", name, "--dry-run"]);
        assert!(plan.contains("drop 2 of 5 blocks") && plan.contains("move 2 blocks"), "{plan}");
        assert_eq!(len(), before);
        done(dir, &["compact", name, "--rate", "1G"]);
        assert!(before - len() >= 2 << 20, "{before} → {}", len());
        let disk = Disk::open(&dir.join(name), DiskOptions::read_only()).unwrap();
        let read = |at: u64| {
            let mut sector = [0; 512];
            disk.read(at << 20, &mut sector).unwrap();
            sector[0]
        };
        assert_eq!([0, 1, 2, 3, 4, 5].map(read), [0, 0, 7, 0, 7, 7]);
        done(dir, &["create", "fixed.vhdx", "--size", "4M", "--type", "fixed"]);
        assert!(refused(dir, &["compact", "fixed.vhdx"], 5).contains("fixed disk"));
        std::fs::remove_file(dir.join("fixed.vhdx")).unwrap();
    }
}

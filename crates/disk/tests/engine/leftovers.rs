//! A process that is killed while it makes a file leaves one that nobody asked for. The next one clears it away.

use crate::support::{child_of, dynamic, folder, open, other_process, report, stamp};
use backstay_disk::{Backend, ConvertRequest, ConvertTo, DiskOptions, convert, fs::HostFs};
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::AtomicBool,
};

const SIZE: u64 = 32 << 20;

/// The process that is killed in the middle of a conversion.
#[test]
#[ignore = "run by the other tests of this file, as the process they kill"]
fn converter() {
    let (Some(source), Some(target)) =
        (std::env::var_os("BACKSTAY_SOURCE"), std::env::var_os("BACKSTAY_TARGET"))
    else {
        return;
    };
    let request = ConvertRequest::new(source.into(), target.into(), ConvertTo::Raw);
    let stuck = |_| {
        eprintln!("under way");
        loop {
            std::thread::park();
        }
    };
    convert(&HostFs::shared(), &request, &stuck, &AtomicBool::new(false)).unwrap();
}

fn start_converter(source: &Path, target: &Path) -> Child {
    let mut command = other_process("leftovers::converter");
    command.env("BACKSTAY_SOURCE", source).env("BACKSTAY_TARGET", target);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "under way"), "the conversion begins");
    child
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names
}

#[test]
fn the_next_one_removes_what_a_killed_process_left_and_nothing_else() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let source = dynamic(folder.path(), "a.vhd", SIZE);
    let disk = open(&source, DiskOptions::default());
    disk.write(0, &stamp(0, 1 << 20, 1)).unwrap();
    disk.close().unwrap();
    let mut killed = start_converter(&source, &path("b.raw"));
    let mut alive = start_converter(&source, &path("c.raw"));
    assert_eq!(names(folder.path()).len(), 3, "the source and two files under way");

    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(names(folder.path()).len(), 3, "the death itself removes nothing");
    assert!(!path("b.raw").exists());
    child_of(&source, &path("d.avhd"));
    let after = names(folder.path());
    assert_eq!(after.len(), 3, "only the file that is worked on is left beside the disks: {after:?}");
    assert!(path("d.avhd").exists());

    let again = ConvertRequest::new(source, path("b.raw"), ConvertTo::Raw);
    let done = convert(&HostFs::shared(), &again, &|_| {}, &AtomicBool::new(false));
    done.unwrap_or_else(|error| panic!("{}", report(&error)));
    alive.kill().unwrap();
    alive.wait().unwrap();
    child_of(&path("a.vhd"), &path("e.avhd"));
    assert_eq!(names(folder.path()), ["a.vhd", "b.raw", "d.avhd", "e.avhd"].map(path));
}

//! Finding parents, on an imagined file system.

use std::{
    collections::BTreeMap,
    error::Error,
    io,
    path::{Path, PathBuf},
};

use backstay_vhd::{
    LocatorKind, ParentLink, ParentLocator, VhdTime,
    parent::{
        CandidateSource, ParentError, ParentGate, ParentIdentity, ParentSearch, PathMapping, candidates, find,
    },
};
use uuid::Uuid;

const PARENT: Uuid = Uuid::from_u128(7);

/// Paths and what is there: a disk, a link, or junk.
#[derive(Clone)]
enum File {
    Disk(Uuid),
    Link(&'static str),
    Junk,
}

struct World(BTreeMap<PathBuf, File>);

fn world(files: &[(&str, File)]) -> World {
    World(files.iter().map(|(path, file)| (PathBuf::from(path), file.clone())).collect())
}

impl ParentGate for World {
    fn real_path(&self, path: &Path) -> io::Result<PathBuf> {
        match self.0.get(path) {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(File::Link(to)) => Ok(PathBuf::from(to)),
            Some(_) => Ok(path.to_owned()),
        }
    }
    fn match_case(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let lower = path.to_str().unwrap().to_lowercase();
        Ok(self.0.keys().find(|have| have.to_str().unwrap().to_lowercase() == lower).cloned())
    }
    fn identify(&self, path: &Path) -> Result<ParentIdentity, Box<dyn Error + Send + Sync>> {
        match self.0.get(path) {
            Some(File::Disk(unique_id)) => {
                Ok(ParentIdentity { unique_id: *unique_id, modified: Some(VhdTime(1000)) })
            }
            _ => Err("this is not a VHD".into()),
        }
    }
}

fn link(locators: &[(LocatorKind, &str)], unicode_name: &str) -> ParentLink {
    let locators = locators
        .iter()
        .enumerate()
        .map(|(slot, (kind, path))| ParentLocator {
            slot,
            kind: *kind,
            path: Some((*path).to_owned()),
            offset: 0,
            reserved: 512,
        })
        .collect();
    ParentLink { unique_id: PARENT, time_stamp: VhdTime(0), unicode_name: unicode_name.into(), locators }
}

fn windows_link() -> ParentLink {
    link(
        &[(LocatorKind::Absolute, "D:\\VMs\\Base\\disk.vhd"), (LocatorKind::Relative, "..\\Base\\disk.vhd")],
        "D:\\VMs\\Base\\disk.vhd",
    )
}

fn search() -> ParentSearch {
    ParentSearch {
        child_folder: "/vm/Snapshots".into(),
        path_map: vec![
            PathMapping { from: "d:/vms".into(), to: "/import".into() },
            PathMapping { from: "\\\\Server\\share\\".into(), to: "/mnt/share".into() },
        ],
        ..ParentSearch::default()
    }
}

fn paths(link: &ParentLink, search: &ParentSearch) -> Vec<String> {
    candidates(link, search).iter().map(|candidate| candidate.path.to_str().unwrap().to_owned()).collect()
}

#[test]
fn the_order_is_relative_known_mapped_same_folder() {
    let mut search = search();
    search.known.push((PARENT, "/elsewhere/base.vhd".into()));
    search.known.push((Uuid::from_u128(8), "/not/this.vhd".into()));
    assert_eq!(
        paths(&windows_link(), &search),
        ["/vm/Base/disk.vhd", "/elsewhere/base.vhd", "/import/Base/disk.vhd", "/vm/Snapshots/disk.vhd"]
    );
}

#[test]
fn stored_paths_of_all_kinds_are_understood() {
    let of = |kind, text| paths(&link(&[(kind, text)], ""), &search());
    use LocatorKind::{Absolute, MacUrl, Relative};
    assert_eq!(of(Relative, ".\\base.vhd"), ["/vm/Snapshots/base.vhd"]);
    assert_eq!(of(Relative, "base.vhd"), ["/vm/Snapshots/base.vhd"]);
    assert_eq!(of(Relative, "./odd\\name.vhd"), ["/vm/Snapshots/odd\\name.vhd"]);
    assert_eq!(of(Absolute, "./uuid.vhd"), ["/vm/Snapshots/uuid.vhd"], "Xen keeps relative paths there");
    assert_eq!(of(Absolute, "/disks/a\\b.vhd"), ["/disks/a\\b.vhd", "/vm/Snapshots/a\\b.vhd"]);
    assert_eq!(of(Absolute, "\\\\?\\D:\\VMS\\b.vhd"), ["/import/b.vhd", "/vm/Snapshots/b.vhd"]);
    assert_eq!(of(Absolute, "\\\\?\\UNC\\server\\SHARE\\b.vhd"), ["/mnt/share/b.vhd", "/vm/Snapshots/b.vhd"]);
    assert_eq!(
        of(Absolute, "\\\\server\\shareholder\\b.vhd"),
        ["/vm/Snapshots/b.vhd"],
        "not below the share"
    );
    assert_eq!(of(Absolute, "E:\\b.vhd"), ["/vm/Snapshots/b.vhd"]);
    assert_eq!(of(MacUrl, "file://localhost/disks/b.vhd"), ["/disks/b.vhd"]);
    assert_eq!(paths(&link(&[], "C:\\x\\base.vhd"), &search()), ["/vm/Snapshots/base.vhd"]);
    assert_eq!(paths(&link(&[], ""), &search()), [""; 0]);
    assert_eq!(paths(&link(&[], ".."), &search()), [""; 0]);
}

#[test]
fn the_unique_id_decides() {
    let gate = world(&[
        ("/vm/Base/disk.vhd", File::Disk(Uuid::from_u128(99))),
        ("/import/Base/disk.vhd", File::Junk),
        ("/vm/Snapshots/disk.vhd", File::Disk(PARENT)),
    ]);
    let found = find(&windows_link(), &search(), &gate).unwrap();
    assert_eq!(found.path, Path::new("/vm/Snapshots/disk.vhd"));
    assert_eq!(found.source, CandidateSource::SameFolder);
    assert!(!found.time_differs, "no time was stored");
    assert_eq!(found.tried.len(), 2);
}

#[test]
fn case_matters_only_where_it_can_be_kept() {
    let gate = world(&[("/vm/BASE/Disk.VHD", File::Disk(PARENT))]);
    assert_eq!(find(&windows_link(), &search(), &gate).unwrap().path, Path::new("/vm/BASE/Disk.VHD"));
    let gate = world(&[
        ("/vm/BASE/Disk.VHD", File::Disk(Uuid::from_u128(1))),
        ("/vm/Base/disk.vhd", File::Disk(PARENT)),
    ]);
    assert_eq!(find(&windows_link(), &search(), &gate).unwrap().path, Path::new("/vm/Base/disk.vhd"));
}

#[test]
fn another_time_is_a_warning() {
    let gate = world(&[("/vm/Base/disk.vhd", File::Disk(PARENT))]);
    for (stored, differs) in [(0, false), (1000, false), (999, true)] {
        let link = ParentLink { time_stamp: VhdTime(stored), ..windows_link() };
        assert_eq!(find(&link, &search(), &gate).unwrap().time_differs, differs, "{stored}");
    }
}

#[test]
fn every_path_tried_is_told_with_its_reason() {
    let gate = world(&[
        ("/vm/Base/disk.vhd", File::Disk(Uuid::from_u128(99))),
        ("/import/Base/disk.vhd", File::Junk),
    ]);
    let error: ParentError = find(&windows_link(), &search(), &gate).unwrap_err();
    let text = error.to_string();
    assert_eq!(
        text,
        "the parent disk 00000000-0000-0000-0000-000000000007 was not found; tried
  /vm/Base/disk.vhd (the relative path stored in the disk): it is another disk, 00000000-0000-0000-0000-000000000063
  /import/Base/disk.vhd (the absolute path stored in the disk, through the path map): this is not a VHD
  /vm/Snapshots/disk.vhd (the stored file name, in the folder of the disk): there is no such file
put the parent, or a symbolic link to it, at one of these places"
    );
}

#[test]
fn a_confined_search_never_leaves_its_folder() {
    let confined = ParentSearch { root: Some("/vm/Snapshots".into()), ..search() };
    let gate = world(&[
        ("/vm/Base/disk.vhd", File::Disk(PARENT)),
        ("/etc/passwd.vhd", File::Disk(PARENT)),
        ("/vm/Snapshots/link.vhd", File::Link("/etc/passwd.vhd")),
    ]);
    for text in
        ["..\\Base\\disk.vhd", "../Base/disk.vhd", "x\\..\\..\\Base\\disk.vhd", "link.vhd", "/etc/passwd.vhd"]
    {
        let error = find(&link(&[(LocatorKind::Absolute, text)], ""), &confined, &gate).unwrap_err();
        assert!(error.to_string().contains("outside of the folder"), "{text}: {error}");
        find(&link(&[(LocatorKind::Relative, text)], ""), &confined, &gate).expect_err(text);
    }
    assert!(find(&link(&[(LocatorKind::Relative, "..\\Base\\disk.vhd")], ""), &search(), &gate).is_ok());
}

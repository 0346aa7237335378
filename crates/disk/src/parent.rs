//! Finding the parent of a differencing disk.
//!
//! Order: the path map of the caller, the relative locator from the child's real folder, the absolute one, the bare name
//! in the child's folder. Names that Windows wrote are matched without case where the exact one is missing.

use crate::fs::{FileSystem, folder_of};
use backstay_vhd::{LocatorKind, ParentLink};
use std::{
    io,
    path::{Component, Path, PathBuf},
};

/// Where the parent may be, best first. `child` is the real path of the child, links resolved.
pub(crate) fn candidates(link: &ParentLink, child: &Path, map: &[(String, PathBuf)]) -> Vec<PathBuf> {
    let folder = folder_of(child);
    let mut found = Vec::new();
    let mut add = |path: PathBuf| {
        if !path.as_os_str().is_empty() && !found.contains(&path) {
            found.push(path);
        }
    };
    let text = |kind| link.locator(kind).filter(|text| !text.is_empty());
    let absolute = [text(LocatorKind::Absolute), text(LocatorKind::Absolute8Bit)];
    let stored = || absolute.iter().flatten().copied().chain([link.unicode_name.as_str()]);

    for path in stored().filter_map(|text| mapped(text, map)) {
        add(path);
    }
    let relative = [text(LocatorKind::Relative), text(LocatorKind::Relative8Bit)];
    for text in relative.iter().flatten() {
        add(folder.join(unix(text)));
    }
    for text in stored().chain(text(LocatorKind::MacUrl).map(|url| url.trim_start_matches("file://"))) {
        if text.starts_with('/') {
            add(PathBuf::from(text));
        } else if !is_windows_absolute(text) && !text.is_empty() {
            // Xen keeps a relative path where an absolute one belongs.
            add(folder.join(unix(text)));
        }
    }
    for text in relative.iter().flatten().copied().chain(stored()) {
        if let Some(name) = text.rsplit(['\\', '/']).next().filter(|name| !name.is_empty()) {
            add(folder.join(name));
        }
    }
    found
}

fn unix(text: &str) -> PathBuf {
    PathBuf::from(text.replace('\\', "/")).components().filter(|part| *part != Component::CurDir).collect()
}

fn is_windows_absolute(text: &str) -> bool {
    let bytes = text.as_bytes();
    text.starts_with(r"\\") || matches!(bytes, [drive, b':', ..] if drive.is_ascii_alphabetic())
}

/// What the caller's map makes of a stored path.
fn mapped(text: &str, map: &[(String, PathBuf)]) -> Option<PathBuf> {
    let text = text.strip_prefix(r"\\?\").unwrap_or(text);
    map.iter().find_map(|(from, to)| {
        let from = from.trim_end_matches(['\\', '/']);
        let head = text.get(..from.len())?;
        let rest = text.get(from.len()..)?;
        let whole_names = rest.is_empty() || rest.starts_with(['\\', '/']);
        (head.eq_ignore_ascii_case(from) && whole_names).then(|| {
            let rest = rest.trim_start_matches(['\\', '/']);
            if rest.is_empty() { to.clone() } else { to.join(unix(rest)) }
        })
    })
}

/// The existing file that `path` means: itself, or one whose names differ only in case.
pub(crate) fn existing(fs: &dyn FileSystem, path: &Path) -> io::Result<PathBuf> {
    match fs.metadata(path) {
        Ok(_) => return Ok(path.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut real = PathBuf::new();
    for part in path.components() {
        let Component::Normal(name) = part else {
            real.push(part);
            continue;
        };
        let exact = real.join(name);
        if fs.metadata(&exact).is_ok() {
            real = exact;
            continue;
        }
        let wanted = name.to_string_lossy().to_lowercase();
        let folder = if real.as_os_str().is_empty() { Path::new(".") } else { &real };
        let mut same: Vec<_> = fs
            .list(folder)?
            .into_iter()
            .filter(|name| name.to_string_lossy().to_lowercase() == wanted)
            .collect();
        same.sort();
        match same.into_iter().next() {
            Some(name) => real.push(name),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::HostFs;
    use backstay_vhd::{ParentLocator, VhdTime};
    use uuid::Uuid;

    fn link(name: &str, locators: &[(LocatorKind, &str)]) -> ParentLink {
        let locators = locators.iter().enumerate().map(|(slot, (kind, text))| ParentLocator {
            slot,
            kind: *kind,
            path: Some((*text).to_owned()),
            offset: 0,
            reserved: 0,
        });
        ParentLink {
            unique_id: Uuid::nil(),
            time_stamp: VhdTime(0),
            unicode_name: name.to_owned(),
            locators: locators.collect(),
        }
    }

    #[test]
    fn windows_paths_are_tried_in_order() {
        let link = link(
            r"D:\VMs\Base\root.vhd",
            &[(LocatorKind::Absolute, r"D:\VMs\Base\root.vhd"), (LocatorKind::Relative, r"..\Base\root.vhd")],
        );
        let map = [(r"d:\vms\".to_owned(), PathBuf::from("/srv"))];
        let tried = candidates(&link, Path::new("/vm/one/disk.avhd"), &map);
        let expected = ["/srv/Base/root.vhd", "/vm/one/../Base/root.vhd", "/vm/one/root.vhd"];
        assert_eq!(tried, expected.map(PathBuf::from));
        let other = [(r"D:\VM".to_owned(), PathBuf::from("/srv"))];
        assert_eq!(candidates(&link, Path::new("/vm/one/disk.avhd"), &other).len(), 2);
    }

    #[test]
    fn xen_keeps_a_relative_path_in_the_absolute_locator() {
        let link = link("base.vhd", &[(LocatorKind::Absolute, "./base.vhd")]);
        assert_eq!(candidates(&link, Path::new("/sr/leaf.vhd"), &[]), [PathBuf::from("/sr/base.vhd")]);
    }

    #[test]
    fn case_is_ignored_only_where_the_exact_name_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("Base")).unwrap();
        std::fs::write(folder.path().join("Base/ROOT.VHD"), b"").unwrap();
        let found = existing(&HostFs, &folder.path().join("base/Root.vhd")).unwrap();
        assert_eq!(found, folder.path().join("Base/ROOT.VHD"));
        std::fs::write(folder.path().join("Base/Root.vhd"), b"").unwrap();
        let found = existing(&HostFs, &folder.path().join("base/Root.vhd")).unwrap();
        assert_eq!(found, folder.path().join("Base/Root.vhd"));
        assert!(existing(&HostFs, &folder.path().join("base/other.vhd")).is_err());
    }
}

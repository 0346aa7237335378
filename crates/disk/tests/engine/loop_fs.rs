//! File systems of a test's own, in a file.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A mounted file system that only this thread, and the threads and processes that it starts, can see. It goes with the thread,
/// however that ends.
pub struct LoopFs {
    folder: tempfile::TempDir,
    pub kind: &'static str,
}

impl LoopFs {
    /// `kind` is `btrfs` or `xfs`. None, and a line that says why, where this machine cannot do it.
    pub fn mount(kind: &'static str, mib: u64) -> Option<Self> {
        let folder = crate::support::folder();
        let (image, place) = (folder.path().join("image"), folder.path().join("mounted"));
        std::fs::create_dir(&place).unwrap();
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let make = format!("mkfs.{kind}");
        // Debian keeps them where not everybody looks.
        let made =
            run(Command::new(&make).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").arg("-q").arg(&image));
        let mounted = made
            .and_then(|()| own_names())
            .and_then(|()| run(Command::new("mount").args(["-o", "loop"]).args([&image, &place])));
        match mounted {
            Ok(()) => Some(Self { folder, kind }),
            Err(why) => {
                println!("skipped: no {kind} of our own: {why}");
                None
            }
        }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Bytes that are free when everything is written out.
    pub fn free(&self) -> u64 {
        run(Command::new("sync").arg("-f").arg(self.path())).unwrap();
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        stat.f_bfree * stat.f_frsize
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        // What is still open keeps it until then.
        let _ends_with_the_thread = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Mounts of this thread are its own from now on.
fn own_names() -> Result<(), String> {
    #[expect(unsafe_code, reason = "the safe function is deprecated")]
    // SAFETY: no memory is shared or unshared by it; file descriptors stay as they are.
    let unshared = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) };
    unshared.map_err(|error| format!("a mount namespace: {error}"))?;
    run(Command::new("mount").args(["--make-rprivate", "/"]))
}

/// Where the pages of a file are on its file system.
#[derive(Debug, Default)]
pub struct Places {
    /// Pages of the device.
    pub pages: std::collections::BTreeSet<u64>,
    /// Those of them that the file system says another file has too.
    pub shared: std::collections::BTreeSet<u64>,
}

/// What `filefrag` says.
pub fn places(path: &Path) -> Places {
    let mut command = Command::new("filefrag");
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(["-v", "-s", "-b4096"]).arg(path);
    let output = command.output().unwrap();
    assert!(output.status.success(), "filefrag: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let mut places = Places::default();
    // "   0:        0..     255:      34816..     35071:    256:             last,shared,eof"
    for line in text.lines() {
        let fields: Vec<&str> = line.split(':').map(str::trim).collect();
        let [number, _, physical, length, ..] = fields[..] else { continue };
        let (Ok(_), Ok(length)) = (number.parse::<u64>(), length.parse::<u64>()) else { continue };
        let flags = fields.last().copied().unwrap_or_default();
        let first: u64 = physical.split("..").next().unwrap().trim().parse().unwrap();
        if flags.contains("inline") || flags.contains("unwritten") {
            continue;
        }
        places.pages.extend(first..first + length);
        if flags.contains("shared") {
            places.shared.extend(first..first + length);
        }
    }
    places
}

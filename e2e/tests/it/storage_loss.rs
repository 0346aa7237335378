//! The storage of a disk fails with I/O errors and comes back: the guest stands still meanwhile and never sees an error.
//! The storage is a file of a FUSE file system (nbdfuse) whose server fails on demand (nbdkit's error filter).

use backstay_e2e::{Host, Micro, wait_for};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const DATA: u8 = 0x81;

/// A file whose reads and writes fail as long as another file exists.
struct Shaky {
    folder: tempfile::TempDir,
    file: PathBuf,
    server: Child,
    mount: Child,
}

impl Shaky {
    /// `None` (and a printed line) where it cannot be had.
    fn over(backing: &Path) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("bs-shaky-").tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (file, socket) = (at("data.vhd"), at("s"));
        fs::write(&file, "").unwrap();
        let quiet = |program: &str| {
            let mut command = Command::new(program);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let server = quiet("nbdkit")
            .args(["-f", "--filter=error", "-U"])
            .arg(&socket)
            .arg("file")
            .arg(backing)
            .args(["error=EIO", "error-rate=100%"])
            .arg(format!("error-file={}", at("broken").display()))
            .spawn();
        let Ok(server) = server else {
            println!("skipped: nbdkit is not installed");
            return None;
        };
        let mut this = Self { folder, file, server, mount: quiet("true").spawn().unwrap() };
        wait_for("nbdkit", || socket.exists().then_some(()));
        let mount = quiet("nbdfuse").arg(&this.file).arg("--unix").arg(&socket).spawn();
        let Ok(mount) = mount else {
            println!("skipped: nbdfuse is not installed");
            return None;
        };
        this.mount = mount;
        let length = fs::metadata(backing).unwrap().len();
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !fs::metadata(&this.file).is_ok_and(|file| file.len() == length) {
            if std::time::Instant::now() > limit {
                println!("skipped: FUSE file systems cannot be mounted here");
                return None;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Some(this)
    }

    fn breaks(&self) {
        fs::write(self.folder.path().join("broken"), "").unwrap();
    }

    fn works(&self) {
        fs::remove_file(self.folder.path().join("broken")).unwrap();
    }
}

impl Drop for Shaky {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.file).output();
        for child in [&mut self.mount, &mut self.server] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_guest_stands_still_while_its_storage_fails_and_sees_no_error() {
    let host = Host::start();
    let backing = host.folder().join("backing.vhd");
    host.ok(&["disk", "create", backing.to_str().unwrap(), "--size", "8M", "--type", "fixed"]);
    let Some(storage) = Shaky::over(&backing) else { return };
    host.create_micro("m", "scsi:0:0", &["--disk", &format!("scsi:0:1={}", storage.file.display())]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(DATA, 0x10, 0x31).unwrap();

    for round in 0..3_u8 {
        storage.breaks();
        let socket = host.console("m");
        let byte = 0x32 + round;
        let writer =
            std::thread::spawn(move || Micro::attach(&socket).unwrap().write(DATA, 0x20, byte).unwrap());
        host.wait_state("m", "paused-critical");
        let reason = host.vm("m")["state_reason"].as_str().unwrap_or_default().to_owned();
        assert!(!reason.is_empty(), "why it stands");
        storage.works();
        writer.join().expect("the guest saw no error");
        host.wait_state("m", "running");
        let mut guest = Micro::attach(&host.console("m")).unwrap();
        guest.expect(DATA, 0x20, byte);
        guest.expect(DATA, 0x10, 0x31);
    }
    let told = host.json(&["event", "list", "--vm", "m", "--type", "disk"]);
    let kinds: Vec<_> =
        told.as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["disk.stalled", "disk.recovered"].repeat(3));
    host.ok(&["vm", "turn-off", "m"]);
}

//! A medium that loses sectors below a machine's disk: the kernel's own errors, by a loop device whose file was cut.

use backstay_e2e::Host;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system on a loop device.
struct Volume {
    device: PathBuf,
    medium: PathBuf,
    at: PathBuf,
    mounted: bool,
}

fn run(program: &str, args: &[&str]) -> Option<String> {
    let done = Command::new(program).args(args).output();
    match done {
        Ok(done) if done.status.success() => Some(String::from_utf8_lossy(&done.stdout).into_owned()),
        other => {
            println!("skipped: {program} {args:?} does not work here: {other:?}");
            None
        }
    }
}

impl Volume {
    fn new(folder: &Path) -> Option<Self> {
        let (medium, at) = (folder.join("medium"), folder.join("volume"));
        fs::File::create(&medium).unwrap().set_len(96 << 20).unwrap();
        fs::create_dir(&at).unwrap();
        run("mkfs.ext4", &["-q", "-b", "4096", "-O", "^has_journal", medium.to_str()?])?;
        let device = PathBuf::from(run("losetup", &["-f", "--show", medium.to_str()?])?.trim());
        let mut volume = Self { device, medium, at, mounted: false };
        volume.mount()?;
        Some(volume)
    }

    fn mount(&mut self) -> Option<()> {
        run("mount", &[self.device.to_str()?, self.at.to_str()?])?;
        self.mounted = true;
        Some(())
    }

    fn unmount(&mut self) {
        if std::mem::take(&mut self.mounted) {
            assert!(run("umount", &[self.at.to_str().unwrap()]).is_some());
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.unmount();
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

/// Place of the file's `wanted`th byte on the medium.
fn place(file: &Path, wanted: u64) -> Option<u64> {
    let listed = run("filefrag", &["-v", "-b4096", file.to_str()?])?;
    listed.lines().find_map(|line| {
        let mut fields = line.split(':').skip(1);
        let numbers = |field: &str| -> Option<(u64, u64)> {
            let (from, to) = field.split_once("..")?;
            Some((from.trim().parse().ok()?, to.trim().parse().ok()?))
        };
        let (logical, physical) = (numbers(fields.next()?)?, numbers(fields.next()?)?);
        let block = wanted / 4096;
        (logical.0..=logical.1).contains(&block).then(|| (physical.0 + block - logical.0) * 4096)
    })
}

#[test]
fn a_checkpoint_on_a_failing_medium_is_saved_as_far_as_it_can_be_read() {
    let host = Host::start();
    let Some(mut volume) = Volume::new(host.folder()) else { return };
    // What comes later lies behind it on the medium.
    fs::write(volume.at.join("filler"), vec![1; 24 << 20]).unwrap();
    let raw = host.folder().join("content.raw");
    let content: Vec<u8> = (0..(16u32 << 20) / 512).flat_map(|n| [(n % 250) as u8 + 1; 512]).collect();
    fs::write(&raw, &content).unwrap();
    let disk = volume.at.join("m.vhdx");
    host.ok(&["disk", "convert", raw.to_str().unwrap(), disk.to_str().unwrap(), "--type", "fixed"]);
    host.ok(&["vm", "create", "m", "--memory", "16M", "--no-network", "--disk", disk.to_str().unwrap()]);
    host.ok(&["checkpoint", "create", "m", "c"]);
    let end = fs::metadata(&disk).unwrap().len();
    let lost_from = 13 << 20;
    let (Some(from), Some(last)) = (place(&disk, lost_from), place(&disk, end - 1)) else { return };
    assert!(last > from, "the file system lays it out in order");
    volume.unmount();
    fs::File::options().write(true).open(&volume.medium).unwrap().set_len(from).unwrap();
    volume.mount().unwrap();

    let folder = host.folder().join("out");
    let out = folder.to_str().unwrap();
    let refused = host.refused(5, &["checkpoint", "export", "m", "c", out]);
    assert!(refused.contains("Input/output error") && refused.contains("--skip-bad"), "{refused}");
    assert!(!folder.exists(), "nothing is left of it");

    let said = host.run(&["checkpoint", "export", "m", "c", out, "--skip-bad"]);
    assert_eq!(said.code, 7, "{} {}", said.out, said.err);
    let list = fs::read_to_string(folder.join("unreadable.csv")).unwrap();
    let ranges: Vec<Vec<&str>> = list.lines().skip(1).map(|line| line.split(',').collect()).collect();
    assert_eq!(ranges.len(), 1, "{list}");
    let number = |field: usize| ranges[0][field].parse::<usize>().unwrap();
    let (offset, length) = (number(1), number(2));
    assert_eq!((number(4) as u64, offset + length), (lost_from, 16 << 20), "{list}");
    let copy = folder.join("Virtual Hard Disks/m.vhdx");
    let back = host.folder().join("back.raw");
    host.ok(&["disk", "convert", copy.to_str().unwrap(), back.to_str().unwrap()]);
    let back = fs::read(back).unwrap();
    assert!(back[..offset] == content[..offset], "all before it");
    assert!(back[offset..].iter().all(|byte| *byte == 0));
}

//! `backstay disk convert`: for Azure, from other programs' disks, and from media that lose sectors.

use crate::support::{backstay, err, out};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn disk(folder: &Path, args: &[&str]) -> Output {
    backstay(&["disk"]).args(args).current_dir(folder).output().unwrap()
}

fn done(folder: &Path, args: &[&str]) -> Output {
    let output = disk(folder, args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", err(&output));
    output
}

/// Runs a foreign tool; none where it is not installed.
fn tool(folder: &Path, program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program).args(args).current_dir(folder).output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("skipped: {program} is not here ({error})");
            None
        }
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..len / 512).flat_map(|sector| [u8::try_from(sector % 251).unwrap() + 1; 512]).collect()
}

/// What Azure looks at, read by hand from the last sector.
fn assert_azure_takes(file: &[u8], size: usize) {
    assert_eq!(file.len(), size + 512, "whole MiB and the footer");
    let footer = &file[size..];
    assert_eq!(&footer[..8], b"conectix");
    assert_eq!(footer[16..24], [0xff; 8], "a fixed disk has no header");
    assert_eq!(footer[40..48], (size as u64).to_be_bytes());
    assert_eq!(footer[48..56], (size as u64).to_be_bytes(), "the size now");
    assert_eq!(footer[56..60], [0xff, 0xff, 16, 255], "the geometry that says: take the size");
    assert_eq!(footer[60..64], 2u32.to_be_bytes(), "fixed");
    let sum: u32 =
        footer.iter().enumerate().filter(|(at, _)| !(64..68).contains(at)).map(|(_, b)| u32::from(*b)).sum();
    assert_eq!(footer[64..68], (!sum).to_be_bytes());
}

#[test]
fn a_disk_for_azure_is_fixed_and_of_whole_mebibytes() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    for (len, mib) in [((21 << 20) + 1536, 22), (1 << 20, 20), (24 << 20, 24)] {
        let (source, size) = (content(len), mib << 20);
        std::fs::write(dir.join("a.raw"), &source).unwrap();
        done(dir, &["convert", "a.raw", "a.vhd", "--azure"]);
        let made = std::fs::read(dir.join("a.vhd")).unwrap();
        assert_azure_takes(&made, size);
        assert_eq!(made[..len], source);
        assert!(made[len..size].iter().all(|byte| *byte == 0), "zeros behind it");
        if let Some(seen) = tool(dir, "qemu-img", &["info", "-f", "vpc", "--output=json", "a.vhd"]) {
            let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
            assert_eq!(seen["virtual-size"].as_u64(), Some(size as u64));
        }
        if let Some(seen) = tool(dir, "7zz", &["x", "-tVHD", "-y", "-oout", "a.vhd"]) {
            assert!(seen.status.success(), "{}", out(&seen));
            let file = std::fs::read_dir(dir.join("out")).unwrap().next().unwrap().unwrap().path();
            let read = std::fs::read(file).unwrap();
            assert!(read.len() == size && read[..len] == source, "7-Zip reads the same");
            std::fs::remove_dir_all(dir.join("out")).unwrap();
        }
        std::fs::remove_file(dir.join("a.vhd")).unwrap();
    }
    for (args, word) in [
        (&["convert", "a.raw", "x.vhdx", "--azure"][..], "fixed VHD"),
        (&["convert", "a.raw", "x.vhd", "--azure", "--type", "dynamic"], "fixed VHD"),
    ] {
        let refused = disk(dir, args);
        assert_eq!(refused.status.code(), Some(2), "{}", err(&refused));
        assert!(err(&refused).contains(word), "{}", err(&refused));
    }
    std::fs::File::create(dir.join("big.raw")).unwrap().set_len((2040 << 30) + 512).unwrap();
    let refused = disk(dir, &["convert", "big.raw", "x.vhd", "--azure", "--dry-run"]);
    assert_eq!(refused.status.code(), Some(2), "{}", err(&refused));
    assert!(err(&refused).contains("2040 GiB"), "{}", err(&refused));
}

#[test]
fn a_qcow2_is_converted_and_a_missing_qemu_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    std::fs::write(dir.join("a.raw"), content(3 << 20)).unwrap();
    let Some(made) = tool(dir, "qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2"])
    else {
        return;
    };
    assert!(made.status.success());
    done(dir, &["convert", "a.qcow2", "a.vhdx"]);
    done(dir, &["convert", "a.vhdx", "b.raw"]);
    assert_eq!(std::fs::read(dir.join("b.raw")).unwrap(), content(3 << 20));
    let plan = out(&done(dir, &["convert", "a.qcow2", "c.vhd", "--dry-run"]));
    assert!(plan.contains("a.qcow2 by QEMU, as qcow2") && plan.contains("dynamic VHD"), "{plan}");

    let mut without = backstay(&["disk", "convert", "a.qcow2", "c.vhd"]);
    let refused = without.current_dir(dir).env("PATH", dir).output().unwrap();
    assert_eq!(refused.status.code(), Some(5), "{}", err(&refused));
    assert!(err(&refused).contains("install the package 'qemu-utils'"), "{}", err(&refused));
    assert!(!dir.join("c.vhd").exists());
}

/// A loop device whose file was cut: what is behind the cut cannot be read, and the kernel says so.
struct Cut(PathBuf);

impl Cut {
    fn new(dir: &Path, content: &[u8], good: u64) -> Option<Self> {
        let file = dir.join("medium");
        std::fs::write(&file, content).unwrap();
        let made = tool(dir, "losetup", &["-f", "--show", "medium"])?;
        if !made.status.success() {
            println!("skipped: no loop device can be had here ({})", err(&made).trim());
            return None;
        }
        let device = Self(out(&made).trim().into());
        std::fs::File::options().write(true).open(&file).unwrap().set_len(good).unwrap();
        Some(device)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn a_medium_that_loses_sectors_is_saved_as_far_as_it_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let content = content(8 << 20);
    let good = (6 << 20) + (64 << 10);
    let Some(device) = Cut::new(dir, &content, good) else { return };
    let name = device.0.to_str().unwrap();
    let refused = disk(dir, &["convert", name, "a.vhdx"]);
    assert_eq!(refused.status.code(), Some(5), "{}", err(&refused));
    for word in [name, &format!("from {good} of the disk"), "Input/output error", "--skip-bad"] {
        assert!(err(&refused).contains(word), "{word}: {}", err(&refused));
    }
    assert!(!dir.join("a.vhdx").exists());

    let saved = disk(dir, &["convert", name, "a.vhdx", "--skip-bad", "-o", "csv"]);
    assert_eq!(saved.status.code(), Some(7), "{}", err(&saved));
    let lost = (8 << 20) - good;
    assert_eq!(out(&saved), format!("offset,length,file_offset,file\n{good},{lost},{good},{name}\n"));
    assert!(err(&saved).contains(&format!("{lost} bytes in 1 range could not be read")), "{}", err(&saved));
    done(dir, &["convert", "a.vhdx", "b.raw"]);
    let read = std::fs::read(dir.join("b.raw")).unwrap();
    let good = usize::try_from(good).unwrap();
    assert!(read[..good] == content[..good] && read[good..].iter().all(|byte| *byte == 0));
}

//! Bad input: a clear message that names the thing, the rule and the cure, the right exit code, and nothing half-made.

use crate::FIRST;
use backstay_e2e::{Host, Micro, microguest_image};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes a machine on `disk` and starts it; one of the two has to be refused. Returns the message.
fn refused_with(host: &Host, disk: &Path) -> String {
    let create = ["vm", "create", "bad", "--memory", "16M", "--no-network", "--disk", text(disk)];
    let said = host.run(&create);
    let (code, message) = if said.code == 0 {
        let said = host.run(&["vm", "start", "bad"]);
        assert_ne!(host.state_of("bad"), "running");
        (said.code, said.err)
    } else {
        (said.code, said.err)
    };
    assert!(matches!(code, 1 | 3 | 5), "exit code {code}: {message}");
    let name = disk.file_name().unwrap().to_str().unwrap();
    assert!(message.contains(name), "the message names the file {name}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

#[test]
fn a_corrupt_footer_is_refused() {
    let host = Host::start();
    let disk = host.vhd_from(&microguest_image(), "corrupt.vhd");
    let file = OpenOptions::new().write(true).open(&disk).unwrap();
    let len = file.metadata().unwrap().len();
    // both copies: with one left the disk could be repaired
    file.write_all_at(&[0xFF; 512], len - 512).unwrap();
    file.write_all_at(&[0xFF; 512], 0).unwrap();
    let message = refused_with(&host, &disk);
    assert!(message.contains("footer"), "{message}");
    host.refused(5, &["disk", "info", text(&disk)]);
}

#[test]
fn a_truncated_disk_is_refused_and_can_be_told_by_check() {
    let host = Host::start();
    let disk = host.vhd_from(&microguest_image(), "short.vhd");
    let file = OpenOptions::new().write(true).open(&disk).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    refused_with(&host, &disk);
    let said = host.run(&["disk", "check", text(&disk)]);
    assert_ne!(said.code, 0, "{}{}", said.out, said.err);
}

/// A child with its parent, ready to be spoilt.
fn chain(host: &Host) -> (PathBuf, PathBuf) {
    let parent = host.vhd_from(&microguest_image(), "parent.vhd");
    let child = host.folder().join("child.vhd");
    host.ok(&["disk", "create", text(&child), "--parent", text(&parent)]);
    (parent, child)
}

#[test]
fn a_missing_parent_is_named_with_every_path_tried() {
    let host = Host::start();
    let (parent, child) = chain(&host);
    fs::remove_file(&parent).unwrap();
    let message = refused_with(&host, &child);
    assert!(message.contains("parent.vhd"), "{message}");
}

#[test]
fn a_wrong_parent_is_refused() {
    let host = Host::start();
    let (parent, child) = chain(&host);
    let other = host.vhd_from(&microguest_image(), "other.vhd");
    fs::rename(&other, &parent).unwrap();
    let message = refused_with(&host, &child);
    assert!(message.contains("parent.vhd"), "{message}");
}

#[test]
fn a_disk_in_use_is_refused_and_its_user_is_named() {
    let host = Host::start();
    let disk = host.create_micro("first", "ide:0:0", &[]);
    host.ok(&["vm", "start", "first"]);
    let (mut guest, _) = Micro::booting(&host.console("first"));
    let message = refused_with(&host, &disk);
    assert!(message.contains("first"), "who uses it: {message}");
    guest.write(FIRST, 0x40, 0x12).unwrap();

    // Offline commands keep their hands off it too.
    for command in [["disk", "check"], ["disk", "compact"]] {
        let said = host.run(&[command[0], command[1], text(&disk), "--repair"]);
        assert_ne!(said.code, 0, "{command:?} on a disk in use: {}", said.out);
    }
    guest.expect(FIRST, 0x40, 0x12);
}

#[test]
fn a_parent_in_use_as_a_parent_cannot_be_written() {
    let host = Host::start();
    let (parent, child) = chain(&host);
    let drive = format!("ide:0:0={}", child.display());
    host.ok(&["vm", "create", "m", "--memory", "16M", "--no-network", "--disk", &drive]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x40, 0x12).unwrap();
    let message = refused_with(&host, &parent);
    assert!(message.contains("use"), "{message}");
    guest.expect(FIRST, 0x40, 0x12);
}

#[test]
fn a_deleted_disk_is_named_and_harms_nobody_else() {
    let host = Host::start();
    let gone = host.create_micro("lost", "ide:0:0", &[]);
    host.create_micro("fine", "ide:0:0", &[]);
    fs::remove_file(&gone).unwrap();
    let said = host.run(&["vm", "start", "lost"]);
    assert!(matches!(said.code, 3 | 5), "{said:?}");
    assert!(said.err.contains("lost.vhd"), "{}", said.err);
    assert_ne!(host.state_of("lost"), "running");
    host.ok(&["vm", "start", "fine"]);
    let _ = Micro::booting(&host.console("fine"));
    host.ok(&["vm", "delete", "lost", "--yes"]);
}

#[test]
fn two_machines_with_one_guid_are_refused() {
    let host = Host::start();
    host.create_micro("m", "ide:0:0", &[]);
    let config = PathBuf::from(host.vm("m")["config_file"].as_str().unwrap());
    let copy = host.folder().join("copy").join("Virtual Machines");
    fs::create_dir_all(&copy).unwrap();
    fs::copy(&config, copy.join(config.file_name().unwrap())).unwrap();
    let message = host.refused(5, &["vm", "register", text(copy.parent().unwrap())]);
    let id = host.vm("m")["id"].as_str().unwrap().to_lowercase();
    assert!(message.to_lowercase().contains(&id), "the message names the GUID: {message}");
    assert_eq!(host.json(&["vm", "list"]).as_array().map(Vec::len), Some(1));
}

#[test]
fn odd_names_work_or_are_refused_but_never_escape() {
    let host = Host::start();
    let long = "x".repeat(101);
    let names = [
        "a b",
        "quote'\"s",
        "ünï-çødé 機",
        "percent%20",
        "dollar$HOME`id`",
        "semi;colon|pipe",
        "tab\tname",
        "line\nbreak",
        "..",
        ".",
        "../escape",
        "/etc/passwd",
        "back\\slash",
        "<xml>&amp;",
        "nul\u{1}control",
        "",
        " ",
        &long,
        "CON",
        "*?",
    ];
    for name in names {
        let said = host.run(&["vm", "create", "--memory", "16M", "--no-network", "--", name]);
        assert!(matches!(said.code, 0 | 2), "{name:?}: {said:?}");
        if said.code == 2 {
            assert!(!said.err.trim().is_empty(), "{name:?}: say why");
            continue;
        }
        let vm = host.json(&["vm", "show", "--", name]);
        assert_eq!(vm["name"].as_str(), Some(name), "the name comes back as it was given");
        let config = Path::new(vm["config_file"].as_str().unwrap());
        assert!(
            config.starts_with(host.state()) && config.is_file(),
            "{name:?} lies at {}",
            config.display()
        );
        let id = vm["id"].as_str().unwrap();
        let said = host.run(&["checkpoint", "create", id, "--", name]);
        assert!(matches!(said.code, 0 | 2), "a checkpoint {name:?}: {said:?}");
        host.ok(&["vm", "delete", id, "--yes"]);
    }
    assert!(!host.folder().join("escape").exists());
}

#[test]
fn what_is_not_there_is_said_so() {
    let host = Host::start();
    for command in [
        &["vm", "show", "nobody"][..],
        &["vm", "start", "nobody"],
        &["checkpoint", "create", "nobody"],
        &["checkpoint", "list", "nobody"],
    ] {
        let message = host.refused(3, command);
        assert!(message.contains("nobody"), "{message}");
    }
    host.create_micro("m", "ide:0:0", &[]);
    let message = host.refused(3, &["checkpoint", "apply", "m", "never", "--yes"]);
    assert!(message.contains("never"), "{message}");
    let said = host.run(&["checkpoint", "revert", "m", "--yes"]);
    assert!(matches!(said.code, 3 | 5), "there is no checkpoint: {said:?}");
    host.refused(2, &["vm", "create", "m2", "--memory", "a lot"]);
    let message = host.refused(5, &["vm", "create", "m", "--memory", "16M"]);
    assert!(message.contains('m'), "a second machine of the same name: {message}");
    // Without a terminal nobody can confirm.
    host.refused(2, &["vm", "delete", "m"]);
    assert_eq!(host.state_of("m"), "off");
}

#[test]
fn a_damaged_configuration_hides_nobody() {
    let mut host = Host::start();
    host.create_micro("good", "ide:0:0", &[]);
    host.create_micro("bad", "ide:0:0", &[]);
    let config = host.vm("bad")["config_file"].as_str().unwrap().to_owned();
    host.kill_daemon();
    fs::write(&config, "<configuration><unclosed>").unwrap();
    host.start_daemon();
    let said = host.run(&["vm", "list"]);
    assert_eq!(said.code, 7, "the list is incomplete: {said:?}");
    assert!(said.out.contains("good"), "{said:?}");
    host.ok(&["vm", "start", "good"]);
    let _ = Micro::booting(&host.console("good"));
}

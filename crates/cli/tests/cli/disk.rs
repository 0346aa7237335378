//! `backstay disk`, judged by other people's tools.

use crate::support::{Answer, FakeDaemon, backstay, err, guid, out};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn disk(folder: &Path, args: &[&str]) -> Output {
    backstay(&["disk"]).args(args).current_dir(folder).output().unwrap()
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

fn json_of(folder: &Path, args: &[&str]) -> Value {
    let output = disk(folder, args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", err(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// 5 MiB: some data, zeros, data that ends in the middle of a block.
fn content() -> Vec<u8> {
    let mut bytes = vec![0; 5 << 20];
    for (index, byte) in bytes[..300_000].iter_mut().enumerate() {
        *byte = u8::try_from(index % 251).unwrap();
    }
    bytes[4 << 20..].fill(0xA5);
    bytes
}

#[test]
fn disks_are_made_and_described() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    for (name, kind) in [("d.vhd", "dynamic"), ("f.vhd", "fixed")] {
        let output = disk(dir, &["create", name, "--size", "8M", "--type", kind]);
        assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), ""), "{}", err(&output));
        let info = json_of(dir, &["info", name, "-o", "json"]);
        assert_eq!((info["type"].as_str(), info["size"].as_u64()), (Some(kind), Some(8 << 20)));
        if let Some(seen) = tool(dir, "qemu-img", &["info", "-f", "vpc", "--output=json", name]) {
            let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
            assert_eq!(
                (seen["format"].as_str(), seen["virtual-size"].as_u64()),
                (Some("vpc"), Some(8 << 20))
            );
        }
        let check = disk(dir, &["check", name]);
        assert_eq!(check.status.code(), Some(0), "{}{}", out(&check), err(&check));
    }
    let output = disk(dir, &["create", "child.vhd", "--parent", "d.vhd"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let chain = json_of(dir, &["info", "child.vhd", "--chain", "-o", "json"]);
    assert_eq!(chain.as_array().unwrap().len(), 2);
    assert_eq!(chain[0]["vhd"]["parent"]["unique_id"], chain[1]["vhd"]["unique_id"]);
    let text = out(&disk(dir, &["info", "child.vhd"]));
    assert!(text.contains("differencing") && text.contains("8 MiB (8388608 bytes)"), "{text}");
}

#[test]
fn nothing_is_overwritten_and_bad_values_are_usage_errors() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    std::fs::write(dir.join("there.vhd"), b"precious").unwrap();
    for (args, code, word) in [
        (&["create", "there.vhd", "--size", "1G"][..], 5, "exists already"),
        (&["create", "x.vhd", "--size", "3T"], 2, "2040 GiB"),
        (&["create", "x.vhd", "--size", "1000"], 2, "512"),
        (&["create", "x.vhd", "--size", "1G", "--block-size", "3M"], 2, "block size"),
        (&["create", "x.vhd"], 2, "--size"),
        (&["create", "x.vhd", "--size", "1G", "--parent", "there.vhd"], 2, "--parent"),
        (&["create", "x.vhd", "--parent", "gone.vhd"], 3, "gone.vhd"),
        (&["create", "no/such/folder/x.vhd", "--size", "1G"], 3, "no/such/folder"),
        (&["info", "gone.vhd"], 3, "gone.vhd"),
        (&["info", "there.vhd"], 5, "not a VHD"),
        (&["info", "there"], 3, "there"),
        (&["check", "there.vhd"], 5, "has 1 error"),
        (&["convert", "there.vhd", "x.raw"], 5, "there.vhd"),
        (&["convert", "gone.vhd", "x.raw"], 3, "gone.vhd"),
        (&["create", "x.raw", "--size", "1G", "--type", "fixed"], 2, "--type"),
    ] {
        let output = disk(dir, args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", err(&output));
        assert!(err(&output).contains(word), "{args:?}: {}", err(&output));
    }
    assert_eq!(std::fs::read(dir.join("there.vhd")).unwrap(), b"precious");
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1, "no half-made file is left");
}

#[test]
fn a_dry_run_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let output = disk(dir, &["create", "d.vhd", "--size", "1G", "--dry-run"]);
    assert!(out(&output).contains("d.vhd") && out(&output).contains("footer"), "{}", out(&output));
    std::fs::write(dir.join("r.raw"), content()).unwrap();
    let output = disk(dir, &["convert", "r.raw", "d.vhd", "--dry-run"]);
    assert!(out(&output).contains("dynamic VHD"), "{}{}", out(&output), err(&output));
    assert!(!dir.join("d.vhd").exists());
}

#[test]
fn what_is_converted_reads_the_same_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    std::fs::write(dir.join("r.raw"), content()).unwrap();
    for (from, to, options) in [
        ("r.raw", "dynamic.vhd", &["--block-size", "512K"][..]),
        ("dynamic.vhd", "fixed.vhd", &["--type", "fixed"]),
        ("fixed.vhd", "dynamic.vhdx", &["--block-size", "1M"]),
        ("dynamic.vhdx", "fixed.vhdx", &["--type", "fixed"]),
        ("fixed.vhdx", "again.raw", &[]),
    ] {
        let output = disk(dir, &[&["convert", from, to], options].concat());
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    }
    assert_eq!(std::fs::read(dir.join("again.raw")).unwrap(), content());
    for name in ["dynamic.vhd", "fixed.vhd"] {
        if let Some(output) = tool(dir, "qemu-img", &["compare", "-f", "raw", "-F", "vpc", "r.raw", name]) {
            assert!(output.status.success(), "{name}: {}", out(&output));
        }
    }
    for name in ["dynamic.vhdx", "fixed.vhdx"] {
        if let Some(output) = tool(dir, "qemu-img", &["compare", "-f", "raw", "-F", "vhdx", "r.raw", name]) {
            assert!(output.status.success(), "{name}: {}", out(&output));
        }
    }
    if let Some(output) = tool(dir, "7zz", &["x", "-so", "-tVHD", "dynamic.vhd"]) {
        assert_eq!(output.stdout, content(), "{}", err(&output));
    }
    assert!(std::fs::metadata(dir.join("dynamic.vhd")).unwrap().len() < 3 << 20, "zeros take no space");
}

#[test]
fn a_new_file_has_the_format_that_its_name_says_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    std::fs::write(dir.join("r.raw"), content()).unwrap();
    for (args, text) in [
        (&["create", "a.qcow2", "--size", "1M"][..], "does not tell the format"),
        (&["create", "a", "--size", "1M"], "does not tell the format"),
        (&["convert", "r.raw", "a.vmdk"], "does not tell the format"),
        (&["create", "a.vhdy", "--size", "1M"], "does not tell the format"),
    ] {
        let output = disk(dir, args);
        assert!(matches!(output.status.code(), Some(2 | 5)), "{args:?}: {}", err(&output));
        assert!(err(&output).contains(text), "{args:?}: {}", err(&output));
    }
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1, "nothing is made");
    assert!(disk(dir, &["create", "a.data", "--size", "1M", "--format", "vhd"]).status.success());
    assert!(disk(dir, &["info", "a.data", "--format", "vhd"]).status.success());
}

#[test]
fn a_map_tells_where_each_range_is() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    std::fs::write(dir.join("r.raw"), content()).unwrap();
    assert!(disk(dir, &["convert", "r.raw", "base.vhd"]).status.success());
    assert!(disk(dir, &["create", "top.vhd", "--parent", "base.vhd"]).status.success());
    let map = json_of(dir, &["map", "top.vhd", "-o", "json"]);
    let ranges = map.as_array().unwrap();
    let mut at = 0;
    let base = std::fs::read(dir.join("base.vhd")).unwrap();
    for range in ranges {
        assert_eq!(range["offset"].as_u64(), Some(at), "no gaps: {map}");
        let len = range["length"].as_u64().unwrap();
        let span = |from: u64| usize::try_from(from).unwrap()..usize::try_from(from + len).unwrap();
        let expected = &content()[span(at)];
        if let ("data", Some(offset)) = (range["kind"].as_str().unwrap(), range["file_offset"].as_u64()) {
            assert_eq!(range["depth"], 1, "the child is empty");
            assert!(base[span(offset)] == *expected, "at {at}");
        } else {
            assert!(expected.iter().all(|byte| *byte == 0), "at {at}");
        }
        at += len;
    }
    assert_eq!(at, 5 << 20);
    let own = json_of(dir, &["map", "top.vhd", "--layer", "-o", "json"]);
    assert_eq!(own[0]["kind"], "parent");
}

#[test]
fn damage_is_found_and_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    std::fs::write(dir.join("r.raw"), content()).unwrap();
    assert!(disk(dir, &["convert", "r.raw", "d.vhd"]).status.success());
    let file = std::fs::OpenOptions::new().write(true).open(dir.join("d.vhd")).unwrap();
    let len = file.metadata().unwrap().len();
    // The footer at the end is cut off; the copy at the start is good.
    file.set_len(len - 512).unwrap();
    drop(file);
    let check = disk(dir, &["check", "d.vhd"]);
    assert_eq!(check.status.code(), Some(7), "{}{}", out(&check), err(&check));
    assert!(out(&check).contains("footer-at-end"), "{}", out(&check));
    let json = disk(dir, &["check", "d.vhd", "-o", "json"]);
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (report["usable"].as_bool(), report["findings"][0]["repairable"].as_bool()),
        (Some(true), Some(true))
    );
    let plan = disk(dir, &["check", "d.vhd", "--repair", "--dry-run"]);
    assert!(out(&plan).contains("write"), "{}", out(&plan));
    assert_eq!(std::fs::metadata(dir.join("d.vhd")).unwrap().len(), len - 512, "a dry run");
    let repaired = disk(dir, &["check", "d.vhd", "--repair"]);
    assert_eq!(repaired.status.code(), Some(0), "{}{}", out(&repaired), err(&repaired));
    assert!(disk(dir, &["convert", "d.vhd", "again.raw"]).status.success());
    assert_eq!(std::fs::read(dir.join("again.raw")).unwrap(), content());
}

/// QEMU reads the first header and the first region table only, so it sees what is wrong with them.
#[test]
fn a_vhdx_heals_from_its_copies_and_what_is_in_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    std::fs::write(dir.join("r.raw"), content()).unwrap();
    assert!(disk(dir, &["convert", "r.raw", "d.vhdx", "--block-size", "1M"]).status.success());
    let write = |at: u64, bytes: &[u8]| {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(dir.join("d.vhdx")).unwrap();
        file.write_all_at(bytes, at).unwrap();
    };
    write(64 << 10, &[0x55; 64]);
    write(192 << 10, &[0x55; 64]);
    let qemu = |args: &[&str]| tool(dir, "qemu-img", args).map(|seen| seen.status.success());
    assert!(matches!(qemu(&["check", "-f", "vhdx", "d.vhdx"]), None | Some(false)), "QEMU refuses it");
    let check = disk(dir, &["check", "d.vhdx"]);
    assert_eq!(check.status.code(), Some(7), "{}{}", out(&check), err(&check));
    assert!(
        out(&check).contains("header-copy") && out(&check).contains("region-table-copy"),
        "{}",
        out(&check)
    );
    let plan = disk(dir, &["check", "d.vhdx", "--repair", "--dry-run"]);
    assert!(out(&plan).contains("a header") && out(&plan).contains("a region table"), "{}", out(&plan));
    assert_eq!(disk(dir, &["check", "d.vhdx"]).status.code(), Some(7), "a dry run");
    let repaired = disk(dir, &["check", "d.vhdx", "--repair"]);
    assert_eq!(repaired.status.code(), Some(0), "{}{}", out(&repaired), err(&repaired));
    assert!(matches!(qemu(&["check", "-f", "vhdx", "d.vhdx"]), None | Some(true)));
    assert!(matches!(qemu(&["compare", "-f", "vhdx", "-F", "raw", "d.vhdx", "r.raw"]), None | Some(true)));

    // The entry of the first block leads behind the end of the file.
    write(3 << 20, &((900u64 << 20) | 6).to_le_bytes());
    let left = disk(dir, &["check", "d.vhdx", "--repair"]);
    assert_eq!(left.status.code(), Some(5), "{}{}", out(&left), err(&left));
    assert!(out(&left).contains("block 0 ends at") && out(&left).contains("no "), "{}", out(&left));
    let plan = disk(dir, &["check", "d.vhdx", "--repair", "--dry-run"]);
    assert!(out(&plan).contains("not repaired: complete: "), "{}", out(&plan));
}

#[test]
fn a_missing_parent_is_told_by_check_and_info_still_works() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    assert!(disk(dir, &["create", "base.vhd", "--size", "8M"]).status.success());
    assert!(disk(dir, &["create", "top.vhd", "--parent", "base.vhd"]).status.success());
    std::fs::rename(dir.join("base.vhd"), dir.join("elsewhere.vhd")).unwrap();
    assert_eq!(disk(dir, &["info", "top.vhd"]).status.code(), Some(0));
    for args in [&["info", "top.vhd", "--chain"][..], &["check", "top.vhd"], &["map", "top.vhd"]] {
        let output = disk(dir, args);
        assert_eq!(output.status.code(), Some(5), "{args:?}");
        let text = out(&output) + &err(&output);
        assert!(text.contains("base.vhd") && text.contains("not found"), "{text}");
    }
}

/// Serves `args` until it listens.
fn serve(folder: &Path, args: &[&str]) -> std::process::Child {
    let mut child = backstay(&["disk", "serve", "--socket", "s.sock"])
        .args(args)
        .current_dir(folder)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("Serving"), "{line}");
    child
}

fn end(mut child: std::process::Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_served_disk_is_written_by_qemu_and_closed_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    assert!(disk(dir, &["create", "base.vhd", "--size", "8M"]).status.success());
    assert!(disk(dir, &["create", "d.vhd", "--parent", "base.vhd"]).status.success());
    let child = serve(dir, &["d.vhd"]);
    let written =
        tool(dir, "qemu-io", &["-f", "raw", "nbd+unix:///?socket=s.sock", "-c", "write -P 0x5a 1M 64k"]);
    let busy = disk(dir, &["check", "d.vhd", "--repair"]);
    assert_eq!(busy.status.code(), Some(5));
    assert!(err(&busy).contains("in use by backstay"), "{}", err(&busy));
    end(child, rustix::process::Signal::TERM);
    assert!(!dir.join("s.sock").exists(), "the socket is gone");
    let check = disk(dir, &["check", "d.vhd"]);
    assert_eq!((check.status.code(), out(&check).as_str()), (Some(0), ""), "closed cleanly");
    if written.is_none_or(|w| !w.status.success()) {
        println!("skipped: qemu-io did not write");
        return;
    }
    assert!(disk(dir, &["convert", "d.vhd", "d.raw"]).status.success());
    let bytes = std::fs::read(dir.join("d.raw")).unwrap();
    assert!(bytes[1 << 20..(1 << 20) + (64 << 10)].iter().all(|b| *b == 0x5A));
    // Read-only: writes are refused, and a second reader may come.
    let child = serve(dir, &["d.vhd", "--read-only"]);
    if let Some(refused) =
        tool(dir, "qemu-io", &["-f", "raw", "nbd+unix:///?socket=s.sock", "-c", "write 0 512"])
    {
        assert!(!refused.status.success());
    }
    assert_eq!(disk(dir, &["info", "d.vhd"]).status.code(), Some(0));
    end(child, rustix::process::Signal::INT);
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    // Incompressible and large enough that the signal comes before the end.
    let mut bytes = vec![0u8; 256 << 20];
    for (index, chunk) in bytes.chunks_mut(4096).enumerate() {
        chunk[0] = u8::try_from(index % 255).unwrap() + 1;
    }
    std::fs::write(dir.join("r.raw"), bytes).unwrap();
    let mut child = backstay(&["disk", "convert", "r.raw", "d.vhd"]).current_dir(dir).spawn().unwrap();
    // The temporary file tells that it is at work.
    while std::fs::read_dir(dir).unwrap().count() < 2 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it began");
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["r.raw"]);
}

#[test]
fn a_disk_whose_making_is_interrupted_is_not_left_half_made() {
    // In memory reserving space takes time, and the signal comes before the end.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let dir = folder.path();
    let mut child = backstay(&["disk", "create", "f.vhd", "--type", "fixed", "--size", "1G"])
        .current_dir(dir)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let names = || -> Vec<_> { std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect() };
    while names().is_empty() {
        assert!(child.try_wait().unwrap().is_none_or(|status| status.success()), "it failed");
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    match child.wait().unwrap().code() {
        Some(130) => assert_eq!(names(), [""; 0]),
        // It was quicker.
        Some(0) => assert_eq!(names(), ["f.vhd"]),
        other => panic!("ended with {other:?}, left {:?}", names()),
    }
}

#[test]
fn nothing_writes_to_a_file_that_a_machine_needs_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    assert!(disk(dir, &["create", "d.vhd", "--size", "8M"]).status.success());
    let path = dir.canonicalize().unwrap().join("d.vhd");
    let daemon = FakeDaemon::start(move |_| {
        let holder = |frozen: bool| json!({"vm": guid(1), "name": "web", "place": "checkpoint 'c'", "open": false, "frozen": frozen});
        let chain = [json!({"path": path, "kind": "dynamic", "virtual_size": 8 << 20, "file_size": 2048})];
        Answer::Json(
            200,
            json!({"path": path, "size": 8 << 20, "chain": chain, "used_by": [holder(false), holder(true)]}),
        )
    });
    let before = std::fs::read(dir.join("d.vhd")).unwrap();
    for (args, cure) in [
        (&["disk", "serve", "d.vhd", "--socket", "s.sock"][..], "--read-only"),
        (&["disk", "check", "d.vhd", "--repair"], "a copy"),
    ] {
        let output = daemon.command(args).current_dir(dir).output().unwrap();
        assert_eq!(output.status.code(), Some(5), "{args:?}");
        let words = err(&output);
        let rule = "'web' (checkpoint 'c') needs d.vhd as it is";
        assert!(words.contains(rule) && words.contains(cure), "{args:?}: {words}");
    }
    assert_eq!(std::fs::read(dir.join("d.vhd")).unwrap(), before);
    for args in [&["disk", "check", "d.vhd"][..], &["disk", "check", "d.vhd", "--repair", "--dry-run"]] {
        let output = daemon.command(args).current_dir(dir).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", err(&output));
    }
}

#[test]
fn a_file_that_a_machine_holds_is_told_by_the_machines_name() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    assert!(disk(dir, &["create", "d.vhd", "--size", "8M"]).status.success());
    let child = serve(dir, &["d.vhd"]);
    let path = dir.canonicalize().unwrap().join("d.vhd");
    let daemon = FakeDaemon::start(move |request| {
        let range = |offset: u64, kind: &str| json!({"offset": offset, "length": 4 << 20, "kind": kind});
        if request.line.starts_with("GET /disks/map?") {
            let (offset, next) =
                if request.line.contains("offset=0") { (0, json!(4 << 20)) } else { (4 << 20, json!(null)) };
            let kind = if offset == 0 { "zero" } else { "parent" };
            return Answer::Json(
                200,
                json!({"size": 8 << 20, "ranges": [range(offset, kind)], "next": next}),
            );
        }
        if request.line.starts_with("GET /disks/check?") {
            let finding = json!({"severity": "warning", "rule": "footer-copy", "repairable": true, "text": "it differs"});
            let found =
                json!({"path": path, "usable": true, "blocks": 1, "unused_bytes": 0, "findings": [finding]});
            return Answer::Json(200, found);
        }
        Answer::Json(
            200,
            json!({
                "path": path, "size": 8 << 20, "chain": [{"path": path, "kind": "dynamic", "virtual_size": 8 << 20, "file_size": 2048}],
                "used_by": [{"vm": guid(1), "name": "web", "place": "ide:0:0", "open": true}],
            }),
        )
    });
    let run = |args: &[&str]| daemon.command(&[&["disk"], args].concat()).current_dir(dir).output().unwrap();
    for args in [
        &["check", "d.vhd", "--repair"][..],
        &["convert", "d.vhd", "x.raw"],
        &["create", "c.vhd", "--parent", "d.vhd"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(5), "{args:?}");
        assert!(
            err(&output).contains("in use by virtual machine 'web' (ide:0:0)"),
            "{args:?}: {}",
            err(&output)
        );
    }
    let map = run(&["map", "d.vhd", "-o", "csv"]);
    assert_eq!(map.status.code(), Some(0), "{}", err(&map));
    assert!(
        out(&map).contains("0,4194304,zero") && out(&map).contains("4194304,4194304,parent"),
        "{}",
        out(&map)
    );
    let check = run(&["check", "d.vhd"]);
    assert_eq!(check.status.code(), Some(7), "{}", err(&check));
    assert!(out(&check).contains("it differs"), "{}", out(&check));
    let info = run(&["info", "d.vhd"]);
    assert_eq!(info.status.code(), Some(0), "{}", err(&info));
    assert!(out(&info).contains("'web' at ide:0:0, open"), "{}", out(&info));
    end(child, rustix::process::Signal::TERM);
}

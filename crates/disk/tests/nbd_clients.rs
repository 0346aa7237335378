//! The NBD server as other people's clients see it: QEMU's tools and libnbd's.
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a panic in a test is the report")]

mod nbd_support;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use backstay_disk::nbd::Server;
use nbd_support::{Call, LONG, Ram, Rig, noise, spec};

const MIB: usize = 1 << 20;

/// Runs a tool; `None` if it is not installed.
fn tool(name: &str, args: &[&str]) -> Option<String> {
    let output = match Command::new(name).args(args).stdin(Stdio::null()).output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {name} is not installed");
            return None;
        }
        other => other.unwrap(),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {args:?}: {}\n{text}{err}", output.status);
    Some(text)
}

#[test]
fn qemu_io_reads_what_it_wrote() {
    let rig = Rig::new(16 * MIB);
    let script = [
        "write -P 0xaa 0 64k",
        "read -P 0xaa 0 64k",
        "write -z 16k 8k",
        "read -P 0xaa 0 16k",
        "read -P 0 16k 8k",
        "read -P 0xaa 24k 40k",
        "write -f -P 0x11 1M 512",
        "read -P 0x11 1M 512",
        "write -P 0x22 2M 2M",
        "discard 2M 2M",
        "read -P 0 2M 2M",
        "write -zu 3M 1M",
        "write -P 0x33 8M 8M",
        "aio_write -P 0x44 8M 1M",
        "aio_write -P 0x55 9M 1M",
        "aio_flush",
        "read -P 0x44 8M 1M",
        "read -P 0x55 9M 1M",
        "read -P 0x33 10M 6M",
        "flush",
    ];
    let uri = rig.uri();
    let mut args = vec!["-f", "raw", "-d", "unmap"];
    args.extend(script.iter().flat_map(|line| ["-c", line]));
    args.push(&uri);
    let Some(text) = tool("qemu-io", &args) else { return };
    assert!(!text.contains("failed"), "{text}");
    let live = rig.ram.live();
    assert!(live[..16 << 10] == [0xaa; 16 << 10] && live[16 << 10..24 << 10] == [0; 8 << 10]);
    assert!(live[10 * MIB..] == vec![0x33; 6 * MIB]);
    assert!(live == rig.ram.durable(), "the last command was a flush");
    let calls = rig.ram.calls();
    assert!(calls.contains(&Call::Trim(2 << 20, 2 << 20)), "{calls:?}");
    assert!(calls.iter().any(|c| matches!(c, Call::Zero(16384, 8192, m) if !m.may_unmap)), "{calls:?}");
    assert!(
        calls.iter().any(|c| matches!(c, Call::Zero(3_145_728, 1_048_576, m) if m.may_unmap)),
        "{calls:?}"
    );
}

#[test]
fn qemu_img_converts_both_ways_and_sees_the_holes() {
    let rig = Rig::new(32 * MIB);
    let source = rig.dir.path().join("source.raw");
    let mut content = vec![0; 32 * MIB];
    content[MIB..5 * MIB].copy_from_slice(&noise(4 * MIB, 1));
    content[20 * MIB..20 * MIB + 65536].copy_from_slice(&noise(65536, 2));
    fs::write(&source, &content).unwrap();
    let (uri, source) = (rig.uri(), source.to_str().unwrap());
    let in_args = ["convert", "-n", "-f", "raw", "-O", "raw", source, &uri];
    if tool("qemu-img", &in_args).is_none() {
        return;
    }
    assert!(rig.ram.live() == content);
    let back = rig.dir.path().join("back.raw");
    tool("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, back.to_str().unwrap()]);
    assert!(fs::read(&back).unwrap() == content);
    tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &uri]);
    let map = tool("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).unwrap();
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let data: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["data"] == true)
        .map(|e| (e["start"].as_u64().unwrap(), e["length"].as_u64().unwrap()))
        .collect();
    assert_eq!(data, [(1 << 20, 4 << 20), (20 << 20, 65536)]);
}

#[test]
fn nbdinfo_reports_what_the_server_can_do() {
    let rig = Rig::new(16 * MIB);
    rig.ram.fill(4 * MIB, &noise(MIB, 1));
    let Some(text) = tool("nbdinfo", &["--json", &rig.uri()]) else { return };
    let info: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    let yes = ["flush", "fua", "trim", "zero", "fast_zero", "df", "cache", "multi_conn"];
    for name in yes {
        let key = if name == "multi_conn" { "can_multi_conn".into() } else { format!("can_{name}") };
        assert_eq!(export[&key], true, "{key} in {text}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["export-size"], 16 << 20);
    assert_eq!(export["description"], "a disk in memory");
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    assert_eq!(
        (&export["block_size_minimum"], &export["block_size_preferred"], &export["block_size_maximum"]),
        (&512.into(), &4096.into(), &(32 << 20).into())
    );
    let map = tool("nbdinfo", &["--map", "--json", &rig.uri()]).unwrap();
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let rows: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["offset"].as_u64().unwrap(), e["length"].as_u64().unwrap(), e["type"].as_u64().unwrap()))
        .collect();
    assert_eq!(rows, [(0, 4 << 20, 3), (4 << 20, 1 << 20, 0), (5 << 20, 11 << 20, 3)]);
    let other = Ram::new(MIB);
    rig.server.add_export(spec("second disk", &other)).unwrap();
    let uri = format!("nbd+unix:///?socket={}", rig.socket.display());
    let list = tool("nbdinfo", &["--list", "--json", &uri]).unwrap();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let names: Vec<_> =
        list["exports"].as_array().unwrap().iter().map(|e| e["export-name"].clone()).collect();
    assert_eq!(names, ["disk", "second disk"]);
}

#[test]
fn nbdcopy_copies_both_ways_over_many_connections() {
    let rig = Rig::new(32 * MIB);
    let file = rig.dir.path().join("in.raw");
    let mut content = vec![0; 32 * MIB];
    content[..8 * MIB].copy_from_slice(&noise(8 * MIB, 1));
    content[24 * MIB..30 * MIB].copy_from_slice(&noise(6 * MIB, 2));
    fs::write(&file, &content).unwrap();
    let args = ["--connections=4", "--requests=16", "--flush"];
    let copy = |from: &str, to: &str| tool("nbdcopy", &[&args[..], &[from, to]].concat());
    if copy(file.to_str().unwrap(), &rig.uri()).is_none() {
        return;
    }
    assert!(rig.ram.live() == content && rig.ram.durable() == content);
    let back = rig.dir.path().join("out.raw");
    copy(&rig.uri(), back.to_str().unwrap());
    assert!(fs::read(&back).unwrap() == content);
}

/// Starts a server for the same disk on the same socket.
fn again(socket: &Path, ram: &std::sync::Arc<Ram>) -> Server {
    let server = Server::bind(socket, 0o600).unwrap();
    server.add_export(spec("disk", ram)).unwrap();
    server
}

#[test]
fn qemu_reconnects_after_the_server_restarts() {
    let rig = Rig::new(MIB);
    let options = format!(
        "driver=raw,file.driver=nbd,file.reconnect-delay=30,file.export=disk,file.server.type=unix,file.server.path={}",
        rig.socket.display()
    );
    let spawned = Command::new("qemu-io")
        .args(["--image-opts", &options])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut qemu) = spawned else {
        println!("skipped: qemu-io is not installed");
        return;
    };
    let mut stdin = qemu.stdin.take().unwrap();
    let mut lines = BufReader::new(qemu.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut say = |command: &str, answer: &str| {
        writeln!(stdin, "{command}").unwrap();
        stdin.flush().unwrap();
        let line = lines.by_ref().find(|l| l.contains("bytes at offset") || l.contains("failed"));
        assert!(line.as_ref().is_some_and(|l| l.contains(answer)), "{command}: {line:?}");
    };
    say("write -P 0x5a 0 64k", "wrote 65536/65536");
    let Rig { server, socket, ram, dir } = rig;
    assert_eq!(server.shutdown(LONG).cut, 0);
    let server = again(&socket, &ram);
    say("read -P 0x5a 0 64k", "read 65536/65536");
    say("write -P 0x5b 64k 64k", "wrote 65536/65536");
    drop(stdin);
    assert!(qemu.wait().unwrap().success());
    assert!(ram.live()[64 << 10..128 << 10] == vec![0x5b; 64 << 10]);
    drop((server, dir));
}

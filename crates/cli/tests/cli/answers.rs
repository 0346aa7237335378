//! What the commands print, and what they ask the daemon for.

use crate::support::{Answer, FakeDaemon, err, guid, out, task, vm};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

fn web() -> FakeDaemon {
    FakeDaemon::start(|request| match request.line.as_str() {
        line if line.starts_with("GET /vms?") || line == "GET /vms" => {
            Answer::Json(200, json!({"items": [vm("web", 1)]}))
        }
        line if line == format!("GET /vms/{}", guid(1)) => Answer::Json(200, vm("web", 1)),
        line if line.ends_with("/checkpoints") && line.starts_with("GET") => Answer::Json(200, checkpoints()),
        _ => Answer::Json(202, task("succeeded", Value::Null)),
    })
}

fn checkpoints() -> Value {
    let checkpoint = |n: u128, name: &str, parent: Option<u128>| {
        json!({
            "id": guid(n), "name": name, "notes": "", "parent": parent.map(guid), "created": "2026-11-23T10:00:00Z",
            "has_memory": n == 11, "method": if n == 11 { json!("background") } else { Value::Null },
            "memory_bytes": 64 << 20, "disks": [{"slot": "ide:0:0", "file": "/vm/web.vhd", "file_size": 4096}],
        })
    };
    let line = |prefix: &str, n: Option<u128>, name: &str| json!({"prefix": prefix, "checkpoint": n.map(guid), "name": name});
    json!({
        "items": [checkpoint(10, "clean", None), checkpoint(11, "configured", Some(10))],
        "now_parent": guid(11),
        "tree": [line("", Some(10), "clean"), line("└─ ", Some(11), "configured"), line("   └─ ", None, "Now")],
    })
}

#[test]
fn lists_come_in_every_form() {
    let daemon = web();
    let table = out(&daemon.run(&["vm", "list"]));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "NAME  STATE    CPUS  MEMORY  UPTIME  CHECKPOINTS");
    assert_eq!(lines[1], "web   running  2     2 GiB           2");
    assert!(!table.contains('\x1b'), "no colours off a terminal");
    let json: Value = serde_json::from_str(&out(&daemon.run(&["vm", "ls", "-o", "json"]))).unwrap();
    assert_eq!((json[0]["name"].as_str(), json[0]["memory_mib"].as_u64()), (Some("web"), Some(2048)));
    assert_eq!(out(&daemon.run(&["vm", "list", "-o", "name"])), "web\n");
    let csv = out(&daemon.run(&["vm", "list", "-o", "csv"]));
    assert!(csv.starts_with("name,state,cpus,memory,uptime,checkpoints,generation,"), "{csv}");
    assert!(out(&daemon.run(&["vm", "list", "-o", "wide"])).contains(&guid(1)));
    let yaml = out(&daemon.run(&["vm", "list", "-o", "yaml"]));
    assert!(yaml.contains("state: running\n") && yaml.contains("  - kind: disk\n"), "{yaml}");
    daemon.run(&["vm", "list", "--state", "paused-critical"]);
    assert_eq!(daemon.requests().last().unwrap().line, "GET /vms?state=paused-critical");
}

#[test]
fn a_list_with_unreadable_configurations_is_degraded() {
    let daemon = FakeDaemon::start(|_| {
        Answer::Json(200, json!({"items": [vm("web", 1)], "unreadable": ["/vm/broken.xml: it was cut off"]}))
    });
    let output = daemon.run(&["vm", "list"]);
    assert_eq!(output.status.code(), Some(7));
    assert!(out(&output).contains("web") && err(&output).contains("/vm/broken.xml"), "{}", err(&output));
}

#[test]
fn a_machine_is_shown_with_what_is_not_possible_now() {
    let daemon = web();
    let shown = out(&daemon.run(&["vm", "show", &guid(1)]));
    for text in [
        "ide:0:0  disk  /vm/web.vhd",
        "2, limit 75 % of 2 vCPU = 1.5 cores",
        "00-15-5D-01-07-DC  e1000  user",
        "delete: 'web'",
        "When the host stops",
    ] {
        assert!(shown.contains(text), "{text} in\n{shown}");
    }
    assert_eq!(daemon.requests().len(), 1, "a GUID needs no look-up");
}

#[test]
fn the_checkpoint_tree_ends_in_now() {
    let tree = out(&web().run(&["checkpoint", "list", "web", "--tree"]));
    let names: Vec<&str> = tree.lines().map(|l| l.split("  2026").next().unwrap().trim_end()).collect();
    let starts =
        ["CHECKPOINT     CREATED              MEMORY  ON DISK", "clean", "└─ configured", "   └─ Now "];
    assert_eq!(names.len(), starts.len());
    assert!(names.iter().zip(starts).all(|(name, start)| name.starts_with(start)), "{names:?}");
    assert!(tree.contains("64 MiB"), "{tree}");
    let json: Value =
        serde_json::from_str(&out(&web().run(&["snapshot", "list", "web", "-o", "json"]))).unwrap();
    assert_eq!(json["tree"][2]["name"], "Now");
}

#[test]
fn a_checkpoint_is_found_by_name() {
    let daemon = web();
    assert_eq!(
        daemon.run(&["checkpoint", "apply", "web", "configured", "-y", "--without-memory"]).status.code(),
        Some(0)
    );
    let last = daemon.requests().last().unwrap().clone();
    assert_eq!(last.line, format!("POST /vms/{}/checkpoints/{}/apply", guid(1), guid(11)));
    assert_eq!(last.body["without_memory"], true);
    assert_eq!(daemon.run(&["checkpoint", "apply", "web", "nothing", "-y"]).status.code(), Some(3));
}

#[test]
fn create_sends_what_was_typed() {
    let daemon = web();
    let output = daemon.run(&[
        "vm",
        "create",
        "db",
        "-m",
        "4G",
        "--cpus",
        "2",
        "--disk",
        "a=b.vhd",
        "--new-disk",
        "scsi:0:3=40G",
        "--iso",
        "/d.iso",
        "--optical",
        "ide:1:1",
        "--boot",
        "optical,hard-drive",
        "--host-start",
        "start",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let body = &daemon.requests()[0].body;
    let here = std::env::current_dir().unwrap();
    assert_eq!(body["memory_mib"], 4096);
    assert_eq!(
        body["drives"][0]["path"],
        here.join("a=b.vhd").to_str().unwrap(),
        "the daemon runs elsewhere"
    );
    assert_eq!(
        (&body["drives"][1]["slot"], &body["drives"][1]["create"]["size"]),
        (&json!("scsi:0:3"), &json!(40u64 << 30))
    );
    assert_eq!(body["drives"][2]["kind"], "iso");
    assert_eq!(body["drives"][3]["kind"], "empty-optical");
    assert_eq!(body["boot_order"], json!(["optical", "hard-drive"]));
    assert_eq!(body["host_start"], "start");
    assert_eq!(body["nics"].as_array().unwrap().len(), 1, "a network card unless told otherwise");
}

/// Answers an upgrade, then does what a guest with a shell would.
fn shell() -> FakeDaemon {
    FakeDaemon::start(|request| {
        if !request.line.contains("/console/serial") {
            return Answer::Json(200, json!({"items": [vm("web", 1)]}));
        }
        Answer::Raw(Box::new(|mut stream| {
            let head = "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: backstay-console\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(b"past\r\nlogin: ").unwrap();
            let mut buffer = [0; 256];
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                let typed = buffer[..len].to_vec();
                if typed.contains(&b'q') {
                    return;
                }
                stream.write_all(&[b"[", typed.as_slice(), b"]# "].concat()).unwrap();
            }
        }))
    })
}

#[test]
fn a_dialogue_waits_for_what_it_expects() {
    let daemon = shell();
    let ok =
        daemon.run(&["vm", "console", "web", "--expect", "login: ", "--send", "root\\r", "--expect", "# "]);
    assert_eq!(ok.status.code(), Some(0), "{}", err(&ok));
    assert_eq!(out(&ok), "past\r\nlogin: [root\r]# ");
    let never =
        daemon.run(&["vm", "console", "web", "--send", "x", "--expect", "login: ", "--timeout", "1s"]);
    assert_eq!(never.status.code(), Some(6), "what was written before the text was typed does not count");
    assert!(err(&never).contains("login: "), "{}", err(&never));
    let gone = daemon.run(&["vm", "console", "web", "--send", "q", "--expect", "# "]);
    assert_eq!(gone.status.code(), Some(1));
}

#[test]
fn standard_input_goes_to_the_guest_and_its_answer_comes_back() {
    let daemon = shell();
    let mut child = daemon
        .command(&["vm", "console", "web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"uptime\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), "past\r\nlogin: [uptime\n]# "));
}

#[test]
fn the_terminal_is_put_back_after_the_console() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{LocalModes, tcgetattr};
    let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&main).unwrap();
    unlockpt(&main).unwrap();
    let name = ptsname(&main, Vec::new()).unwrap().into_string().unwrap();
    let side = std::fs::OpenOptions::new().read(true).write(true).open(name).unwrap();
    let cooked = |file: &std::fs::File| {
        tcgetattr(file).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    };
    assert!(cooked(&side));
    for signal in [None, Some(rustix::process::Signal::TERM)] {
        let daemon = shell();
        let mut child = daemon
            .command(&["vm", "console", "web"])
            .stdin(side.try_clone().unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut greeting = [0; 13];
        child.stdout.as_mut().unwrap().read_exact(&mut greeting).unwrap();
        assert!(!cooked(&side), "keys go through one by one");
        match signal {
            None => assert_eq!(rustix::io::write(&main, b"\x1d").unwrap(), 1),
            Some(signal) => {
                let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
                rustix::process::kill_process(pid, signal).unwrap();
            }
        }
        let code = child.wait().unwrap().code();
        assert_eq!(code, Some(if signal.is_some() { 130 } else { 0 }));
        assert!(cooked(&side), "after {signal:?}");
    }
}

#[test]
fn events_are_followed_line_by_line() {
    let event = |seq: u64| {
        json!({"seq": seq, "at": "2026-11-23T10:00:00Z", "object": {"kind": "vm", "name": "web"}, "kind": "vm.state",
               "who": "root", "reason": "vm start", "before": "off", "after": "running"})
    };
    let daemon = FakeDaemon::start(move |request| {
        if !request.line.starts_with("GET /events/follow") {
            return Answer::Json(200, json!({"items": [event(1)], "next": 1}));
        }
        // Each stream ends as that of a daemon that is replaced: the next one goes on.
        let after = request.line.split("after=").nth(1).unwrap();
        let next: u64 = after.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap();
        let data = event(next + 1);
        Answer::Raw(Box::new(move |mut stream| {
            let head = "HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
            // The command may have gone already.
            let _ = stream.write_all(format!("{head}: hello\n\nid: 2\ndata: {data}\n\n").as_bytes());
        }))
    });
    let mut child = daemon
        .command(&["event", "list", "--follow", "-o", "json", "--type", "vm", "--severity", "warning"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let numbers: Vec<u64> = lines
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()["seq"].as_u64().unwrap())
        .take(3)
        .collect();
    assert_eq!(numbers, [1, 2, 3], "over the end of two daemons");
    // The reader has gone with the iterator: the command ends by itself and is content.
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let requests = daemon.requests();
    assert!(requests[0].line.contains("type=vm") && requests[0].line.contains("severity=warning"));
    assert!(requests[1].line.contains("after=1"), "the stream goes on where the list ended");
    let table = out(&daemon.run(&["event", "list"]));
    assert!(table.contains("off -> running"), "{table}");
}

//! The history: who did what, why, and what it was before and after.

use backstay_e2e::{Host, Micro, kill, wait_for};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

fn user() -> String {
    let output = std::process::Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn list(host: &Host, filter: &[&str]) -> Vec<Value> {
    let events = host.json(&[&["event", "list", "--vm", "m"], filter].concat());
    events.as_array().unwrap().clone()
}

#[test]
fn every_change_of_state_tells_who_why_before_and_after() {
    let host = Host::start();
    host.create_micro("m", "scsi:0:0", &[]);
    host.ok(&["vm", "set", "m", "--memory", "32M", "--notes", "for tests"]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.count();
    host.ok(&["vm", "pause", "m"]);
    host.ok(&["vm", "resume", "m"]);
    host.ok(&["checkpoint", "create", "m", "c"]);
    kill(host.pid("m", "qemu_pid"));
    wait_for("the fault in the history", || list(&host, &["--type", "vm.qemu-died"]).pop());
    host.wait_state("m", "running");
    host.ok(&["vm", "turn-off", "m"]);

    // Who: what was asked for carries the user's name, what happened by itself does not.
    let me = user();
    let states = list(&host, &["--type", "vm.state", "--who", &me]);
    let steps: Vec<(String, String)> = states
        .iter()
        .map(|event| (event["before"].as_str().unwrap().into(), event["after"].as_str().unwrap().into()))
        .collect();
    for step in [("off", "starting"), ("starting", "running"), ("running", "paused"), ("paused", "running")] {
        assert!(steps.contains(&(step.0.into(), step.1.into())), "{step:?} in {steps:?}");
    }
    assert!(states.iter().all(|event| !event["reason"].as_str().unwrap_or_default().is_empty()));
    let by_itself = list(&host, &["--type", "vm.qemu-died"]);
    assert_eq!(by_itself[0]["who"], "backstay");
    assert_eq!(by_itself[0]["severity"], "error");

    // What: each value before and after.
    let updated = list(&host, &["--type", "vm.updated"]);
    let changes = updated[0]["changes"].as_array().unwrap();
    let memory = changes.iter().find(|change| change["field"] == "memory_mib").unwrap();
    assert_eq!((memory["before"].as_str(), memory["after"].as_str()), (Some("16"), Some("32")));
    assert!(changes.iter().any(|change| change["field"] == "notes" && change["after"] == "for tests"));

    // Filters.
    let grave = list(&host, &["--severity", "error"]);
    assert!(!grave.is_empty() && grave.iter().all(|event| event["severity"] == "error"), "{grave:?}");
    let first = list(&host, &["--limit", "1", "--since", "1h"]).remove(0);
    assert_eq!(first["kind"], "vm.created");
    assert!(list(&host, &["--until", first["at"].as_str().unwrap()]).is_empty());
    // Every type that came up has an explanation.
    for event in host.json(&["event", "list", "--limit", "1000"]).as_array().unwrap() {
        host.ok(&["explain", event["kind"].as_str().unwrap()]);
    }
}

#[test]
fn whoever_follows_goes_on_over_a_new_daemon_and_ends_with_its_reader() {
    let mut host = Host::start();
    host.create_micro("m", "scsi:0:0", &[]);
    let mut follower = host
        .command(&["event", "list", "--follow", "--type", "vm", "--limit", "1", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = || {
        let line = lines.next().unwrap().unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        (event["kind"].as_str().unwrap().to_owned(), event["object"]["name"].as_str().unwrap().to_owned())
    };
    assert_eq!(next().0, "vm.created");
    host.ok(&["vm", "rename", "m", "n"]);
    assert_eq!(next(), ("vm.renamed".into(), "n".into()));
    host.kill_daemon();
    host.start_daemon();
    host.ok(&["vm", "rename", "n", "o"]);
    assert_eq!(next(), ("vm.renamed".into(), "o".into()), "told by the next daemon, once");
    drop(lines);
    // Nothing happens any more: it notices all the same, and is content.
    assert_eq!(follower.wait().unwrap().code(), Some(0));
}

//! What every command promises: exit codes, where output goes, what happens without a terminal.

use crate::support::{Answer, FakeDaemon, Request, backstay, err, guid, out, problem, task, vm};
use serde_json::{Value, json};
use std::io::Read;
use std::process::Stdio;

/// A daemon with one machine, `web`; `change` answers what changes something.
fn with_web(change: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> FakeDaemon {
    FakeDaemon::start(move |request| match request.line.as_str() {
        "GET /vms?name=web" | "GET /vms" => Answer::Json(200, json!({"items": [vm("web", 1)]})),
        line if line.starts_with("GET /vms?") => Answer::Json(200, json!({"items": []})),
        line if line == format!("GET /vms/{}", guid(1)) => Answer::Json(200, vm("web", 1)),
        _ => change(request),
    })
}

#[test]
fn usage_errors_exit_with_2_and_help_with_0() {
    for args in
        [&["vm"][..], &["vm", "start"], &["vm", "list", "-o", "html"], &["fly"], &["vm", "set", "web"]]
    {
        let output = backstay(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", err(&output));
        assert!(output.stdout.is_empty(), "usage errors go to standard error");
    }
    let help = backstay(&["--help"]).output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    assert!(out(&help).contains("Exit codes:") && out(&help).contains("checkpoint"));
    assert_eq!(out(&backstay(&["--version"]).output().unwrap()), "backstay 0.1.0\n");
}

#[test]
fn shells_get_scripts_that_know_the_commands() {
    for (shell, words) in [
        ("bash", ["complete -F _backstay", "checkpoint"]),
        ("zsh", ["#compdef backstay", "checkpoint"]),
        ("fish", ["complete -c backstay", "checkpoint"]),
    ] {
        let output = backstay(&["completions", shell]).output().unwrap();
        assert!(output.status.success(), "{shell}: {}", err(&output));
        assert!(words.iter().all(|word| out(&output).contains(word)), "{shell}");
    }
    let bash = out(&backstay(&["completions", "bash"]).output().unwrap());
    let parsed = std::process::Command::new("bash").args(["-n", "-c", &bash]).status().unwrap();
    assert!(parsed.success(), "bash takes the script");
}

#[test]
fn a_daemon_that_is_not_there_is_named_with_the_cure() {
    let output = backstay(&["vm", "list", "--connect", "/nonexistent/backstay.sock"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = err(&output);
    assert!(text.contains("/nonexistent/backstay.sock") && text.contains("backstay daemon"), "{text}");
}

#[test]
fn the_socket_follows_the_run_folder() {
    let output = backstay(&["vm", "list"]).env("BACKSTAY_RUN_DIR", "/nonexistent/run").output().unwrap();
    assert!(err(&output).contains("/nonexistent/run/backstay.sock"), "{}", err(&output));
}

#[test]
fn problems_become_exit_codes_and_their_detail_is_told() {
    for (code, status, exit) in [
        ("invalid", 422, 2),
        ("not-found", 404, 3),
        ("denied", 403, 4),
        ("precondition", 409, 5),
        ("in-use", 409, 5),
        ("timeout", 504, 6),
        ("no-space", 507, 1),
    ] {
        let daemon = with_web(move |_| Answer::Json(status, problem(code, "thing, rule and cure")));
        let output = daemon.run(&["vm", "start", "web"]);
        assert_eq!(output.status.code(), Some(exit), "{code}");
        assert_eq!(err(&output), "backstay: thing, rule and cure\n");
        assert!(output.stdout.is_empty());
    }
    let daemon = with_web(|_| Answer::Json(500, Value::Null));
    let output = daemon.run(&["vm", "show", "nobody"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(err(&output).contains("'nobody'"));
}

#[test]
fn a_failed_task_is_a_failed_command() {
    let failure = problem("no-space", "/vm is full: free 3 GiB");
    let ended = task("failed", failure);
    let daemon = with_web(move |_| Answer::Json(202, ended.clone()));
    let output = daemon.run(&["vm", "start", "web"]);
    assert_eq!(
        (output.status.code(), err(&output).as_str()),
        (Some(1), "backstay: /vm is full: free 3 GiB\n")
    );
}

#[test]
fn waiting_ends_with_the_task_and_progress_stays_off_pipes() {
    let daemon = with_web(|request| match request.line.split('?').next() {
        Some(line) if line.starts_with("POST") => Answer::Json(202, task("running", Value::Null)),
        _ => Answer::Json(200, task("succeeded", Value::Null)),
    });
    let output = daemon.run(&["vm", "start", "web"]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), ""));
    assert_eq!(err(&output), "'web' is running\n");
    let quiet = daemon.run(&["vm", "start", "web", "-q"]);
    assert_eq!((quiet.status.code(), err(&quiet).as_str()), (Some(0), ""));
    let data = daemon.run(&["vm", "start", "web", "-o", "json"]);
    let value: Value = serde_json::from_slice(&data.stdout).unwrap();
    assert_eq!(value["state"], "succeeded");
    let waits = daemon.requests().iter().filter(|r| r.line.contains("/wait?after=1")).count();
    assert_eq!(waits, 3, "one long poll each");
}

#[test]
fn not_waiting_prints_the_task_and_timing_out_leaves_it_running() {
    let daemon = with_web(|_| Answer::Json(202, task("running", Value::Null)));
    let output = daemon.run(&["vm", "start", "web", "--no-wait"]);
    assert_eq!((output.status.code(), out(&output)), (Some(0), guid(77) + "\n"));
    let output = daemon.run(&["vm", "start", "web", "--timeout", "0s"]);
    assert_eq!(output.status.code(), Some(6));
    assert!(err(&output).contains(&guid(77)) && err(&output).contains("task wait"), "{}", err(&output));
    assert!(daemon.requests().iter().all(|r| !r.line.contains("cancel")), "nothing is cancelled");
}

#[test]
fn an_interrupted_wait_leaves_the_task_running() {
    let daemon = with_web(|request| {
        if request.line.starts_with("POST") {
            return Answer::Json(202, task("running", Value::Null));
        }
        // A long poll that never answers.
        Answer::Raw(Box::new(|mut stream| {
            let _ = stream.read(&mut [0]);
        }))
    });
    let child = daemon.command(&["vm", "start", "web"]).stderr(Stdio::piped()).spawn().unwrap();
    while !daemon.requests().iter().any(|r| r.line.contains("/wait?")) {
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(err(&output).contains("goes on"), "{}", err(&output));
}

#[test]
fn a_dry_run_prints_the_plan_and_asks_nothing() {
    let plan = json!({"operation": "vm.delete", "steps": [{"action": "delete", "object": "/vm/x.xml", "detail": "configuration"}],
        "warnings": ["/vm/a.vhd is kept: another virtual machine uses it"]});
    let daemon = with_web(move |_| Answer::Json(200, plan.clone()));
    let output = daemon.run(&["vm", "delete", "web", "--dry-run"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(out(&output), "STEP    OBJECT     DETAIL\ndelete  /vm/x.xml  configuration\n");
    assert_eq!(err(&output), "warning: /vm/a.vhd is kept: another virtual machine uses it\n");
    assert!(daemon.requests().last().unwrap().line.contains("dry_run=true"));
}

#[test]
fn nothing_is_lost_without_a_yes() {
    let daemon = with_web(|request| match request.line.as_str() {
        line if line.starts_with("GET") => {
            Answer::Json(200, json!({"items": [], "now_parent": null, "tree": []}))
        }
        _ => Answer::Json(202, task("succeeded", Value::Null)),
    });
    for args in [&["vm", "delete", "web"][..], &["checkpoint", "revert", "web"]] {
        let output = daemon.run(args);
        assert_eq!(output.status.code(), Some(2), "{}", err(&output));
        assert!(err(&output).contains("--yes"), "{}", err(&output));
    }
    assert!(daemon.requests().iter().all(|r| r.line.starts_with("GET")), "nothing was sent");
    for args in [
        &["vm", "delete", "web", "--delete-disks", "--yes"][..],
        &["snapshot", "revert", "web", "-y"],
        &["checkpoint", "revert", "web", "--checkpoint-first"],
    ] {
        assert_eq!(daemon.run(args).status.code(), Some(0), "{args:?}");
    }
    let sent: Vec<_> = daemon.requests().into_iter().filter(|r| !r.line.starts_with("GET")).collect();
    assert!(sent[0].line.starts_with("DELETE") && sent[0].line.contains("delete_disks=true"), "{sent:?}");
    assert_eq!(sent[2].body["checkpoint_first"], true);
}

#[test]
fn a_reader_that_leaves_ends_the_command_quietly() {
    // Far more than a pipe holds.
    let items: Vec<Value> = (0..3000).map(|n| vm(&format!("machine-{n}"), n)).collect();
    let daemon = FakeDaemon::start(move |_| Answer::Json(200, json!({"items": items})));
    for format in ["table", "json", "yaml", "csv", "name"] {
        let args = ["vm", "list", "-o", format];
        let mut child = daemon.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""), "{format}");
    }
    let mut help =
        backstay(&["vm", "create", "--help"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(help.stdout.take());
    assert_eq!(err(&help.wait_with_output().unwrap()), "", "no panic");
}

#[test]
fn standard_error_that_is_closed_changes_nothing() {
    let daemon = with_web(|_| Answer::Json(409, problem("busy", "x")));
    let mut child = daemon.command(&["vm", "start", "web"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

//! QEMU as a process: who may run it, who outlives whom.

use crate::common::{Machine, PATIENCE, spec};
use backstay_qemu::argv::{Accel, LaunchFacts, command_line};
use backstay_qemu::paths::RunPaths;
use backstay_qemu::process::{ExitReason, QemuProcess, Spawn, SpawnError, adopt, log_tail};
use backstay_qemu::qmp::Qmp;
use std::path::Path;
use std::process::Command;

const QEMU: &str = "qemu-system-x86_64";
/// Tells [`the_starter`] where to start QEMU.
const STARTER_DIR: &str = "BACKSTAY_TEST_STARTER_DIR";

fn stat_fields(pid: u32) -> Vec<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, tail) = stat.rsplit_once(')').unwrap();
    tail.split_ascii_whitespace().map(str::to_owned).collect()
}

/// Not a test by itself: the program that [`qemu_outlives_its_starter_and_is_found_again`] starts and kills.
#[tokio::test]
async fn the_starter() {
    let Some(dir) = std::env::var_os(STARTER_DIR) else { return };
    let paths = RunPaths::new(&dir).unwrap();
    let args = command_line(&spec("outlives"), &paths, &LaunchFacts::new(Accel::Tcg)).unwrap().args;
    QemuProcess::spawn(
        &paths,
        &Spawn { qemu: QEMU.into(), args, uid_gid: None, groups: Vec::new(), launcher: Vec::new() },
    )
    .unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn qemu_outlives_its_starter_and_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let paths = RunPaths::new(dir.path()).unwrap();
    let mut starter = Command::new(std::env::current_exe().unwrap())
        .args(["process::the_starter", "--exact"])
        .env(STARTER_DIR, dir.path())
        .spawn()
        .unwrap();
    let first = Qmp::connect(&paths.qmp(), PATIENCE).await.unwrap();
    drop(first);
    starter.kill().unwrap();
    starter.wait().unwrap();
    let process = adopt(&paths).unwrap().expect("QEMU lives on");
    assert!(!process.is_own_child());
    let fields = stat_fields(process.pid());
    assert_eq!(fields[3], process.pid().to_string(), "it leads a session of its own");
    let qmp = Qmp::connect(&paths.qmp(), PATIENCE).await.unwrap();
    qmp.quit().await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, process.wait()).await.unwrap();
    assert_eq!(ended, ExitReason::Unknown);
    assert!(adopt(&paths).unwrap().is_none());
}

#[tokio::test]
async fn a_stranger_with_the_recorded_number_is_not_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let paths = RunPaths::new(dir.path()).unwrap();
    assert!(adopt(&paths).unwrap().is_none(), "nothing was ever started here");
    let machine = Machine::start(&spec("other")).await;
    // Another machine's QEMU, with its true start time: only the command line tells.
    std::fs::copy(machine.paths.process_record(), paths.process_record()).unwrap();
    std::fs::write(paths.pid(), machine.process.pid().to_string()).unwrap();
    assert!(adopt(&paths).unwrap().is_none());
    // Its own record with another start time: the number was used again. QEMU's pid file still finds it.
    let record = machine.paths.process_record();
    let wrong = format!(r#"{{"pid":{},"start_time":1}}"#, machine.process.pid());
    std::fs::write(&record, wrong).unwrap();
    assert_eq!(adopt(&machine.paths).unwrap().unwrap().record(), machine.process.record());
    std::fs::remove_file(machine.paths.pid()).unwrap();
    assert!(adopt(&machine.paths).unwrap().is_none());
    // A record that cannot be read is no licence to start a second QEMU.
    std::fs::write(&record, "{").unwrap();
    let message = adopt(&machine.paths).unwrap_err().to_string();
    assert!(message.contains("qemu.json") && message.contains("remove the file"), "{message}");
}

#[tokio::test]
async fn a_second_qemu_in_the_same_folder_is_refused_by_the_first_ones_lock() {
    let machine = Machine::start(&spec("twice")).await;
    let args = command_line(&spec("twice"), &machine.paths, &LaunchFacts::new(Accel::Tcg)).unwrap().args;
    let second = QemuProcess::spawn(
        &machine.paths,
        &Spawn { qemu: QEMU.into(), args, uid_gid: None, groups: Vec::new(), launcher: Vec::new() },
    )
    .unwrap();
    let reason = tokio::time::timeout(PATIENCE, second.wait()).await.unwrap();
    assert_eq!(reason, ExitReason::Status(1));
    let log = log_tail(&machine.paths.qemu_log(), 5).unwrap().join("\n");
    assert!(log.contains("cannot create PID file") || log.contains("lock"), "{log}");
    assert!(machine.process.try_wait().is_none(), "the first one runs on");
}

#[tokio::test]
async fn qemu_runs_as_another_user_inside_the_full_sandbox() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let paths = RunPaths::new(dir.path()).unwrap();
    let args = command_line(&spec("nobody"), &paths, &LaunchFacts::new(Accel::Tcg)).unwrap().args;
    let spawn = Spawn {
        qemu: QEMU.into(),
        args,
        uid_gid: Some((NOBODY, NOBODY)),
        groups: Vec::new(),
        launcher: Vec::new(),
    };
    let process = QemuProcess::spawn(&paths, &spawn).unwrap();
    let qmp = Qmp::connect(&paths.qmp(), PATIENCE).await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_ascii_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("Uid:"), ["65534"; 4]);
    assert_eq!(line("Gid:"), ["65534"; 4]);
    let kvm = backstay_qemu::process::device_group(Path::new("/dev/kvm"));
    let groups: Vec<String> = kvm.iter().map(ToString::to_string).collect();
    assert_eq!(line("Groups:"), groups, "no group of root's is left");
    assert_eq!(line("Seccomp:"), ["2"], "the filter is on");
    // Whether it may use userfaultfd depends on the host; asking is no error.
    println!("background snapshot as nobody: {:?}", qmp.probe_background_snapshot().await.unwrap());
    qmp.quit().await.unwrap();
    assert_eq!(process.wait().await, ExitReason::Status(0));
}

#[tokio::test]
async fn a_qemu_that_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let paths = RunPaths::new(dir.path()).unwrap();
    let spawn = |qemu: &str, args: &[&str]| Spawn {
        qemu: qemu.into(),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        uid_gid: None,
        groups: Vec::new(),
        launcher: Vec::new(),
    };
    let process = QemuProcess::spawn(&paths, &spawn(QEMU, &["-machine", "no-such-machine"])).unwrap();
    assert_eq!(process.wait().await, ExitReason::Status(1));
    let log = log_tail(&paths.qemu_log(), 3).unwrap().join("\n");
    assert!(log.contains("unsupported machine type"), "{log}");
    // `setsid` starts and finds nothing to run.
    let missing = QemuProcess::spawn(&paths, &spawn("/no/such/qemu", &[])).unwrap();
    let reason = tokio::time::timeout(PATIENCE, missing.wait()).await.unwrap();
    assert!(!reason.is_success());
    let log = log_tail(&paths.qemu_log(), 1).unwrap().join("\n");
    assert!(log.contains("/no/such/qemu"), "{log}");
    let nowhere = RunPaths::new(Path::new("/no/such/folder")).unwrap();
    let error = QemuProcess::spawn(&nowhere, &spawn(QEMU, &[])).unwrap_err();
    assert!(matches!(error, SpawnError::Log { .. }), "{error}");
}

#[tokio::test]
async fn a_process_that_ended_before_anybody_looked_still_has_its_reason() {
    let machine = Machine::start(&spec("ended")).await;
    machine.process.kill().unwrap();
    assert_eq!(machine.process.wait().await, ExitReason::Signal(9));
    assert_eq!(machine.process.wait().await, ExitReason::Signal(9));
    assert_eq!(machine.process.try_wait(), Some(ExitReason::Signal(9)));
    machine.process.kill().unwrap();
    assert!(ExitReason::Signal(9).to_string().contains("SIGKILL"));
}

//! `backstay daemon`, on folders of its own.

use crate::support::backstay;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

/// The mode of a file, its kind aside.
fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// What is below a folder, itself too.
fn all(folder: &Path) -> Vec<std::path::PathBuf> {
    let below = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let below = below.flat_map(|path| if path.is_dir() { all(&path) } else { vec![path] });
    std::iter::once(folder.to_owned()).chain(below).collect()
}

#[test]
fn what_the_daemon_makes_is_not_for_everybody() {
    let folder = tempfile::tempdir().unwrap();
    let (state, run) = (folder.path().join("made/state"), folder.path().join("made/run"));
    let settings = folder.path().join("backstay.toml");
    std::fs::write(&settings, format!("state_dir = {state:?}\nrun_dir = {run:?}\n")).unwrap();
    let mut child = backstay(&["daemon", "--config"])
        .arg(&settings)
        .env_remove("BACKSTAY_STATE_DIR")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let socket = run.join("backstay.sock");
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(child.try_wait().unwrap().is_none(), "the daemon ended");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let run_backstay = |args: &[&str]| {
        let output = backstay(args).env("BACKSTAY_SOCKET", &socket).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run_backstay(&["vm", "create", "m", "--memory", "16M", "--no-network"]);
    let modes: Vec<_> = all(&state).into_iter().map(|path| (mode(&path), path)).collect();
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());

    assert!(modes.iter().any(|(_, path)| path.extension().is_some_and(|e| e == "xml")), "{modes:?}");
    assert!(modes.iter().any(|(_, path)| path.ends_with("backstay.db")), "{modes:?}");
    for (mode, path) in modes.iter().filter(|(_, path)| path.is_file()) {
        assert_eq!(mode & 0o027, 0, "{}: {mode:o}", path.display());
    }
    // QEMU, as a user who owns nothing, goes through these to its sockets.
    let above = [folder.path().join("made"), run.clone(), run.join("vms")].map(|path| (mode(&path), path));
    for (mode, path) in &above {
        assert_eq!(*mode, 0o711, "{}: {mode:o}", path.display());
    }
    assert_eq!(mode(&state), 0o700);
    for (mode, path) in modes.iter().filter(|(_, path)| path.is_dir()) {
        assert_eq!(*mode & 0o066, 0, "{}: {mode:o}", path.display());
    }
}

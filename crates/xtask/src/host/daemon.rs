//! The daemon in the background: started once, replaced when it was built anew, ended by `make stop`.

use super::{Host, SOCKET};
use crate::cmd::{command, output};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const START_LIMIT: Duration = Duration::from_secs(30);
const END_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

pub fn log(host: &Host) -> PathBuf {
    host.home.join("daemon.log")
}

/// What the daemon on the socket says of itself.
fn answer(host: &Host) -> Option<Value> {
    let output = Command::new(&host.backstay)
        .args(["host", "show", "-o", "json"])
        .env("BACKSTAY_SOCKET", SOCKET)
        .output()
        .ok()?;
    serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
}

/// Whether any daemon listens.
pub fn answers(host: &Host) -> bool {
    answer(host).is_some()
}

/// Makes sure that a daemon of this clone and this build answers.
pub fn ensure(host: &Host, settings: &Path) -> Result<()> {
    if let Some(info) = answer(host) {
        let state = info["state_dir"].as_str().unwrap_or_default();
        if Path::new(state) != host.state() {
            bail!(
                "another Backstay daemon (process {}, machines in {state}) listens on {SOCKET}: end it first, then run this again",
                info["daemon_pid"]
            );
        }
        if !is_outdated(host, &info) {
            return Ok(());
        }
        println!("run: the daemon is of an older build: replacing it (guests do not notice)");
        end_process(&info)?;
    }
    start(host, settings)
}

/// The executable of a process that was replaced on disk shows as deleted.
fn is_outdated(host: &Host, info: &Value) -> bool {
    let link = fs::read_link(format!("/proc/{}/exe", info["daemon_pid"]));
    link.is_ok_and(|exe| exe != host.backstay)
}

fn start(host: &Host, settings: &Path) -> Result<()> {
    let log = log(host);
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot open {}", log.display()))?;
    let mut child = Command::new(&host.backstay)
        .arg("daemon")
        .arg("--config")
        .arg(settings)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        // so that Ctrl-C in this terminal is not meant for it
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", host.backstay.display()))?;
    println!("run: starting the daemon (process {}, log {})", child.id(), log.display());
    let limit = Instant::now() + START_LIMIT;
    while answer(host).is_none() {
        if let Some(status) = child.try_wait()? {
            bail!("the daemon ended at once ({status}). The end of its log:\n{}", tail(&log));
        }
        if Instant::now() > limit {
            bail!("the daemon does not answer on {SOCKET}. The end of its log:\n{}", tail(&log));
        }
        sleep(POLL);
    }
    Ok(())
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(10).collect();
    lines.into_iter().rev().map(|l| format!("  {l}\n")).collect()
}

/// Ends this clone's daemon, if one runs.
pub fn end(host: &Host) -> Result<()> {
    match answer(host) {
        Some(info) if info["state_dir"].as_str().map(Path::new) == Some(&host.state()) => {
            end_process(&info)?;
            println!("stop: the daemon has ended");
        }
        Some(info) => println!("stop: the daemon on {SOCKET} belongs to {}: left alone", info["state_dir"]),
        None => println!("stop: no daemon is running"),
    }
    Ok(())
}

fn end_process(info: &Value) -> Result<()> {
    let pid = info["daemon_pid"].to_string();
    output(&mut command(Path::new("/"), "kill", &["-TERM", &pid]))?;
    let limit = Instant::now() + END_LIMIT;
    // A zombie waits for a parent that is not us; it serves nobody any more.
    while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        if Instant::now() > limit {
            bail!("the daemon (process {pid}) does not end");
        }
        sleep(POLL);
    }
    Ok(())
}

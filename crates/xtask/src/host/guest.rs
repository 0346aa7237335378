//! The demo guest: created once, started when it is off, waited for on its serial console.

use super::{DEMO, Host, SOCKET, utf8};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PROMPT: &str = "demo# ";
/// Software emulation on a busy machine takes half a minute.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// Runs a user command and returns what it prints.
pub fn backstay(host: &Host, args: &[&str]) -> Result<String> {
    let output = Command::new(&host.backstay)
        .args(args)
        .env("BACKSTAY_SOCKET", SOCKET)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", host.backstay.display()))?;
    if !output.status.success() {
        bail!("backstay {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn show(host: &Host) -> Result<Value> {
    let text = backstay(host, &["vm", "show", DEMO, "-o", "json"])?;
    serde_json::from_str(&text).context("`backstay vm show -o json` prints no JSON")
}

fn exists(host: &Host) -> Result<bool> {
    let list: Value = serde_json::from_str(&backstay(host, &["vm", "list", "-o", "json"])?)?;
    let items = list["items"].as_array().or(list.as_array()).map(Vec::as_slice).unwrap_or_default();
    Ok(items.iter().any(|vm| vm["name"] == DEMO))
}

/// Creates and starts the demo where needed; returns its console's socket.
pub fn ensure(host: &Host) -> Result<PathBuf> {
    if !exists(host)? {
        println!("run: creating the virtual machine {DEMO}");
        let disk = host.disk();
        backstay(host, &["vm", "create", DEMO, "--memory", "256M", "--cpus", "1", "--disk", utf8(&disk)?])?;
    }
    if show(host)?["state"] != "running" {
        println!("run: starting {DEMO}");
        backstay(host, &["vm", "start", DEMO])?;
    }
    let vm = show(host)?;
    let run = &vm["run"];
    println!(
        "run: {DEMO} runs by {}: {}",
        run["accelerator"].as_str().unwrap_or("?"),
        run["accelerator_reason"].as_str().unwrap_or("?")
    );
    run["console_socket"]
        .as_str()
        .map(PathBuf::from)
        .with_context(|| format!("{DEMO} has no console: {}", vm["state_reason"]))
}

/// Reads the console until the guest's shell asks for a command.
pub fn wait_for_prompt(console: &PathBuf) -> Result<()> {
    println!("run: waiting for the guest's prompt on its serial console");
    let begin = Instant::now();
    let mut stream = UnixStream::connect(console)
        .with_context(|| format!("cannot reach the console {}", console.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while begin.elapsed() < BOOT_LIMIT {
        match stream.read(&mut buffer) {
            Ok(0) => bail!("the console was closed: `backstay event list` tells why"),
            Ok(n) => seen.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("reading the console"),
        }
        if String::from_utf8_lossy(&seen).contains(PROMPT) {
            println!("run: the guest asks for a command after {:.1} s", begin.elapsed().as_secs_f32());
            return Ok(());
        }
    }
    bail!(
        "no prompt within {} s; the guest printed:\n{}",
        BOOT_LIMIT.as_secs(),
        String::from_utf8_lossy(&seen)
    )
}

/// Turns the demo off if it runs; a host without one is no reason to keep the daemon.
pub fn turn_off(host: &Host) {
    match backstay(host, &["vm", "turn-off", DEMO, "--yes"]) {
        Ok(_) => println!("stop: {DEMO} is off"),
        Err(error) => println!("stop: {DEMO} was not turned off: {error:#}"),
    }
}

//! Collecting [`HostFacts`], and the probe: firmware of our own that counts a register down and ends QEMU.

use super::{HostFacts, KvmDevice, SpeedProbe, obstacle};
use crate::argv::Accel;
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// Loop rounds of the probe: some 50 ms on a processor, minutes where each instruction is emulated.
pub const PROBE_ITERATIONS: u32 = 100_000_000;
/// How long the probe may take, QEMU's start included.
pub const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// QEMU's exit status when the probe's code has run: `isa-debug-exit` makes 2 × 0x2a + 1 of the byte it gets.
const RAN: i32 = 0x55;

/// The verdict of one boot of this host.
#[derive(Debug, Serialize, Deserialize)]
struct Cached {
    boot_id: String,
    probe: SpeedProbe,
}

/// Looks at this host. The probe is run only if nothing else speaks against KVM, and its result is kept in `cache`
/// until the next boot; a cache that cannot be read or written only costs time.
pub async fn host_facts(qemu: &Path, cache: &Path) -> HostFacts {
    let mut facts = HostFacts {
        device: kvm_device(Path::new("/dev/kvm")),
        cpu_virtualization: fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| has_virtualization(&text)),
        pvm: Path::new("/sys/module/kvm_pvm").exists(),
        probe: None,
    };
    if obstacle(&facts).is_none() {
        facts.probe = Some(cached_probe(qemu, cache).await);
    }
    facts
}

fn kvm_device(path: &Path) -> KvmDevice {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => KvmDevice::Opens,
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => KvmDevice::Missing,
            io::ErrorKind::PermissionDenied => KvmDevice::NotPermitted,
            // ENODEV and ENXIO: the node exists, the module behind it does not.
            _ if matches!(error.raw_os_error(), Some(19 | 6)) => KvmDevice::Missing,
            _ => KvmDevice::Broken,
        },
    }
}

fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_ascii_whitespace().any(|flag| matches!(flag, "vmx" | "svm")))
}

async fn cached_probe(qemu: &Path, cache: &Path) -> SpeedProbe {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let known = fs::read(cache).ok().and_then(|bytes| serde_json::from_slice::<Cached>(&bytes).ok());
    if let Some(known) = known
        && !boot_id.is_empty()
        && known.boot_id == boot_id
    {
        return known.probe;
    }
    let probe = run_probe(qemu, Accel::Kvm, PROBE_ITERATIONS, PROBE_LIMIT).await;
    // A failure may pass (a busy host, a missing package): only a success is worth keeping.
    if matches!(probe, SpeedProbe::Fast { .. })
        && let Ok(text) = serde_json::to_vec(&Cached { boot_id, probe: probe.clone() })
    {
        let temporary = cache.with_extension(format!("new-{}", std::process::id()));
        if let Err(error) = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, cache)) {
            tracing::warn!(path = %cache.display(), %error, "cannot keep the result of the KVM probe");
        }
    }
    probe
}

/// Runs the probe's code in a QEMU without any disk or firmware.
pub async fn run_probe(qemu: &Path, accel: Accel, iterations: u32, limit: Duration) -> SpeedProbe {
    let failed = |reason: String| SpeedProbe::Failed { reason };
    let file =
        std::env::temp_dir().join(format!("backstay-probe-{}-{}.rom", std::process::id(), accel.as_str()));
    if let Err(error) = fs::write(&file, firmware(iterations)) {
        return failed(format!("cannot write {}: {error}", file.display()));
    }
    let started = Instant::now();
    let result = tokio::time::timeout(limit, run_qemu(qemu, accel, &file)).await;
    if let Err(error) = fs::remove_file(&file) {
        tracing::debug!(path = %file.display(), %error, "cannot remove the probe's firmware");
    }
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    match result {
        Err(_) => SpeedProbe::TooSlow { millis: millis(limit) },
        Ok(Ok(())) => SpeedProbe::Fast { millis: millis(started.elapsed()) },
        Ok(Err(reason)) => failed(reason),
    }
}

async fn run_qemu(qemu: &Path, accel: Accel, firmware: &Path) -> Result<(), String> {
    let mut command = Command::new(qemu);
    command.args(["-no-user-config", "-nodefaults", "-display", "none", "-machine", "pc", "-m", "2"]);
    command.args(["-accel", accel.as_str(), "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-bios"]);
    command
        .arg(firmware)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("{}: {error}", qemu.display()))?;
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // QEMU says a line or nothing. An unreadable pipe only loses words.
        let _ = stderr.take(4096).read_to_end(&mut said).await;
    }
    let status = child.wait().await.map_err(|error| error.to_string())?;
    if status.code() == Some(RAN) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    let first = said.lines().next().unwrap_or("it said nothing");
    Err(format!("QEMU ended with {status} ({first})"))
}

/// 64 KiB of firmware, entered at its last 16 bytes in 16-bit mode.
fn firmware(iterations: u32) -> Vec<u8> {
    const CODE: usize = 0xff00;
    const RESET: usize = 0xfff0;
    let mut image = vec![0xf4; 0x1_0000]; // hlt
    let [a, b, c, d] = iterations.to_le_bytes();
    let code = [
        0x66, 0xb9, a, b, c, d, // mov ecx, iterations
        0x66, 0x49, // dec ecx
        0x75, 0xfc, // jnz the line above
        0xb0, 0x2a, // mov al, 0x2a
        0xe6, 0xf4, // out 0xf4, al
        0xfa, 0xf4, 0xeb, 0xfd, // cli; hlt; jmp to the hlt
    ];
    image[CODE..CODE + code.len()].copy_from_slice(&code);
    // jmp CODE, relative to the next instruction
    image[RESET..RESET + 3].copy_from_slice(&[0xe9, 0x0d, 0xff]);
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_a_word_of_its_own() {
        assert!(has_virtualization("processor: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualization("flags : svm"));
        assert!(!has_virtualization("flags : vmxnet svm_lock\nmodel name: vmx"));
    }

    #[test]
    fn devices_that_do_not_open_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kvm_device(&dir.path().join("kvm")), KvmDevice::Missing);
        assert_eq!(kvm_device(dir.path()), KvmDevice::Broken);
        std::fs::write(dir.path().join("kvm"), "").unwrap();
        assert_eq!(kvm_device(&dir.path().join("kvm")), KvmDevice::Opens);
    }
}

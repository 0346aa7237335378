//! Which accelerator a machine gets.
//!
//! A `/dev/kvm` that opens proves little: some cloud hosts offer a KVM that emulates every instruction of an unmodified
//! guest, about a thousand times slower than the processor, so that systems seem to hang while they boot. Automatic
//! choice therefore wants a processor with virtualization, no such KVM, and a piece of code that really ran fast.

mod probe;

pub use probe::{PROBE_ITERATIONS, PROBE_LIMIT, host_facts, run_probe};

use crate::argv::Accel;
use backstay_model::AccelPolicy;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// The device of hardware virtualization.
const KVM: &str = "/dev/kvm";

/// What is known about `/dev/kvm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmDevice {
    /// It can be opened for reading and writing.
    Opens,
    /// There is none: no virtualization, or the module is not loaded.
    Missing,
    /// This user may not open it.
    NotPermitted,
    /// This user may open it, but not the one that QEMU runs as.
    NotPermittedForQemu,
    /// Opening fails for another reason.
    Broken,
}

/// Result of running code under KVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum SpeedProbe {
    /// The code ran to its end in time.
    Fast {
        /// Milliseconds, QEMU's start included.
        millis: u64,
    },
    /// The code did not end in time.
    TooSlow {
        /// Milliseconds it was given.
        millis: u64,
    },
    /// QEMU could not run it.
    Failed {
        /// QEMU's words.
        reason: String,
    },
}

/// What the choice depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// `/dev/kvm`.
    pub device: KvmDevice,
    /// `/proc/cpuinfo` has `vmx` or `svm`.
    pub cpu_virtualization: bool,
    /// `/sys/module/kvm_pvm` exists: a KVM without hardware.
    pub pvm: bool,
    /// The probe; none if it was not run because the cheap checks already fail.
    pub probe: Option<SpeedProbe>,
}

/// The accelerator and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What QEMU is started with.
    pub accel: Accel,
    /// For the machine's status, a clause without a full stop.
    pub reason: String,
    /// Worth telling the user: the machine runs much slower than the host could.
    pub warning: bool,
}

/// KVM was demanded and does not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "KVM is required (accel=kvm) but {reason}: set accel=auto to run by software emulation instead, \
     or make KVM available"
)]
pub struct Refusal {
    /// What is wrong with KVM here.
    pub reason: String,
}

impl HostFacts {
    /// The facts for a QEMU that runs as `uid_gid`; none: as this process.
    #[must_use]
    pub fn for_user(&self, uid_gid: Option<(u32, u32)>) -> Self {
        self.for_user_of(Path::new(KVM), uid_gid)
    }

    fn for_user_of(&self, device: &Path, uid_gid: Option<(u32, u32)>) -> Self {
        use std::os::unix::fs::MetadataExt;
        let mut facts = self.clone();
        let (Some((uid, gid)), KvmDevice::Opens) = (uid_gid, self.device) else { return facts };
        let may = std::fs::metadata(device).is_ok_and(|node| {
            let mode = node.mode();
            uid == 0
                || mode & 0o006 == 0o006
                || (node.gid() == gid && mode & 0o060 == 0o060)
                || (node.uid() == uid && mode & 0o600 == 0o600)
        });
        if !may && crate::process::device_group(device).is_none() {
            facts.device = KvmDevice::NotPermittedForQemu;
        }
        facts
    }
}

/// Decides. `accel=kvm` skips the checks that only guess (the processor's flags and the kind of KVM), so that an
/// administrator who knows better can insist; what the probe measured stays a fact.
///
/// # Errors
/// KVM is demanded and cannot run code.
pub fn choose(policy: AccelPolicy, facts: &HostFacts) -> Result<Choice, Refusal> {
    let tcg = |reason: String, warning| Choice { accel: Accel::Tcg, reason, warning };
    let kvm = |reason: String| Choice { accel: Accel::Kvm, reason, warning: false };
    match policy {
        AccelPolicy::Tcg => Ok(tcg("software emulation is configured".to_owned(), false)),
        AccelPolicy::Kvm => match device_fault(facts.device).or_else(|| probe_fault(facts.probe.as_ref())) {
            Some(reason) => Err(Refusal { reason }),
            None => Ok(kvm(match &facts.probe {
                Some(probe) => format!("KVM is configured; {probe}"),
                None => "KVM is configured; its speed was not measured".to_owned(),
            })),
        },
        AccelPolicy::Auto => match obstacle(facts) {
            Some(reason) => Ok(tcg(format!("software emulation, because {reason}"), true)),
            None => match &facts.probe {
                Some(probe @ SpeedProbe::Fast { .. }) => Ok(kvm(format!("KVM works: {probe}"))),
                other => {
                    let reason = probe_fault(other.as_ref());
                    let reason = reason.unwrap_or_else(|| "KVM's speed was not measured".to_owned());
                    Ok(tcg(format!("software emulation, because {reason}"), true))
                }
            },
        },
    }
}

/// The first thing that speaks against KVM before any code is run: if there is one, the probe is not worth its time.
#[must_use]
pub fn obstacle(facts: &HostFacts) -> Option<String> {
    device_fault(facts.device).or_else(|| {
        if facts.pvm {
            Some(
                "this host's KVM has no hardware behind it (module kvm_pvm) and runs unmodified systems about a \
                 thousand times too slowly"
                    .to_owned(),
            )
        } else if facts.cpu_virtualization {
            None
        } else {
            Some("the processor shows neither vmx nor svm in /proc/cpuinfo".to_owned())
        }
    })
}

fn device_fault(device: KvmDevice) -> Option<String> {
    let text = match device {
        KvmDevice::Opens => return None,
        KvmDevice::Missing => {
            "there is no /dev/kvm (enable virtualization in the firmware, or nested virtualization on the host below, \
             and load kvm_intel or kvm_amd)"
        }
        KvmDevice::NotPermitted => "this user may not open /dev/kvm (add it to the group 'kvm')",
        KvmDevice::NotPermittedForQemu => {
            "QEMU's user may not open /dev/kvm (give the file to the group 'kvm' with mode 0660)"
        }
        KvmDevice::Broken => "/dev/kvm cannot be opened",
    };
    Some(text.to_owned())
}

fn probe_fault(probe: Option<&SpeedProbe>) -> Option<String> {
    match probe? {
        SpeedProbe::Fast { .. } => None,
        slow @ (SpeedProbe::TooSlow { .. } | SpeedProbe::Failed { .. }) => Some(slow.to_string()),
    }
}

impl fmt::Display for SpeedProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fast { millis } => write!(f, "a test program ran in {millis} ms"),
            Self::TooSlow { millis } => write!(f, "a test program under KVM did not end within {millis} ms"),
            Self::Failed { reason } => write!(f, "a test program under KVM failed: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> HostFacts {
        HostFacts {
            device: KvmDevice::Opens,
            cpu_virtualization: true,
            pvm: false,
            probe: Some(SpeedProbe::Fast { millis: 150 }),
        }
    }

    #[test]
    fn every_fact_alone_turns_automatic_choice_to_emulation_with_its_reason() {
        let choice = choose(AccelPolicy::Auto, &good()).unwrap();
        assert_eq!((choice.accel, choice.warning), (Accel::Kvm, false));
        let slow = Some(SpeedProbe::TooSlow { millis: 3000 });
        let failed = Some(SpeedProbe::Failed { reason: "KVM_RUN: Exec format error".to_owned() });
        let cases = [
            (HostFacts { device: KvmDevice::Missing, ..good() }, "no /dev/kvm"),
            (HostFacts { device: KvmDevice::NotPermitted, ..good() }, "group 'kvm'"),
            (HostFacts { device: KvmDevice::NotPermittedForQemu, ..good() }, "QEMU's user"),
            (HostFacts { device: KvmDevice::Broken, ..good() }, "cannot be opened"),
            (HostFacts { cpu_virtualization: false, ..good() }, "vmx"),
            (HostFacts { pvm: true, ..good() }, "kvm_pvm"),
            (HostFacts { probe: slow.clone(), ..good() }, "within 3000 ms"),
            (HostFacts { probe: failed.clone(), ..good() }, "Exec format error"),
            (HostFacts { probe: None, ..good() }, "not measured"),
        ];
        for (facts, word) in cases {
            let choice = choose(AccelPolicy::Auto, &facts).unwrap();
            assert_eq!((choice.accel, choice.warning), (Accel::Tcg, true), "{facts:?}");
            assert!(choice.reason.contains(word), "{} lacks {word}", choice.reason);
        }
    }

    #[test]
    fn a_device_that_only_root_may_open_is_none_for_qemus_user() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("kvm");
        std::fs::write(&device, "").unwrap();
        let of = |mode: u32, user| {
            std::fs::set_permissions(&device, std::fs::Permissions::from_mode(mode)).unwrap();
            good().for_user_of(&device, user).device
        };
        let someone = Some((65_534, 65_534));
        assert_eq!(of(0o600, someone), KvmDevice::NotPermittedForQemu);
        assert_eq!(of(0o600, None), KvmDevice::Opens);
        assert_eq!(of(0o666, someone), KvmDevice::Opens);
        if std::os::unix::fs::chown(&device, None, Some(4242)).is_ok() {
            assert_eq!(of(0o660, someone), KvmDevice::Opens, "its group is given to QEMU");
        }
    }

    #[test]
    fn demanding_kvm_refuses_facts_and_overrides_guesses() {
        for facts in [
            HostFacts { device: KvmDevice::Missing, ..good() },
            HostFacts { probe: Some(SpeedProbe::TooSlow { millis: 3000 }), ..good() },
        ] {
            let message = choose(AccelPolicy::Kvm, &facts).unwrap_err().to_string();
            assert!(message.contains("accel=auto"), "{message}");
        }
        let guessed_bad = HostFacts { cpu_virtualization: false, pvm: true, probe: None, ..good() };
        assert_eq!(choose(AccelPolicy::Kvm, &guessed_bad).unwrap().accel, Accel::Kvm);
    }

    #[test]
    fn demanding_emulation_is_no_cause_for_a_warning() {
        let choice = choose(AccelPolicy::Tcg, &good()).unwrap();
        assert_eq!((choice.accel, choice.warning), (Accel::Tcg, false));
    }
}

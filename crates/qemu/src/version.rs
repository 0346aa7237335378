//! Which QEMU this is, and whether it can do what is asked of it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest QEMU with everything that is used: `mapped-ram` saves came last.
pub const MINIMUM: Version = Version { major: 9, minor: 0, micro: 0 };

/// A QEMU version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// 10 of 10.0.2.
    pub major: u32,
    /// 0 of 10.0.2.
    pub minor: u32,
    /// 2 of 10.0.2.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// A QEMU that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// It cannot be run.
    #[error("cannot run {qemu}: install QEMU (Debian package 'qemu-system-x86', version {MINIMUM} or later)")]
    Run {
        /// The executable.
        qemu: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It says something else than a version.
    #[error(
        "'{qemu} --version' says '{text}', which is no QEMU version: give the path of qemu-system-x86_64"
    )]
    Unreadable {
        /// The executable.
        qemu: PathBuf,
        /// The start of what it said.
        text: String,
    },
    /// It lacks features.
    #[error(
        "{qemu} is QEMU {found}; {MINIMUM} or later is needed (on Debian 12: qemu-system-x86 from bookworm-backports)"
    )]
    TooOld {
        /// The executable.
        qemu: PathBuf,
        /// Its version.
        found: Version,
    },
    /// The machine was made with a later one.
    #[error("machine type '{machine}' is newer than QEMU {found} of this host: install a QEMU that has it")]
    NoMachine {
        /// As configured.
        machine: String,
        /// This host's.
        found: Version,
    },
}

/// Asks the executable for its version and refuses one that is too old. Blocks for some milliseconds.
///
/// # Errors
/// [`VersionError`], except `NoMachine`.
pub fn probe(qemu: &Path) -> Result<Version, VersionError> {
    let output = Command::new(qemu)
        .arg("--version")
        .output()
        .map_err(|source| VersionError::Run { qemu: qemu.to_owned(), source })?;
    judge(qemu, &String::from_utf8_lossy(&output.stdout))
}

fn judge(qemu: &Path, text: &str) -> Result<Version, VersionError> {
    let found = parse(text).ok_or_else(|| VersionError::Unreadable {
        qemu: qemu.to_owned(),
        text: text.chars().take(100).collect(),
    })?;
    if found < MINIMUM {
        return Err(VersionError::TooOld { qemu: qemu.to_owned(), found });
    }
    Ok(found)
}

/// Reads `QEMU emulator version 10.0.2 (Debian …)`.
#[must_use]
pub fn parse(text: &str) -> Option<Version> {
    let rest = text.strip_prefix("QEMU emulator version ")?;
    let word = rest.split_ascii_whitespace().next()?;
    let mut numbers = word.split('.').map(|number| number.parse().ok());
    let version = Version { major: numbers.next()??, minor: numbers.next()??, micro: numbers.next()?? };
    Some(version)
}

/// Checks that this QEMU has a versioned machine type such as `pc-i440fx-10.0`.
///
/// # Errors
/// [`VersionError::NoMachine`].
pub fn check_machine(found: Version, machine: &str) -> Result<(), VersionError> {
    let wanted = machine.rsplit('-').next().and_then(|version| {
        let (major, minor) = version.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    match wanted {
        Some(wanted) if wanted > (found.major, found.minor) => {
            Err(VersionError::NoMachine { machine: machine.to_owned(), found })
        }
        // A name without a version is refused when the command line is built.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_and_upstream_are_read() {
        let ten = Version { major: 10, minor: 0, micro: 2 };
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright …";
        assert_eq!(parse(debian), Some(ten));
        assert_eq!(parse("QEMU emulator version 10.0.2"), Some(ten));
        assert_eq!(parse("qemu-img version 10.0.2"), None);
        assert_eq!(parse("QEMU emulator version ten"), None);
    }

    #[test]
    fn a_machine_of_a_later_qemu_is_refused_by_name() {
        let found = Version { major: 10, minor: 0, micro: 2 };
        assert!(check_machine(found, "pc-i440fx-10.0").is_ok());
        assert!(check_machine(found, "pc-q35-9.2").is_ok());
        let message = check_machine(found, "pc-i440fx-10.1").unwrap_err().to_string();
        assert!(message.contains("'pc-i440fx-10.1'") && message.contains("10.0.2"), "{message}");
    }

    #[test]
    fn an_old_or_missing_qemu_is_refused_with_the_cure() {
        let path = Path::new("/usr/bin/qemu-system-x86_64");
        let message = judge(path, "QEMU emulator version 7.2.1 (Debian)\n").unwrap_err().to_string();
        assert!(message.contains("QEMU 7.2.1") && message.contains("bookworm-backports"), "{message}");
        assert!(matches!(probe(Path::new("/no/such/qemu")), Err(VersionError::Run { .. })));
        assert!(matches!(probe(Path::new("echo")), Err(VersionError::Unreadable { .. })));
        assert!(probe(Path::new("qemu-system-x86_64")).unwrap() >= MINIMUM);
    }
}

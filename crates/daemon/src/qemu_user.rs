//! Whom QEMU runs as. Each machine's QEMU gets a user and group of its own, so that one that was taken over by its guest
//! can neither signal, trace nor connect to another one, even where both see the same files.

use crate::config::{QemuConfig, SandboxMode};
use crate::failure::Failure;
use backstay_model::VmId;
use backstay_qemu::process::device_group;
use rustix::thread::{CapabilitySet, capabilities};
use std::collections::BTreeSet;
use std::path::Path;

/// The device that tracks writes of a running guest.
const USERFAULTFD: &str = "/dev/userfaultfd";

/// Whom QEMU runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QemuUser {
    /// As the daemon.
    Daemon,
    /// Every one as this user.
    One {
        /// User number.
        uid: u32,
        /// Group number.
        gid: u32,
    },
    /// Every one as a user of its own.
    Own {
        /// First number of the range.
        first: u32,
        /// How many there are, at least one.
        count: u32,
    },
}

impl QemuUser {
    /// What the settings say; `root`: this process may become somebody else.
    ///
    /// # Errors
    /// `invalid` when the named user does not exist.
    pub fn new(config: &QemuConfig, root: bool) -> Result<Self, Failure> {
        if let Some(name) = &config.user {
            let (uid, gid) = crate::host::user_ids(name).ok_or_else(|| {
                Failure::invalid(format!("[qemu] user is '{name}': there is no such user on this host"))
            })?;
            return Ok(Self::One { uid, gid });
        }
        Ok(match config.uids {
            (first, last) if root && last > first => Self::Own { first, count: last - first + 1 },
            _ => Self::Daemon,
        })
    }

    /// User and group for a machine whose neighbours have `taken`. A machine usually gets the same one each time.
    ///
    /// # Errors
    /// `precondition` when none is left.
    pub fn for_vm(&self, vm: VmId, taken: &BTreeSet<u32>) -> Result<Option<(u32, u32)>, Failure> {
        match *self {
            Self::Daemon => Ok(None),
            Self::One { uid, gid } => Ok(Some((uid, gid))),
            Self::Own { first, count } => {
                let begin = u32::try_from(vm.0.as_u128() % u128::from(count)).unwrap_or(0);
                let places = (0..count).map(|step| first + (begin + step) % count);
                match places.into_iter().find(|uid| !taken.contains(uid)) {
                    Some(uid) => Ok(Some((uid, uid))),
                    None => Err(Failure::precondition(format!(
                        "all {count} users for machines are taken: give [qemu] uids a larger range"
                    ))),
                }
            }
        }
    }

    /// Any of the users, to find out what they may do.
    #[must_use]
    pub fn example(&self) -> Option<(u32, u32)> {
        match *self {
            Self::Daemon => None,
            Self::One { uid, gid } => Some((uid, gid)),
            Self::Own { first, .. } => Some((first, first)),
        }
    }

    /// Groups that go with it. A user that an administrator chose has just its own.
    #[must_use]
    pub fn groups(&self) -> Vec<u32> {
        match self {
            Self::Own { .. } => device_group(Path::new(USERFAULTFD)).into_iter().collect(),
            _ => Vec::new(),
        }
    }
}

/// Whether QEMU gets a view of the host of its own, and why (not).
#[must_use]
pub fn sandbox(mode: SandboxMode) -> (bool, String) {
    if mode == SandboxMode::Off {
        return (false, "[qemu] sandbox is off".into());
    }
    let may = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    if may {
        (true, "QEMU sees its programs, its devices and its machine's run folder".into())
    } else {
        (
            false,
            "the daemon may not make mount name spaces (CAP_SYS_ADMIN): QEMU sees what its user may see"
                .into(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use uuid::Uuid;

    #[test]
    fn every_machine_gets_a_user_of_its_own_and_the_same_one_again() {
        let user = QemuUser::Own { first: 5000, count: 3 };
        let vm = |n: u128| VmId(Uuid::from_u128(n));
        let mut taken = BTreeSet::new();
        for (n, uid) in [(7, 5001), (4, 5002), (1, 5000)] {
            let given = user.for_vm(vm(n), &taken).unwrap().unwrap();
            assert_eq!(given, (uid, uid));
            taken.insert(uid);
        }
        assert!(user.for_vm(vm(9), &taken).unwrap_err().full_message().contains("uids"));
        taken.remove(&5001);
        assert_eq!(user.for_vm(vm(7), &taken).unwrap(), Some((5001, 5001)));
    }

    #[test]
    fn only_root_gives_users_away_and_a_named_user_wins() {
        let config = Config::in_folders("/s", "/r").qemu;
        assert_eq!(QemuUser::new(&config, false).unwrap(), QemuUser::Daemon);
        assert!(matches!(QemuUser::new(&config, true).unwrap(), QemuUser::Own { count: 65_536, .. }));
        let named = |user: &str| QemuConfig { user: Some(user.into()), ..config.clone() };
        assert_eq!(QemuUser::new(&named("root"), true).unwrap(), QemuUser::One { uid: 0, gid: 0 });
        assert!(QemuUser::new(&named("no such user"), true).is_err());
        let daemon = QemuConfig { uids: (0, 0), ..config };
        assert_eq!(QemuUser::new(&daemon, true).unwrap(), QemuUser::Daemon);
    }
}

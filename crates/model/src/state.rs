//! The states a machine can be in, and which verb is legal in which.

use crate::VmName;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a machine is doing, as a user sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// No process; disks are closed.
    Off,
    /// The worker is opening disks and starting QEMU.
    Starting,
    /// The guest executes.
    Running,
    /// The guest is stopped by request; memory is kept.
    Paused,
    /// The guest is stopped because its storage failed or filled; it resumes by itself.
    PausedCritical,
    /// Memory is being written out before power-off.
    Saving,
    /// Memory is on disk; the next start continues from it.
    Saved,
    /// The guest was asked to shut down, or QEMU is ending.
    Stopping,
    /// QEMU ended by itself and no recovery action brought it back.
    Failed,
}

impl VmState {
    /// The word that the command line and the API use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::PausedCritical => "paused-critical",
            Self::Saving => "saving",
            Self::Saved => "saved",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }

    /// Whether a worker and QEMU exist, so that disks are in use.
    #[must_use]
    pub fn is_active(self) -> bool {
        !matches!(self, Self::Off | Self::Saved | Self::Failed)
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a user can ask of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmVerb {
    /// Power on, or continue from a saved state.
    Start,
    /// Ask the guest to shut down.
    Shutdown,
    /// Pull the plug.
    TurnOff,
    /// Stop the processors, keep memory.
    Pause,
    /// Continue after a pause.
    Resume,
    /// Press the reset button.
    Reset,
    /// Write memory to disk and power off: the next start continues.
    Save,
    /// Throw a saved memory away.
    DiscardSavedState,
    /// Remove the machine.
    Delete,
    /// Change the display name.
    Rename,
    /// Change settings that need the machine off.
    Configure,
    /// Take a checkpoint.
    Checkpoint,
    /// Go to a checkpoint.
    ApplyCheckpoint,
    /// See or use the serial or graphical console.
    Console,
}

impl VmVerb {
    /// The verb as the command line spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Shutdown => "shutdown",
            Self::TurnOff => "turn-off",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Reset => "reset",
            Self::Save => "save",
            Self::DiscardSavedState => "discard-saved-state",
            Self::Delete => "delete",
            Self::Rename => "rename",
            Self::Configure => "configure",
            Self::Checkpoint => "checkpoint create",
            Self::ApplyCheckpoint => "checkpoint apply",
            Self::Console => "console",
        }
    }
}

/// A verb that the machine's state does not allow; the message names the cure.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{name}' is {state}: {verb} is possible while it is {needed}", verb = .verb.as_str())]
pub struct Refusal {
    /// The machine.
    pub name: VmName,
    /// What it is doing.
    pub state: VmState,
    /// What was asked.
    pub verb: VmVerb,
    /// The states that would do, in words.
    pub needed: &'static str,
}

/// Decides whether `verb` is legal in `state`. `Ok(false)` means: already so, nothing to do.
///
/// # Errors
/// A [`Refusal`] that names the states in which the verb works.
pub fn allowed(name: &VmName, state: VmState, verb: VmVerb) -> Result<bool, Refusal> {
    use VmState as S;
    use VmVerb as V;
    let (ok, noop, needed) = match verb {
        V::Start => (
            matches!(state, S::Off | S::Saved | S::Failed),
            matches!(state, S::Running | S::Starting),
            "off, saved or failed",
        ),
        V::Shutdown => (matches!(state, S::Running), matches!(state, S::Off | S::Stopping), "running"),
        V::TurnOff => (
            state.is_active(),
            matches!(state, S::Off | S::Failed),
            "running, paused or stopping (discard-saved-state throws a saved memory away)",
        ),
        V::Pause => (matches!(state, S::Running), matches!(state, S::Paused), "running"),
        V::Resume => (matches!(state, S::Paused | S::PausedCritical), matches!(state, S::Running), "paused"),
        V::Reset => (matches!(state, S::Running | S::Paused | S::Stopping), false, "running or paused"),
        V::Save => (matches!(state, S::Running | S::Paused), matches!(state, S::Saved), "running or paused"),
        V::DiscardSavedState => (matches!(state, S::Saved), false, "saved"),
        V::Delete => (matches!(state, S::Off | S::Failed | S::Saved), false, "off or saved"),
        V::Configure if state == S::Saved => (
            false,
            false,
            "off, because its saved memory fits this hardware only: start it and shut it down, or discard-saved-state",
        ),
        V::Configure => (matches!(state, S::Off | S::Failed), false, "off"),
        V::Rename => (true, false, ""),
        V::Checkpoint => (
            matches!(state, S::Off | S::Failed | S::Running | S::Paused | S::Saved),
            false,
            "running, paused, saved or off",
        ),
        V::ApplyCheckpoint => (
            matches!(state, S::Off | S::Failed | S::Running | S::Paused | S::PausedCritical | S::Saved),
            false,
            "off, running, paused or saved",
        ),
        V::Console => (state.is_active(), false, "running or paused"),
    };
    match (ok, noop) {
        (true, _) => Ok(true),
        (false, true) => Ok(false),
        (false, false) => Err(Refusal { name: name.clone(), state, verb, needed }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_machine_state_and_cure() {
        let name = VmName::new("web").unwrap();
        let refusal = allowed(&name, VmState::Running, VmVerb::Delete).unwrap_err();
        assert_eq!(refusal.to_string(), "'web' is running: delete is possible while it is off or saved");
        assert_eq!(allowed(&name, VmState::Running, VmVerb::Start), Ok(false));
        assert_eq!(allowed(&name, VmState::Off, VmVerb::Start), Ok(true));
        let saved = allowed(&name, VmState::Saved, VmVerb::Configure).unwrap_err().to_string();
        assert!(saved.contains("'web' is saved") && saved.contains("discard-saved-state"), "{saved}");
        assert!(allowed(&name, VmState::Saved, VmVerb::TurnOff).is_err());
        assert_eq!(allowed(&name, VmState::Saved, VmVerb::Save), Ok(false));
    }
}

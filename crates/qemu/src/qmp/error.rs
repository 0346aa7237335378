//! What can go wrong between us and QEMU's control socket.

use std::path::PathBuf;
use std::time::Duration;

/// A control command that did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens.
    #[error("cannot connect to QEMU's control socket {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The socket accepts but says nothing: another client is connected, or QEMU hangs.
    #[error(
        "QEMU's control socket {path} did not greet within {after:?}: it serves one client at a time; \
         end the other one, or QEMU hangs"
    )]
    NoGreeting {
        /// The socket.
        path: PathBuf,
        /// How long we waited.
        after: Duration,
    },
    /// Something else than QEMU listens there.
    #[error("what listens on {path} is not QEMU's control protocol: it greeted with '{text}'")]
    NotQmp {
        /// The socket.
        path: PathBuf,
        /// The start of what it said.
        text: String,
    },
    /// QEMU said no.
    #[error("QEMU refused {command}: {desc} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class, `GenericError` for most.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// No answer in time. QEMU may still carry the command out.
    #[error("QEMU did not answer {command} within {after:?}")]
    Timeout {
        /// The command.
        command: String,
        /// How long we waited.
        after: Duration,
    },
    /// The connection ended before the answer came.
    #[error("QEMU's control connection ended before it answered {command}")]
    Disconnected {
        /// The command.
        command: String,
    },
    /// QEMU cannot take commands out of band.
    #[error("this QEMU did not offer out-of-band commands, so {command} cannot be sent past a hanging one")]
    NoOutOfBand {
        /// The command.
        command: String,
    },
    /// The answer has another shape than documented.
    #[error("QEMU's answer to {command} has an unexpected form")]
    Malformed {
        /// The command.
        command: String,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
}

impl QmpError {
    /// Whether the connection is gone, so that a new one may help.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Disconnected { .. } | Self::Connect { .. })
    }
}

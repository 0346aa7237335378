//! Plans: what will be written to a file, as a value that can be printed, compared and carried out.

use std::{fmt, io};

use thiserror::Error;

use crate::Storage;

/// Bytes of one planned write.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// These.
    Bytes(Vec<u8>),
    /// One byte, many times.
    Fill {
        /// The byte.
        byte: u8,
        /// How often.
        len: u64,
    },
}

impl Content {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Fill { len, .. } => *len,
        }
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Fill { byte, len } => write!(f, "{len} × {byte:#04x}"),
        }
    }
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Set the length of the file; new bytes read as zeros.
    SetLen(u64),
    /// Reserve space for the first bytes of the file, where the file system can.
    Allocate(u64),
    /// Write.
    Write {
        /// What it is.
        what: String,
        /// Where, in bytes.
        offset: u64,
        /// The bytes.
        content: Content,
    },
    /// Wait until everything before is durable.
    Flush,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetLen(len) => write!(f, "set length to {len}"),
            Self::Allocate(len) => write!(f, "reserve space for {len} bytes"),
            Self::Write { what, offset, content } => write!(f, "write {what} at {offset:#x}: {content:?}"),
            Self::Flush => f.write_str("flush"),
        }
    }
}

/// Why a plan could not be carried out.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The disk is full.
    #[error("there is not enough space: could not {step}")]
    NoSpace {
        /// The step that failed.
        step: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("could not {step}")]
    Io {
        /// The step that failed.
        step: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Carries out steps in order. `Allocate` is skipped where it is not supported.
///
/// # Errors
/// At the first step that fails; the file is then incomplete.
pub fn execute(steps: &[Step], storage: &dyn Storage) -> Result<(), PlanError> {
    execute_unless(steps, storage, &|| false).map(drop)
}

/// As [`execute`], but asks before each step, and within long ones, whether to give up. False: it was given up, the file
/// is incomplete.
///
/// # Errors
/// As [`execute`].
pub fn execute_unless(
    steps: &[Step],
    storage: &dyn Storage,
    give_up: &dyn Fn() -> bool,
) -> Result<bool, PlanError> {
    for step in steps {
        match execute_step(step, storage, give_up) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(e) if matches!(step, Step::Allocate(_)) && e.kind() == io::ErrorKind::Unsupported => {}
            Err(source) => {
                let step = step.to_string();
                let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
                return Err(if full {
                    PlanError::NoSpace { step, source }
                } else {
                    PlanError::Io { step, source }
                });
            }
        }
    }
    Ok(true)
}

fn execute_step(step: &Step, storage: &dyn Storage, give_up: &dyn Fn() -> bool) -> io::Result<bool> {
    const CHUNK: u64 = 1 << 20;
    // Some file systems take seconds for a GiB.
    const RESERVED_AT_ONCE: u64 = 256 << 20;
    if give_up() {
        return Ok(false);
    }
    match step {
        Step::SetLen(len) => storage.set_len(*len)?,
        Step::Allocate(len) => {
            let mut done = 0;
            while done < *len {
                if give_up() {
                    return Ok(false);
                }
                let part = (*len - done).min(RESERVED_AT_ONCE);
                storage.allocate(done, part)?;
                done += part;
            }
        }
        Step::Write { offset, content: Content::Bytes(bytes), .. } => storage.write_at(bytes, *offset)?,
        Step::Write { offset, content: Content::Fill { byte, len }, .. } => {
            let chunk = vec![*byte; usize::try_from(CHUNK.min(*len)).unwrap_or(usize::MAX)];
            let mut done = 0;
            while done < *len {
                let part = usize::try_from((*len - done).min(CHUNK)).unwrap_or(usize::MAX);
                storage.write_at(chunk.get(..part).unwrap_or(&chunk), offset + done)?;
                done += part as u64;
            }
        }
        Step::Flush => storage.flush()?,
    }
    Ok(true)
}

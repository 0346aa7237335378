//! Exit codes, and how a failure is told.

use backstay_api::{ClientError, Problem, ProblemCode};
use backstay_disk::{ConvertError, CreateError, ForeignError, OpenError};
use std::io::{self, Write};
use std::process::ExitCode;

/// A failure with an exit code of its own choosing.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Fail {
    code: u8,
    message: String,
}

impl Fail {
    /// 1: it failed.
    pub fn error(message: impl Into<String>) -> anyhow::Error {
        Self { code: 1, message: message.into() }.into()
    }

    /// 2: the command cannot be understood or lacks something.
    pub fn usage(message: impl Into<String>) -> anyhow::Error {
        Self { code: 2, message: message.into() }.into()
    }

    /// 3: the named thing does not exist.
    pub fn not_found(message: impl Into<String>) -> anyhow::Error {
        Self { code: 3, message: message.into() }.into()
    }

    /// 5: the state of things does not allow it.
    pub fn conflict(message: impl Into<String>) -> anyhow::Error {
        Self { code: 5, message: message.into() }.into()
    }

    /// 6: waiting took too long, the task goes on.
    pub fn timed_out(message: impl Into<String>) -> anyhow::Error {
        Self { code: 6, message: message.into() }.into()
    }

    /// 7: done, but something is not as it should be.
    pub fn degraded(message: impl Into<String>) -> anyhow::Error {
        Self { code: 7, message: message.into() }.into()
    }

    /// 130: Ctrl-C.
    pub fn interrupted(message: impl Into<String>) -> anyhow::Error {
        Self { code: 130, message: message.into() }.into()
    }
}

/// The reader of standard output has gone: nobody is left to tell anything.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct Closed;

/// Tells the failure on standard error and says what to exit with.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<Closed>()) {
        return ExitCode::SUCCESS;
    }
    // Not eprintln: it panics when standard error is closed.
    let _ = writeln!(io::stderr(), "backstay: {}", message(error));
    ExitCode::from(code_of(error))
}

/// The error with its causes in one line. Of what is below a failed call only the last cause is worth telling: the
/// layers of the HTTP client in between say the same in other words.
fn message(error: &anyhow::Error) -> String {
    let causes: Vec<&(dyn std::error::Error + 'static)> = error.chain().collect();
    let call = causes.iter().position(|cause| cause.is::<ClientError>()).unwrap_or(causes.len());
    let told = causes.iter().enumerate().filter(|(at, _)| *at <= call || at + 1 == causes.len());
    told.map(|(_, cause)| cause.to_string()).collect::<Vec<_>>().join(": ")
}

/// The exit code of a failure: the first cause that has one decides.
fn code_of(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(fail) = cause.downcast_ref::<Fail>() {
            return fail.code;
        }
        if let Some(client) = cause.downcast_ref::<ClientError>() {
            return client.exit_code();
        }
        if let Some(problem) = cause.downcast_ref::<Problem>() {
            return problem.code.exit_code();
        }
        if let Some(code) = disk_code(cause) {
            return code;
        }
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return code_of_io(io.kind());
        }
    }
    1
}

/// Exit code of a failure of the disk engine, unless a cause below decides.
fn disk_code(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    let boxed = cause.downcast_ref::<Box<OpenError>>().map(AsRef::as_ref);
    if let Some(open) = cause.downcast_ref::<OpenError>().or(boxed) {
        return match open {
            OpenError::Io { source, .. } => Some(code_of_io(source.kind())),
            OpenError::NotFound { .. } => Some(ProblemCode::NotFound.exit_code()),
            OpenError::ReadOnlyFileSystem { .. } => Some(ProblemCode::Denied.exit_code()),
            OpenError::UnknownFormat { .. } => Some(ProblemCode::Invalid.exit_code()),
            _ => Some(ProblemCode::Damaged.exit_code()),
        };
    }
    match cause.downcast_ref::<ForeignError>() {
        Some(ForeignError::Io { source, .. }) => return Some(code_of_io(source.kind())),
        Some(ForeignError::NoTool { .. }) => return Some(ProblemCode::Precondition.exit_code()),
        Some(ForeignError::Outside { .. } | ForeignError::Name { .. }) => {
            return Some(ProblemCode::Denied.exit_code());
        }
        Some(_) => return Some(ProblemCode::Damaged.exit_code()),
        None => {}
    }
    if let Some(ConvertError::Unreadable { .. }) = cause.downcast_ref::<ConvertError>() {
        return Some(ProblemCode::Damaged.exit_code());
    }
    match cause.downcast_ref::<CreateError>()? {
        CreateError::Exists { .. }
        | CreateError::RawParent { .. }
        | CreateError::TooDeep { .. }
        | CreateError::ParentName { .. } => Some(ProblemCode::Exists.exit_code()),
        CreateError::Invalid { .. } | CreateError::InvalidVhdx { .. } => {
            Some(ProblemCode::Invalid.exit_code())
        }
        CreateError::NoSpace { .. } => Some(ProblemCode::NoSpace.exit_code()),
        CreateError::Cancelled { .. } => Some(130),
        _ => None,
    }
}

/// Exit code of a failed file operation.
pub fn code_of_io(kind: io::ErrorKind) -> u8 {
    match kind {
        io::ErrorKind::NotFound => ProblemCode::NotFound.exit_code(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ProblemCode::Denied.exit_code()
        }
        io::ErrorKind::AlreadyExists | io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy => {
            ProblemCode::Exists.exit_code()
        }
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_that_has_a_code_decides() {
        let io = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(code_of(&anyhow::Error::new(io).context("cannot open x")), 3);
        let problem = Problem::new(ProblemCode::Busy, "x");
        assert_eq!(code_of(&ClientError::Problem(problem).into()), 5);
        assert_eq!(code_of(&Fail::timed_out("x")), 6);
        assert_eq!(code_of(&anyhow::anyhow!("x")), 1);
    }
}

//! A failed or refused operation, on its way to the user.

use backstay_api::{Blocker, Problem, ProblemCode};
use std::error::Error as StdError;
use std::fmt;

/// Why an operation was refused or failed: thing, rule, cure, and the cause below it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    code: ProblemCode,
    message: String,
    blockers: Vec<Blocker>,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Failure {
    /// A failure without a deeper cause.
    #[must_use]
    pub fn new(code: ProblemCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), blockers: Vec::new(), source: None }
    }

    /// A failure with its cause.
    #[must_use]
    pub fn because(
        code: ProblemCode,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { code, message: message.into(), blockers: Vec::new(), source: Some(source.into()) }
    }

    /// A failed access to a file; a full disk is told apart.
    #[must_use]
    pub fn file(what: &str, path: &std::path::Path, source: std::io::Error) -> Self {
        let code = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ProblemCode::NoSpace,
            std::io::ErrorKind::NotFound => ProblemCode::NotFound,
            std::io::ErrorKind::PermissionDenied => ProblemCode::Denied,
            _ => ProblemCode::Internal,
        };
        Self::because(code, format!("{what} {} failed", path.display()), source)
    }

    /// The request breaks a rule.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ProblemCode::Invalid, message)
    }

    /// The named thing does not exist.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ProblemCode::NotFound, message)
    }

    /// The thing's state does not allow it.
    #[must_use]
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(ProblemCode::Precondition, message)
    }

    /// The same with everything that stands in the way.
    #[must_use]
    pub fn with_blockers(mut self, blockers: Vec<Blocker>) -> Self {
        self.blockers = blockers;
        self
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn code(&self) -> ProblemCode {
        self.code
    }

    /// The message with the whole chain of causes.
    #[must_use]
    pub fn full_message(&self) -> String {
        match &self.source {
            Some(source) => format!("{}: {}", self.message, chain(source.as_ref())),
            None => self.message.clone(),
        }
    }

    /// What goes over the wire.
    #[must_use]
    pub fn to_problem(&self) -> Problem {
        Problem::new(self.code, self.full_message()).with_blockers(self.blockers.clone())
    }
}

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    struct Chain<'a>(&'a (dyn StdError + 'static));
    impl fmt::Display for Chain<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}", self.0)?;
            let mut said = self.0.to_string();
            let mut cause = self.0.source();
            while let Some(error) = cause {
                let text = error.to_string();
                // A transparent wrapper says the same words as its source.
                if text != said {
                    write!(f, ": {text}")?;
                    said = text;
                }
                cause = error.source();
            }
            Ok(())
        }
    }
    Chain(error).to_string()
}

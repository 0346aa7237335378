//! Failures: RFC 9457 `application/problem+json`.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// What kind of failure it is. The HTTP status and the exit code of the command line follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemCode {
    /// The request cannot be understood or breaks a rule that no state of the host could satisfy.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// The caller may not do that.
    Denied,
    /// A thing of that name or GUID exists already.
    Exists,
    /// Another task works on the same thing.
    Busy,
    /// The thing's state does not allow it.
    Precondition,
    /// A file or device is used by somebody else.
    InUse,
    /// The record was changed since it was read (generation).
    Stale,
    /// A disk or its chain is damaged or incomplete.
    Damaged,
    /// A saved memory state cannot be loaded here.
    NotRestorable,
    /// No space is left.
    NoSpace,
    /// The task was cancelled.
    Cancelled,
    /// The daemon was stopped while the task ran.
    Interrupted,
    /// It took too long; it may still be running.
    Timeout,
    /// A part that is needed does not answer.
    Unavailable,
    /// A fault of Backstay itself.
    Internal,
}

impl ProblemCode {
    /// Every code, for documentation and `explain`.
    pub const ALL: [Self; 16] = [
        Self::Invalid,
        Self::NotFound,
        Self::Denied,
        Self::Exists,
        Self::Busy,
        Self::Precondition,
        Self::InUse,
        Self::Stale,
        Self::Damaged,
        Self::NotRestorable,
        Self::NoSpace,
        Self::Cancelled,
        Self::Interrupted,
        Self::Timeout,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
            Self::Denied => "denied",
            Self::Exists => "exists",
            Self::Busy => "busy",
            Self::Precondition => "precondition",
            Self::InUse => "in-use",
            Self::Stale => "stale",
            Self::Damaged => "damaged",
            Self::NotRestorable => "not-restorable",
            Self::NoSpace => "no-space",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// One short sentence that is the same for every occurrence.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Invalid => "The request breaks a rule",
            Self::NotFound => "Not found",
            Self::Denied => "Not allowed",
            Self::Exists => "Exists already",
            Self::Busy => "Another task is working on it",
            Self::Precondition => "Not possible in this state",
            Self::InUse => "In use",
            Self::Stale => "Changed in the meantime",
            Self::Damaged => "A disk is damaged or incomplete",
            Self::NotRestorable => "The saved memory cannot be loaded",
            Self::NoSpace => "No space left",
            Self::Cancelled => "Cancelled",
            Self::Interrupted => "Interrupted",
            Self::Timeout => "Timed out",
            Self::Unavailable => "Not available",
            Self::Internal => "Internal fault",
        }
    }

    /// The HTTP status it travels with.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 422,
            Self::NotFound => 404,
            Self::Denied => 403,
            Self::Exists
            | Self::Busy
            | Self::Precondition
            | Self::InUse
            | Self::Damaged
            | Self::NotRestorable
            | Self::Cancelled => 409,
            Self::Stale => 412,
            Self::NoSpace => 507,
            Self::Timeout => 504,
            Self::Interrupted | Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }

    /// What the command line exits with: 1 error, 2 usage, 3 not found, 4 denied, 5 conflict or precondition,
    /// 6 timed out.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Exists
            | Self::Busy
            | Self::Precondition
            | Self::InUse
            | Self::Stale
            | Self::Damaged
            | Self::NotRestorable => 5,
            Self::Timeout => 6,
            Self::NoSpace | Self::Cancelled | Self::Interrupted | Self::Unavailable | Self::Internal => 1,
        }
    }
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One thing that stands in the way, so that a user interface can say why a button is disabled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Blocker {
    /// What kind.
    pub code: ProblemCode,
    /// Thing and rule.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

/// A failure as RFC 9457 describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A stable address that names the kind: `urn:backstay:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind.
    pub code: ProblemCode,
    /// The kind in words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// This occurrence: thing, rule and cure.
    pub detail: String,
    /// What stands in the way, when there is more than one thing to say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<Blocker>,
}

impl Problem {
    /// A problem of kind `code`.
    #[must_use]
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:backstay:problem:{code}"),
            code,
            title: code.title().into(),
            status: code.status(),
            detail: detail.into(),
            blockers: Vec::new(),
        }
    }

    /// The same with what stands in the way.
    #[must_use]
    pub fn with_blockers(mut self, blockers: Vec<Blocker>) -> Self {
        self.blockers = blockers;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        for blocker in &self.blockers {
            write!(f, "\n  - {}", blocker.detail)?;
            if let Some(cure) = &blocker.cure {
                write!(f, ": {cure}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_on_the_wire_is_the_word_in_the_type() {
        for code in ProblemCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            let problem = Problem::new(code, "x");
            assert_eq!(problem.kind, format!("urn:backstay:problem:{}", code.as_str()));
            assert!((400..600).contains(&problem.status));
        }
    }
}

//! What kind of failure an error of the disk engine is.

use crate::control::FailureKind;
use backstay_disk::{CompactError, MergeError, OpenError, ReparentError, ResizeError};

impl FailureKind {
    /// Of a merge.
    #[must_use]
    pub fn of_merge(error: &MergeError) -> Self {
        match error {
            // Its layers are not as they were looked at, which passes.
            MergeError::Busy { .. } | MergeError::NotInChain { .. } => Self::InUse,
            MergeError::SizeDiffers { .. }
            | MergeError::SavedState { .. }
            | MergeError::ReadOnly { .. }
            | MergeError::NoParent { .. }
            | MergeError::ChildOfTop { .. } => Self::Refused,
            MergeError::Resize { source, .. } => Self::of_resize(source),
            MergeError::Open { source, .. } => Self::of_open(source),
            MergeError::NoSpace { .. } => Self::NoSpace,
            MergeError::Reparent { source, .. } => Self::of_reparent(source),
            _ => Self::Trouble,
        }
    }

    /// Of a compaction.
    #[must_use]
    pub fn of_compact(error: &CompactError) -> Self {
        match error {
            CompactError::Busy { .. } => Self::InUse,
            CompactError::ReadOnly { .. }
            | CompactError::Fixed { .. }
            | CompactError::Raw { .. }
            | CompactError::XenMap { .. }
            | CompactError::SavedState { .. } => Self::Refused,
            CompactError::Open { source, .. } => Self::of_open(source),
            CompactError::NoSpace { .. } => Self::NoSpace,
            _ => Self::Trouble,
        }
    }

    fn of_resize(error: &ResizeError) -> Self {
        match error {
            ResizeError::Busy { .. } => Self::InUse,
            ResizeError::Open { source, .. } => Self::of_open(source),
            ResizeError::NoSpace { .. } => Self::NoSpace,
            ResizeError::Closed { .. } | ResizeError::Hanging { .. } | ResizeError::Io { .. } => {
                Self::Trouble
            }
            _ => Self::Refused,
        }
    }

    fn of_reparent(error: &ReparentError) -> Self {
        match error {
            ReparentError::Open(source) => Self::of_open(source),
            ReparentError::NotDifferencing { .. } | ReparentError::OtherParent { .. } => Self::Refused,
            _ => Self::Trouble,
        }
    }

    fn of_open(error: &OpenError) -> Self {
        match error {
            OpenError::InUse { .. } | OpenError::Claimed { .. } => Self::InUse,
            OpenError::Io { .. } | OpenError::Replaced { .. } | OpenError::NotFound { .. } => Self::Trouble,
            OpenError::ReadOnlyFileSystem { .. } | OpenError::LockUnsupported { .. } => Self::Refused,
            _ => Self::Damaged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::MergeOutcome;
    use std::path::PathBuf;

    #[test]
    fn a_rule_is_told_from_what_passes() {
        let (upper, lower) = (PathBuf::from("u"), PathBuf::from("l"));
        let smaller = MergeError::SizeDiffers {
            upper: upper.clone(),
            upper_size: 1,
            lower: lower.clone(),
            lower_size: 2,
        };
        assert_eq!(FailureKind::of_merge(&smaller), FailureKind::Refused);
        let locked = OpenError::InUse { path: lower, holder: None };
        let locked = MergeError::Open { upper: upper.clone(), source: Box::new(locked) };
        assert_eq!(FailureKind::of_merge(&locked), FailureKind::InUse);
        let source = std::io::Error::other("x");
        let io = MergeError::Io { path: upper.clone(), action: "read", source };
        assert_eq!(FailureKind::of_merge(&io), FailureKind::Trouble);
        assert_eq!(FailureKind::of_compact(&CompactError::Fixed { path: upper }), FailureKind::Refused);
    }

    #[test]
    fn what_an_older_or_a_newer_worker_says_is_tried_again() {
        for text in [
            r#"{"stage":"failed","message":"x"}"#,
            r#"{"stage":"failed","message":"x","kind":"of-the-future"}"#,
            r#"{"stage":"failed","message":"x","kind":"trouble"}"#,
        ] {
            let read: MergeOutcome = serde_json::from_str(text).unwrap();
            assert_eq!(
                read,
                MergeOutcome::Failed { message: "x".into(), kind: FailureKind::Trouble },
                "{text}"
            );
        }
        let refused = MergeOutcome::Failed { message: "x".into(), kind: FailureKind::Refused };
        let text = serde_json::to_string(&refused).unwrap();
        assert_eq!(serde_json::from_str::<MergeOutcome>(&text).unwrap(), refused);
    }
}

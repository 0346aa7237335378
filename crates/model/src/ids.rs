//! One id type per noun, so that a checkpoint's id never reaches a call that wants a machine's.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// A string that is not a GUID.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{text}' is not a GUID (8-4-4-4-12 hexadecimal digits, braces allowed)")]
pub struct ParseIdError {
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            /// Upper case without braces, as Hyper-V writes GUIDs in file names.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:X}", self.0.hyphenated())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:X})"), self.0.hyphenated())
            }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                Uuid::try_parse(text.trim()).map(Self).map_err(|_| ParseIdError { text: text.into() })
            }
        }
    };
}

id!(
    /// A virtual machine's GUID (`properties/global_id` of its configuration).
    VmId
);
id!(
    /// A checkpoint's GUID; its files are named after it.
    CheckpointId
);
id!(
    /// A network adapter's GUID (the device instance in Hyper-V's configuration).
    NicId
);
id!(
    /// A task's id in the task list.
    TaskId
);

/// The number of times a stored record has been written; a write names the generation it replaces (compare-and-swap).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation the next write produces.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_as_hyper_v_names_files_and_read_braces() {
        let id: VmId = "{0aa394fa-7c4a-4070-ba32-773d43b28a68}".parse().unwrap();
        assert_eq!(id.to_string(), "0AA394FA-7C4A-4070-BA32-773D43B28A68");
        assert!("nonsense".parse::<VmId>().is_err());
    }
}

//! Names of nodes, groups, resources, storage and switches: cheap to copy, one type each.

use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::{fmt, str::FromStr, sync::Arc};

/// A text that cannot be a name in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing is left to show.
    #[error("a name cannot be empty: give 1 to 100 characters")]
    Empty,
    /// Longer than any list can show.
    #[error("the name has {0} characters, at most 100 are allowed: shorten it")]
    TooLong(usize),
    /// Control characters damage terminals and logs, a slash separates the parts of a key in the store.
    #[error("the name contains {0:?}: names have neither control characters nor a slash")]
    Character(char),
}

fn checked(text: &str) -> Result<Arc<str>, NameError> {
    let text = text.trim();
    let count = text.chars().count();
    if count == 0 {
        return Err(NameError::Empty);
    }
    if count > 100 {
        return Err(NameError::TooLong(count));
    }
    match text.chars().find(|c| c.is_control() || *c == '/') {
        Some(c) => Err(NameError::Character(c)),
        None => Ok(text.into()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text`; blanks at its ends are removed.
            ///
            /// # Errors
            /// The first rule that `text` breaks.
            pub fn new(text: &str) -> Result<Self, NameError> {
                checked(text).map(Self)
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().into()
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name!(
    /// A machine of the cluster.
    NodeName
);
name!(
    /// A group: the resources that move together ("service or application" in the 2008 consoles).
    GroupName
);
name!(
    /// A resource, unique within its group.
    ResourceName
);
name!(
    /// A storage that several nodes reach: a shared folder or a cluster disk.
    StorageName
);
name!(
    /// A virtual switch.
    SwitchName
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_part_of_a_key() {
        assert_eq!(NodeName::new(" node-a ").unwrap().as_str(), "node-a");
        assert_eq!(NodeName::new("a/b"), Err(NameError::Character('/')));
        assert_eq!(GroupName::new(" "), Err(NameError::Empty));
        assert_eq!(GroupName::new(&"x".repeat(101)), Err(NameError::TooLong(101)));
    }
}

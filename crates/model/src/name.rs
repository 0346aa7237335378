//! A virtual machine's display name. Names are for people: any character that can be shown is allowed, because
//! files are named by GUID and never by this.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A display name: 1–100 characters, no control characters, no blank at either end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

/// Why a text cannot be a name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// Nothing is left to show.
    #[error("a name cannot be empty: give 1 to 100 characters")]
    Empty,
    /// Hyper-V's limit.
    #[error("the name has {0} characters, at most 100 are allowed: shorten it")]
    TooLong(usize),
    /// Control characters would damage terminals and logs.
    #[error("the name contains the control character U+{0:04X}: remove it")]
    Control(u32),
    /// Blanks at the ends cannot be seen and make two names look alike.
    #[error("the name starts or ends with a blank: remove it")]
    Blank,
}

impl VmName {
    /// Checks `text` against the rules.
    ///
    /// # Errors
    /// The first rule that `text` breaks.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        if text.trim().is_empty() {
            return Err(NameError::Empty);
        }
        if let Some(c) = text
            .chars()
            .find(|c| c.is_control() || matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}'))
        {
            return Err(NameError::Control(c.into()));
        }
        if text.trim() != text {
            return Err(NameError::Blank);
        }
        let count = text.chars().count();
        if count > 100 {
            return Err(NameError::TooLong(count));
        }
        Ok(Self(text))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A file name stem made of this name: what a file system or a shell could trip over becomes `_`.
    #[must_use]
    pub fn file_stem(&self) -> String {
        let stem: String = self
            .0
            .chars()
            .map(|c| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ') { c } else { '_' })
            .collect();
        // 60 characters of up to 4 bytes leave room below NAME_MAX (255 bytes) for a GUID and an extension.
        let stem: String = stem.trim_matches(['.', ' ']).chars().take(50).collect();
        if stem.is_empty() { "disk".into() } else { stem }
    }
}

impl TryFrom<String> for VmName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(text)
    }
}
impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}
impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_characters_are_names_but_control_characters_are_not() {
        for ok in ["web", "Пошта №1", "a/b\\c:*?\"<>|", "'; drop table --", "..", "$(reboot)", "日本語"]
        {
            assert!(VmName::new(ok).is_ok(), "{ok}");
        }
        assert_eq!(VmName::new("a\nb"), Err(NameError::Control(10)));
        assert_eq!(VmName::new(" "), Err(NameError::Empty));
        assert_eq!(VmName::new("a "), Err(NameError::Blank));
        assert_eq!(VmName::new("x".repeat(101)), Err(NameError::TooLong(101)));
    }

    #[test]
    fn file_stems_never_leave_their_folder() {
        assert_eq!(VmName::new("../../etc").unwrap().file_stem(), "_.._etc");
        assert_eq!(VmName::new("..").unwrap().file_stem(), "disk");
        assert!(VmName::new("語".repeat(100)).unwrap().file_stem().len() <= 200);
    }
}

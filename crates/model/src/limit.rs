//! How much a machine may ask of one of its disks.

use crate::ByteSize;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most that a disk carries out, reads and writes together. Nothing given: as much as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimit {
    /// Requests per second, at least [`IoLimit::LEAST_IOPS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Bytes per second, at least [`IoLimit::LEAST_BYTES_PER_SECOND`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

/// A limit that a guest could not live with.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IoLimitError {
    /// Too few requests.
    #[error(
        "a limit of {0} IOPS: it is at least {least}, or guests take the disk for broken",
        least = IoLimit::LEAST_IOPS
    )]
    Iops(u64),
    /// Too few bytes.
    #[error(
        "a limit of {found} per second: it is at least {least}, or guests take the disk for broken",
        found = ByteSize(*.0),
        least = ByteSize(IoLimit::LEAST_BYTES_PER_SECOND)
    )]
    Bytes(u64),
}

impl IoLimit {
    /// Least number of requests per second: a guest that has 256 of them queued gets the last one within its patience,
    /// which is 30 s.
    pub const LEAST_IOPS: u64 = 10;
    /// Least bytes per second: so that a guest's largest requests end within its patience.
    pub const LEAST_BYTES_PER_SECOND: u64 = 1 << 20;

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// Checks both ranges.
    ///
    /// # Errors
    /// The first number that is out of its range.
    pub fn validate(&self) -> Result<(), IoLimitError> {
        match (self.iops, self.bytes_per_second) {
            (Some(iops), _) if iops < Self::LEAST_IOPS => Err(IoLimitError::Iops(iops)),
            (_, Some(bytes)) if bytes < Self::LEAST_BYTES_PER_SECOND => Err(IoLimitError::Bytes(bytes)),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for IoLimit {
    /// `500 IOPS, 20 MiB/s`; `none`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let iops = self.iops.map(|iops| format!("{iops} IOPS"));
        let bytes = self.bytes_per_second.map(|bytes| format!("{}/s", ByteSize(bytes)));
        let parts: Vec<String> = iops.into_iter().chain(bytes).collect();
        if parts.is_empty() { f.pad("none") } else { f.pad(&parts.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_say_what_they_are_and_guests_can_live_with_them() {
        let limit = |iops, bytes_per_second| IoLimit { iops, bytes_per_second };
        for (limit, words) in [
            (limit(None, None), "none"),
            (limit(Some(500), None), "500 IOPS"),
            (limit(Some(500), Some(20 << 20)), "500 IOPS, 20 MiB/s"),
        ] {
            assert_eq!(limit.to_string(), words);
            assert_eq!(limit.validate(), Ok(()));
        }
        assert_eq!(limit(Some(9), None).validate(), Err(IoLimitError::Iops(9)));
        assert_eq!(limit(Some(10), Some(1000)).validate(), Err(IoLimitError::Bytes(1000)));
        assert!(limit(None, Some(0)).validate().unwrap_err().to_string().contains("at least 1 MiB"));
    }
}

//! Records of `/dev/kmsg`: `prefix,sequence,microseconds,flags;message`, then lines of `KEY=value`, each behind a blank.

/// One message of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// 0 (emergency) to 7 (debug).
    pub(super) level: u8,
    /// 0 is the kernel itself; others are programs that wrote to `/dev/kmsg`.
    pub(super) facility: u32,
    /// Its number; numbers only grow until the next boot.
    pub(super) seq: u64,
    /// The text.
    pub(super) message: String,
}

impl Record {
    /// Reads one record as `read` returns it. None for what breaks the format.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (prefix, rest) = text.split_once(';')?;
        let mut fields = prefix.split(',');
        let priority: u32 = fields.next()?.parse().ok()?;
        let seq = fields.next()?.parse().ok()?;
        let message = unescape(rest.split('\n').next()?);
        Some(Self { level: u8::try_from(priority & 7).ok()?, facility: priority >> 3, seq, message })
    }
}

/// The kernel writes bytes that cannot be printed as `\x1b`.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\\x") {
        plain.push_str(&rest[..at]);
        let code = rest.get(at + 2..at + 4).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(byte) => {
                plain.push(if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '?' });
                rest = &rest[at + 4..];
            }
            None => {
                plain.push_str("\\x");
                rest = &rest[at + 2..];
            }
        }
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_rubbish_is_not() {
        let bytes =
            b"3,1339,5140900,-;I/O error, dev sda, sector 42; really\n SUBSYSTEM=block\n DEVICE=b8:0\n";
        let record = Record::parse(bytes).unwrap();
        assert_eq!((record.level, record.facility, record.seq), (3, 0, 1339));
        assert_eq!(record.message, "I/O error, dev sda, sector 42; really");
        let user = Record::parse(b"11,7,1,-,caller=T12;hello \\x1b[0m \\xzz\n").unwrap();
        assert_eq!((user.level, user.facility, user.message.as_str()), (3, 1, "hello ?[0m \\xzz"));
        for rubbish in [&b""[..], b"no", b"a,b;c", b"3;x", b"\xff\xfe;"] {
            assert_eq!(Record::parse(rubbish), None, "{rubbish:?}");
        }
    }
}

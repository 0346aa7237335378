//! What the kernel's messages say about storage. Pure; the wording is that of Linux 4.19 to 6.18.

use super::record::Record;

/// Something is wrong with storage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Trouble {
    /// What kind.
    pub(super) kind: Kind,
    /// The kernel's name of the device: `sda1`, `nvme0n1`, `dm-3`, `ata1.00`.
    pub(super) device: String,
    /// The kernel's words, without numbers that differ each time.
    pub(super) class: String,
}

/// What kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The device.
    Device,
    /// The file system on it.
    FileSystem,
}

impl Kind {
    /// The type of the event.
    pub(super) fn event(self) -> &'static str {
        match self {
            Self::Device => "host.disk-error",
            Self::FileSystem => "host.filesystem-error",
        }
    }
}

/// What a message says about storage; none for all others.
pub(super) fn meaning(record: &Record) -> Option<Trouble> {
    // What programs write there is not the kernel's word; and what it only remarks is no trouble.
    if record.facility != 0 || record.level > 6 {
        return None;
    }
    let text = record.message.as_str();
    block_layer(text)
        .or_else(|| buffer(text))
        .or_else(|| scsi(text))
        .or_else(|| ata(text))
        .or_else(|| nvme(text))
        .or_else(|| raid(text))
        .or_else(|| ext4(text))
        .or_else(|| xfs(text))
        .or_else(|| btrfs(text))
}

fn trouble(kind: Kind, device: &str, class: impl Into<String>) -> Option<Trouble> {
    let device = device.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    (!device.is_empty()).then(|| Trouble { kind, device: device.into(), class: class.into() })
}

/// The text up to the first of `ends`.
fn until<'a>(text: &'a str, ends: &[char]) -> &'a str {
    text.find(ends).map_or(text, |end| &text[..end])
}

/// `critical medium error, dev sda, sector 1234 op 0x0:(READ) …`
fn block_layer(text: &str) -> Option<Trouble> {
    let text = ["blk_update_request: ", "print_req_error: ", "end_request: "]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .unwrap_or(text);
    let (class, rest) = text.split_once(", dev ")?;
    let is_error = class.ends_with(" error") && class.len() < 40;
    let (device, rest) = rest.split_once(", sector ")?;
    let operation = rest.split_once(":(").map(|(_, rest)| until(rest, &[')']).to_lowercase());
    let class = operation.map_or_else(|| class.to_owned(), |operation| format!("{class} ({operation})"));
    is_error.then(|| trouble(Kind::Device, device, class))?
}

/// `Buffer I/O error on dev sda1, logical block 7, lost async page write`
fn buffer(text: &str) -> Option<Trouble> {
    let rest = text
        .strip_prefix("Buffer I/O error on dev ")
        .or_else(|| text.strip_prefix("Buffer I/O error on device "))?;
    let what = rest.splitn(3, ", ").nth(2).unwrap_or("of a buffer");
    trouble(Kind::Device, until(rest, &[',']), format!("I/O error: {what}"))
}

/// `sd 0:0:0:0: [sda] tag#3 Sense Key : Medium Error [current]`
fn scsi(text: &str) -> Option<Trouble> {
    let (_, rest) = text.split_once(": [")?;
    let (device, rest) = rest.split_once(']')?;
    let (_, key) = rest.split_once("Sense Key : ")?;
    let key = until(key, &['[']).trim();
    let grave = key.eq_ignore_ascii_case("Medium Error") || key.eq_ignore_ascii_case("Hardware Error");
    grave.then(|| trouble(Kind::Device, device, key.to_lowercase()))?
}

/// `ata1.00: failed command: READ FPDMA QUEUED`
fn ata(text: &str) -> Option<Trouble> {
    let (port, rest) = text.strip_prefix("ata").and_then(|rest| rest.split_once(": "))?;
    let is_port = port.starts_with(|c: char| c.is_ascii_digit());
    let class = match rest {
        rest if rest.starts_with("failed command: ") => rest.to_owned(),
        "disabled" | "disable device" => "the device was disabled".to_owned(),
        _ => return None,
    };
    is_port.then(|| trouble(Kind::Device, &format!("ata{port}"), class))?
}

/// `nvme nvme0: I/O 12 QID 4 timeout, aborting`
fn nvme(text: &str) -> Option<Trouble> {
    let (device, rest) = text.strip_prefix("nvme ").and_then(|rest| rest.split_once(": "))?;
    let classes = [
        ("timeout, ", "requests time out"),
        ("controller is down", "the controller is down"),
        ("Device not ready", "the device is not ready"),
        ("Removing after probe failure", "the device was removed after a failure"),
        ("Disabling device after reset failure", "the device was disabled after a failed reset"),
    ];
    let (_, class) = classes.into_iter().find(|(words, _)| rest.contains(words))?;
    trouble(Kind::Device, device, class)
}

/// `md/raid1:md0: Disk failure on sdb1, disabling device.`
fn raid(text: &str) -> Option<Trouble> {
    if let Some(rest) = text.strip_prefix("md/").and_then(|rest| rest.split_once(": Disk failure on ")) {
        let array = rest.0.rsplit(':').next().unwrap_or_default();
        return trouble(Kind::Device, until(rest.1, &[',', ' ']), format!("failed in the array {array}"));
    }
    if text.starts_with("device-mapper: thin: ") && text.contains("out-of-data-space") {
        let pool = text.trim_start_matches("device-mapper: thin: ").split(": ").next().unwrap_or_default();
        return trouble(Kind::Device, pool, "the thin pool is full");
    }
    None
}

fn ext4(text: &str) -> Option<Trouble> {
    if let Some((_, rest)) = text.split_once("-fs error (device ")
        && text.starts_with("EXT")
    {
        let (device, rest) = rest.split_once(')')?;
        let place = rest.trim_start_matches([':', ' ']).trim_start_matches("in ");
        let class = format!("error in {}", until(place, &[':', ' ']));
        return trouble(Kind::FileSystem, device, class);
    }
    if let Some(rest) = text.strip_prefix("EXT4-fs (") {
        let (device, rest) = rest.split_once("): ")?;
        let classes = [
            ("Remounting filesystem read-only", "was made read-only"),
            ("This should not happen!! Data will be lost", "data is lost"),
            ("shut down requested", "was shut down"),
        ];
        let (_, class) = classes.into_iter().find(|(words, _)| rest.contains(words))?;
        return trouble(Kind::FileSystem, device, class);
    }
    let device = text.strip_prefix("Aborting journal on device ")?;
    // The journal of sda1 is sda1-8.
    trouble(Kind::FileSystem, until(device, &['-']).trim_end_matches('.'), "its journal was given up")
        .map(|trouble| if device.starts_with("dm-") { dm_journal(device, trouble) } else { trouble })
}

/// `dm-3-8.` is the journal of `dm-3`.
fn dm_journal(device: &str, trouble: Trouble) -> Trouble {
    let parts: Vec<&str> = device.trim_end_matches('.').split('-').take(2).collect();
    Trouble { device: parts.join("-"), ..trouble }
}

fn xfs(text: &str) -> Option<Trouble> {
    let (device, rest) = text.strip_prefix("XFS (").and_then(|rest| rest.split_once("): "))?;
    let classes = [
        ("Shutting down filesystem", "was shut down"),
        ("hutting down filesystem", "was shut down"),
        ("Filesystem has been shut down", "was shut down"),
        ("metadata I/O error", "metadata I/O error"),
        ("log I/O error", "log I/O error"),
        ("Metadata CRC error", "metadata is damaged"),
        ("Metadata corruption detected", "metadata is damaged"),
        ("Internal error", "internal error"),
        ("writeback error", "data is lost"),
    ];
    let (_, class) = classes.into_iter().find(|(words, _)| rest.contains(words))?;
    trouble(Kind::FileSystem, device, class)
}

/// `BTRFS error (device sdb1): bdev /dev/sdb1 errs: wr 1, rd 0, flush 0, corrupt 0, gen 0`
fn btrfs(text: &str) -> Option<Trouble> {
    let (level, rest) = text.strip_prefix("BTRFS ").and_then(|rest| rest.split_once(" (device "))?;
    let (device, rest) = rest.split_once(')')?;
    let device = until(device, &[' ', ':']);
    match (level.trim_end_matches(':'), rest) {
        (_, rest) if rest.contains("forced readonly") => {
            trouble(Kind::FileSystem, device, "was made read-only")
        }
        ("error" | "critical", rest) if rest.contains(" errs: ") => {
            trouble(Kind::FileSystem, device, "errors of its device")
        }
        ("error" | "critical", _) => trouble(Kind::FileSystem, device, "error"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(message: &str) -> Option<(Kind, String, String)> {
        let record = Record { level: 3, facility: 0, seq: 1, message: message.into() };
        meaning(&record).map(|t| (t.kind, t.device, t.class))
    }

    /// Lines as kernels of several versions have written them.
    #[test]
    fn troubles_of_devices_are_told_from_each_other() {
        all_are(
            Kind::Device,
            &[
                ("blk_update_request: I/O error, dev sda, sector 789012", "sda", "I/O error"),
                (
                    "blk_update_request: critical medium error, dev sdb, sector 3907028992 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 0",
                    "sdb",
                    "critical medium error (read)",
                ),
                (
                    "I/O error, dev loop0, sector 2048 op 0x1:(WRITE) flags 0x8800 phys_seg 1 prio class 2",
                    "loop0",
                    "I/O error (write)",
                ),
                (
                    "critical target error, dev nvme0n1, sector 100 op 0x3:(DISCARD) flags 0x0 phys_seg 1 prio class 0",
                    "nvme0n1",
                    "critical target error (discard)",
                ),
                (
                    "Buffer I/O error on dev sda1, logical block 123456, lost async page write",
                    "sda1",
                    "I/O error: lost async page write",
                ),
                ("Buffer I/O error on device sdc, logical block 0", "sdc", "I/O error: of a buffer"),
                ("sd 2:0:0:0: [sdc] tag#19 Sense Key : Medium Error [current]", "sdc", "medium error"),
                (
                    "ata3.00: failed command: READ FPDMA QUEUED",
                    "ata3.00",
                    "failed command: READ FPDMA QUEUED",
                ),
                ("nvme nvme0: I/O 512 QID 3 timeout, aborting", "nvme0", "requests time out"),
                (
                    "nvme nvme1: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0x10",
                    "nvme1",
                    "the controller is down",
                ),
                ("md/raid1:md0: Disk failure on sdb1, disabling device.", "sdb1", "failed in the array md0"),
            ],
        );
    }

    #[test]
    fn troubles_of_file_systems_are_told_from_each_other() {
        all_are(
            Kind::FileSystem,
            &[
                (
                    "EXT4-fs error (device sda1): ext4_journal_check_start: Detected aborted journal",
                    "sda1",
                    "error in ext4_journal_check_start",
                ),
                (
                    "EXT4-fs error (device dm-0) in ext4_reserve_inode_write:5760: Journal has aborted",
                    "dm-0",
                    "error in ext4_reserve_inode_write",
                ),
                ("EXT4-fs (sda1): Remounting filesystem read-only", "sda1", "was made read-only"),
                ("Aborting journal on device sda1-8.", "sda1", "its journal was given up"),
                ("Aborting journal on device dm-3-8.", "dm-3", "its journal was given up"),
                (
                    "XFS (nvme0n1p1): metadata I/O error in \"xfs_trans_read_buf_map\" at daddr 0x8e8c20 len 8 error 74",
                    "nvme0n1p1",
                    "metadata I/O error",
                ),
                (
                    "XFS (dm-7): metadata I/O error: block 0x280000010 (\"xlog_bread_noalign\") error 5 numblks 8",
                    "dm-7",
                    "metadata I/O error",
                ),
                ("XFS (dm-4): I/O Error Detected. Shutting down filesystem", "dm-4", "was shut down"),
                (
                    "XFS (nvme0n1p1): Metadata CRC error detected at xfs_dir3_block_read_verify+0xc8/0xf0 [xfs], xfs_dir3_block block 0x8e8c20",
                    "nvme0n1p1",
                    "metadata is damaged",
                ),
                (
                    "XFS (vda4): Metadata corruption detected at xfs_buf_ioend+0x162/0x570 [xfs], xfs_inode block 0x2f88e0 xfs_inode_buf_verify",
                    "vda4",
                    "metadata is damaged",
                ),
                (
                    "BTRFS error (device sdb1): bdev /dev/sdb1 errs: wr 1, rd 0, flush 0, corrupt 0, gen 0",
                    "sdb1",
                    "errors of its device",
                ),
                ("BTRFS info (device sdb1 state EA): forced readonly", "sdb1", "was made read-only"),
            ],
        );
    }

    fn all_are(kind: Kind, cases: &[(&str, &str, &str)]) {
        for (message, device, class) in cases {
            assert_eq!(of(message), Some((kind, (*device).into(), (*class).into())), "{message}");
        }
    }

    #[test]
    fn what_is_no_trouble_is_passed_over() {
        for message in [
            "XFS (dm-1): Mounting V5 Filesystem",
            "XFS (vda1): Ending clean mount",
            "EXT4-fs (sda1): mounted filesystem with ordered data mode. Opts: (null)",
            "EXT4-fs (sda1): re-mounted. Opts: errors=remount-ro",
            "sd 2:0:0:0: [sdc] Attached SCSI disk",
            "sd 2:0:0:0: [sdc] tag#19 Sense Key : Unit Attention [current]",
            "nvme nvme0: 8/0/0 default/read/poll queues",
            "ata1.00: configured for UDMA/133",
            "device-mapper: thin: 253:4: growing the data device from 12288 to 24576 blocks",
            "BTRFS info (device sda1): using free space tree",
            "usb 1-1: device descriptor read/64, error -71",
            "",
            ", dev , sector ",
        ] {
            assert_eq!(of(message), None, "{message}");
        }
        let user = Record {
            level: 3,
            facility: 1,
            seq: 1,
            message: "I/O error, dev sda, sector 1 op 0x0:(READ)".into(),
        };
        assert_eq!(meaning(&user), None, "a program wrote that");
    }
}

//! Rules of `disk check`.

use super::{Entry, finding};

const REPAIR: &str = "`backstay disk check PATH --repair` repairs it without loss";
const CONVERT: &str = "`backstay disk convert SRC DST` makes a clean copy";
const NOTHING: &str = "nothing has to be done";

pub(super) const ENTRIES: &[Entry] = &[
    finding(
        "readable",
        "The file or a part of it cannot be read.",
        &["the storage has a defect", "missing permission"],
        &[
            "look for errors of the device: `backstay event list --type host`",
            "restore the file from a backup",
        ],
    ),
    finding(
        "is-vhd",
        "The file is not a VHD.",
        &["another format under the name .vhd", "both copies of the footer are gone"],
        &["`backstay disk convert` reads other formats", "restore the file from a backup"],
    ),
    finding(
        "is-vhdx",
        "The file is not a VHDX.",
        &["another format under the name .vhdx", "the start of the file was overwritten"],
        &["rename it, or say the format with --format", "restore the file from a backup"],
    ),
    finding(
        "header-copy",
        "One of the two headers of a VHDX is damaged; the other one is good.",
        &["power loss while it was written"],
        &["the next write heals it"],
    ),
    finding(
        "region-table",
        "Both region tables of a VHDX break the format's rules.",
        &["the start of the file was overwritten"],
        &["restore the file from a backup"],
    ),
    finding(
        "region-table-copy",
        "One of the two region tables of a VHDX is damaged or differs; the other one is good.",
        &["the start of the file was overwritten in part"],
        &[CONVERT],
    ),
    finding(
        "metadata",
        "The metadata of a VHDX (size, sectors, parent) break the format's rules.",
        &["the file was overwritten", "a foreign program"],
        &["restore the file from a backup"],
    ),
    finding(
        "block-table",
        "The block allocation table of a VHDX breaks the format's rules.",
        &["the file was overwritten", "a program that does not replay logs wrote to it"],
        &["restore the file from a backup"],
    ),
    finding(
        "log",
        "The log of a VHDX that was not closed cannot be replayed.",
        &["the file was copied while it was in use", "the file was overwritten"],
        &["copy it again while nobody writes to it", "restore the file from a backup"],
    ),
    finding(
        "understood",
        "The VHDX has a part that has to be understood, and this program does not.",
        &["a newer format"],
        &["convert it with the program that made it"],
    ),
    finding(
        "finished",
        "The VHDX is marked as incomplete: the program that was filling it did not finish.",
        &["an interrupted conversion or migration"],
        &["make it again"],
    ),
    finding(
        "zero-blocks",
        "Blocks of a VHDX that read as zeros name a place, for which Hyper-V refuses the disk.",
        &["old versions of QEMU"],
        &[CONVERT],
    ),
    finding(
        "trimmed-blocks",
        "Blocks of a VHDX were trimmed and keep their space until they are written again.",
        &["the guest deleted files"],
        &[NOTHING],
    ),
    finding(
        "no-interrupted-operation",
        "An operation that must not be interrupted was: the file marks itself as unusable.",
        &["power loss during a repair"],
        &[
            "`backstay disk check PATH --repair` takes the operation up again",
            "else restore the file from a backup",
        ],
    ),
    finding(
        "footer",
        "The footer breaks the format's rules.",
        &["the end of the file was overwritten or cut off"],
        &[REPAIR, "else restore the file from a backup"],
    ),
    finding(
        "disk-type",
        "The footer names a disk type that is neither fixed, dynamic nor differencing.",
        &["a file of a very old or foreign program"],
        &["convert it with the program that made it"],
    ),
    finding(
        "one-file",
        "The disk is split over several files.",
        &["Virtual PC wrote it on a FAT file system"],
        &["join the parts with the program that made them"],
    ),
    finding(
        "complete",
        "The file is shorter than its structures say.",
        &["an interrupted copy", "a full file system on the way"],
        &["copy it again and compare the lengths"],
    ),
    finding(
        "header",
        "The header of a dynamic or differencing VHD, or both headers of a VHDX, break the format's rules.",
        &["the start of the file was overwritten"],
        &["restore the file from a backup"],
    ),
    finding(
        "size",
        "The size of the disk is not one that its format can have.",
        &["a foreign program"],
        &[CONVERT],
    ),
    finding(
        "block-size",
        "The block size is not one that a VHD can have.",
        &["a foreign program"],
        &["convert it with the program that made it"],
    ),
    finding(
        "table-size",
        "The block table does not have as many entries as the disk has blocks.",
        &["a foreign program", "a damaged header, if the table is too small"],
        &["a larger table is harmless here; Azure wants them equal", CONVERT],
    ),
    finding(
        "no-overlap",
        "Two structures of the file claim the same place.",
        &["two programs wrote to the file at once", "a disk whose parent or child was mixed up"],
        &["restore the file from a backup: it cannot be told whose bytes they are"],
    ),
    finding(
        "footer-at-end",
        "The footer at the end of the file is missing or of another disk; the copy at its start is good.",
        &["power loss while the file grew", "an interrupted copy"],
        &[REPAIR],
    ),
    finding(
        "footer-copy",
        "The copy of the footer at the start of the file is damaged or differs.",
        &["power loss while it was written"],
        &[REPAIR],
    ),
    finding(
        "footer-length",
        "The footer has 511 bytes.",
        &["Virtual PC before 2004 wrote it so"],
        &[NOTHING],
    ),
    finding(
        "footer-features",
        "A bit of the footer that is always set is not.",
        &["a foreign program"],
        &[NOTHING],
    ),
    finding(
        "blocks-inside-file",
        "The table names blocks behind the end of the file.",
        &["power loss before the file system wrote them", "an interrupted copy"],
        &[
            "copy the file again if it is a copy",
            "`backstay disk check PATH --repair` forgets blocks that are not there",
        ],
    ),
    finding(
        "saved-state",
        "A machine was saved while it used the disk, or the flag for that is wrong.",
        &["Hyper-V or Virtual PC saved a machine"],
        &["resume and shut down the machine before the disk is compacted, resized or merged"],
    ),
    finding(
        "unique-id",
        "The disk's unique id is all zeros: children cannot tell it from others.",
        &["a foreign program"],
        &[CONVERT],
    ),
    finding(
        "parent-id",
        "The parent's unique id is all zeros: it cannot be told whether the parent is the right one.",
        &["a foreign program made the parent"],
        &["make sure by hand that the parent was not written to since", CONVERT],
    ),
    finding(
        "parent-path",
        "The disk stores no path to its parent.",
        &["a foreign program"],
        &["`backstay disk reparent PATH --parent PARENT` writes one"],
    ),
    finding(
        "parent-locator",
        "A stored path to the parent cannot be read.",
        &["a damaged header", "a foreign program"],
        &["`backstay disk reparent PATH --parent PARENT` writes it anew"],
    ),
    finding(
        "fixed-length",
        "A fixed disk's file is longer or shorter than the disk.",
        &["a foreign program rounds differently"],
        &[NOTHING],
    ),
    finding(
        "size-in-sectors",
        "The size of the disk is not a multiple of 512 bytes; it was rounded.",
        &["a foreign program"],
        &[NOTHING],
    ),
    finding(
        "alignment",
        "Blocks are not aligned to 4096 bytes.",
        &["the disk was made before 2012, or by a foreign program"],
        &["slower on disks with sectors of 4096 bytes; a converted copy is aligned"],
    ),
    finding(
        "no-lost-space",
        "Bytes of the file belong to nothing.",
        &["a crash while the file grew"],
        &["`backstay disk compact PATH` or a conversion frees them"],
    ),
    finding(
        "clean-close",
        "The file was not closed: blocks are reserved behind its end.",
        &["a machine uses it now", "its program was killed"],
        &["nothing is lost; the next start or `--repair` settles it"],
    ),
    finding(
        "full-bitmaps",
        "A dynamic disk has sectors that count as never written.",
        &["a foreign program"],
        &[NOTHING],
    ),
    finding(
        "chain",
        "The chain of a differencing disk is broken: a parent is missing, changed, or not the one it was made from.",
        &["a parent was moved, deleted or written to"],
        &[
            "`backstay disk info PATH --chain` shows where it breaks",
            "bring the file back, or name it anew with `backstay disk reparent`",
        ],
    ),
];

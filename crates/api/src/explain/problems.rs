//! Our own problems.

use super::{Entry, problem};
use crate::ProblemCode;

pub(super) const ENTRIES: &[Entry] = &[
    problem(
        ProblemCode::Invalid,
        "invalid",
        &["a value is outside its range", "two options exclude each other", "a path is not absolute"],
        &["read the rule in the message and correct the value: waiting does not help"],
    ),
    problem(
        ProblemCode::NotFound,
        "not-found",
        &[
            "a typing error",
            "the machine, checkpoint or task was deleted",
            "the folder of the machine is on a file system that is not mounted",
        ],
        &[
            "`backstay vm list` and `backstay checkpoint list VM` show what there is",
            "mount the file system and use `backstay vm register FOLDER`",
        ],
    ),
    problem(
        ProblemCode::Denied,
        "denied",
        &[
            "the file belongs to another user",
            "the file system is mounted read-only",
            "a security module forbids it",
        ],
        &[
            "look at the owner and mode of the file that is named",
            "`backstay event list --type host` tells whether the kernel made a file system read-only",
        ],
    ),
    problem(
        ProblemCode::Exists,
        "exists",
        &["a machine of that name or GUID is registered", "a file is in the way"],
        &["choose another name, or rename or move the thing that has it"],
    ),
    problem(
        ProblemCode::Busy,
        "busy",
        &["another task works on the same machine; the message names it"],
        &["wait with `backstay task wait ID`, or end it with `backstay task cancel ID`"],
    ),
    problem(
        ProblemCode::Precondition,
        "precondition",
        &[
            "the machine is in a state that does not allow it",
            "a checkpoint or another machine needs the file",
        ],
        &["bring it into one of the states that the message names, then ask again"],
    ),
    problem(
        ProblemCode::InUse,
        "in-use",
        &[
            "another machine has the disk attached",
            "a command such as `backstay disk check` has it open",
            "a program outside Backstay has it open",
        ],
        &["turn the other machine off or remove the disk from it", "wait for the command to end"],
    ),
    problem(
        ProblemCode::Stale,
        "stale",
        &["somebody else changed the settings between reading and writing them"],
        &["read the settings again (`backstay vm show`) and repeat the change"],
    ),
    problem(
        ProblemCode::Damaged,
        "damaged",
        &[
            "a file of the chain is missing or was replaced",
            "the parent was written to after its child was made",
            "the storage lost writes",
        ],
        &[
            "`backstay disk check PATH` names what is wrong",
            "`backstay disk info PATH --chain` shows which file is missing: bring it back",
            "repair with `backstay disk check PATH --repair` where the finding says that it loses nothing",
        ],
    ),
    problem(
        ProblemCode::NotRestorable,
        "not-restorable",
        &[
            "the memory was saved under another accelerator or processor",
            "QEMU here is older than the one that saved it",
            "the memory file is damaged or missing",
        ],
        &[
            "do what the message names (another host, a newer QEMU)",
            "or give the memory up: the disks are complete without it",
        ],
    ),
    problem(
        ProblemCode::NoSpace,
        "no-space",
        &[
            "the file system is full",
            "a quota is reached",
            "the volume is below the reserve of the disk-space guard",
        ],
        &[
            "make room: delete old checkpoints, move disks away",
            "`backstay host show` shows free space; a guest that stands still for it goes on by itself",
        ],
    ),
    problem(
        ProblemCode::Cancelled,
        "cancelled",
        &["somebody cancelled the task"],
        &["start it again if it is still wanted: nothing was left half done"],
    ),
    problem(
        ProblemCode::Interrupted,
        "interrupted",
        &["the daemon was stopped or killed while the task ran"],
        &["look at the state of the machine, then ask again"],
    ),
    problem(
        ProblemCode::Timeout,
        "timeout",
        &[
            "the guest does not react to the power button",
            "the storage is slow or hangs",
            "the host is overloaded",
        ],
        &[
            "the task may still be running: `backstay task list --active`",
            "`backstay event list --vm NAME` tells what happened last",
        ],
    ),
    problem(
        ProblemCode::Unavailable,
        "unavailable",
        &[
            "QEMU is not installed or cannot start",
            "the machine's worker process does not answer",
            "the machine's worker is of an older version and does not know the request",
        ],
        &[
            "the message names the part; its log is in the machine's run folder",
            "after an upgrade: turn the machine off and on, or save and start it, to use what is new",
        ],
    ),
    problem(
        ProblemCode::Internal,
        "internal",
        &["a defect of Backstay, or an error of the file system that no rule foresees"],
        &[
            "read the cause at the end of the message",
            "report it with the daemon's log (`journalctl -u backstay`)",
        ],
    ),
];

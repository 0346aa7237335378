//! From a request's bytes to what it asks for, checked against the export. Pure.

use zerocopy::FromBytes;

use super::{
    negotiate::Session,
    proto::{Errno, MAX_PAYLOAD, REQUEST_MAGIC, RequestHead, cmd, cmd_flag},
};
use crate::limit::Cost;

/// What the checks need to know about the export at this moment.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size in bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
}

/// A checked request; the range lies inside the disk and may have any alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Send the bytes; in one piece if `whole`.
    Read {
        /// No holes and no pieces in the reply (flag DF).
        whole: bool,
    },
    /// Store the payload.
    Write,
    /// Make all acknowledged writes durable.
    Flush,
    /// The content is no longer needed.
    Trim,
    /// Bring the range into memory.
    Cache,
    /// Make the range read as zeros.
    WriteZeroes {
        /// Space must stay allocated.
        no_hole: bool,
        /// Fail rather than write zeros.
        fast: bool,
    },
    /// Tell the allocation.
    BlockStatus {
        /// Only the first run.
        one: bool,
    },
}

/// A request that can be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's number for it.
    pub cookie: u64,
    /// What to do.
    pub op: Op,
    /// Start in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
    /// The effect has to be durable before the reply.
    pub fua: bool,
}

impl Request {
    /// What it takes of the disk's limit; `None` for what is not limited. Zeros and trims move no bytes. A flush does not wait: it
    /// is about writes that were acknowledged, which were paid for.
    #[must_use]
    pub fn cost(&self) -> Option<Cost> {
        let bytes = match self.op {
            Op::Read { .. } | Op::Write | Op::Cache => self.len.into(),
            Op::Trim | Op::WriteZeroes { .. } => 0,
            Op::Flush | Op::BlockStatus { .. } => return None,
        };
        Some(Cost { requests: 1, bytes })
    }
}

/// What to do with the bytes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Carry it out.
    Do(Request),
    /// Answer with an error, after skipping `payload` bytes that follow the head.
    Refuse {
        /// The client's number for it.
        cookie: u64,
        /// Why.
        errno: Errno,
        /// In words.
        why: &'static str,
        /// Bytes to skip.
        payload: u32,
    },
    /// The client says goodbye.
    Disconnect,
    /// The stream makes no sense any more; close.
    Drop,
}

/// Judges one request (proto.md "Transmission phase").
#[must_use]
pub fn judge(bytes: &[u8; size_of::<RequestHead>()], session: &Session, limits: Limits) -> Decision {
    let Ok(head) = RequestHead::read_from_bytes(bytes) else { return Decision::Drop };
    let (command, len) = (head.command.get(), head.len.get());
    if head.magic != REQUEST_MAGIC || (command == cmd::WRITE && len > MAX_PAYLOAD) {
        return Decision::Drop;
    }
    if command == cmd::DISC {
        return Decision::Disconnect;
    }
    match check(&head, session, limits) {
        Ok(op) => Decision::Do(Request {
            cookie: head.cookie.get(),
            op,
            offset: if op == Op::Flush { 0 } else { head.offset.get() },
            len: if op == Op::Flush { 0 } else { len },
            fua: head.flags.get() & cmd_flag::FUA != 0,
        }),
        Err((errno, why)) => {
            let payload = if command == cmd::WRITE { len } else { 0 };
            Decision::Refuse { cookie: head.cookie.get(), errno, why, payload }
        }
    }
}

fn check(head: &RequestHead, session: &Session, limits: Limits) -> Result<Op, (Errno, &'static str)> {
    let flags = head.flags.get();
    let flag = |bit| flags & bit != 0;
    let (op, allowed) = match head.command.get() {
        cmd::READ => {
            (Op::Read { whole: flag(cmd_flag::DF) }, if session.structured { cmd_flag::DF } else { 0 })
        }
        cmd::WRITE => (Op::Write, 0),
        cmd::FLUSH => (Op::Flush, 0),
        cmd::TRIM => (Op::Trim, 0),
        cmd::CACHE => (Op::Cache, 0),
        cmd::WRITE_ZEROES => (
            Op::WriteZeroes { no_hole: flag(cmd_flag::NO_HOLE), fast: flag(cmd_flag::FAST_ZERO) },
            cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO,
        ),
        cmd::BLOCK_STATUS => (Op::BlockStatus { one: flag(cmd_flag::REQ_ONE) }, cmd_flag::REQ_ONE),
        _ => return Err((Errno::Inval, "unknown command")),
    };
    // FUA has no meaning for commands that store nothing, but the protocol lets clients set it on any.
    if flags & !(allowed | cmd_flag::FUA) != 0 {
        return Err((Errno::Inval, "unknown flag"));
    }
    if matches!(op, Op::BlockStatus { .. }) && (!session.base_allocation || head.len == 0) {
        return Err((Errno::Inval, "no metadata context was selected, or the range is empty"));
    }
    if matches!(op, Op::Read { .. }) && head.len.get() > MAX_PAYLOAD {
        return Err((Errno::Inval, "reads are limited to 32 MiB"));
    }
    let stores = matches!(op, Op::Write | Op::Trim | Op::WriteZeroes { .. });
    if stores && limits.read_only {
        return Err((Errno::Perm, "the export is read-only"));
    }
    let inside = head.offset.get().checked_add(head.len.get().into()).is_some_and(|end| end <= limits.size);
    if op != Op::Flush && !inside {
        let full = matches!(op, Op::Write | Op::WriteZeroes { .. });
        return Err((if full { Errno::NoSpc } else { Errno::Inval }, "the range ends beyond the disk"));
    }
    Ok(op)
}

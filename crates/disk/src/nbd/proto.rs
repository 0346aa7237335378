//! The words of the protocol: constants and fixed-size messages, big endian throughout.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32, U64},
};

/// `NBDMAGIC`, first in the server's greeting.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, second in the greeting and first in every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First in every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First in every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First in every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First in every chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag, both directions: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag, both directions: no 124 zero bytes after `OPT_EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Longest string (export name, query) the protocol allows, in bytes.
pub const MAX_STRING: usize = 4096;
/// Longest payload of one read or write, in bytes.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Smallest unit a client should use, in bytes; others are served by read-modify-write.
pub const MIN_BLOCK: u32 = 512;
/// Unit below which writes are inefficient, in bytes.
pub const PREFERRED_BLOCK: u32 = 4096;
/// The metadata context for allocation.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// The number by which replies refer to [`BASE_ALLOCATION`].
pub const BASE_ALLOCATION_ID: u32 = 1;

/// Option numbers (proto.md "Option types").
pub mod opt {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to options (proto.md "Option reply types").
pub mod rep {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    pub const ERR_POLICY: u32 = 0x8000_0002;
    pub const ERR_INVALID: u32 = 0x8000_0003;
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
}

/// Kinds of information in `REP_INFO` (proto.md "`NBD_REP_INFO`").
pub mod info {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export (proto.md "Transmission flags").
pub mod tx {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands (proto.md "Request types").
pub mod cmd {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags (proto.md "Command flags").
pub mod cmd_flag {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Chunk types and flags of structured replies (proto.md "Structured reply types").
pub mod chunk {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const FLAG_DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) + 1;
}

/// Bits of a `base:allocation` status (proto.md "Metadata querying").
pub mod status {
    #![expect(missing_docs, reason = "the names are the protocol's")]
    pub const HOLE: u32 = 1;
    pub const ZERO: u32 = 2;
}

/// Error numbers a reply may carry (proto.md "Error values").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted: the export is read-only.
    Perm = 1,
    /// Input/output error.
    Io = 5,
    /// Out of memory.
    NoMem = 12,
    /// Invalid argument.
    Inval = 22,
    /// No space left, or a write beyond the end of the disk.
    NoSpc = 28,
    /// Not supported: a fast zero that would be slow.
    NotSup = 95,
    /// The server is shutting down.
    Shutdown = 108,
}

/// The server's greeting.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Hello {
    /// [`INIT_MAGIC`].
    pub magic: U64,
    /// [`OPTION_MAGIC`].
    pub option_magic: U64,
    /// Handshake flags.
    pub flags: U16,
}
const _: () = assert!(size_of::<Hello>() == 18);

/// Head of an option from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionHead {
    /// [`OPTION_MAGIC`].
    pub magic: U64,
    /// One of [`opt`].
    pub option: U32,
    /// Bytes of data that follow.
    pub len: U32,
}
const _: () = assert!(size_of::<OptionHead>() == 16);

/// Head of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionReply {
    /// [`OPTION_REPLY_MAGIC`].
    pub magic: U64,
    /// The option this answers.
    pub option: U32,
    /// One of [`rep`].
    pub kind: U32,
    /// Bytes of data that follow.
    pub len: U32,
}
const _: () = assert!(size_of::<OptionReply>() == 20);

/// `INFO_EXPORT`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct InfoExport {
    /// [`info::EXPORT`].
    pub kind: U16,
    /// Size in bytes.
    pub size: U64,
    /// [`tx`] flags.
    pub flags: U16,
}
const _: () = assert!(size_of::<InfoExport>() == 12);

/// `INFO_BLOCK_SIZE`, all in bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct InfoBlockSize {
    /// [`info::BLOCK_SIZE`].
    pub kind: U16,
    /// Smallest unit.
    pub minimum: U32,
    /// Efficient unit.
    pub preferred: U32,
    /// Longest payload.
    pub maximum: U32,
}
const _: () = assert!(size_of::<InfoBlockSize>() == 14);

/// A request of the transmission phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RequestHead {
    /// [`REQUEST_MAGIC`].
    pub magic: U32,
    /// [`cmd_flag`] bits.
    pub flags: U16,
    /// One of [`cmd`].
    pub command: U16,
    /// The client's number for the request, repeated in the reply.
    pub cookie: U64,
    /// Bytes from the start of the disk.
    pub offset: U64,
    /// Length in bytes.
    pub len: U32,
}
const _: () = assert!(size_of::<RequestHead>() == 28);

/// A simple reply; the data of a successful read follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SimpleReply {
    /// [`SIMPLE_REPLY_MAGIC`].
    pub magic: U32,
    /// 0 or an [`Errno`].
    pub error: U32,
    /// As in the request.
    pub cookie: U64,
}
const _: () = assert!(size_of::<SimpleReply>() == 16);

impl SimpleReply {
    /// The reply to request `cookie`.
    #[must_use]
    pub fn new(cookie: u64, error: Option<Errno>) -> Self {
        Self {
            magic: SIMPLE_REPLY_MAGIC.into(),
            error: error.map_or(0, |e| e as u32).into(),
            cookie: cookie.into(),
        }
    }
}

/// Head of one chunk of a structured reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ChunkHead {
    /// [`CHUNK_MAGIC`].
    pub magic: U32,
    /// [`chunk::FLAG_DONE`] on the last one.
    pub flags: U16,
    /// One of [`chunk`].
    pub kind: U16,
    /// As in the request.
    pub cookie: U64,
    /// Bytes that follow.
    pub len: U32,
}
const _: () = assert!(size_of::<ChunkHead>() == 20);

impl ChunkHead {
    /// A chunk of `len` bytes in the reply to request `cookie`.
    #[must_use]
    pub fn new(cookie: u64, kind: u16, done: bool, len: u32) -> Self {
        Self {
            magic: CHUNK_MAGIC.into(),
            flags: if done { chunk::FLAG_DONE } else { 0 }.into(),
            kind: kind.into(),
            cookie: cookie.into(),
            len: len.into(),
        }
    }
}

/// Head of an `OFFSET_DATA` chunk with its offset; the data follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DataChunk {
    /// Its length counts the offset and the data.
    pub head: ChunkHead,
    /// Where the data belongs on the disk, in bytes.
    pub offset: U64,
}
const _: () = assert!(size_of::<DataChunk>() == 28);

/// An `OFFSET_HOLE` chunk.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HoleChunk {
    /// Its length is 12.
    pub head: ChunkHead,
    /// Where the hole is on the disk, in bytes.
    pub offset: U64,
    /// Length of the hole in bytes.
    pub len: U32,
}
const _: () = assert!(size_of::<HoleChunk>() == 32);

/// One entry of a `BLOCK_STATUS` chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct StatusEntry {
    /// Length in bytes.
    pub len: U32,
    /// [`status`] bits.
    pub flags: U32,
}
const _: () = assert!(size_of::<StatusEntry>() == 8);

//! The handshake as a state machine: bytes from the client in, bytes for the client and a decision out.

use zerocopy::{FromBytes, IntoBytes};

use super::proto::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, Hello, INIT_MAGIC,
    InfoBlockSize, InfoExport, MAX_PAYLOAD, MAX_STRING, MIN_BLOCK, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    OptionHead, OptionReply, PREFERRED_BLOCK, info, opt, rep, tx,
};

/// Longest option that is read; longer ones are skipped and refused.
const MAX_OPTION: usize = 64 << 10;
/// Longest option that is skipped; a client that announces more is cut off.
const MAX_SKIP: usize = 1 << 20;
/// Options per connection; a sane client needs about five.
const MAX_OPTIONS: u32 = 1000;

/// What a client may learn about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// The name in full (a client may ask by the empty name for the only export).
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Bytes in a sector.
    pub sector: u32,
}

impl ExportInfo {
    fn flags(&self, structured: bool) -> u16 {
        let mut flags = tx::HAS_FLAGS | tx::SEND_FLUSH | tx::CAN_MULTI_CONN | tx::SEND_CACHE;
        flags |= if self.read_only {
            tx::READ_ONLY
        } else {
            tx::SEND_FUA | tx::SEND_TRIM | tx::SEND_WRITE_ZEROES | tx::SEND_FAST_ZERO
        };
        if structured {
            flags |= tx::SEND_DF;
        }
        flags
    }
}

/// The exports of a server, as they are at the moment of the question.
pub trait Catalog {
    /// All names.
    fn names(&self) -> Vec<String>;
    /// The export of that name; the empty name may stand for the only one.
    fn find(&self, name: &str) -> Option<ExportInfo>;
}

/// What was agreed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Name of the export in full.
    pub export: String,
    /// Structured replies are used.
    pub structured: bool,
    /// `BLOCK_STATUS` may be asked, for `base:allocation`.
    pub base_allocation: bool,
}

/// What to do after [`Negotiation::feed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send what there is to send and read more.
    More,
    /// Send what there is to send; requests follow (their first bytes may be in [`Negotiation::rest`]).
    Ready(Session),
    /// Send what there is to send and close.
    Close,
}

#[derive(Clone, Copy, Debug)]
enum State {
    ClientFlags,
    Head,
    Data { option: u32, len: usize },
    Skip { option: u32, left: usize },
}

/// One handshake.
#[derive(Debug)]
pub struct Negotiation {
    state: State,
    input: Vec<u8>,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was selected.
    context_for: Option<String>,
    options: u32,
}

impl Default for Negotiation {
    fn default() -> Self {
        Self {
            state: State::ClientFlags,
            input: Vec::new(),
            no_zeroes: false,
            structured: false,
            context_for: None,
            options: 0,
        }
    }
}

impl Negotiation {
    /// The bytes the server sends first.
    #[must_use]
    pub fn greeting() -> [u8; 18] {
        let hello = Hello {
            magic: INIT_MAGIC.into(),
            option_magic: OPTION_MAGIC.into(),
            flags: (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).into(),
        };
        zerocopy::transmute!(hello)
    }

    /// Takes bytes from the client; appends what has to be sent to `out`.
    pub fn feed(&mut self, bytes: &[u8], catalog: &dyn Catalog, out: &mut Vec<u8>) -> Step {
        self.input.extend_from_slice(bytes);
        loop {
            match self.step(catalog, out) {
                Some(Step::More) => {}
                Some(step) => return step,
                None => return Step::More,
            }
        }
    }

    /// Bytes that came after the handshake.
    #[must_use]
    pub fn rest(self) -> Vec<u8> {
        self.input
    }

    /// One transition; `None` when more bytes are needed.
    fn step(&mut self, catalog: &dyn Catalog, out: &mut Vec<u8>) -> Option<Step> {
        match self.state {
            State::ClientFlags => {
                let flags = u32::from_be_bytes(self.take(4)?.try_into().ok()?);
                if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
                    return Some(Step::Close);
                }
                self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
                self.state = State::Head;
                Some(Step::More)
            }
            State::Head => {
                let bytes = self.take(size_of::<OptionHead>())?;
                let head = OptionHead::read_from_bytes(&bytes).ok()?;
                Some(self.head(head))
            }
            State::Data { option, len } => {
                let data = self.take(len)?;
                self.state = State::Head;
                Some(self.option(option, &data, catalog, out))
            }
            State::Skip { option, left } => {
                let n = left.min(self.input.len());
                self.input.drain(..n);
                if n < left {
                    self.state = State::Skip { option, left: left - n };
                    return None;
                }
                self.state = State::Head;
                reply(out, option, rep::ERR_TOO_BIG, b"the option is too long");
                Some(Step::More)
            }
        }
    }

    fn take(&mut self, n: usize) -> Option<Vec<u8>> {
        (self.input.len() >= n).then(|| self.input.drain(..n).collect())
    }

    fn head(&mut self, head: OptionHead) -> Step {
        self.options += 1;
        if head.magic != OPTION_MAGIC || self.options > MAX_OPTIONS {
            return Step::Close;
        }
        let option = head.option.get();
        self.state = match usize::try_from(head.len.get()) {
            Ok(len) if len <= MAX_OPTION => State::Data { option, len },
            // EXPORT_NAME has no way to say an error.
            Ok(len) if len <= MAX_SKIP && option != opt::EXPORT_NAME => State::Skip { option, left: len },
            _ => return Step::Close,
        };
        Step::More
    }

    fn option(&mut self, option: u32, data: &[u8], catalog: &dyn Catalog, out: &mut Vec<u8>) -> Step {
        match option {
            opt::EXPORT_NAME => return self.export_name(data, catalog, out),
            opt::ABORT => {
                reply(out, option, rep::ACK, b"");
                return Step::Close;
            }
            opt::LIST => list(data, catalog, out),
            opt::STARTTLS => reply(out, option, rep::ERR_POLICY, b"this server does not offer TLS"),
            opt::INFO | opt::GO => return self.info(option, data, catalog, out),
            opt::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                reply(out, option, rep::ACK, b"");
            }
            opt::STRUCTURED_REPLY => reply(out, option, rep::ERR_INVALID, b"the option takes no data"),
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => self.meta_context(option, data, catalog, out),
            _ => reply(out, option, rep::ERR_UNSUP, b"unknown option"),
        }
        Step::More
    }

    fn session(&self, export: String) -> Step {
        let base_allocation = self.structured && self.context_for.as_ref() == Some(&export);
        Step::Ready(Session { export, structured: self.structured, base_allocation })
    }

    fn export_name(&self, name: &[u8], catalog: &dyn Catalog, out: &mut Vec<u8>) -> Step {
        let Some(export) = name_of(name).and_then(|name| catalog.find(name)) else {
            return Step::Close;
        };
        out.extend_from_slice(&export.size.to_be_bytes());
        out.extend_from_slice(&export.flags(self.structured).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        self.session(export.name)
    }

    fn info(&self, option: u32, data: &[u8], catalog: &dyn Catalog, out: &mut Vec<u8>) -> Step {
        let Some((name, asked)) = parse_info(data) else {
            reply(out, option, rep::ERR_INVALID, b"malformed request for export information");
            return Step::More;
        };
        let Some(export) = catalog.find(name) else {
            reply(out, option, rep::ERR_UNKNOWN, format!("no export named \"{name}\" here").as_bytes());
            return Step::More;
        };
        let flags = export.flags(self.structured).into();
        let head = InfoExport { kind: info::EXPORT.into(), size: export.size.into(), flags };
        reply(out, option, rep::INFO, head.as_bytes());
        // A client that did not ask may send any alignment (proto.md "Block size constraints").
        let minimum = if asked.contains(&info::BLOCK_SIZE) { export.sector.max(MIN_BLOCK) } else { 1 };
        let sizes = InfoBlockSize {
            kind: info::BLOCK_SIZE.into(),
            minimum: minimum.into(),
            preferred: PREFERRED_BLOCK.into(),
            maximum: MAX_PAYLOAD.into(),
        };
        reply(out, option, rep::INFO, sizes.as_bytes());
        for (kind, text) in [(info::NAME, &export.name), (info::DESCRIPTION, &export.description)] {
            if asked.contains(&kind) && !(kind == info::DESCRIPTION && text.is_empty()) {
                reply(out, option, rep::INFO, &[&kind.to_be_bytes(), text.as_bytes()].concat());
            }
        }
        reply(out, option, rep::ACK, b"");
        if option == opt::GO { self.session(export.name) } else { Step::More }
    }

    fn meta_context(&mut self, option: u32, data: &[u8], catalog: &dyn Catalog, out: &mut Vec<u8>) {
        let set = option == opt::SET_META_CONTEXT;
        if set {
            self.context_for = None;
        }
        if set && !self.structured {
            reply(out, option, rep::ERR_INVALID, b"structured replies have to be negotiated first");
            return;
        }
        let Some((name, queries)) = parse_meta(data) else {
            reply(out, option, rep::ERR_INVALID, b"malformed metadata query");
            return;
        };
        let Some(export) = catalog.find(name) else {
            reply(out, option, rep::ERR_UNKNOWN, format!("no export named \"{name}\" here").as_bytes());
            return;
        };
        let all = !set && queries.is_empty();
        let hit = |query: &[u8]| query == BASE_ALLOCATION.as_bytes() || (!set && query == b"base:");
        if all || queries.into_iter().any(hit) {
            let id = if set { BASE_ALLOCATION_ID } else { 0 };
            let body = [&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()].concat();
            reply(out, option, rep::META_CONTEXT, &body);
            if set {
                self.context_for = Some(export.name);
            }
        }
        reply(out, option, rep::ACK, b"");
    }
}

fn list(data: &[u8], catalog: &dyn Catalog, out: &mut Vec<u8>) {
    if !data.is_empty() {
        reply(out, opt::LIST, rep::ERR_INVALID, b"the option takes no data");
        return;
    }
    for name in catalog.names() {
        let Ok(len) = u32::try_from(name.len()) else { continue };
        reply(out, opt::LIST, rep::SERVER, &[&len.to_be_bytes(), name.as_bytes()].concat());
    }
    reply(out, opt::LIST, rep::ACK, b"");
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    // Every caller's data is far below 4 GiB: names and messages of at most a few KiB.
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let head = OptionReply {
        magic: OPTION_REPLY_MAGIC.into(),
        option: option.into(),
        kind: kind.into(),
        len: len.into(),
    };
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(data);
}

fn name_of(bytes: &[u8]) -> Option<&str> {
    (bytes.len() <= MAX_STRING).then(|| str::from_utf8(bytes).ok()).flatten()
}

/// A length of 32 bits and that many bytes; and what follows.
fn counted(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    (len <= MAX_STRING).then(|| rest.split_at_checked(len)).flatten()
}

/// The data of `OPT_INFO` and `OPT_GO`: export name and kinds of information asked for.
fn parse_info(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let (name, rest) = counted(data)?;
    let (count, rest) = rest.split_first_chunk::<2>()?;
    let (kinds, tail) = rest.as_chunks::<2>();
    let exact = tail.is_empty() && kinds.len() == usize::from(u16::from_be_bytes(*count));
    exact.then_some((name_of(name)?, kinds.iter().map(|k| u16::from_be_bytes(*k)).collect()))
}

/// The data of the metadata options: export name and queries.
fn parse_meta(data: &[u8]) -> Option<(&str, Vec<&[u8]>)> {
    let (name, rest) = counted(data)?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let mut queries = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (query, tail) = counted(rest)?;
        queries.push(query);
        rest = tail;
    }
    rest.is_empty().then_some((name_of(name)?, queries))
}

//! The body of the fuzz target: whatever bytes a client sends, the pure half neither panics nor contradicts itself.

use zerocopy::{FromBytes, IntoBytes};

use super::{
    negotiate::{Catalog, ExportInfo, Negotiation, Session, Step},
    proto::{MAX_PAYLOAD, RequestHead, cmd},
    request::{Decision, Limits, judge},
};

struct Fixed;

impl Catalog for Fixed {
    fn names(&self) -> Vec<String> {
        vec!["disk0".into(), "disk1".into()]
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        let read_only = name == "disk1";
        let known = read_only || name == "disk0";
        let description = "a disk".into();
        known.then(|| ExportInfo { name: name.into(), description, size: 1 << 20, read_only, sector: 512 })
    }
}

/// Plays `data` as a client's bytes.
///
/// # Panics
/// When the state machine contradicts itself, which is what a fuzzer looks for.
pub fn fuzz_nbd(data: &[u8]) {
    let whole = play(data, data.len().max(1));
    // The result must not depend on how the bytes were cut into packets.
    assert!(whole == play(data, 1) && whole == play(data, 7), "the handshake depends on packet borders");
    let (_, Step::Ready(session), rest) = whole else { return };
    assert!(!session.base_allocation || session.structured, "contexts need structured replies");
    transmission(&session, &rest);
}

fn play(data: &[u8], packet: usize) -> (Vec<u8>, Step, Vec<u8>) {
    let (mut negotiation, mut out) = (Negotiation::default(), Vec::new());
    let mut packets = data.chunks(packet);
    let mut step = Step::More;
    while step == Step::More {
        let Some(bytes) = packets.next() else { break };
        step = negotiation.feed(bytes, &Fixed, &mut out);
    }
    let mut rest = if matches!(step, Step::Ready(_)) { negotiation.rest() } else { Vec::new() };
    if matches!(step, Step::Ready(_)) {
        rest.extend(packets.flatten());
    }
    (out, step, rest)
}

fn transmission(session: &Session, mut rest: &[u8]) {
    let limits = Limits { size: 1 << 20, read_only: session.export == "disk1" };
    while let Some((bytes, tail)) = rest.split_first_chunk::<28>() {
        let skip = match judge(bytes, session, limits) {
            Decision::Do(request) => {
                let end = request.offset.checked_add(request.len.into());
                assert!(end.is_some_and(|end| end <= limits.size), "{request:?} is outside the disk");
                let head = RequestHead::read_from_bytes(bytes).ok();
                assert!(head.as_ref().is_some_and(|h| h.as_bytes() == bytes), "round trip");
                let write = head.is_some_and(|h| h.command == cmd::WRITE);
                assert!(!(write && limits.read_only), "a write on a read-only export");
                if write { request.len } else { 0 }
            }
            Decision::Refuse { payload, .. } => payload,
            Decision::Disconnect | Decision::Drop => return,
        };
        assert!(skip <= MAX_PAYLOAD, "payload without bounds");
        rest = tail.get(skip as usize..).unwrap_or_default();
    }
}

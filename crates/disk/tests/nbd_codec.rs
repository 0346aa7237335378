//! The pure half of the NBD server: properties of the codec, and the fuzzer's corpus on the stable compiler.
#![expect(clippy::unwrap_used, reason = "a panic in a test is the report")]

use std::{fs, path::Path};

use backstay_disk::nbd::{
    fuzz_nbd,
    negotiate::Session,
    proto::{
        ChunkHead, DataChunk, HoleChunk, InfoBlockSize, InfoExport, OptionHead, OptionReply, RequestHead,
        SimpleReply, StatusEntry,
    },
    request::{Decision, Limits, judge},
};
use proptest::prelude::*;
use zerocopy::{FromBytes, Immutable, IntoBytes};

fn round_trip<T: FromBytes + IntoBytes + Immutable>(bytes: &[u8]) {
    let (value, _) = T::read_from_prefix(bytes).unwrap();
    assert_eq!(value.as_bytes(), &bytes[..size_of::<T>()]);
}

proptest! {
    #[test]
    fn messages_survive_a_round_trip(bytes in prop::array::uniform32(any::<u8>())) {
        round_trip::<OptionHead>(&bytes);
        round_trip::<OptionReply>(&bytes);
        round_trip::<InfoExport>(&bytes);
        round_trip::<InfoBlockSize>(&bytes);
        round_trip::<RequestHead>(&bytes);
        round_trip::<SimpleReply>(&bytes);
        round_trip::<ChunkHead>(&bytes);
        round_trip::<DataChunk>(&bytes);
        round_trip::<HoleChunk>(&bytes);
        round_trip::<StatusEntry>(&bytes);
    }

    #[test]
    fn no_accepted_request_leaves_the_disk_or_breaks_its_rules(
        command in 0u16..9,
        flags in 0u16..64,
        offset in prop_oneof![0u64..2048, (u64::MAX - 4096)..=u64::MAX, any::<u64>()],
        len in prop_oneof![0u32..2048, any::<u32>()],
        size in (0u64..(1 << 34)).prop_map(|s| s / 512 * 512),
        read_only: bool,
        structured: bool,
    ) {
        let head = RequestHead {
            magic: 0x2560_9513.into(),
            flags: flags.into(),
            command: command.into(),
            cookie: 7.into(),
            offset: offset.into(),
            len: len.into(),
        };
        let session = Session { export: String::new(), structured, base_allocation: structured };
        let bytes: [u8; 28] = head.as_bytes().try_into().unwrap();
        let inside = u128::from(offset) + u128::from(len) <= u128::from(size);
        match judge(&bytes, &session, Limits { size, read_only }) {
            Decision::Do(request) => {
                prop_assert_eq!(request.cookie, 7);
                prop_assert!(inside || command == 3);
                prop_assert!(!(read_only && [1, 4, 6].contains(&command)));
                prop_assert!(len <= 32 << 20 || command > 1);
            }
            Decision::Refuse { cookie, payload, .. } => {
                prop_assert_eq!(cookie, 7);
                prop_assert_eq!(payload, if command == 1 { len } else { 0 });
            }
            Decision::Disconnect => prop_assert_eq!(command, 2),
            Decision::Drop => prop_assert!(command == 1 && len > 32 << 20),
        }
        let plain = flags == 0 && inside && !read_only && structured && len > 0 && len <= 32 << 20;
        if plain && command < 8 && command != 2 {
            let decision = judge(&bytes, &session, Limits { size, read_only });
            prop_assert!(matches!(decision, Decision::Do(_)), "{:?} of {:?}", decision, head);
        }
    }

    #[test]
    fn any_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..400)) {
        let start = b"\0\0\0\x03IHAVEOPT".to_vec();
        fuzz_nbd(&data);
        fuzz_nbd(&[start, data].concat());
    }
}

#[test]
fn the_corpus_is_survived() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/nbd");
    let entries: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(entries.len() >= 5, "the corpus in {} is incomplete", dir.display());
    for path in entries {
        fuzz_nbd(&fs::read(path).unwrap());
    }
}

//! Another size for a VHDX: what the one entry of the log makes visible is durable before it, and what it makes invisible never comes
//! back, whatever a power cut leaves.

use std::{ops::Range, sync::Arc};

use backstay_vhd::{
    Source, Storage,
    testing::SimStorage,
    vhdx::{Image, OpenOptions, create::CreateKind},
};

use super::common::*;

const OLD: u64 = 3 * MIB + 512 * 9;
const BAT_AT: u64 = 3 * MIB;
/// Sectors with content.
const MARKED: [u64; 4] = [MIB, MIB + 8192, 3 * MIB, OLD - 512];

/// A disk with content, and what a larger size or another program left behind its end.
fn disk(kind: CreateKind) -> Arc<SimStorage> {
    let fixed = matches!(kind, CreateKind::Fixed);
    let child = matches!(kind, CreateKind::Differencing(_));
    let storage = create(&options(OLD, kind));
    let image = open(&storage, 1, None);
    for at in MARKED {
        write(&image, at, &[7; 512]).unwrap();
    }
    image.close().unwrap();
    let image = open_read_only(&storage);
    let mut extents = Vec::new();
    image.resolve_read(3 * MIB, 512, &mut extents).unwrap();
    let Source::Data { file_offset } = extents[0].source else { panic!("{extents:?}") };
    storage.write_at(&[0xee; 1024], file_offset + 512 * 9).unwrap();
    if !fixed {
        // Entries of blocks that the disk has not: full ones, where the first block is.
        let entry = (image.layout().items[0].1.offset / MIB) << 20 | 6;
        storage.write_at(&entry.to_le_bytes(), BAT_AT + 5 * 8).unwrap();
    }
    assert_eq!(child, image.parent().is_some());
    storage.flush().unwrap();
    storage
}

/// The disk has one of both sizes, its content, and zeros (or what the parent has: nothing) behind.
fn is_whole(storage: &Arc<SimStorage>, sizes: [u64; 2]) -> Result<u64, String> {
    let image =
        Image::open(&as_storage(storage), &OpenOptions::default()).map_err(|error| error.to_string())?;
    let size = image.info().size;
    if !sizes.contains(&size) {
        return Err(format!("it has {size} bytes"));
    }
    let mut extents = Vec::new();
    image.resolve_read(0, size, &mut extents).map_err(|error| error.to_string())?;
    let (mut at, mut seen) = (0, 0);
    for extent in extents {
        if let Source::Data { file_offset } = extent.source {
            let mut from = file_offset;
            let failed = |error: std::io::Error| error.to_string();
            while let Some(next) =
                storage.next_data(from).map_err(failed)?.filter(|next| *next < file_offset + extent.len)
            {
                let mut bytes = [0; 512];
                storage.read_at(&mut bytes, next).map_err(failed)?;
                let marked = MARKED.contains(&(at + next - file_offset));
                seen += usize::from(marked);
                if bytes != [if marked { 7 } else { 0 }; 512] {
                    return Err(format!("at {} there is {}", at + next - file_offset, bytes[0]));
                }
                from = next + 512;
            }
        }
        at += extent.len;
    }
    let expected = MARKED.iter().filter(|at| **at < size).count();
    if seen == expected { Ok(size) } else { Err(format!("{seen} of {expected} sectors are there")) }
}

fn resize(storage: &Arc<SimStorage>, size: u64) -> Result<(), String> {
    let image = open(storage, 2, None);
    let plan = image.plan_resize(size).map_err(|error| error.to_string())?;
    image.resize(&plan).and_then(|()| image.close()).map_err(|error| error.to_string())
}

/// Headers and log, which tell whether an entry counts.
fn is_log(at: u64) -> bool {
    at < 192 << 10 || (MIB..2 * MIB).contains(&at)
}

/// Tries the worst power cuts at every moment of a change of size; `lacking` names flushes that do nothing.
fn worst(kind: &CreateKind, size: u64, lacking: Option<Range<u64>>) -> Result<(), String> {
    let before = disk(kind.clone());
    let all = {
        let machine = before.power_cut(0);
        resize(&machine, size)?;
        is_whole(&machine, [size, size])?;
        machine.operations()
    };
    for moment in 0..=all {
        let machine = before.power_cut(0);
        if let Some(flushes) = &lacking {
            machine.swallow_flushes(flushes.clone());
        }
        machine.die_after(moment);
        let done = resize(&machine, size).is_ok();
        for longest in [true, false] {
            let cuts: [(&str, &dyn Fn(u64) -> bool); 4] = [
                ("all is kept", &|_| true),
                ("all is lost", &|_| false),
                ("only the log is kept", &is_log),
                ("only the log is lost", &|at| !is_log(at)),
            ];
            for (what, keep) in cuts {
                let after = machine.power_cut_keeping(longest, keep);
                let found = is_whole(&after, [OLD, size]).and_then(|found| match done && found != size {
                    true => Err(format!("it has {found} bytes, though that was done")),
                    false => Ok(()),
                });
                found.map_err(|error| format!("{what}, {longest}, after {moment} of {all}: {error}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn no_power_cut_shows_anything_but_the_old_disk_or_the_new_one() {
    // More than a table of 1 MiB has entries for; inside of the last block; more blocks; fewer; a shorter last block.
    for size in [(131 << 30) + 512, OLD + 512, 9 * MIB, MIB + 512, OLD - 512 * 4] {
        for kind in [CreateKind::Dynamic, CreateKind::Fixed, child()] {
            if size > 1 << 30 && matches!(kind, CreateKind::Fixed) {
                continue;
            }
            worst(&kind, size, None).unwrap_or_else(|error| panic!("{kind:?} to {size}: {error}"));
        }
    }
}

#[test]
fn a_resize_that_forgets_a_flush_is_caught() {
    // 0 makes durable what was written before, 1 to 3 begin the session; then comes what the entry makes visible: a longer table, the
    // zeroed end of the last block.
    let grown = [
        (CreateKind::Dynamic, (131 << 30) + 512),
        (CreateKind::Dynamic, OLD + 512),
        (CreateKind::Fixed, 9 * MIB),
    ];
    for (kind, size) in grown {
        let caught: Vec<u64> = (0..8).filter(|at| worst(&kind, size, Some(*at..at + 1)).is_err()).collect();
        assert_eq!(caught, [4], "{kind:?} from {OLD} to {size}");
    }
    // A smaller disk: either of two flushes is enough before the end of the last block goes, and without both it is lost.
    for kind in [CreateKind::Dynamic, child()] {
        for size in [MIB + 512, OLD - 512 * 4] {
            let caught: Vec<u64> =
                (0..6).filter(|at| worst(&kind, size, Some(*at..at + 2)).is_err()).collect();
            assert_eq!(caught, [4], "{kind:?} from {OLD} to {size}");
        }
    }
}

#[test]
fn what_a_smaller_disk_does_not_have_is_not_in_its_table_nor_in_its_last_block() {
    for kind in [CreateKind::Dynamic, child()] {
        let storage = create(&options(9 * MIB, kind));
        let image = open(&storage, 1, None);
        for at in 0..9 {
            write(&image, at * MIB, &[7; 4096]).unwrap();
        }
        let mut extents = Vec::new();
        image.resolve_read(2 * MIB, 512, &mut extents).unwrap();
        let Source::Data { file_offset } = extents[0].source else { panic!("{extents:?}") };
        image.close().unwrap();
        let len = storage.len().unwrap();
        resize(&storage, 2 * MIB + 512).unwrap();
        let mut table = [0; 4096];
        storage.read_at(&mut table, BAT_AT).unwrap();
        let words: Vec<u64> = table.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        assert!(
            words[..3].iter().all(|word| *word != 0) && words[3..].iter().all(|word| *word == 0),
            "{words:?}"
        );
        // Other programs may not clear what they make a part of the disk again.
        let mut last = [1; 8192];
        storage.read_at(&mut last, file_offset).unwrap();
        assert!(last[..512] == [7; 512] && last[512..] == [0; 8192 - 512]);
        assert!(storage.len().unwrap() <= len - 6 * MIB, "blocks behind the end are cut off");
    }
}

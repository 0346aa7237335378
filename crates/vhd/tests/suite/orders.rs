//! Plans: each flush is there for a reason. Of what a power cut finds only the worst is tried: of what was not flushed, the bytes of one
//! step alone are there, or they alone are missing, or all, or none; with the longest file and with the shortest.

use std::sync::Arc;

use backstay_vhd::{
    Image, OpenOptions, Storage, VhdTime,
    check::check,
    create::{self, CreateKind, CreateOptions},
    plan::{self, Step},
    repair, resize,
    testing::SimStorage,
};
use uuid::Uuid;

use crate::common::{open, write};

/// Bytes of a step: start and end.
fn range_of(step: &Step) -> Option<(u64, u64)> {
    match step {
        Step::Write { offset, content, .. } => Some((*offset, offset + content.len())),
        _ => None,
    }
}

/// Carries out the steps, and says what a power cut after any of them would leave.
fn worst(
    storage: &Arc<SimStorage>,
    steps: &[Step],
    whole: &dyn Fn(&Arc<SimStorage>) -> Result<(), String>,
) -> Result<(), String> {
    for done in 0..=steps.len() {
        let machine = storage.power_cut(0);
        plan::execute(&steps[..done], machine.as_ref()).unwrap();
        let ranges: Vec<(u64, u64)> = steps[..done].iter().filter_map(range_of).collect();
        let inside = |(start, end): (u64, u64), at: u64| start < at + 512 && at < end;
        for longest in [true, false] {
            let say = |what: &str, error| format!("{done} steps, {what}, longest {longest}: {error}");
            for (what, kept) in [("all is kept", true), ("all is lost", false)] {
                whole(&machine.power_cut_keeping(longest, |_| kept)).map_err(|error| say(what, error))?;
            }
            for range in &ranges {
                let only = machine.power_cut_keeping(longest, |at| inside(*range, at));
                whole(&only).map_err(|error| say(&format!("only {range:?} is kept"), error))?;
                let but = machine.power_cut_keeping(longest, |at| !inside(*range, at));
                whole(&but).map_err(|error| say(&format!("only {range:?} is lost"), error))?;
            }
        }
    }
    Ok(())
}

/// Numbers of the flushes, counted from 0, without which a power cut does harm, and whether it does without any of them. With all of
/// them it does none.
fn needed_flushes(
    storage: &Arc<SimStorage>,
    steps: &[Step],
    whole: &dyn Fn(&Arc<SimStorage>) -> Result<(), String>,
) -> (Vec<usize>, bool) {
    worst(storage, steps, whole).unwrap_or_else(|error| panic!("{error}\n{steps:#?}"));
    let flushes: Vec<usize> = (0..steps.len()).filter(|at| steps[*at] == Step::Flush).collect();
    let none: Vec<Step> = steps.iter().filter(|step| **step != Step::Flush).cloned().collect();
    let needed = flushes.iter().enumerate().filter(|(_, at)| {
        let mut mutant = steps.to_vec();
        mutant.remove(**at);
        worst(storage, &mutant, whole).is_err()
    });
    (needed.map(|(number, _)| number).collect(), worst(storage, &none, whole).is_err())
}

const MIB: u64 = 1 << 20;
const OLD: u64 = 3 * MIB + 512 * 9;
/// Sectors with content, the last one among them.
const MARKED: [u64; 4] = [0, MIB, 3 * MIB, OLD - 512];

fn disk(kind: CreateKind) -> Arc<SimStorage> {
    let storage = SimStorage::new();
    let options = CreateOptions { size: OLD, kind, unique_id: Uuid::from_u128(9), time_stamp: VhdTime(1) };
    create::plan(&options).unwrap().execute(storage.as_ref()).unwrap();
    let image = open(&storage, None);
    for at in MARKED {
        write(&image, at, &[7; 512]).unwrap();
    }
    image.close().unwrap();
    // What another program, or a larger size, left behind the end of the disk: it is nobody's.
    let mut extents = Vec::new();
    let image = Image::open(Arc::clone(&storage) as Arc<dyn Storage>, &OpenOptions::default()).unwrap();
    image.resolve_read(OLD - 512, 512, &mut extents).unwrap();
    if let (CreateKind::Dynamic { .. }, backstay_vhd::Source::Data { file_offset }) =
        (&options.kind, extents[0].source)
    {
        storage.write_at(&[0xee; 1024], file_offset + 512).unwrap();
    }
    storage.flush().unwrap();
    storage
}

/// The disk has the old or the new size, its content, and zeros behind.
fn is_old_or_new(storage: &Arc<SimStorage>, new: u64) -> Result<(), String> {
    let image = Image::open(Arc::clone(storage) as Arc<dyn Storage>, &OpenOptions::default());
    let image = image.map_err(|error| error.to_string())?;
    let size = image.info().size;
    if size != OLD && size != new {
        return Err(format!("it has {size} bytes"));
    }
    let failed = |error: std::io::Error| error.to_string();
    let mut extents = Vec::new();
    image.resolve_read(0, size, &mut extents).map_err(|error| error.to_string())?;
    let (mut at, mut seen) = (0, 0);
    for extent in extents {
        if let backstay_vhd::Source::Data { file_offset } = extent.source {
            let mut from = file_offset;
            // What is a hole of the file is zeros.
            while let Some(next) =
                storage.next_data(from).map_err(failed)?.filter(|next| *next < file_offset + extent.len)
            {
                let mut bytes = [0; 512];
                storage.read_at(&mut bytes, next).map_err(failed)?;
                let place = at + next - file_offset;
                let marked = MARKED.contains(&place);
                seen += u64::from(marked);
                if bytes != [if marked { 7 } else { 0 }; 512] {
                    return Err(format!("at {place} there is {}", bytes[0]));
                }
                from = next + 512;
            }
        }
        at += extent.len;
    }
    let expected = MARKED.iter().filter(|place| **place < size).count() as u64;
    if seen == expected { Ok(()) } else { Err(format!("{seen} of {expected} sectors are there")) }
}

#[test]
fn a_resize_that_forgets_a_flush_is_caught() {
    let dynamic = CreateKind::Dynamic { block_size: 512 << 10 };
    // In the last block; a longer table; fewer blocks; a shorter last block. Where two flushes
    // follow each other with one footer in between, either of them is enough.
    let cases: [(_, u64, &[usize]); 6] = [
        (&dynamic, OLD + 512, &[0]),
        (&dynamic, 300 * MIB, &[0, 3]),
        (&dynamic, MIB + 512, &[0]),
        (&dynamic, OLD - 512 * 8, &[]),
        (&CreateKind::Fixed, 9 * MIB, &[0, 1]),
        (&CreateKind::Fixed, 3 * MIB + 512, &[0, 1]),
    ];
    for (kind, size, expected) in cases {
        let storage = disk(kind.clone());
        let plan = resize::plan(storage.as_ref(), &OpenOptions::default(), size).unwrap();
        let needed = needed_flushes(&storage, &plan.steps, &|after| is_old_or_new(after, size));
        assert_eq!(needed, (expected.to_vec(), true), "{kind:?} to {size}:\n{plan}");
    }
}

/// A disk in use is read by its old table while it grows for a merge.
#[test]
fn a_growth_writes_to_no_byte_of_any_block_that_counts() {
    let storage = disk(CreateKind::Dynamic { block_size: 512 << 10 });
    let image = Image::open(Arc::clone(&storage) as Arc<dyn Storage>, &OpenOptions::default()).unwrap();
    let mut extents = Vec::new();
    image.resolve_read(0, OLD, &mut extents).unwrap();
    let blocks: Vec<(u64, u64)> = extents
        .iter()
        .filter_map(|extent| match extent.source {
            backstay_vhd::Source::Data { file_offset } => Some((file_offset - 512, file_offset + extent.len)),
            _ => None,
        })
        .collect();
    assert!(blocks.len() > 1, "{extents:?}");
    for size in [OLD + 512, 9 * MIB, 90 * MIB, 300 * MIB, 40 << 30] {
        let plan = resize::plan(storage.as_ref(), &OpenOptions::default(), size).unwrap();
        for (start, end) in plan.steps.iter().filter_map(range_of) {
            let meets = blocks.iter().find(|(from, to)| *from < end && start < *to);
            assert!(meets.is_none(), "to {size}: {start}..{end} is in block {meets:?}");
        }
        let lengths =
            plan.steps.iter().filter_map(|step| if let Step::SetLen(len) = step { Some(*len) } else { None });
        assert!(lengths.min().unwrap_or(u64::MAX) >= blocks.iter().map(|(_, end)| *end).max().unwrap());
    }
}

#[test]
fn what_lies_behind_the_end_of_a_smaller_disk_is_gone() {
    let storage = disk(CreateKind::Dynamic { block_size: 512 << 10 });
    let size = 3 * MIB;
    resize::plan(storage.as_ref(), &OpenOptions::default(), size - 512)
        .unwrap()
        .execute(storage.as_ref())
        .unwrap();
    is_old_or_new(&storage, size - 512).unwrap();
    let storage = disk(CreateKind::Dynamic { block_size: 512 << 10 });
    let place = {
        let image = Image::open(Arc::clone(&storage) as Arc<dyn Storage>, &OpenOptions::default()).unwrap();
        let mut extents = Vec::new();
        image.resolve_read(MIB, 512, &mut extents).unwrap();
        let backstay_vhd::Source::Data { file_offset } = extents[0].source else { panic!("{extents:?}") };
        file_offset
    };
    storage.write_at(&[9; 512], place + 1024).unwrap();
    resize::plan(storage.as_ref(), &OpenOptions::default(), MIB + 512)
        .unwrap()
        .execute(storage.as_ref())
        .unwrap();
    let mut bytes = [1; 2048];
    storage.read_at(&mut bytes, place).unwrap();
    assert!(
        bytes[..512] == [7; 512] && bytes[512..] == [0; 1536],
        "other programs may not clear it when it grows"
    );
}

#[test]
fn a_repair_that_forgets_the_flush_of_the_copy_is_caught() {
    let broken = |after: &Arc<SimStorage>| is_old_or_new(after, OLD);
    // The copy is bad and the file too long: the footer at the end is all there is until the copy is durable.
    let storage = disk(CreateKind::Dynamic { block_size: 512 << 10 });
    let len = storage.len().unwrap();
    let mut footer = [0; 512];
    storage.read_at(&mut footer, len - 512).unwrap();
    storage.write_at(&[0; 512], len - 512).unwrap();
    storage.write_at(&footer, len + 8192 - 512).unwrap();
    storage.write_at(&[0; 512], 0).unwrap();
    storage.flush().unwrap();
    broken(&storage).unwrap();
    let plan = repair::plan(storage.as_ref(), &OpenOptions::default()).unwrap();
    assert_eq!(needed_flushes(&storage, &plan.steps, &broken), (vec![0], true), "{plan}");
    plan.execute(storage.as_ref()).unwrap();
    assert_eq!(check(storage.as_ref(), &OpenOptions::default()).worst(), None);
}

//! Merges and compactions of disks that nobody uses, by several threads at once, on file systems that share pages and on
//! others: cut off at every point and done again.

use crate::{
    crash::{Machine, check_found, first_failure, form_of, layer, options, run_all, shared, shares},
    simfs::SimFs,
    support::{block_size, report},
};
use backstay_disk::{
    Backend, Disk, Dropping, MergeControl, MergeStep, NewDisk, ZeroMode, check_file, compact_offline,
    merge_offline, settle_parents,
};
use backstay_vhd::{check::Severity, testing::Rng};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Merge,
    Compaction,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The power goes.
    Power,
    /// The flush after this point does nothing; then the power goes.
    Forgets(MergeStep),
    Nothing,
}

/// Does the work; the file that is the top afterwards.
fn work(fs: &Arc<SimFs>, top: &Path, below: &Path, what: Work, fate: Fate) -> Result<PathBuf, String> {
    let power = Arc::clone(fs);
    let control = MergeControl::observed(move |step| {
        if fate == Fate::Forgets(step) {
            // Up to the next one nothing more becomes durable.
            power.power().swallow_flush(0);
            power.power().die_after_flushes(1);
        }
    });
    let control = control.with_threads(2);
    match what {
        Work::Merge => merge_offline(&shared(fs), top, &[], &options(), &control)
            .map(|_| below.to_owned())
            .map_err(|error| report(&error)),
        Work::Compaction => compact_offline(&shared(fs), top, &options(), Dropping::Zeros, &control)
            .map(|_| top.to_owned())
            .map_err(|error| report(&error)),
    }
}

fn cut_off(seed: u64, what: Work, shared_bytes: &AtomicU64, fate: Fate) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let form = form_of(seed);
    let size = crate::crash::SECTORS * 512;
    let base = match rng.below(3) {
        0 if what == Work::Merge => NewDisk::Fixed { size },
        _ => NewDisk::Dynamic { size, block_size: block_size(&layer(form, 0)) },
    };
    let depth = 1 + rng.below(2);
    let mut machine = Machine::above(&mut rng, form, &base, u128::from(depth), true);
    for _ in 0..2 + rng.below(6) {
        machine.write(&mut rng).map_err(|error| report(&error))?;
    }
    // Blocks of zeros in front of others, and large pieces.
    let block = u64::from(block_size(&machine.top)) / 512;
    for first in [0, block] {
        let (from, all) = (usize::try_from(first).unwrap(), usize::try_from(block).unwrap());
        machine.model.sectors[from..from + all].iter_mut().for_each(|versions| versions.push(0));
        let zeroed = machine.disk.write_zeroes(first * 512, block * 512, ZeroMode::default());
        zeroed.map_err(|error| report(&error))?;
    }
    for _ in 0..2 {
        machine.write(&mut rng).map_err(|error| report(&error))?;
    }
    machine.disk.close().map_err(|error| report(&error))?;
    machine.model.flushed();
    let (fs, top, below) = (&machine.fs, machine.top.clone(), layer(form, u128::from(depth) - 1));
    if shares(seed) {
        fs.power().share();
    }
    if fate == Fate::Power {
        fs.power().die_after_operations(rng.below(120));
    }
    // It may end well, or with the power.
    let ended = work(fs, &top, &below, what, fate);
    shared_bytes.fetch_add(fs.power().shared_bytes(), Relaxed);
    let after = fs.power_cut(seed);
    let check = |fs: &Arc<SimFs>, top: &Path| {
        settle_parents(&shared(fs), top, &options()).map_err(|error| report(&error))?;
        let disk = Disk::open_on(shared(fs), top, options()).map_err(|error| report(&error))?;
        check_found(&disk, &machine.model, |versions| versions)?;
        disk.close().map_err(|error| report(&error))
    };
    // Whoever merged deletes the upper file only afterwards: as long as it is there both names are right.
    check(&after, &top).map_err(|error| format!("found: {error}"))?;
    if let Ok(now) = &ended {
        check(&after, now).map_err(|error| format!("done: {error}"))?;
    }
    let again = match (what, &ended) {
        (Work::Merge, Ok(now)) => now.clone(),
        _ => work(&after, &top, &below, what, Fate::Nothing).map_err(|error| format!("again: {error}"))?,
    };
    check(&after, &again).map_err(|error| format!("done again: {error}"))?;
    for path in (0..=2).map(|number| layer(form, number)) {
        if after.exists(path.to_str().unwrap()) {
            let checked = check_file(&shared(&after), &path, &options()).map_err(|error| report(&error))?;
            if checked.worst().is_some_and(|worst| worst >= Severity::Error) {
                return Err(format!("{}: {checked}", path.display()));
            }
        }
    }
    Ok(())
}

fn power_loss(what: Work, seeds: std::ops::Range<u64>) {
    let bytes = AtomicU64::new(0);
    run_all(seeds, |seed| cut_off(seed, what, &bytes, Fate::Power));
    assert!(bytes.into_inner() > 0, "nothing was shared in any seed: the simulation is blind");
}

#[test]
fn power_loss_in_a_merge_by_several_threads_loses_nothing() {
    power_loss(Work::Merge, 0..150);
}

#[test]
fn power_loss_in_a_compaction_by_several_threads_loses_nothing() {
    power_loss(Work::Compaction, 0..150);
}

/// What is shared is not durable before a flush either.
#[test]
fn a_flush_that_is_missing_after_sharing_is_caught() {
    for what in [Work::Merge, Work::Compaction] {
        let bytes = AtomicU64::new(0);
        let noticed = first_failure(0..800, |seed| match shares(seed) {
            false => Ok(()),
            true => cut_off(seed, what, &bytes, Fate::Forgets(MergeStep::LowerFlush)),
        });
        assert!(noticed.is_some(), "no seed notices that a flush of a {what:?} is missing");
    }
}

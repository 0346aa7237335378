//! Compactions that are killed, cut off and done again, while a guest writes, flushes, zeros and trims.

use crate::{
    crash::{Machine, Model, check_found, first_failure, form_of, layer, options, run_all, shared, shares},
    merge_crash::guest,
    simfs::SimFs,
    support::{Form, block_size, report},
};
use backstay_disk::{Backend, Disk, MergeControl, MergeStep, NewDisk, ZeroMode, check_file, settle_parents};
use backstay_vhd::{check::Severity, testing::Rng};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::crash::SECTORS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Power,
    Kill,
    Live,
    /// The flush after this point does nothing; then the power goes.
    Forgets(MergeStep),
}

/// A disk with holes in its file, or with blocks of zeros.
fn machine(rng: &mut Rng, form: Form) -> Machine {
    let base = NewDisk::Dynamic { size: SECTORS * 512, block_size: block_size(&layer(form, 0)) };
    let depth = u128::from(rng.below(3));
    let mut machine = Machine::above(rng, form, &base, depth, true);
    for _ in 0..2 + rng.below(8) {
        machine.write(rng).unwrap();
    }
    // Whole blocks of zeros: the smallest blocks of both formats.
    for _ in 0..1 + rng.below(3) {
        let sectors = if form == Form::Vhd { 1024 } else { 2048 };
        let block = rng.below(SECTORS / sectors);
        let (sector, count) = (block * sectors, sectors);
        let (first, all) = (usize::try_from(sector).unwrap(), usize::try_from(count).unwrap());
        machine.model.sectors[first..first + all].iter_mut().for_each(|versions| versions.push(0));
        match rng.one_in(2) {
            true => machine.disk.write(sector * 512, &vec![0; usize::try_from(count * 512).unwrap()]),
            false => machine.disk.write_zeroes(sector * 512, count * 512, ZeroMode::default()),
        }
        .unwrap();
    }
    if rng.one_in(2) {
        machine.reopen().unwrap();
    }
    for _ in 0..rng.below(4) {
        machine.write(rng).unwrap();
    }
    machine
}

type Versions = Arc<Mutex<Vec<Vec<u32>>>>;

/// Compacts while the guest does what it likes between any two actions; what was acknowledged.
fn compact(
    machine: &Arc<Mutex<Machine>>,
    seed: u64,
    fate: Fate,
) -> (Result<(), String>, Versions, Arc<AtomicBool>) {
    let (disk, fs) = {
        let machine = machine.lock().unwrap();
        (Arc::clone(&machine.disk), Arc::clone(&machine.fs))
    };
    let acknowledged: Versions = Arc::new(Mutex::new(machine.lock().unwrap().model.sectors.clone()));
    let ended = Arc::new(AtomicBool::new(false));
    let busy = Rng::new(seed).below(4);
    let control = {
        let (machine, acknowledged, ended) =
            (Arc::clone(machine), Arc::clone(&acknowledged), Arc::clone(&ended));
        let rng = Mutex::new(Rng::new(seed ^ 0xbeef));
        MergeControl::observed(move |step| {
            let (mut rng, mut machine) = (rng.lock().unwrap(), machine.lock().unwrap());
            // While blocks are held a guest that writes to them waits, and this is the thread that would let it go on.
            let held = matches!(
                step,
                MergeStep::Copied | MergeStep::LowerFlush | MergeStep::Clear | MergeStep::UpperFlush
            );
            for _ in 0..if busy == 0 || held { 0 } else { rng.below(busy) } {
                if ended.load(SeqCst) || guest(&mut machine, &mut rng).is_err() {
                    ended.store(true, SeqCst);
                    return;
                }
                acknowledged.lock().unwrap().clone_from(&machine.model.sectors);
            }
            if fate == Fate::Forgets(step) && rng.one_in(2) {
                // Up to the next one nothing more becomes durable.
                fs.power().swallow_flush(0);
                fs.power().die_after_flushes(1);
            }
        })
    };
    let control = control.in_batches_of(1 + usize::try_from(Rng::new(seed).below(3)).unwrap());
    let done = disk.compact(&control).map(drop).map_err(|error| report(&error));
    (done, acknowledged, ended)
}

fn last(versions: &[u32]) -> Vec<u32> {
    versions.last().copied().into_iter().collect()
}

/// Opens what is left, compacts it to the end, and checks that what was found stays.
fn goes_on(machine: &Machine, fs: &Arc<SimFs>, model: &Model, seed: u64) -> Result<(), String> {
    let say = |error: &dyn std::error::Error| report(error);
    settle_parents(&shared(fs), &machine.top, &options()).map_err(|error| say(&error))?;
    let disk = Disk::open_on(shared(fs), &machine.top, options()).map_err(|error| say(&error))?;
    let found = check_found(&disk, model, |versions| versions)?;
    let next = Machine {
        form: machine.form,
        fs: Arc::clone(fs),
        disk: Arc::clone(&disk),
        model: Model { sectors: found.iter().map(|version| vec![*version]).collect(), next: 1 << 20 },
        top: machine.top.clone(),
        switching: None,
        layers: 90,
        trims: true,
    };
    let next = Arc::new(Mutex::new(next));
    let (done, acknowledged, _) = compact(&next, seed ^ 1, Fate::Live);
    done.map_err(|error| format!("again: {error}"))?;
    let model = Model { sectors: acknowledged.lock().unwrap().iter().map(|v| last(v)).collect(), next: 0 };
    check_found(&disk, &model, |versions| versions).map_err(|error| format!("compacted: {error}"))?;
    disk.close().map_err(|error| say(&error))?;
    let disk = Disk::open_on(shared(fs), &machine.top, options()).map_err(|error| say(&error))?;
    check_found(&disk, &model, |versions| versions).map_err(|error| format!("opened again: {error}"))?;
    disk.close().map_err(|error| say(&error))?;
    for path in (0..=3).map(|number| layer(machine.form, number)) {
        if fs.exists(path.to_str().unwrap()) {
            let checked = check_file(&shared(fs), &path, &options()).map_err(|error| say(&error))?;
            if checked.worst().is_some_and(|worst| worst >= Severity::Warning) {
                return Err(format!("{}: {checked}", path.display()));
            }
        }
    }
    Ok(())
}

fn crash(seed: u64, fate: Fate) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let machine = Arc::new(Mutex::new(machine(&mut rng, form_of(seed))));
    if shares(seed) {
        machine.lock().unwrap().fs.power().share();
    }
    if matches!(fate, Fate::Power | Fate::Kill) {
        let operations = if rng.one_in(3) { 30 } else { 150 };
        machine.lock().unwrap().fs.power().die_after_operations(rng.below(operations));
    }
    let (done, acknowledged, ended) = compact(&machine, seed, fate);
    if fate == Fate::Live {
        done?;
    }
    let mut machine = machine.lock().unwrap();
    let mut later = Rng::new(seed ^ 0xf00d);
    for _ in 0..4 {
        if ended.load(SeqCst) || guest(&mut machine, &mut later).is_err() {
            break;
        }
        acknowledged.lock().unwrap().clone_from(&machine.model.sectors);
    }
    machine.disk.abandon();
    let (after, sectors) = match fate {
        Fate::Power | Fate::Forgets(_) => (machine.fs.power_cut(seed), machine.model.sectors.clone()),
        Fate::Kill | Fate::Live => {
            let acknowledged = acknowledged.lock().unwrap();
            let sectors = acknowledged.iter().zip(&machine.model.sectors).map(|(acknowledged, all)| {
                let last = acknowledged.len().min(all.len()) - 1;
                all[last..].to_vec()
            });
            (machine.fs.kill(), sectors.collect())
        }
    };
    goes_on(&machine, &after, &Model { sectors, next: 0 }, seed).map_err(|error| format!("{fate:?}: {error}"))
}

#[test]
fn a_compaction_while_the_guest_writes_reads_like_the_model() {
    run_all(0..300, |seed| crash(seed, Fate::Live));
}

#[test]
fn power_loss_in_a_compaction_keeps_what_was_flushed() {
    run_all(0..600, |seed| crash(seed, Fate::Power));
}

#[test]
fn process_death_in_a_compaction_loses_nothing_acknowledged() {
    run_all(0..400, |seed| crash(seed, Fate::Kill));
}

#[test]
fn a_compaction_that_forgets_a_flush_is_caught() {
    // In a VHD, where new blocks go into no holes, the flush before the next copy stands in for the one after the entries.
    let copies = [(Form::Vhd, MergeStep::LowerFlush), (Form::Vhdx, MergeStep::LowerFlush)];
    for (form, step) in copies.into_iter().chain([(Form::Vhdx, MergeStep::UpperFlush)]) {
        let noticed = first_failure(0..800, |seed| match form_of(seed) == form {
            true => crash(seed, Fate::Forgets(step)),
            false => Ok(()),
        });
        assert!(noticed.is_some(), "no seed of {form:?} notices that the flush at {step:?} is missing");
    }
}

/// A block moved, a new one came to lie behind its old place, and that place is punched out. Whether the power goes then with or
/// without the flush of the table's entries: which one it lacks is `forgets`.
fn punched_old_place(form: Form, forgets: bool) -> Result<(), String> {
    let fs = SimFs::new();
    let path = layer(form, 0);
    let block = u64::from(block_size(&path));
    let base = NewDisk::Dynamic { size: 8 * block, block_size: block_size(&path) };
    crate::crash::make(&fs, path.to_str().unwrap(), &base, 1).unwrap();
    let disk = Disk::open_on(shared(&fs), &path, options()).unwrap();
    let put =
        |number: u64, value: u8| disk.write(number * block, &vec![value; usize::try_from(block).unwrap()]);
    for number in 0..4 {
        put(number, 7).unwrap();
    }
    disk.write_zeroes(block, block, ZeroMode::default()).unwrap();
    disk.flush().unwrap();
    let (disk_of_guest, fs_of_guest, flushes) = (Arc::clone(&disk), Arc::clone(&fs), Mutex::new(0));
    let control = MergeControl::observed(move |step| {
        let mut flushes = flushes.lock().unwrap();
        // The first of them is that of the block of zeros.
        match step {
            MergeStep::UpperFlush => {
                *flushes += 1;
                if *flushes == 2 && forgets {
                    fs_of_guest.power().swallow_flush(0);
                }
            }
            // Nothing more becomes durable. A new block of a VHD comes to lie behind the old place, which is a hole then; in a
            // VHDX it takes that place, and the flush that it needs ends the machine.
            MergeStep::Packed => {
                fs_of_guest.power().die_after_flushes(0);
                let _may_fail = disk_of_guest.write(6 * block, &[9; 512]);
            }
            _ => {}
        }
    });
    let ended = disk.compact(&control).map_err(|error| report(&error));
    assert!(ended.is_err(), "the machine is off before the end");
    disk.abandon();
    // The table lies in front of all blocks, and of the log of a VHDX only what was flushed counts.
    let after = fs.power_cut_keeping(true, |_, at| at >= if form == Form::Vhd { 8192 } else { 4 << 20 });
    let disk = Disk::open_on(shared(&after), &path, options()).map_err(|error| report(&error))?;
    for number in 0..4 {
        let mut found = vec![0; usize::try_from(block).unwrap()];
        disk.read(number * block, &mut found).map_err(|error| report(&error))?;
        let expected = if number == 1 { 0 } else { 7 };
        if found.iter().any(|byte| *byte != expected) {
            return Err(format!("{form:?}: block {number} lost its content"));
        }
    }
    disk.close().map_err(|error| report(&error))
}

#[test]
fn an_old_place_is_given_back_only_after_the_table_is_durable() {
    for form in [Form::Vhd, Form::Vhdx] {
        punched_old_place(form, false).unwrap();
        assert!(
            punched_old_place(form, true).is_err(),
            "nobody notices that the flush of {form:?} is missing"
        );
    }
}

/// Seeds that nobody has tried yet, for as long as `SOAK_SECONDS` says.
#[test]
#[ignore = "make soak runs it"]
fn soak_compactions() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let until = Instant::now() + Duration::from_secs(seconds);
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() << 32;
    let mut seed = first;
    while Instant::now() < until {
        for fate in [Fate::Live, Fate::Power, Fate::Kill] {
            run_all(seed..seed + 8, |seed| crash(seed, fate));
        }
        seed += 8;
    }
    println!("{} seeds from {first} on, each for three kinds of end", seed - first);
}

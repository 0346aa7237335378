//! Machines that end while a disk gets another size.

use crate::{
    crash::{Machine, Model, SECTORS, check_found, first_failure, form_of, layer, options, run_all, shared},
    simfs::SimFs,
    support::{Form, block_size, report},
};
use backstay_disk::{Backend, Disk, NewDisk, NewSize, ResizeControl, check_file, resize_offline};
use backstay_vhd::{check::Severity, testing::Rng};
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const OLD: u64 = SECTORS * 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Power,
    Kill,
    /// A flush does nothing; then the power goes.
    Forgets(u64),
}

/// A disk that somebody used.
fn machine(rng: &mut Rng, form: Form) -> Machine {
    let size = OLD;
    let fixed = rng.one_in(3);
    let base = match fixed {
        true => NewDisk::Fixed { size },
        false => NewDisk::Dynamic { size, block_size: block_size(&layer(form, 0)) },
    };
    let depth = if fixed { 0 } else { u128::from(rng.below(3)) };
    let mut machine = Machine::above(rng, form, &base, depth, true);
    for _ in 0..rng.below(6) {
        machine.write(rng).unwrap();
    }
    if rng.one_in(2) {
        machine.reopen().unwrap();
    }
    for _ in 0..rng.below(4) {
        machine.write(rng).unwrap();
    }
    machine
}

/// A size for it: in its last block, some blocks more, or more than its table has room for.
fn larger(rng: &mut Rng, form: Form, fixed: bool) -> u64 {
    let sectors = match rng.below(3) {
        0 => 1 + rng.below(900),
        1 => 1 + rng.below(20_000),
        _ if form == Form::Vhd => (70 << 11) + rng.below(1 << 17),
        _ if fixed => 1 + rng.below(20_000),
        _ => (130 << 21) + rng.below(1 << 27),
    };
    OLD + sectors * 512
}

fn is_zero_from(disk: &Disk, from: u64) -> Result<(), String> {
    let size = disk.size();
    if from >= size {
        return Ok(());
    }
    let status = disk.block_status(from, size - from, usize::MAX).map_err(|error| report(&error))?;
    let mut at = from;
    for run in status {
        let mut bytes = vec![0; if run.zero { 0 } else { usize::try_from(run.len).unwrap() }];
        disk.read(at, &mut bytes).map_err(|error| report(&error))?;
        if let Some(place) = bytes.iter().position(|byte| *byte != 0) {
            return Err(format!("what is new is not zero at {}", at + place as u64));
        }
        at += run.len;
    }
    Ok(())
}

/// The size and the content that a crash left, and that what was cut off can be done again.
fn grown_or_not(
    fs: &Arc<SimFs>,
    top: &Path,
    form: Form,
    model: &Model,
    old: u64,
    (size, done): (u64, bool),
) -> Result<(), String> {
    let say = |error: &dyn std::error::Error| report(error);
    let disk = Disk::open_on(shared(fs), top, options()).map_err(|error| say(&error))?;
    let found = disk.size();
    if found != size && (done || found != old) {
        return Err(format!("the disk has {found} bytes, was {old} and should be {size} (done: {done})"));
    }
    check_found(&disk, model, |versions| versions)?;
    is_zero_from(&disk, OLD)?;
    disk.grow(size).map_err(|error| format!("again: {}", say(&error)))?;
    is_zero_from(&disk, OLD)?;
    disk.write(size - 512, &[9; 512]).map_err(|error| say(&error))?;
    disk.close().map_err(|error| say(&error))?;
    let disk = Disk::open_on(shared(fs), top, options()).map_err(|error| say(&error))?;
    check_found(&disk, model, |versions| versions).map_err(|error| format!("at last: {error}"))?;
    let mut last = [0; 512];
    disk.read(size - 512, &mut last).map_err(|error| say(&error))?;
    if last != [9; 512] {
        return Err("a write into what is new is lost".into());
    }
    disk.close().map_err(|error| say(&error))?;
    for path in (0..=3).map(|number| layer(form, number)) {
        if fs.exists(path.to_str().unwrap()) {
            let checked = check_file(&shared(fs), &path, &options()).map_err(|error| say(&error))?;
            if checked.worst().is_some_and(|worst| worst >= Severity::Warning) {
                return Err(format!("{}: {checked}", path.display()));
            }
        }
    }
    Ok(())
}

fn growing(seed: u64, fate: Fate) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let form = form_of(seed);
    let mut machine = machine(&mut rng, form);
    let fixed = machine.disk.chain().len() == 1 && !machine.disk.chain()[0].grows();
    let size = larger(&mut rng, form, fixed);
    let power = machine.fs.power();
    match fate {
        Fate::Power | Fate::Kill => {
            let most = if rng.one_in(2) { 25 } else { 70 };
            power.die_after_operations(rng.below(most));
        }
        Fate::Forgets(flush) => {
            // Up to the next one nothing more becomes durable.
            power.swallow_flush(flush);
            power.die_after_flushes(flush + 1);
        }
    }
    let grown = machine.disk.grow(size);
    let done = grown.is_ok();
    if done && rng.one_in(2) {
        let _the_machine_may_be_off = machine.flush();
    }
    machine.disk.abandon();
    let (after, model) = match fate {
        Fate::Power | Fate::Forgets(_) => (machine.fs.power_cut(seed), machine.model.sectors.clone()),
        Fate::Kill => {
            let last = machine.model.sectors.iter().map(|versions| versions[versions.len() - 1..].to_vec());
            (machine.fs.kill(), last.collect())
        }
    };
    grown_or_not(&after, &machine.top, form, &Model { sectors: model, next: 0 }, OLD, (size, done))
        .map_err(|error| format!("{fate:?} to {size}: {error}"))
}

/// A disk that grew, was written to and zeroed there, and now gets smaller.
fn shrinking(seed: u64, fate: Fate) -> Result<(), String> {
    let say = |error: &dyn std::error::Error| report(error);
    let mut rng = Rng::new(seed);
    let form = form_of(seed);
    let machine = machine(&mut rng, form);
    let fixed = machine.disk.chain().len() == 1 && !machine.disk.chain()[0].grows();
    let big = larger(&mut rng, form, fixed);
    machine.disk.grow(big).map_err(|error| say(&error))?;
    for _ in 0..rng.below(4) {
        let at = OLD + rng.below((big - OLD) / 512) * 512;
        machine.disk.write(at, &[7; 512]).map_err(|error| say(&error))?;
        machine.disk.write(at, &[0; 512]).map_err(|error| say(&error))?;
    }
    machine.disk.close().map_err(|error| say(&error))?;
    let target = OLD + rng.below((big - OLD) / 512) * 512;
    let power = machine.fs.power();
    power.die_after_operations(rng.below(60));
    let (fs, top) = (shared(&machine.fs), &machine.top);
    let done = resize_offline(&fs, top, NewSize::Bytes(target), &options(), &ResizeControl::new()).is_ok();
    let after = match fate {
        Fate::Power | Fate::Forgets(_) => machine.fs.power_cut(seed),
        Fate::Kill => machine.fs.kill(),
    };
    let model = machine.model.sectors.iter().map(|versions| versions[versions.len() - 1..].to_vec());
    let model = Model { sectors: model.collect(), next: 0 };
    let told = |error: String| format!("{fate:?} from {big} to {target}: {error}");
    let disk = Disk::open_on(shared(&after), top, options()).map_err(|error| told(say(&error)))?;
    let found = disk.size();
    if found != target && (done || found != big) {
        return Err(told(format!("the disk has {found} bytes (done: {done})")));
    }
    check_found(&disk, &model, |versions| versions).map_err(told)?;
    is_zero_from(&disk, OLD).map_err(told)?;
    disk.close().map_err(|error| say(&error))?;
    resize_offline(&shared(&after), top, NewSize::Bytes(target), &options(), &ResizeControl::new())
        .map_err(|error| told(format!("again: {}", say(&error))))?;
    let disk = Disk::open_on(shared(&after), top, options()).map_err(|error| say(&error))?;
    if disk.size() != target {
        return Err(told(format!("it has {} bytes at last", disk.size())));
    }
    disk.close().map_err(|error| say(&error))?;
    grown_or_not(&after, top, form, &model, target, (big, false)).map_err(told)
}

#[test]
fn power_loss_while_a_disk_shrinks_leaves_the_old_or_the_new_one() {
    run_all(0..700, |seed| shrinking(seed, Fate::Power));
}

#[test]
fn process_death_while_a_disk_shrinks_leaves_the_old_or_the_new_one() {
    run_all(0..300, |seed| shrinking(seed, Fate::Kill));
}

#[test]
fn power_loss_while_a_disk_grows_leaves_the_old_or_the_new_one() {
    run_all(0..900, |seed| growing(seed, Fate::Power));
}

#[test]
fn process_death_while_a_disk_grows_leaves_the_old_or_the_new_one() {
    run_all(0..500, |seed| growing(seed, Fate::Kill));
}

/// Some flushes are for what a crash may lose; those before the size changes are not.
#[test]
fn a_growth_that_forgets_a_flush_is_caught() {
    for form in [Form::Vhd, Form::Vhdx] {
        let caught = (0..12).filter(|flush| {
            let failure = first_failure(0..120, |seed| match form_of(seed) == form {
                true => growing(seed, Fate::Forgets(*flush)),
                false => Ok(()),
            });
            failure.is_some()
        });
        let caught: Vec<u64> = caught.collect();
        println!("{form:?}: seeds notice that flush {caught:?} is missing");
        assert!(caught.len() >= 2, "{form:?}: only {caught:?}");
    }
}

#[test]
fn a_growth_that_meets_a_full_volume_leaves_the_old_disk() {
    use backstay_disk::{ResizeError, fs::HostFs};
    let Some(mount) = crate::space::Mount::new("12m") else { return };
    for form in [Form::Vhd, Form::Vhdx] {
        let path = mount.path().join(form.disk("fixed"));
        let what = NewDisk::Fixed { size: 4 << 20 };
        backstay_disk::create_disk(&HostFs::shared(), &path, &what, backstay_disk::Identity::fresh())
            .unwrap();
        let disk = Disk::open(&path, backstay_disk::DiskOptions::default()).unwrap();
        disk.write(0, &[1; 512]).unwrap();
        let full = disk.grow(40 << 20);
        assert!(matches!(full, Err(ResizeError::NoSpace { .. })), "{form:?}: {full:?}");
        assert_eq!(disk.size(), 4 << 20);
        disk.write(512, &[2; 512]).unwrap();
        disk.flush().unwrap();
        disk.close().unwrap();
        mount.remount("size=64m");
        let disk = Disk::open(&path, backstay_disk::DiskOptions::default()).unwrap();
        disk.grow(40 << 20).unwrap();
        let mut found = [0; 1024];
        disk.read(0, &mut found).unwrap();
        assert!(found[..512] == [1; 512] && found[512..] == [2; 512]);
        disk.close().unwrap();
        std::fs::remove_file(&path).unwrap();
        mount.remount("size=12m");
    }
}

/// Seeds that nobody has tried yet, for as long as `SOAK_SECONDS` says.
#[test]
#[ignore = "make soak runs it"]
fn soak_resizes() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let until = Instant::now() + Duration::from_secs(seconds);
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() << 32;
    let mut seed = first;
    while Instant::now() < until {
        for fate in [Fate::Power, Fate::Kill] {
            run_all(seed..seed + 8, |seed| growing(seed, fate));
            run_all(seed..seed + 8, |seed| shrinking(seed, fate));
        }
        seed += 8;
    }
    println!("{} seeds from {first} on, each growing and shrinking, for two kinds of end", seed - first);
}

//! Machines that end while a disk moves to another file. Whoever finds the two files afterwards takes the new one if it is there.

use crate::{
    crash::{Machine, Model, SECTORS, check_found, first_failure, form_of, layer, options, run_all, shared},
    support::{block_size, report},
};
use backstay_disk::{Backend, Disk, NewDisk, RelocateControl, check_file, fs::FileSystem};
use backstay_vhd::{check::Severity, testing::Rng};
use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Power,
    Kill,
    /// A flush does nothing; some operations later the power goes.
    Forgets(u64),
}

fn last_versions(machine: &Machine) -> Vec<u32> {
    machine.model.sectors.iter().map(|versions| versions[versions.len() - 1]).collect()
}

/// Moves it, removes the old file, and goes on in the new one; whether it was moved. `acknowledged` are the versions of the
/// sectors before the last write.
fn moved(machine: &mut Machine, to: &Path, rng: &mut Rng, acknowledged: &mut Vec<u32>) -> bool {
    if machine.disk.relocate(to, &RelocateControl::default(), &|| Ok(())).is_err() {
        return false;
    }
    let mut goes_on = || -> io::Result<()> {
        machine.fs.remove(&machine.top)?;
        machine.fs.sync_dir(Path::new("/d"))?;
        for _ in 0..rng.below(6) {
            *acknowledged = last_versions(machine);
            machine.write(rng)?;
            *acknowledged = last_versions(machine);
            if rng.one_in(2) {
                machine.flush()?;
            }
        }
        Ok(())
    };
    let _the_machine_may_be_off = goes_on();
    true
}

fn moving(seed: u64, fate: Fate) -> Result<(), String> {
    let say = |error: &dyn std::error::Error| report(error);
    let mut rng = Rng::new(seed);
    let form = form_of(seed);
    let size = SECTORS * 512;
    let fixed = rng.one_in(4);
    let base = match fixed {
        true => NewDisk::Fixed { size },
        false => NewDisk::Dynamic { size, block_size: block_size(&layer(form, 0)) },
    };
    let depth = if fixed { 0 } else { u128::from(rng.below(3)) };
    let mut machine = Machine::above(&mut rng, form, &base, depth, true);
    for _ in 0..rng.below(6) {
        machine.write(&mut rng).unwrap();
        if rng.one_in(3) {
            machine.flush().unwrap();
        }
    }
    let old = machine.top.clone();
    let to: PathBuf = Path::new("/e").join(old.file_name().unwrap());
    let power = machine.fs.power();
    match fate {
        Fate::Power | Fate::Kill => power.die_after_operations(rng.below(160)),
        Fate::Forgets(flush) => {
            power.swallow_flush(flush);
            power.die_after_operations(20 + rng.below(140));
        }
    }
    let mut acknowledged = last_versions(&machine);
    let done = moved(&mut machine, &to, &mut rng, &mut acknowledged);
    machine.disk.abandon();
    let (after, sectors) = match fate {
        Fate::Power | Fate::Forgets(_) => (machine.fs.power_cut(seed), machine.model.sectors.clone()),
        Fate::Kill => {
            // The last write may not have been acknowledged, and be there or not.
            let last = last_versions(&machine).into_iter().zip(acknowledged);
            (machine.fs.kill(), last.map(|(last, before)| vec![before, last]).collect())
        }
    };
    let model = Model { sectors, next: 0 };
    let new_is_there = after.exists(to.to_str().unwrap());
    if done && !new_is_there {
        return Err(format!("{fate:?}: the new file has lost its name"));
    }
    let top = if new_is_there { &to } else { &old };
    let told = |error: String| format!("{fate:?}, {}: {error}", top.display());
    let disk = Disk::open_on(shared(&after), top, options()).map_err(|error| told(say(&error)))?;
    check_found(&disk, &model, |versions| versions).map_err(told)?;
    disk.write(size - 512, &[9; 512]).map_err(|error| told(say(&error)))?;
    disk.close().map_err(|error| told(say(&error)))?;
    let disk = Disk::open_on(shared(&after), top, options()).map_err(|error| told(say(&error)))?;
    let mut last = [0; 512];
    disk.read(size - 512, &mut last).map_err(|error| told(say(&error)))?;
    disk.close().map_err(|error| told(say(&error)))?;
    if last != [9; 512] {
        return Err(told("a write into it is lost".into()));
    }
    let checked = check_file(&shared(&after), top, &options()).map_err(|error| told(say(&error)))?;
    match checked.worst().is_some_and(|worst| worst >= Severity::Error) {
        true => Err(told(checked.to_string())),
        false => Ok(()),
    }
}

#[test]
fn power_loss_while_a_disk_moves_leaves_all_that_was_flushed_in_one_file() {
    run_all(0..500, |seed| moving(seed, Fate::Power));
}

#[test]
fn process_death_while_a_disk_moves_leaves_all_that_was_acknowledged_in_one_file() {
    run_all(0..300, |seed| moving(seed, Fate::Kill));
}

/// Those before the new file gets its name, and of its folder behind it.
#[test]
fn a_move_that_forgets_a_flush_is_caught() {
    let caught: Vec<u64> = (0..12)
        .filter(|flush| first_failure(0..80, |seed| moving(seed, Fate::Forgets(*flush))).is_some())
        .collect();
    println!("seeds notice that flush {caught:?} is missing");
    assert!(caught.len() >= 2, "only {caught:?}");
}

/// Seeds that nobody has tried yet, for as long as `SOAK_SECONDS` says.
#[test]
#[ignore = "make soak runs it"]
fn soak_moves() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let until = Instant::now() + Duration::from_secs(seconds);
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() << 32;
    let mut seed = first;
    while Instant::now() < until {
        for fate in [Fate::Power, Fate::Kill] {
            run_all(seed..seed + 8, |seed| moving(seed, fate));
        }
        seed += 8;
    }
    println!("{} seeds from {first} on, each for two kinds of end", seed - first);
}

//! Merges that are killed, cut off and gone on with at every point, while a guest writes, flushes, zeros and trims.

use crate::{
    crash::{
        Machine, Model, SECTORS, check_found, first_failure, form_of, layer, make, options, run_all, shared,
        shares,
    },
    simfs::SimFs,
    support::{Form, block_size, report},
};
use backstay_disk::{
    Backend, Disk, DiskOptions, MergeControl, MergeError, MergeStep, Merged, NewDisk, check_file,
    settle_parents,
};
use backstay_vhd::{check::Severity, testing::Rng};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// What ends the machine, or what the merge forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The power goes.
    Power,
    /// The process is killed.
    Kill,
    /// The process is killed, the next one flushes, the power goes.
    KillThenPower,
    /// It goes on to its end.
    Live,
    /// The flush after this point does nothing; then the power goes.
    Forgets(MergeStep, u64),
}

/// One machine and a merge in it.
struct World {
    form: Form,
    machine: Arc<Mutex<Machine>>,
    disk: Arc<Disk>,
    fs: Arc<SimFs>,
    upper: PathBuf,
    lower: PathBuf,
    /// The upper layer is what the guest writes to.
    is_top: bool,
    /// Another child of the upper layer, and its content.
    branch: Option<(PathBuf, Vec<u8>)>,
    /// What was acknowledged, as of the last request that returned.
    acknowledged: Arc<Mutex<Vec<Vec<u32>>>>,
    /// A request of the guest failed: what it was about is not acknowledged by a later one that needs no file.
    guest_ended: Arc<AtomicBool>,
}

fn branch_of(form: Form) -> PathBuf {
    Path::new("/d").join(form.layer("branch"))
}

fn read_all(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SECTORS * 512).unwrap()];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

impl World {
    fn new(rng: &mut Rng, form: Form) -> Self {
        let size = SECTORS * 512;
        let base = match rng.below(3) {
            0 => NewDisk::Fixed { size },
            _ => NewDisk::Dynamic {
                size,
                block_size: if rng.one_in(3) { 2 << 20 } else { block_size(&layer(form, 0)) },
            },
        };
        let depth = 1 + u128::from(rng.below(3));
        let number = 1 + u128::from(rng.below(u64::try_from(depth).unwrap()));
        let is_top = number == depth;
        let mut machine = Machine::above(rng, form, &base, depth, true);
        for _ in 0..1 + rng.below(6) {
            machine.write(rng).unwrap();
        }
        if rng.one_in(2) {
            machine.reopen().unwrap();
        }
        let (fs, upper) = (Arc::clone(&machine.fs), layer(form, number));
        let branch = (!is_top && rng.one_in(2)).then(|| {
            let path = branch_of(form);
            let what = NewDisk::Differencing { parent: upper.clone(), block_size: block_size(&path) };
            make(&fs, path.to_str().unwrap(), &what, 50).unwrap();
            let disk = Disk::open_on(shared(&fs), &path, options()).unwrap();
            disk.write(rng.below(SECTORS) * 512, &[0xbb; 512]).unwrap();
            let content = read_all(&disk);
            disk.close().unwrap();
            (path, content)
        });
        for _ in 0..rng.below(5) {
            machine.write(rng).unwrap();
        }
        let (disk, acknowledged) = (Arc::clone(&machine.disk), machine.model.sectors.clone());
        Self {
            form,
            machine: Arc::new(Mutex::new(machine)),
            disk,
            fs,
            upper,
            lower: layer(form, number - 1),
            is_top,
            branch,
            acknowledged: Arc::new(Mutex::new(acknowledged)),
            guest_ended: Arc::default(),
        }
    }

    /// Merges while the guest does what it likes between any two actions.
    fn merge(&self, seed: u64, fate: Fate) -> Result<Merged, MergeError> {
        let (machine, acknowledged, fs) =
            (Arc::clone(&self.machine), Arc::clone(&self.acknowledged), Arc::clone(&self.fs));
        let (rng, ended) = (Mutex::new(Rng::new(seed ^ 0xbeef)), Arc::clone(&self.guest_ended));
        let busy = Rng::new(seed).below(4);
        let control = MergeControl::observed(move |step| {
            let (mut rng, mut machine) = (rng.lock().unwrap(), machine.lock().unwrap());
            for _ in 0..if busy == 0 { 0 } else { rng.below(busy) } {
                if ended.load(SeqCst) || guest(&mut machine, &mut rng).is_err() {
                    ended.store(true, SeqCst);
                    return;
                }
                acknowledged.lock().unwrap().clone_from(&machine.model.sectors);
            }
            match fate {
                Fate::Forgets(at, flush) if at == step && rng.one_in(2) => {
                    fs.power().swallow_flush(flush);
                    fs.power().die_after_operations(rng.below(30));
                }
                _ => {}
            }
        });
        let control = control.in_batches_of(1 + usize::try_from(Rng::new(seed).below(3)).unwrap());
        let children: Vec<PathBuf> = self.branch.iter().map(|(path, _)| path.clone()).collect();
        let merged = self.disk.merge_layer(&self.upper, &children, &control);
        if merged.is_ok() && self.is_top {
            self.machine.lock().unwrap().top.clone_from(&self.lower);
        }
        merged
    }

    /// A model of what sectors may hold after a kill: what was acknowledged last, or a write that was under way.
    fn after_kill(&self) -> Model {
        let (acknowledged, machine) = (self.acknowledged.lock().unwrap(), self.machine.lock().unwrap());
        let sectors = acknowledged.iter().zip(&machine.model.sectors).map(|(acknowledged, all)| {
            let last = acknowledged.len().min(all.len()) - 1;
            all[last..].to_vec()
        });
        Model { sectors: sectors.collect(), next: 0 }
    }

    fn model(&self) -> Model {
        let machine = self.machine.lock().unwrap();
        Model { sectors: machine.model.sectors.clone(), next: 0 }
    }
}

/// One request of the guest.
pub fn guest(machine: &mut Machine, rng: &mut Rng) -> std::io::Result<()> {
    match rng.below(10) {
        0..=4 => machine.write(rng),
        5 => machine.zero(rng),
        6 => machine.trim(rng),
        7 => {
            let mut bytes = vec![0; 512 * 64];
            machine.disk.read(rng.below(SECTORS - 64) * 512, &mut bytes)
        }
        _ => machine.flush(),
    }
}

fn open(fs: &Arc<SimFs>, path: &Path) -> Result<Arc<Disk>, String> {
    Disk::open_on(shared(fs), path, options()).map_err(|error| report(&error))
}

fn branch_is_same(fs: &Arc<SimFs>, branch: Option<&(PathBuf, Vec<u8>)>) -> Result<(), String> {
    let Some((path, content)) = branch else { return Ok(()) };
    let looking = DiskOptions { read_only: true, ..options() };
    let disk = Disk::open_on(shared(fs), path, looking).map_err(|error| report(&error))?;
    if read_all(&disk) == *content { Ok(()) } else { Err("the branch reads something else".into()) }
}

/// Opens what is left, checks it, merges it to the end, and checks that what was found stays.
fn goes_on(world: &World, fs: &Arc<SimFs>, model: &Model, merged: bool, rng: &mut Rng) -> Result<(), String> {
    let named = world.machine.lock().unwrap().top.clone();
    // Nobody may have written down yet that the lower layer is in the place of the upper one.
    let top = if merged && world.is_top && rng.one_in(2) { world.upper.clone() } else { named };
    // Before the chain is open for writing: its parents would be locked.
    branch_is_same(fs, world.branch.as_ref()).map_err(|error| format!("found: {error}"))?;
    settle_parents(&shared(fs), &top, &options()).map_err(|error| report(&error))?;
    let disk = open(fs, &top)?;
    let found = check_found(&disk, model, |versions| versions)?;
    let next = Machine {
        form: world.form,
        fs: Arc::clone(fs),
        disk: Arc::clone(&disk),
        model: Model { sectors: found.iter().map(|version| vec![*version]).collect(), next: 1 << 20 },
        top: top.clone(),
        switching: None,
        layers: 90,
        trims: true,
    };
    let again = World {
        form: world.form,
        acknowledged: Arc::new(Mutex::new(next.model.sectors.clone())),
        machine: Arc::new(Mutex::new(next)),
        disk,
        fs: Arc::clone(fs),
        upper: world.upper.clone(),
        lower: world.lower.clone(),
        is_top: top == world.upper,
        branch: world.branch.clone(),
        guest_ended: Arc::default(),
    };
    if top != world.lower {
        let merged =
            again.merge(rng.next(), Fate::Live).map_err(|error| format!("again: {}", report(&error)))?;
        if merged.chain.contains(&world.upper) {
            return Err(format!("the merged layer is still in {:?}", merged.chain));
        }
    }
    let last = |versions: &[u32]| versions.last().copied().into_iter().collect::<Vec<_>>();
    let model = Model { sectors: again.model().sectors.iter().map(|v| last(v)).collect(), next: 0 };
    check_found(&again.disk, &model, |versions| versions).map_err(|error| format!("merged: {error}"))?;
    again.disk.close().map_err(|error| report(&error))?;
    // The file that was merged is not needed any more.
    backstay_disk::fs::FileSystem::remove(fs.as_ref(), &world.upper).map_err(|error| report(&error))?;
    let top = again.machine.lock().unwrap().top.clone();
    let disk = open(fs, &top)?;
    check_found(&disk, &model, |versions| versions).map_err(|error| format!("without it: {error}"))?;
    disk.close().map_err(|error| report(&error))?;
    branch_is_same(fs, world.branch.as_ref()).map_err(|error| format!("merged: {error}"))?;
    for path in (0..=3).map(|number| layer(world.form, number)).chain([branch_of(world.form)]) {
        if fs.exists(path.to_str().unwrap()) {
            let checked = check_file(&shared(fs), &path, &options()).map_err(|error| report(&error))?;
            if checked.worst().is_some_and(|worst| worst >= Severity::Warning) {
                return Err(format!("{}: {checked}", path.display()));
            }
        }
    }
    Ok(())
}

fn crash(seed: u64, fate: Fate) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let world = World::new(&mut rng, form_of(seed));
    if shares(seed) {
        world.fs.power().share();
    }
    match fate {
        Fate::Power | Fate::Kill | Fate::KillThenPower => {
            let last = if rng.one_in(3) { 40 } else { 400 };
            world.fs.power().die_after_operations(rng.below(last));
        }
        Fate::Live | Fate::Forgets(..) => {}
    }
    let merged = world.merge(seed, fate);
    if let (Err(error), Fate::Live) = (&merged, fate) {
        return Err(report(error));
    }
    // After a merge that was complete the guest goes on.
    let mut last = Rng::new(seed ^ 0xf00d);
    for _ in 0..4 {
        let mut machine = world.machine.lock().unwrap();
        if world.guest_ended.load(SeqCst) || guest(&mut machine, &mut last).is_err() {
            break;
        }
        world.acknowledged.lock().unwrap().clone_from(&machine.model.sectors);
    }
    world.disk.abandon();
    let (after, model) = match fate {
        Fate::Power | Fate::Forgets(..) => (world.fs.power_cut(seed), world.model()),
        Fate::Kill | Fate::Live => (world.fs.kill(), world.after_kill()),
        Fate::KillThenPower => {
            let killed = world.fs.kill();
            let top = world.machine.lock().unwrap().top.clone();
            let disk = open(&killed, &top)?;
            disk.flush().map_err(|error| report(&error))?;
            disk.abandon();
            (killed.power_cut(seed), world.after_kill())
        }
    };
    goes_on(&world, &after, &model, merged.is_ok(), &mut rng).map_err(|error| format!("{fate:?}: {error}"))
}

#[test]
fn a_merge_while_the_guest_writes_reads_like_the_model() {
    run_all(0..300, |seed| crash(seed, Fate::Live));
}

#[test]
fn power_loss_in_a_merge_keeps_what_was_flushed() {
    run_all(0..600, |seed| crash(seed, Fate::Power));
}

#[test]
fn process_death_in_a_merge_loses_nothing_acknowledged() {
    run_all(0..500, |seed| crash(seed, Fate::Kill));
}

#[test]
fn process_death_and_then_power_loss_keep_what_the_next_process_flushed() {
    run_all(0..400, |seed| crash(seed, Fate::KillThenPower));
}

/// Seeds that nobody has tried yet, for as long as `SOAK_SECONDS` says.
#[test]
#[ignore = "make soak runs it"]
fn soak_merges() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let until = Instant::now() + Duration::from_secs(seconds);
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() << 32;
    let mut seed = first;
    while Instant::now() < until {
        for fate in [Fate::Live, Fate::Power, Fate::Kill, Fate::KillThenPower] {
            run_all(seed..seed + 8, |seed| crash(seed, fate));
        }
        seed += 8;
    }
    println!("{} seeds from {first} on, each for four kinds of end", seed - first);
}

#[test]
fn space_is_given_back_on_the_way_only_where_room_is_short() {
    for form in [Form::Vhd, Form::Vhdx] {
        for (room, gives_back) in [(1 << 40, false), (0, true)] {
            let world = World::new(&mut Rng::new(5), form);
            world.fs.power().set_room(room);
            let children: Vec<PathBuf> = world.branch.iter().map(|(path, _)| path.clone()).collect();
            let control = MergeControl::new();
            world.disk.merge_layer(&world.upper, &children, &control).unwrap();
            let progress = control.progress();
            assert!(progress.blocks_done > 0, "{form:?}");
            assert_eq!(progress.bytes_freed > 0, gives_back, "{form:?} with {room} bytes free: {progress:?}");
        }
    }
}

#[test]
fn a_merge_that_forgets_a_flush_is_caught() {
    let lower = (0..2).map(|flush| Fate::Forgets(MergeStep::LowerFlush, flush));
    let upper = [Fate::Forgets(MergeStep::UpperFlush, 0)];
    let header = (0..2).map(|flush| Fate::Forgets(MergeStep::Emptied, flush));
    let header: Vec<Fate> = header.collect();
    let of_vhd = lower.chain(upper).chain(header).map(|fate| (Form::Vhd, fate));
    // A VHDX names another parent through its log: if that is lost it names the old one, which is there still.
    let of_vhdx = [Fate::Forgets(MergeStep::LowerFlush, 0), Fate::Forgets(MergeStep::UpperFlush, 0)];
    let of_vhdx = of_vhdx.map(|fate| (Form::Vhdx, fate));
    for (form, fate) in of_vhd.chain(of_vhdx) {
        let noticed = first_failure(0..1200, |seed| match form_of(seed) == form {
            true => crash(seed, fate),
            false => Ok(()),
        });
        assert!(noticed.is_some(), "no seed of {form:?} notices {fate:?}");
    }
}

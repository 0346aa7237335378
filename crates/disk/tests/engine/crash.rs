//! Power loss and process death at every point, on the simulated file system.

use crate::{
    simfs::SimFs,
    support::{Form, block_size, report},
};
use backstay_disk::{
    Backend, ConvertRequest, ConvertTo, Disk, DiskOptions, Identity, NewDisk, NewDiskPlan, ZeroMode,
    check_file, convert, fs::FileSystem, switch_all,
};
use backstay_vhd::{VhdTime, check::Severity, testing::Rng};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use uuid::Uuid;

pub const SECTORS: u64 = 4 * 1024 + 100; // four blocks of a VHD and a piece, two of a VHDX and a piece
pub const RUN: &str = "/run/shadow";

pub fn shared(fs: &Arc<SimFs>) -> Arc<dyn FileSystem> {
    Arc::clone(fs) as Arc<dyn FileSystem>
}

pub fn options() -> DiskOptions {
    DiskOptions { runtime_dir: Some(PathBuf::from(RUN)), ..DiskOptions::default() }
}

fn identity(number: u128) -> Identity {
    Identity { unique_id: Uuid::from_u128(number), time: VhdTime(1) }
}

pub fn make(fs: &Arc<SimFs>, path: &str, what: &NewDisk, number: u128) -> io::Result<()> {
    let plan = NewDiskPlan::new(&shared(fs), Path::new(path), what, identity(number), &options());
    plan.and_then(|plan| plan.execute(&shared(fs))).map_err(io::Error::other)
}

/// What each sector may hold: versions are small numbers, 0 is zeros.
pub struct Model {
    /// Last version known durable, and everything written since, oldest first.
    pub sectors: Vec<Vec<u32>>,
    pub next: u32,
}

impl Model {
    fn new() -> Self {
        Self { sectors: vec![vec![0]; usize::try_from(SECTORS).unwrap()], next: 1 }
    }

    fn range(&mut self, sector: u64, count: u64) -> &mut [Vec<u32>] {
        let from = usize::try_from(sector).unwrap();
        &mut self.sectors[from..from + usize::try_from(count).unwrap()]
    }

    fn add(&mut self, sector: u64, count: u64, version: u32) {
        self.range(sector, count).iter_mut().for_each(|versions| versions.push(version));
    }

    /// Everything so far is durable.
    pub fn flushed(&mut self) {
        for versions in &mut self.sectors {
            let last = versions[versions.len() - 1];
            *versions = vec![last];
        }
    }
}

/// Every other seed is about VHDX.
pub fn form_of(seed: u64) -> Form {
    if seed.is_multiple_of(2) { Form::Vhd } else { Form::Vhdx }
}

/// Every other seed of both formats is about a file system whose files can share pages.
pub fn shares(seed: u64) -> bool {
    (seed / 2).is_multiple_of(2)
}

/// The file of a layer; 0 is the first disk.
pub fn layer(form: Form, number: u128) -> PathBuf {
    let name = number.to_string();
    Path::new("/d").join(if number == 0 { form.disk(&name) } else { form.layer(&name) })
}

fn content(sector: u64, version: u32) -> [u8; 512] {
    let mut bytes = [0; 512];
    if version != 0 {
        bytes.fill(0xa5);
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
    }
    bytes
}

fn version_of(sector: u64, bytes: &[u8]) -> Option<u32> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let version = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
    (bytes == content(sector, version)).then_some(version)
}

/// One machine with one disk and what a user knows about it.
pub struct Machine {
    pub form: Form,
    pub fs: Arc<SimFs>,
    pub disk: Arc<Disk>,
    pub model: Model,
    pub top: PathBuf,
    /// A layer switch under way: the new top.
    pub switching: Option<PathBuf>,
    pub layers: u128,
    pub trims: bool,
}

impl Machine {
    /// A disk `depth` layers above a dynamic one, some content in each, all durable.
    fn new(rng: &mut Rng, form: Form, depth: u128, trims: bool) -> Self {
        let base = NewDisk::Dynamic { size: SECTORS * 512, block_size: block_size(&layer(form, 0)) };
        Self::above(rng, form, &base, depth, trims)
    }

    /// A disk `depth` layers above a new one.
    pub fn above(rng: &mut Rng, form: Form, base: &NewDisk, depth: u128, trims: bool) -> Self {
        let fs = SimFs::new();
        let top = layer(form, 0);
        make(&fs, top.to_str().unwrap(), base, 1).unwrap();
        let disk = Disk::open_on(shared(&fs), &top, options()).unwrap();
        let model = Model::new();
        let mut machine = Self { form, fs, disk, model, top, switching: None, layers: 0, trims };
        for _ in 0..depth {
            for _ in 0..2 {
                machine.write(rng).unwrap();
            }
            machine.switch().unwrap();
        }
        machine.flush().unwrap();
        machine
    }

    fn pick(rng: &mut Rng) -> (u64, u64) {
        let sector = rng.below(SECTORS);
        let most = if rng.one_in(4) { 1500 } else { 12 };
        (sector, (1 + rng.below(most)).min(SECTORS - sector))
    }

    pub fn write(&mut self, rng: &mut Rng) -> io::Result<()> {
        let (sector, count) = Self::pick(rng);
        let version = self.model.next;
        self.model.next += 1;
        self.model.add(sector, count, version);
        let data: Vec<u8> = (sector..sector + count).flat_map(|sector| content(sector, version)).collect();
        self.disk.write(sector * 512, &data)
    }

    pub fn zero(&mut self, rng: &mut Rng) -> io::Result<()> {
        let (sector, count) = Self::pick(rng);
        self.model.add(sector, count, 0);
        if rng.one_in(2) {
            let zeros = vec![0; usize::try_from(count * 512).unwrap()];
            return self.disk.write(sector * 512, &zeros);
        }
        self.disk.write_zeroes(sector * 512, count * 512, ZeroMode { may_unmap: true, fast_only: false })
    }

    /// The content is old or zero afterwards; which, is seen by reading.
    pub fn trim(&mut self, rng: &mut Rng) -> io::Result<()> {
        let (sector, count) = Self::pick(rng);
        for versions in self.model.range(sector, count) {
            let old = versions[versions.len() - 1];
            versions.extend([0, old]);
        }
        self.disk.trim(sector * 512, count * 512)?;
        let mut now = vec![0; usize::try_from(count * 512).unwrap()];
        self.disk.read(sector * 512, &mut now)?;
        for (index, found) in (0..).zip(now.chunks(512)) {
            let version = version_of(sector + index, found).expect("a whole sector");
            self.model.add(sector + index, 1, version);
        }
        Ok(())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.disk.flush()?;
        self.model.flushed();
        Ok(())
    }

    fn switch(&mut self) -> io::Result<()> {
        self.layers += 1;
        let path = layer(self.form, self.layers);
        self.switching = Some(path.clone());
        self.disk.prepare_child(&path, identity(1 + self.layers)).map_err(io::Error::other)?;
        switch_all([(Arc::clone(&self.disk), path.clone())]).map_err(io::Error::other)?;
        self.top = path;
        self.switching = None;
        Ok(())
    }

    pub fn reopen(&mut self) -> io::Result<()> {
        self.disk.close().map_err(io::Error::other)?;
        self.model.flushed();
        self.disk = Disk::open_on(shared(&self.fs), &self.top, options()).map_err(io::Error::other)?;
        Ok(())
    }

    fn step(&mut self, rng: &mut Rng) -> io::Result<()> {
        match rng.below(16) {
            0..=6 => self.write(rng),
            7..=8 => self.zero(rng),
            9 if self.trims => self.trim(rng),
            9..=12 => self.flush(),
            13 => self.reopen(),
            14 if self.layers < 4 => self.switch(),
            _ => self.write(rng),
        }
    }

    /// Runs until the machine is off, at most `steps` steps.
    fn run(&mut self, rng: &mut Rng, steps: u32) {
        for _ in 0..steps {
            if self.step(rng).is_err() {
                break;
            }
        }
        self.disk.abandon();
    }

    /// The top by the rule of whoever finds a switch under way: the new one if it exists.
    fn top_after(&self, fs: &Arc<SimFs>) -> PathBuf {
        let new = self.switching.clone().filter(|path| fs.exists(path.to_str().unwrap()));
        new.unwrap_or_else(|| self.top.clone())
    }
}

/// Checks the content of a disk that was found after a crash; what was found.
pub fn check_found(
    disk: &Disk,
    model: &Model,
    allowed: impl Fn(&[u32]) -> &[u32],
) -> Result<Vec<u32>, String> {
    let mut bytes = vec![0; usize::try_from(SECTORS * 512).unwrap()];
    disk.read(0, &mut bytes).map_err(|error| report(&error))?;
    let mut found = Vec::new();
    for (sector, (bytes, versions)) in (0..).zip(bytes.chunks(512).zip(&model.sectors)) {
        match version_of(sector, bytes) {
            Some(version) if allowed(versions).contains(&version) => found.push(version),
            other => {
                return Err(format!("sector {sector} holds {other:?}, may hold {:?}", allowed(versions)));
            }
        }
    }
    Ok(found)
}

/// Opens what is left, checks it, uses it, and checks that what was found stays.
fn survives(
    machine: &Machine,
    fs: &Arc<SimFs>,
    rng: &mut Rng,
    allowed: impl Fn(&[u32]) -> &[u32],
) -> Result<(), String> {
    let top = machine.top_after(fs);
    let say = |error: &dyn std::error::Error| report(error);
    let disk = Disk::open_on(shared(fs), &top, options()).map_err(|error| say(&error))?;
    let found = check_found(&disk, &machine.model, allowed)?;
    let mut next = Machine {
        form: machine.form,
        fs: Arc::clone(fs),
        disk,
        model: Model { sectors: found.iter().map(|version| vec![*version]).collect(), next: 1 << 20 },
        top,
        switching: None,
        layers: machine.layers + 10,
        trims: false,
    };
    for _ in 0..4 {
        next.write(rng).map_err(|error| say(&error))?;
    }
    next.reopen().map_err(|error| say(&error))?;
    check_found(&next.disk, &next.model, |versions| &versions[versions.len() - 1..])
        .map_err(|error| format!("after going on: {error}"))?;
    next.disk.close().map_err(|error| say(&error))?;
    for layer in (0..=machine.layers).map(|number| layer(machine.form, number)) {
        if fs.exists(layer.to_str().unwrap()) {
            let report = check_file(&shared(fs), &layer, &options()).map_err(|error| say(&error))?;
            if report.worst().is_some_and(|worst| worst >= Severity::Error) {
                return Err(format!("{}: {report}", layer.display()));
            }
        }
    }
    Ok(())
}

fn power_loss_at_a_flush(seed: u64) -> Result<(), String> {
    power_loss(seed, |fs, rng| fs.power().die_after_flushes(rng.below(40)))
}

fn power_loss_anywhere(seed: u64) -> Result<(), String> {
    power_loss(seed, |fs, rng| fs.power().die_after_operations(rng.below(400)))
}

fn power_loss(seed: u64, arm: impl Fn(&SimFs, &mut Rng)) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let depth = u128::from(rng.below(3));
    let mut machine = Machine::new(&mut rng, form_of(seed), depth, true);
    if rng.one_in(4) {
        machine.fs.power().fill_memory_after(rng.below(60));
    }
    arm(&machine.fs, &mut rng);
    machine.run(&mut rng, 60);
    let after = machine.fs.power_cut(seed);
    survives(&machine, &after, &mut rng, |versions| versions)
}

pub fn run_all(seeds: std::ops::Range<u64>, one: impl Fn(u64) -> Result<(), String> + Sync) {
    let failed = first_failure(seeds, one);
    if let Some((seed, error)) = failed {
        panic!("seed {seed}: {error}");
    }
}

/// The first seed that fails, on all processors.
pub fn first_failure(
    seeds: std::ops::Range<u64>,
    one: impl Fn(u64) -> Result<(), String> + Sync,
) -> Option<(u64, String)> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let one = &one;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let mine = seeds
                    .clone()
                    .skip(usize::try_from(worker).unwrap())
                    .step_by(usize::try_from(threads).unwrap());
                scope.spawn(move || {
                    mine.into_iter().find_map(|seed| one(seed).err().map(|error| (seed, error)))
                })
            })
            .collect();
        workers.into_iter().filter_map(|worker| worker.join().unwrap()).min()
    })
}

#[test]
fn power_loss_at_a_flush_keeps_what_was_flushed() {
    run_all(0..800, power_loss_at_a_flush);
}

#[test]
fn power_loss_anywhere_keeps_what_was_flushed() {
    run_all(0..800, power_loss_anywhere);
}

#[test]
fn a_forgotten_flush_is_caught() {
    for form in [Form::Vhd, Form::Vhdx] {
        let failure = first_failure(0..6000, |seed| match form_of(seed) == form {
            false => Ok(()),
            true => power_loss(seed, |fs, rng| {
                let flush = rng.below(20);
                fs.power().swallow_flush(flush);
                fs.power().die_after_operations(rng.below(400));
            }),
        });
        assert!(
            failure.is_some(),
            "no seed notices that a flush of {form:?} is missing: the simulation is blind"
        );
    }
}

fn process_death(seed: u64, shadow: bool) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let depth = u128::from(rng.below(3));
    let mut machine = Machine::new(&mut rng, form_of(seed), depth, false);
    if !shadow {
        machine.disk.close().map_err(|error| report(&error))?;
        machine.disk = Disk::open_on(shared(&machine.fs), &machine.top, DiskOptions::default()).unwrap();
    }
    if rng.one_in(4) {
        machine.fs.power().fill_memory_after(rng.below(60));
    }
    let mut acknowledged = machine.model.sectors.clone();
    machine.fs.power().die_after_operations(rng.below(300));
    for _ in 0..60 {
        if machine.step(&mut rng).is_err() {
            break;
        }
        acknowledged.clone_from(&machine.model.sectors);
    }
    machine.disk.abandon();
    let after = machine.fs.kill();
    // An acknowledged sector has its last version; one of the request that was under way may be old or new.
    let model = acknowledged.iter().zip(&machine.model.sectors).map(|(acknowledged, all)| {
        let last = acknowledged.len() - 1;
        all[last.min(all.len() - 1)..].to_vec()
    });
    machine.model.sectors = model.collect();
    survives(&machine, &after, &mut rng, |versions| versions)
}

#[test]
fn process_death_loses_nothing_acknowledged() {
    run_all(0..800, |seed| process_death(seed, true));
}

#[test]
fn process_death_without_a_shadow_folder_loses_nothing_acknowledged() {
    run_all(0..500, |seed| process_death(seed, false));
}

#[test]
fn a_new_file_is_whole_or_not_there() {
    run_all(0..3000, creation);
}

fn creation(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let machine = Machine::new(&mut rng, form_of(seed), 0, false);
    let fs = &machine.fs;
    machine.disk.close().map_err(|error| report(&error))?;
    fs.power().die_after_operations(rng.below(30));
    let size = SECTORS * 512;
    let what = match rng.below(3) {
        0 => NewDisk::Fixed { size },
        1 => NewDisk::Dynamic { size, block_size: block_size(&machine.top) },
        _ => NewDisk::Differencing { parent: machine.top.clone(), block_size: block_size(&machine.top) },
    };
    let new = format!("/d/{}", machine.form.disk("new"));
    let made = make(fs, &new, &what, 77).is_ok();
    let after = fs.power_cut(seed);
    if made && !after.exists(&new) {
        return Err("the file was made and is gone".into());
    }
    if after.exists(&new) {
        let disk = Disk::open_on(shared(&after), Path::new(&new), options());
        let disk = disk.map_err(|error| report(&error))?;
        let blank = Model::new();
        let model = if matches!(what, NewDisk::Differencing { .. }) { &machine.model } else { &blank };
        check_found(&disk, model, |versions| versions)?;
    }
    Ok(())
}

#[test]
fn a_converted_file_is_whole_or_not_there() {
    run_all(0..2000, conversion);
}

#[test]
fn a_conversion_that_forgets_a_flush_is_caught() {
    for flush in ["of the file", "of the folder"] {
        let number = u64::from(flush == "of the folder");
        let failure =
            first_failure(0..500, |seed| convert_and_crash(seed, |fs, _| fs.power().swallow_flush(number)));
        assert!(failure.is_some(), "no seed notices that the flush {flush} is missing");
    }
}

fn conversion(seed: u64) -> Result<(), String> {
    convert_and_crash(seed, |fs, rng| fs.power().die_after_operations(rng.below(40)))
}

fn convert_and_crash(seed: u64, arm: impl Fn(&SimFs, &mut Rng)) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let depth = u128::from(rng.below(3));
    let machine = Machine::new(&mut rng, form_of(seed), depth, false);
    machine.disk.close().map_err(|error| report(&error))?;
    let fs = &machine.fs;
    if shares(seed) {
        fs.power().share();
    }
    arm(fs, &mut rng);
    let other = if rng.one_in(2) { "/d/new.vhd" } else { "/d/new.vhdx" };
    let (to, target) = match rng.below(3) {
        0 => (ConvertTo::Raw, "/d/new.raw"),
        1 => (ConvertTo::Fixed, other),
        _ => (ConvertTo::Dynamic { block_size: block_size(Path::new(other)) }, other),
    };
    let request = ConvertRequest {
        options: options(),
        identity: identity(99),
        threads: 1,
        ..ConvertRequest::new(machine.top.clone(), target.into(), to)
    };
    let done = convert(&shared(fs), &request, &|_| {}, &AtomicBool::new(false));
    let after = fs.power_cut(seed);
    if done.is_ok() && !after.exists(target) {
        return Err("the file was made and is gone".into());
    }
    if after.exists(target) {
        let disk =
            Disk::open_on(shared(&after), Path::new(target), options()).map_err(|error| report(&error))?;
        check_found(&disk, &machine.model, |versions| versions)?;
    }
    Ok(())
}

#[test]
fn a_child_of_a_disk_whose_process_died_keeps_all_of_it() {
    run_all(0..600, |seed| {
        let mut rng = Rng::new(seed);
        let depth = u128::from(rng.below(3));
        let mut machine = Machine::new(&mut rng, form_of(seed), depth, true);
        machine.run(&mut rng, 20);
        let killed = machine.fs.kill();
        let what =
            NewDisk::Differencing { parent: machine.top.clone(), block_size: block_size(&machine.top) };
        let child = format!("/d/{}", machine.form.layer("child"));
        make(&killed, &child, &what, 99).map_err(|error| report(&error))?;
        let after = killed.power_cut(seed);
        let child = Disk::open_on(shared(&after), Path::new(&child), options());
        let child = child.map_err(|error| report(&error))?;
        check_found(&child, &machine.model, |versions| &versions[versions.len() - 1..])?;
        Ok(())
    });
}

/// Seeds that nobody has tried yet, for as long as `SOAK_SECONDS` says.
#[test]
#[ignore = "make soak runs it"]
fn soak_everything() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let until = Instant::now() + Duration::from_secs(seconds);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = since.as_secs() << 32;
    let mut seed = first;
    while Instant::now() < until {
        let seeds = seed..seed + 8;
        run_all(seeds.clone(), power_loss_at_a_flush);
        run_all(seeds.clone(), power_loss_anywhere);
        run_all(seeds.clone(), |seed| process_death(seed, true));
        run_all(seeds.clone(), |seed| process_death(seed, false));
        run_all(seeds.clone(), creation);
        run_all(seeds.clone(), conversion);
        seed = seeds.end;
    }
    println!("{} seeds from {first} on, each for six kinds of crash", seed - first);
}

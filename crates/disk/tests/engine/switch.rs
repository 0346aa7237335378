//! Layer switches under load: what was acknowledged before the switch is below it, what was submitted after it above.

use crate::support::{SECTOR, assert_same, dynamic, folder, open, stamp, with_shadow};
use backstay_disk::{Backend, ChangedRanges, Disk, DiskOptions, Identity, Switch};
use std::{
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

const WRITERS: u64 = 32;
/// Sectors of each writer; they alternate, so that writers share bitmap bytes, pages and blocks.
const OWN: u64 = 40;
const SWITCHES: usize = 6;
const SIZE: u64 = 2 << 20;

/// Holds requests inside the engine, their data written and not acknowledged, until enough of them are there.
#[derive(Debug, Default)]
struct Crowd {
    state: Mutex<CrowdState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct CrowdState {
    holding: bool,
    inside: u64,
}

impl ChangedRanges for Crowd {
    fn changed(&self, _offset: u64, _len: u64) {
        let mut state = self.state.lock().unwrap();
        state.inside += 1;
        self.changed.notify_all();
        state = self.changed.wait_while(state, |state| state.holding).unwrap();
        state.inside -= 1;
    }
}

impl Crowd {
    /// Runs `then` while `count` requests are held, and lets them go when it has begun.
    fn gather(&self, count: u64, then: impl FnOnce() + Send) {
        self.state.lock().unwrap().holding = true;
        drop(self.changed.wait_while(self.state.lock().unwrap(), |state| state.inside < count).unwrap());
        std::thread::scope(|scope| {
            scope.spawn(then);
            self.state.lock().unwrap().holding = false;
            self.changed.notify_all();
        });
    }
}

/// A write that was acknowledged, and how many layers the disk had before and after it.
struct Written {
    sector: u64,
    version: u64,
    layers: (usize, usize),
}

fn write_until(stop: &AtomicBool, disk: &Disk, writer: u64) -> Vec<Written> {
    let mut rng = backstay_vhd::testing::Rng::new(writer);
    let mut log = Vec::new();
    for version in 1.. {
        if stop.load(SeqCst) {
            break;
        }
        let sector = rng.below(OWN) * WRITERS + writer;
        let before = disk.chain().len();
        disk.write(sector * SECTOR, &stamp(sector * SECTOR, SECTOR, version)).unwrap();
        log.push(Written { sector, version, layers: (before, disk.chain().len()) });
    }
    log
}

#[test]
fn thirty_two_writers_find_every_write_in_the_right_layer() {
    let folder = folder();
    let crowd = Arc::new(Crowd::default());
    let options = DiskOptions { changed: Some(Arc::clone(&crowd) as _), ..with_shadow(folder.path()) };
    let disk = open(&dynamic(folder.path(), "0.vhd", SIZE), options);
    let mut files = vec![disk.top_path()];
    let stop = AtomicBool::new(false);
    let log: Vec<Written> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (disk, stop) = (&disk, &stop);
                scope.spawn(move || write_until(stop, disk, writer))
            })
            .collect();
        for number in 1..=SWITCHES {
            let child = folder.path().join(format!("{number}.avhd"));
            disk.prepare_child(&child, Identity::fresh()).unwrap();
            let switch = Switch::prepare([(Arc::clone(&disk), child.clone())]).unwrap();
            // The engine holds what comes after the switch has begun, so that those in the crowd are the ones in flight.
            crowd.gather(WRITERS, || switch.commit(Duration::from_secs(60)).unwrap().finish());
            files.push(child);
        }
        // Everybody writes into the last layer too.
        crowd.gather(WRITERS, || ());
        stop.store(true, SeqCst);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    assert_eq!(disk.chain().len(), SWITCHES + 1);
    disk.close().unwrap();
    files.iter().enumerate().for_each(|(index, file)| check_view(index + 1, file, &log));
}

/// Checks what the disk was at the instant when its chain grew beyond `layers`.
fn check_view(layers: usize, file: &Path, log: &[Written]) {
    let view = open(file, DiskOptions::read_only());
    let mut later = 0;
    for sector in 0..OWN * WRITERS {
        let mut found = [0; 512];
        view.read(sector * SECTOR, &mut found).unwrap();
        let version = u64::from_le_bytes(found[8..16].try_into().unwrap());
        let what = format!("sector {sector} as of {}", file.display());
        match version {
            0 => assert_same(&found, &[0; 512], &what),
            _ => assert_same(&found, &stamp(sector * SECTOR, SECTOR, version), &what),
        }
        let here = || log.iter().filter(|written| written.sector == sector);
        let acknowledged = here().filter(|w| w.layers.1 <= layers).map(|w| w.version).max().unwrap_or(0);
        assert!(
            version >= acknowledged,
            "{what}: holds write {version}, but {acknowledged} was acknowledged"
        );
        let after = here().filter(|w| w.layers.0 > layers).map(|w| w.version).min();
        assert!(after.is_none_or(|after| version < after), "{what}: holds write {version} of a later layer");
        later += usize::from(after.is_some());
    }
    assert!(later > 0 || layers > SWITCHES, "nothing was written after {}", file.display());
}

//! Overlapping writes, zeros and trims from many threads at once: every sector holds what one of them left there, and
//! nothing that another had replaced before.

use crate::support::{
    SECTOR, assert_same, child_of, dynamic, folder, make, open, read_all, stamp, with_shadow,
};
use backstay_disk::{Backend, BatchData, BatchOp, CacheMode, Disk, DiskOptions, NewDisk, ZeroMode};
use backstay_vhd::testing::Rng;
use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

const THREADS: u64 = 8;
const ROUNDS: u64 = 12;
const REQUESTS: u64 = 60;
const SECTORS: u64 = 2600; // two and a half blocks
/// Sectors in a page.
const PAGE: u64 = 8;

/// One request: what it leaves in its sectors, and when it was under way.
#[derive(Clone, Copy, Debug)]
struct Request {
    sector: u64,
    count: u64,
    left: Left,
    begun: u64,
    ended: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Version(u64),
    Zeros,
    /// Zeros or what was there.
    Either,
}

/// A request of a random kind, carried out; `version` is new.
fn one(disk: &Disk, rng: &mut Rng, clock: &AtomicU64, version: u64) -> Request {
    let sector = rng.below(SECTORS);
    let most = if rng.one_in(5) { SECTORS } else { 40 };
    let count = (1 + rng.below(most)).min(SECTORS - sector);
    let (offset, len) = (sector * SECTOR, count * SECTOR);
    let begun = clock.fetch_add(1, SeqCst);
    let left = match rng.below(10) {
        0..=2 if disk.batches() => {
            let (sector, count) =
                (sector / PAGE * PAGE, count.next_multiple_of(PAGE).min(SECTORS - SECTORS % PAGE));
            let (sector, count) = (sector.min(SECTORS - count), count);
            let (offset, len) = (sector * SECTOR, count * SECTOR);
            together(disk, offset, &stamp(offset, len, version));
            let left = Left::Version(version);
            return Request { sector, count, left, begun, ended: clock.fetch_add(1, SeqCst) };
        }
        0..=5 => {
            disk.write(offset, &stamp(offset, len, version)).unwrap();
            Left::Version(version)
        }
        6 => {
            disk.write(offset, &vec![0; usize::try_from(len).unwrap()]).unwrap();
            Left::Zeros
        }
        7 => {
            let mode = ZeroMode { may_unmap: rng.one_in(2), fast_only: false };
            disk.write_zeroes(offset, len, mode).unwrap();
            Left::Zeros
        }
        8 => {
            disk.trim(offset, len).unwrap();
            Left::Either
        }
        _ => {
            disk.flush().unwrap();
            return Request { sector, count: 0, left: Left::Either, begun, ended: begun };
        }
    };
    Request { sector, count, left, begun, ended: clock.fetch_add(1, SeqCst) }
}

/// Writes pages, each as a request of its own, all in one batch.
fn together(disk: &Disk, offset: u64, data: &[u8]) {
    let mut room = vec![0; data.len() + 4096];
    let from = room.as_ptr().align_offset(4096);
    let pages = &mut room[from..from + data.len()];
    pages.copy_from_slice(data);
    let at = |index: usize| offset + index as u64 * 4096;
    let ops = pages
        .chunks(4096)
        .enumerate()
        .map(|(index, page)| BatchOp { offset: at(index), data: BatchData::Write(page) });
    let mut ended = 0;
    disk.batch(ops.collect(), &mut |_, _, result| {
        result.unwrap();
        ended += 1;
    });
    assert_eq!(ended, data.len() / 4096, "each request ends once");
}

/// Whether `found` (0: zeros) is allowed in a sector that held `before`, after `requests`.
fn allowed(sector: u64, before: u64, found: u64, requests: &[Request]) -> bool {
    let here = || requests.iter().filter(|r| (r.sector..r.sector + r.count).contains(&sector));
    // Replaced: something that does not keep what was there began after it had ended.
    let lasts = |ended: u64| !here().any(|r| r.left != Left::Either && r.begun > ended);
    let left = here().any(|r| {
        let same = match r.left {
            Left::Version(version) => version == found,
            Left::Zeros | Left::Either => found == 0,
        };
        same && lasts(r.ended)
    });
    left || (before == found && !here().any(|r| r.left != Left::Either))
}

fn versions(bytes: &[u8]) -> Vec<u64> {
    let version = |(sector, bytes): (u64, &[u8])| {
        let version = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        let expected = if version == 0 { vec![0; 512] } else { stamp(sector * SECTOR, SECTOR, version) };
        assert_same(bytes, &expected, &format!("sector {sector} is whole"));
        version
    };
    (0..).zip(bytes.chunks(512)).map(version).collect()
}

fn hammer(path: &Path, options: &DiskOptions) {
    let mut disk = open(path, options.clone());
    let clock = AtomicU64::new(0);
    let mut before = versions(&read_all(&disk));
    for round in 0..ROUNDS {
        let requests: Vec<Request> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (disk, clock) = (&disk, &clock);
                    scope.spawn(move || {
                        let mut rng = Rng::new(round * THREADS + thread);
                        let version = |number| 1 + (round * REQUESTS + number) * THREADS + thread;
                        (0..REQUESTS).map(|n| one(disk, &mut rng, clock, version(n))).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        if round % 3 == 2 {
            let bytes = read_all(&disk);
            disk.close().unwrap();
            disk = open(path, options.clone());
            assert_same(&read_all(&disk), &bytes, "after closing and opening");
        }
        let found = versions(&read_all(&disk));
        for (sector, (before, found)) in (0..).zip(before.iter().zip(&found)) {
            assert!(
                allowed(sector, *before, *found, &requests),
                "{}, round {round}: sector {sector} was {before} and holds {found}",
                path.display()
            );
        }
        before = found;
    }
    assert!(before.iter().any(|version| *version > 0), "something is left to be seen");
}

#[test]
fn overlapping_requests_leave_what_one_of_them_wrote() {
    let folder = folder();
    let size = SECTORS * SECTOR;
    let base = dynamic(folder.path(), "0.vhd", size);
    hammer(&base, &with_shadow(folder.path()));
    let child = folder.path().join("1.avhd");
    child_of(&base, &child);
    hammer(&child, &with_shadow(folder.path()));
    let slow = folder.path().join("2.avhd");
    child_of(&child, &slow);
    hammer(&slow, &DiskOptions::default());
    let fixed = folder.path().join("fixed.vhd");
    make(&fixed, &NewDisk::Fixed { size });
    hammer(&fixed, &DiskOptions::default());
    let raw = folder.path().join("raw.img");
    make(&raw, &NewDisk::Raw { size });
    hammer(&raw, &DiskOptions::default());
}

#[test]
fn the_judge_knows_wrong_from_right() {
    let request = |left, begun, ended| Request { sector: 10, count: 5, left, begun, ended };
    let two = [request(Left::Version(1), 0, 1), request(Left::Version(2), 2, 3)];
    assert!(allowed(12, 0, 2, &two) && !allowed(12, 0, 1, &two) && !allowed(12, 0, 0, &two));
    let overlapping = [request(Left::Version(1), 0, 2), request(Left::Zeros, 1, 3)];
    assert!(
        allowed(12, 9, 1, &overlapping)
            && allowed(12, 9, 0, &overlapping)
            && !allowed(12, 9, 9, &overlapping)
    );
    let trimmed = [request(Left::Version(1), 0, 1), request(Left::Either, 2, 3)];
    assert!(allowed(12, 9, 1, &trimmed) && allowed(12, 9, 0, &trimmed) && !allowed(12, 9, 9, &trimmed));
    assert!(allowed(15, 9, 9, &two) && !allowed(15, 9, 2, &two));
}

/// Whole pages go past the page cache and parts of pages through it, at the same time, to the same places.
#[test]
fn requests_past_the_page_cache_and_through_it_meet() {
    let past = |options: DiskOptions| DiskOptions { cache: CacheMode::None, ..options };
    let folder = folder();
    let size = SECTORS * SECTOR;
    let raw = folder.path().join("raw.img");
    make(&raw, &NewDisk::Raw { size });
    if !open(&raw, past(DiskOptions::default())).batches() {
        println!("skipped: {} takes no direct input and output", folder.path().display());
        return;
    }
    hammer(&raw, &past(DiskOptions::default()));
    let base = dynamic(folder.path(), "0.vhd", size);
    hammer(&base, &past(with_shadow(folder.path())));
    let child = folder.path().join("1.avhd");
    child_of(&base, &child);
    hammer(&child, &past(with_shadow(folder.path())));
    let vhdx = dynamic(folder.path(), "0.vhdx", size);
    hammer(&vhdx, &past(with_shadow(folder.path())));
    let fixed = folder.path().join("fixed.vhd");
    make(&fixed, &NewDisk::Fixed { size });
    hammer(&fixed, &past(DiskOptions::default()));
}

//! Many requests at once: writers of neighbouring sectors in blocks that none of them has added yet, readers, flushes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use backstay_vhd::{
    Shadow,
    testing::{MemShadow, Rng},
    vhdx::create::CreateKind,
};

use super::common::*;

const THREADS: u64 = 4;
const SECTORS: u64 = 64;
const BLOCKS: u64 = 40;

/// Where a sector lies: 64 of them in the middle of each block, in two chunks.
fn place(index: u64) -> u64 {
    (4 << 30) - ((BLOCKS / 2) << 20) + ((index / SECTORS) << 20) + (512 << 10) + index % SECTORS * 512
}

fn parent(_: u64, out: &mut [u8]) {
    out.fill(0xaa);
}

fn race(kind: CreateKind, shadow: Option<Arc<MemShadow>>) {
    let absent = if kind == CreateKind::Dynamic { 0 } else { 0xaa };
    let storage = create(&options((4 << 30) + ((BLOCKS / 2) << 20), kind));
    let shared = || shadow.clone().map(|shadow| shadow as Arc<dyn Shadow>);
    let image = open(&storage, 1, shared());
    let done = AtomicBool::new(false);
    let models: Vec<Vec<u8>> = thread::scope(|scope| {
        let image = &image;
        let writers: Vec<_> = (0..THREADS)
            .map(|number| {
                scope.spawn(move || {
                    // Each thread has every fourth sector, so that all of them meet in every block and bitmap word.
                    let mut rng = Rng::new(number);
                    let mut model = vec![absent; (BLOCKS * SECTORS) as usize];
                    for step in 0..600 {
                        let index = rng.below(BLOCKS * SECTORS / THREADS) * THREADS + number;
                        let value = (step % 200 + 1u64) as u8;
                        write(image, place(index), &[value; 512]).unwrap();
                        model[index as usize] = value;
                        if rng.one_in(40) {
                            image.flush().unwrap();
                        }
                        let other = rng.below(BLOCKS * SECTORS / THREADS) * THREADS + number;
                        let seen = read(image, place(other), 512, parent);
                        assert_eq!(seen, [model[other as usize]; 512], "a thread reads its own writes");
                    }
                    model
                })
            })
            .collect();
        let flusher = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                image.flush().unwrap();
                thread::yield_now();
            }
        });
        let models = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        done.store(true, Ordering::Release);
        flusher.join().unwrap();
        models
    });
    let check = |image: &backstay_vhd::vhdx::Image, what: &str| {
        for index in 0..BLOCKS * SECTORS {
            let expected = models[(index % THREADS) as usize][index as usize];
            assert_eq!(read(image, place(index), 512, parent), [expected; 512], "{what}: sector {index}");
        }
    };
    check(&image, "open");
    check(&open(&storage.kill(), 2, shared()), "killed");
    image.flush().unwrap();
    check(&open(&storage.power_cut(1), 2, None), "power cut after a flush");
    image.close().unwrap();
    check(&open_read_only(&storage), "closed");
    assert!(backstay_vhd::vhdx::check::check(&as_storage(&storage)).worst().is_none());
}

#[test]
fn writers_of_a_dynamic_disk_do_not_disturb_each_other() {
    race(CreateKind::Dynamic, None);
}

#[test]
fn writers_of_a_differencing_disk_do_not_disturb_each_other() {
    race(child(), Some(MemShadow::new()));
    race(child(), None);
}

/// A close in the middle of writes: each write fails or is there.
#[test]
fn a_close_waits_for_nobody_and_loses_nothing() {
    for seed in 0..20 {
        let storage = create(&options(64 << 20, CreateKind::Dynamic));
        let image = open(&storage, 1, None);
        let acknowledged: Vec<u64> = thread::scope(|scope| {
            let image = &image;
            let writers: Vec<_> = (0..3u64)
                .map(|number| {
                    scope.spawn(move || {
                        let offset = |step: u64| ((number * 20 + step) << 20) + 512;
                        (0..20)
                            .map(offset)
                            .take_while(|offset| write(image, *offset, &[7; 512]).is_ok())
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            (0..seed * 40).for_each(|_| thread::yield_now());
            image.close().unwrap();
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
        });
        let image = open_read_only(&storage);
        assert_eq!(image.info().warnings, []);
        for offset in acknowledged {
            assert_eq!(read(&image, offset, 512, no_parent), [7; 512], "seed {seed}, offset {offset}");
        }
    }
}

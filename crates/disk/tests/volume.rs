//! What guests write where a file system's head belongs: the fuzzer's corpus on the stable compiler, and seeded damage to it.

#![expect(clippy::unwrap_used, reason = "a panic in a test is the report")]

use backstay_disk::fuzz_volume;
use backstay_vhd::testing::Rng;
use std::{fs, path::Path};

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/volume");
    let files: Vec<Vec<u8>> =
        fs::read_dir(&folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(files.len() >= 3, "the corpus in {} is incomplete", folder.display());
    files
}

#[test]
fn the_corpus_is_survived() {
    corpus().iter().for_each(|data| fuzz_volume(data));
}

#[test]
fn random_damage_is_survived() {
    for data in corpus() {
        for seed in 0..150 {
            let mut rng = Rng::new(seed);
            let mut bytes = data.clone();
            for _ in 0..=rng.below(8) {
                // Heads are where numbers are.
                let reach = if rng.one_in(3) { bytes.len() as u64 } else { 4096.min(bytes.len() as u64) };
                let at = usize::try_from(rng.below(reach)).unwrap();
                bytes[at] = u8::try_from(rng.next() & 0xff).unwrap();
            }
            fuzz_volume(&bytes);
        }
    }
}

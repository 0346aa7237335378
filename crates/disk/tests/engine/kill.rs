//! kill -9 of a real process that serves a real chain: every acknowledged sector must be there.

use crate::support::{assert_same, child_of, dynamic, folder, open, other_process, stamp, with_shadow};
use backstay_disk::{Backend, DiskOptions};
use backstay_vhd::testing::Rng;
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::Stdio,
};

const SECTORS: u64 = 8192;

/// The process that is killed: writes stamped sectors and tells each number and place once it is acknowledged.
#[test]
#[ignore = "run by the other tests of this file, as the process they kill"]
fn victim() {
    let Ok(path) = std::env::var("BACKSTAY_VICTIM") else { return };
    let shadow = std::env::var_os("BACKSTAY_SHADOW").map(Into::into);
    let disk = open(Path::new(&path), DiskOptions { runtime_dir: shadow, ..DiskOptions::default() });
    let mut rng = Rng::new(std::env::var("BACKSTAY_SEED").unwrap().parse().unwrap());
    let mut out = std::io::stderr();
    for writer in 1_u64.. {
        let sector = rng.below(SECTORS - 16);
        let count = 1 + rng.below(16);
        disk.write(sector * 512, &stamp(sector * 512, count * 512, writer)).unwrap();
        writeln!(out, "ack {writer} {sector} {count}").unwrap();
        if rng.one_in(50) {
            disk.flush().unwrap();
        }
    }
}

fn kill_and_compare(depth: usize, shadow: bool, seed: u64) {
    let folder = folder();
    let mut top = dynamic(folder.path(), "base.vhd", SECTORS * 512);
    for level in 0..depth {
        let child = folder.path().join(format!("{level}.avhd"));
        child_of(&top, &child);
        top = child;
    }
    let mut command = other_process("kill::victim");
    command.env("BACKSTAY_VICTIM", &top).env("BACKSTAY_SEED", seed.to_string());
    if shadow {
        command.env("BACKSTAY_SHADOW", folder.path().join("shadow"));
    }
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let stop_after = 1 + Rng::new(seed).below(400);
    let mut model = vec![0; usize::try_from(SECTORS * 512).unwrap()];
    let mut last = 0;
    for line in lines.map_while(Result::ok) {
        let mut words = line.split(' ').skip(1).map_while(|word| word.parse::<u64>().ok());
        let (Some(writer), Some(sector), Some(count)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let at = usize::try_from(sector * 512).unwrap();
        model[at..at + usize::try_from(count * 512).unwrap()].copy_from_slice(&stamp(
            sector * 512,
            count * 512,
            writer,
        ));
        last = writer;
        if writer == stop_after {
            process.kill().unwrap(); // what it said before it died is still in the pipe
        }
    }
    process.wait().unwrap();
    assert!(last >= stop_after, "the victim ended by itself after {last} writes");

    let options = if shadow { with_shadow(folder.path()) } else { DiskOptions::default() };
    for read_only in [true, false] {
        let disk = open(&top, DiskOptions { read_only, ..options.clone() });
        let mut found = vec![0; model.len()];
        disk.read(0, &mut found).unwrap();
        // The write under way when it died was not acknowledged: it may be there.
        for (found, expected) in found.chunks_mut(512).zip(model.chunks(512)) {
            if found[8..16] == (last + 1).to_le_bytes() {
                found.copy_from_slice(expected);
            }
        }
        assert_same(&found, &model, &format!("seed {seed}, depth {depth}, read-only {read_only}"));
        disk.close().unwrap();
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_a_dynamic_disk() {
    (0..8).for_each(|seed| kill_and_compare(0, false, seed));
}

#[test]
fn nothing_acknowledged_is_lost_by_a_chain_with_a_shadow() {
    (0..12).for_each(|seed| kill_and_compare(2, true, seed));
}

#[test]
fn nothing_acknowledged_is_lost_by_a_chain_without_a_shadow_folder() {
    (0..8).for_each(|seed| kill_and_compare(1, false, seed));
}

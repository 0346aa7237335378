//! What is written twice heals from its other copy, at whatever moment the power is cut; what is in no copy is only named.

use std::sync::Arc;

use backstay_vhd::{
    Storage,
    check::Severity,
    plan::Step,
    testing::SimStorage,
    vhdx::{
        check::check,
        create::CreateKind,
        repair::{RepairPlan, plan},
    },
};
use uuid::Uuid;

use super::common::{self, MIB};

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const TABLES: [u64; 2] = [192 << 10, 256 << 10];
const BAT_AT: u64 = 3 * MIB;

/// A closed disk of 8 MiB with some content.
fn disk() -> (Arc<SimStorage>, Vec<u8>) {
    let storage = common::create(&common::options(8 * MIB, CreateKind::Dynamic));
    let image = common::open(&storage, 1, None);
    common::write(&image, 2 * MIB + 512, &[7; 4096]).unwrap();
    image.close().unwrap();
    (storage.kill(), content(&storage))
}

fn content(storage: &Arc<SimStorage>) -> Vec<u8> {
    let image = common::open_read_only(storage);
    common::read(&image, 0, usize::try_from(8 * MIB).unwrap(), common::no_parent)
}

fn damage(storage: &SimStorage, at: u64) {
    storage.write_at(b"nothing that belongs here", at).unwrap();
    storage.flush().unwrap();
}

fn planned(storage: &Arc<SimStorage>) -> RepairPlan {
    plan(&common::as_storage(storage), Uuid::from_u128(0xf1)).unwrap()
}

#[test]
fn each_copy_heals_from_the_other_and_no_power_cut_makes_it_worse() {
    for (places, rule) in [
        (vec![HEADERS[0]], "header-copy"),
        (vec![HEADERS[1]], "header-copy"),
        (vec![TABLES[0]], "region-table-copy"),
        (vec![TABLES[1], HEADERS[0]], "region-table-copy"),
    ] {
        let (storage, expected) = disk();
        for place in &places {
            damage(&storage, *place);
        }
        let found = check(&common::as_storage(&storage)).findings;
        assert!(found.iter().any(|f| f.rule == rule && f.repairable), "{found:?}");
        let plan = planned(&storage);
        assert!(!plan.replay && plan.left.is_empty(), "{plan}");
        // The power is cut after each number of steps.
        for done in 0..=plan.steps.len() {
            for seed in 0..20 {
                let half = RepairPlan { steps: plan.steps[..done].to_vec(), ..plan.clone() };
                let machine = storage.power_cut(0);
                half.execute(machine.as_ref()).unwrap();
                let after = machine.power_cut(seed);
                assert!(content(&after) == expected, "{places:?} after {done} steps, seed {seed}");
                planned(&after).execute(after.as_ref()).unwrap();
                let found = check(&common::as_storage(&after)).findings;
                assert!(found.iter().all(|f| f.severity == Severity::Note), "{found:?}");
            }
        }
    }
}

#[test]
fn zero_blocks_lose_the_offset_that_hyper_v_refuses() {
    let (storage, expected) = disk();
    let entry = (9u64 << 20) | 2;
    storage.write_at(&entry.to_le_bytes(), BAT_AT + 5 * 8).unwrap();
    storage.flush().unwrap();
    let plan = planned(&storage);
    plan.execute(storage.as_ref()).unwrap();
    let mut word = [0; 8];
    storage.read_at(&mut word, BAT_AT + 5 * 8).unwrap();
    assert_eq!(u64::from_le_bytes(word), 2);
    assert!(content(&storage) == expected);
    assert_eq!(check(&common::as_storage(&storage)).worst(), None);
}

#[test]
fn a_log_comes_first() {
    let storage = common::create(&common::options(8 * MIB, CreateKind::Dynamic));
    let image = common::open(&storage, 1, None);
    common::write(&image, 0, &[7; 512]).unwrap();
    image.flush().unwrap();
    drop(image);
    let storage = storage.kill();
    let plan = planned(&storage);
    assert!(plan.replay && plan.steps.is_empty(), "{plan}");
    assert!(plan.to_string().contains("empty the log"), "{plan}");
    common::open(&storage, 2, None).close().unwrap();
    assert!(planned(&storage).is_empty());
}

#[test]
fn a_block_that_is_not_in_the_file_is_named_and_left_alone() {
    let (storage, _) = disk();
    damage(&storage, HEADERS[1]);
    let entry = (900u64 << 20) | 6;
    storage.write_at(&entry.to_le_bytes(), BAT_AT + 8).unwrap();
    storage.flush().unwrap();
    let plan = planned(&storage);
    assert_eq!(plan.left.len(), 1, "{plan}");
    assert!(plan.to_string().contains("not repaired: complete: the file is incomplete: block 1"), "{plan}");
    let writes_table = |step: &Step| matches!(step, Step::Write { offset, .. } if *offset >= BAT_AT);
    assert!(!plan.steps.iter().any(writes_table), "{plan}");
    plan.execute(storage.as_ref()).unwrap();
    let found = check(&common::as_storage(&storage)).findings;
    assert!(found.iter().all(|f| f.rule != "header-copy"), "{found:?}");
    assert!(found.iter().any(|f| f.rule == "complete" && !f.repairable), "{found:?}");
}

#[test]
fn two_good_tables_that_differ_are_nobodys_to_choose() {
    let (storage, _) = disk();
    let mut bytes = vec![0; 64 << 10];
    storage.read_at(&mut bytes, TABLES[1]).unwrap();
    // Another order of the same entries, with the checksum that belongs to it.
    let (one, two) = (bytes[16..48].to_vec(), bytes[48..80].to_vec());
    bytes[16..48].copy_from_slice(&two);
    bytes[48..80].copy_from_slice(&one);
    bytes[4..8].fill(0);
    let sum = crc32c::crc32c(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    storage.write_at(&bytes, TABLES[1]).unwrap();
    storage.flush().unwrap();
    let plan = planned(&storage);
    assert!(plan.steps.is_empty(), "{plan}");
    assert_eq!(plan.left.len(), 1, "{plan}");
}

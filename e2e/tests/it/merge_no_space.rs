//! The volume of the file that a layer is merged into fills up: the guest goes on, the message names volume and need, and with
//! room again the merge goes on where it was.

use crate::SECOND;
use crate::full_disk::{Small, UNGUARDED};
use crate::live_merge::same_for_qemu_img;
use crate::tree::layers;
use backstay_e2e::{Host, HostOptions, Load, Micro, Told, ask_load, stop_load, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};

const MIB: u64 = 1 << 20;
const DISK_MIB: u64 = 64;

/// What the merges of the host said and how they ended.
fn told(host: &Host) -> Vec<Value> {
    let tasks = host.json(&["task", "list"]);
    let tasks = tasks.as_array().or_else(|| tasks["items"].as_array()).unwrap().clone();
    tasks.into_iter().filter(|task| task["operation"] == "checkpoint.merge").collect()
}

fn pending(host: &Host) -> usize {
    host.json(&["checkpoint", "list", "m"])["merge_pending"].as_array().unwrap().len()
}

/// Waits until the guest has written that often more.
fn writes_on(host: &Host, before: &Told, more: u32) -> Told {
    let console = host.console("m");
    let mut told = *before;
    while told.writes < before.writes + more {
        told = ask_load(&console, &told);
        assert_eq!(told.wrong, 0, "{told:?}");
    }
    told
}

#[test]
fn a_merge_without_room_loses_nothing_and_goes_on_with_room() {
    let Some(small) = Small::mount("48m") else { return };
    let host = Host::with(&HostOptions { settings: UNGUARDED.into(), ..HostOptions::default() });
    let base = small.path().join("data.vhd");
    host.ok(&["disk", "create", base.to_str().unwrap(), "--size", &format!("{DISK_MIB}M")]);
    // The layers lie elsewhere, where there is room.
    host.create_micro("m", "ide:0:0", &["--disk", &format!("ide:0:1={}", base.display())]);
    host.ok(&["checkpoint", "create", "m", "c"]);
    host.ok(&["vm", "start", "m"]);
    let console = host.console("m");
    let (mut guest, _) = Micro::booting(&console);
    let slots = u32::try_from(DISK_MIB * MIB / 4096).unwrap();
    let load = Load { drive: SECOND, first: 0, slots, sectors: 3, flush_after: 8, seed: 7 };
    guest.begin_load(&load).unwrap();
    drop(guest);
    // More than 1 MiB in pieces of a page; a quarter of one fits.
    let mut seen = writes_on(&host, &Told::default(), 300);
    let filler = small.fill();
    let full = fs::metadata(&filler).unwrap().len();
    File::options().write(true).open(&filler).unwrap().set_len(full - MIB / 4).unwrap();

    host.ok(&["checkpoint", "delete", "m", "c", "--yes", "--no-wait"]);
    let words = wait_for("the merge to tell", || {
        let words = told(&host).iter().map(Value::to_string).collect::<String>();
        words.contains("space").then_some(words)
    });
    assert!(words.contains(base.to_str().unwrap()) && words.contains("MiB more"), "{words}");
    assert!(words.contains("make space") && words.contains("stays moved"), "{words}");
    assert_eq!(pending(&host), 1, "it is not forgotten");
    // Whatever was written while there was no room is not refused to the guest either.
    host.wait_state("m", "running");
    seen = writes_on(&host, &seen, 100);

    fs::remove_file(&filler).unwrap();
    let again = host.run(&["checkpoint", "merge", "m"]);
    assert!(again.code == 0 || again.err.contains("nothing to merge"), "{again:?}");
    assert_eq!((pending(&host), layers(&host)), (0, BTreeSet::new()));
    seen = writes_on(&host, &seen, 50);
    let (mut guest, last) = stop_load(&console, &seen);
    let found = guest.verify_load(last.writes);
    assert_eq!(found.wrong, 0, "{found:?}");
    let raw = host.folder().join("model.raw");
    let model = File::options().read(true).write(true).create_new(true).open(&raw).unwrap();
    model.set_len(DISK_MIB * MIB).unwrap();
    load.repeat(last.writes, &model).unwrap();
    host.ok(&["vm", "turn-off", "m"]);
    same_for_qemu_img(&raw, &base);
    host.ok(&["disk", "check", base.to_str().unwrap()]);
    drop(host);
}

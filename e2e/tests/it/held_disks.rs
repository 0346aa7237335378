//! `disk` commands on files that a running machine holds: what only looks works, what would change them is refused.

use crate::FIRST;
use backstay_e2e::{Host, Micro};
use serde_json::Value;

/// Offset, length, kind and depth of each range.
fn map(host: &Host, file: &str, more: &[&str]) -> Vec<(u64, u64, String, Option<u64>)> {
    let ranges = host.json(&[&["disk", "map", file], more].concat());
    let ranges = ranges.as_array().or_else(|| ranges["items"].as_array()).unwrap();
    let number = |range: &Value, field: &str| range[field].as_u64();
    let range = |r: &Value| {
        let kind = r["kind"].as_str().unwrap().to_owned();
        (number(r, "offset").unwrap(), number(r, "length").unwrap(), kind, number(r, "depth"))
    };
    ranges.iter().map(range).collect()
}

#[test]
fn a_disk_in_use_can_be_looked_into_and_not_changed() {
    let host = Host::start();
    let base = host.create_micro("m", "scsi:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x100, 0x01).unwrap();
    host.ok(&["checkpoint", "create", "m", "c"]);
    guest.write(FIRST, 0x200, 0x02).unwrap();
    let disks = host.json(&["vm", "disks", "m"]);
    let top = disks[0]["path"].as_str().unwrap().to_owned();
    assert_ne!(top, base.to_str().unwrap());

    let while_on = map(&host, &top, &[]);
    let mut at = 0;
    for (offset, length, ..) in &while_on {
        assert_eq!(*offset, at, "without gaps: {while_on:?}");
        at += length;
    }
    assert_eq!(Some(at), disks[0]["size"].as_u64());
    let depth_of = |sector: u64| {
        let byte = sector * 512;
        let range = while_on.iter().find(|r| r.0 <= byte && byte < r.0 + r.1).unwrap();
        (range.2.as_str(), range.3)
    };
    assert_eq!((depth_of(0x100), depth_of(0x200)), (("data", Some(1)), ("data", Some(0))));
    let alone = map(&host, &top, &["--layer"]);
    assert!(alone.iter().any(|r| r.2 == "parent") && alone.iter().any(|r| r.2 == "data"), "{alone:?}");

    host.ok(&["disk", "check", &top]);
    host.ok(&["disk", "check", base.to_str().unwrap()]);
    let refused = host.refused(5, &["disk", "check", &top, "--repair"]);
    assert!(refused.contains("'m'") && refused.contains("turn it off"), "{refused}");
    let copy = host.folder().join("copy.vhd");
    let refused = host.refused(5, &["disk", "convert", &top, copy.to_str().unwrap()]);
    assert!(refused.contains("'m'") && refused.contains("checkpoint"), "{refused}");
    assert!(!copy.exists());
    // What is below the top does not change any more.
    host.ok(&["disk", "convert", base.to_str().unwrap(), copy.to_str().unwrap()]);

    guest.expect(FIRST, 0x200, 0x02);
    host.ok(&["vm", "turn-off", "m"]);
    assert_eq!(map(&host, &top, &[]), while_on, "the same when nobody holds it");
}

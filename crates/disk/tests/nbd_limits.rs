//! Limits of exports as clients see them. The limits are such that whoever waits would wait for hours: what comes, comes for
//! another reason.
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a panic in a test is the report")]

mod nbd_support;

use std::{collections::BTreeSet, time::Duration};

use backstay_disk::{RateLimit, nbd::Shutdown};
use nbd_support::{Call, Client, LONG, Ram, Rig, spec};

const MIB: usize = 1 << 20;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
/// More than the threads that carry requests out.
const MANY: u64 = 100;

fn hours() -> RateLimit {
    RateLimit { requests: None, bytes: Some(1) }
}

/// A client with many writes of which the first was carried out and all others wait.
fn waiting(rig: &Rig) -> (Client, BTreeSet<u64>) {
    rig.server.set_limit("disk", hours()).unwrap();
    let mut client = rig.client();
    client.write(0, &[1; 4096]).unwrap();
    let cookies = (1..=MANY).map(|n| client.request(WRITE, 0, n * 4096, 4096, &[2; 4096])).collect();
    (client, cookies)
}

fn writes(rig: &Rig) -> usize {
    rig.ram.calls().iter().filter(|call| matches!(call, Call::Write(..))).count()
}

#[test]
fn a_flush_and_other_disks_do_not_wait_for_those_that_do() {
    let rig = Rig::new(4 * MIB);
    let other = Ram::new(MIB);
    rig.server.add_export(spec("other", &other)).unwrap();
    let (mut client, cookies) = waiting(&rig);

    let flush = client.request(FLUSH, 0, 0, 0, b"");
    assert_eq!(client.reply(0).0, flush, "before a hundred writes that came first");
    let mut second = Client::go(&rig.socket, "other", true);
    second.write(0, &[3; 4096]).unwrap();
    assert_eq!(second.read(0, 4096).unwrap(), [3; 4096]);
    assert_eq!(writes(&rig), 1, "and they still wait");

    // Also those that were written before there was no limit any more.
    rig.server.set_limit("disk", RateLimit::default()).unwrap();
    let answered: BTreeSet<u64> = (0..MANY).map(|_| client.reply(0).0).collect();
    assert_eq!(answered, cookies);
    assert_eq!(writes(&rig), 1 + cookies.len());
    assert_eq!(client.read(0, 512).unwrap(), [1; 512]);
}

#[test]
fn cached_reads_and_a_second_connection_are_limited_too() {
    let rig = Rig::new(MIB);
    rig.server.set_limit("disk", hours()).unwrap();
    assert_eq!(rig.server.limit("disk"), hours());
    let (mut first, mut second) = (rig.client(), rig.client());
    first.read(0, 4096).unwrap();
    for client in [&mut first, &mut second] {
        client.request(0, 0, 0, 512, b"");
        client.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut byte = [0];
        let silence = std::io::Read::read(&mut client.stream, &mut byte).unwrap_err();
        assert_eq!(silence.kind(), std::io::ErrorKind::WouldBlock);
        client.stream.set_read_timeout(Some(LONG)).unwrap();
    }
    rig.server.set_limit("disk", RateLimit { requests: Some(1_000_000), bytes: None }).unwrap();
    assert!(first.reply(0).1.is_ok() && second.reply(0).1.is_ok());
    assert!(rig.server.set_limit("none", hours()).is_err());
}

#[test]
fn in_a_hurry_everything_goes_and_the_limit_stays() {
    let rig = Rig::new(4 * MIB);
    let (mut client, cookies) = waiting(&rig);
    let hurry = rig.server.hurry();
    let answered: BTreeSet<u64> = (0..MANY).map(|_| client.reply(0).0).collect();
    assert_eq!(answered, cookies);
    drop(hurry);
    client.request(WRITE, 0, 0, 512, &[9; 512]);
    let flush = client.request(FLUSH, 0, 0, 0, b"");
    assert_eq!(client.reply(0).0, flush, "the write waits");
}

#[test]
fn an_export_that_ends_answers_those_that_wait() {
    let rig = Rig::new(4 * MIB);
    let (mut client, cookies) = waiting(&rig);
    assert_eq!(rig.server.remove_export("disk", LONG).unwrap(), Shutdown { cut: 0, stuck: 0 });
    let answered: BTreeSet<u64> = (0..MANY).map(|_| client.reply(0).0).collect();
    assert_eq!(answered, cookies);
    client.expect_close();
}

#[test]
fn a_client_that_leaves_takes_nobody_with_it() {
    let rig = Rig::new(4 * MIB);
    let (client, _) = waiting(&rig);
    drop(client);
    let limit = std::time::Instant::now() + LONG;
    while rig.server.clients("disk") > 0 {
        assert!(std::time::Instant::now() < limit, "its threads still wait");
        std::thread::sleep(Duration::from_millis(5));
    }
    rig.server.set_limit("disk", RateLimit::default()).unwrap();
    rig.client().write(0, &[7; 512]).unwrap();
}

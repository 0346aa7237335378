//! The NBD server as a client of our own sees it.
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a panic in a test is the report")]

mod nbd_support;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    sync::Arc,
    thread,
    time::Duration,
};

use backstay_disk::{
    ZeroMode,
    nbd::{BindError, ExportError, Server, Shutdown},
};
use nbd_support::{Call, Client, LONG, Piece, Ram, Rig, counted, noise, spec};

const MIB: usize = 1 << 20;

#[test]
fn what_was_written_reads_back_with_both_reply_styles() {
    let rig = Rig::new(4 * MIB);
    let data = noise(3 * MIB, 1);
    for structured in [false, true] {
        let mut client = Client::go(&rig.socket, "disk", structured);
        client.write(512, &data).unwrap();
        assert!(client.read(512, 3 << 20).unwrap() == data);
        assert_eq!(client.read(1024, 4096).unwrap(), data[512..4608]);
        assert_eq!(client.call(3, 0, 0, 0, b"").map(drop), Ok(()));
    }
    assert!(rig.ram.durable()[512..512 + data.len()] == data);
}

#[test]
fn old_style_clients_choose_by_export_name() {
    let rig = Rig::new(MIB);
    for (flags, padding) in [(1u32, 124), (3, 0)] {
        let mut client = Client::raw(&rig.socket);
        client.send(&flags.to_be_bytes());
        client.send(&[&b"IHAVEOPT\0\0\0\x01"[..], &counted(b"disk")].concat());
        assert_eq!(client.take(8), (1u64 << 20).to_be_bytes());
        let tx = u16::from_be_bytes(client.take(2).try_into().unwrap());
        assert_eq!(
            tx & 0b1_0110_1111,
            0b1_0110_1101,
            "flags, flush, FUA, trim, zeroes, multi-conn; not read-only"
        );
        assert_eq!(client.take(padding), vec![0; padding]);
        client.write(0, b"bytes of any alignment").unwrap();
        assert_eq!(client.read(0, 5).unwrap(), b"bytes");
    }
}

#[test]
fn options_are_answered_or_refused_politely() {
    let rig = Rig::new(MIB);
    let other = Ram::new(MIB);
    rig.server.add_export(spec("other", &other)).unwrap();
    let mut client = Client::raw(&rig.socket);
    client.send(&3u32.to_be_bytes());
    let kinds = |replies: Vec<(u32, Vec<u8>)>| replies.into_iter().map(|r| r.0).collect::<Vec<_>>();
    assert_eq!(kinds(client.option(5, b"")), [0x8000_0002], "TLS by policy");
    assert_eq!(kinds(client.option(11, b"")), [0x8000_0001], "extended headers are unknown");
    assert_eq!(kinds(client.option(99, &[7; 5000])), [0x8000_0001]);
    assert_eq!(kinds(client.option(3, &vec![0; 70_000])), [0x8000_0009]);
    let names: Vec<_> = client.option(3, b"").into_iter().map(|r| r.1).collect();
    assert_eq!(names, [counted(b"disk"), counted(b"other"), vec![]]);
    let ask = |name: &[u8]| [counted(name), vec![0, 1, 0, 3]].concat();
    assert_eq!(kinds(client.option(6, &ask(b"none"))), [0x8000_0006]);
    assert_eq!(kinds(client.option(6, &ask(b""))), [0x8000_0006], "the empty name is ambiguous");
    assert_eq!(kinds(client.option(6, b"garbage")), [0x8000_0003]);
    let info = client.option(6, &ask(b"other"));
    let sizes =
        [&[0u8, 3][..], &512u32.to_be_bytes(), &4096u32.to_be_bytes(), &(32u32 << 20).to_be_bytes()].concat();
    assert!(info.contains(&(3, sizes)), "{info:?}");
    let meta = [counted(b"other"), 1u32.to_be_bytes().to_vec(), counted(b"base:allocation")].concat();
    assert_eq!(kinds(client.option(10, &meta)), [0x8000_0003], "contexts need structured replies");
    assert_eq!(kinds(client.option(9, &meta)), [4, 1]);
    assert_eq!(kinds(client.option(2, b"")), [1]);
    client.expect_close();
}

#[test]
fn the_empty_name_means_the_only_export() {
    let rig = Rig::new(MIB);
    rig.ram.fill(0, &[9; 512]);
    assert_eq!(Client::go(&rig.socket, "", true).read(0, 512).unwrap(), [9; 512]);
}

#[test]
fn requests_the_protocol_forbids_get_its_error_numbers() {
    let rig = Rig::new(MIB);
    let mut client = rig.client();
    let end = MIB as u64;
    assert_eq!(client.read(end - 512, 1024), Err(22));
    assert_eq!(client.read(u64::MAX, 1024), Err(22));
    assert_eq!(client.write(end, &[1; 512]), Err(28));
    assert_eq!(client.call(6, 0, end, 512, b"").map(drop), Err(28));
    assert_eq!(client.call(4, 0, end, 512, b"").map(drop), Err(22));
    assert_eq!(client.call(7, 0, end, 512, b"").map(drop), Err(22));
    assert_eq!(client.read(0, (32 << 20) + 512), Err(22));
    assert_eq!(client.call(42, 0, 0, 0, b"").map(drop), Err(22));
    assert_eq!(client.call(1, 1 << 9, 0, 512, &[0; 512]).map(drop), Err(22), "the payload is skipped");
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]), "the stream is still in step");
    let mut client = Client::go(&rig.socket, "disk", false);
    assert_eq!(client.call(7, 0, 0, 512, b"").map(drop), Err(22), "no context was selected");
    assert_eq!(client.call(0, 4, 0, 512, b"").map(drop), Err(22), "DF needs structured replies");
    assert_eq!(rig.ram.calls(), []);
}

#[test]
fn read_only_exports_refuse_every_change() {
    let rig = Rig::with(Ram::build(MIB, true));
    let mut client = rig.client();
    assert_eq!(client.write(0, &[1; 4096]), Err(1));
    assert_eq!(client.call(4, 0, 0, 4096, b"").map(drop), Err(1));
    assert_eq!(client.call(6, 0, 0, 4096, b"").map(drop), Err(1));
    assert_eq!(client.read(0, 4096), Ok(vec![0; 4096]));
    assert_eq!(rig.ram.calls(), []);
}

#[test]
fn errors_of_the_disk_keep_their_meaning() {
    use io::ErrorKind as K;
    let rig = Rig::new(MIB);
    let mut client = rig.client();
    let meanings = [(K::StorageFull, 28), (K::ReadOnlyFilesystem, 1), (K::OutOfMemory, 12), (K::TimedOut, 5)];
    for (kind, errno) in meanings {
        *rig.ram.failure.lock().unwrap() = Some(kind);
        assert_eq!(client.write(0, &[1; 512]), Err(errno));
        assert_eq!(client.call(3, 0, 0, 0, b"").map(drop), Err(errno));
    }
    *rig.ram.failure.lock().unwrap() = Some(K::Unsupported);
    assert_eq!(client.call(6, 16, 0, 512, b"").map(drop), Err(95), "a fast zero that would be slow");
}

#[test]
fn zeros_written_as_data_become_zeroes() {
    let rig = Rig::new(4 * MIB);
    let mut client = rig.client();
    client.write(0, &vec![0; 512 << 10]).unwrap();
    client.write(4096, &[0; 4096]).unwrap();
    let mut nearly = vec![0; 4096];
    nearly[4095] = 1;
    client.write(8192, &nearly).unwrap();
    client.call(6, 2, 0, 4096, b"").unwrap();
    client.call(6, 16, 0, 4096, b"").unwrap();
    let mode = |may_unmap, fast_only| ZeroMode { may_unmap, fast_only };
    let expected = [
        Call::Zero(0, 512 << 10, mode(true, false)),
        Call::Zero(4096, 4096, mode(false, false)),
        Call::Write(8192, 4096),
        Call::Zero(0, 4096, mode(false, false)),
        Call::Zero(0, 4096, mode(true, true)),
    ];
    assert_eq!(rig.ram.calls(), expected);
}

#[test]
fn a_flush_on_one_connection_covers_writes_acknowledged_on_another() {
    let rig = Rig::new(MIB);
    let (mut writer, mut flusher) = (rig.client(), rig.client());
    let data = noise(8192, 2);
    writer.write(4096, &data).unwrap();
    assert!(rig.ram.durable()[4096..12288] != data, "the disk has a volatile cache");
    flusher.call(3, 0, 0, 0, b"").unwrap();
    assert!(rig.ram.durable()[4096..12288] == data);
    writer.call(1, 1, 0, 512, &data[..512]).unwrap();
    assert!(rig.ram.durable()[..512] == data[..512], "FUA");
}

#[test]
fn writes_of_any_alignment_keep_their_neighbours() {
    let rig = Rig::new(MIB);
    // Every thread owns every eighth piece of an odd length; the pieces share sectors.
    const PIECE: u64 = 203;
    let threads: Vec<_> = (0..8u8)
        .map(|t| {
            let mut client = rig.client();
            thread::spawn(move || {
                for i in (u64::from(t)..400).step_by(8) {
                    client.write(i * PIECE, &[t + 1; PIECE as usize]).unwrap();
                    assert_eq!(client.read(i * PIECE, PIECE as u32).unwrap(), [t + 1; PIECE as usize]);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let expected: Vec<u8> = (0..400u64).flat_map(|i| vec![(i % 8) as u8 + 1; PIECE as usize]).collect();
    assert!(rig.ram.live()[..expected.len()] == expected);
    let mut client = rig.client();
    client.call(6, 0, 100, 1000, b"").unwrap();
    client.call(4, 0, 2000, 1000, b"").unwrap();
    let live = rig.ram.live();
    assert!(
        live[..100] == expected[..100]
            && live[100..1100] == [0; 1000]
            && live[1100..2048] == expected[1100..2048]
    );
    assert!(live[2048..2560] == [0; 512], "whole sectors are trimmed");
    assert!(live[2560..expected.len()] == expected[2560..], "the rest keeps its content");
}

#[test]
fn an_aligned_write_is_not_lost_to_a_partial_one_in_the_same_sector() {
    let rig = Rig::new(MIB);
    let (mut partial, mut whole) = (rig.client(), rig.client());
    for round in 1..=20 {
        rig.ram.gate.close();
        partial.request(1, 0, 10, 5, b"abcde");
        rig.ram.gate.wait_for(1);
        // It has read the sector as it was and is about to write it back.
        rig.ram.gate.admit_one();
        rig.ram.gate.wait_for(1);
        rig.ram.gate.close_behind();
        whole.request(1, 0, 0, 512, &[round; 512]);
        // Served by the same connection after the write was taken up.
        assert_eq!(whole.call(7, 0, 0, 4096, b"").map(drop), Ok(()));
        rig.ram.gate.open();
        partial.reply(0).1.unwrap();
        whole.reply(0).1.unwrap();
        assert_eq!(rig.ram.live()[100], round, "the sector went back to what it held before");
    }
}

#[test]
fn holes_travel_as_holes() {
    let rig = Rig::new(4 * MIB);
    let data = noise(128 << 10, 3);
    rig.ram.fill(256 << 10, &data);
    let mut client = rig.client();
    let pieces = client.call(0, 0, 0, 1 << 20, b"").unwrap();
    let (first, second) = (256u32 << 10, 640u32 << 10);
    let expected =
        [Piece::Hole(0, first), Piece::Data(first.into(), data.clone()), Piece::Hole(384 << 10, second)];
    assert!(pieces == expected, "holes, data, holes");
    let pieces = client.call(0, 4, 0, 1 << 20, b"").unwrap();
    assert!(
        matches!(&pieces[..], [Piece::Data(0, all)] if all.len() == MIB && all[256 << 10..384 << 10] == data)
    );
    let status = |answer: Vec<Piece>| match &answer[..] {
        [Piece::Data(_, body)] => {
            body.chunks(4).map(|w| u32::from_be_bytes(w.try_into().unwrap())).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let all = status(client.call(7, 0, 100, 1 << 20, b"").unwrap());
    assert_eq!(all, [first - 100, 3, 128 << 10, 0, second + 100, 3]);
    assert_eq!(status(client.call(7, 8, 0, 1 << 20, b"").unwrap()), [first, 3]);
}

#[test]
fn thirty_two_requests_are_in_flight_together() {
    let rig = Rig::new(MIB);
    for command in [0, 1] {
        let mut client = rig.client();
        rig.ram.gate.close();
        for i in 0..32u8 {
            let payload = if command == 1 { vec![i + 1; 4096] } else { Vec::new() };
            client.request(command, 0, u64::from(i) * 4096, 4096, &payload);
        }
        rig.ram.gate.wait_for(32);
        rig.ram.gate.open();
        let cookies: BTreeSet<u64> =
            (0..32).map(|_| client.reply(0)).map(|(c, a)| a.map(|_| c).unwrap()).collect();
        assert_eq!(cookies.len(), 32);
    }
}

#[test]
fn a_client_that_does_not_read_delays_nobody() {
    let rig = Rig::new(8 * MIB);
    rig.ram.fill(0, &noise(8 * MIB, 4));
    let mut lazy = rig.client();
    for _ in 0..64 {
        lazy.request(0, 0, 0, 8 << 20, b"");
    }
    let mut busy = rig.client();
    for i in 0..200u64 {
        busy.write(i * 512, &[5; 512]).unwrap();
        assert_eq!(busy.read(i * 512, 512).unwrap(), [5; 512]);
    }
    busy.call(3, 0, 0, 0, b"").unwrap();
    let end = rig.server.shutdown(Duration::ZERO);
    assert!(end.cut > 0 && end.stuck == 0, "the lazy client cannot hold up the end: {end:?}");
}

#[test]
fn a_blocked_request_does_not_hold_up_replies_before_and_after_it() {
    let rig = Rig::new(MIB);
    let mut client = rig.client();
    rig.ram.gate.close();
    let stuck = client.request(1, 0, 0, 512, &[1; 512]);
    rig.ram.gate.wait_for(1);
    // Requests that need no disk pass the one that waits.
    assert_eq!(client.read(8 << 20, 512), Err(22));
    assert_eq!(client.call(7, 0, 0, 4096, b"").map(drop), Ok(()));
    rig.ram.gate.open();
    assert_eq!(client.reply(0).0, stuck);
}

#[test]
fn hostile_clients_hurt_only_themselves() {
    let rig = Rig::new(MIB);
    let mut good = rig.client();
    good.write(0, &[3; 4096]).unwrap();
    let handshakes: [&[u8]; 6] = [
        b"",
        b"\0\0",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x03garbage where an option should be",
        b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xff",
        b"\0\0\0\x01IHAVEOPT\0\0\0\x01\0\0\0\x04none",
    ];
    for bytes in handshakes {
        let mut client = Client::raw(&rig.socket);
        client.send(bytes);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        client.expect_close();
    }
    let huge = nbd_support::request(1, 0, 1, 0, u32::MAX, b"");
    let half = nbd_support::request(1, 0, 1, 0, 65536, &[1; 1000]);
    let garbage = noise(100_000, 5);
    for bytes in [&huge[..], &huge[..13], &half, &garbage] {
        let mut client = rig.client();
        // The server may close before it has taken everything.
        let _ = client.stream.write_all(bytes);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        client.expect_close();
    }
    assert_eq!(good.read(0, 4096).unwrap(), [3; 4096]);
    assert_eq!(rig.ram.calls(), [Call::Write(0, 4096)], "half a payload is not written");
    assert_eq!(rig.client().read(0, 512).unwrap(), [3; 512]);
}

#[test]
fn shutdown_answers_what_is_in_flight() {
    let rig = Rig::new(MIB);
    let mut client = rig.client();
    rig.ram.gate.close();
    client.request(1, 0, 0, 512, &[1; 512]);
    client.request(3, 0, 0, 0, b"");
    rig.ram.gate.wait_for(2);
    let Rig { server, ram, socket, dir } = rig;
    let ending = thread::spawn(move || server.shutdown(LONG));
    // The socket file goes first, then connections are asked to end.
    while socket.exists() {
        thread::yield_now();
    }
    ram.gate.open();
    for _ in 0..2 {
        client.reply(0).1.unwrap();
    }
    client.expect_close();
    assert_eq!(ending.join().unwrap(), Shutdown { cut: 0, stuck: 0 });
    assert_eq!(ram.live()[0], 1);
    drop(dir);
}

#[test]
fn a_removed_export_closes_its_clients_only() {
    let rig = Rig::new(MIB);
    let other = Ram::new(MIB);
    rig.server.add_export(spec("other", &other)).unwrap();
    let taken = rig.server.add_export(spec("other", &other)).unwrap_err();
    assert_eq!(
        taken.to_string(),
        "an export named \"other\" exists already; remove it first or choose another name"
    );
    let (mut first, mut second) = (rig.client(), Client::go(&rig.socket, "other", true));
    second.write(0, &[1; 512]).unwrap();
    assert_eq!(rig.server.clients("other"), 1);
    assert_eq!(rig.server.remove_export("other", LONG).unwrap(), Shutdown { cut: 0, stuck: 0 });
    second.expect_close();
    first.write(0, &[1; 512]).unwrap();
    assert_eq!(rig.server.exports(), ["disk"]);
    assert!(matches!(rig.server.remove_export("other", LONG), Err(ExportError::Unknown { .. })));
    rig.server.add_export(spec("other", &other)).unwrap();
    assert_eq!(Client::go(&rig.socket, "other", true).read(0, 512).unwrap(), [1; 512]);
}

#[test]
fn only_a_dead_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let server = Server::bind(&socket, 0o640).unwrap();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o640);
    let error = Server::bind(&socket, 0o600).unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    let _ = server.shutdown(LONG);
    assert!(!socket.exists());
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "a listener that died leaves its file");
    drop(Server::bind(&socket, 0o600).unwrap());
    fs::write(&socket, "precious").unwrap();
    assert!(matches!(Server::bind(&socket, 0o600), Err(BindError::NotASocket { .. })));
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
}

#[test]
fn a_client_that_vanishes_with_requests_in_flight_leaves_nothing_behind() {
    let rig = Rig::new(MIB);
    let mut client = rig.client();
    rig.ram.gate.close();
    for i in 0..8 {
        client.request(1, 0, i * 4096, 4096, &[1; 4096]);
    }
    rig.ram.gate.wait_for(8);
    drop(client);
    rig.ram.gate.open();
    let Rig { server, ram, .. } = rig;
    assert_eq!(server.shutdown(LONG).stuck, 0);
    assert_eq!(Arc::strong_count(&ram).min(1), 1);
    assert_eq!(ram.calls().len(), 8, "requests that arrived whole are carried out");
}

#[test]
fn many_clients_at_once_see_one_disk() {
    let rig = Rig::new(4 * MIB);
    let threads: Vec<_> = (0..8u64)
        .map(|t| {
            let mut client = rig.client();
            thread::spawn(move || {
                let data = noise(64 << 10, t + 1);
                for i in 0..8 {
                    client.write((i * 8 + t) * (64 << 10), &data).unwrap();
                }
                data
            })
        })
        .collect();
    let data: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    let mut all = vec![0; 4 * MIB];
    for (i, block) in all.chunks_mut(64 << 10).enumerate() {
        block.copy_from_slice(&data[i % 8]);
    }
    assert!(rig.client().read(0, 4 << 20).unwrap() == all);
    let mut rest = [0; 1];
    let mut quit = rig.client();
    quit.request(2, 0, 0, 0, b"");
    assert_eq!(quit.stream.read(&mut rest).unwrap(), 0, "a goodbye is answered by closing");
}

#[test]
fn a_renewed_export_ends_its_connections_and_takes_new_ones() {
    let rig = Rig::new(MIB);
    let mut old = rig.client();
    rig.ram.gate.close();
    let cookie = old.request(1, 0, 0, 512, &[5; 512]);
    rig.ram.gate.wait_for(1);
    thread::scope(|scope| {
        let renewing = scope.spawn(|| rig.server.renew("disk", LONG).unwrap());
        // Whoever comes before the renewal has begun would be ended with the others.
        while old.stream.write(&[]).is_ok() {
            thread::yield_now();
        }
        // It comes back while the former connection still ends, and stays.
        let mut new = rig.client();
        rig.ram.gate.open();
        assert_eq!(
            old.reply(0),
            (cookie, Ok(vec![Piece::Data(0, vec![])])),
            "what was in flight is answered"
        );
        old.expect_close();
        assert_eq!(renewing.join().unwrap(), Shutdown { cut: 0, stuck: 0 });
        assert_eq!(new.read(0, 512).unwrap(), [5; 512]);
    });
    assert!(rig.server.renew("none", LONG).is_err());
}

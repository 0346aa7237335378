//! A disk whose data go past the page cache, as NBD clients see it.
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a panic in a test is the report")]

mod nbd_support;

use backstay_disk::{
    Backend, CacheMode, DEFAULT_BLOCK_SIZE, Disk, DiskOptions, Identity, NewDisk, create_disk,
    fs::HostFs,
    nbd::{ExportSpec, Server},
};
use backstay_vhd::testing::Rng;
use nbd_support::{Client, Piece, noise};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;

struct Story {
    dir: tempfile::TempDir,
    file: PathBuf,
    disk: Arc<Disk>,
    server: Server,
    model: Vec<u8>,
}

impl Story {
    /// None where the file system of the test's folder cannot.
    fn new(name: &str, what: &NewDisk) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        create_disk(&HostFs::shared(), &file, what, Identity::fresh()).unwrap();
        let disk =
            Disk::open(&file, DiskOptions { cache: CacheMode::None, ..DiskOptions::default() }).unwrap();
        if !disk.batches() {
            println!("skipped: {} takes no direct input and output", dir.path().display());
            return None;
        }
        let server = Server::bind(&dir.path().join("nbd.sock"), 0o600).unwrap();
        let backend: Arc<dyn Backend> = Arc::<Disk>::clone(&disk);
        let spec = ExportSpec { name: "disk".into(), description: String::new(), backend, read_only: false };
        server.add_export(spec).unwrap();
        Some(Self { dir, file, disk, server, model: vec![0; SIZE as usize] })
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    /// Many writes at a time, of which none meets another.
    fn write(&mut self, client: &mut Client, rng: &mut Rng, seed: u64) {
        const SLOT: u64 = 64 << 10;
        for round in 0..8 {
            let mut slots: Vec<u64> = (0..SIZE / SLOT).collect();
            let mut sent = Vec::new();
            for index in 0..48 {
                let other = index + rng.below(slots.len() as u64 - index as u64) as usize;
                slots.swap(index, other);
                // Mostly pages; also sectors, which begin and end within one.
                let (within, len) = match rng.below(4) {
                    0 => (512 * rng.below(20), 512 * (1 + rng.below(60))),
                    _ => (4096 * rng.below(4), 4096 * (1 + rng.below(8))),
                };
                let offset = slots[index] * SLOT + within;
                let data = noise(len as usize, seed ^ (round << 32) ^ offset);
                let at = offset as usize;
                self.model[at..at + data.len()].copy_from_slice(&data);
                sent.push(client.request(1, 0, offset, len as u32, &data));
            }
            self.acknowledged(client, sent);
        }
    }

    fn acknowledged(&self, client: &mut Client, mut sent: Vec<u64>) {
        while !sent.is_empty() {
            let (cookie, answer) = client.reply(0);
            answer.unwrap();
            let at =
                sent.iter().position(|one| *one == cookie).expect("an answer to something that was asked");
            sent.swap_remove(at);
        }
    }

    /// Many reads at a time.
    fn read(&self, client: &mut Client, rng: &mut Rng) {
        let mut sent = HashMap::new();
        for _ in 0..64 {
            let unit = if rng.one_in(4) { 512 } else { 4096 };
            let len = unit * (1 + rng.below(12));
            let offset = unit * rng.below((SIZE - len) / unit);
            sent.insert(client.request(0, 0, offset, len as u32, b""), (offset, len));
        }
        while !sent.is_empty() {
            let (cookie, answer) = client.reply(0);
            let (offset, len) = sent.remove(&cookie).expect("asked once, answered once");
            let mut got = vec![0; len as usize];
            for piece in answer.unwrap() {
                if let Piece::Data(at, data) = piece {
                    let at = (at - offset) as usize;
                    got[at..at + data.len()].copy_from_slice(&data);
                }
            }
            let expected = &self.model[offset as usize..(offset + len) as usize];
            assert!(got == expected, "{len} bytes from {offset} on");
        }
    }

    fn end(self) {
        let raw = self.dir.path().join("model.raw");
        std::fs::write(&raw, &self.model).unwrap();
        let uri = format!("nbd+unix:///disk?socket={}", self.socket().display());
        let mut compare = Command::new("qemu-img");
        compare.args(["compare", "-f", "raw", "-F", "raw"]).arg(&raw).arg(uri);
        let same = compare.output().unwrap();
        assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
        drop(self.server);
        self.disk.close().unwrap();
    }
}

/// Bytes of a file in the page cache, as another program counts them.
fn cached(file: &Path) -> u64 {
    let said =
        Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(file).output();
    String::from_utf8(said.unwrap().stdout).unwrap().trim().parse().unwrap()
}

fn run(name: &str, what: &NewDisk) {
    let Some(mut story) = Story::new(name, what) else { return };
    let mut rng = Rng::new(7);
    let mut client = Client::go(&story.socket(), "disk", true);
    for seed in 0..3 {
        story.write(&mut client, &mut rng, seed);
        story.read(&mut client, &mut rng);
    }
    drop(client);
    story.end();
}

#[test]
fn many_requests_at_a_time_to_a_dynamic_vhd() {
    run("a.vhd", &NewDisk::Dynamic { size: SIZE, block_size: DEFAULT_BLOCK_SIZE });
}

#[test]
fn many_requests_at_a_time_to_a_dynamic_vhdx() {
    run("a.vhdx", &NewDisk::Dynamic { size: SIZE, block_size: DEFAULT_BLOCK_SIZE });
}

#[test]
fn many_requests_at_a_time_to_a_raw_disk() {
    run("a.raw", &NewDisk::Raw { size: SIZE });
}

/// What a guest writes and reads in whole pages does not fill the host's memory.
#[test]
fn nothing_of_the_guest_stays_in_the_page_cache() {
    let what = NewDisk::Dynamic { size: SIZE, block_size: DEFAULT_BLOCK_SIZE };
    let Some(story) = Story::new("a.vhdx", &what) else { return };
    let mut client = Client::go(&story.socket(), "disk", true);
    // A block gets its place through the cache; what comes after does not.
    for pass in 0..2 {
        for at in (0..SIZE).step_by(32 << 10) {
            client.write(at, &noise(32 << 10, at + pass)).unwrap();
        }
        client.call(3, 0, 0, 0, b"").unwrap();
    }
    for at in (0..SIZE).step_by(32 << 10) {
        assert!(client.read(at, 32 << 10).unwrap() == noise(32 << 10, at + 1), "at {at}");
    }
    let cached = cached(&story.file);
    assert!(cached < SIZE / 8, "{cached} bytes of {SIZE} are cached");
}

//! The microguest's load: it writes, flushes and reads back by itself, and knows what every sector has to hold. What it wrote is
//! known here too, from the random numbers that both begin with.

use crate::{Micro, PATIENCE, wait_for};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

/// Sectors of a slot.
const SLOT: u32 = 8;
const SECTOR: u64 = 512;

/// What the guest does until it is told to stop.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The BIOS drive; flushes reach drives of the first IDE controller only.
    pub drive: u8,
    /// LBA of the first slot.
    pub first: u32,
    /// Number of slots, each 4 KiB; a power of two.
    pub slots: u32,
    /// Sectors of a slot that are written, 1–8.
    pub sectors: u8,
    /// Writes between two flushes, 1–255.
    pub flush_after: u8,
    /// Begins the random numbers; not 0.
    pub seed: u32,
}

/// What the guest says of its load.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    /// Writes that were acknowledged.
    pub writes: u32,
    /// The slowest of them since it was asked last.
    pub slowest_write: Ticks,
    /// The slowest flush since then.
    pub slowest_flush: Ticks,
    /// The slowest read since then, and its comparison.
    pub slowest_read: Ticks,
    /// The guest's clock.
    pub clock: Ticks,
    /// Sectors that it read back and that held something else.
    pub wrong: u32,
}

/// Time in the guest, which stands still while its processors are stopped: 1024 ticks of the time stamp counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticks(u32);

impl Ticks {
    /// In milliseconds, where `rate` is how many there are in a second.
    #[must_use]
    pub fn millis(self, rate: f64) -> f64 {
        f64::from(self.0) * 1000.0 / rate
    }

    /// Ticks since an earlier time.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self(self.0.wrapping_sub(earlier.0))
    }

    /// How many there are in a second, if these passed in `time`.
    #[must_use]
    pub fn rate(self, time: Duration) -> f64 {
        f64::from(self.0) / time.as_secs_f64()
    }
}

/// What the guest found when it read everything that it had written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Slots that were written.
    pub slots: u32,
    /// Of them, those that hold something else.
    pub wrong: u32,
    /// LBA of the first wrong sector, the number of the write that it should hold, and the number that it holds.
    pub first: (u32, u32, u32),
}

struct Random(u32);

impl Random {
    fn slot(&mut self, load: &Load) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 & (load.slots - 1)
    }
}

/// What the guest writes to sector `lba` in its write number `turn`.
fn sector(turn: u32, lba: u32) -> [u8; 512] {
    let mut bytes = [0; 512];
    let mut value = turn.wrapping_mul(0x9E37_79B1) ^ lba.wrapping_mul(0x85EB_CA6B);
    for (at, word) in bytes.chunks_exact_mut(4).enumerate() {
        let now = match at {
            0 => turn,
            1 => lba,
            _ => {
                value = value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                value
            }
        };
        word.copy_from_slice(&now.to_le_bytes());
    }
    bytes
}

impl Load {
    /// Does to a raw disk what the guest did in its first `writes` writes.
    ///
    /// # Errors
    /// The file's.
    pub fn repeat(&self, writes: u32, disk: &File) -> io::Result<()> {
        let mut random = Random(self.seed);
        let mut turns = vec![0; self.slots as usize];
        for turn in 1..=writes {
            turns[random.slot(self) as usize] = turn;
            // the one that the guest looked at
            random.slot(self);
        }
        for (slot, turn) in (0..self.slots).zip(turns).filter(|(_, turn)| *turn > 0) {
            for at in 0..u32::from(self.sectors) {
                let lba = self.first + slot * SLOT + at;
                disk.write_all_at(&sector(turn, lba), u64::from(lba) * SECTOR)?;
            }
        }
        Ok(())
    }
}

impl Micro {
    /// Begins a load. Until it is stopped, the guest answers to [`ask_load`] and [`stop_load`] only.
    ///
    /// # Errors
    /// The console's.
    pub fn begin_load(&mut self, load: &Load) -> io::Result<()> {
        let Load { drive, first, slots, sectors, flush_after, seed } = load;
        assert!(slots.is_power_of_two() && (1..=8).contains(sectors) && *flush_after > 0 && *seed != 0);
        let mask = slots - 1;
        let said =
            self.ask(&format!("l{drive:02x}{first:08x}{mask:08x}{sectors:02x}{flush_after:02x}{seed:08x}"))?;
        assert_eq!(said, "l", "a load");
        Ok(())
    }

    /// The guest reads all that its last load wrote, which was so many times.
    ///
    /// # Panics
    /// When it does not answer, or sees a disk error.
    pub fn verify_load(&mut self, writes: u32) -> Found {
        let limit = PATIENCE + writes * Duration::from_millis(20);
        let said = self.ask_within("v", limit).expect("an answer");
        let fields = fields(said.strip_prefix('v').unwrap_or_else(|| panic!("the guest saw {said}")));
        let [slots, wrong, lba, turn, found] = fields[..] else { panic!("not what was asked for: {said}") };
        Found { slots, wrong, first: (lba, turn, found) }
    }

    /// The guest's hash of sectors of a drive; [`hash`] is the same from outside.
    ///
    /// # Panics
    /// When it does not answer, or sees a disk error.
    pub fn hash(&mut self, drive: u8, lba: u32, sectors: u32) -> u32 {
        let said = self.ask(&format!("k{drive:02x}{lba:08x}{sectors:08x}")).expect("an answer");
        let hash = said.strip_prefix('k').unwrap_or_else(|| panic!("the guest saw {said}"));
        u32::from_str_radix(hash, 16).expect("a hash")
    }
}

/// What [`Micro::hash`] says of these sectors if they are as on this raw disk.
///
/// # Errors
/// The file's.
pub fn hash(disk: &File, lba: u32, sectors: u32) -> io::Result<u32> {
    let mut bytes = vec![0; 512 * sectors as usize];
    disk.read_exact_at(&mut bytes, u64::from(lba) * SECTOR)?;
    let words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")));
    Ok(words.fold(0, |hash, word| hash.wrapping_mul(31).wrapping_add(word)))
}

fn fields(text: &str) -> Vec<u32> {
    text.split(' ').map(|field| u32::from_str_radix(field, 16).unwrap_or(u32::MAX)).collect()
}

/// Asks a guest how its load goes on, over whatever worker it has by then. `before` is what it said the last time: consoles
/// repeat the past.
///
/// # Panics
/// When the guest does not answer within [`PATIENCE`](crate::PATIENCE), or has seen a disk error.
#[must_use]
pub fn ask_load(console: &Path, before: &Told) -> Told {
    // One byte, so that a worker's death cannot halve it; not the same as the last time.
    static NEXT: AtomicU8 = AtomicU8::new(0);
    wait_for("the guest to tell of its load", || {
        let byte = 0x80 | NEXT.fetch_add(1, Relaxed);
        tell(console, byte, before).ok()
    })
}

/// Stops the load. The console is the guest's again, and the load can be verified or gone on with.
///
/// # Panics
/// As [`ask_load`].
#[must_use]
pub fn stop_load(console: &Path, before: &Told) -> (Micro, Told) {
    let told = wait_for("the load to stop", || tell(console, b'x', before).ok());
    (Micro::attach(console).expect("the guest"), told)
}

fn tell(console: &Path, byte: u8, before: &Told) -> io::Result<Told> {
    let mut console = crate::Console::connect(console)?;
    console.send_byte(byte)?;
    let begin = format!("q{byte:02x} ");
    loop {
        let line = console.until_within("\n", Duration::from_secs(5))?;
        assert!(!line.contains('!'), "the guest saw a disk error: {line}");
        let Some((_, said)) = line.trim_end().rsplit_once(&begin) else { continue };
        let [writes, write, flush, read, clock, wrong] = fields(said)[..] else { continue };
        if writes < before.writes {
            continue;
        }
        let (slowest_write, slowest_flush, slowest_read) = (Ticks(write), Ticks(flush), Ticks(read));
        return Ok(Told { writes, slowest_write, slowest_flush, slowest_read, clock: Ticks(clock), wrong });
    }
}

//! The microguest: disk reads and writes, and a counter that lives only in its memory.

use crate::{Console, PATIENCE};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static NONCE: AtomicU32 = AtomicU32::new(0x5EED_0000);

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sector {
    /// Its first byte.
    pub first: u8,
    /// Whether every byte is that one: the guest's sum over all 256 words says so.
    pub uniform: bool,
}

/// A conversation with a running microguest.
#[derive(Debug)]
pub struct Micro {
    console: Console,
}

impl Micro {
    /// Connects to a guest that is starting and waits until it is ready. Returns it with the number of disks its BIOS sees.
    ///
    /// # Panics
    /// When it does not get ready.
    #[must_use]
    pub fn booting(socket: &Path) -> (Self, u8) {
        let mut console = Console::connect(socket).expect("the serial console");
        console.until("MG READY disks=").expect("a booting microguest");
        let disks = console.until("\n").expect("the number of disks");
        (Self { console }, u8::from_str_radix(disks.trim(), 16).expect("a hexadecimal number"))
    }

    /// Connects to a guest that has been ready before: whatever the console repeats of the past is skipped.
    ///
    /// # Errors
    /// The console's.
    pub fn attach(socket: &Path) -> io::Result<Self> {
        let mut console = Console::connect(socket)?;
        let nonce = NONCE.fetch_add(1, Ordering::Relaxed);
        // Escape: of a command whose worker was killed, the guest may have got only the first half.
        console.send(&format!("\x1be{nonce:08x}"))?;
        console.until(&format!("e{nonce:08x}\n"))?;
        Ok(Self { console })
    }

    /// Waits until a guest that was reset, or whose QEMU was started again, is ready; the console connection outlives that.
    ///
    /// # Panics
    /// When it does not get ready.
    pub fn wait_ready(&mut self) {
        self.console.until("MG READY disks=").expect("a booting microguest");
        self.console.until("\n").expect("the number of disks");
    }

    /// One command, one line of answer.
    ///
    /// # Errors
    /// The console's.
    pub fn ask(&mut self, command: &str) -> io::Result<String> {
        self.ask_within(command, PATIENCE)
    }

    /// As [`Micro::ask`], for what takes long.
    ///
    /// # Errors
    /// The console's.
    pub fn ask_within(&mut self, command: &str, limit: Duration) -> io::Result<String> {
        self.console.send(command)?;
        Ok(self.console.until_within("\n", limit)?.trim().to_owned())
    }

    /// Increments the counter in the guest's memory and returns it.
    ///
    /// # Panics
    /// When the guest does not answer.
    pub fn count(&mut self) -> u32 {
        let line = self.ask("c").expect("a counter");
        u32::from_str_radix(line.trim_start_matches('c'), 16).expect("a counter")
    }

    /// Keeps the processor busy `times` times for about a second of its time. Nothing else is answered meanwhile.
    ///
    /// # Panics
    /// When the console is gone.
    pub fn burn(&mut self, times: usize) {
        self.console.send(&"b".repeat(times)).expect("the console");
    }

    /// Powers off by ACPI. No answer comes; the console may end at once.
    ///
    /// # Errors
    /// The console's.
    pub fn power_off(&mut self) -> io::Result<()> {
        self.console.send("o")
    }

    /// Fills sector `lba` of BIOS drive `drive` with `byte`. Returns when the disk has acknowledged it.
    ///
    /// # Errors
    /// The console's; the write may or may not have happened then.
    ///
    /// # Panics
    /// When the guest's BIOS reports a disk error: nothing in these tests may show one to a guest.
    pub fn write(&mut self, drive: u8, lba: u32, byte: u8) -> io::Result<()> {
        let said = self.ask(&format!("w{drive:02x}{lba:08x}{byte:02x}"))?;
        assert_eq!(said, "w", "the guest saw a disk error when writing sector {lba:#x}");
        Ok(())
    }

    /// Reads sector `lba` of BIOS drive `drive`.
    ///
    /// # Panics
    /// When the guest does not answer, or sees a disk error.
    pub fn read(&mut self, drive: u8, lba: u32) -> Sector {
        let said = self.ask(&format!("r{drive:02x}{lba:08x}")).expect("an answer");
        let (head, sum) =
            said.split_once(' ').unwrap_or_else(|| panic!("reading sector {lba:#x}: the guest saw {said}"));
        let first = u8::from_str_radix(&head[1..3], 16).expect("a byte");
        // 256 words of this byte twice, modulo 2^16
        let expected = u16::from_le_bytes([first, first]).wrapping_mul(256);
        Sector { first, uniform: u16::from_str_radix(sum, 16) == Ok(expected) }
    }

    /// Asserts that sector `lba` is full of `byte`.
    ///
    /// # Panics
    /// When it is not.
    pub fn expect(&mut self, drive: u8, lba: u32, byte: u8) {
        let sector = self.read(drive, lba);
        assert_eq!(sector, Sector { first: byte, uniform: true }, "sector {lba:#x} of drive {drive:#x}");
    }
}

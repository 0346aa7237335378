//! The microguest: nine sectors of real-mode code with a command loop on the serial port.

use super::{cached, key};
use crate::cmd::{command, output};
use anyhow::Result;
use std::fs;
use std::path::Path;

const SOURCE: &str = include_str!("../../../qemu/tests/guest/microguest.S");
/// The code is 4608 bytes; the rest is room that tests write to.
const DISK_BYTES: u64 = 1 << 20;

pub fn build(place: &Path) -> Result<()> {
    cached(place, "microguest", &key(&[SOURCE.as_bytes()]), "disk.img", |work| {
        fs::write(work.join("mg.S"), SOURCE)?;
        output(&mut command(work, "as", &["--32", "-o", "mg.o", "mg.S"]))?;
        let link = ["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", "mg.bin", "mg.o"];
        output(&mut command(work, "ld", &link))?;
        fs::copy(work.join("mg.bin"), work.join("disk.img"))?;
        fs::OpenOptions::new().write(true).open(work.join("disk.img"))?.set_len(DISK_BYTES)?;
        Ok(())
    })
}

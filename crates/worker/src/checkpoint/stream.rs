//! The `.bin` file: QEMU's stream, compressed on its way to the disk and expanded on its way back.

use super::descriptor::FileFacts;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// zstd's fastest regular level: a core compresses faster than QEMU writes pages.
const LEVEL: i32 = 1;
const CHUNK: usize = 256 << 10;

/// A stream that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes before compression.
    pub stream_len: u64,
    /// The file.
    pub file: FileFacts,
}

/// Counts and checksums what passes.
#[derive(Debug)]
struct Summing<W> {
    inner: W,
    len: u64,
    crc32c: u32,
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Compresses everything `source` gives into `file` and makes it durable. `progress` counts bytes before compression.
///
/// # Errors
/// As `source` and the file system.
pub fn receive(mut source: impl Read, file: &File, progress: &AtomicU64) -> io::Result<Written> {
    let buffered = io::BufWriter::with_capacity(1 << 20, file);
    let mut encoder =
        zstd::stream::write::Encoder::new(Summing { inner: buffered, len: 0, crc32c: 0 }, LEVEL)?;
    encoder.include_checksum(true)?;
    let (mut buffer, mut stream_len) = (vec![0; CHUNK], 0u64);
    loop {
        let len = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        encoder.write_all(&buffer[..len])?;
        stream_len += len as u64;
        progress.store(stream_len, Relaxed);
    }
    let mut summing = encoder.finish()?;
    summing.flush()?;
    file.sync_all()?;
    Ok(Written { stream_len, file: FileFacts { len: summing.len, crc32c: summing.crc32c } })
}

/// Expands the file into `sink`.
///
/// # Errors
/// As the file system and `sink`; damage that zstd notices.
pub fn send(path: &Path, mut sink: impl Write) -> io::Result<()> {
    let mut decoder = zstd::stream::read::Decoder::new(File::open(path)?)?;
    io::copy(&mut decoder, &mut sink)?;
    sink.flush()
}

/// Length and checksum of a file; `None` if it does not exist.
///
/// # Errors
/// As the file system.
pub fn file_facts(path: &Path) -> io::Result<Option<FileFacts>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (mut buffer, mut facts) = (vec![0; CHUNK], FileFacts { len: 0, crc32c: 0 });
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Some(facts)),
            Ok(len) => {
                facts.crc32c = crc32c::crc32c_append(facts.crc32c, &buffer[..len]);
                facts.len += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_comes_back_as_it_went_and_its_facts_are_those_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.bin");
        let stream: Vec<u8> = (0..3_000_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let progress = AtomicU64::new(0);
        let written = receive(&stream[..], &File::create(&path).unwrap(), &progress).unwrap();
        assert_eq!((written.stream_len, progress.into_inner()), (12_000_000, 12_000_000));
        assert!(written.file.len < 6_000_000);
        assert_eq!(file_facts(&path).unwrap(), Some(written.file));
        assert_eq!(crc32c::crc32c(&std::fs::read(&path).unwrap()), written.file.crc32c);

        let mut back = Vec::new();
        send(&path, &mut back).unwrap();
        assert_eq!(back, stream);
    }

    #[test]
    fn a_file_cut_short_is_an_error_not_a_short_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.bin");
        let file = File::create(&path).unwrap();
        let written = receive(&vec![7; 1 << 20][..], &file, &AtomicU64::new(0)).unwrap();
        file.set_len(written.file.len - 3).unwrap();
        assert!(send(&path, io::sink()).is_err());
    }
}

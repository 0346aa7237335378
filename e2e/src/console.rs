//! A guest's serial console.

use crate::PATIENCE;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A connection to a serial console. What the guest wrote recently comes first, then what it writes now.
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    heard: Vec<u8>,
}

impl Console {
    /// Connects to the socket that `vm show` names.
    ///
    /// # Errors
    /// The socket's, for example while a worker is being replaced.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, heard: Vec::new() })
    }

    /// Types `text`.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn send(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(text.as_bytes())
    }

    /// Types one byte, which need not be a letter.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn send_byte(&mut self, byte: u8) -> io::Result<()> {
        self.stream.write_all(&[byte])
    }

    /// Returns what the guest writes up to and including `end`; what follows stays for the next call.
    ///
    /// # Errors
    /// The connection has ended, or nothing came within [`PATIENCE`]; the message has what came until then.
    pub fn until(&mut self, end: &str) -> io::Result<String> {
        self.until_within(end, PATIENCE)
    }

    /// As [`Console::until`], with another limit.
    ///
    /// # Errors
    /// As [`Console::until`].
    pub fn until_within(&mut self, end: &str, limit: Duration) -> io::Result<String> {
        let limit = Instant::now() + limit;
        loop {
            if let Some(at) = find(&self.heard, end.as_bytes()) {
                let rest = self.heard.split_off(at + end.len());
                let said = std::mem::replace(&mut self.heard, rest);
                return Ok(String::from_utf8_lossy(&said).into_owned());
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(self.failed(ErrorKind::UnexpectedEof, end)),
                Ok(n) => self.heard.extend_from_slice(&buffer[..n]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
            if Instant::now() > limit {
                return Err(self.failed(ErrorKind::TimedOut, end));
            }
        }
    }

    fn failed(&self, kind: ErrorKind, end: &str) -> io::Error {
        let heard = String::from_utf8_lossy(&self.heard);
        io::Error::new(kind, format!("the guest did not write {end:?}, only: {heard:?}"))
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

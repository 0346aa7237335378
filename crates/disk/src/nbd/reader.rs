//! The receiving side of a connection.

use std::io::{self, Read};

use super::{conn::Conn, proto::RequestHead};

/// The receiving side of a connection. Whoever holds it leads.
#[derive(Debug)]
pub(super) struct Reader {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Reader {
    pub fn new(rest: &[u8], batches: bool) -> Self {
        let room = if batches { 256 << 10 } else { 64 << 10 };
        let mut buf = vec![0; rest.len().max(room)];
        buf[..rest.len()].copy_from_slice(rest);
        Self { buf: buf.into_boxed_slice(), start: 0, end: rest.len() }
    }

    fn buffered(&mut self, want: usize) -> &[u8] {
        let n = want.min(self.end - self.start);
        self.start += n;
        &self.buf[self.start - n..self.start]
    }

    /// The next request's bytes. Collected replies are sent before waiting.
    pub fn head(&mut self, conn: &Conn) -> io::Result<[u8; size_of::<RequestHead>()]> {
        let mut head = [0; size_of::<RequestHead>()];
        while self.end - self.start < head.len() {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let n = receive(conn, &mut self.buf[self.end..])?;
            self.end += n;
        }
        head.copy_from_slice(self.buffered(size_of::<RequestHead>()));
        Ok(head)
    }

    /// The next request's bytes, if they are here with `payload` more.
    pub fn peek(&self) -> Option<&[u8; size_of::<RequestHead>()]> {
        self.buf.get(self.start..self.end)?.first_chunk()
    }

    /// Whether so many bytes are here behind the next request's.
    pub fn has_payload(&self, len: u32) -> bool {
        self.end - self.start >= size_of::<RequestHead>() + len as usize
    }

    /// Takes what [`Reader::peek`] showed.
    pub fn take_head(&mut self) {
        self.start += size_of::<RequestHead>().min(self.end - self.start);
    }

    /// Fills `buf` with the bytes that follow a request.
    pub fn payload(&mut self, conn: &Conn, buf: &mut [u8]) -> io::Result<()> {
        let here = self.buffered(buf.len());
        buf[..here.len()].copy_from_slice(here);
        let mut at = here.len();
        while at < buf.len() {
            at += receive(conn, &mut buf[at..])?;
        }
        Ok(())
    }
}

fn receive(conn: &Conn, buf: &mut [u8]) -> io::Result<usize> {
    conn.flush();
    loop {
        match (&*conn.stream).read(buf) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

//! Requests that come together are carried out together, where the disk gains by it.

use std::{io, sync::Arc};

use zerocopy::IntoBytes;

use super::{
    conn::{Conn, SPARSE_MIN, UNCOUNTED, Worker},
    proto::SimpleReply,
    reader::Reader,
    request::{Decision, Op, Request, judge},
};
use crate::{BatchData, BatchOp, fs::Pages};

/// Requests that go to the kernel together.
const MAX_BATCH: usize = 32;
/// Where the bytes of each begin: at a multiple of this, in bytes.
const PAGE: usize = 4096;

impl Conn {
    /// Whether a request is of the kind that is carried out with others.
    pub(super) fn joins(&self, request: &Request) -> bool {
        let simple = match request.op {
            // Longer ones tell holes apart.
            Op::Read { .. } => request.len < SPARSE_MIN,
            Op::Write => !request.fua && request.len < UNCOUNTED,
            _ => false,
        };
        simple
            && request.len > 0
            && self.batches
            && self.export.is_whole(request.offset, request.len)
            && !self.export.throttle.is_on()
    }

    /// Carries requests out and answers each as it ends. `payload` holds their bytes.
    fn execute_together(&self, batch: &Batch, payload: &mut Pages) {
        let mut ops = Vec::with_capacity(batch.requests.len());
        let mut rest = payload.room(batch.end);
        let mut taken = 0;
        for (request, at) in &batch.requests {
            let (_, behind) = std::mem::take(&mut rest).split_at_mut(at - taken);
            let (bytes, behind) = behind.split_at_mut(request.len as usize);
            (rest, taken) = (behind, at + request.len as usize);
            let data = if request.op == Op::Write { BatchData::Write(bytes) } else { BatchData::Read(bytes) };
            ops.push(BatchOp { offset: request.offset, data });
        }
        self.export.batch(ops, &mut |index, bytes, result| {
            let Some((request, _)) = batch.requests.get(index) else { return };
            match (result, request.op) {
                (Err(error), _) => self.fail(request, &error),
                (Ok(()), Op::Read { .. }) => self.answer_read(request, bytes),
                (Ok(()), _) => self.push(&[SimpleReply::new(request.cookie, None).as_bytes()]),
            }
        });
    }
}

impl Worker {
    /// Serves a request together with those of its kind that came with it; returns the reader if no other thread took over
    /// meanwhile.
    pub(super) fn carry_out_together(
        &mut self,
        conn: &Arc<Conn>,
        first: Request,
        mut reader: Reader,
    ) -> io::Result<Option<Reader>> {
        let mut batch = Batch::default();
        batch.add(first, conn, &mut reader, &mut self.payload)?;
        while batch.requests.len() < MAX_BATCH
            && let Some(head) = reader.peek()
            && let Decision::Do(request) = judge(head, &conn.session, conn.export.limits())
            && conn.joins(&request)
            && (request.op != Op::Write || reader.has_payload(request.len))
        {
            reader.take_head();
            batch.add(request, conn, &mut reader, &mut self.payload)?;
        }
        conn.offer(reader);
        conn.execute_together(&batch, &mut self.payload);
        Ok(self.go_on(conn))
    }
}

/// Requests that go to the kernel together, and where each has its bytes in the buffer.
#[derive(Debug, Default)]
struct Batch {
    requests: Vec<(Request, usize)>,
    end: usize,
}

impl Batch {
    fn add(
        &mut self,
        request: Request,
        conn: &Conn,
        reader: &mut Reader,
        payload: &mut Pages,
    ) -> io::Result<()> {
        let (at, len) = (self.end, request.len as usize);
        // Each begins at a page.
        self.end = (at + len).next_multiple_of(PAGE);
        let room = payload.room(self.end);
        if request.op == Op::Write {
            reader.payload(conn, room.get_mut(at..at + len).unwrap_or_default())?;
        }
        self.requests.push((request, at));
        Ok(())
    }
}

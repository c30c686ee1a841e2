//! The medium over a file or a block device.
//!
//! - One open file description serves all transfers and the seat lock; the lock therefore lasts at
//!   least as long as any transfer that the kernel still works on.
//! - A transfer's buffer belongs to the back end until its completion was taken out.
//! - Short transfers are continued, interrupted ones repeated; only whole transfers complete well.
//! - Inline, the calling thread does the transfers and no io_uring call is made for them: the kernel would tie
//!   the ring to that thread, which is a program's.
//! - A durable write asks for `RWF_DSYNC`; no other write waits for the storage's caches.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::{Errno, ReadWriteFlags};
use stp_format::{Geometry, SeatId, UNIT_BYTES, UnitBuf};

use crate::lock;
use crate::pool::{Passing, Pool};
use crate::slab;
use crate::storage::{Writable, locate};
use crate::uring::Ring;
use crate::{Completion, Medium, Op, OpId, SeatLock};

/// How often one transfer is repeated when the kernel says "again" without having moved a byte.
const RETRIES_MAX: u32 = 1000;

/// A transfer on its way.
pub(crate) struct Transfer {
    pub(crate) id: OpId,
    pub(crate) body: Body,
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// Bytes moved already; a multiple of the unit.
    pub(crate) done: usize,
    retries: u32,
    /// It never starts: this is its result.
    pub(crate) refused: Option<io::Error>,
}

pub(crate) enum Body {
    Read(UnitBuf),
    Write { data: Arc<UnitBuf>, durable: bool },
}

/// What a transfer needs after the kernel answered.
pub(crate) enum Step {
    Again,
    Finished(io::Result<()>),
}

impl Transfer {
    fn new(id: OpId, op: Op, located: io::Result<(u64, usize)>) -> Self {
        let (offset, len, refused) = match located {
            Ok((offset, len)) => (offset, len, None),
            Err(error) => (0, 0, Some(error)),
        };
        let body = match op {
            Op::Read { buf, .. } => Body::Read(buf),
            Op::Write { data, durable, .. } => Body::Write { data, durable },
        };
        Self {
            id,
            body,
            offset,
            len,
            done: 0,
            retries: 0,
            refused,
        }
    }

    /// Takes note of what one system call moved.
    pub(crate) fn advance(&mut self, moved: Result<usize, Errno>) -> Step {
        match moved {
            Ok(bytes) => {
                // A part of a unit is moved again: direct transfers go on at whole units only.
                let whole = bytes.min(self.len - self.done) / UNIT_BYTES * UNIT_BYTES;
                self.done += whole;
                if self.done >= self.len {
                    Step::Finished(Ok(()))
                } else if whole > 0 {
                    Step::Again
                } else {
                    Step::Finished(Err(match self.body {
                        Body::Read(_) => io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            "the volume has become shorter than its geometry says",
                        ),
                        Body::Write { .. } => io::ErrorKind::WriteZero.into(),
                    }))
                }
            }
            // ECANCELED: the thread that submitted it ended before the transfer did.
            Err(Errno::INTR | Errno::AGAIN | Errno::CANCELED) if self.retries < RETRIES_MAX => {
                self.retries += 1;
                Step::Again
            }
            Err(errno) => Step::Finished(Err(errno.into())),
        }
    }

    pub(crate) fn complete(self, result: io::Result<()>) -> Completion {
        Completion {
            id: self.id,
            buf: match self.body {
                Body::Read(buf) => Some(buf),
                Body::Write { .. } => None,
            },
            result,
        }
    }
}

/// Does a transfer in the calling thread.
pub(crate) fn pass(file: &File, transfer: &mut Transfer) -> io::Result<()> {
    if let Some(error) = transfer.refused.take() {
        return Err(error);
    }
    loop {
        let at = transfer.offset + transfer.done as u64;
        let range = transfer.done..transfer.len;
        let moved = match &mut transfer.body {
            Body::Read(buf) => rustix::io::pread(file, &mut buf.bytes_mut()[range], at),
            Body::Write { data, durable } => {
                let piece = &data.bytes()[range];
                if *durable {
                    let piece = [io::IoSlice::new(piece)];
                    rustix::io::pwritev2(file, &piece, at, ReadWriteFlags::DSYNC)
                } else {
                    rustix::io::pwrite(file, piece, at)
                }
            }
        };
        match transfer.advance(moved) {
            Step::Again => {
                if moved == Err(Errno::AGAIN) {
                    std::thread::yield_now();
                }
            }
            Step::Finished(result) => return result,
        }
    }
}

/// Who moves the bytes.
pub(crate) enum Backend {
    Ring(Box<Ring>),
    Pool(Pool),
}

pub(crate) struct Direct {
    file: Arc<File>,
    geometry: Option<Geometry>,
    writable: Writable,
    backend: Backend,
    /// Transfers are done by the calling thread.
    inline: bool,
    /// To be done by the calling thread, and done by it.
    waiting: VecDeque<Transfer>,
    done: VecDeque<Completion>,
    /// Front of [`Medium::describe`].
    name: String,
    block: bool,
}

impl Direct {
    pub(crate) fn new(
        file: Arc<File>,
        writable: Writable,
        backend: Backend,
        block: bool,
        name: String,
    ) -> Self {
        Self {
            file,
            geometry: None,
            writable,
            backend,
            inline: false,
            waiting: VecDeque::new(),
            done: VecDeque::new(),
            name,
            block,
        }
    }

    /// Whether a transfer is no more than reading or writing: buffered I/O is left to its threads.
    fn is_direct(&self) -> bool {
        match &self.backend {
            Backend::Ring(_) => true,
            Backend::Pool(pool) => pool.passing() == Passing::Direct,
        }
    }
}

impl Medium for Direct {
    fn set_geometry(&mut self, geometry: Geometry) {
        self.geometry = Some(geometry);
    }

    fn size_bytes(&self) -> io::Result<u64> {
        if self.block {
            Ok(rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))?)
        } else {
            Ok(self.file.metadata()?.len())
        }
    }

    fn submit(&mut self, id: OpId, op: Op) {
        let located = locate(self.geometry.as_ref(), &op, self.writable);
        let transfer = Transfer::new(id, op, located);
        if self.inline {
            self.waiting.push_back(transfer);
            return;
        }
        match &mut self.backend {
            Backend::Ring(ring) => ring.start(transfer),
            Backend::Pool(pool) => pool.start(transfer),
        }
    }

    fn kick(&mut self) {
        while let Some(mut transfer) = self.waiting.pop_front() {
            let result = pass(&self.file, &mut transfer);
            self.done.push_back(transfer.complete(result));
        }
        if let Backend::Ring(ring) = &mut self.backend
            && !self.inline
        {
            ring.kick();
        }
    }

    fn kick_and_wait(&mut self, longest: Duration) {
        match &mut self.backend {
            Backend::Ring(ring) if !self.inline => ring.kick_and_wait(longest),
            _ => self.kick(),
        }
    }

    fn poll(&mut self) -> Option<Completion> {
        if let Some(done) = self.done.pop_front() {
            return Some(done);
        }
        match &mut self.backend {
            Backend::Ring(ring) => ring.poll(),
            Backend::Pool(pool) => pool.poll(),
        }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(match &self.backend {
            Backend::Ring(ring) => ring.as_fd(),
            Backend::Pool(pool) => pool.as_fd(),
        })
    }

    fn buffers(&self) -> fn(usize) -> UnitBuf {
        slab::buffer
    }

    fn set_inline(&mut self, inline: bool) {
        self.inline = inline && self.is_direct();
    }

    fn is_inline(&self) -> bool {
        self.inline
    }

    fn depth(&self) -> usize {
        match &self.backend {
            Backend::Ring(_) => Ring::DEPTH,
            Backend::Pool(_) => Pool::THREADS,
        }
    }

    fn lock_seat(&mut self, seat: SeatId) -> io::Result<SeatLock> {
        if self.block || self.writable == Writable::No {
            return Ok(SeatLock::Unsupported);
        }
        lock::lock_seat(&self.file, seat)
    }

    fn unlock_seat(&mut self, seat: SeatId) {
        lock::unlock_seat(&self.file, seat);
    }

    fn describe(&self) -> String {
        match &self.backend {
            Backend::Ring(_) => format!("{}, io_uring", self.name),
            Backend::Pool(_) => format!("{}, {} threads", self.name, Pool::THREADS),
        }
    }
}

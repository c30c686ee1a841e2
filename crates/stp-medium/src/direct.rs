//! The medium over a file or a block device.
//!
//! - One open file description serves all transfers and the seat lock; the lock therefore lasts at
//!   least as long as any transfer that the kernel still works on.
//! - A transfer's buffer belongs to the back end until its completion was taken out.
//! - Transfers that lie side by side and are handed over together are moved as one. Each has its own end: what was not
//!   moved whole with the others is moved again by itself.
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

/// Transfers moved as one, and their bytes together, at the most. What a transfer costs, in processor time and on the way to
/// the device, hardly depends on how long it is.
pub(crate) const RUN_MAX: usize = 16;
pub(crate) const RUN_BYTES_MAX: usize = 1 << 20;

/// A transfer on its way.
pub(crate) struct Transfer {
    pub(crate) id: OpId,
    pub(crate) body: Body,
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// Bytes moved already; a multiple of the unit.
    pub(crate) done: usize,
    retries: u32,
    /// It was tried together with others, and not moved whole: from now on it is moved by itself.
    alone: bool,
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
            alone: false,
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

    pub(crate) fn is_done(&self) -> bool {
        self.done >= self.len
    }

    /// Whether `next` goes on where this one ends, in the same way.
    fn is_followed_by(&self, next: &Self) -> bool {
        let alike = match (&self.body, &next.body) {
            (Body::Read(_), Body::Read(_)) => true,
            (Body::Write { durable: a, .. }, Body::Write { durable: b, .. }) => a == b,
            _ => false,
        };
        alike
            && self.offset + self.len as u64 == next.offset
            && self.refused.is_none()
            && next.refused.is_none()
            && !self.alone
            && !next.alone
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

/// The transfers at the front of a queue that can be moved as one: they lie side by side.
pub(crate) fn next_run(queue: &mut VecDeque<Transfer>) -> Vec<Transfer> {
    let mut bytes = 0;
    let mut count = 0;
    while let Some(transfer) = queue.get(count)
        && (count == 0 || queue[count - 1].is_followed_by(transfer))
    {
        bytes += transfer.len;
        if count > 0 && (bytes > RUN_BYTES_MAX || count == RUN_MAX) {
            break;
        }
        count += 1;
    }
    queue.drain(..count).collect()
}

/// One system call moved so many bytes of a run: the front of it, whatever was asked for. Whoever is not done has to go on
/// alone.
pub(crate) fn credit(run: &mut [Transfer], moved: usize) {
    let mut left = moved;
    for transfer in run {
        let part = left.min(transfer.len - transfer.done);
        transfer.done += part / UNIT_BYTES * UNIT_BYTES;
        transfer.alone = true;
        left -= part;
    }
}

/// Does a run in the calling thread; the results are those of its transfers, one by one.
fn pass_run(file: &File, mut run: Vec<Transfer>, done: &mut VecDeque<Completion>) {
    if let [first, _, ..] = &run[..] {
        let at = first.offset;
        let moved = match first.body {
            Body::Read(_) => {
                let pieces = run
                    .iter_mut()
                    .filter_map(|transfer| match &mut transfer.body {
                        Body::Read(buf) => {
                            Some(io::IoSliceMut::new(&mut buf.bytes_mut()[..transfer.len]))
                        }
                        Body::Write { .. } => None,
                    });
                rustix::io::preadv(file, &mut pieces.collect::<Vec<_>>(), at)
            }
            Body::Write { durable, .. } => {
                let pieces = run.iter().filter_map(|transfer| match &transfer.body {
                    Body::Write { data, .. } => {
                        Some(io::IoSlice::new(&data.bytes()[..transfer.len]))
                    }
                    Body::Read(_) => None,
                });
                let flags = if durable {
                    ReadWriteFlags::DSYNC
                } else {
                    ReadWriteFlags::empty()
                };
                rustix::io::pwritev2(file, &pieces.collect::<Vec<_>>(), at, flags)
            }
        };
        // Whose error it was is found out by trying each.
        credit(&mut run, moved.unwrap_or(0));
    }
    for mut transfer in run {
        let result = match transfer.alone && transfer.is_done() {
            true => Ok(()),
            false => pass(file, &mut transfer),
        };
        done.push_back(transfer.complete(result));
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
        while !self.waiting.is_empty() {
            let run = next_run(&mut self.waiting);
            pass_run(&self.file, run, &mut self.done);
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

    fn run_bytes(&self) -> usize {
        match &self.backend {
            Backend::Ring(_) => RUN_BYTES_MAX,
            Backend::Pool(_) => 0,
        }
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Bytes of so many units.
    pub(crate) fn whole(units: usize) -> usize {
        units * UNIT_BYTES
    }

    fn write(number: u64, at: usize, units: usize, durable: bool) -> Transfer {
        let op = Op::Write {
            place: stp_format::Place::Superblock { copy: 0 },
            data: Arc::new(filled(number, units)),
            units,
            durable,
        };
        Transfer::new(OpId(number), op, Ok((whole(at) as u64, whole(units))))
    }

    fn read(number: u64, at: usize, units: usize) -> Transfer {
        let op = Op::Read {
            place: stp_format::Place::Superblock { copy: 0 },
            buf: UnitBuf::zeroed(units),
        };
        Transfer::new(OpId(number), op, Ok((whole(at) as u64, whole(units))))
    }

    fn filled(number: u64, units: usize) -> UnitBuf {
        let mut buf = UnitBuf::zeroed(units);
        buf.bytes_mut().fill(number as u8 + 1);
        buf
    }

    /// Writes of so many units, one behind the other.
    pub(crate) fn run_of(units: &[usize]) -> Vec<Transfer> {
        let mut at = 0;
        let transfers = (0..).zip(units).map(|(number, units)| {
            let transfer = write(number, at, *units, false);
            at += units;
            transfer
        });
        transfers.collect()
    }

    fn runs(transfers: Vec<Transfer>) -> Vec<usize> {
        let mut queue = VecDeque::from(transfers);
        let next = || (!queue.is_empty()).then(|| next_run(&mut queue).len());
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn only_neighbours_of_one_kind_are_moved_as_one() {
        assert_eq!(runs(run_of(&[1, 2, 3])), [3]);
        let gap = vec![write(0, 0, 1, false), write(1, 2, 1, false)];
        assert_eq!(runs(gap), [1, 1]);
        let back = vec![write(0, 1, 1, false), write(1, 0, 1, false)];
        assert_eq!(runs(back), [1, 1]);
        let kinds = vec![
            write(0, 0, 1, false),
            write(1, 1, 1, true),
            read(2, 2, 1),
            read(3, 3, 1),
        ];
        assert_eq!(runs(kinds), [1, 1, 2]);
        let mut refused = run_of(&[1, 1, 1]);
        refused[1].refused = Some(io::ErrorKind::InvalidInput.into());
        assert_eq!(runs(refused), [1, 1, 1]);
        let mut tried = run_of(&[1, 1, 1]);
        tried[0].alone = true;
        assert_eq!(runs(tried), [1, 2]);
    }

    #[test]
    fn a_run_has_bounds() {
        let units = RUN_BYTES_MAX / UNIT_BYTES;
        assert_eq!(runs(run_of(&[units / 2, units / 2, 1])), [2, 1]);
        assert_eq!(runs(run_of(&[2 * units, 1])), [1, 1]);
        assert_eq!(runs(run_of(&[1; RUN_MAX + 1])), [RUN_MAX, 1]);
    }

    /// A file ends where only a part of a run is: those in front of the end are read, and each of the others has its own error.
    #[test]
    fn each_of_a_run_has_its_own_end() {
        let file = tempfile::tempfile().expect("a file");
        let mut done = VecDeque::new();
        pass_run(&file, run_of(&[1, 2]), &mut done);
        assert!(done.drain(..).all(|done| done.result.is_ok()));
        let reads = vec![read(0, 0, 1), read(1, 1, 2), read(2, 3, 1)];
        pass_run(&file, reads, &mut done);
        let found: Vec<_> = done
            .into_iter()
            .map(|done| (done.result.is_ok(), done.buf.expect("it comes back")))
            .collect();
        assert!(found[0].0 && found[0].1.bytes() == filled(0, 1).bytes());
        assert!(found[1].0 && found[1].1.bytes() == filled(1, 2).bytes());
        assert!(!found[2].0);
    }
}

//! Transfers by io_uring.
//!
//! - At most [`Ring::DEPTH`] runs are with the kernel; the completion queue, twice as long, never overflows.
//! - A slot holds a run: transfers that lie side by side, moved by one request. Each completes by itself.
//! - A transfer in a slot is not touched between its submission and its completion: the kernel owns its buffer.
//! - Every completion passes through the ring, refused operations too: the ring's descriptor is readable
//!   exactly when [`Ring::poll`] has something, or when it has not been called until it had nothing more.
//! - Dropped, it cancels and waits, for a bounded time; buffers that the kernel still has then are leaked, never freed.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;

use crate::Completion;
use crate::direct::{Body, Step, Transfer, credit, next_run};

/// The user data of a cancellation, which is in no slot.
const CANCEL: u64 = u64::MAX;
/// How long a drop waits for the kernel to let go of buffers.
const DROP_WAIT_MAX: Duration = Duration::from_secs(2);
/// How often a full or interrupted submission is repeated at once.
const SUBMIT_TRIES_MAX: u32 = 100;

/// What the kernel works on.
struct Run {
    /// At least one.
    transfers: Vec<Transfer>,
    /// Where the bytes of several are: the kernel may look at this until it has ended.
    pieces: Pieces,
}

struct Pieces(Vec<libc::iovec>);

// SAFETY: the addresses are those of buffers that go along with them, in the same run; only the kernel follows them.
unsafe impl Send for Pieces {}

impl Run {
    fn entry(&mut self, fd: types::Fd) -> squeue::Entry {
        match &mut self.transfers[..] {
            [transfer] => entry_of_one(fd, transfer),
            _ => self.entry_of_several(fd),
        }
    }

    fn entry_of_several(&mut self, fd: types::Fd) -> squeue::Entry {
        let pieces = &mut self.pieces.0;
        pieces.extend(self.transfers.iter_mut().map(|transfer| {
            let bytes = match &mut transfer.body {
                Body::Read(buf) => buf.bytes_mut()[..transfer.len].as_mut_ptr(),
                // Only read from: the request is a write.
                Body::Write { data, .. } => data.bytes()[..transfer.len].as_ptr().cast_mut(),
            };
            libc::iovec {
                iov_base: bytes.cast(),
                iov_len: transfer.len,
            }
        }));
        let (pieces, count) = (pieces.as_ptr(), pieces.len() as u32);
        let first = &self.transfers[0];
        match first.body {
            Body::Read(_) => opcode::Readv::new(fd, pieces, count)
                .offset(first.offset)
                .build(),
            Body::Write { durable, .. } => opcode::Writev::new(fd, pieces, count)
                .offset(first.offset)
                .rw_flags(write_flags(durable))
                .build(),
        }
    }
}

fn write_flags(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

fn entry_of_one(fd: types::Fd, transfer: &mut Transfer) -> squeue::Entry {
    let at = transfer.offset + transfer.done as u64;
    let left = transfer.len.saturating_sub(transfer.done) as u32;
    match (&transfer.refused, &mut transfer.body) {
        (Some(_), _) => opcode::Nop::new().build(),
        (None, Body::Read(buf)) => {
            let into = buf.bytes_mut()[transfer.done..].as_mut_ptr();
            opcode::Read::new(fd, into, left).offset(at).build()
        }
        (None, Body::Write { data, durable }) => {
            let from = data.bytes()[transfer.done..].as_ptr();
            opcode::Write::new(fd, from, left)
                .offset(at)
                .rw_flags(write_flags(*durable))
                .build()
        }
    }
}

pub(crate) struct Ring {
    ring: IoUring,
    file: Arc<File>,
    slots: Vec<Option<Run>>,
    free: Vec<usize>,
    /// In order: not kicked yet, or beyond the depth.
    queue: VecDeque<Transfer>,
    /// The rest of a run that has ended.
    done: VecDeque<Completion>,
    /// Entries in the submission queue that the kernel has not been told of.
    unsubmitted: bool,
}

impl Ring {
    pub(crate) const DEPTH: usize = 64;

    /// An error here means that the kernel, or a filter in front of it, refuses io_uring.
    pub(crate) fn new(file: Arc<File>) -> io::Result<Self> {
        let entries = Self::DEPTH as u32 * 2;
        // A completion does not interrupt the engine's thread on another processor: it is seen at the next system
        // call, or wakes the thread if that sleeps. Kernels before 5.19 know no choice.
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(entries)
            .or_else(|_| IoUring::new(entries))?;
        Ok(Self {
            ring,
            file,
            slots: (0..Self::DEPTH).map(|_| None).collect(),
            free: (0..Self::DEPTH).rev().collect(),
            queue: VecDeque::new(),
            done: VecDeque::new(),
            unsubmitted: false,
        })
    }

    pub(crate) fn start(&mut self, transfer: Transfer) {
        self.queue.push_back(transfer);
    }

    pub(crate) fn kick(&mut self) {
        self.fill();
        if !self.unsubmitted {
            return;
        }
        for _ in 0..SUBMIT_TRIES_MAX {
            match self.ring.submit() {
                Ok(_) => {
                    if self.ring.submission().is_empty() {
                        self.unsubmitted = false;
                        return;
                    }
                }
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR | Errno::AGAIN | Errno::BUSY) => std::thread::yield_now(),
                    _ => {
                        tracing::warn!(%error, "io_uring takes no submissions; trying again later");
                        return;
                    }
                },
            }
        }
    }

    /// As [`Ring::kick`], and waits for a completion in the same system call, for so long at the most.
    pub(crate) fn kick_and_wait(&mut self, longest: Duration) {
        self.fill();
        if self.unsubmitted && self.ring.params().is_feature_ext_arg() {
            let longest = types::Timespec::from(longest);
            let args = types::SubmitArgs::new().timespec(&longest);
            // However it ends: what it has not taken is left in the queue.
            let _ = self.ring.submitter().submit_with_args(1, &args);
            self.unsubmitted = !self.ring.submission().is_empty();
        }
        self.kick();
    }

    pub(crate) fn poll(&mut self) -> Option<Completion> {
        let mut asked = false;
        loop {
            if let Some(done) = self.done.pop_front() {
                return Some(done);
            }
            let Some(entry) = self.ring.completion().next() else {
                self.kick();
                // What has ended may wait for a system call of the thread that began it.
                if asked || !self.ring.submission().taskrun() || self.ring.submit().is_err() {
                    return None;
                }
                asked = true;
                continue;
            };
            if entry.user_data() == CANCEL {
                continue;
            }
            let slot = entry.user_data() as usize;
            let Some(run) = self.slots.get_mut(slot).and_then(Option::take) else {
                continue;
            };
            self.free.push(slot);
            self.end(run.transfers, moved(entry.result()));
            self.fill();
        }
    }

    /// The kernel has moved so many bytes of a run.
    fn end(&mut self, mut run: Vec<Transfer>, moved: Result<usize, Errno>) {
        if run.len() > 1 {
            // Whose error it was is found out by trying each.
            credit(&mut run, moved.unwrap_or(0));
            // The first of those that are tried again is the first of all.
            for transfer in run.into_iter().rev() {
                match transfer.is_done() {
                    true => self.done.push_front(transfer.complete(Ok(()))),
                    false => self.queue.push_front(transfer),
                }
            }
            return;
        }
        for mut transfer in run {
            let step = match transfer.refused.take() {
                Some(error) => Step::Finished(Err(error)),
                None => transfer.advance(moved),
            };
            match step {
                Step::Again => self.queue.push_front(transfer),
                Step::Finished(result) => self.done.push_back(transfer.complete(result)),
            }
        }
    }

    /// Puts what waits into free slots.
    fn fill(&mut self) {
        while !self.queue.is_empty() {
            let Some(slot) = self.free.pop() else { return };
            let run = next_run(&mut self.queue);
            self.place(slot, run);
        }
    }

    /// Puts a run into a free slot and its entry into the submission queue.
    fn place(&mut self, slot: usize, transfers: Vec<Transfer>) {
        let mut run = Run {
            transfers,
            pieces: Pieces(Vec::new()),
        };
        let entry = run.entry(types::Fd(self.file.as_raw_fd()));
        // The buffers' bytes and the pieces are on the heap: moving the run into its slot does not move them.
        self.slots[slot] = Some(run);
        self.push(&entry.user_data(slot as u64));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        self.unsubmitted = true;
        // SAFETY: the entry's descriptor is open as long as `self.file`, which outlives the ring's use of
        // it, and its buffers, with the pieces that say where they are, lie in `self.slots` (at least as many bytes from
        // each pointer as the entry says, checked by the slicing), where nobody touches or frees them until the entry's
        // completion was seen: `poll` takes a run out only then, and `drop` leaks what never completed. A buffer being written from is
        // shared by `Arc`, hence never changed.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            // At most DEPTH runs and one cancellation are ever in a queue of twice that.
            self.kick();
        }
    }
}

fn moved(result: i32) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| Errno::from_raw_os_error(result.saturating_neg()))
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor stays open as long as `self.ring`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.queue.clear();
        if self.free.len() == Self::DEPTH {
            return;
        }
        self.kick();
        let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
        self.push(&cancel.user_data(CANCEL));
        let until = Instant::now() + DROP_WAIT_MAX;
        loop {
            self.kick();
            while let Some(entry) = self.ring.completion().next() {
                if let Some(slot) = self.slots.get_mut(entry.user_data() as usize) {
                    *slot = None;
                }
            }
            let busy = self.slots.iter().filter(|slot| slot.is_some()).count();
            if busy == 0 {
                return;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(
                    transfers = busy,
                    "the storage does not answer: leaving its buffers behind"
                );
                // The kernel may still write into these: they are never freed.
                self.slots.drain(..).flatten().for_each(std::mem::forget);
                return;
            }
            let wait = types::Timespec::from(left.min(Duration::from_millis(200)));
            let args = types::SubmitArgs::new().timespec(&wait);
            // A time-out or an interruption only leads to another round.
            if self.ring.submitter().submit_with_args(1, &args).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::direct::tests::{run_of, whole};

    fn ring() -> Option<Ring> {
        let file = tempfile::tempfile().expect("a file");
        // Filters in front of some kernels refuse io_uring.
        Ring::new(Arc::new(file)).ok()
    }

    /// What was taken for done, and what waits to be tried again, by their numbers.
    fn after(moved: Result<usize, Errno>) -> Option<(Vec<u64>, Vec<u64>)> {
        let mut ring = ring()?;
        ring.end(run_of(&[2, 3, 1]), moved);
        let done = std::iter::from_fn(|| ring.done.pop_front());
        let done = done.map(|done| {
            assert!(done.result.is_ok());
            done.id.0
        });
        let done = done.collect();
        let again = ring.queue.iter().map(|transfer| transfer.id.0).collect();
        Some((done, again))
    }

    #[test]
    fn of_a_run_only_what_was_moved_whole_is_done() {
        let cases = [
            (Ok(whole(6)), vec![0, 1, 2], vec![]),
            (Ok(whole(6) - 1), vec![0, 1], vec![2]),
            (Ok(whole(5)), vec![0, 1], vec![2]),
            (Ok(whole(4)), vec![0], vec![1, 2]),
            (Ok(whole(2) - 512), vec![], vec![0, 1, 2]),
            (Ok(0), vec![], vec![0, 1, 2]),
            (Err(Errno::IO), vec![], vec![0, 1, 2]),
            (Err(Errno::CANCELED), vec![], vec![0, 1, 2]),
        ];
        for (moved, done, again) in cases {
            let Some(found) = after(moved) else { return };
            assert_eq!(found, (done, again), "{moved:?}");
        }
    }
}

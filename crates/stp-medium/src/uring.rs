//! Transfers by io_uring.
//!
//! - At most [`Ring::DEPTH`] transfers are with the kernel; the completion queue, twice as long, never overflows.
//! - A transfer in a slot is not touched between its submission and its completion: the kernel owns its buffer.
//! - Every completion passes through the ring, refused operations too: the ring's descriptor is readable
//!   exactly when [`Ring::poll`] has something.
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
use crate::direct::{Body, Step, Transfer};

/// The user data of a cancellation, which is in no slot.
const CANCEL: u64 = u64::MAX;
/// How long a drop waits for the kernel to let go of buffers.
const DROP_WAIT_MAX: Duration = Duration::from_secs(2);
/// How often a full or interrupted submission is repeated at once.
const SUBMIT_TRIES_MAX: u32 = 100;

pub(crate) struct Ring {
    ring: IoUring,
    file: Arc<File>,
    slots: Vec<Option<Transfer>>,
    free: Vec<usize>,
    /// Beyond the depth, in order.
    queue: VecDeque<Transfer>,
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
            unsubmitted: false,
        })
    }

    pub(crate) fn start(&mut self, transfer: Transfer) {
        match self.free.pop() {
            Some(slot) if self.queue.is_empty() => self.place(slot, transfer),
            slot => {
                self.free.extend(slot);
                self.queue.push_back(transfer);
            }
        }
    }

    pub(crate) fn kick(&mut self) {
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
            let Some(mut transfer) = self.slots.get_mut(slot).and_then(Option::take) else {
                continue;
            };
            let step = match transfer.refused.take() {
                Some(error) => Step::Finished(Err(error)),
                None => transfer.advance(moved(entry.result())),
            };
            match step {
                Step::Again => self.place(slot, transfer),
                Step::Finished(result) => {
                    self.free.push(slot);
                    self.refill();
                    return Some(transfer.complete(result));
                }
            }
        }
    }

    fn refill(&mut self) {
        while !self.queue.is_empty() {
            let Some(slot) = self.free.pop() else { return };
            if let Some(transfer) = self.queue.pop_front() {
                self.place(slot, transfer);
            }
        }
    }

    /// Puts a transfer into a free slot and its entry into the submission queue.
    fn place(&mut self, slot: usize, mut transfer: Transfer) {
        let fd = types::Fd(self.file.as_raw_fd());
        let at = transfer.offset + transfer.done as u64;
        let left = transfer.len.saturating_sub(transfer.done) as u32;
        let entry = match (&transfer.refused, &mut transfer.body) {
            (Some(_), _) => opcode::Nop::new().build(),
            (None, Body::Read(buf)) => {
                let into = buf.bytes_mut()[transfer.done..].as_mut_ptr();
                opcode::Read::new(fd, into, left).offset(at).build()
            }
            (None, Body::Write { data, durable }) => {
                let from = data.bytes()[transfer.done..].as_ptr();
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(fd, from, left)
                    .offset(at)
                    .rw_flags(flags)
                    .build()
            }
        };
        // The buffer's bytes are on the heap: moving the transfer into its slot does not move them.
        self.slots[slot] = Some(transfer);
        self.push(&entry.user_data(slot as u64));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        self.unsubmitted = true;
        // SAFETY: the entry's descriptor is open as long as `self.file`, which outlives the ring's use of
        // it, and its buffer lies in `self.slots` (at least `left` bytes from the pointer, checked by the
        // slicing), where nobody touches or frees it until the entry's completion was seen: `poll` takes a
        // transfer out only then, and `drop` leaks what never completed. A buffer being written from is
        // shared by `Arc`, hence never changed.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            // At most DEPTH transfers and one cancellation are ever in a queue of twice that.
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

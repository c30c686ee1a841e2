//! Transfers by a few threads: where io_uring is refused, and where I/O has to be buffered.
//!
//! - A transfer belongs to exactly one of: the queue of jobs, a thread, the queue of completions.
//! - The event descriptor is readable exactly when a completion waits.
//! - Dropped, it forgets what has not begun and waits, for a bounded time, for what has; a thread that
//!   hangs in the storage keeps its own buffer.
//! - Its threads take no signals: those are the program's.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::Advice;

use crate::Completion;
use crate::direct::{Body, Transfer, pass};
use crate::sys;

/// How long a drop waits for threads that are in the storage.
const DROP_WAIT_MAX: Duration = Duration::from_secs(2);

/// How the bytes pass the page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Passing {
    /// Beside it: the file was opened with `O_DIRECT`.
    Direct,
    /// Through it: flushed after each write, dropped before each read.
    Buffered,
}

pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    file: Arc<File>,
    passing: Passing,
    state: Mutex<State>,
    /// A job came, the pool closes, or (closing) a thread became idle.
    changed: Condvar,
    event: OwnedFd,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Transfer>,
    done: VecDeque<Completion>,
    busy: usize,
    closing: bool,
}

impl Pool {
    pub(crate) const THREADS: usize = 4;

    pub(crate) fn new(file: Arc<File>, passing: Passing) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            file,
            passing,
            state: Mutex::default(),
            changed: Condvar::new(),
            event,
        });
        // Made before the first thread: an early return closes those that did start.
        let pool = Self { shared };
        let unblocked = sys::block_signals();
        let started = (0..Self::THREADS).try_for_each(|_| {
            let shared = Arc::clone(&pool.shared);
            std::thread::Builder::new()
                .name("stp-io".into())
                .stack_size(128 << 10)
                .spawn(move || shared.work())
                .map(drop)
        });
        drop(unblocked);
        started.map(|()| pool)
    }

    pub(crate) fn passing(&self) -> Passing {
        self.shared.passing
    }

    pub(crate) fn start(&mut self, mut transfer: Transfer) {
        let mut state = self.shared.lock();
        match transfer.refused.take() {
            Some(error) => {
                let completion = transfer.complete(Err(error));
                self.shared.finish(&mut state, completion);
            }
            None => {
                state.jobs.push_back(transfer);
                self.shared.changed.notify_one();
            }
        }
    }

    pub(crate) fn poll(&mut self) -> Option<Completion> {
        let mut state = self.shared.lock();
        let completion = state.done.pop_front()?;
        if state.done.is_empty() {
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.shared.event, &mut count);
        }
        Some(completion)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, state: &mut State, completion: Completion) {
        state.done.push_back(completion);
        // Fails only if 2^64 - 2 completions wait.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if state.closing {
                self.changed.notify_all();
                return;
            }
            let Some(transfer) = state.jobs.pop_front() else {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.busy += 1;
            drop(state);
            let completion = self.transfer(transfer);
            state = self.lock();
            state.busy -= 1;
            self.finish(&mut state, completion);
        }
    }

    fn transfer(&self, mut transfer: Transfer) -> Completion {
        let result = match self.passing {
            Passing::Direct => pass(&self.file, &mut transfer),
            Passing::Buffered => self.pass_buffered(&mut transfer),
        };
        transfer.complete(result)
    }

    /// A fresh open file makes network and FUSE clients look at the storage again; dropping the range
    /// covers clients that keep pages over an open.
    fn pass_buffered(&self, transfer: &mut Transfer) -> io::Result<()> {
        let (offset, len) = (
            transfer.offset,
            std::num::NonZeroU64::new(transfer.len as u64),
        );
        if let Body::Read(_) = transfer.body {
            let fresh = sys::reopen_read_only(&self.file);
            let file = fresh.as_ref().unwrap_or(&self.file);
            let _ = rustix::fs::fadvise(file, offset, len, Advice::DontNeed);
            pass(file, transfer)
        } else {
            pass(&self.file, transfer)?;
            rustix::fs::fdatasync(&self.file)?;
            let _ = rustix::fs::fadvise(&self.file, offset, len, Advice::DontNeed);
            Ok(())
        }
    }
}

impl AsFd for Pool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        state.jobs.clear();
        self.shared.changed.notify_all();
        let (state, waited) = self
            .shared
            .changed
            .wait_timeout_while(state, DROP_WAIT_MAX, |state| state.busy > 0)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            tracing::warn!(
                transfers = state.busy,
                "the storage does not answer: leaving threads behind"
            );
        }
    }
}

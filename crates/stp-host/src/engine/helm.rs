//! The helm: which thread drives the engine.
//!
//! - The engine's own thread does, unless a program's thread *lends itself*: one that waits for a stream has
//!   nothing better to do, and what it brings about itself reaches it without waking anybody up. Where a wake-up
//!   costs as much as half a disk read, that is most of a round trip beyond the storage's own part.
//! - At most one thread drives at a time: the one that holds `core`. A loan is short ([`LOAN_MAX`]), and the
//!   engine's thread stays away for [`AWAY_MAX`] after it, in case the program comes back at once. So everything
//!   else of the node (other streams, heartbeats) waits for a program that does not by that much at the most.
//! - A program's thread makes no io_uring call for the engine: its transfers are inline. What moves in bulk is
//!   better off with several transfers side by side, so a loan ends with the first large one.
//! - What the kernel reports once is never lost: who collects it but does not drive leaves it in `noted`.
//! - A panic under a program's thread ends the engine with an error for all callers, as one under its own does.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stp_core::Time;
use stp_medium::Medium;

use super::clock::MonotonicClock;
use super::driver::{Driver, Over};
use super::error::Stopped;
use super::handle::Shared;
use super::sockets::HostSockets;
use super::wait::{Noted, Wait, collect};
use crate::rendezvous::FileLock;

/// How long a program's thread drives without getting what it waits for: about as long as links are looked at
/// without a nap.
const LOAN_MAX: Duration = Duration::from_millis(2);
/// How long the engine's thread stays away from a node whose program has just got what it waited for.
const AWAY_MAX: Duration = Duration::from_millis(1);
/// No loans for so long after bytes moved in bulk.
const BULK_REST: Duration = Duration::from_millis(10);
/// Writes of more bytes than this are the engine's thread's to send.
const NUDGE_BYTES_MAX: usize = 16 << 10;
/// Streams of a node beyond which its thread does not stay away: the others would wait for it.
const STREAMS_MAX: u32 = 4;

pub(super) type HostDriver = Driver<dyn Medium, MonotonicClock, HostSockets>;

/// What it takes to drive; dropped from top to bottom.
pub(super) struct Core {
    pub(super) driver: HostDriver,
    pub(super) wait: Wait,
    /// Let go of only when nothing writes into the seat any more.
    pub(super) _lock: FileLock,
}

/// What a turn left to be done.
struct Turn {
    stopped: Option<Stopped>,
    /// There is more to do at once.
    more: bool,
    /// Else this is when, if nothing happens before.
    wake_at: Option<Time>,
    bulk: bool,
}

impl Core {
    /// One step, with what happened since the last one; it ends early if it brought what `ready` waits for.
    fn turn(&mut self, shared: &Shared, ready: &mut dyn FnMut() -> bool) -> Turn {
        for command in shared.take_commands() {
            self.driver.handle_command(command);
        }
        shared.helm.take_notes(|noted| self.note(noted));
        let step = self.driver.step_unless(ready);
        if step.idle_look {
            std::thread::yield_now();
        }
        Turn {
            stopped: step.over.map(|over| match over {
                Over::Left => Stopped::Left,
                Over::Fenced => Stopped::Fenced {
                    volume: shared.volume.label.clone(),
                    seat: shared.seat,
                },
            }),
            more: step.more,
            wake_at: step.wake_at,
            bulk: step.bulk,
        }
    }

    fn note(&mut self, noted: Noted) {
        self.wait.note(self.driver.local_mut(), noted);
    }
}

/// Who drives, and what it takes.
pub(super) struct Helm {
    core: Mutex<Option<Core>>,
    /// Everything that wakes the engine.
    epoll: Arc<OwnedFd>,
    /// Collected by a thread that did not drive.
    noted: Mutex<Vec<Noted>>,
    has_notes: AtomicBool,
    origin: Instant,
    /// A program's thread drives.
    lent: AtomicBool,
    /// Until then the engine's thread stays away, in ns from the origin.
    away_until: AtomicU64,
    /// Until then there are no loans.
    rest_until: AtomicU64,
    /// The program has written something small since it last got anything: it waits for an answer.
    wrote: AtomicBool,
    /// The engine's thread waits at [`Helm::await_turn`].
    parked: Mutex<bool>,
    called_back: Condvar,
    is_parked: AtomicBool,
    /// What a panic under a program's thread said.
    panicked: Mutex<Option<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Helm {
    pub(super) fn new(epoll: Arc<OwnedFd>) -> Self {
        Self {
            core: Mutex::new(None),
            epoll,
            noted: Mutex::default(),
            has_notes: AtomicBool::new(false),
            origin: Instant::now(),
            lent: AtomicBool::new(false),
            away_until: AtomicU64::new(0),
            rest_until: AtomicU64::new(0),
            wrote: AtomicBool::new(true),
            parked: Mutex::new(false),
            called_back: Condvar::new(),
            is_parked: AtomicBool::new(false),
            panicked: Mutex::default(),
        }
    }

    /// Hands over what there is to drive.
    pub(super) fn begin(&self, core: Core) {
        *lock(&self.core) = Some(core);
    }

    /// Takes it away for good.
    pub(super) fn end(&self) -> Option<Core> {
        lock(&self.core).take()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn in_future(&self, delay: Duration) -> u64 {
        self.now() + delay.as_nanos() as u64
    }

    fn is_away(&self) -> bool {
        self.now() < self.away_until.load(Ordering::Acquire)
    }

    fn leave_notes(&self, events: &[Noted]) {
        if !events.is_empty() {
            lock(&self.noted).extend_from_slice(events);
            self.has_notes.store(true, Ordering::Release);
        }
    }

    fn take_notes(&self, note: impl FnMut(Noted)) {
        if self.has_notes.swap(false, Ordering::AcqRel) {
            let notes = std::mem::take(&mut *lock(&self.noted));
            notes.into_iter().for_each(note);
        }
    }

    // --- the engine's own thread

    /// Drives to the end.
    pub(super) fn drive(&self, shared: &Shared) -> Stopped {
        let mut events = Vec::new();
        loop {
            self.await_turn();
            let mut guard = lock(&self.core);
            if let Some(text) = lock(&self.panicked).take() {
                return Stopped::Panicked(text);
            }
            let Some(core) = guard.as_mut() else {
                return Stopped::Left;
            };
            core.driver.medium_mut().set_inline(false);
            let turn = core.turn(shared, &mut || false);
            if let Some(stopped) = turn.stopped {
                return stopped;
            }
            let now = core.driver.now();
            let waits = match turn.more {
                true => Ok(false),
                false => core.wait.prepare(now, turn.wake_at),
            };
            let collected = match waits {
                Ok(true) => {
                    // Whoever lends itself meanwhile can drive.
                    drop(guard);
                    let collected = collect(&self.epoll, None, &mut events);
                    self.leave_notes(&events);
                    collected
                }
                Ok(false) => {
                    let collected = collect(&self.epoll, Some(Duration::ZERO), &mut events);
                    events.iter().for_each(|noted| core.note(*noted));
                    collected
                }
                Err(error) => Err(error),
            };
            events.clear();
            if let Err(error) = collected {
                return Stopped::Failed(format!("it cannot wait: {error}"));
            }
        }
    }

    /// Stays away while a program's thread drives, and for a moment after that.
    fn await_turn(&self) {
        if !self.lent.load(Ordering::Acquire) && !self.is_away() {
            return;
        }
        let mut parked = lock(&self.parked);
        *parked = true;
        self.is_parked.store(true, Ordering::SeqCst);
        while *parked && (self.lent.load(Ordering::SeqCst) || self.is_away()) {
            parked = self
                .called_back
                .wait_timeout(parked, AWAY_MAX)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        *parked = false;
        self.is_parked.store(false, Ordering::SeqCst);
    }

    /// The engine's thread is wanted now.
    pub(super) fn call_back(&self) {
        self.away_until.store(0, Ordering::SeqCst);
        if self.is_parked.load(Ordering::SeqCst) && !self.lent.load(Ordering::SeqCst) {
            *lock(&self.parked) = false;
            self.called_back.notify_one();
        }
    }

    // --- a program's thread

    /// Drives until `ready`, for a moment at the most. Nothing if another thread lends itself already, if bytes
    /// move in bulk, or if the program only receives: then the engine's thread reads ahead of it.
    pub(super) fn lend(&self, shared: &Shared, ready: &mut dyn FnMut() -> bool) {
        if !self.wrote.load(Ordering::Relaxed) {
            if self.is_away() {
                self.call_back();
            }
            return;
        }
        if self.now() < self.rest_until.load(Ordering::Relaxed)
            || self.lent.swap(true, Ordering::SeqCst)
        {
            return;
        }
        let mut got = false;
        self.guarded(|| {
            got = self.steer(shared, LOAN_MAX, ready);
        });
        if got {
            self.wrote.store(false, Ordering::Relaxed);
        }
        self.hand_back(shared, got);
    }

    /// The program has just sent so many bytes: if the engine's thread is away, they are taken now.
    pub(super) fn nudge(&self, shared: &Shared, bytes: usize) {
        let small = bytes <= NUDGE_BYTES_MAX;
        // A second write before an answer: the program does not wait for one.
        let again = self.wrote.load(Ordering::Relaxed);
        if again != small {
            self.wrote.store(small, Ordering::Relaxed);
        }
        if !self.is_away() {
            return;
        }
        if again || !small {
            self.call_back();
            return;
        }
        if self.lent.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut got = false;
        self.guarded(|| {
            got = self.steer(shared, Duration::ZERO, &mut || true);
        });
        self.hand_back(shared, got);
    }

    /// Runs the engine in a stranger's thread, which its panics must not reach.
    fn guarded(&self, work: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            *lock(&self.panicked) = Some(panic_text(&*panic));
            self.away_until.store(0, Ordering::SeqCst);
        }
    }

    /// Ends a loan. If the program will `come_again`, the engine's thread stays away for a while.
    fn hand_back(&self, shared: &Shared, come_again: bool) {
        let stays_away = come_again && lock(&self.panicked).is_none();
        if stays_away {
            let until = self.in_future(AWAY_MAX);
            self.away_until.store(until, Ordering::SeqCst);
        }
        self.lent.store(false, Ordering::SeqCst);
        if !stays_away {
            self.call_back();
        }
        // Its timer may have gone off unseen: from where it waits now nothing else would get it away.
        if !self.is_parked.load(Ordering::SeqCst) {
            shared.kick();
        }
    }

    /// Drives until `ready` or until the time is over, at least one step. Whether it was ready, and the program
    /// is the only one that matters.
    fn steer(&self, shared: &Shared, time: Duration, ready: &mut dyn FnMut() -> bool) -> bool {
        let mut guard = lock(&self.core);
        let Some(core) = guard.as_mut() else {
            return false;
        };
        core.driver.medium_mut().set_inline(true);
        let until = core.driver.now() + time;
        let mut events = Vec::new();
        let mut wait = Duration::ZERO;
        loop {
            if collect(&self.epoll, Some(wait), &mut events).is_err() {
                return false;
            }
            events.drain(..).for_each(|noted| core.note(noted));
            let mut is_ready = false;
            let turn = core.turn(shared, &mut || {
                is_ready = ready();
                is_ready
            });
            // What ends the engine, its own thread finds out again and reports.
            if turn.stopped.is_some() {
                return false;
            }
            if is_ready || ready() {
                return core.driver.node().stats().streams <= STREAMS_MAX;
            }
            // A medium without a choice moves as well by this thread as by any.
            if turn.bulk && core.driver.medium().wait_fd().is_some() {
                let rest = self.in_future(BULK_REST);
                self.rest_until.store(rest, Ordering::Relaxed);
                self.wrote.store(false, Ordering::Relaxed);
                return false;
            }
            let now = core.driver.now();
            if now >= until {
                return false;
            }
            wait = match turn.more {
                true => Duration::ZERO,
                false => turn.wake_at.map_or(until, |at| at.min(until)).since(now),
            };
        }
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

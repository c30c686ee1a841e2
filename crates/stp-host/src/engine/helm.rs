//! The helm: which thread drives the engine.
//!
//! - The engine's own thread does, unless a program's thread *lends itself*: one that waits for a stream has
//!   nothing better to do, and what it brings about itself reaches it without waking anybody up. Where a wake-up
//!   costs as much as half a disk read, that is most of a round trip beyond the storage's own part.
//! - At most one thread drives at a time: the one that holds `core`. A loan is short ([`LOAN_MAX`]), and the
//!   engine's thread stays away for [`AWAY_MAX`] after it, in case the program comes back at once. So everything
//!   else of the node (other streams, heartbeats) waits for a program that does not by that much at the most.
//! - A program's thread that reads, writes or closes by the lane comes in for that only, and one that connects for its
//!   answer: it gives up at once while another program's thread drives, which may be long at the storage, and soon if the
//!   engine's does not make room.
//! - A program's thread makes no io_uring call for the engine: its transfers are inline. What moves in bulk is
//!   better off with several transfers side by side, so a loan ends when that begins.
//! - What the kernel reports once is never lost: who collects it but does not drive leaves it in `noted`.
//! - A panic under a program's thread ends the engine with an error for all callers, as one under its own does.

mod visits;

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use stp_core::Time;
use stp_medium::Medium;

use super::clock::{Clock, MonotonicClock};
use super::driver::{Driver, Over};
use super::error::Stopped;
use super::handle::Shared;
use super::mailbox::Mailbox;
use super::sockets::HostSockets;
use super::verdict::Ending;
use super::wait::{Noted, collect, note};
use crate::control::StreamToken;
use crate::control::lane::{Close, Got, Put, Write};
use crate::rendezvous::FileLock;

/// How long a program's thread drives without getting what it waits for: about as long as links are looked at
/// without a nap.
const LOAN_MAX: Duration = Duration::from_millis(2);
/// How long the engine's thread stays away from a node whose program has just got what it waited for.
const AWAY_MAX: Duration = Duration::from_millis(1);
/// By so much that may be less.
const AWAY_STEP_NS: u64 = 100_000;
/// No loans for so long after bytes moved in bulk.
const BULK_REST: Duration = Duration::from_millis(10);
/// Large transfers of one loan: a message's write, the look at the answer's head and what is behind that. With more
/// of them, bytes move in bulk.
const LARGE_MAX: usize = 3;
/// How often the way in is tried: at first without pause, then with one for whoever wants the processor.
const ENTRIES_MAX: usize = 264;
const ENTRIES_HASTY: usize = 200;
/// The same where a node has many streams: whoever drives has much to do.
const ENTRIES_CROWDED: usize = 20;
/// Looks that cost nothing but a copy, between two at what the kernel has to tell.
const LOOKS_AT_KERNEL: u32 = 16;
/// Such looks in vain, after which the processor is offered to others. Where there is one only, after each.
const LOOKS_IN_VAIN: u32 = 8;
/// How long the processor is away if it was given to a peer that then waits for this thread. Nobody who wants it is back at
/// once, and whoever has work of its own keeps it for longer.
const A_TURN: Range<Duration> = Duration::from_micros(2)..Duration::from_micros(100);
/// Looks at one word that make a set of them: about as dear as a whole step.
const WORDS_IN_A_ROW: u32 = 64;
/// Streams of a node beyond which its thread does not stay away: the others would wait for it.
const STREAMS_MAX: usize = 4;

pub(super) type HostDriver = Driver<dyn Medium, MonotonicClock, HostSockets>;
/// Whether a program's thread has what it waits for.
type Ready<'a> = &'a mut dyn FnMut(&mut HostDriver, Time) -> bool;

/// What it takes to drive; dropped from top to bottom.
pub(super) struct Core {
    pub(super) driver: HostDriver,
    /// Steps without a look at what the kernel has to tell.
    pub(super) blind: u32,
    /// Looks in vain since the processor was offered to others.
    pub(super) vain: u32,
    /// Offered last, the processor went to somebody who soon gave it back: most likely the peer, who waits likewise.
    pub(super) shares: bool,
    /// Let go of only when nothing writes into the seat any more.
    pub(super) _lock: FileLock,
}

impl Drop for Core {
    /// A process forked meanwhile has the volume open as well, and would keep the seat's lock there.
    fn drop(&mut self) {
        let node = self.driver.node();
        if !node.is_writing() {
            let seat = node.seat();
            self.driver.medium_mut().unlock_seat(seat);
        }
    }
}

/// What a turn left to be done.
struct Turn {
    stopped: Option<Stopped>,
    /// There is more to do at once.
    more: bool,
    /// Else this is when, if nothing happens before.
    wake_at: Option<Time>,
    large: usize,
}

impl Core {
    /// One step, with what happened since the last one; it ends early if it brought what `ready` waits for.
    fn turn(&mut self, shared: &Shared, ready: Ready<'_>) -> Turn {
        self.obey(shared);
        let local = self.driver.local_mut();
        let changes = local.changes();
        for (seen, noted) in shared.helm.noted.take() {
            note(local, noted, seen == changes);
        }
        for token in shared.helm.readers.take() {
            self.driver.reader_waits(token);
        }
        for close in shared.helm.closes.take() {
            self.driver.close(self.driver.now(), close);
        }
        let step = self.driver.step_unless(ready);
        if step.idle_look {
            self.look_in_vain(shared.helm.patience);
        }
        Turn {
            stopped: step.over.map(|over| match over {
                Over::Left => Stopped::Left,
                Over::Fenced => Stopped::Fenced {
                    volume: shared.volume.label.clone(),
                    seat: shared.seat,
                },
                Over::Reformatted => Stopped::Reformatted {
                    volume: shared.volume.label.clone(),
                },
            }),
            more: step.more,
            wake_at: step.wake_at,
            large: step.large,
        }
    }

    /// Does what handles have asked for.
    fn obey(&mut self, shared: &Shared) {
        for command in shared.take_commands() {
            self.driver.handle_command(command);
        }
    }

    fn look_in_vain(&mut self, patience: u32) {
        self.vain += 1;
        if self.vain >= patience || self.shares {
            self.vain = 0;
            let begun = self.driver.now();
            std::thread::yield_now();
            self.shares = A_TURN.contains(&self.driver.now().since(begun));
        }
    }

    fn note(&mut self, noted: Noted) {
        note(self.driver.local_mut(), noted, true);
    }

    /// Whether the program that drives is, as good as, the only one that matters.
    fn is_alone(&self) -> bool {
        self.driver.node().stream_count() <= STREAMS_MAX
    }

    /// Whether every thread moves as well as any, and what it moves is there at once.
    fn is_memory(&self) -> bool {
        self.driver.medium().wait_fd().is_none()
    }
}

/// Who drives, and what it takes.
pub(super) struct Helm {
    core: Mutex<Option<Core>>,
    /// Everything that wakes the engine.
    epoll: Arc<OwnedFd>,
    /// Collected by a thread that did not drive, after so many changes of the sockets.
    noted: Mailbox<(u64, Noted)>,
    /// Readers that went to the kernel without a word to the engine: another thread was driving.
    readers: Mailbox<StreamToken>,
    /// Streams that were closed meanwhile.
    closes: Mailbox<Close>,
    /// Program's threads that want in.
    wanted: AtomicU32,
    /// The engine's thread sleeps, or is about to: written under the lock.
    sleeps: AtomicBool,
    /// Looks in vain before the processor is offered to others.
    patience: u32,
    /// Words looked at in a row, hot; with that many sets of them in vain the processor is offered to others.
    looks: u32,
    clock: MonotonicClock,
    /// A program's thread drives.
    lent: AtomicBool,
    /// Until then the engine's thread stays away, in ns from the origin.
    away_until: AtomicU64,
    /// Until then there are no loans.
    rest_until: AtomicU64,
    /// The node has many streams: who does not get in soon is better off by the socket.
    crowded: AtomicBool,
    /// The program has written something small since it last got anything: it waits for an answer.
    wrote: AtomicBool,
    /// The engine's thread waits at [`Helm::await_turn`].
    parked: Mutex<bool>,
    called_back: Condvar,
    is_parked: AtomicBool,
    /// What a panic under a program's thread said, and whether there is something.
    panicked: Mutex<Option<String>>,
    has_panicked: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Helm {
    pub(super) fn new(epoll: Arc<OwnedFd>, clock: MonotonicClock) -> Self {
        let alone = !std::thread::available_parallelism().is_ok_and(|count| count.get() > 1);
        Self {
            core: Mutex::new(None),
            epoll,
            noted: Mailbox::new(),
            readers: Mailbox::new(),
            closes: Mailbox::new(),
            wanted: AtomicU32::new(0),
            sleeps: AtomicBool::new(false),
            patience: if alone { 1 } else { LOOKS_IN_VAIN },
            looks: if alone { 1 } else { WORDS_IN_A_ROW },
            clock,
            lent: AtomicBool::new(false),
            away_until: AtomicU64::new(0),
            rest_until: AtomicU64::new(0),
            crowded: AtomicBool::new(false),
            wrote: AtomicBool::new(true),
            parked: Mutex::new(false),
            called_back: Condvar::new(),
            is_parked: AtomicBool::new(false),
            panicked: Mutex::default(),
            has_panicked: AtomicBool::new(false),
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
        self.clock.now().0
    }

    fn in_future(&self, delay: Duration) -> u64 {
        self.now() + delay.as_nanos() as u64
    }

    fn is_away(&self) -> bool {
        self.now() < self.away_until.load(Ordering::Acquire)
    }

    // --- the engine's own thread

    /// Drives to the end.
    pub(super) fn drive(&self, shared: &Shared) -> Stopped {
        let mut events = Vec::new();
        loop {
            self.await_turn();
            if self.wanted.load(Ordering::Relaxed) > 0 && !self.crowded.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            let mut guard = lock(&self.core);
            if let Some(text) = lock(&self.panicked).take() {
                return Stopped::Panicked(text);
            }
            let Some(core) = guard.as_mut() else {
                return Stopped::Left;
            };
            core.driver.medium_mut().set_inline(false);
            let turn = core.turn(shared, &mut |_, _| false);
            self.crowded.store(!core.is_alone(), Ordering::Relaxed);
            if let Some(stopped) = turn.stopped {
                return stopped;
            }
            let now = core.driver.now();
            let timeout = match turn.more {
                true => Some(Duration::ZERO),
                false => turn.wake_at.map(|at| at.since(now)),
            };
            let collected = if timeout == Some(Duration::ZERO) {
                let collected = collect(&self.epoll, timeout, &mut events);
                events.iter().for_each(|noted| core.note(*noted));
                collected
            } else {
                // Whoever lends itself meanwhile can drive.
                self.sleeps.store(true, Ordering::SeqCst);
                let changes = core.driver.local_mut().changes();
                drop(guard);
                let collected = collect(&self.epoll, timeout, &mut events);
                self.sleeps.store(false, Ordering::SeqCst);
                self.noted
                    .leave(events.drain(..).map(|noted| (changes, noted)));
                collected
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
        // Once for each time that it parks.
        if !self.lent.load(Ordering::SeqCst) && self.is_parked.swap(false, Ordering::SeqCst) {
            *lock(&self.parked) = false;
            self.called_back.notify_one();
        }
    }

    // --- a program's thread

    /// The engine, unless another program's thread drives it or the engine's does not make room.
    fn enter(&self) -> Option<MutexGuard<'_, Option<Core>>> {
        match self.core.try_lock() {
            Ok(guard) => Some(guard),
            Err(_) => self.enter_late(),
        }
    }

    /// As [`Helm::enter`], when it is held.
    #[cold]
    fn enter_late(&self) -> Option<MutexGuard<'_, Option<Core>>> {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        let mut entered = None;
        let entries = match self.crowded.load(Ordering::Relaxed) {
            true => ENTRIES_CROWDED,
            false => ENTRIES_MAX,
        };
        for entry in 0..entries {
            match self.core.try_lock() {
                Ok(guard) => entered = Some(guard),
                Err(TryLockError::Poisoned(error)) => entered = Some(error.into_inner()),
                Err(TryLockError::WouldBlock) if self.lent.load(Ordering::Relaxed) => {}
                Err(TryLockError::WouldBlock) => {
                    match entry < ENTRIES_HASTY {
                        true => std::hint::spin_loop(),
                        false => std::thread::yield_now(),
                    }
                    continue;
                }
            }
            break;
        }
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        entered
    }

    /// See [`Lane::put`](crate::control::lane::Lane::put).
    pub(super) fn put(&self, shared: &Shared, write: Write<'_>, waits: bool) -> Put {
        let Some(mut guard) = self.enter() else {
            return Put::Refused;
        };
        let Some(core) = guard.as_mut() else {
            return Put::Refused;
        };
        let mut put = Put::Refused;
        let mut lent = false;
        self.guarded(|| {
            let now = core.driver.now();
            let done = self.put_hot(core, now, write);
            if done == write.bytes.len() {
                put = Put::All;
                return;
            }
            let rest = write.after(done);
            let now = core.driver.now();
            put = core.driver.put(now, rest);
            if let Put::Full { taken, .. } = put
                && waits
                && core.is_memory()
                && !self.lent.swap(true, Ordering::SeqCst)
            {
                lent = true;
                put = self.await_room(shared, core, rest, taken);
            }
            self.put_slow(shared, core, write.token, put == Put::All);
            put = put.after(done, write.bell);
        });
        let alone = guard.as_ref().is_some_and(Core::is_alone);
        drop(guard);
        if lent {
            self.hand_back(shared, self.clock.now(), alone && put == Put::All);
        }
        put
    }

    /// As many of the bytes as have room, which go out by themselves if no step is due and nobody else matters.
    fn put_hot(&self, core: &mut Core, now: Time, write: Write<'_>) -> usize {
        if !core.is_alone() {
            return 0;
        }
        let done = core.driver.put_hot(now, write);
        if done > 0 {
            self.stay_away(now);
        }
        done
    }

    /// Drives for the sake of room for a write, of which `done` bytes were taken.
    fn await_room(
        &self,
        shared: &Shared,
        core: &mut Core,
        write: Write<'_>,
        mut done: usize,
    ) -> Put {
        let token = write.token;
        let now = core.driver.now();
        let mut go_on = |driver: &mut HostDriver, now| {
            while let Some(taken) = driver.put_some(now, write.after(done)) {
                done += taken;
                if taken > 0
                    && let Some(id) = driver.id_of(token).filter(|_| driver.is_hot(now))
                {
                    driver.write_hot(now, id);
                }
                if done == write.bytes.len() {
                    return true;
                }
                if taken == 0 {
                    return false;
                }
            }
            true
        };
        self.steer(shared, core, now, LOAN_MAX, Some(token), &mut go_on);
        if done == write.bytes.len() {
            return Put::All;
        }
        let now = core.driver.now();
        let put = core.driver.put(now, write.after(done));
        put.after(done, write.bell)
    }

    fn put_slow(&self, shared: &Shared, core: &mut Core, token: StreamToken, whole: bool) {
        // A second write before an answer: the program does not wait for one.
        let again = self.wrote.swap(whole, Ordering::Relaxed);
        if whole && !core.driver.is_step_due(token) {
            return;
        }
        let away = self.is_away();
        if whole && (core.is_memory() || (away && !again)) {
            self.send(shared, core);
            if away && core.is_alone() {
                return self.stay_away(core.driver.now());
            }
            if !away && !self.sleeps.load(Ordering::SeqCst) {
                return;
            }
        }
        self.rouse(shared);
    }

    /// One step by a program's thread, for the sake of what it has just written.
    fn send(&self, shared: &Shared, core: &mut Core) {
        // Another's loan may just be ending: then the mark is taken back by that thread alone.
        let mine = !self.lent.swap(true, Ordering::SeqCst);
        core.driver.medium_mut().set_inline(true);
        core.turn(shared, &mut |_, _| false);
        if mine {
            self.lent.store(false, Ordering::SeqCst);
        }
    }

    /// See [`Lane::take`](crate::control::lane::Lane::take).
    pub(super) fn take(
        &self,
        shared: &Shared,
        token: StreamToken,
        into: &mut [u8],
        waits: bool,
        socket: &mut dyn FnMut(&mut [u8]) -> bool,
    ) -> Got {
        let Some(mut guard) = self.enter() else {
            if waits {
                self.readers.leave([token]);
            }
            return Got::Nothing;
        };
        let Some(core) = guard.as_mut() else {
            return Got::Nothing;
        };
        let mut got = Got::Nothing;
        let mut lent = false;
        let mut taken_at = Time::ZERO;
        self.guarded(|| {
            let now = core.driver.now();
            got = core.driver.take_into(now, token, into, socket);
            if got != Got::Nothing || !waits {
                return self.settle(shared, core, now, token);
            }
            if !self.may_lend(core) || self.lent.swap(true, Ordering::SeqCst) {
                core.driver.reader_waits(token);
                return self.rouse_from_away();
            }
            lent = true;
            core.driver.reader_drives(token);
            self.steer(
                shared,
                core,
                now,
                LOAN_MAX,
                Some(token),
                &mut |driver, now| {
                    taken_at = now;
                    got = driver.take_into(now, token, into, socket);
                    got != Got::Nothing
                },
            );
            if got == Got::Nothing {
                return core.driver.reader_waits(token);
            }
            core.driver.reader_leaves(token);
            self.settle(shared, core, taken_at, token);
        });
        // Behind the end of its stream nothing brings it back.
        let ended = got == Got::Socket && shared.verdicts.ending(token) != Ending::Open;
        let alone = guard.as_ref().is_some_and(Core::is_alone);
        let come_again = got != Got::Nothing && !ended && alone;
        drop(guard);
        if lent {
            if come_again || ended {
                self.wrote.store(false, Ordering::Relaxed);
            }
            self.hand_back(shared, taken_at, come_again);
        }
        got
    }

    /// What taking has brought about: credit, acknowledgements, an end.
    fn settle(&self, shared: &Shared, core: &mut Core, now: Time, token: StreamToken) {
        if core.driver.settle_hot(now, token) {
            match core.is_memory() {
                true => self.send(shared, core),
                false => self.rouse(shared),
            }
        }
    }

    /// Whether a program's thread that waits may drive. Not if bytes move in bulk, or if the program only receives:
    /// then the engine's thread reads ahead of it. In memory nobody gets ahead.
    fn may_lend(&self, core: &Core) -> bool {
        core.is_memory() || (self.wrote.load(Ordering::Relaxed) && self.may_be_inline(core))
    }

    /// Whether no bytes move in bulk: those are better off with several transfers side by side.
    fn may_be_inline(&self, core: &Core) -> bool {
        core.is_memory() || self.now() >= self.rest_until.load(Ordering::Relaxed)
    }

    /// The engine's thread is wanted, wherever it is.
    fn rouse(&self, shared: &Shared) {
        self.rouse_from_away();
        // Once for each time that it sleeps.
        if self.sleeps.swap(false, Ordering::SeqCst) {
            shared.kick();
        }
    }

    fn rouse_from_away(&self) {
        if self.is_away() || self.is_parked.load(Ordering::SeqCst) {
            self.call_back();
        }
    }

    /// Runs the engine in a stranger's thread, which its panics must not reach.
    fn guarded(&self, work: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            *lock(&self.panicked) = Some(panic_text(&*panic));
            self.has_panicked.store(true, Ordering::SeqCst);
            self.away_until.store(0, Ordering::SeqCst);
        }
    }

    /// The engine's thread stays away for a while.
    fn stay_away(&self, now: Time) {
        let until = (now + AWAY_MAX).0;
        // A message need not say it again, which costs as much as the lock does.
        if until.saturating_sub(self.away_until.load(Ordering::Relaxed)) > AWAY_STEP_NS {
            self.away_until.store(until, Ordering::SeqCst);
        }
    }

    /// Ends a loan. If the program will `come_again`, the engine's thread stays away for a while.
    fn hand_back(&self, shared: &Shared, now: Time, come_again: bool) {
        let stays_away = come_again && !self.has_panicked.load(Ordering::SeqCst);
        if stays_away {
            self.stay_away(now);
        }
        self.lent.store(false, Ordering::SeqCst);
        let parked = self.is_parked.load(Ordering::SeqCst);
        if !stays_away {
            self.call_back();
        }
        // It waits for a deadline of before the loan: there may be an earlier one now.
        if !parked {
            shared.kick();
        }
    }

    /// Drives until `ready` or until the time is over, at least one step or, for a stream's link alone, a look.
    fn steer(
        &self,
        shared: &Shared,
        core: &mut Core,
        mut now: Time,
        time: Duration,
        token: Option<StreamToken>,
        ready: Ready<'_>,
    ) {
        core.driver.medium_mut().set_inline(true);
        let until = now + time;
        let mut events = Vec::new();
        let mut wait = Duration::ZERO;
        let mut large = 0;
        loop {
            if token.is_some_and(|token| self.steer_hot(core, now, token, ready)) {
                return;
            }
            core.blind += 1;
            if !wait.is_zero() || !core.is_memory() || core.blind >= LOOKS_AT_KERNEL {
                core.blind = 0;
                if collect(&self.epoll, Some(wait), &mut events).is_err() {
                    return;
                }
                events.drain(..).for_each(|noted| core.note(noted));
            }
            let mut is_ready = false;
            let turn = core.turn(shared, &mut |driver, now| {
                is_ready = ready(driver, now);
                is_ready
            });
            now = core.driver.now();
            // What ends the engine, its own thread finds out again and reports.
            if turn.stopped.is_some() || is_ready || ready(&mut core.driver, now) {
                return;
            }
            large += turn.large;
            if large > LARGE_MAX && !core.is_memory() {
                let rest = self.in_future(BULK_REST);
                self.rest_until.store(rest, Ordering::Relaxed);
                self.wrote.store(false, Ordering::Relaxed);
                return;
            }
            if now >= until {
                return;
            }
            wait = match turn.more {
                true => Duration::ZERO,
                false => turn.wake_at.map_or(until, |at| at.min(until)).since(now),
            };
        }
    }

    /// Looks for what a stream's peer writes until that makes `ready`; `false` when a whole step is due.
    fn steer_hot(
        &self,
        core: &mut Core,
        mut now: Time,
        token: StreamToken,
        ready: Ready<'_>,
    ) -> bool {
        let Some(id) = core.driver.id_of(token) else {
            return false;
        };
        if core.driver.begin_hot() {
            now = core.driver.now();
            core.driver.write_hot(now, id);
            // What it waits for may have been among it.
            if ready(&mut core.driver, now) {
                return true;
            }
        }
        while core.driver.is_hot(now) {
            let looks = if core.shares { 1 } else { self.looks };
            match core.driver.watch_hot(id, looks) {
                None => return false,
                Some(true) => {
                    core.vain = 0;
                    // It may take what is there itself.
                    if ready(&mut core.driver, now) {
                        return true;
                    }
                    core.driver.read_hot(now, id);
                    if ready(&mut core.driver, now) {
                        return true;
                    }
                }
                Some(false) => core.look_in_vain(self.patience),
            }
            now = core.driver.now();
        }
        // Between whole steps the kernel was not asked.
        core.blind = LOOKS_AT_KERNEL;
        false
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

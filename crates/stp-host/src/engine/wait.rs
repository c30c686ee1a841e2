//! The engine's one wait: sockets, storage, commands and the next deadline under one epoll.
//!
//! - The timer is a descriptor of its own, so a deadline is kept to the microsecond on every kernel; it
//!   is set again only when an earlier deadline comes up.
//! - Collecting needs no hold on the engine: what was collected is noted by whoever drives next.
//! - An early wake-up is possible and harmless.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use stp_core::{StreamId, Time};

use super::sockets::HostSockets;

/// Events taken from the kernel at once; the rest comes with the next wait.
const EVENTS_MAX: usize = 256;
/// Stand for other sources than streams. A node's stream numbers never get that far.
const KICK: u64 = u64::MAX;
const STORAGE: u64 = u64::MAX - 1;
const TIMER: u64 = u64::MAX - 2;

/// Everything that wakes the engine but its sockets.
#[derive(Debug)]
pub(super) struct Wait {
    timer: OwnedFd,
    /// When the timer goes off, if it is set and has not.
    set_for: Option<Time>,
    /// Kept open as long as it is watched.
    _kick: Arc<OwnedFd>,
}

impl Wait {
    /// Watches the commands' descriptor and the storage's, if it has one.
    pub(super) fn new(
        local: &HostSockets,
        kick: Arc<OwnedFd>,
        storage: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Edges suffice: neither the counter nor the timer needs to be read.
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&*local.epoll(), &*kick, EventData::new_u64(KICK), edge)?;
        epoll::add(&*local.epoll(), &timer, EventData::new_u64(TIMER), edge)?;
        if let Some(storage) = storage {
            let data = EventData::new_u64(STORAGE);
            epoll::add(&*local.epoll(), storage, data, EventFlags::IN)?;
        }
        Ok(Self {
            timer,
            set_for: None,
            _kick: kick,
        })
    }

    /// Sets the timer for `deadline`; `false` if that has come already.
    pub(super) fn prepare(&mut self, now: Time, deadline: Option<Time>) -> io::Result<bool> {
        let Some(deadline) = deadline else {
            return Ok(true);
        };
        if deadline <= now {
            return Ok(false);
        }
        if self.set_for.is_none_or(|set_for| deadline < set_for) {
            self.set(deadline.since(now))?;
            self.set_for = Some(deadline);
        }
        Ok(true)
    }

    /// Takes over what was collected.
    pub(super) fn note(&mut self, local: &mut HostSockets, noted: Noted) {
        match noted.source {
            TIMER => self.set_for = None,
            KICK | STORAGE => {}
            id => local.note(StreamId(id), noted.flags),
        }
    }

    fn set(&self, delay: Duration) -> io::Result<()> {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let spec = Itimerspec {
            it_interval: zero,
            it_value: Timespec {
                tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(delay.subsec_nanos()),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }
}

/// Something that the kernel reported, once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noted {
    source: u64,
    flags: EventFlags,
}

/// Collects what happened; waits until something does, for `timeout` at the most.
pub(super) fn collect(
    epoll: &OwnedFd,
    timeout: Option<Duration>,
    into: &mut Vec<Noted>,
) -> io::Result<()> {
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if let Some(timeout) = timeout.filter(|timeout| !timeout.is_zero()) {
        // An epoll itself waits in whole milliseconds.
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let mut watched = [PollFd::new(epoll, PollFlags::IN)];
        match poll(&mut watched, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let timeout = timeout.map(|_| &zero);
    let mut space = [const { MaybeUninit::<Event>::uninit() }; EVENTS_MAX];
    let events = match epoll::wait(epoll, &mut space, timeout) {
        Ok((events, _)) => events,
        Err(Errno::INTR) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    into.extend(events.iter().map(|event| Noted {
        source: event.data.u64(),
        flags: event.flags,
    }));
    Ok(())
}

//! The engine's one wait: sockets, storage and commands under one epoll, until the next deadline.
//!
//! - A deadline is kept to the microsecond: it is the wait's own time-out, in nanoseconds (`epoll_pwait2`; where there is none,
//!   `ppoll` and `epoll_wait` together).
//! - Collecting needs no hold on the engine: what was collected is noted by whoever drives next.
//! - An early wake-up is possible and harmless.

use std::io;
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use stp_core::StreamId;

use super::sockets::HostSockets;

/// Events taken from the kernel at once; the rest comes with the next wait.
const EVENTS_MAX: usize = 256;
/// Stand for other sources than streams. A node's stream numbers never get that far.
const KICK: u64 = u64::MAX;
const STORAGE: u64 = u64::MAX - 1;
/// How much later than asked for a wait may end, so that the kernel can end several at once: it would take 50 us, which is
/// as long as a nap between two looks.
const SLACK_NS: u64 = 1000;

/// Watches the commands' descriptor and the storage's, if it has one, as long as they are open.
pub(super) fn watch(
    local: &HostSockets,
    kick: &OwnedFd,
    storage: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    // An edge suffices: the counter need not be read.
    let edge = EventFlags::IN | EventFlags::ET;
    epoll::add(&*local.epoll(), kick, EventData::new_u64(KICK), edge)?;
    if let Some(storage) = storage {
        let data = EventData::new_u64(STORAGE);
        epoll::add(&*local.epoll(), storage, data, EventFlags::IN)?;
    }
    Ok(())
}

/// The calling thread's waits end on time. Without that they end a little later.
pub(super) fn wait_exactly() {
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(SLACK_NS));
}

/// Takes over what was collected. `fresh`: nothing was received, or taken over, since.
pub(super) fn note(local: &mut HostSockets, noted: Noted, fresh: bool) {
    match noted.source {
        KICK | STORAGE => {}
        id => local.note(StreamId(id), noted.flags, fresh),
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
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    let mut space = [const { MaybeUninit::<Event>::uninit() }; EVENTS_MAX];
    let events = match epoll::wait(epoll, &mut space, timeout.as_ref()) {
        Ok((events, _)) => events,
        Err(Errno::INTR) => return Ok(()),
        // A kernel before 5.11, or a filter in front of it, which knows whole milliseconds only.
        Err(Errno::NOSYS | Errno::PERM) if timeout.is_some_and(|t| t != Timespec::default()) => {
            let mut watched = [PollFd::new(epoll, PollFlags::IN)];
            return match poll(&mut watched, timeout.as_ref()) {
                Ok(0) | Err(Errno::INTR) => Ok(()),
                Ok(_) => collect(epoll, Some(Duration::ZERO), into),
                Err(errno) => Err(errno.into()),
            };
        }
        Err(errno) => return Err(errno.into()),
    };
    into.extend(events.iter().map(|event| Noted {
        source: event.data.u64(),
        flags: event.flags,
    }));
    Ok(())
}

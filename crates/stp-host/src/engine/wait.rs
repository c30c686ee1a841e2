//! The engine's one wait: sockets, storage and commands under one epoll, until the next deadline.
//!
//! - A deadline that is near is kept to the microsecond: `epoll_wait` counts whole milliseconds, so `ppoll` waits for the epoll
//!   then. A look at the storage that comes a millisecond late is one that a round trip waits for. (`epoll_pwait2` would
//!   do both, but filters in front of the kernel kill programs for it.)
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
/// A wait of at least this may end a millisecond late.
const NEAR_MAX: Duration = Duration::from_millis(10);
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
    let near = timeout.filter(|timeout| !timeout.is_zero() && *timeout < NEAR_MAX);
    if let Some(near) = near {
        let mut watched = [PollFd::new(epoll, PollFlags::IN)];
        match poll(&mut watched, Some(&timespec(near))) {
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let timeout = if near.is_some() {
        Some(Duration::ZERO)
    } else {
        timeout
    };
    let mut space = [const { MaybeUninit::<Event>::uninit() }; EVENTS_MAX];
    let events = match epoll::wait(epoll, &mut space, timeout.map(timespec).as_ref()) {
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

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

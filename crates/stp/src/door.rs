//! What the C library needs of a group beyond the public calls: the parts that a stream is made of.
//!
//! - Not for programs: nothing here promises to stay.
//! - The sockets are the caller's; what is returned tells how their streams end.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use stp_host::control::{Calls, ConnectFailure};
use stp_host::rendezvous::{SystemDir, direct};

use crate::addr::Addr;
use crate::error::Error;
use crate::gift::Gift;
use crate::group::Group;
use crate::{listener, node};

pub use crate::gift::{TakenStream, give, take};
pub use crate::stream::Fate;

/// The calls of the group's engine.
pub fn calls(group: &Group) -> &Arc<dyn Calls> {
    &group.inner.calls
}

/// The group's place in the run directory.
pub fn dir(group: &Group) -> &SystemDir {
    &group.inner.dir
}

/// Runs `work` on a thread of its own, so that no ring of the storage is tied to the caller's.
pub fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    node::aside(work)
}

/// Gives `socket`, which has no name, that of a stream to `port` of this system; from `from` or a free port.
pub fn take_name(
    group: &Group,
    port: u16,
    from: Option<u16>,
    socket: BorrowedFd<'_>,
) -> io::Result<u16> {
    direct::take_name(&group.inner.dir, port, from, socket)
}

/// Introduces `socket`, which has just been connected to a port of this system.
pub fn join(socket: BorrowedFd<'_>) -> io::Result<Fate> {
    direct::join(socket).map(Fate::Direct)
}

/// Who connected to a listener of `group`; `None` if it went away before it said so. An error: no descriptor is left
/// for what it said.
pub fn identify(group: &Group, socket: BorrowedFd<'_>) -> io::Result<Option<(Fate, Addr)>> {
    listener::identify(&group.inner, socket)
}

/// Nobody listens on `port` of this system.
pub fn refused(group: &Group, port: u16) -> io::Error {
    direct::refused(&group.inner.dir, port)
}

/// Why there is no connection, as the public calls say it.
pub fn failure(
    group: &Group,
    to: &Addr,
    timeout: Option<Duration>,
    failure: ConnectFailure,
) -> io::Error {
    group.failure(to, timeout, failure)
}

/// Whether the giver may use its stream: the gift is settled and was not taken. Else the error for its use.
pub fn may_use(gift: &Gift) -> io::Result<()> {
    gift.check()
}

/// Before the giver closes its stream: whether it shall say itself, by [`Fate::mark`], that the end is meant.
pub fn may_mark(gift: &Gift) -> bool {
    gift.close()
}

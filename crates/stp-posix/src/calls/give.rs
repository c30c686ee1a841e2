//! `STPgivesocket`, `STPtakesocket`, `STPgiven`: a stream moves to another program, of this system or another.
//!
//! - Until a gift is settled, and after it was taken, its giver can only close the stream.
//! - `STPpoll` shows a settled gift as `POLLPRI` and `STPselect` as an exception on the stream's descriptor; the
//!   gift's own descriptor (`STP_OPT_GIFT_FD`) tells it to the kernel's calls.

use std::os::fd::{AsFd, AsRawFd, IntoRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libc::{c_char, c_int};
use stp::door;
use stp::{Gift, TakerName};

use super::fault::{Code, Fault, Outcome};
use super::socket::{Phase, Socket, borrow};
use super::{home, memory, table};

/// A gift stands for an hour where no time is given.
const WAIT_DEFAULT: Duration = Duration::from_secs(60 * 60);

fn failed(error: std::io::Error) -> Fault {
    use std::io::ErrorKind as Kind;
    let errno = match error.kind() {
        Kind::TimedOut => libc::ETIMEDOUT,
        Kind::ResourceBusy => libc::EBUSY,
        Kind::NotConnected => libc::ENOTCONN,
        Kind::Unsupported => libc::EOPNOTSUPP,
        Kind::InvalidInput => libc::EINVAL,
        Kind::ConnectionReset => libc::ECONNRESET,
        Kind::AddrInUse => libc::EADDRINUSE,
        Kind::NotFound => libc::EHOSTUNREACH,
        _ => match Fault::from(error) {
            fault if fault.code == Code::None => return fault,
            fault => {
                return Fault {
                    code: Code::Give,
                    ..fault
                };
            }
        },
    };
    Fault::new(errno, Code::Give, error.to_string())
}

/// `STPgivesocket`: `taker` is `NAME` or `SYSTEM/NAME`; the gift stands for `timeout_ms`, or an hour if that is
/// negative. Returns at once.
pub fn give(fd: RawFd, taker: *const c_char, timeout_ms: c_int) -> Outcome<()> {
    let socket = table::find(fd)?;
    let taker = memory::text(taker)?;
    let taker: TakerName = taker.parse().map_err(|why| {
        let text = format!("{taker:?} names no taker: {why}; write NAME or SYSTEM/NAME");
        Fault::new(libc::EINVAL, Code::Give, text)
    })?;
    super::connect::settle(fd);
    let fate = socket.touch();
    let (group, local, peer, gift) = table::with(&socket, |state| match state.phase {
        Phase::Connected => {
            let ends = (state.group.clone(), state.local.clone(), state.peer.clone());
            (ends.0, ends.1, ends.2, state.gift.clone())
        }
        _ => (None, None, None, None),
    });
    let (Some(fate), Some(group), Some(local), Some(peer)) = (fate, group, local, peer) else {
        return Err(Fault::state(libc::ENOTCONN, "the socket is not connected"));
    };
    if let Some(gift) = gift {
        door::may_use(&gift).map_err(failed)?;
    }
    if table::copies(fd) > 1 {
        let text = "a socket with copies (STPdup) cannot be given: close them first";
        return Err(Fault::new(libc::EINVAL, Code::Give, text));
    }
    let wait = u64::try_from(timeout_ms).map_or(WAIT_DEFAULT, Duration::from_millis);
    let dir = door::dir(&group);
    let gift =
        home::without_signals(|| door::give(dir, &fate, borrow(fd), &local, &peer, &taker, wait))
            .map_err(failed)?;
    table::with(&socket, |state| state.gift = Some(Arc::new(gift)));
    table::gift_made();
    Ok(())
}

/// `STPtakesocket`: takes what was given to `name` on this system, and waits for it, for ever if `timeout_ms` is
/// negative.
pub fn take(name: *const c_char, timeout_ms: c_int) -> Outcome<RawFd> {
    let name = memory::text(name)?;
    let group = home::group()?;
    let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
    let taken =
        door::take(door::dir(&group), door::calls(&group), &name, timeout).map_err(failed)?;
    let socket = Socket::connected(group, taken.local, taken.peer, taken.fate);
    table::add(&taken.socket, Arc::new(socket))?;
    // As STPsocket makes it: the program may hand it on.
    // SAFETY: system calls with plain arguments.
    unsafe {
        let fd = taken.socket.as_raw_fd();
        let flags = libc::fcntl(fd, libc::F_GETFD);
        libc::fcntl(fd, libc::F_SETFD, flags & !libc::FD_CLOEXEC);
    }
    Ok(taken.socket.into_raw_fd())
}

fn gift(fd: RawFd) -> Outcome<Arc<Gift>> {
    let socket = table::find(fd)?;
    table::with(&socket, |state| state.gift.clone())
        .ok_or_else(|| Fault::new(libc::EINVAL, Code::Give, "the socket was not given"))
}

/// `STPgiven`: waits until the gift is settled, for ever if `timeout_ms` is negative. Fine: it was taken.
pub fn given(fd: RawFd, timeout_ms: c_int) -> Outcome<()> {
    let gift = gift(fd)?;
    let give_up = u64::try_from(timeout_ms)
        .ok()
        .and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
    loop {
        if let Some(answer) = gift.poll() {
            return answer.map_err(failed);
        }
        let left = give_up.map_or(-1, |at| {
            let left = at.saturating_duration_since(Instant::now());
            c_int::try_from(left.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX)
        });
        let mut polled = libc::pollfd {
            fd: gift.as_fd().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure of ours.
        match unsafe { libc::poll(&mut polled, 1, left) } {
            0 => {
                let text = format!("the gift to {} stands: nobody has taken it yet", gift.to());
                return Err(Fault::new(libc::EAGAIN, Code::Give, text));
            }
            ready if ready < 0 => return Err(Fault::last()),
            _ => {}
        }
    }
}

/// The descriptor of the socket's gift, which the kernel's calls can wait for.
pub(super) fn notice(fd: RawFd) -> Outcome<RawFd> {
    Ok(gift(fd)?.as_fd().as_raw_fd())
}

/// A gift that stands, or was taken, keeps its giver from using the stream.
pub(super) fn may_use(gift: &Gift) -> Option<Fault> {
    door::may_use(gift).err().map(failed)
}

/// Among descriptors that are waited for, those with gifts: which number, and the gift.
pub(super) fn gifts(fds: impl Iterator<Item = RawFd>) -> Vec<(RawFd, Arc<Gift>)> {
    if !table::any_gifts() {
        return Vec::new();
    }
    fds.filter_map(|fd| {
        let socket = table::find(fd).ok()?;
        let gift = table::with(&socket, |state| state.gift.clone())?;
        Some((fd, gift))
    })
    .collect()
}

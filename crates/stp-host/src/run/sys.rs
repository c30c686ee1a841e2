//! What the kernel offers to sockets and no safe binding has.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::event::{PollFd, PollFlags, Timespec};

/// Of `asm-generic/sockios.h`, which all machines that matter here share.
const SIOCATMARK: u32 = 0x8905;

/// Lets nothing in that is sent to this socket: every packet is dropped before the kernel looks at it.
pub(super) fn drop_everything(socket: impl AsFd) -> io::Result<()> {
    // One instruction: return with 0 bytes kept.
    let mut accept_none = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &mut accept_none,
    };
    let size = std::mem::size_of_val(&program) as libc::socklen_t;
    // SAFETY: the kernel copies `size` bytes of the option and the one instruction that it points to before the call
    // returns; both live until then.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A network interface's flags; `None` if there is none of this name.
pub(super) fn interface_flags(socket: impl AsFd, name: &str) -> io::Result<Option<i16>> {
    let mut request = named(name)?;
    // SAFETY: the kernel reads and writes within the request, which is of the type that this call takes.
    let done = unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCGIFFLAGS as _,
            &raw mut request,
        )
    };
    if done == 0 {
        // SAFETY: after success the kernel has filled in the flags.
        return Ok(Some(unsafe { request.ifr_ifru.ifru_flags }));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        error => Err(error),
    }
}

/// Sets a network interface's flags.
pub(super) fn set_interface_flags(socket: impl AsFd, name: &str, flags: i16) -> io::Result<()> {
    let mut request = named(name)?;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the kernel reads the request, which is of the type that this call takes.
    let done = unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn named(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeros are a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// What comes next in a stream socket.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Nothing,
    Urgent,
    /// Bytes, and nothing else behind them.
    Plain,
    /// Bytes, the end, or an error: what a receive tells, which stops before the next urgent byte.
    Other,
}

/// What comes next in a stream socket. Of an empty one the kernel knows no mark, so what is to be received is there
/// before the mark is asked for; an urgent byte that comes later comes behind it.
///
/// At the mark a TCP socket also answers a receive by "again" when the thread is to be interrupted, which a signal does, and
/// io_uring when one of its transfers ends: what is there then is to be received once more.
pub(crate) fn next(socket: impl AsFd) -> Next {
    let seen = polled(&socket, PollFlags::IN | PollFlags::PRI | PollFlags::RDHUP);
    if seen.is_empty() {
        Next::Nothing
    } else if seen == PollFlags::IN {
        Next::Plain
    } else if seen.contains(PollFlags::PRI) && is_at_mark(&socket) {
        Next::Urgent
    } else {
        Next::Other
    }
}

/// Who connected a Unix socket, as the kernel saw it then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// `None` for a process that this one's PID namespace does not show, as another container's.
    pub(crate) process: Option<u32>,
    pub(crate) user: u32,
    pub(crate) group: u32,
}

/// Who connected a Unix socket. (rustix takes process 0, which stands for one of another namespace, for an error.)
pub(crate) fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let mut found = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which are there.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut len,
        )
    };
    match done {
        0 => Ok(Peer {
            process: u32::try_from(found.pid).ok().filter(|pid| *pid != 0),
            user: found.uid,
            group: found.gid,
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the kernel says of a socket now.
pub(crate) fn polled(socket: impl AsFd, asked: PollFlags) -> PollFlags {
    let mut polled = [PollFd::new(&socket, asked)];
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut polled, Some(&zero)) {
        Ok(_) => polled[0].revents(),
        // It failed, so it is not known that there is nothing.
        Err(_) => PollFlags::ERR,
    }
}

/// Whether the next byte of a stream socket is an urgent one.
pub(super) fn is_at_mark(socket: impl AsFd) -> bool {
    let mut answer: libc::c_int = 0;
    // SAFETY: the kernel writes one integer, which is there.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCATMARK as _, &raw mut answer) };
    done == 0 && answer != 0
}

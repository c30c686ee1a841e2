//! The few system calls that the translation makes for itself, below the C library.
//!
//! - No call here can be interposed, is a cancellation point, takes a lock or changes `errno`: the answer is returned.
//! - They take the program's descriptor numbers as they are: the kernel judges them.

use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use libc::{c_int, c_long, c_void, sockaddr, socklen_t};

/// An error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(pub(super) c_int);

/// A TCP socket that neither is nor gets connected, as `TCP_INFO` has it.
pub(super) const TCP_CLOSE: u8 = 7;
/// One that listens.
pub(super) const TCP_LISTEN: u8 = 10;

/// Sets `errno` and returns what a failed call returns.
pub(super) fn fail(errno: Errno) -> c_int {
    // SAFETY: the C library's own variable of this thread.
    unsafe { *libc::__errno_location() = errno.0 };
    -1
}

/// The program's `errno`.
pub(super) fn errno() -> Errno {
    // SAFETY: as above.
    Errno(unsafe { *libc::__errno_location() })
}

fn call(number: c_long, arguments: [usize; 5]) -> Result<c_long, Errno> {
    let before = errno();
    let [a, b, c, d, e] = arguments;
    // SAFETY: every caller below passes what the kernel's call of this number takes; `syscall` itself is a plain
    // wrapper, safe in signal handlers and between `vfork` and `exec`.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    if result != -1 {
        return Ok(result);
    }
    let error = errno();
    fail(before);
    Err(error)
}

fn fd_argument(fd: c_int) -> usize {
    // The kernel looks at the low half only.
    fd as u32 as usize
}

/// An option's value of the size of an `int`.
pub(super) fn option(fd: c_int, level: c_int, name: c_int) -> Result<c_int, Errno> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as socklen_t;
    call(
        libc::SYS_getsockopt,
        [
            fd_argument(fd),
            level as usize,
            name as usize,
            &raw mut value as usize,
            &raw mut len as usize,
        ],
    )?;
    Ok(value)
}

/// Sets an option of the size of an `int`.
pub(super) fn set_option(fd: c_int, level: c_int, name: c_int, value: c_int) -> Result<(), Errno> {
    call(
        libc::SYS_setsockopt,
        [
            fd_argument(fd),
            level as usize,
            name as usize,
            &raw const value as usize,
            size_of::<c_int>(),
        ],
    )?;
    Ok(())
}

/// The family of a TCP socket; `None` for everything else.
pub(super) fn tcp_family(fd: c_int) -> Option<c_int> {
    if option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) != Ok(libc::IPPROTO_TCP) {
        return None;
    }
    option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)
        .ok()
        .filter(|family| [libc::AF_INET, libc::AF_INET6].contains(family))
}

/// The state of a TCP socket.
pub(super) fn tcp_state(fd: c_int) -> Result<u8, Errno> {
    let mut info = [0_u8; 8];
    let mut len = info.len() as socklen_t;
    call(
        libc::SYS_getsockopt,
        [
            fd_argument(fd),
            libc::IPPROTO_TCP as usize,
            libc::TCP_INFO as usize,
            info.as_mut_ptr() as usize,
            &raw mut len as usize,
        ],
    )?;
    Ok(info[0])
}

/// Where the socket is bound, in the form that its family has.
pub(super) fn local(fd: c_int) -> Result<SocketAddr, Errno> {
    name(libc::SYS_getsockname, fd)
}

/// What it is connected to.
pub(super) fn peer(fd: c_int) -> Result<SocketAddr, Errno> {
    name(libc::SYS_getpeername, fd)
}

fn name(number: c_long, fd: c_int) -> Result<SocketAddr, Errno> {
    let mut raw = Raw::EMPTY;
    let pointers = [
        fd_argument(fd),
        raw.bytes.as_mut_ptr() as usize,
        &raw mut raw.len as usize,
        0,
        0,
    ];
    call(number, pointers)?;
    raw.address().ok_or(Errno(libc::EAFNOSUPPORT))
}

/// Binds a socket.
pub(super) fn bind(fd: c_int, address: SocketAddr) -> Result<(), Errno> {
    let raw = Raw::from(address);
    let arguments = [
        fd_argument(fd),
        raw.bytes.as_ptr() as usize,
        raw.len as usize,
        0,
        0,
    ];
    call(libc::SYS_bind, arguments).map(drop)
}

/// Takes a listening or half-connected socket back to where it was.
pub(super) fn shutdown(fd: c_int) -> Result<(), Errno> {
    let how = libc::SHUT_RDWR as usize;
    call(libc::SYS_shutdown, [fd_argument(fd), how, 0, 0, 0]).map(drop)
}

/// Closes a descriptor of ours.
pub(super) fn close(fd: c_int) {
    let _ = call(libc::SYS_close, [fd_argument(fd), 0, 0, 0, 0]);
}

/// Makes a socket that was or is connected ready for another `connect`.
pub(super) fn disconnect(fd: c_int) -> Result<(), Errno> {
    let unspecified = [0_u8; size_of::<sockaddr>()];
    let arguments = [
        fd_argument(fd),
        unspecified.as_ptr() as usize,
        unspecified.len(),
        0,
        0,
    ];
    call(libc::SYS_connect, arguments).map(drop)
}

/// Of a socket that is not connected: the error with which an earlier `connect` has ended, if none has been told by
/// `connect` yet. Takes it, so that the socket may be connected anew.
///
/// The kernel keeps that to itself. But it answers a `connect` to a multicast address at once: with that error if
/// there is one, else with what it says of the address, and then nothing has happened to the socket. A route or a
/// policy of the host may say anything of the address, but says it again; the earlier error is told once.
pub(super) fn take_failed_connect(fd: c_int, v6: bool) -> Option<Errno> {
    let nowhere: SocketAddr = if v6 {
        (Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 1).into()
    } else {
        (Ipv4Addr::new(224, 0, 0, 1), 1).into()
    };
    let raw = Raw::from(nowhere);
    let pointer = raw.bytes.as_ptr() as usize;
    let arguments = [fd_argument(fd), pointer, raw.len as usize, 0, 0];
    let probe = || call(libc::SYS_connect, arguments).err();
    let usual = [libc::ENETUNREACH, libc::EINVAL];
    let told = probe().filter(|errno| !usual.contains(&errno.0))?;
    (probe() != Some(told)).then_some(told)
}

/// Waits until the connection has ended, for so long at the most. An interruption ends the wait too: it is only there
/// so that the kernel's own error is seen before the program goes on.
pub(super) fn await_end(fd: c_int, milliseconds: i64) {
    let mut entry = libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    };
    let limit = libc::timespec {
        tv_sec: milliseconds / 1000,
        tv_nsec: milliseconds % 1000 * 1_000_000,
    };
    let _ = call(
        libc::SYS_ppoll,
        [&raw mut entry as usize, 1, &raw const limit as usize, 0, 0],
    );
}

/// Whether a blocking call on it waits.
pub(super) fn is_blocking(fd: c_int) -> bool {
    let flags = call(
        libc::SYS_fcntl,
        [fd_argument(fd), libc::F_GETFL as usize, 0, 0, 0],
    );
    flags.is_ok_and(|flags| flags & c_long::from(libc::O_NONBLOCK) == 0)
}

/// Whether the program may read all of these bytes; asked of the kernel, so that a bad pointer is an `EFAULT`, not a
/// crash.
pub(super) fn is_readable(start: *const c_void, len: usize) -> bool {
    // Nor is anything of the first word, which the probe below would take for no mask at all.
    if (start as usize) < 8 {
        return false;
    }
    let Some(last) = (start as usize).checked_add(len.max(1) - 1) else {
        return false;
    };
    // The kernel copies the mask in before it judges `how`; it takes 8 bytes, so within one page if aligned.
    let probe = |at: usize| {
        let how = usize::MAX;
        call(libc::SYS_rt_sigprocmask, [how, at & !7, 0, 8, 0]) != Err(Errno(libc::EFAULT))
    };
    probe(start as usize) && (start as usize & !7 == last & !7 || probe(last))
}

/// Holds off every signal of this thread, so that no handler runs, or leaves by a jump, in the middle of a talk.
pub(super) struct NoSignals(u64);

impl NoSignals {
    pub(super) fn begin() -> Self {
        let all = u64::MAX;
        let mut before = 0_u64;
        let _ = call(
            libc::SYS_rt_sigprocmask,
            [
                libc::SIG_SETMASK as usize,
                &raw const all as usize,
                &raw mut before as usize,
                8,
                0,
            ],
        );
        Self(before)
    }
}

impl Drop for NoSignals {
    fn drop(&mut self) {
        let before = self.0;
        let how = libc::SIG_SETMASK as usize;
        let _ = call(
            libc::SYS_rt_sigprocmask,
            [how, &raw const before as usize, 0, 8, 0],
        );
    }
}

/// A socket address as the kernel has it.
pub(super) struct Raw {
    bytes: [u8; size_of::<libc::sockaddr_storage>()],
    len: socklen_t,
}

impl Raw {
    const EMPTY: Self = Self {
        bytes: [0; size_of::<libc::sockaddr_storage>()],
        len: size_of::<libc::sockaddr_storage>() as socklen_t,
    };

    /// The program's address of this length, if it is one of IPv4 or IPv6.
    ///
    /// # Safety
    /// `len` bytes at `address` can be read; [`is_readable`] tells.
    pub(super) unsafe fn read(address: *const sockaddr, len: socklen_t) -> Option<SocketAddr> {
        let mut raw = Self::EMPTY;
        raw.len = len.min(raw.len);
        // SAFETY: the caller's promise; the buffer is as long as the count at least.
        unsafe {
            address
                .cast::<u8>()
                .copy_to_nonoverlapping(raw.bytes.as_mut_ptr(), raw.len as usize);
        }
        raw.address()
    }

    /// Writes it over a name that the kernel has just written.
    ///
    /// # Safety
    /// `room` bytes at `to` can be written.
    pub(super) unsafe fn write(&self, to: *mut sockaddr, room: socklen_t) {
        let count = room.min(self.len) as usize;
        // SAFETY: the caller's promise.
        unsafe {
            to.cast::<u8>()
                .copy_from_nonoverlapping(self.bytes.as_ptr(), count);
        }
    }

    /// For the C library's calls.
    pub(super) fn as_ptr(&self) -> *const sockaddr {
        self.bytes.as_ptr().cast()
    }

    /// Its length.
    pub(super) fn len(&self) -> socklen_t {
        self.len
    }

    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[at..at + N]);
        field
    }

    fn address(&self) -> Option<SocketAddr> {
        let family = c_int::from(u16::from_ne_bytes(self.field(0)));
        let port = u16::from_be_bytes(self.field(2));
        let len = self.len as usize;
        if family == libc::AF_INET && len >= size_of::<libc::sockaddr_in>() {
            let ip = Ipv4Addr::from(self.field::<4>(4));
            Some(SocketAddrV4::new(ip, port).into())
        } else if family == libc::AF_INET6 && len >= SIN6_BYTES_MIN {
            let flow = u32::from_ne_bytes(self.field(4));
            let ip = Ipv6Addr::from(self.field::<16>(8));
            // Old programs leave the scope out.
            let scope = if len >= size_of::<libc::sockaddr_in6>() {
                u32::from_ne_bytes(self.field(24))
            } else {
                0
            };
            Some(SocketAddrV6::new(ip, port, flow, scope).into())
        } else {
            None
        }
    }
}

/// A `sockaddr_in6` without scope, which the kernel takes.
const SIN6_BYTES_MIN: usize = 24;

impl From<SocketAddr> for Raw {
    fn from(address: SocketAddr) -> Self {
        let mut raw = Self::EMPTY;
        let family = match address {
            SocketAddr::V4(_) => libc::AF_INET,
            SocketAddr::V6(_) => libc::AF_INET6,
        };
        raw.bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
        raw.bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        raw.len = match address {
            SocketAddr::V4(v4) => {
                raw.bytes[4..8].copy_from_slice(&v4.ip().octets());
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                raw.bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                raw.bytes[8..24].copy_from_slice(&v6.ip().octets());
                raw.bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                size_of::<libc::sockaddr_in6>()
            }
        } as socklen_t;
        raw
    }
}

/// A C structure of zeros, to be filled by the C library.
pub(super) fn zeroed<T: Copy>() -> T {
    // SAFETY: only used for C structures of numbers and pointers, for which zeros are a value.
    unsafe { MaybeUninit::<T>::zeroed().assume_init() }
}

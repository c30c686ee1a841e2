//! One socket: its state, and how it begins and ends.
//!
//! - Its descriptor is one kernel socket from `STPsocket` on. Only a socket whose connecting failed, or that is
//!   dissolved, gets a fresh kernel socket under its number when it is used again.
//! - Each process that uses a stream ends it by itself: see [`Socket::touch`].

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use libc::{c_int, c_void, socklen_t};
use stp::door::{self, Fate};
use stp::{Addr, Gift, Group};
use stp_host::rendezvous::{PortFile, Reservation};

use super::fault::{Code, Fault, Outcome};
use super::{address, home, table};

/// Where a socket stands.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// Neither connected nor listening.
    Fresh,
    /// Connections queue.
    Listening,
    /// The engine has been asked.
    Connecting,
    /// There is a peer.
    Connected,
    /// It could not be connected; the reason is told once.
    Failed(Option<Fault>),
}

/// What changes.
pub(super) struct State {
    pub(super) phase: Phase,
    /// The kernel's socket cannot be connected or bound any more.
    pub(super) spent: bool,
    /// The kernel's socket has the name of a stream to this port, from that one.
    pub(super) named: Option<(u16, u16)>,
    /// A bound port that nobody listens on.
    pub(super) reserved: Option<Reservation>,
    /// A port that is listened on.
    pub(super) file: Option<PortFile>,
    /// The group it lives in, once it needed the volume.
    pub(super) group: Option<Group>,
    pub(super) local: Option<Addr>,
    pub(super) peer: Option<Addr>,
    pub(super) fate: Option<Arc<Fate>>,
    /// `STPconnect` has told that it is connected.
    pub(super) told: bool,
    /// Whoever waits for the end of connecting; dropping them wakes.
    pub(super) waiting: Vec<OwnedFd>,
    /// The number of the attempt to connect.
    pub(super) attempt: u64,
    /// The process that uses it.
    pub(super) user: u32,
    /// The end of our bytes is announced by this process.
    pub(super) marked: bool,
    pub(super) read_shut: bool,
    pub(super) write_shut: bool,
    /// A failed send has told that the stream broke.
    pub(super) break_told: bool,
    /// How the peer's bytes ended, once that is known: `None` in order.
    pub(super) ended: Option<Option<Fault>>,
    /// Its end counts as meant even if the program dies, as TCP has it.
    pub(super) tcp_end: bool,
    /// The last gift that was made of it.
    pub(super) gift: Option<Arc<Gift>>,
    /// How long connecting may take.
    pub(super) connect_ms: u32,
    /// A send buffer that was asked for while connecting, for when there is a peer.
    pub(super) send_buffer: Option<Vec<u8>>,
    /// Options that accepted and renewed sockets inherit.
    pub(super) options: Vec<(c_int, c_int, Vec<u8>)>,
}

pub(super) struct Socket {
    pub(super) state: Mutex<State>,
}

impl Socket {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                phase: Phase::Fresh,
                spent: false,
                named: None,
                reserved: None,
                file: None,
                group: None,
                local: None,
                peer: None,
                fate: None,
                told: false,
                waiting: Vec::new(),
                attempt: 0,
                user: std::process::id(),
                marked: false,
                read_shut: false,
                write_shut: false,
                break_told: false,
                ended: None,
                tcp_end: false,
                gift: None,
                connect_ms: 0,
                send_buffer: None,
                options: Vec::new(),
            }),
        }
    }

    /// A stream that stands.
    pub(super) fn connected(group: Group, local: Addr, peer: Addr, fate: Fate) -> Self {
        let socket = Self::new();
        table::with(&socket, |state| {
            state.phase = Phase::Connected;
            state.told = true;
            state.group = Some(group);
            state.local = Some(local);
            state.peer = Some(peer);
            state.fate = Some(Arc::new(fate));
        });
        socket
    }

    /// How the stream's end is told, for this process. The first call of a forked child that uses a stream
    /// says so to the engine: from then on its end is needed too.
    pub(super) fn touch(&self) -> Option<Arc<Fate>> {
        let pid = std::process::id();
        let (fate, foreign) = table::with(self, |state| {
            let foreign = state.user != pid;
            state.user = pid;
            if foreign {
                state.marked = false;
                state.break_told = false;
            }
            (state.fate.clone(), foreign)
        });
        let fate = fate?;
        if !foreign {
            return Some(fate);
        }
        let fate = self.in_child(fate);
        fate.hold();
        Some(fate)
    }

    /// The parent's connection to a shared engine is not the child's: it makes its own.
    fn in_child(&self, fate: Arc<Fate>) -> Arc<Fate> {
        let Fate::Engine { calls, token } = &*fate else {
            return fate;
        };
        if calls.serves_children() {
            return fate;
        }
        let token = *token;
        let Ok(group) = home::group() else {
            return fate; // every question will be answered by a reset
        };
        let calls = Arc::clone(door::calls(&group));
        let own = Arc::new(Fate::Engine { calls, token });
        table::with(self, |state| {
            // The parent's must not be ended here.
            std::mem::forget(state.fate.replace(Arc::clone(&own)));
            std::mem::forget(state.group.replace(group));
        });
        own
    }

    /// The program has closed its last descriptor of this socket, or is about to close `fd`: says what that means.
    pub(super) fn end(&self, fd: RawFd) {
        let pid = std::process::id();
        let (ours, fate, file, aborts) = table::with(self, |state| {
            let ours = state.user == pid;
            let aborts = lingers_zero(fd);
            let fate = state.fate.clone().filter(|_| aborts || !state.marked);
            if ours {
                state.marked = true;
            }
            (ours, fate, state.file.take(), aborts)
        });
        if !ours {
            // A forked child that never used it.
            std::mem::forget(file);
            return;
        }
        if let Some(file) = file {
            let group = table::with(self, |state| state.group.clone());
            if let Some(group) = group {
                door::calls(&group).unlisten(file.port());
            }
        }
        // What was given is ended by whoever owns it now.
        let gift = table::with(self, |state| state.gift.take());
        let may_mark = gift.is_none_or(|gift| door::may_mark(&gift));
        match fate.filter(|_| may_mark) {
            Some(fate) if aborts => fate.abort(),
            Some(fate) => fate.mark(),
            None => {}
        }
    }
}

/// `SO_LINGER` with no time: closing breaks the stream.
fn lingers_zero(fd: RawFd) -> bool {
    let mut linger = libc::linger {
        l_onoff: 0,
        l_linger: 0,
    };
    let mut len = size_of::<libc::linger>() as socklen_t;
    // SAFETY: the kernel writes at most `len` bytes.
    let asked = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw mut linger).cast(),
            &mut len,
        )
    };
    asked == 0 && linger.l_onoff != 0 && linger.l_linger == 0
}

/// A kernel socket of ours; `flags`: `SOCK_NONBLOCK`, `SOCK_CLOEXEC`.
pub(super) fn kernel_socket(flags: c_int) -> Outcome<OwnedFd> {
    // SAFETY: a system call with plain arguments; the result is nobody's yet.
    unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | flags, 0);
        if fd < 0 {
            return Err(Fault::last());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A program's descriptor, for the length of a call.
pub(super) fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: `find` has just seen it open. A program that closes it in the middle of a call gets `EBADF`, as
    // from the kernel.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// `STPsocket`.
pub fn socket(domain: c_int, kind: c_int, protocol: c_int) -> Outcome<RawFd> {
    const FLAGS: c_int = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    if domain != address::AF_STP {
        let what = format!("domain {domain}, not PF_STP ({})", address::AF_STP);
        return Err(Fault::new(libc::EAFNOSUPPORT, Code::Address, what));
    }
    let plain = kind & !FLAGS;
    if plain != libc::SOCK_STREAM {
        let what = format!("socket type {plain}: STP has SOCK_STREAM only");
        // The kernel has types 1 to 10.
        let errno = match plain {
            1..=10 => libc::ESOCKTNOSUPPORT,
            _ => libc::EINVAL,
        };
        return Err(Fault::new(errno, Code::Address, what));
    }
    if protocol != 0 && protocol != address::AF_STP {
        let what = format!("protocol {protocol}: PF_STP has PF_STP only, or 0");
        return Err(Fault::new(libc::EPROTONOSUPPORT, Code::Address, what));
    }
    let fd = kernel_socket(kind & FLAGS)?;
    table::add(&fd, Arc::new(Socket::new()))?;
    Ok(std::os::fd::IntoRawFd::into_raw_fd(fd))
}

/// `STPclose`.
pub fn close(fd: RawFd) -> Outcome<()> {
    table::find(fd)?;
    super::connect::settle(fd);
    let last = table::remove(fd);
    if let Some(socket) = &last {
        socket.end(fd);
    }
    // SAFETY: the program gives it up with this call.
    let closed = unsafe { libc::close(fd) };
    let fault = Fault::last();
    // After the descriptor: a listener's file goes when nobody can connect any more.
    if let Some(socket) = last {
        let foreign = table::with(&socket, |state| state.user != std::process::id());
        if foreign {
            std::mem::forget(socket);
        }
    }
    if closed == 0 { Ok(()) } else { Err(fault) }
}

/// `STPdup`, `STPdup2`: `onto` is the wanted number.
pub fn dup(fd: RawFd, onto: Option<RawFd>) -> Outcome<RawFd> {
    let socket = table::find(fd)?;
    match onto {
        Some(onto) if onto == fd => return Ok(fd),
        Some(onto) if table::find(onto).is_ok() => close(onto)?,
        _ => {}
    }
    // SAFETY: system calls with plain arguments; the copy is nobody's yet.
    let copy = unsafe {
        let copy = match onto {
            None => libc::dup(fd),
            Some(onto) => libc::dup2(fd, onto),
        };
        if copy < 0 {
            return Err(Fault::last());
        }
        OwnedFd::from_raw_fd(copy)
    };
    table::add(&copy, socket)?;
    Ok(std::os::fd::IntoRawFd::into_raw_fd(copy))
}

/// Puts a fresh kernel socket under the number `fd`: the old one can never be connected again.
pub(super) fn renew(fd: RawFd, socket: &Arc<Socket>) -> Outcome<()> {
    // SAFETY: system calls with plain arguments.
    let (status, descriptor) = unsafe {
        (
            libc::fcntl(fd, libc::F_GETFL),
            libc::fcntl(fd, libc::F_GETFD),
        )
    };
    if status < 0 || descriptor < 0 {
        return Err(Fault::last());
    }
    let nonblock = if status & libc::O_NONBLOCK != 0 {
        libc::SOCK_NONBLOCK
    } else {
        0
    };
    let fresh = kernel_socket(nonblock | libc::SOCK_CLOEXEC)?;
    let options = table::with(socket, |state| state.options.clone());
    apply(fresh.as_raw_fd(), &options);
    let cloexec = if descriptor & libc::FD_CLOEXEC != 0 {
        libc::O_CLOEXEC
    } else {
        0
    };
    drop(table::remove(fd));
    // SAFETY: the number is this socket's; the program asked for a call on it.
    let placed = unsafe {
        if libc::dup3(fresh.as_raw_fd(), fd, cloexec) < 0 {
            return Err(Fault::last());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let added = table::add(&placed, Arc::clone(socket));
    // It stays the program's.
    let _ = std::os::fd::IntoRawFd::into_raw_fd(placed);
    added?;
    table::with(socket, |state| {
        state.spent = false;
        state.named = None;
    });
    Ok(())
}

/// Sets remembered options on another kernel socket.
pub(super) fn apply(fd: RawFd, options: &[(c_int, c_int, Vec<u8>)]) {
    for (level, name, value) in options {
        // SAFETY: the value is valid for its length. The kernel has taken it before.
        unsafe {
            libc::setsockopt(
                fd,
                *level,
                *name,
                value.as_ptr().cast::<c_void>(),
                value.len() as socklen_t,
            )
        };
    }
}

/// Whether calls on `fd` must not wait.
pub(super) fn is_nonblocking(fd: RawFd) -> bool {
    // SAFETY: a system call with plain arguments.
    unsafe { libc::fcntl(fd, libc::F_GETFL) & libc::O_NONBLOCK != 0 }
}

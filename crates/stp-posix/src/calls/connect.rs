//! `STPconnect`: the program's own kernel socket becomes a stream to a port of this or another system.
//!
//! - To a port of this system the kernel connects it, as any Unix socket.
//! - To another system it is joined at once with a socket that the engine gets. Until the stream is open its send
//!   buffer is full: it is neither writable nor readable, as a TCP socket that waits for its peer. The engine
//!   takes those bytes out and throws them away when the stream is open, or closes its end, and the program's
//!   socket has an error pending, as TCP has.
//! - A call that is interrupted goes on behind the program's back, as TCP's does. Whether it is restarted after a
//!   signal is the kernel's decision: the wait is a `recv` with the socket's own time-out.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use libc::{c_int, c_void, socklen_t};
use stp::door::{self, Fate};
use stp::{Addr, Group};
use stp_host::control::Opening;
use stp_host::rendezvous::SocketPath;

use super::address::Given;
use super::fault::{Code, Fault, Outcome};
use super::socket::{self, Phase, Socket, borrow, is_nonblocking, renew};
use super::{address, home, table};

/// How long the answer may take after the kernel has shown it.
const SETTLE_MS: i64 = 5000;
/// The stack of a thread that makes one call.
const STACK_BYTES: usize = 256 << 10;

/// `STPconnect`.
pub fn connect(fd: RawFd, to: *const c_void, len: socklen_t) -> Outcome<()> {
    let socket = table::find(fd)?;
    let to = match address::read(to, len)? {
        Given::Nothing => return dissolve(fd, &socket),
        Given::Address(to) => to,
    };
    settle(fd);
    let nonblocking = is_nonblocking(fd);
    let step = table::with(&socket, |state| match &mut state.phase {
        Phase::Fresh => Step::Begin,
        Phase::Listening => Step::Done(Err(is_connected())),
        Phase::Connected if state.told => Step::Done(Err(is_connected())),
        Phase::Connected => {
            state.told = true;
            Step::Done(Ok(()))
        }
        Phase::Connecting if nonblocking => Step::Done(Err(Fault::state(
            libc::EALREADY,
            "an earlier STPconnect on this socket has not been answered yet",
        ))),
        Phase::Connecting => Step::Wait,
        Phase::Failed(why) => {
            let why = why.take();
            state.phase = Phase::Fresh;
            clear_error(fd);
            let aborted = || {
                let text = "the connection failed, as has been told already; connect again";
                Fault::state(libc::ECONNABORTED, text)
            };
            Step::Done(Err(why.unwrap_or_else(aborted)))
        }
    });
    match step {
        Step::Done(done) => return done,
        Step::Wait => return wait(fd, &socket),
        Step::Begin => {}
    }
    let group = home::group()?;
    if let Some(asked) = to.group.filter(|asked| asked != group.name()) {
        return Err(Fault::new(
            libc::ENETUNREACH,
            Code::Group,
            format!(
                "{to}: the volume {} holds the group {}, not {asked}: leave the group out, or set STP_VOLUME to its volume",
                group.volume().display(),
                group.name()
            ),
        ));
    }
    let peer = Addr::new(to.system.unwrap_or(*group.system()), to.port);
    if peer.port == 0 {
        let text = format!("{peer}: nobody can listen on port 0; name the listener's port");
        return Err(Fault::new(libc::ECONNREFUSED, Code::Refused, text));
    }
    if peer.system == Some(*group.system()) {
        here(fd, &socket, group, peer, nonblocking)
    } else {
        elsewhere(fd, &socket, group, peer)?;
        if nonblocking {
            return Err(in_progress());
        }
        wait(fd, &socket)
    }
}

enum Step {
    Begin,
    Wait,
    Done(Outcome<()>),
}

fn is_connected() -> Fault {
    Fault::state(libc::EISCONN, "the socket is connected or listens already")
}

fn in_progress() -> Fault {
    Fault::plain(libc::EINPROGRESS)
}

/// Connects to a port of this system.
fn here(
    fd: RawFd,
    socket: &Arc<Socket>,
    group: Group,
    peer: Addr,
    nonblocking: bool,
) -> Outcome<()> {
    let (spent, named, from) = table::with(socket, |state| {
        let from = state.reserved.as_ref().map(|reserved| reserved.port());
        (state.spent, state.named, from)
    });
    if spent || named.is_some_and(|(port, _)| port != peer.port) {
        renew(fd, socket)?;
    }
    let named = table::with(socket, |state| state.named);
    let local = match named {
        Some((_, local)) => local,
        None => {
            let local = door::take_name(&group, peer.port, from, borrow(fd))?;
            table::with(socket, |state| state.named = Some((peer.port, local)));
            local
        }
    };
    let path = SocketPath::new(&door::dir(&group).port_socket(peer.port))?;
    let connected = connect_unix(fd, &path);
    if let Err(Fault {
        errno: libc::ENOENT | libc::ECONNREFUSED,
        ..
    }) = connected
    {
        let refused = Fault::from(door::refused(&group, peer.port));
        return Err(if nonblocking {
            refuse_later(fd, socket, refused)
        } else {
            refused
        });
    }
    connected.map_err(|fault| match fault.errno {
        libc::EAGAIN if !nonblocking => Fault::new(
            libc::ETIMEDOUT,
            Code::Timeout,
            format!("{peer} did not take the connection in time: its listener's queue is full"),
        ),
        libc::EAGAIN => Fault::new(
            libc::EAGAIN,
            Code::Timeout,
            format!("the queue of the listener at {peer} is full: try again"),
        ),
        _ => fault,
    })?;
    let fate = door::join(borrow(fd)).inspect_err(|_| {
        table::with(socket, |state| state.spent = true);
    })?;
    let local = Addr::new(*group.system(), local);
    table::with(socket, |state| {
        state.phase = Phase::Connected;
        state.told = !nonblocking;
        state.user = std::process::id();
        state.group = Some(group);
        state.local = Some(local);
        state.peer = Some(peer);
        state.fate = Some(Arc::new(fate));
    });
    if !nonblocking {
        return Ok(());
    }
    // As TCP has it, even on one host: told later, by an event that an edge-triggered epoll sees.
    show_writable(fd);
    Err(in_progress())
}

/// The refusal of a call that does not wait: an error is pending, and the socket shows it.
fn refuse_later(fd: RawFd, socket: &Arc<Socket>, refused: Fault) -> Fault {
    let Ok(ends) = meet(fd, socket) else {
        return refused;
    };
    table::with(socket, |state| state.phase = Phase::Failed(Some(refused)));
    // Closed with a byte unread.
    // SAFETY: one byte of ours.
    unsafe {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        libc::send(fd, [0_u8].as_ptr().cast(), 1, flags)
    };
    drop(ends);
    in_progress()
}

/// Makes the kernel report once more that the socket is writable: it does when the send buffer's size is set.
fn show_writable(fd: RawFd) {
    if let Ok(bytes) = rustix::net::sockopt::socket_send_buffer_size(borrow(fd)) {
        // The kernel tells twice what it was given.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(borrow(fd), bytes / 2);
    }
}

fn connect_unix(fd: RawFd, path: &SocketPath) -> Outcome<()> {
    match rustix::net::connect(borrow(fd), path.address()) {
        Ok(()) => Ok(()),
        Err(errno) => Err(Fault::plain(errno.raw_os_error())),
    }
}

/// Asks the engine for a stream to another system. When it returns, the socket is on its way.
fn elsewhere(fd: RawFd, socket: &Arc<Socket>, group: Group, peer: Addr) -> Outcome<()> {
    static ATTEMPTS: AtomicU64 = AtomicU64::new(1);
    let (spent, named, from, limit) = table::with(socket, |state| {
        let from = state.reserved.as_ref().map(|reserved| reserved.port());
        (state.spent, state.named, from, state.connect_ms)
    });
    if spent || named.is_some() {
        renew(fd, socket)?;
    }
    let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
    let engines = meet(fd, socket)?;
    table::with(socket, |state| {
        state.phase = Phase::Connecting;
        state.attempt = attempt;
        state.told = false;
        state.user = std::process::id();
    });
    let how = Opening {
        raw: false,
        timeout: (limit > 0).then(|| Duration::from_millis(u64::from(limit))),
        local_port: from,
        skip: fill(fd),
    };
    let asked = Arc::clone(socket);
    let spawned = home::without_signals(|| {
        std::thread::Builder::new()
            .name("stp-connect".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let to = peer.system.unwrap_or(*group.system());
                let calls = Arc::clone(door::calls(&group));
                let answer = calls
                    .connect_with(&to, peer.port, engines, how)
                    .map(|connected| {
                        let local = Addr::new(*group.system(), connected.local_port);
                        let token = connected.token;
                        (Fate::Engine { calls, token }, local)
                    })
                    .map_err(|why| Fault::from(door::failure(&group, &peer, how.timeout, why)));
                answered(&asked, attempt, group, peer, answer);
            })
    });
    if let Err(error) = spawned {
        table::with(socket, |state| state.phase = Phase::Fresh);
        let text = format!("no thread to connect with: {error}; raise the limit of processes");
        return Err(Fault::new(libc::EAGAIN, Code::Limit, text));
    }
    Ok(())
}

/// What came of an attempt.
fn answered(
    socket: &Arc<Socket>,
    attempt: u64,
    group: Group,
    peer: Addr,
    answer: Outcome<(Fate, Addr)>,
) {
    // The end is declared before the program hears that it is connected, and outside the lock: an engine is asked.
    let declared = match &answer {
        Ok((fate, _)) if table::with(socket, |state| state.tcp_end) => {
            fate.mark();
            true
        }
        _ => false,
    };
    let unwanted = table::with(socket, |state| {
        if state.attempt != attempt || !matches!(state.phase, Phase::Connecting) {
            return Some(answer);
        }
        match answer {
            Ok((fate, local)) => {
                state.phase = Phase::Connected;
                state.group = Some(group);
                state.local = Some(local);
                state.peer = Some(peer);
                state.marked = declared;
                state.fate = Some(Arc::new(fate));
            }
            Err(fault) => state.phase = Phase::Failed(Some(fault)),
        }
        state.waiting.clear();
        None
    });
    match unwanted {
        Some(Ok((fate, _))) => fate.abort(),
        Some(Err(_)) => {}
        // Declared in this very moment.
        None if table::with(socket, |state| state.tcp_end) => super::options::end_as_tcp(socket),
        None => {}
    }
}

/// Joins the program's socket with a fresh one, which is returned.
fn meet(fd: RawFd, socket: &Socket) -> Outcome<OwnedFd> {
    // Even if this fails: it may be connected by then.
    table::with(socket, |state| state.spent = true);
    let listener = socket::kernel_socket(libc::SOCK_CLOEXEC)?;
    let mut name: libc::sockaddr_un = zeroed_name();
    let mut len = size_of::<libc::sa_family_t>() as socklen_t;
    // SAFETY: the addresses are valid for the lengths given; results are checked.
    unsafe {
        let place = (&raw mut name).cast::<libc::sockaddr>();
        // Without a path the kernel chooses a name that is free.
        if libc::bind(listener.as_raw_fd(), place, len) != 0
            || libc::listen(listener.as_raw_fd(), 1) != 0
        {
            return Err(Fault::last());
        }
        len = size_of::<libc::sockaddr_un>() as socklen_t;
        if libc::getsockname(listener.as_raw_fd(), place, &mut len) != 0
            || libc::connect(fd, place, len) != 0
        {
            return Err(Fault::last());
        }
        loop {
            let none = std::ptr::null_mut();
            let ends = libc::accept4(
                listener.as_raw_fd(),
                none,
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC,
            );
            if ends < 0 {
                match Fault::last() {
                    fault if fault.errno == libc::EINTR => continue,
                    fault => return Err(fault),
                }
            }
            let ends = OwnedFd::from_raw_fd(ends);
            // The name is open to the host for a moment: whoever is not us is not meant.
            let peer = rustix::net::sockopt::socket_peercred(&ends);
            if peer.is_ok_and(|peer| peer.pid == rustix::process::getpid()) {
                return Ok(ends);
            }
        }
    }
}

fn zeroed_name() -> libc::sockaddr_un {
    libc::sockaddr_un {
        sun_family: libc::AF_UNIX as libc::sa_family_t,
        sun_path: [0; 108],
    }
}

/// Fills the socket's send buffer: it is not writable until the other end has taken as many bytes.
fn fill(fd: RawFd) -> u64 {
    static NOTHING: [u8; 32 << 10] = [0; 32 << 10];
    let mut filled = 0;
    loop {
        // SAFETY: the buffer is valid for its length.
        let sent = unsafe {
            libc::send(
                fd,
                NOTHING.as_ptr().cast(),
                NOTHING.len(),
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        match sent {
            1.. => filled += sent as u64,
            _ if Fault::last().errno == libc::EINTR => {}
            _ => return filled,
        }
    }
}

/// Waits for the answer as long as the socket's send time-out allows.
fn wait(fd: RawFd, socket: &Arc<Socket>) -> Outcome<()> {
    let (ours, theirs) = pair()?;
    // SAFETY: the kernel fills and reads a `timeval`.
    unsafe {
        let mut limit: libc::timeval = std::mem::zeroed();
        let place = (&raw mut limit).cast::<c_void>();
        let mut len = size_of::<libc::timeval>() as socklen_t;
        if libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO, place, &mut len) == 0 {
            let ours = ours.as_raw_fd();
            libc::setsockopt(ours, libc::SOL_SOCKET, libc::SO_RCVTIMEO, place, len);
        }
    }
    let connecting = table::with(socket, |state| {
        let connecting = matches!(state.phase, Phase::Connecting);
        if connecting {
            state.waiting.push(theirs);
        }
        connecting
    });
    if connecting {
        let mut byte = 0_u8;
        // SAFETY: one byte of ours. The kernel restarts it or not, as it would TCP's `connect`.
        let got = unsafe { libc::recv(ours.as_raw_fd(), (&raw mut byte).cast(), 1, 0) };
        if got < 0 {
            return Err(match Fault::last() {
                fault if fault.errno == libc::EAGAIN => in_progress(),
                fault => fault,
            });
        }
    }
    set_send_buffer(fd, socket);
    table::with(socket, |state| match &mut state.phase {
        Phase::Connected => {
            state.told = true;
            Ok(())
        }
        Phase::Failed(why) => {
            let why = why.take();
            state.phase = Phase::Fresh;
            clear_error(fd);
            Err(why.unwrap_or_else(|| Fault::plain(libc::ECONNABORTED)))
        }
        _ => Err(Fault::plain(libc::EBADF)),
    })
}

/// The kernel's own pending error stands for one that has been told.
pub(super) fn clear_error(fd: RawFd) {
    let _ = rustix::net::sockopt::socket_error(borrow(fd));
}

fn pair() -> Outcome<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    socketpair(family, SocketType::STREAM, flags, None)
        .map_err(|errno| Fault::plain(errno.raw_os_error()))
}

/// If the kernel shows that connecting is over, waits until the library knows it too, and does what waited for that.
pub(super) fn settle(fd: RawFd) {
    if let Ok(socket) = table::find(fd) {
        await_answer(fd, &socket);
        set_send_buffer(fd, &socket);
    }
}

/// A send buffer that was asked for while connecting.
fn set_send_buffer(fd: RawFd, socket: &Socket) {
    let asked = table::with(socket, |state| match state.phase {
        Phase::Connected => state.send_buffer.take(),
        _ => None,
    });
    if let Some(bytes) = asked {
        socket::apply(fd, &[(libc::SOL_SOCKET, libc::SO_SNDBUF, bytes)]);
    }
}

fn await_answer(fd: RawFd, socket: &Socket) {
    let connecting = || table::with(socket, |state| matches!(state.phase, Phase::Connecting));
    if !connecting() {
        return;
    }
    let mut polled = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one structure of ours.
    if unsafe { libc::poll(&mut polled, 1, 0) } <= 0 {
        return;
    }
    let Ok((ours, theirs)) = pair() else {
        return;
    };
    let waits = table::with(socket, |state| {
        let waits = matches!(state.phase, Phase::Connecting);
        if waits {
            state.waiting.push(theirs);
        }
        waits
    });
    if waits {
        let ours = rustix::event::PollFd::new(&ours, rustix::event::PollFlags::IN);
        let limit = rustix::event::Timespec {
            tv_sec: SETTLE_MS / 1000,
            tv_nsec: 0,
        };
        let mut watched = [ours];
        while rustix::event::poll(&mut watched, Some(&limit)) == Err(rustix::io::Errno::INTR) {}
    }
}

/// `STPconnect` with `AF_UNSPEC`: whatever it was, it is a fresh socket.
fn dissolve(fd: RawFd, socket: &Arc<Socket>) -> Outcome<()> {
    settle(fd);
    let (fate, renews) = table::with(socket, |state| {
        let fate = state
            .fate
            .take()
            .filter(|_| state.user == std::process::id());
        let renews = !matches!(state.phase, Phase::Fresh) || state.spent;
        if !matches!(state.phase, Phase::Listening) {
            state.phase = Phase::Fresh;
            if state.reserved.is_none() {
                state.local = None;
            }
            (state.peer, state.ended) = (None, None);
            (state.read_shut, state.write_shut, state.marked) = (false, false, false);
            state.break_told = false;
            state.attempt = 0;
            state.waiting.clear();
        }
        (fate, renews)
    });
    if let Some(fate) = fate {
        fate.abort();
    }
    if renews {
        super::listen::stop(socket);
        renew(fd, socket)?;
    }
    Ok(())
}

/// The socket's pending error: what `SO_ERROR` tells, and clears.
pub(super) fn take_error(fd: RawFd) -> Outcome<c_int> {
    settle(fd);
    let socket = table::find(fd)?;
    // Cleared in any case.
    let kernels = rustix::net::sockopt::socket_error(borrow(fd))
        .map_err(|errno| Fault::plain(errno.raw_os_error()))?;
    let told = table::with(&socket, |state| match &mut state.phase {
        Phase::Failed(why) => Some(why.take().map_or(0, |fault| fault.errno)),
        _ => None,
    });
    if let Some(errno) = told {
        return Ok(errno);
    }
    if let Err(errno) = kernels {
        return Ok(errno.raw_os_error());
    }
    Ok(super::data::broken(fd, &socket).map_or(0, |fault| fault.errno))
}

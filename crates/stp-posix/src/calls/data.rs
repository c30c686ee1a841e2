//! Bytes: sending, receiving, shutting down, waiting.
//!
//! - The kernel moves them. Here is only what it cannot know: what the end of the bytes means, and what TCP would
//!   say where a Unix socket says something else.
//! - A stream that broke is `ECONNRESET` after every byte that had arrived, never an end of file. A send tells it
//!   once; from then on it is `EPIPE` and `SIGPIPE`, as with TCP.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use libc::{c_int, c_void, iovec};
use stp::door::Fate;

use super::fault::{Code, Fault, Outcome};
use super::socket::{Phase, Socket};
use super::table;

const RECV_FLAGS: c_int =
    libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL | libc::MSG_OOB;
const SEND_FLAGS: c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_OOB | libc::MSG_MORE;

fn known(flags: c_int, allowed: c_int, call: &str) -> Outcome<()> {
    if flags & !allowed == 0 {
        return Ok(());
    }
    let text = format!("{call} does not have the flags {:#x}", flags & !allowed);
    Err(Fault::new(libc::EOPNOTSUPP, Code::Flags, text))
}

/// `STPrecv`, `STPread`.
pub fn recv(fd: RawFd, to: *mut c_void, len: usize, flags: c_int) -> Outcome<usize> {
    let socket = table::find(fd)?;
    known(flags, RECV_FLAGS, "STPrecv")?;
    may_receive(fd, &socket)?;
    // SAFETY: the kernel checks the program's memory.
    let got = unsafe { libc::recv(fd, to, len, flags) };
    received(fd, &socket, got, len > 0, flags)
}

/// `STPreadv`.
pub fn readv(fd: RawFd, parts: *const iovec, count: c_int) -> Outcome<usize> {
    let socket = table::find(fd)?;
    may_receive(fd, &socket)?;
    // SAFETY: the kernel checks the program's memory.
    let got = unsafe { libc::readv(fd, parts, count) };
    // An end of file where nothing was asked for cannot be told apart without reading the parts: the kernel
    // answers 0 at once, and the socket tells whether it ended.
    received(fd, &socket, got, got == 0 && has_ended(fd), 0)
}

fn may_receive(fd: RawFd, socket: &Arc<Socket>) -> Outcome<()> {
    used_here(socket, |phase| match phase {
        Phase::Connected | Phase::Connecting => None,
        Phase::Failed(why) => {
            super::connect::clear_error(fd);
            Some(why.take().unwrap_or_else(not_connected))
        }
        Phase::Fresh | Phase::Listening => Some(not_connected()),
    })
    .map_or(Ok(()), Err)
}

/// Looks at the state of a socket that this process is about to use.
fn used_here(
    socket: &Arc<Socket>,
    look: impl FnOnce(&mut Phase) -> Option<Fault>,
) -> Option<Fault> {
    let pid = std::process::id();
    let (fault, foreign, gift) = table::with(socket, |state| {
        let foreign = state.user != pid;
        (look(&mut state.phase), foreign, state.gift.clone())
    });
    if foreign {
        socket.touch();
    }
    match gift {
        Some(gift) if fault.is_none() => super::give::may_use(&gift),
        _ => fault,
    }
}

fn not_connected() -> Fault {
    Fault::state(libc::ENOTCONN, "the socket is not connected")
}

fn received(
    fd: RawFd,
    socket: &Arc<Socket>,
    got: isize,
    wanted: bool,
    flags: c_int,
) -> Outcome<usize> {
    match got {
        1.. => Ok(got as usize),
        0 if wanted && flags & libc::MSG_OOB == 0 => {
            super::connect::settle(fd);
            end_of_file(fd, socket)
        }
        0 => Ok(0),
        _ => Err(match Fault::last() {
            fault if fault.errno == libc::ECONNRESET => {
                super::connect::settle(fd);
                connect_failure(fd, socket).unwrap_or_else(|| why_reset(socket))
            }
            fault => fault,
        }),
    }
}

/// The reason of a connection that failed in the meantime.
fn connect_failure(fd: RawFd, socket: &Socket) -> Option<Fault> {
    table::with(socket, |state| match &mut state.phase {
        Phase::Failed(why) => why.take().inspect(|_| super::connect::clear_error(fd)),
        _ => None,
    })
}

fn end_of_file(fd: RawFd, socket: &Arc<Socket>) -> Outcome<usize> {
    if let Some(fault) = connect_failure(fd, socket) {
        return Err(fault);
    }
    let shut = table::with(socket, |state| state.read_shut);
    if shut {
        return Ok(0);
    }
    match peer_end(socket) {
        None => Ok(0),
        Some(fault) => Err(fault),
    }
}

fn why_reset(socket: &Arc<Socket>) -> Fault {
    peer_end(socket)
        .unwrap_or_else(|| Fault::reset("it was closed before everything sent to it was read"))
}

/// How the peer's bytes ended, now that the socket says so.
fn peer_end(socket: &Arc<Socket>) -> Option<Fault> {
    if let Some(known) = table::with(socket, |state| state.ended.clone()) {
        return known;
    }
    let fate = socket.touch()?;
    let ended = fate.peer_end().map(|why| broke(socket, &fate, &why));
    table::with(socket, |state| state.ended.get_or_insert(ended).clone())
}

/// A broken stream's error: `EIO` if it is our own engine that is gone.
fn broke(socket: &Socket, fate: &Fate, why: &str) -> Fault {
    let (peer, group) = table::with(socket, |state| (state.peer.clone(), state.group.clone()));
    let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
    if let (Fate::Engine { calls, .. }, Some(group)) = (fate, &group)
        && super::home::opened().is_some_and(|open| open.volume_id() == group.volume_id())
        && let Err(gone) = calls.peers()
    {
        let text = format!("the stream to {peer} broke: {gone}");
        return Fault::new(libc::EIO, Code::Engine, text);
    }
    Fault::reset(format!("connection reset by {peer}: {why}"))
}

fn polled(fd: RawFd, events: i16) -> i16 {
    let mut polled = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // SAFETY: one structure of ours.
    match unsafe { libc::poll(&mut polled, 1, 0) } {
        1 => polled.revents,
        _ => 0,
    }
}

/// Whether the far end of the socket will send nothing more.
fn has_ended(fd: RawFd) -> bool {
    polled(fd, libc::POLLRDHUP) & (libc::POLLRDHUP | libc::POLLHUP) != 0
}

/// The error that a stream has pending which broke while its own half was open.
pub(super) fn broken(fd: RawFd, socket: &Arc<Socket>) -> Option<Fault> {
    let open = table::with(socket, |state| {
        matches!(state.phase, Phase::Connected) && !state.write_shut && !state.break_told
    });
    if !open || polled(fd, 0) & libc::POLLHUP == 0 {
        return None;
    }
    let fate = socket.touch()?;
    let fault = fate.broken().map(|why| broke(socket, &fate, &why))?;
    table::with(socket, |state| state.break_told = true);
    Some(fault)
}

/// `STPsend`, `STPwrite`.
pub fn send(fd: RawFd, from: *const c_void, len: usize, flags: c_int) -> Outcome<usize> {
    let socket = table::find(fd)?;
    known(flags, SEND_FLAGS, "STPsend")?;
    let quiet = flags & libc::MSG_NOSIGNAL != 0;
    may_send(fd, &socket, quiet)?;
    let flags = flags & !libc::MSG_MORE | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel checks the program's memory.
    let sent = unsafe { libc::send(fd, from, len, flags) };
    after_send(fd, &socket, sent, quiet)
}

/// `STPwritev`.
pub fn writev(fd: RawFd, parts: *const iovec, count: c_int) -> Outcome<usize> {
    let socket = table::find(fd)?;
    may_send(fd, &socket, false)?;
    if !(0..=libc::UIO_MAXIOV).contains(&count) {
        return Err(Fault::plain(libc::EINVAL));
    }
    // SAFETY: plain data; the kernel checks the program's memory.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = parts.cast_mut();
        message.msg_iovlen = count as _;
        libc::sendmsg(fd, &message, libc::MSG_NOSIGNAL)
    };
    after_send(fd, &socket, sent, false)
}

fn may_send(fd: RawFd, socket: &Arc<Socket>, quiet: bool) -> Outcome<()> {
    let fault = used_here(socket, |phase| match phase {
        Phase::Connected | Phase::Connecting => None,
        Phase::Failed(why) => {
            super::connect::clear_error(fd);
            Some(why.take().unwrap_or_else(|| pipe("the connection failed")))
        }
        Phase::Fresh | Phase::Listening => Some(pipe("the socket is not connected")),
    });
    match fault {
        None => Ok(()),
        Some(fault) => Err(signalled(fault, quiet)),
    }
}

fn pipe(text: &str) -> Fault {
    Fault::state(libc::EPIPE, text)
}

/// `EPIPE` comes with `SIGPIPE`, unless the call said no.
fn signalled(fault: Fault, quiet: bool) -> Fault {
    if fault.errno == libc::EPIPE && !quiet {
        // SAFETY: a system call with plain arguments.
        unsafe { libc::raise(libc::SIGPIPE) };
    }
    fault
}

fn after_send(fd: RawFd, socket: &Arc<Socket>, sent: isize, quiet: bool) -> Outcome<usize> {
    if sent >= 0 {
        return Ok(sent as usize);
    }
    let fault = Fault::last();
    let fault = match fault.errno {
        libc::EPIPE => {
            super::connect::settle(fd);
            if let Some(fault) = connect_failure(fd, socket) {
                return Err(fault);
            }
            let (shut, told) = table::with(socket, |state| (state.write_shut, state.break_told));
            let why = if shut || told || !has_ended(fd) {
                None
            } else {
                peer_end(socket)
            };
            table::with(socket, |state| state.break_told = true);
            why.unwrap_or_else(|| pipe("the peer or this end has closed the stream"))
        }
        libc::ECONNRESET => {
            table::with(socket, |state| state.break_told = true);
            connect_failure(fd, socket).unwrap_or_else(|| why_reset(socket))
        }
        _ => fault,
    };
    Err(signalled(fault, quiet))
}

/// `STPshutdown`: 0 stops incoming, 1 outgoing, 2 both.
pub fn shutdown(fd: RawFd, how: c_int) -> Outcome<()> {
    let socket = table::find(fd)?;
    if !(0..=2).contains(&how) {
        let text = format!("STPshutdown has SHUT_RD, SHUT_WR and SHUT_RDWR, not {how}");
        return Err(Fault::new(libc::EINVAL, Code::Flags, text));
    }
    super::connect::settle(fd);
    let phase = table::with(&socket, |state| state.phase.clone());
    match phase {
        Phase::Fresh | Phase::Failed(_) => return Err(not_connected()),
        Phase::Listening => {
            return match how {
                libc::SHUT_WR => Ok(()),
                _ => super::listen::shut(fd, &socket),
            };
        }
        Phase::Connecting | Phase::Connected => {
            let fate = socket.touch();
            let marks = table::with(&socket, |state| {
                state.read_shut |= how != libc::SHUT_WR;
                let marks = how != libc::SHUT_RD && !state.marked && fate.is_some();
                state.marked |= marks;
                marks
            });
            if let Some(fate) = fate.filter(|_| marks) {
                fate.mark();
            }
            table::with(&socket, |state| state.write_shut |= how != libc::SHUT_RD);
        }
    }
    // SAFETY: a system call with plain arguments.
    let done = unsafe { libc::shutdown(fd, how) };
    if done == 0 {
        Ok(())
    } else {
        Err(Fault::last())
    }
}

/// `STPpoll`: the kernel's, `POLLERR` where a stream broke, and `POLLPRI` where a gift is settled.
pub fn poll(fds: *mut libc::pollfd, count: libc::nfds_t, timeout_ms: c_int) -> Outcome<c_int> {
    let kernel = |fds: *mut libc::pollfd, count: usize| {
        // SAFETY: the kernel checks the program's memory.
        let ready = unsafe { libc::poll(fds, count as libc::nfds_t, timeout_ms) };
        if ready < 0 {
            Err(Fault::last())
        } else {
            Ok(ready)
        }
    };
    if !table::any_gifts() {
        let ready = kernel(fds, count as usize)?;
        if ready > 0 {
            // SAFETY: the kernel has just read and written all of it.
            add_errors(unsafe { std::slice::from_raw_parts_mut(fds, count as usize) });
        }
        return Ok(ready);
    }
    let mut all = program_fds(fds, count as usize)?;
    let wanted = |polled: &&libc::pollfd| polled.events & libc::POLLPRI != 0;
    let gifts = super::give::gifts(all.iter().filter(wanted).map(|polled| polled.fd));
    all.extend(gifts.iter().map(|(_, gift)| libc::pollfd {
        fd: gift.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    }));
    kernel(all.as_mut_ptr(), all.len())?;
    let notices = all.split_off(count as usize);
    for ((fd, _), notice) in gifts.iter().zip(&notices) {
        let settled = notice.revents != 0;
        for polled in all.iter_mut().filter(|p| settled && p.fd == *fd) {
            polled.revents |= libc::POLLPRI & polled.events;
        }
    }
    add_errors(&mut all);
    // SAFETY: plain data, read as bytes.
    let bytes = unsafe { std::slice::from_raw_parts(all.as_ptr().cast(), size_of_val(&all[..])) };
    super::memory::write(fds.cast(), bytes)?;
    Ok(all.iter().filter(|polled| polled.revents != 0).count() as c_int)
}

fn program_fds(fds: *mut libc::pollfd, count: usize) -> Outcome<Vec<libc::pollfd>> {
    if count > 1 << 20 {
        return Err(Fault::plain(libc::EINVAL));
    }
    let none = libc::pollfd {
        fd: -1,
        events: 0,
        revents: 0,
    };
    let mut all = vec![none; count];
    // SAFETY: plain data, any bytes are a `pollfd`.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut(all.as_mut_ptr().cast(), size_of_val(&all[..])) };
    super::memory::read(fds.cast(), bytes)?;
    Ok(all)
}

fn add_errors(fds: &mut [libc::pollfd]) {
    for polled in fds.iter_mut().filter(|p| p.revents & libc::POLLHUP != 0) {
        if is_broken(polled.fd) {
            polled.revents |= libc::POLLERR | (polled.events & libc::POLLOUT);
        }
    }
}

/// Whether a stream whose both halves are over broke: nothing is taken away by asking.
fn is_broken(fd: RawFd) -> bool {
    let Ok(socket) = table::find(fd) else {
        return false;
    };
    super::connect::settle(fd);
    let (failed, asks) = table::with(&socket, |state| {
        let failed = matches!(state.phase, Phase::Failed(Some(_)));
        let asks = matches!(state.phase, Phase::Connected) && !state.break_told;
        (failed, asks && !state.read_shut && state.gift.is_none())
    });
    failed || asks && peer_end(&socket).is_some()
}

/// `STPselect`: the kernel's; a settled gift is an exception.
pub fn select(
    count: c_int,
    read: *mut libc::fd_set,
    write: *mut libc::fd_set,
    except: *mut libc::fd_set,
    timeout: *mut libc::timeval,
) -> Outcome<c_int> {
    let gifts = if except.is_null() || !table::any_gifts() {
        Vec::new()
    } else {
        // SAFETY: plain data; read by the kernel first.
        let set = unsafe {
            let mut set: libc::fd_set = std::mem::zeroed();
            let bytes = std::slice::from_raw_parts_mut((&raw mut set).cast(), size_of_val(&set));
            super::memory::read(except.cast(), bytes)?;
            set
        };
        let most = count.clamp(0, libc::FD_SETSIZE as c_int);
        // SAFETY: below the set's size.
        let wanted = (0..most).filter(|fd| unsafe { libc::FD_ISSET(*fd, &set) });
        super::give::gifts(wanted)
    };
    let too_far =
        |(_, gift): &(RawFd, Arc<stp::Gift>)| gift.as_raw_fd() >= libc::FD_SETSIZE as RawFd;
    if gifts.is_empty() || gifts.iter().any(too_far) {
        // SAFETY: the kernel checks the program's memory.
        let ready = unsafe { libc::select(count, read, write, except, timeout) };
        return if ready < 0 {
            Err(Fault::last())
        } else {
            Ok(ready)
        };
    }
    let mut last = count;
    // SAFETY: the program's set was just read, and is its own; the numbers are below the set's size.
    let ready = unsafe {
        for (_, gift) in &gifts {
            let notice = gift.as_raw_fd();
            libc::FD_SET(notice, except);
            last = last.max(notice + 1);
        }
        libc::select(last, read, write, except, timeout)
    };
    if ready < 0 {
        return Err(Fault::last());
    }
    let mut ready = ready;
    for (fd, gift) in &gifts {
        // SAFETY: as above.
        unsafe {
            let notice = gift.as_raw_fd();
            if libc::FD_ISSET(notice, except) {
                libc::FD_CLR(notice, except);
                if libc::FD_ISSET(*fd, except) {
                    ready -= 1;
                }
                libc::FD_SET(*fd, except);
            }
        }
    }
    Ok(ready)
}

//! `STPbind`, `STPlisten`, `STPaccept`, and the names of sockets.
//!
//! - A bound port is taken for the whole system at once, before anybody listens on it.
//! - `STPlisten` returns when every system can connect.

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use libc::{c_char, c_int, c_void, socklen_t};
use stp::door;
use stp::{Addr, Group};
use stp_host::rendezvous::Reservation;

use super::address::Given;
use super::fault::{Code, Fault, Outcome};
use super::socket::{Phase, Socket, apply, borrow, renew};
use super::{address, home, memory, table};

/// `STPbind`.
pub fn bind(fd: RawFd, to: *const c_void, len: socklen_t) -> Outcome<()> {
    let socket = table::find(fd)?;
    let addr = match address::read(to, len)? {
        Given::Address(addr) => addr,
        Given::Nothing => {
            let text = "STPbind to AF_UNSPEC: write AF_STP";
            return Err(Fault::new(libc::EAFNOSUPPORT, Code::Address, text));
        }
    };
    let bound = table::with(&socket, |state| {
        state.reserved.is_some() || !matches!(state.phase, Phase::Fresh)
    });
    if bound {
        return Err(Fault::state(
            libc::EINVAL,
            "the socket is bound, listening or connected already",
        ));
    }
    let group = home::group()?;
    let not_ours = |text: String| Fault::new(libc::EADDRNOTAVAIL, Code::System, text);
    if let Some(asked) = addr.group.filter(|asked| asked != group.name()) {
        return Err(not_ours(format!(
            "{addr}: this system is in the group {}, not {asked}: leave the group out",
            group.name()
        )));
    }
    if let Some(asked) = addr.system.filter(|asked| asked != group.system()) {
        return Err(not_ours(format!(
            "{addr}: this system is {}, not {asked}: leave the system out",
            group.system()
        )));
    }
    let reserved = Reservation::take(door::dir(&group), addr.port)?;
    let second = table::with(&socket, |state| {
        if state.reserved.is_some() {
            return Some(reserved);
        }
        state.local = Some(Addr::new(*group.system(), reserved.port()));
        state.reserved = Some(reserved);
        state.group = Some(group);
        None
    });
    match second {
        None => Ok(()),
        // Dropped out of the lock: that waits for the lock of the ports.
        Some(_) => Err(Fault::state(libc::EINVAL, "the socket is bound already")),
    }
}

/// `STPlisten`.
pub fn listen(fd: RawFd, backlog: c_int) -> Outcome<()> {
    let socket = table::find(fd)?;
    super::connect::settle(fd);
    let (phase, spent) = table::with(&socket, |state| {
        (state.phase.clone(), state.spent || state.named.is_some())
    });
    match phase {
        Phase::Fresh | Phase::Failed(_) => {}
        Phase::Listening => {
            // SAFETY: a system call with plain arguments.
            let done = unsafe { libc::listen(fd, backlog) };
            return if done == 0 {
                Ok(())
            } else {
                Err(Fault::last())
            };
        }
        Phase::Connecting | Phase::Connected => {
            return Err(Fault::state(
                libc::EINVAL,
                "the socket is connected: it cannot listen",
            ));
        }
    }
    let group = home::group()?;
    if spent {
        renew(fd, &socket)?;
    }
    let (reserved, had) = table::with(&socket, |state| {
        let had = state.local.as_ref().map_or(0, |local| local.port);
        (state.reserved.take(), had)
    });
    let reserved = match reserved {
        Some(reserved) => reserved,
        None => Reservation::take(door::dir(&group), had)?,
    };
    let port = reserved.port();
    // From here on the kernel's socket has its name for good.
    table::with(&socket, |state| state.spent = true);
    let published = reserved.listen(borrow(fd), backlog).and_then(|file| {
        door::calls(&group).listen(port, &file.path(), false)?;
        Ok(file)
    });
    let local = Addr::new(*group.system(), port);
    let file = match published {
        Ok(file) => file,
        Err(error) => {
            keep_port(&socket, &group, local);
            return Err(error.into());
        }
    };
    table::with(&socket, |state| {
        state.phase = Phase::Listening;
        state.user = std::process::id();
        state.local = Some(local);
        state.file = Some(file);
        state.group = Some(group);
    });
    Ok(())
}

/// A port stays its socket's when nobody listens on it any more, as TCP has it. If another takes it in this very
/// moment, the next `STPlisten` is told `EADDRINUSE`.
fn keep_port(socket: &Socket, group: &Group, local: Addr) {
    let reserved = Reservation::take(door::dir(group), local.port).ok();
    let before = table::with(socket, |state| {
        state.local = Some(local);
        std::mem::replace(&mut state.reserved, reserved)
    });
    drop(before);
}

/// The socket listens no more.
pub(super) fn stop(socket: &Socket) {
    let (file, group, local) = table::with(socket, |state| {
        if !matches!(state.phase, Phase::Listening) {
            return (None, None, None);
        }
        state.phase = Phase::Fresh;
        // What a forked child has not published it cannot withdraw.
        let ours = state.user == std::process::id();
        let file = state.file.take_if(|_| ours);
        (file, state.group.clone(), state.local.clone())
    });
    if let (Some(file), Some(group), Some(local)) = (file, group, local) {
        door::calls(&group).unlisten(file.port());
        drop(file);
        keep_port(socket, &group, local);
    }
}

/// `STPshutdown` for reading on a listener: whoever waits in its queue is reset, whoever waits in `STPaccept` wakes.
pub(super) fn shut(fd: RawFd, socket: &Socket) -> Outcome<()> {
    // SAFETY: system calls with plain arguments; what `accept4` returns is nobody's yet.
    unsafe {
        if libc::shutdown(fd, libc::SHUT_RD) != 0 {
            return Err(Fault::last());
        }
        // It does not wait any more.
        let none = std::ptr::null_mut();
        loop {
            match libc::accept4(fd, none, std::ptr::null_mut(), libc::SOCK_CLOEXEC) {
                ..0 => break,
                waiting => drop(OwnedFd::from_raw_fd(waiting)),
            }
        }
    }
    stop(socket);
    Ok(())
}

/// The listener's group, as this process has it. A child of a program that uses a shared engine publishes the
/// port anew: it may outlive its parent.
fn listeners_group(socket: &Socket) -> Outcome<Group> {
    let (group, foreign, port) = table::with(socket, |state| {
        let foreign = state.user != std::process::id();
        (state.group.clone(), foreign, state.local.clone())
    });
    let not_listening = || Fault::state(libc::EINVAL, "the socket does not listen");
    let group = group.ok_or_else(not_listening)?;
    if !foreign || door::calls(&group).serves_children() {
        return Ok(group);
    }
    let own = home::group()?;
    if let Some(local) = port {
        let path = door::dir(&own).port_socket(local.port);
        door::calls(&own).listen(local.port, &path, false)?;
    }
    table::with(socket, |state| {
        state.user = std::process::id();
        std::mem::forget(state.group.replace(own.clone()));
    });
    Ok(own)
}

/// `STPaccept`, `STPaccept4`.
pub fn accept(fd: RawFd, to: *mut c_void, len: *mut socklen_t, flags: c_int) -> Outcome<RawFd> {
    let socket = table::find(fd)?;
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
        let text = "STPaccept4 has SOCK_NONBLOCK and SOCK_CLOEXEC only";
        return Err(Fault::new(libc::EINVAL, Code::Flags, text));
    }
    let listening = table::with(&socket, |state| matches!(state.phase, Phase::Listening));
    if !listening {
        let text = "the socket does not listen: call STPlisten first";
        return Err(Fault::state(libc::EINVAL, text));
    }
    if !to.is_null() {
        memory::room(len)?;
    }
    let group = listeners_group(&socket)?;
    loop {
        // SAFETY: a system call with plain arguments; what it returns is nobody's yet.
        let accepted = unsafe {
            let none = std::ptr::null_mut();
            let accepted = libc::accept4(fd, none, std::ptr::null_mut(), flags);
            if accepted < 0 {
                return Err(Fault::last());
            }
            OwnedFd::from_raw_fd(accepted)
        };
        // Gone before it said who it is: the next one.
        let Some((fate, peer)) = door::identify(&group, borrow(accepted.as_raw_fd()))? else {
            continue;
        };
        let (local, options, tcp_end) = table::with(&socket, |state| {
            let local = state.local.clone();
            (local, state.options.clone(), state.tcp_end)
        });
        apply(accepted.as_raw_fd(), &options);
        let local = local.unwrap_or_else(|| Addr::new(*group.system(), 0));
        let stream = Socket::connected(group.clone(), local, peer.clone(), fate);
        table::with(&stream, |state| state.options = options);
        if tcp_end {
            super::options::end_as_tcp(&stream);
        }
        let stream = Arc::new(stream);
        table::add(&accepted, Arc::clone(&stream))?;
        let told = if to.is_null() {
            Ok(())
        } else {
            memory::write_cut(to, len, &address::bytes(&full(&group, &peer)))
        };
        if let Err(fault) = told {
            drop(table::remove(accepted.as_raw_fd()));
            return Err(fault);
        }
        return Ok(accepted.into_raw_fd());
    }
}

/// With the group's name.
fn full(group: &Group, addr: &Addr) -> Addr {
    Addr {
        group: Some(*group.name()),
        ..addr.clone()
    }
}

/// `STPgethostname`: the socket's own address; for no socket (-1) or an unbound one, this system's.
pub fn host_name(fd: RawFd, to: *mut c_void, len: *mut socklen_t) -> Outcome<()> {
    let local = if fd == -1 {
        None
    } else {
        let socket = table::find(fd)?;
        super::connect::settle(fd);
        table::with(&socket, |state| state.local.clone())
    };
    memory::room(len)?;
    let group = home::group()?;
    let local = local.unwrap_or_else(|| Addr::new(*group.system(), 0));
    memory::write_cut(to, len, &address::bytes(&full(&group, &local)))
}

/// `STPgetpeername`.
pub fn peer_name(fd: RawFd, to: *mut c_void, len: *mut socklen_t) -> Outcome<()> {
    let socket = table::find(fd)?;
    super::connect::settle(fd);
    let peer = table::with(&socket, |state| match state.phase {
        Phase::Connected => state.peer.clone().zip(state.group.clone()),
        _ => None,
    });
    let not_connected = || Fault::state(libc::ENOTCONN, "the socket is not connected");
    let (peer, group) = peer.ok_or_else(not_connected)?;
    memory::write_cut(to, len, &address::bytes(&full(&group, &peer)))
}

/// `STPgethostbyname`: the address of a system, port 0.
pub fn host_by_name(name: *const c_char, to: *mut c_void) -> Outcome<()> {
    let name = memory::text(name)?;
    let plain = name.strip_suffix(".stp").unwrap_or(&name);
    let (asked, system) = match plain.split_once('/') {
        Some((group, system)) => (Some(group), system),
        None => (None, plain),
    };
    let group = home::group()?;
    let unknown = |text: String| Fault::new(libc::EHOSTUNREACH, Code::System, text);
    if asked.is_some_and(|asked| asked != group.name().as_str()) {
        let text = format!("{name}: the volume holds the group {}", group.name());
        return Err(Fault::new(libc::ENETUNREACH, Code::Group, text));
    }
    let known = group.systems()?;
    let found = match system {
        "" | "localhost" => Some(*group.system()),
        system => known
            .iter()
            .map(|known| known.name)
            .find(|known| known.as_str() == system),
    };
    let Some(found) = found else {
        let names: Vec<_> = known.iter().map(|known| known.name.to_string()).collect();
        return Err(unknown(format!(
            "the group {} has no system {system} (it has: {}); check the name, or start an engine or program there",
            group.name(),
            names.join(", ")
        )));
    };
    let addr = full(&group, &Addr::new(found, 0));
    memory::write(to, &address::bytes(&addr))
}

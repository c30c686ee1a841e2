//! Names: `accept`, `getsockname`, `getpeername`.
//!
//! - The kernel's call comes first and is what succeeds or fails; then the name that it has written is replaced.
//! - A system's kernel address becomes its face; the port stays. Only the engine's own addresses, and `::1`, have to be
//!   asked for.
//! - The two ends of a connection have mirrored names, also if the listener is bound to loopback.

use std::net::{Ipv6Addr, SocketAddr};

use libc::{c_int, sockaddr, socklen_t};
use stp_host::address::{self, SystemNumber};

use super::meaning::{in_family, with_ip};
use super::sys::{self, Raw};
use super::{Inet, Next};

/// Whose name it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Local,
    Peer,
}

impl Inet {
    /// `accept`.
    ///
    /// # Safety
    /// As the C library's.
    pub unsafe fn accept(
        &self,
        next: &Next,
        fd: c_int,
        address: *mut sockaddr,
        len: *mut socklen_t,
    ) -> c_int {
        // SAFETY: the program's own arguments.
        unsafe { self.accept_by(address, len, || (next.accept)(fd, address, len)) }
    }

    /// `accept4`.
    ///
    /// # Safety
    /// As the C library's.
    pub unsafe fn accept4(
        &self,
        next: &Next,
        fd: c_int,
        address: *mut sockaddr,
        len: *mut socklen_t,
        flags: c_int,
    ) -> c_int {
        // SAFETY: the program's own arguments.
        unsafe { self.accept_by(address, len, || (next.accept4)(fd, address, len, flags)) }
    }

    unsafe fn accept_by(
        &self,
        address: *mut sockaddr,
        len: *mut socklen_t,
        accept: impl Fn() -> c_int,
    ) -> c_int {
        // SAFETY: the program's own arguments.
        unsafe {
            let room = room(address, len);
            loop {
                let accepted = accept();
                if accepted < 0 {
                    return accepted;
                }
                if !self.is_stray(accepted) {
                    self.rename(accepted, End::Peer, address, room);
                    return accepted;
                }
                sys::close(accepted);
                restore(len, room);
            }
        }
    }

    /// `getsockname`.
    ///
    /// # Safety
    /// As the C library's.
    pub unsafe fn getsockname(
        &self,
        next: &Next,
        fd: c_int,
        address: *mut sockaddr,
        len: *mut socklen_t,
    ) -> c_int {
        // SAFETY: the program's own arguments.
        unsafe {
            let room = room(address, len);
            let result = (next.getsockname)(fd, address, len);
            if result == 0 {
                self.rename(fd, End::Local, address, room);
            }
            result
        }
    }

    /// `getpeername`.
    ///
    /// # Safety
    /// As the C library's.
    pub unsafe fn getpeername(
        &self,
        next: &Next,
        fd: c_int,
        address: *mut sockaddr,
        len: *mut socklen_t,
    ) -> c_int {
        // SAFETY: the program's own arguments.
        unsafe {
            let room = room(address, len);
            let result = (next.getpeername)(fd, address, len);
            if result == 0 {
                self.rename(fd, End::Peer, address, room);
            }
            result
        }
    }

    /// Whether it is the engine's late answer to a `connect` that was given up, and whose port listens now.
    fn is_stray(&self, accepted: c_int) -> bool {
        let Ok(peer) = sys::peer(accepted) else {
            return false;
        };
        address::is_reserved(peer.ip())
            && sys::local(accepted).is_ok_and(|local| self.whois(local, peer) == Ok(None))
    }

    /// Replaces the name that the kernel has just written to a place of this size.
    ///
    /// # Safety
    /// `address` is where the kernel has written, or `room` is 0.
    unsafe fn rename(&self, fd: c_int, end: End, address: *mut sockaddr, room: socklen_t) {
        if room == 0 {
            return;
        }
        let written = if room as usize >= size_of::<libc::sockaddr_in6>() {
            // SAFETY: the kernel has written a whole address there, if it is one of IPv4 or IPv6.
            unsafe { Raw::read(address, size_of::<libc::sockaddr_in6>() as socklen_t) }
        } else {
            match end {
                End::Local => sys::local(fd).ok(),
                End::Peer => sys::peer(fd).ok(),
            }
        };
        let name = written.and_then(|at| match end {
            End::Local => self.local_name(fd, at),
            End::Peer => self.peer_name(fd, at),
        });
        if let Some(name) = name {
            // SAFETY: the kernel has written a name of this family, hence of this length, cut to the room.
            unsafe { Raw::from(name).write(address, room) };
        }
    }

    /// What the program is told for the peer that the kernel names so; `None` to leave it.
    fn peer_name(&self, fd: c_int, peer: SocketAddr) -> Option<SocketAddr> {
        let ip = peer.ip().to_canonical();
        if let Some(number) = SystemNumber::from_kernel(ip) {
            return Some(with_ip(peer, self.face(number, false)));
        }
        if !ip.is_loopback() || sys::tcp_family(fd).is_none() {
            return None;
        }
        let local = sys::local(fd).ok()?;
        if address::is_reserved(ip) || ip == Ipv6Addr::LOCALHOST {
            let (number, mut named) = self.whois(local, peer).ok().flatten()?;
            if address::is_kernel(named.ip()) {
                named.set_ip(self.face(number, ip.is_ipv6()));
            }
            return Some(in_family(named, peer.is_ipv6()));
        }
        // A connection to this system by its own name, to a listener on loopback.
        let number = SystemNumber::from_kernel(local.ip())?;
        Some(with_ip(peer, self.face(number, false)))
    }

    /// What the program is told for its own name that the kernel gives so; `None` to leave it.
    fn local_name(&self, fd: c_int, local: SocketAddr) -> Option<SocketAddr> {
        let ip = local.ip().to_canonical();
        if let Some(number) = SystemNumber::from_kernel(ip) {
            return Some(with_ip(local, self.face(number, false)));
        }
        if !ip.is_loopback() || sys::tcp_family(fd).is_none() {
            return None;
        }
        let peer = sys::peer(fd).ok()?;
        let over_v6 = ip.is_ipv6();
        let by_system = if over_v6 || address::is_reserved(peer.ip()) {
            match self.whois(local, peer) {
                // What was reached by loopback is loopback at both ends.
                Ok(Some((_, at))) => address::is_kernel(at.ip()),
                _ => !over_v6,
            }
        } else {
            address::is_kernel(peer.ip())
        };
        by_system.then(|| with_ip(local, self.face(self.own_number(), over_v6)))
    }
}

/// Makes the place for a name as large again as it was.
///
/// # Safety
/// `len` is where `room` was read, if that is not 0.
unsafe fn restore(len: *mut socklen_t, room: socklen_t) {
    if room != 0 {
        // SAFETY: the kernel has just written there.
        unsafe { len.write_unaligned(room) };
    }
}

/// The size of the program's place for a name; 0 if it gives none, or none that can be read.
///
/// # Safety
/// None needed: what cannot be read is not.
unsafe fn room(address: *const sockaddr, len: *const socklen_t) -> socklen_t {
    if address.is_null() || !sys::is_readable(len.cast(), size_of::<socklen_t>()) {
        return 0;
    }
    // SAFETY: just found readable.
    unsafe { len.read_unaligned() }
}

//! Openings: `bind`, `listen`, `connect`, `SO_ERROR`, and sends that connect.
//!
//! - The kernel's `connect` is what connects, waits, and is interrupted: it goes to the engine's door, where the socket
//!   stays in SYN_SENT until the stream is open.
//! - A refused stream ends the socket with a reset; the true reason is asked of the engine, and told once.
//! - A socket is bound before it is announced, to its system's address or, on its way to loopback, to that: its own name is
//!   true, and names it to the engine.
//! - `listen` is the kernel's first and published then; if it cannot be published, the socket is as before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use libc::{c_int, c_void, msghdr, size_t, sockaddr, socklen_t, ssize_t};
use stp_host::address;
use stp_host::run::Connecting;

use super::meaning::{Meaning, in_family, with_ip};
use super::sys::{self, Errno, Raw, TCP_CLOSE, TCP_LISTEN};
use super::{Inet, Next};

/// How long a blocking `connect` waits for a refusal before it leaves the waiting to the kernel.
const REFUSAL_WAIT: Duration = Duration::from_millis(20);

/// How long the reset of a stream that the engine calls failed may be under way.
const RESET_WAIT_MS: i64 = 1000;

/// What a `connect` is to do.
enum Plan {
    /// What the program said.
    Asis,
    /// What the program said, on a socket that may be connecting through a door already.
    Finish,
    /// Connect to this address instead.
    Direct(SocketAddr),
    /// Connect to this door, announced for a socket bound there.
    Door(SocketAddr, SocketAddr),
}

impl Inet {
    /// `bind`.
    ///
    /// # Safety
    /// As the C library's.
    pub unsafe fn bind(
        &self,
        next: &Next,
        fd: c_int,
        address: *const sockaddr,
        len: socklen_t,
    ) -> c_int {
        // SAFETY: the program's own arguments, or an address of ours.
        unsafe {
            match self.plan_bind(fd, address, len) {
                Err(errno) => sys::fail(errno),
                Ok(None) => (next.bind)(fd, address, len),
                Ok(Some(instead)) => {
                    let raw = Raw::from(instead);
                    (next.bind)(fd, raw.as_ptr(), raw.len())
                }
            }
        }
    }

    unsafe fn plan_bind(
        &self,
        fd: c_int,
        address: *const sockaddr,
        len: socklen_t,
    ) -> Result<Option<SocketAddr>, Errno> {
        // SAFETY: passed on.
        let Some((wanted, meaning, _)) = (unsafe { self.judge(fd, address, len) }) else {
            return Ok(None);
        };
        let instead = match meaning {
            Meaning::Foreign => return Ok(None),
            Meaning::Loopback => None,
            Meaning::Nobody => return Err(Errno(libc::EADDRNOTAVAIL)),
            Meaning::System(_) | Meaning::Number(_)
                if self.number(meaning) == Some(self.own_number()) =>
            {
                let ip = if wanted.ip().to_canonical().is_ipv6() {
                    Ipv6Addr::LOCALHOST.into()
                } else {
                    self.own_number().kernel_v4().into()
                };
                Some(with_ip(wanted, ip))
            }
            // The kernel knows whether it is an address of this host.
            Meaning::System(_) => return Ok(None),
            Meaning::Number(_) => return Err(Errno(libc::EADDRNOTAVAIL)),
        };
        if wanted.port() != 0 && self.is_taken(wanted.port()) {
            return Err(Errno(libc::EADDRINUSE));
        }
        Ok(instead)
    }

    /// `listen`.
    ///
    /// # Safety
    /// As the C library's.
    pub unsafe fn listen(&self, next: &Next, fd: c_int, backlog: c_int) -> c_int {
        // A second call only gives the queue another length.
        let has_listened = sys::tcp_state(fd) == Ok(TCP_LISTEN);
        // SAFETY: the program's own arguments.
        let result = unsafe { (next.listen)(fd, backlog) };
        if result != 0 {
            return result;
        }
        let Some(family) = sys::tcp_family(fd) else {
            return result;
        };
        match self.publish_listener(fd, family) {
            Ok(()) => result,
            Err(errno) => {
                // Back to where it was: nothing of ours stays, and what worked goes on.
                if !has_listened {
                    let _ = sys::shutdown(fd);
                }
                sys::fail(errno)
            }
        }
    }

    fn publish_listener(&self, fd: c_int, family: c_int) -> Result<(), Errno> {
        let at = sys::local(fd)?;
        let ip = at.ip().to_canonical();
        let own = IpAddr::from(self.own_number().kernel_v4());
        if !ip.is_unspecified() && !ip.is_loopback() || address::is_kernel(ip) && ip != own {
            return Ok(());
        }
        let v6_only = family == libc::AF_INET6
            && sys::option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)? != 0;
        self.publish(at, v6_only)
    }

    /// `connect`.
    ///
    /// # Safety
    /// As the C library's.
    pub unsafe fn connect(
        &self,
        next: &Next,
        fd: c_int,
        address: *const sockaddr,
        len: socklen_t,
    ) -> c_int {
        // SAFETY: the program's own arguments, or an address of ours.
        unsafe {
            match self.plan_connect(fd, address, len) {
                Err(errno) => sys::fail(errno),
                Ok(Plan::Asis) => (next.connect)(fd, address, len),
                Ok(Plan::Direct(instead)) => {
                    let raw = Raw::from(instead);
                    (next.connect)(fd, raw.as_ptr(), raw.len())
                }
                Ok(Plan::Finish) => {
                    let result = (next.connect)(fd, address, len);
                    self.judge_end(fd, result, None)
                }
                Ok(Plan::Door(door, local)) => {
                    let raw = Raw::from(door);
                    let result = (next.connect)(fd, raw.as_ptr(), raw.len());
                    self.judge_end(fd, result, Some(local))
                }
            }
        }
    }

    unsafe fn plan_connect(
        &self,
        fd: c_int,
        address: *const sockaddr,
        len: socklen_t,
    ) -> Result<Plan, Errno> {
        // SAFETY: passed on.
        let Some((to, meaning, v6)) = (unsafe { self.judge(fd, address, len) }) else {
            return Ok(Plan::Asis);
        };
        if meaning == Meaning::Foreign {
            return Ok(Plan::Asis);
        }
        let over_v6 = to.ip().to_canonical().is_ipv6();
        if v6 && !over_v6 && sys::option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)? != 0 {
            return Ok(Plan::Asis);
        }
        if sys::tcp_state(fd)? != TCP_CLOSE {
            return Ok(Plan::Finish);
        }
        if let Some(errno) = sys::take_failed_connect(fd, v6) {
            // The end of an earlier attempt, as the kernel tells it to the next one.
            let local = sys::local(fd).ok().filter(|local| may_be_announced(*local));
            return Err(local.and_then(|local| self.failure(local)).unwrap_or(errno));
        }
        let own = IpAddr::from(self.own_number().kernel_v4());
        // Where it goes to, and where it comes from.
        let (ip, from) = match (meaning, self.number(meaning)) {
            (_, Some(number)) => (number.kernel_v4().into(), own),
            (Meaning::Loopback, None) => {
                if to.port() == 0 || !self.is_taken(to.port()) {
                    return Ok(Plan::Asis);
                }
                match to.ip().to_canonical() {
                    ip if address::is_kernel(ip) => (own, own),
                    ip => (ip, Ipv4Addr::LOCALHOST.into()),
                }
            }
            _ => return Err(Errno(libc::EHOSTUNREACH)),
        };
        if to.port() == 0 {
            return Err(Errno(libc::ECONNREFUSED));
        }
        let from = if over_v6 {
            Ipv6Addr::LOCALHOST.into()
        } else {
            from
        };
        let local = self.bind_to_connect(fd, v6, from)?;
        self.announce_connection(fd, local, SocketAddr::new(ip, to.port()), v6)
    }

    fn announce_connection(
        &self,
        fd: c_int,
        local: SocketAddr,
        to: SocketAddr,
        v6: bool,
    ) -> Result<Plan, Errno> {
        let wait = if sys::is_blocking(fd) {
            REFUSAL_WAIT
        } else {
            Duration::ZERO
        };
        let connecting = self.announce(local, to, wait)?;
        let (Connecting::Door(address) | Connecting::Direct(address)) = connecting;
        let address = in_family(address, v6);
        if address.is_ipv6() != v6 {
            return Err(Errno(libc::EAFNOSUPPORT));
        }
        // It would hold the SYN back until the first bytes.
        const TCP_FASTOPEN_CONNECT: c_int = 30;
        if sys::option(fd, libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT) == Ok(1) {
            sys::set_option(fd, libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 0)?;
        }
        Ok(match connecting {
            Connecting::Door(_) => Plan::Door(address, local),
            Connecting::Direct(_) => Plan::Direct(address),
        })
    }

    /// Binds a socket that is about to connect to `ip`, unless it is bound. Returns where it will connect from.
    fn bind_to_connect(&self, fd: c_int, v6: bool, ip: IpAddr) -> Result<SocketAddr, Errno> {
        // Ports that the program is ready to share must not be shared here: the port names the connection. And it must
        // be known now, not at the kernel's connect.
        const SHARING: [(c_int, c_int); 3] = [
            (libc::SOL_SOCKET, libc::SO_REUSEADDR),
            (libc::SOL_SOCKET, libc::SO_REUSEPORT),
            (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
        ];
        let shared = SHARING.map(|(level, name)| match sys::option(fd, level, name) {
            Ok(value) if value != 0 => sys::set_option(fd, level, name, 0).is_ok(),
            _ => false,
        });
        let bound = sys::bind(fd, in_family(SocketAddr::new(ip, 0), v6));
        for ((level, name), _) in SHARING.into_iter().zip(shared).filter(|(_, set)| *set) {
            sys::set_option(fd, level, name, 1)?;
        }
        match bound {
            Ok(()) | Err(Errno(libc::EINVAL)) => {}
            // As a connect that finds no port says it.
            Err(Errno(libc::EADDRINUSE)) => return Err(Errno(libc::EADDRNOTAVAIL)),
            Err(errno) => return Err(errno),
        }
        let local = sys::local(fd)?;
        if !local.ip().to_canonical().is_unspecified() {
            return Ok(local);
        }
        // What the kernel will choose for a destination on loopback.
        let ip = match ip {
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        };
        Ok(in_family(SocketAddr::new(ip, local.port()), v6))
    }

    /// What the kernel's `connect` through a door came to, by what the engine knows. Between the two steps of a refusal
    /// the socket is connected for a moment.
    fn judge_end(&self, fd: c_int, result: c_int, announced: Option<SocketAddr>) -> c_int {
        if result != 0 {
            let errno = sys::errno();
            let pending = [
                libc::EINPROGRESS,
                libc::EALREADY,
                libc::EINTR,
                libc::EAGAIN,
                libc::EISCONN,
                libc::EBADF,
                libc::ENOTSOCK,
                libc::EFAULT,
            ];
            if pending.contains(&errno.0) {
                return result;
            }
            let local = announced.or_else(|| sys::local(fd).ok());
            let failure = local
                .filter(|local| may_be_announced(*local))
                .and_then(|local| self.failure(local));
            return sys::fail(failure.unwrap_or(errno));
        }
        match self.failure_in_between(fd, announced) {
            Some(errno) => {
                // As after any failed connect, the socket may be used for another one.
                let _ = sys::disconnect(fd);
                sys::fail(errno)
            }
            None => result,
        }
    }

    /// Of a socket that the kernel calls connected: why its stream failed, if it did.
    fn failure_in_between(&self, fd: c_int, announced: Option<SocketAddr>) -> Option<Errno> {
        let local = match announced {
            Some(local) => local,
            None => {
                let peer = sys::peer(fd).ok()?;
                let local = sys::local(fd).ok()?;
                is_door(peer.ip()).then_some(local)?
            }
        };
        self.failure(local)
    }

    /// `getsockopt`.
    ///
    /// # Safety
    /// As the C library's.
    pub unsafe fn getsockopt(
        &self,
        next: &Next,
        fd: c_int,
        level: c_int,
        name: c_int,
        value: *mut c_void,
        len: *mut socklen_t,
    ) -> c_int {
        // SAFETY: the program's own arguments.
        let result = unsafe { (next.getsockopt)(fd, level, name, value, len) };
        if result != 0 || level != libc::SOL_SOCKET || name != libc::SO_ERROR {
            return result;
        }
        // SAFETY: the kernel has just written both, as much of the value as the length now says.
        unsafe {
            if *len < size_of::<c_int>() as socklen_t {
                return result;
            }
            let value = value.cast::<c_int>();
            if let Some(errno) = self.true_error(fd, Errno(value.read_unaligned())) {
                value.write_unaligned(errno.0);
            }
        }
        result
    }

    /// The error of a socket of which the kernel says this one; `None` to leave it.
    fn true_error(&self, fd: c_int, said: Errno) -> Option<Errno> {
        sys::tcp_family(fd)?;
        let failure = if said == Errno(0) {
            let failure = self.failure_in_between(fd, None)?;
            sys::await_end(fd, RESET_WAIT_MS);
            // Taken, as the program takes it.
            let _ = sys::option(fd, libc::SOL_SOCKET, libc::SO_ERROR);
            failure
        } else {
            let local = sys::local(fd).ok()?;
            if !may_be_announced(local) {
                return None;
            }
            self.failure(local)?
        };
        Some(failure)
    }

    /// `sendto`: with `MSG_FASTOPEN` it connects.
    ///
    /// # Safety
    /// As the C library's.
    #[allow(clippy::too_many_arguments)] // The C library's signature.
    pub unsafe fn sendto(
        &self,
        next: &Next,
        fd: c_int,
        buffer: *const c_void,
        count: size_t,
        flags: c_int,
        address: *const sockaddr,
        len: socklen_t,
    ) -> ssize_t {
        // SAFETY: the program's own arguments.
        unsafe {
            if flags & libc::MSG_FASTOPEN == 0 || !self.is_ours(fd, address, len) {
                return (next.sendto)(fd, buffer, count, flags, address, len);
            }
            if self.connect(next, fd, address, len) != 0 {
                return -1;
            }
            let flags = flags & !libc::MSG_FASTOPEN;
            (next.sendto)(fd, buffer, count, flags, std::ptr::null(), 0)
        }
    }

    /// `sendmsg`: with `MSG_FASTOPEN` it connects.
    ///
    /// # Safety
    /// As the C library's.
    pub unsafe fn sendmsg(
        &self,
        next: &Next,
        fd: c_int,
        message: *const msghdr,
        flags: c_int,
    ) -> ssize_t {
        // SAFETY: the program's own arguments; the message is looked at once it is known to be readable.
        unsafe {
            if flags & libc::MSG_FASTOPEN == 0
                || !sys::is_readable(message.cast(), size_of::<msghdr>())
            {
                return (next.sendmsg)(fd, message, flags);
            }
            let mut copy = message.read_unaligned();
            let address = copy.msg_name.cast_const().cast();
            if !self.is_ours(fd, address, copy.msg_namelen) {
                return (next.sendmsg)(fd, message, flags);
            }
            if self.connect(next, fd, address, copy.msg_namelen) != 0 {
                return -1;
            }
            copy.msg_name = std::ptr::null_mut();
            copy.msg_namelen = 0;
            (next.sendmsg)(fd, &raw const copy, flags & !libc::MSG_FASTOPEN)
        }
    }

    unsafe fn is_ours(&self, fd: c_int, address: *const sockaddr, len: socklen_t) -> bool {
        // SAFETY: passed on.
        unsafe { self.judge(fd, address, len) }.is_some_and(|(to, meaning, _)| match meaning {
            Meaning::Foreign => false,
            Meaning::Loopback => self.is_taken(to.port()),
            _ => true,
        })
    }

    /// What the program's address means, if it is one and the socket is a TCP socket of its family; and whether that is
    /// IPv6.
    unsafe fn judge(
        &self,
        fd: c_int,
        address: *const sockaddr,
        len: socklen_t,
    ) -> Option<(SocketAddr, Meaning, bool)> {
        let len_max = size_of::<libc::sockaddr_storage>() as socklen_t;
        if len > len_max || !sys::is_readable(address.cast(), len as usize) {
            return None;
        }
        // SAFETY: just found readable.
        let wanted = unsafe { Raw::read(address, len) }?;
        let meaning = self.map().meaning(wanted.ip());
        if meaning == Meaning::Foreign {
            return Some((wanted, meaning, wanted.is_ipv6()));
        }
        let v6 = sys::tcp_family(fd)? == libc::AF_INET6;
        (wanted.is_ipv6() == v6).then_some((wanted, meaning, v6))
    }
}

/// Whether a socket with this peer may be connected through a door.
fn is_door(peer: IpAddr) -> bool {
    // The kernel's address of a system is a door too, where nothing else has that name.
    address::is_kernel(peer) || peer == IpAddr::V6(Ipv6Addr::LOCALHOST)
}

/// Whether a socket bound there may have been announced.
fn may_be_announced(local: SocketAddr) -> bool {
    local.port() != 0 && local.ip().to_canonical().is_loopback()
}

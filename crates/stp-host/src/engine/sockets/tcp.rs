//! TCP listeners of programs: handing over a connection so that the kernel itself tells who it comes from.
//!
//! - The connection is made from the peer system's own loopback address and the peer's port. If that name is taken, from a
//!   nameless address, and [`Names`] knows whose it is.
//! - The listener's own queue is the backlog: the kernel drops the first packet when it is full. Such a connection stays in
//!   the making and is looked at again.
//! - One listener that is gone makes way for the next place of its port.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, getsockname, socket_with, sockopt,
};
use stp_format::SystemName;

use crate::address::{Addresses, NAMELESS_V4};

/// How long the kernel is left to try by itself before a connection is begun anew: its own first repetition comes after a
/// second.
const MAKING_MAX: Duration = Duration::from_millis(200);
/// Connections in the making that nobody asked for again; the opening was withdrawn.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5);
/// Names that are kept; the oldest go first.
const NAMES_MAX: usize = 65_536;

/// Where a program's TCP socket listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// As the kernel says.
    pub at: SocketAddr,
    /// An IPv6 socket that takes no IPv4.
    pub v6_only: bool,
}

impl Place {
    /// Where to connect to reach it; `own`: this system's loopback address.
    pub fn target(&self, own: IpAddr) -> SocketAddr {
        let ip = match self.at.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => own,
            IpAddr::V6(ip) if ip.is_unspecified() && self.v6_only => Ipv6Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => own,
            ip => ip.to_canonical(),
        };
        SocketAddr::new(ip, self.at.port())
    }
}

/// Who is behind connections whose address does not say it.
///
/// Kept beyond the connection's end, as long as a program may hold its descriptor: bounded, the oldest forgotten first.
#[derive(Debug)]
pub struct Names {
    addresses: Addresses,
    system: SystemName,
    table: Mutex<Table>,
}

type Ends = (SocketAddr, SocketAddr);

#[derive(Debug, Default)]
struct Table {
    by_ends: HashMap<Ends, (SystemName, SocketAddr, u64)>,
    oldest: VecDeque<(Ends, u64)>,
    last: u64,
}

impl Names {
    /// None yet.
    pub fn new(addresses: Addresses, system: SystemName) -> Self {
        Self {
            addresses,
            system,
            table: Mutex::default(),
        }
    }

    /// The addresses of the volume's systems.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// This system.
    pub fn system(&self) -> &SystemName {
        &self.system
    }

    /// This system's loopback address.
    pub fn own(&self) -> IpAddr {
        self.addresses.kernel_v4(&self.system).into()
    }

    /// The kernel's address of a system's port.
    pub fn at(&self, system: &SystemName, port: u16) -> SocketAddr {
        SocketAddr::new(self.addresses.kernel_v4(system).into(), port)
    }

    /// Notes who is behind `peer` for the program's socket at `local`: a system, at an address of it in the kernel.
    pub fn note(&self, local: SocketAddr, peer: SocketAddr, system: SystemName, at: SocketAddr) {
        let mut table = self.table();
        table.last += 1;
        let (ends, number) = ((local, peer), table.last);
        table.by_ends.insert(ends, (system, at, number));
        table.oldest.push_back((ends, number));
        while table.oldest.len() > NAMES_MAX {
            let Some((ends, number)) = table.oldest.pop_front() else {
                break;
            };
            if table
                .by_ends
                .get(&ends)
                .is_some_and(|found| found.2 == number)
            {
                table.by_ends.remove(&ends);
            }
        }
    }

    /// Who is behind `peer` for the program's socket at `local`.
    pub fn find(&self, local: SocketAddr, peer: SocketAddr) -> Option<(SystemName, SocketAddr)> {
        let table = self.table();
        let (system, at, _) = table.by_ends.get(&(local, peer))?;
        Some((*system, *at))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of handing a connection over.
#[derive(Debug)]
pub(super) enum Delivered {
    Done(OwnedFd),
    Full,
    Gone,
    Failed(io::Error),
}

/// Connections to listeners.
#[derive(Debug)]
pub(super) struct Deliveries {
    names: Arc<Names>,
    /// The kernel is still at it: target, peer, its port.
    making: HashMap<(SocketAddr, SystemName, u16), (OwnedFd, Instant)>,
}

/// How a connection in the making stands.
#[derive(Debug)]
pub(crate) enum Made {
    Yes,
    NotYet,
    No(Errno),
}

impl Deliveries {
    pub(super) fn new(names: Arc<Names>) -> Self {
        Self {
            names,
            making: HashMap::new(),
        }
    }

    /// Hands a connection from `peer`:`port` to the first of `places` that listens.
    pub(super) fn deliver(&mut self, places: &[Place], peer: &SystemName, port: u16) -> Delivered {
        let now = Instant::now();
        if !self.making.is_empty() {
            self.making
                .retain(|_, (_, since)| now.duration_since(*since) < FORGOTTEN_AFTER);
        }
        for place in places {
            let target = place.target(self.names.own());
            let key = (target, *peer, port);
            let (fd, since) = match self.making.remove(&key) {
                Some(making) => making,
                None => match self.begin(target, peer, port) {
                    Ok(fd) => (fd, now),
                    Err(Errno::CONNREFUSED) => continue,
                    Err(errno) => return Delivered::Failed(errno.into()),
                },
            };
            match made(&fd) {
                Made::Yes => return Delivered::Done(fd),
                Made::No(Errno::CONNREFUSED) => {}
                Made::No(errno) => return Delivered::Failed(errno.into()),
                Made::NotYet => {
                    if now.duration_since(since) < MAKING_MAX {
                        self.making.insert(key, (fd, since));
                    }
                    return Delivered::Full;
                }
            }
        }
        Delivered::Gone
    }

    fn begin(&self, target: SocketAddr, peer: &SystemName, port: u16) -> Result<OwnedFd, Errno> {
        let named = self.names.at(peer, port);
        if target.is_ipv4() {
            let fd = stream_socket(AddressFamily::INET)?;
            sockopt::set_socket_reuseaddr(&fd, true)?;
            if bind(&fd, &named).is_ok() {
                match connect(&fd, &target) {
                    Ok(()) | Err(Errno::INPROGRESS) => return Ok(fd),
                    // An older connection of this name is not quite gone.
                    Err(Errno::ADDRNOTAVAIL | Errno::ADDRINUSE) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        let (family, from): (_, IpAddr) = match target.ip() {
            IpAddr::V4(_) => (AddressFamily::INET, NAMELESS_V4.into()),
            IpAddr::V6(_) => (AddressFamily::INET6, Ipv6Addr::LOCALHOST.into()),
        };
        let fd = stream_socket(family)?;
        bind(&fd, &SocketAddr::new(from, 0))?;
        let from = SocketAddr::try_from(getsockname(&fd)?)?;
        // Before the program can see it.
        self.names.note(target, from, *peer, named);
        match connect(&fd, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(fd),
            Err(errno) => Err(errno),
        }
    }
}

/// A TCP socket as the engine's ends are: it does not wait, sends at once, and resets when it is closed.
pub(crate) fn stream_socket(family: AddressFamily) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_linger(&fd, Some(Duration::ZERO))?;
    sockopt::set_tcp_nodelay(&fd, true)?;
    // Urgent bytes stay in their place among the others.
    sockopt::set_socket_oobinline(&fd, true)?;
    Ok(fd)
}

/// How the connection of `fd` stands; its error, if it has one, is taken.
pub(crate) fn made(fd: &OwnedFd) -> Made {
    let mut polled = [PollFd::new(fd, PollFlags::OUT)];
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if let Err(errno) = poll(&mut polled, Some(&zero)) {
        return Made::No(errno);
    }
    let seen = polled[0].revents();
    if seen.is_empty() {
        return Made::NotYet;
    }
    match sockopt::socket_error(fd) {
        Ok(Ok(())) => Made::Yes,
        Ok(Err(errno)) | Err(errno) => Made::No(errno),
    }
}

//! Connections within this system, between programs that know TCP only and those with the library.
//!
//! - A TCP listener of the kernel comes first, whoever started it, and is reached by the kernel's loopback.
//! - Where there is none and a program with the library has the port, the engine joins the two ([`Relays`](crate::run::relay)):
//!   the TCP program comes through the door, as to another system.
//! - Its listener's queue is the backlog. While that is full, it is knocked again, for at most [`KNOCK_MAX`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use rustix::net::{SocketFlags, accept_with};

use super::Room;
use crate::address::is_kernel;
use crate::engine::Place;
use crate::rendezvous::direct::try_connect;
use crate::run::attempts::Far;
use crate::run::listeners;
use crate::run::wire::{Answer, Connecting};

/// How long a full queue is waited for, as for a listener of another system.
const KNOCK_MAX: Duration = Duration::from_secs(60);
const KNOCK_PAUSE: Duration = Duration::from_millis(10);

/// A program that waits for a place in a listener's queue.
pub(super) struct Knock {
    attempt: u64,
    port: u16,
    until: Instant,
    pub(super) again_at: Instant,
}

impl Room {
    /// Programs of this system that use the library have connected to `port`.
    pub(super) fn relay(&mut self, port: u16) {
        let own = self.names.own();
        let target = self.places.of(port).first().map(|place| place.target(own));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let (Some(held), Some(target)) = (self.places.held(port), target) {
            match accept_with(held, flags) {
                Ok(program) => self.relays.serve(program, own, target),
                Err(error) if !self.goes_on_after(error) => return,
                Err(_) => {}
            }
        }
    }

    /// Whether a program with the library has `port`.
    pub(super) fn is_librarys(&self, port: u16) -> bool {
        self.places.held(port).is_none() && self.dir.is_port_held(port).unwrap_or(false)
    }

    /// To a listener of this system, which was named by `to`.
    pub(super) fn connect_here(&mut self, local: SocketAddr, to: SocketAddr) -> Answer {
        let by_loopback = loopback(to);
        let target = by_loopback.unwrap_or_else(|| self.target(local, to.port()));
        if !self.is_librarys(to.port()) || is_listening(target) {
            return Answer::Connecting(Connecting::Direct(target));
        }
        let door = match self.door_for(local) {
            Ok(door) => door,
            Err(answer) => return answer,
        };
        let now = Instant::now();
        let attempt = self.attempts.next_number();
        let knock = Knock {
            attempt,
            port: to.port(),
            until: now + KNOCK_MAX,
            again_at: now,
        };
        let far = self.knock(&knock, local.port(), now);
        if let Some(Err(errno)) = far {
            let text = "a program of this system holds the port and does not take connections";
            return Answer::failed(errno, text);
        }
        self.begin(local, attempt, None);
        // It is told the address by which it came.
        let at = by_loopback.unwrap_or_else(|| self.names.at(self.names.system(), to.port()));
        self.names.note(local, door, *self.names.system(), at);
        match far {
            Some(far) => self.attempts.settle(attempt, far, now),
            None => self.wait_at(knock, now),
        }
        Answer::Connecting(Connecting::Door(door))
    }

    /// Where the kernel finds a TCP listener of this system, for a socket at `local`.
    fn target(&self, local: SocketAddr, port: u16) -> SocketAddr {
        let own = self.names.own();
        let places = self.places.of(port);
        let usable = |place: &&Place| local.is_ipv6() == place.target(own).is_ipv6();
        match places.iter().find(usable).or(places.first()) {
            Some(place) => place.target(own),
            None if local.is_ipv6() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
            None => SocketAddr::new(own, port),
        }
    }

    /// Connects to a listener with the library; `None` if its queue is full.
    fn knock(&self, knock: &Knock, from: u16, now: Instant) -> Option<Result<Far, i32>> {
        match try_connect(&self.dir, knock.port, from) {
            Ok(joined) => Some(Ok(Far::Library(joined))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                (knock.until <= now).then_some(Err(libc::ETIMEDOUT))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Err(libc::ECONNREFUSED)),
            Err(error) => Some(Err(error.raw_os_error().unwrap_or(libc::ECONNREFUSED))),
        }
    }

    fn wait_at(&mut self, mut knock: Knock, now: Instant) {
        knock.again_at = now + KNOCK_PAUSE;
        self.knocks.push(knock);
    }

    pub(super) fn knock_again(&mut self, now: Instant) {
        let (due, later) = std::mem::take(&mut self.knocks)
            .into_iter()
            .partition(|knock| knock.again_at <= now);
        self.knocks = later;
        let due: Vec<Knock> = due;
        for knock in due {
            // Unless it was given up or replaced meanwhile.
            let Some(local) = self.attempts.local(knock.attempt) else {
                continue;
            };
            match self.knock(&knock, local.port(), now) {
                Some(far) => self.attempts.settle(knock.attempt, far, now),
                None => self.wait_at(knock, now),
            }
        }
    }
}

/// The loopback address that was named, unless it is this system's own.
fn loopback(to: SocketAddr) -> Option<SocketAddr> {
    let ip = match to.ip().to_canonical() {
        ip if is_kernel(ip) => return None,
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    ip.is_loopback().then(|| SocketAddr::new(ip, to.port()))
}

/// Whether the kernel's TCP has a listener that takes connections to `target`.
fn is_listening(target: SocketAddr) -> bool {
    let port = target.port();
    let wild_v4 = target
        .is_ipv4()
        .then_some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    let taking = [target, (Ipv6Addr::UNSPECIFIED, port).into()];
    let mut taking = taking.into_iter().chain(wild_v4);
    listeners::listening().is_ok_and(|all| taking.any(|at| all.contains(&at)))
}

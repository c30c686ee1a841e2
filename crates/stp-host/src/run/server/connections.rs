//! Listening and connecting: what the engine does for a program's sockets.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::{News, PORTS, PUBLISH_MAX, Question, Room, SWEEP, perform};
use crate::address::SystemNumber;
use crate::control::{Calls, ConnectFailure, Connected};
use crate::engine::{HostSocket, Place, Reply};
use crate::run::attempts::Far;
use crate::run::listeners;
use crate::run::wire::{Answer, Connecting};

impl Room {
    pub(super) fn publish(&mut self, place: Place, talk: Option<u64>) -> Option<Answer> {
        let port = place.at.port();
        if port == 0 {
            return Some(Answer::failed(
                libc::EINVAL,
                "port 0 is no port to listen on",
            ));
        }
        let places = match self.places.add(place) {
            Ok(places) => places,
            Err(error) => {
                let errno = match error.kind() {
                    io::ErrorKind::AddrInUse => libc::EADDRINUSE,
                    io::ErrorKind::ResourceBusy => {
                        tracing::warn!(port, %error, "a port cannot be taken");
                        libc::EBUSY
                    }
                    _ => error.raw_os_error().unwrap_or(libc::ENOBUFS),
                };
                return Some(Answer::failed(errno, error));
            }
        };
        if let Some(held) = self.places.held(port) {
            // Programs with the library connect to it. There already: it is watched.
            let _ = rustix::io::ioctl_fionbio(held, true);
            let data = EventData::new_u64(PORTS + u64::from(port));
            let _ = epoll::add(&self.epoll, held, data, EventFlags::IN);
        }
        let shared = Arc::clone(&self.shared);
        let reply = Reply::new(move |listened| {
            if let Some(talk) = talk {
                shared.tell(News::Listened(talk, listened));
            }
        });
        if let Err(stopped) = self.engine.start_listen(port, places, reply) {
            self.places.remove(place.at);
            return Some(Answer::failed(libc::ENETDOWN, stopped));
        }
        if let Some(talk) = talk {
            self.park(talk, Answer::Done, PUBLISH_MAX);
        }
        None
    }

    pub(super) fn withdraw(&mut self, at: SocketAddr) {
        match self.places.remove(at) {
            None => {}
            Some(left) if left.is_empty() => self.engine.unlisten(at.port()),
            Some(left) => {
                let _ = self
                    .engine
                    .start_listen(at.port(), left, Reply::new(|_| {}));
            }
        }
    }

    pub(super) fn sweep(&mut self, now: Instant) {
        self.sweep_at = now + SWEEP;
        self.talks
            .retain(|number, talk| talk.until > now || self.parked.contains_key(number));
        if self.places.ports() == 0 {
            return;
        }
        // Unreadable, nobody is judged: a connection that is refused tells as well.
        if let Ok(listening) = listeners::listening() {
            for at in self.places.gone(&listening) {
                self.withdraw(at);
            }
        }
    }

    pub(super) fn connect(
        &mut self,
        question: Question,
        local: SocketAddr,
        to: SocketAddr,
        wait_us: u32,
    ) -> Option<Answer> {
        let talk = question.talk;
        let ip = to.ip();
        let number = SystemNumber::from_kernel(ip).or(SystemNumber::from_visible(ip));
        let system = match number {
            Some(number) => match self.find(number) {
                Err(answer) => return Some(answer),
                Ok(Some(system)) => system,
                Ok(None) => {
                    let text = format_args!("no system of this volume has the address {ip}");
                    let unknown = Answer::failed(libc::EHOSTUNREACH, text);
                    return self.look_or(question, unknown);
                }
            },
            None if ip.to_canonical().is_loopback() || ip.is_unspecified() => *self.names.system(),
            None => {
                let text = format_args!("{ip} is no address of a system");
                return Some(Answer::failed(libc::EHOSTUNREACH, text));
            }
        };
        if system == *self.names.system() {
            return Some(self.connect_here(local, to));
        }
        let door = match self.door_for(local) {
            Ok(door) => door,
            Err(answer) => return Some(answer),
        };
        let attempt = self.attempts.next_number();
        let shared = Arc::clone(&self.shared);
        let reply = Reply::new(move |opened| shared.tell(News::Opened(attempt, opened)));
        let socket = HostSocket::awaited();
        let from = Some(local.port());
        let ticket = match self
            .engine
            .start_connect(from, &system, to.port(), socket, true, reply)
        {
            Ok(ticket) => ticket,
            Err(failure) => return Some(failed(&failure)),
        };
        self.begin(local, attempt, Some(ticket));
        let at = self.names.at(&system, to.port());
        self.names.note(local, door, system, at);
        let answer = Answer::Connecting(Connecting::Door(door));
        if wait_us == 0 {
            return Some(answer);
        }
        self.waiters.insert(attempt, talk);
        self.park(talk, answer, Duration::from_micros(wait_us.into()));
        None
    }

    /// The door for a program's socket. Only what it can meet: the engine connects nowhere else on a program's word.
    pub(super) fn door_for(&self, local: SocketAddr) -> Result<SocketAddr, Answer> {
        let unusable = |text: &dyn fmt::Display| Answer::failed(libc::EADDRNOTAVAIL, text);
        if !local.ip().is_loopback() || local.port() == 0 {
            let text = format_args!("{local} is no loopback address of this host");
            return Err(unusable(&text));
        }
        self.door
            .for_local(local)
            .ok_or_else(|| unusable(&"this host has no IPv6 loopback address"))
    }

    /// Notes an attempt, and ends the one before from the same place.
    pub(super) fn begin(&mut self, local: SocketAddr, attempt: u64, ticket: Option<u64>) {
        if let Some(act) = self.attempts.begin(local, attempt, ticket) {
            perform(&self.engine, &self.relays, act);
        }
    }

    pub(super) fn opened(
        &mut self,
        attempt: u64,
        opened: Option<Result<Connected, ConnectFailure>>,
    ) {
        let waiter = self.waiters.remove(&attempt);
        let Some(local) = self.attempts.local(attempt) else {
            // Replaced meanwhile.
            if let Some(Ok(connected)) = opened {
                self.engine.abort(connected.token);
            }
            return;
        };
        let now = Instant::now();
        match opened {
            Some(Ok(connected)) => {
                let far = Far::Stream(connected.token);
                self.attempts.settle(attempt, Ok(far), now);
                if let Some(talk) = waiter {
                    self.unpark(talk, None);
                }
            }
            refused => {
                let failure = match refused {
                    Some(Err(failure)) => failure,
                    _ => ConnectFailure::EngineGone("the engine is stopping".to_owned()),
                };
                if let Some(talk) = waiter.filter(|talk| self.parked.contains_key(talk)) {
                    // It is told at once and never goes to the door.
                    self.attempts.remove(local);
                    self.unpark(talk, Some(failed(&failure)));
                } else {
                    self.attempts.settle(attempt, Err(errno(&failure)), now);
                }
            }
        }
    }
}

fn failed(failure: &ConnectFailure) -> Answer {
    let text = match failure {
        ConnectFailure::UnknownSystem => "the group has no such system",
        ConnectFailure::SystemDead => "the system is known, but none of its engines runs",
        ConnectFailure::Refused => "nobody listens there",
        ConnectFailure::TimedOut => "no answer in time",
        ConnectFailure::NoPort => "every local port is taken",
        ConnectFailure::TooManyStreams => "this engine's socket table is full",
        ConnectFailure::Reset(text)
        | ConnectFailure::EngineGone(text)
        | ConnectFailure::Failed(text) => text,
    };
    Answer::failed(errno(failure), text)
}

/// The error number that a program sees.
fn errno(failure: &ConnectFailure) -> i32 {
    match failure {
        ConnectFailure::UnknownSystem | ConnectFailure::SystemDead => libc::EHOSTUNREACH,
        ConnectFailure::Refused => libc::ECONNREFUSED,
        ConnectFailure::TimedOut => libc::ETIMEDOUT,
        ConnectFailure::NoPort => libc::EADDRNOTAVAIL,
        ConnectFailure::TooManyStreams => libc::ENOBUFS,
        ConnectFailure::Reset(_) => libc::ECONNRESET,
        ConnectFailure::EngineGone(_) => libc::ENETDOWN,
        ConnectFailure::Failed(_) => libc::ENETUNREACH,
    }
}

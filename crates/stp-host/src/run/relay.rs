//! Relays: a program that knows TCP only and one with the library, both of this system; the engine stands between the two.
//!
//! - The library's end of a stream says by a mark whether it ends in order; TCP says it by the kind of its end. Each is
//!   turned into the other, so that a death on one side is a reset on the other, never an end of file.
//! - Urgent bytes keep their place and their mark.
//! - One thread a connection, at most [`RELAYS_MAX`] connections; what is beyond is reset. Each direction holds one
//!   buffer, and is moved on by bounded turns.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind,
    connect, getpeername, recv, send, shutdown, socket_with, sockopt,
};

use super::sys::{self, Next};
use crate::rendezvous::direct::{Joined, Marks, welcome};
use crate::rendezvous::{PeerName, PeerNameKind};

/// Connections at once.
const RELAYS_MAX: usize = 1024;
const BUFFER_BYTES: usize = 64 << 10;
/// Buffers that one direction moves before the other has its turn.
const TURN_MAX: usize = 16;

/// Counts the connections that are relayed.
#[derive(Clone, Debug, Default)]
pub(super) struct Relays(Arc<AtomicUsize>);

impl Relays {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Joins a connection of the library to the TCP listener at `target`; `own` is this system's address.
    pub(super) fn serve(&self, library: OwnedFd, own: IpAddr, target: SocketAddr) {
        self.spawn(move || {
            let marks = introduction(&library)?;
            relay(
                &End::tcp(call(own, target)?)?,
                &End::library(library, marks)?,
            )
        });
    }

    /// Joins a TCP program's connection to one that was made to a listener of the library.
    pub(super) fn join(&self, program: OwnedFd, library: Joined) {
        self.spawn(move || {
            let library = End::library(library.socket, Some(library.marks))?;
            relay(&End::tcp(program)?, &library)
        });
    }

    fn spawn(&self, work: impl FnOnce() -> io::Result<()> + Send + 'static) {
        let relays = self.clone();
        let over = move || relays.0.fetch_sub(1, Ordering::Relaxed);
        if self.0.fetch_add(1, Ordering::Relaxed) >= RELAYS_MAX {
            over();
            return;
        }
        let undo = over.clone();
        let begun = thread::Builder::new()
            .name("stp-relay".to_owned())
            .spawn(move || {
                if let Err(error) = work() {
                    tracing::debug!(%error, "a connection within this system broke");
                }
                over();
            });
        if begun.is_err() {
            undo();
        }
    }
}

/// Connects to a TCP listener of this system.
fn call(own: IpAddr, target: SocketAddr) -> io::Result<OwnedFd> {
    let family = match target {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if target.is_ipv4() {
        bind(&socket, &SocketAddr::new(own, 0))?;
    }
    connect(&socket, &target)?;
    Ok(socket)
}

/// The marks of a program with the library; `None` for one without, which ends as TCP does.
fn introduction(program: &OwnedFd) -> io::Result<Option<Marks>> {
    let name = getpeername(program)?
        .and_then(|address| SocketAddrUnix::try_from(address).ok())
        .and_then(|address| address.abstract_name().and_then(PeerName::parse));
    if name.is_none_or(|name| name.kind != PeerNameKind::Library) {
        return Ok(None);
    }
    let marks = welcome(program.as_fd())?.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some(marks))
}

/// The engine's socket to one of the two.
struct End {
    socket: OwnedFd,
    /// How the library's end says that it ends in order.
    marks: Option<Marks>,
}

/// What was received.
enum Taken {
    Bytes(usize),
    /// One byte, an urgent one.
    Urgent,
    Nothing,
    End,
}

impl End {
    fn tcp(socket: OwnedFd) -> io::Result<Self> {
        // Whatever ends it but an end in order is a reset.
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        Self::library(socket, None)
    }

    fn library(socket: OwnedFd, marks: Option<Marks>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        // A kernel without urgent data here has none to keep in its place.
        let _ = sockopt::set_socket_oobinline(&socket, true);
        Ok(Self { socket, marks })
    }

    fn take(&self, space: &mut [u8]) -> io::Result<Taken> {
        let urgent = match sys::next(&self.socket) {
            Next::Nothing => return Ok(Taken::Nothing),
            next => next == Next::Urgent,
        };
        let space = if urgent { &mut space[..1] } else { space };
        loop {
            return match recv(&self.socket, &mut *space, RecvFlags::DONTWAIT) {
                Ok((0, _)) => match &self.marks {
                    Some(marks) if !marks.other_left() => {
                        Err(io::ErrorKind::ConnectionReset.into())
                    }
                    _ => Ok(Taken::End),
                },
                Ok(_) if urgent => Ok(Taken::Urgent),
                Ok((count, _)) => Ok(Taken::Bytes(count)),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) if urgent && sys::next(&self.socket) != Next::Nothing => continue,
                Err(Errno::AGAIN) => Ok(Taken::Nothing),
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// How many bytes were sent; 0 if there is no room.
    fn put(&self, bytes: &[u8], urgent: bool) -> io::Result<usize> {
        let how = match urgent {
            true => SendFlags::OOB,
            false => SendFlags::empty(),
        };
        loop {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | how;
            return match send(&self.socket, bytes, flags) {
                Ok(count) => Ok(count),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN | Errno::NOBUFS) => Ok(0),
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Ends what is sent, in order.
    fn finish(&self) {
        if let Some(marks) = &self.marks {
            marks.leave();
        }
        let _ = shutdown(&self.socket, Shutdown::Write);
    }

    /// The error of a socket that has one.
    fn error(&self) -> io::Error {
        match sockopt::socket_error(&self.socket) {
            Ok(Err(errno)) | Err(errno) => errno.into(),
            Ok(Ok(())) => io::ErrorKind::ConnectionReset.into(),
        }
    }
}

/// One direction.
struct Flow {
    buffer: Box<[u8]>,
    /// What of the buffer is not sent yet.
    left: std::ops::Range<usize>,
    urgent: bool,
    over: bool,
}

impl Flow {
    fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES].into(),
            left: 0..0,
            urgent: false,
            over: false,
        }
    }

    /// Moves on for one turn; `true` if there may be more to move at once.
    fn turn(&mut self, from: &End, to: &End) -> io::Result<bool> {
        for _ in 0..TURN_MAX {
            if self.over {
                return Ok(false);
            }
            while !self.left.is_empty() {
                match to.put(&self.buffer[self.left.clone()], self.urgent)? {
                    0 => return Ok(false),
                    count => self.left.start += count,
                }
            }
            let taken = from.take(&mut self.buffer)?;
            self.urgent = matches!(taken, Taken::Urgent);
            self.left = match taken {
                Taken::Bytes(count) => 0..count,
                Taken::Urgent => 0..1,
                Taken::Nothing => return Ok(false),
                Taken::End => {
                    to.finish();
                    self.over = true;
                    return Ok(false);
                }
            };
        }
        Ok(true)
    }
}

/// Passes everything on until both directions have ended in order, or one of the ends broke.
fn relay(program: &End, library: &End) -> io::Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let watched = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    for (end, number) in [(program, 0), (library, 1)] {
        epoll::add(&epoll, &end.socket, EventData::new_u64(number), watched)?;
    }
    let (mut sent, mut received) = (Flow::new(), Flow::new());
    loop {
        let more = sent.turn(program, library)? | received.turn(library, program)?;
        if sent.over && received.over {
            // What the program has not taken yet is delivered by the kernel.
            sockopt::set_socket_linger(&program.socket, None)?;
            return Ok(());
        }
        if more {
            continue;
        }
        let mut space = [const { MaybeUninit::<epoll::Event>::uninit() }; 2];
        let events = match epoll::wait(&epoll, &mut space, None) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        for event in events.iter() {
            let (flags, number) = (event.flags, event.data.u64());
            let (end, direction) = match number {
                0 => (program, &sent),
                _ => (library, &received),
            };
            // One that is still read says by itself what is wrong, after its last byte.
            if flags.contains(EventFlags::ERR) && direction.over {
                return Err(end.error());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendezvous::direct::Side;
    use crate::run::sys::is_at_mark;
    use rustix::event::{EventfdFlags, eventfd};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::thread::JoinHandle;

    struct Joint {
        program: TcpStream,
        library: UnixStream,
        marks: Marks,
        relay: JoinHandle<io::Result<()>>,
    }

    impl Joint {
        fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let program = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let ours = listener.accept().unwrap().0;
            let (library, joined) = UnixStream::pair().unwrap();
            let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
            let marks = Marks::new(counter.try_clone().unwrap(), Side::Server);
            let ends = (
                End::tcp(ours.into()).unwrap(),
                End::library(joined.into(), Some(Marks::new(counter, Side::Client))).unwrap(),
            );
            Self {
                program,
                library,
                marks,
                relay: thread::spawn(move || relay(&ends.0, &ends.1)),
            }
        }
    }

    #[test]
    fn bytes_and_ends_in_order_pass_both_ways() {
        let mut joint = Joint::new();
        let text: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
        for program_first in [true, false] {
            let (mut from, mut to) = (
                joint.program.try_clone().unwrap(),
                joint.library.try_clone().unwrap(),
            );
            let mut received = Vec::new();
            thread::scope(|scope| {
                let sent = scope.spawn(|| match program_first {
                    true => {
                        from.write_all(&text).unwrap();
                        from.shutdown(std::net::Shutdown::Write).unwrap();
                    }
                    false => {
                        to.write_all(&text).unwrap();
                        joint.marks.leave();
                        to.shutdown(std::net::Shutdown::Write).unwrap();
                    }
                });
                match program_first {
                    true => joint.library.read_to_end(&mut received).unwrap(),
                    false => joint.program.read_to_end(&mut received).unwrap(),
                };
                sent.join().unwrap();
            });
            assert!(received == text);
            assert!(joint.marks.other_left(), "the program's end was in order");
        }
        joint.relay.join().unwrap().unwrap();
    }

    #[test]
    fn a_death_is_a_reset_at_the_other_end() {
        // The library's program dies: its end comes without a mark.
        let mut joint = Joint::new();
        joint.program.write_all(b"x").unwrap();
        joint.library.read_exact(&mut [0]).unwrap();
        drop(joint.library);
        let error = joint.program.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(joint.relay.join().unwrap().is_err());
        // The TCP program resets, also after the library has ended what it sends.
        for ended in [false, true] {
            let mut joint = Joint::new();
            if ended {
                joint.marks.leave();
                joint.library.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(joint.program.read(&mut [0]).unwrap(), 0);
            }
            sockopt::set_socket_linger(&joint.program, Some(Duration::ZERO)).unwrap();
            drop(joint.program);
            let end = joint.library.read(&mut [0]);
            assert!(matches!(end, Ok(0)), "{end:?}");
            assert!(!joint.marks.other_left());
            assert!(joint.relay.join().unwrap().is_err());
        }
    }

    #[test]
    fn an_urgent_byte_keeps_its_place_both_ways() {
        let joint = Joint::new();
        let ends: [OwnedFd; 2] = [joint.program.into(), joint.library.into()];
        for end in &ends {
            sockopt::set_socket_oobinline(end, true).unwrap();
        }
        for (from, to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
            send(from, b"before", SendFlags::empty()).unwrap();
            match send(from, b"!", SendFlags::OOB) {
                Err(Errno::OPNOTSUPP) => return, // Unix sockets of this kernel have none
                sent => assert_eq!(sent, Ok(1)),
            }
            send(from, b"after", SendFlags::empty()).unwrap();
            let mut seen = Vec::new();
            while seen.len() < b"before!after".len() {
                // The mark is not known before its byte is there.
                recv(to, &mut [0; 1][..], RecvFlags::PEEK).unwrap();
                let mark = is_at_mark(to);
                let mut bytes = [0; 1];
                recv(to, &mut bytes[..], RecvFlags::empty()).unwrap();
                seen.push((bytes[0], mark));
            }
            let text: Vec<u8> = seen.iter().map(|(byte, _)| *byte).collect();
            assert_eq!(text, b"before!after");
            let marked: Vec<u8> = seen
                .iter()
                .filter(|(_, mark)| *mark)
                .map(|(byte, _)| *byte)
                .collect();
            assert_eq!(marked, b"!", "{seen:?}");
        }
    }
}

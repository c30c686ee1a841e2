//! The programs' sockets of this host: the engine's ends, Unix and TCP, under one epoll.
//!
//! - A program with the library holds one end of a Unix stream socket, a program under `stp run` a TCP socket of its own;
//!   the engine holds the other end.
//! - A Unix socket is shut down before it is closed, so a forked child that holds a copy keeps nothing alive.
//! - A TCP socket of ours resets when it is closed, unless its stream has come to its end in both directions: an engine that
//!   is killed never looks like the end of a stream.
//! - A broken socket stays broken: the kernel tells an error once, and an end of file after it.
//! - A receive is safe while the first byte that waits is known to be no urgent one: it stops before the next, and
//!   what comes later comes behind. Where nothing but bytes was there and it brought fewer than it had room for, it has
//!   brought all: whatever comes after that is reported. Only a Unix socket stops at passed descriptors, too.

mod tcp;

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendFlags, Shutdown, SocketFlags,
    SocketType, sockopt,
};
use stp_core::StreamId;
use stp_format::SystemName;

use super::local::{Delivery, LocalSide, Pulled, Pushed, Ready};
use crate::control::StreamToken;
use crate::rendezvous::{PeerName, PeerNameKind, SocketPath};
use crate::run::sys::{self, Next, polled};
use tcp::{Delivered, Deliveries};
pub(crate) use tcp::{Made, made, stream_socket};
pub use tcp::{Names, Place};

/// Asked for as the buffer of a local socket; the kernel gives what it allows.
const SOCKET_BUFFER_BYTES: usize = 1 << 20;
/// Tokens tried when one's name is in use on this host.
const NAME_TRIES_MAX: usize = 8;

/// Where a port's connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostListener {
    /// A listening Unix socket of the library.
    Unix(PathBuf),
    /// Listening TCP sockets, in the order in which they are tried.
    Tcp(Vec<Place>),
}

/// The engine's end of a program's socket.
#[derive(Debug)]
pub struct HostSocket {
    end: End,
    /// The kernel reports that the program has closed it.
    end_watched: bool,
    /// The kernel reports room.
    room_watched: bool,
    /// Somebody waits for room.
    room_wanted: bool,
    /// Nothing more will come: the program was told, or is to be told.
    finished: bool,
    /// The kernel has reported an error.
    broken: bool,
    /// The urgent byte that comes next was told.
    mark_told: bool,
    /// Nothing but bytes was there, and nobody has received since.
    plain: bool,
    /// Its buffer is as large as it gets.
    widened: bool,
}

#[derive(Debug)]
enum End {
    Unix(OwnedFd),
    Tcp(OwnedFd),
    /// Its stream is open: the program's socket will join it soon, or is not needed any more.
    Awaited,
}

impl HostSocket {
    /// The end of a TCP connection to a program.
    pub fn tcp(fd: OwnedFd) -> Self {
        Self::new(End::Tcp(fd))
    }

    /// Stands for a TCP connection that is made when the stream is open.
    pub fn awaited() -> Self {
        Self::new(End::Awaited)
    }

    fn new(end: End) -> Self {
        Self {
            end,
            end_watched: false,
            room_watched: false,
            room_wanted: false,
            finished: false,
            broken: false,
            mark_told: false,
            plain: false,
            widened: false,
        }
    }

    /// A buffer that was full once gets larger; whether it has become so.
    fn widen(&mut self) -> bool {
        let End::Unix(fd) = &self.end else {
            return false;
        };
        // Without it the default buffer serves: slower, not wrong. What is received lies in the sender's buffer.
        !std::mem::replace(&mut self.widened, true)
            && sockopt::set_socket_send_buffer_size(fd, SOCKET_BUFFER_BYTES).is_ok()
    }

    fn fd(&self) -> Option<&OwnedFd> {
        match &self.end {
            End::Unix(fd) | End::Tcp(fd) => Some(fd),
            End::Awaited => None,
        }
    }
}

impl From<OwnedFd> for HostSocket {
    /// The other end of a program's Unix stream socket.
    fn from(fd: OwnedFd) -> Self {
        // Urgent bytes stay in their place among the others.
        let _ = sockopt::set_socket_oobinline(&fd, true);
        Self::new(End::Unix(fd))
    }
}

/// The sockets under one epoll.
#[derive(Debug)]
pub struct HostSockets {
    epoll: Arc<OwnedFd>,
    ready: VecDeque<(StreamId, Ready)>,
    /// Receives, and reports taken over.
    changes: u64,
    deliveries: Deliveries,
}

impl HostSockets {
    /// Watches nothing yet. `names`: whose connections come from nameless addresses.
    pub fn new(names: Arc<Names>) -> io::Result<Self> {
        Ok(Self {
            epoll: Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?),
            ready: VecDeque::new(),
            changes: 0,
            deliveries: Deliveries::new(names),
        })
    }

    /// The epoll that reports the sockets, for whoever waits.
    pub(super) fn epoll(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.epoll)
    }

    /// A number that changes with each receive and with each report that is taken over.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Takes over what the kernel reported for a socket. `fresh`: nothing was received, or taken over, since.
    pub(super) fn note(&mut self, id: StreamId, flags: EventFlags, fresh: bool) {
        let hangup = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let ready = Ready {
            readable: hangup || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
            writable: hangup || flags.contains(EventFlags::OUT),
            hangup,
            plain: fresh && flags.difference(EventFlags::OUT) == EventFlags::IN,
        };
        self.changes += 1;
        self.ready.push_back((id, ready));
    }

    fn interest(room: bool) -> EventFlags {
        let always = EventFlags::IN | EventFlags::PRI | EventFlags::RDHUP | EventFlags::ET;
        if room {
            always | EventFlags::OUT
        } else {
            always
        }
    }

    fn watch_room(&self, id: StreamId, socket: &mut HostSocket, room: bool) {
        let Some(fd) = socket.fd() else {
            return;
        };
        let data = EventData::new_u64(id.0);
        // A failure would mean that the socket is not watched at all, and `watch` has reported that.
        if epoll::modify(&*self.epoll, fd, data, Self::interest(room)).is_ok() {
            socket.room_watched = room;
        }
    }

    fn send_with(socket: &mut HostSocket, bytes: &[u8], how: SendFlags) -> Pushed {
        let mut sent = 0;
        loop {
            let Some(fd) = socket.fd() else {
                return Pushed::Bytes(0);
            };
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | how;
            let rest = &bytes[sent..];
            return match rustix::net::send(fd, rest, flags) {
                Ok(n) if n < rest.len() && socket.widen() => {
                    sent += n;
                    continue;
                }
                Ok(n) => Pushed::Bytes(sent + n),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN | Errno::NOBUFS) if socket.widen() => continue,
                Err(Errno::AGAIN | Errno::NOBUFS) => Pushed::Bytes(sent),
                Err(_) if sent > 0 => Pushed::Bytes(sent),
                Err(error) => {
                    // A Unix socket whose program is gone may still hold bytes that it sent.
                    socket.broken |= matches!(socket.end, End::Tcp(_)) || error == Errno::CONNRESET;
                    Pushed::Broken
                }
            };
        }
    }

    fn deliver_unix(
        listener: &Path,
        peer: &SystemName,
        peer_port: u16,
        token: &mut dyn FnMut() -> StreamToken,
    ) -> Delivery<HostSocket> {
        let mut tokens = (0..NAME_TRIES_MAX).map(|_| token());
        let mut named = || -> io::Result<(OwnedFd, StreamToken)> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let fd =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            let mut bound = Err(io::ErrorKind::AddrInUse.into());
            for token in &mut tokens {
                bound = bind_name(&fd, peer, peer_port, token).map(|()| token);
                if !matches!(&bound, Err(e) if e.kind() == io::ErrorKind::AddrInUse) {
                    break;
                }
            }
            bound.map(|token| (fd, token))
        };
        let (fd, token) = match named() {
            Ok(named) => named,
            Err(error) => return Delivery::Failed(error),
        };
        let connected = SocketPath::unfollowed(listener)
            .and_then(|path| Ok(rustix::net::connect(&fd, path.address())?));
        match connected.map_err(|error| (Errno::from_io_error(&error), error)) {
            Ok(()) => Delivery::Done(HostSocket::from(fd), token),
            Err((Some(Errno::AGAIN), _)) => Delivery::Full,
            Err((Some(Errno::CONNREFUSED | Errno::NOENT | Errno::NOTDIR), _)) => Delivery::Gone,
            Err((_, error)) => Delivery::Failed(error),
        }
    }
}

impl LocalSide for HostSockets {
    type Socket = HostSocket;
    type Handle = OwnedFd;
    type Listener = HostListener;

    fn watch_end(&mut self, id: StreamId, socket: &mut HostSocket) {
        if let End::Unix(fd) = &socket.end {
            let data = EventData::new_u64(id.0);
            // Should it fail, the stream is opened all the same, or given up when its time is over.
            socket.end_watched = epoll::add(&*self.epoll, fd, data, EventFlags::ET).is_ok();
        }
    }

    fn watch(&mut self, id: StreamId, socket: &mut HostSocket) -> io::Result<()> {
        if let Some(fd) = socket.fd() {
            let data = EventData::new_u64(id.0);
            let interest = Self::interest(false);
            if socket.end_watched {
                epoll::modify(&*self.epoll, fd, data, interest)?;
            } else {
                epoll::add(&*self.epoll, fd, data, interest)?;
            }
        }
        Ok(())
    }

    fn join(
        &mut self,
        id: StreamId,
        awaited: &mut HostSocket,
        mut socket: HostSocket,
    ) -> io::Result<()> {
        self.watch(id, &mut socket)?;
        if awaited.finished {
            self.finish(&mut socket);
        }
        *awaited = socket;
        Ok(())
    }

    fn await_room(&mut self, id: StreamId, socket: &mut HostSocket) {
        socket.room_wanted = true;
        // Already watched, the edge that is waited for has not been reported yet: it is ahead.
        if !socket.room_watched {
            self.watch_room(id, socket, true);
        }
    }

    fn room_seen(&mut self, id: StreamId, socket: &mut HostSocket) {
        if socket.room_wanted {
            socket.room_wanted = false;
        } else if socket.room_watched {
            self.watch_room(id, socket, false);
        }
    }

    fn arrival_seen(&mut self, socket: &mut HostSocket, plain: bool) {
        // The last report counts: an end or an urgent byte may have come behind the bytes.
        socket.plain = plain;
    }

    fn recv(&mut self, socket: &mut HostSocket, space: &mut [u8]) -> Pulled {
        let mut plain = std::mem::take(&mut socket.plain);
        let Some(fd) = socket.fd() else {
            return Pulled::Empty;
        };
        if space.is_empty() {
            return Pulled::Empty;
        }
        self.changes += 1;
        if !plain && !socket.mark_told {
            match sys::next(fd) {
                Next::Nothing => return Pulled::Empty,
                Next::Urgent => {
                    socket.mark_told = true;
                    return Pulled::Mark;
                }
                Next::Plain => plain = true,
                Next::Other => {}
            }
        }
        loop {
            let wanted = space.len();
            return match receive(&socket.end, fd, space) {
                Ok((0, _)) if socket.broken => Pulled::Broken,
                Ok((0, _)) => Pulled::End,
                Ok((n, stopped)) => {
                    socket.mark_told = false;
                    match plain && !stopped && n < wanted {
                        true => Pulled::Last(n),
                        false => Pulled::Bytes(n),
                    }
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) if socket.mark_told && sys::next(fd) != Next::Nothing => continue,
                Err(Errno::AGAIN) => Pulled::Empty,
                Err(_) => {
                    socket.broken = true;
                    Pulled::Broken
                }
            };
        }
    }

    fn send(&mut self, socket: &mut HostSocket, bytes: &[u8]) -> Pushed {
        Self::send_with(socket, bytes, SendFlags::empty())
    }

    fn send_urgent(&mut self, socket: &mut HostSocket, byte: u8) -> Pushed {
        Self::send_with(socket, &[byte], SendFlags::OOB)
    }

    fn finish(&mut self, socket: &mut HostSocket) {
        socket.finished = true;
        if let Some(fd) = socket.fd() {
            let _ = rustix::net::shutdown(fd, Shutdown::Write);
        }
    }

    fn is_hung_up(&mut self, socket: &HostSocket) -> bool {
        let seen = socket.fd().map(|fd| polled(fd, PollFlags::empty()));
        seen.is_some_and(|seen| seen.contains(PollFlags::HUP))
    }

    fn is_write_shut(&mut self, socket: &HostSocket) -> bool {
        let seen = socket.fd().map(|fd| polled(fd, PollFlags::RDHUP));
        seen.is_some_and(|seen| seen.intersects(PollFlags::RDHUP | PollFlags::HUP))
    }

    fn is_drained(&mut self, socket: &mut HostSocket) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = socket
            .fd()
            .map(|fd| rustix::net::recv(fd, &mut [0; 1], flags));
        // A peek takes a pending error, too.
        socket.broken |= matches!(peeked, Some(Err(error)) if error != Errno::AGAIN);
        matches!(peeked, Some(Err(Errno::AGAIN)))
    }

    fn copy_handle(&mut self, handle: &OwnedFd) -> io::Result<OwnedFd> {
        handle.try_clone()
    }

    fn pair(&mut self) -> io::Result<(OwnedFd, HostSocket)> {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let (program, engine) = rustix::net::socketpair(family, SocketType::STREAM, flags, None)?;
        Ok((program, HostSocket::from(engine)))
    }

    fn shut_handle(&mut self, handle: &OwnedFd, write: bool, read: bool) {
        if write {
            let _ = rustix::net::shutdown(handle, Shutdown::Write);
        }
        if read {
            let _ = rustix::net::shutdown(handle, Shutdown::Read);
        }
    }

    fn peek_unread(&mut self, handle: &OwnedFd) -> io::Result<Vec<u8>> {
        peek_all(handle)
    }

    fn peek_unsent(&mut self, socket: &HostSocket) -> io::Result<Vec<u8>> {
        socket.fd().map_or_else(|| Ok(Vec::new()), peek_all)
    }

    fn drop_handle(&mut self, handle: OwnedFd) {
        drop(handle);
    }

    fn has_left_unread(&mut self, socket: &HostSocket) -> bool {
        match &socket.end {
            // A Unix socket whose peer closes it with bytes unread keeps that as its pending error.
            End::Unix(fd) => {
                socket.broken || matches!(sockopt::socket_error(fd), Ok(Err(Errno::CONNRESET)))
            }
            End::Tcp(fd) => socket.broken || matches!(sockopt::socket_error(fd), Ok(Err(_))),
            End::Awaited => false,
        }
    }

    fn close(&mut self, socket: HostSocket, clean: bool) {
        match &socket.end {
            End::Unix(fd) => {
                let _ = epoll::delete(&*self.epoll, fd);
                let _ = rustix::net::shutdown(fd, Shutdown::Both);
            }
            // What the program has not taken yet is delivered by the kernel.
            End::Tcp(fd) if clean && !socket.broken => {
                let _ = sockopt::set_socket_linger(fd, None);
            }
            End::Tcp(_) | End::Awaited => {}
        }
    }

    fn let_go(&mut self, socket: &mut HostSocket) {
        let end = std::mem::replace(&mut socket.end, End::Awaited);
        if let End::Unix(fd) | End::Tcp(fd) = end {
            let _ = epoll::delete(&*self.epoll, fd);
        }
    }

    fn deliver(
        &mut self,
        listener: &HostListener,
        peer: &SystemName,
        peer_port: u16,
        token: &mut dyn FnMut() -> StreamToken,
    ) -> Delivery<HostSocket> {
        match listener {
            HostListener::Unix(path) => Self::deliver_unix(path, peer, peer_port, token),
            HostListener::Tcp(places) => match self.deliveries.deliver(places, peer, peer_port) {
                Delivered::Done(fd) => Delivery::Done(HostSocket::tcp(fd), token()),
                Delivered::Full => Delivery::Full,
                Delivered::Gone => Delivery::Gone,
                Delivered::Failed(error) => Delivery::Failed(error),
            },
        }
    }

    fn poll_ready(&mut self) -> Option<(StreamId, Ready)> {
        self.ready.pop_front()
    }
}

/// Receives bytes, and whether the kernel stopped at descriptors that the program passed: those are closed.
fn receive(end: &End, fd: &OwnedFd, space: &mut [u8]) -> Result<(usize, bool), Errno> {
    if let End::Unix(_) = end {
        let mut none = RecvAncillaryBuffer::default();
        let into = &mut [IoSliceMut::new(space)];
        let message = rustix::net::recvmsg(fd, into, &mut none, RecvFlags::DONTWAIT)?;
        let stopped = message.flags.contains(ReturnFlags::CTRUNC);
        return Ok((message.bytes, stopped));
    }
    let (bytes, _) = rustix::net::recv(fd, space, RecvFlags::DONTWAIT)?;
    Ok((bytes, false))
}

/// All bytes that wait in a socket, which keeps them.
fn peek_all(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    let waiting = usize::try_from(rustix::io::ioctl_fionread(fd)?).unwrap_or(0);
    if waiting == 0 {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; waiting];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let (found, _) = rustix::net::recv(fd, &mut bytes[..], flags)?;
    if found < waiting {
        return Err(io::Error::other("its bytes cannot be read as a whole"));
    }
    Ok(bytes)
}

fn bind_name(fd: &OwnedFd, peer: &SystemName, port: u16, token: StreamToken) -> io::Result<()> {
    let name = PeerName {
        kind: PeerNameKind::Engine,
        system: *peer,
        port,
        token: token.0,
    };
    Ok(rustix::net::bind(fd, &name.address()?)?)
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use std::time::{Duration, Instant};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, send, sendmsg, shutdown};
    use stp_format::{Place, UnitBuf, VolumeId};
    use stp_medium::{Op, OpId};

    use super::*;
    use crate::address::Addresses;
    use crate::volume;

    const ROUNDS: u64 = 500;

    fn sockets() -> HostSockets {
        let addresses = Addresses::new(VolumeId([7; 16]));
        HostSockets::new(Arc::new(Names::new(addresses, "alpha".parse().unwrap()))).unwrap()
    }

    fn unix() -> (OwnedFd, HostSocket) {
        let (program, engine) = UnixStream::pair().unwrap();
        (program.into(), HostSocket::from(OwnedFd::from(engine)))
    }

    fn tcp() -> (OwnedFd, HostSocket) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let program = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        program.set_nodelay(true).unwrap();
        let (engine, _) = listener.accept().unwrap();
        sockopt::set_socket_oobinline(&engine, true).unwrap();
        (program.into(), HostSocket::tcp(engine.into()))
    }

    /// What is received until nothing is left, with so much room each time.
    fn drain(engine: &mut HostSocket, room: usize) -> Vec<Pulled> {
        let mut sockets = sockets();
        let mut space = vec![0; room];
        let mut seen = Vec::new();
        loop {
            let pulled = sockets.recv(engine, &mut space);
            seen.push(pulled);
            if !matches!(pulled, Pulled::Bytes(_) | Pulled::Mark) {
                return seen;
            }
        }
    }

    fn wait_for(engine: &HostSocket, bytes: u64) {
        while rustix::io::ioctl_fionread(engine.fd().unwrap()).unwrap() < bytes {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_short_receive_is_the_last_where_nothing_but_bytes_is_there() {
        for (program, mut engine) in [unix(), tcp()] {
            send(&program, b"abc", SendFlags::empty()).unwrap();
            wait_for(&engine, 3);
            assert_eq!(drain(&mut engine, 8), [Pulled::Last(3)]);
            assert_eq!(drain(&mut engine, 8), [Pulled::Empty]);
            send(&program, b"abc", SendFlags::empty()).unwrap();
            wait_for(&engine, 3);
            assert_eq!(drain(&mut engine, 2), [Pulled::Bytes(2), Pulled::Last(1)]);
            send(&program, b"ab", SendFlags::empty()).unwrap();
            wait_for(&engine, 2);
            assert_eq!(drain(&mut engine, 2), [Pulled::Bytes(2), Pulled::Empty]);
        }
    }

    #[test]
    fn the_end_behind_bytes_is_found_without_another_report() {
        for (program, mut engine) in [unix(), tcp()] {
            send(&program, b"abc", SendFlags::empty()).unwrap();
            shutdown(&program, Shutdown::Write).unwrap();
            wait_for(&engine, 3);
            while !polled(engine.fd().unwrap(), PollFlags::RDHUP).contains(PollFlags::RDHUP) {
                std::thread::yield_now();
            }
            assert_eq!(drain(&mut engine, 8), [Pulled::Bytes(3), Pulled::End]);
        }
    }

    /// The kernel tells once that a program closed its socket with bytes unread, whoever asks first.
    #[test]
    fn what_a_program_left_unread_is_known_after_a_look() {
        let (program, mut engine) = unix();
        let mut sockets = sockets();
        assert_eq!(sockets.send(&mut engine, b"abc"), Pushed::Bytes(3));
        drop(program);
        assert!(!sockets.is_drained(&mut engine));
        assert!(sockets.has_left_unread(&engine));
        assert_eq!(drain(&mut engine, 8), [Pulled::Broken]);
    }

    #[test]
    fn bytes_behind_passed_descriptors_are_found_without_another_report() {
        let (program, mut engine) = unix();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut passed = SendAncillaryBuffer::new(&mut space);
        let fds = [program.as_fd()];
        assert!(passed.push(SendAncillaryMessage::ScmRights(&fds)));
        let bytes = [io::IoSlice::new(b"a")];
        sendmsg(&program, &bytes, &mut passed, SendFlags::empty()).unwrap();
        send(&program, b"bc", SendFlags::empty()).unwrap();
        assert_eq!(drain(&mut engine, 8), [Pulled::Bytes(1), Pulled::Last(2)]);
    }

    #[test]
    fn an_urgent_byte_behind_others_is_told_without_another_report() {
        for (program, mut engine) in [unix(), tcp()] {
            send(&program, b"ab", SendFlags::empty()).unwrap();
            if send(&program, b"!", SendFlags::OOB).is_err() {
                // A kernel whose Unix sockets have no urgent bytes.
                continue;
            }
            wait_for(&engine, 3);
            let seen = drain(&mut engine, 8);
            assert_eq!(seen[..2], [Pulled::Bytes(2), Pulled::Mark], "{seen:?}");
        }
    }

    /// Bytes are reported, and before they are received their end is, too.
    #[test]
    fn the_end_that_is_reported_behind_bytes_is_found() {
        for (program, mut engine) in [unix(), tcp()] {
            let mut sockets = sockets();
            send(&program, b"a", SendFlags::empty()).unwrap();
            wait_for(&engine, 1);
            shutdown(&program, Shutdown::Write).unwrap();
            while !polled(engine.fd().unwrap(), PollFlags::RDHUP).contains(PollFlags::RDHUP) {
                std::thread::yield_now();
            }
            for flags in [EventFlags::IN, EventFlags::IN | EventFlags::RDHUP] {
                sockets.note(StreamId(1), flags, true);
                let (_, ready) = sockets.poll_ready().unwrap();
                sockets.arrival_seen(&mut engine, ready.plain);
            }
            assert_eq!(drain(&mut engine, 8), [Pulled::Bytes(1), Pulled::End]);
        }
    }

    /// What was reported before somebody received says nothing about what is there now.
    #[test]
    fn an_urgent_byte_that_comes_alone_is_told() {
        for (program, mut engine) in [unix(), tcp()] {
            let mut sockets = sockets();
            let id = StreamId(1);
            sockets.watch(id, &mut engine).unwrap();
            send(&program, b"a", SendFlags::empty()).unwrap();
            wait_for(&engine, 1);
            sockets.note(id, EventFlags::IN, true);
            let (_, ready) = sockets.poll_ready().unwrap();
            assert!(ready.plain);
            sockets.arrival_seen(&mut engine, ready.plain);
            let mut space = [0; 8];
            assert_eq!(sockets.recv(&mut engine, &mut space), Pulled::Last(1));
            if send(&program, b"!", SendFlags::OOB).is_err() {
                continue;
            }
            wait_for(&engine, 1);
            sockets.note(id, EventFlags::IN, false);
            let (_, ready) = sockets.poll_ready().unwrap();
            sockets.arrival_seen(&mut engine, ready.plain);
            assert_eq!(sockets.recv(&mut engine, &mut space), Pulled::Mark);
            assert_eq!(sockets.recv(&mut engine, &mut space), Pulled::Bytes(1));
        }
    }

    /// The kernel says "again" at the mark while it has an interruption for the thread: here, transfers that end.
    #[test]
    fn a_byte_at_the_mark_is_received_while_a_transfer_ends() {
        let dir = tempfile::tempdir().unwrap();
        let spec = stp_medium::VolumeSpec::from(dir.path().join("volume").as_path());
        let options = volume::FormatOptions {
            group: "lab".parse().unwrap(),
            size_bytes: Some(2 << 20),
            seats: 3,
            force: false,
        };
        volume::format(&spec, &options).unwrap();
        let mut medium = volume::open(&spec).unwrap().into_medium();
        let (program, mut engine) = tcp();
        let mut space = [0; 8];
        let mut sockets = sockets();
        for round in 0..ROUNDS {
            send(&program, b"!", SendFlags::OOB).unwrap();
            wait_for(&engine, 1);
            assert_eq!(sockets.recv(&mut engine, &mut space), Pulled::Mark);
            let op = Op::Read {
                place: Place::Superblock { copy: 0 },
                buf: UnitBuf::zeroed(1),
            };
            medium.submit(OpId(round), op);
            medium.kick();
            // No system call, which would take the interruption: a different moment of the transfer each time.
            let until = Instant::now() + Duration::from_micros(round);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            assert_eq!(sockets.recv(&mut engine, &mut space), Pulled::Bytes(1));
            while medium.poll().is_none() {
                std::thread::yield_now();
            }
        }
    }
}

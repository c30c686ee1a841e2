//! Local streams: the engine's ends of the programs' sockets, and the kernel that wakes it.
//!
//! - Nothing here blocks but [`UnixLocal::wait`].
//! - Readiness is edge-triggered: it is reported once, and the node remembers it. An idle stream costs
//!   nothing, a full one is watched for room only until there is room.
//! - A socket is shut down before it is closed, so a forked child that holds a copy keeps nothing alive.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt,
};
use stp_core::StreamId;
use stp_format::SystemName;

use crate::control::StreamToken;
use crate::rendezvous::{PeerName, PeerNameKind, SocketPath};

/// Asked for as the buffers of a local socket; the kernel gives what it allows.
const SOCKET_BUFFER_BYTES: usize = 1 << 20;
/// Tokens tried when one's name is in use on this host.
const NAME_TRIES_MAX: usize = 8;

/// What happened to a local socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// There are bytes, or the program will send no more.
    pub readable: bool,
    /// There is room again.
    pub writable: bool,
    /// The program can neither send nor receive any more.
    pub hangup: bool,
}

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulled {
    /// So many bytes, at least one.
    Bytes(usize),
    /// None now.
    Empty,
    /// The program will send no more.
    End,
    /// The program is gone and has left received bytes unread.
    Broken,
}

/// What a send achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// So many bytes taken, perhaps none; fewer than offered means that the socket is full.
    Bytes(usize),
    /// The program will take no more.
    Broken,
}

/// What came of handing a connection to a listener.
#[derive(Debug)]
pub enum Delivery<S> {
    /// It is in the listener's queue.
    Done(S, StreamToken),
    /// The queue is full.
    Full,
    /// Nobody listens there any more.
    Gone,
    /// This host lacks what it takes, for now.
    Failed(io::Error),
}

/// The local side of an engine: the programs' sockets. The real one is [`UnixLocal`].
pub trait LocalSide {
    /// The engine's end of one program's stream.
    type Socket: Send + std::fmt::Debug;
    /// A copy of the program's own end, while a stream changes its owner.
    type Handle: Send + std::fmt::Debug;
    /// Where a port's connections are handed over.
    type Listener: Send + std::fmt::Debug;

    /// Starts reporting this socket's readiness, the present one first.
    fn watch(&mut self, id: StreamId, socket: &mut Self::Socket) -> io::Result<()>;
    /// Reports once when a full socket has room.
    fn await_room(&mut self, id: StreamId, socket: &mut Self::Socket);
    /// Room was reported: stops watching for it if nobody waited.
    fn room_seen(&mut self, id: StreamId, socket: &mut Self::Socket);
    /// Receives into `space`.
    fn recv(&mut self, socket: &mut Self::Socket, space: &mut [u8]) -> Pulled;
    /// Sends from `bytes`.
    fn send(&mut self, socket: &mut Self::Socket, bytes: &[u8]) -> Pushed;
    /// Tells the program that nothing more will come.
    fn finish(&mut self, socket: &mut Self::Socket);
    /// Whether the program can neither send nor receive any more, as of now.
    fn is_hung_up(&mut self, socket: &Self::Socket) -> bool;
    /// Whether the program, which is gone, left received bytes unread.
    fn has_left_unread(&mut self, socket: &Self::Socket) -> bool;
    /// Whether the program can send no more, as of now.
    fn is_write_shut(&mut self, socket: &Self::Socket) -> bool;
    /// Another copy of a program's end.
    fn copy_handle(&mut self, handle: &Self::Handle) -> io::Result<Self::Handle>;
    /// Lets go of a copy. The last one's end is the program's end.
    fn drop_handle(&mut self, handle: Self::Handle);
    /// Ends both directions and forgets the socket.
    fn close(&mut self, socket: Self::Socket);
    /// Hands a connection from `peer`:`peer_port` to a listener; `token` makes tokens for its name.
    fn deliver(
        &mut self,
        listener: &Self::Listener,
        peer: &SystemName,
        peer_port: u16,
        token: &mut dyn FnMut() -> StreamToken,
    ) -> Delivery<Self::Socket>;
    /// The next socket that something happened to.
    fn poll_ready(&mut self) -> Option<(StreamId, Ready)>;
}

/// The engine's end of a program's Unix stream socket.
#[derive(Debug)]
pub struct UnixSocket {
    fd: OwnedFd,
    /// The kernel reports room.
    room_watched: bool,
    /// Somebody waits for room.
    room_wanted: bool,
}

impl From<OwnedFd> for UnixSocket {
    fn from(fd: OwnedFd) -> Self {
        // Without these the engine's default buffers serve: slower, not wrong.
        let _ = sockopt::set_socket_send_buffer_size(&fd, SOCKET_BUFFER_BYTES);
        let _ = sockopt::set_socket_recv_buffer_size(&fd, SOCKET_BUFFER_BYTES);
        Self {
            fd,
            room_watched: false,
            room_wanted: false,
        }
    }
}

/// Unix stream sockets under one epoll.
#[derive(Debug)]
pub struct UnixLocal {
    epoll: OwnedFd,
    ready: Vec<(StreamId, Ready)>,
}

impl UnixLocal {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            ready: Vec::new(),
        })
    }

    /// The epoll that reports the sockets, for [`super::wait::Wait`].
    pub(super) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Takes over what the kernel reported for a socket.
    pub(super) fn note(&mut self, id: StreamId, flags: EventFlags) {
        let hangup = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let ready = Ready {
            readable: hangup || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
            writable: hangup || flags.contains(EventFlags::OUT),
            hangup,
        };
        self.ready.push((id, ready));
    }

    fn interest(room: bool) -> EventFlags {
        let always = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        if room {
            always | EventFlags::OUT
        } else {
            always
        }
    }

    fn watch_room(&self, id: StreamId, socket: &mut UnixSocket, room: bool) {
        let data = EventData::new_u64(id.0);
        // A failure would mean that the socket is not watched at all, and `watch` has reported that.
        if epoll::modify(&self.epoll, &socket.fd, data, Self::interest(room)).is_ok() {
            socket.room_watched = room;
        }
    }
}

impl LocalSide for UnixLocal {
    type Socket = UnixSocket;
    type Handle = OwnedFd;
    type Listener = PathBuf;

    fn watch(&mut self, id: StreamId, socket: &mut UnixSocket) -> io::Result<()> {
        let data = EventData::new_u64(id.0);
        epoll::add(&self.epoll, &socket.fd, data, Self::interest(false))?;
        Ok(())
    }

    fn await_room(&mut self, id: StreamId, socket: &mut UnixSocket) {
        socket.room_wanted = true;
        // Already watched, the edge that is waited for has not been reported yet: it is ahead.
        if !socket.room_watched {
            self.watch_room(id, socket, true);
        }
    }

    fn room_seen(&mut self, id: StreamId, socket: &mut UnixSocket) {
        if socket.room_wanted {
            socket.room_wanted = false;
        } else if socket.room_watched {
            self.watch_room(id, socket, false);
        }
    }

    fn recv(&mut self, socket: &mut UnixSocket, space: &mut [u8]) -> Pulled {
        if space.is_empty() {
            return Pulled::Empty;
        }
        loop {
            return match rustix::net::recv(&socket.fd, &mut *space, RecvFlags::DONTWAIT) {
                Ok((0, _)) => Pulled::End,
                Ok((n, _)) => Pulled::Bytes(n),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Pulled::Empty,
                Err(_) => Pulled::Broken,
            };
        }
    }

    fn send(&mut self, socket: &mut UnixSocket, bytes: &[u8]) -> Pushed {
        loop {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            return match rustix::net::send(&socket.fd, bytes, flags) {
                Ok(n) => Pushed::Bytes(n),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN | Errno::NOBUFS) => Pushed::Bytes(0),
                Err(_) => Pushed::Broken,
            };
        }
    }

    fn finish(&mut self, socket: &mut UnixSocket) {
        let _ = rustix::net::shutdown(&socket.fd, Shutdown::Write);
    }

    fn is_hung_up(&mut self, socket: &UnixSocket) -> bool {
        polled(&socket.fd, PollFlags::empty()).contains(PollFlags::HUP)
    }

    fn is_write_shut(&mut self, socket: &UnixSocket) -> bool {
        polled(&socket.fd, PollFlags::RDHUP).intersects(PollFlags::RDHUP | PollFlags::HUP)
    }

    fn copy_handle(&mut self, handle: &OwnedFd) -> io::Result<OwnedFd> {
        handle.try_clone()
    }

    fn drop_handle(&mut self, handle: OwnedFd) {
        drop(handle);
    }

    fn has_left_unread(&mut self, socket: &UnixSocket) -> bool {
        // A Unix socket whose peer closes it with bytes unread keeps that as its pending error.
        matches!(sockopt::socket_error(&socket.fd), Ok(Err(Errno::CONNRESET)))
    }

    fn close(&mut self, socket: UnixSocket) {
        let _ = epoll::delete(&self.epoll, &socket.fd);
        let _ = rustix::net::shutdown(&socket.fd, Shutdown::Both);
    }

    fn deliver(
        &mut self,
        listener: &PathBuf,
        peer: &SystemName,
        peer_port: u16,
        token: &mut dyn FnMut() -> StreamToken,
    ) -> Delivery<UnixSocket> {
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
        let (socket, token) = match named() {
            Ok((fd, token)) => (UnixSocket::from(fd), token),
            Err(error) => return Delivery::Failed(error),
        };
        let connected = SocketPath::new(listener)
            .and_then(|path| Ok(rustix::net::connect(&socket.fd, path.address())?));
        match connected.map_err(|error| (Errno::from_io_error(&error), error)) {
            Ok(()) => Delivery::Done(socket, token),
            Err((Some(Errno::AGAIN), _)) => Delivery::Full,
            Err((Some(Errno::CONNREFUSED | Errno::NOENT | Errno::NOTDIR), _)) => Delivery::Gone,
            Err((_, error)) => Delivery::Failed(error),
        }
    }

    fn poll_ready(&mut self) -> Option<(StreamId, Ready)> {
        self.ready.pop()
    }
}

/// What the kernel says of a socket now.
fn polled(fd: &OwnedFd, asked: PollFlags) -> PollFlags {
    let mut polled = [PollFd::new(fd, asked)];
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut polled, Some(&zero)) {
        Ok(_) => polled[0].revents(),
        Err(_) => PollFlags::empty(),
    }
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

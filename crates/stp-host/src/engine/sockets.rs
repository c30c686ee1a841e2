//! The programs' sockets of this host: the engine's ends, Unix and TCP, under one epoll.
//!
//! - A program with the library holds one end of a Unix stream socket, a program under `stp run` a TCP socket of its own;
//!   the engine holds the other end.
//! - A Unix socket is shut down before it is closed, so a forked child that holds a copy keeps nothing alive.
//! - A TCP socket of ours resets when it is closed, unless its stream has come to its end in both directions: an engine that
//!   is killed never looks like the end of a stream.
//! - A broken socket stays broken: the kernel tells an error once, and an end of file after it.

mod tcp;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt,
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

/// Asked for as the buffers of a local socket; the kernel gives what it allows.
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
}

#[derive(Debug)]
enum End {
    Unix(OwnedFd),
    Tcp(OwnedFd),
    /// Its stream is open, the program's socket will join it soon.
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
            room_watched: false,
            room_wanted: false,
            finished: false,
            broken: false,
            mark_told: false,
        }
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
        // Without these the engine's default buffers serve: slower, not wrong.
        let _ = sockopt::set_socket_send_buffer_size(&fd, SOCKET_BUFFER_BYTES);
        let _ = sockopt::set_socket_recv_buffer_size(&fd, SOCKET_BUFFER_BYTES);
        // Urgent bytes stay in their place among the others.
        let _ = sockopt::set_socket_oobinline(&fd, true);
        Self::new(End::Unix(fd))
    }
}

/// The sockets under one epoll.
#[derive(Debug)]
pub struct HostSockets {
    epoll: Arc<OwnedFd>,
    ready: Vec<(StreamId, Ready)>,
    deliveries: Deliveries,
}

impl HostSockets {
    /// Watches nothing yet. `names`: whose connections come from nameless addresses.
    pub fn new(names: Arc<Names>) -> io::Result<Self> {
        Ok(Self {
            epoll: Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?),
            ready: Vec::new(),
            deliveries: Deliveries::new(names),
        })
    }

    /// The epoll that reports the sockets, for whoever waits.
    pub(super) fn epoll(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.epoll)
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
        let Some(fd) = socket.fd() else {
            return Pushed::Bytes(0);
        };
        loop {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | how;
            return match rustix::net::send(fd, bytes, flags) {
                Ok(n) => Pushed::Bytes(n),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN | Errno::NOBUFS) => Pushed::Bytes(0),
                Err(_) => {
                    // A Unix socket whose program is gone may still hold bytes that it sent.
                    socket.broken = matches!(socket.end, End::Tcp(_));
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
        let connected = SocketPath::new(listener)
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

    fn watch(&mut self, id: StreamId, socket: &mut HostSocket) -> io::Result<()> {
        if let Some(fd) = socket.fd() {
            let data = EventData::new_u64(id.0);
            epoll::add(&*self.epoll, fd, data, Self::interest(false))?;
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

    fn recv(&mut self, socket: &mut HostSocket, space: &mut [u8]) -> Pulled {
        let Some(fd) = socket.fd() else {
            return Pulled::Empty;
        };
        if space.is_empty() {
            return Pulled::Empty;
        }
        if !socket.mark_told {
            match sys::next(fd) {
                Next::Nothing => return Pulled::Empty,
                Next::Urgent => {
                    socket.mark_told = true;
                    return Pulled::Mark;
                }
                Next::Other => {}
            }
        }
        loop {
            return match rustix::net::recv(fd, &mut *space, RecvFlags::DONTWAIT) {
                Ok((0, _)) if socket.broken => Pulled::Broken,
                Ok((0, _)) => Pulled::End,
                Ok((n, _)) => {
                    socket.mark_told = false;
                    Pulled::Bytes(n)
                }
                Err(Errno::INTR) => continue,
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

    fn is_drained(&mut self, socket: &HostSocket) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = socket
            .fd()
            .map(|fd| rustix::net::recv(fd, &mut [0; 1], flags));
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
            End::Unix(fd) => matches!(sockopt::socket_error(fd), Ok(Err(Errno::CONNRESET))),
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
        self.ready.pop()
    }
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

//! A listening socket.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::net::{SocketAddrUnix, SocketFlags};
use stp_host::control::StreamToken;
use stp_host::rendezvous::{PeerName, PeerNameKind, PortSocket, direct};

use crate::addr::Addr;
use crate::group::Inner as Group;
use crate::stream::{Fate, Stream};

/// A port that programs of every system can connect to.
///
/// The port is free again when the last clone is dropped, or when the process dies.
pub struct Listener {
    socket: OwnedFd,
    shared: Arc<Shared>,
}

struct Shared {
    port: PortSocket,
    group: Arc<Group>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.group.calls.unlisten(self.port.port());
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("addr", &self.addr().to_string())
            .field("fd", &self.socket.as_raw_fd())
            .finish()
    }
}

impl Listener {
    pub(crate) fn bind(group: &Arc<Group>, port: u16) -> io::Result<Self> {
        let port = PortSocket::bind(&group.dir, port)?;
        group.calls.listen(port.port(), &port.path(), false)?;
        let socket = port.as_fd().try_clone_to_owned()?;
        let shared = Shared {
            port,
            group: Arc::clone(group),
        };
        Ok(Self {
            socket,
            shared: Arc::new(shared),
        })
    }

    fn addr(&self) -> Addr {
        Addr::new(*self.shared.group.dir.system(), self.shared.port.port())
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<Addr> {
        Ok(self.addr())
    }

    /// Waits for the next connection.
    pub fn accept(&self) -> io::Result<(Stream, Addr)> {
        loop {
            let socket = rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC)?;
            if let Some((fate, peer)) = identify(&self.shared.group, socket.as_fd())? {
                let stream = Stream::new(
                    socket,
                    &self.shared.group.dir,
                    self.addr(),
                    peer.clone(),
                    fate,
                );
                return Ok((stream, peer));
            }
        }
    }

    /// The connections, one after the other, for ever.
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming { listener: self }
    }

    /// Makes `accept` return `WouldBlock` instead of waiting.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.socket, nonblocking)?)
    }

    /// Another handle to the same port.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            shared: Arc::clone(&self.shared),
        })
    }

    /// The pending error of the socket, and clears it.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        let error = rustix::net::sockopt::socket_error(&self.socket)?;
        Ok(error.err().map(io::Error::from))
    }
}

/// Who connected to a listener of `group`; `None` if it went away before it said so. An error: no descriptor is left
/// for what it said.
pub(crate) fn identify(group: &Group, socket: BorrowedFd<'_>) -> io::Result<Option<(Fate, Addr)>> {
    let address = rustix::net::getpeername(socket).ok().flatten();
    let Some(address) = address.and_then(|address| SocketAddrUnix::try_from(address).ok()) else {
        return Ok(None);
    };
    let Some(name) = address.abstract_name().and_then(PeerName::parse) else {
        // A local program without the library that did not care for a name.
        return Ok(Some((Fate::Raw, Addr::new(*group.dir.system(), 0))));
    };
    let peer = Addr::new(name.system, name.port);
    let fate = match name.kind {
        PeerNameKind::Engine => Fate::Engine {
            calls: Arc::clone(&group.calls),
            token: StreamToken(name.token),
        },
        PeerNameKind::Library => match direct::welcome(socket)? {
            Some(marks) => Fate::Direct(marks),
            None => return Ok(None),
        },
        PeerNameKind::Raw => Fate::Raw,
    };
    Ok(Some((fate, peer)))
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// See [`Listener::incoming`].
#[derive(Debug)]
#[must_use = "iterators are lazy"]
pub struct Incoming<'a> {
    listener: &'a Listener,
}

impl Iterator for Incoming<'_> {
    type Item = io::Result<Stream>;

    fn next(&mut self) -> Option<io::Result<Stream>> {
        Some(self.listener.accept().map(|(stream, _)| stream))
    }
}

impl<'a> IntoIterator for &'a Listener {
    type Item = io::Result<Stream>;
    type IntoIter = Incoming<'a>;

    fn into_iter(self) -> Incoming<'a> {
        self.incoming()
    }
}

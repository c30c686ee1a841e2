//! The door: where the programs' connections to other systems come about.
//!
//! - A program connects its socket to the door. The kernel drops what arrives there, by a filter or because its queue is
//!   full. So the socket waits as one does whose peer has not answered yet, with all that belongs to it: time-outs,
//!   signals, `poll`, `EINPROGRESS`.
//! - When the stream is open, the engine connects a socket of its own from the door to the program's: both sides open at
//!   once, as TCP allows, and the connection stands.
//! - To refuse, the same is done and reset at once.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, bind, connect, getsockname, listen, sockopt};

use super::sys;
use crate::address::DOOR_V4;
use crate::engine::stream_socket;

/// A door.
#[derive(Debug)]
pub(super) struct Door {
    v4: Half,
    v6: Option<Half>,
}

/// Its part for one family.
#[derive(Debug)]
struct Half {
    at: SocketAddr,
    /// Never accepts: it keeps the kernel from refusing. With it, what fills its queue.
    _listener: (OwnedFd, Option<OwnedFd>),
}

/// How a door is kept shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bolt {
    /// By a filter, which not every kernel grants to everybody.
    Filter,
    /// By a queue that is full.
    Queue,
}

impl Half {
    fn open(ip: IpAddr) -> io::Result<Self> {
        Self::bolted(ip, Bolt::Filter).or_else(|_| Self::bolted(ip, Bolt::Queue))
    }

    fn bolted(ip: IpAddr, bolt: Bolt) -> io::Result<Self> {
        let listener = shared_socket(ip)?;
        bind(&listener, &SocketAddr::new(ip, 0))?;
        let at = SocketAddr::try_from(getsockname(&listener)?)?;
        let mut filler = None;
        match bolt {
            Bolt::Filter => {
                sys::drop_everything(&listener)?;
                listen(&listener, 1)?;
            }
            Bolt::Queue => {
                // A queue for none is full with the first one.
                listen(&listener, 0)?;
                filler = Some(TcpStream::connect(at)?.into());
            }
        }
        Ok(Self {
            at,
            _listener: (listener, filler),
        })
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    }
}

/// A socket that may use the door's address beside others.
fn shared_socket(ip: IpAddr) -> Result<OwnedFd, Errno> {
    let socket = stream_socket(family(ip))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    Ok(socket)
}

impl Door {
    /// Opens a door in this thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        if !super::namespace::has_loopback() {
            let what =
                "the loopback interface is down: `ip link set lo up`, then start the engine again";
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, what));
        }
        let v4 = Half::open(DOOR_V4.into()).map_err(|error| {
            io::Error::new(error.kind(), format!("no TCP socket on loopback: {error}"))
        })?;
        Ok(Self {
            v4,
            // A host without IPv6 does without.
            v6: Half::open(Ipv6Addr::LOCALHOST.into()).ok(),
        })
    }

    /// Where IPv4 sockets connect to.
    pub(super) fn v4(&self) -> SocketAddr {
        self.v4.at
    }

    /// Where sockets for IPv6 alone connect to.
    pub(super) fn v6(&self) -> Option<SocketAddr> {
        self.v6.as_ref().map(|half| half.at)
    }

    /// Where a socket bound to `local` connects to.
    pub(super) fn for_local(&self, local: SocketAddr) -> Option<SocketAddr> {
        match local {
            SocketAddr::V4(_) => Some(self.v4()),
            SocketAddr::V6(_) => self.v6(),
        }
    }

    /// Connects from the door to the program's socket, which connects to the door: begun, perhaps done.
    pub(super) fn cross(&self, local: SocketAddr) -> Result<OwnedFd, Errno> {
        let at = self.for_local(local).ok_or(Errno::AFNOSUPPORT)?;
        let socket = shared_socket(at.ip())?;
        bind(&socket, &at)?;
        match connect(&socket, &local) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Made, made};
    use std::io::{Read, Write};
    use std::net::Ipv4Addr;

    /// A socket as the preload leaves it: bound, connecting to the door, not waiting.
    fn program(door: &Door, ip: IpAddr) -> (OwnedFd, SocketAddr) {
        let socket = stream_socket(family(ip)).unwrap();
        sockopt::set_socket_linger(&socket, None).unwrap();
        bind(&socket, &SocketAddr::new(ip, 0)).unwrap();
        let local = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
        let to = door.for_local(local).unwrap();
        assert_eq!(connect(&socket, &to), Err(Errno::INPROGRESS));
        (socket, local)
    }

    /// A door of each kind that this machine grants.
    fn doors() -> Vec<Door> {
        let open = |bolt| {
            let v4 = Half::bolted(DOOR_V4.into(), bolt);
            v4.map(|v4| Door {
                v4,
                v6: Half::bolted(Ipv6Addr::LOCALHOST.into(), bolt).ok(),
            })
        };
        let full = open(Bolt::Queue).unwrap();
        open(Bolt::Filter).into_iter().chain([full]).collect()
    }

    #[test]
    fn a_connection_comes_about_when_the_engine_crosses() {
        doors().iter().for_each(crosses);
    }

    fn crosses(door: &Door) {
        let mut own: Vec<IpAddr> = vec![Ipv4Addr::new(127, 64, 7, 9).into()];
        own.extend(door.v6().map(|at| at.ip()));
        for ip in own {
            let (socket, local) = program(door, ip);
            assert!(matches!(made(&socket), Made::NotYet));
            let ours = door.cross(local).unwrap();
            assert!(matches!(made(&ours), Made::Yes));
            assert!(matches!(made(&socket), Made::Yes));
            let (mut ours, mut theirs) = (TcpStream::from(ours), TcpStream::from(socket));
            ours.set_nonblocking(false).unwrap();
            theirs.set_nonblocking(false).unwrap();
            assert_eq!(
                theirs.peer_addr().unwrap().port(),
                door.for_local(local).unwrap().port()
            );
            ours.write_all(b"there").unwrap();
            let mut bytes = [0; 5];
            theirs.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"there");
        }
    }

    #[test]
    fn a_refusal_is_an_error_of_the_connection() {
        for door in doors() {
            let (socket, local) = program(&door, Ipv4Addr::new(127, 64, 7, 9).into());
            drop(door.cross(local).unwrap());
            assert!(matches!(
                made(&socket),
                Made::No(Errno::CONNRESET | Errno::CONNREFUSED)
            ));
        }
    }

    #[test]
    fn nobody_at_the_other_side_is_seen_at_once() {
        for door in doors() {
            let (socket, local) = program(&door, Ipv4Addr::new(127, 64, 7, 9).into());
            drop(socket);
            let refused = match door.cross(local) {
                Ok(ours) => matches!(made(&ours), Made::No(Errno::CONNREFUSED)),
                Err(errno) => errno == Errno::CONNREFUSED,
            };
            assert!(refused);
        }
    }

    #[test]
    fn two_doors_stand_beside_each_other() {
        let (one, other) = (Door::open().unwrap(), Door::open().unwrap());
        assert_ne!(one.v4(), other.v4());
        let (socket, local) = program(&one, Ipv4Addr::new(127, 64, 7, 9).into());
        assert!(matches!(made(&socket), Made::NotYet));
        let _crossed = one.cross(local).unwrap();
        assert!(matches!(made(&socket), Made::Yes));
    }
}

//! Programs with the library that connect to a TCP listener of this very system: the engine stands between the two.
//!
//! - The library's end of a stream says by a mark whether it ends in order; TCP says it by the kind of its end. Each is
//!   turned into the other, so that a death on one side is a reset on the other.
//! - Two threads a connection, at most [`RELAYS_MAX`] connections; what is beyond is reset.

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, connect, getpeername, recvmsg, socket_with, sockopt,
};

use crate::rendezvous::{PeerName, PeerNameKind};

/// Connections at once.
const RELAYS_MAX: usize = 1024;
/// How long a program may take to introduce itself.
const INTRODUCTION_MAX: Duration = Duration::from_secs(2);
const BUFFER_BYTES: usize = 64 << 10;
/// The mark of the end that was connected to, in the counter that both share.
const OUR_MARK: u64 = 1 << 32;

/// Counts the connections that are relayed.
#[derive(Clone, Debug, Default)]
pub(super) struct Relays(Arc<AtomicUsize>);

impl Relays {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Joins a connection of the library to the listener at `target`; `own` is this system's address.
    pub(super) fn begin(&self, program: OwnedFd, own: IpAddr, target: SocketAddr) {
        if self.0.fetch_add(1, Ordering::Relaxed) >= RELAYS_MAX {
            self.0.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let relays = self.clone();
        let begun = thread::Builder::new()
            .name("stp-relay".to_owned())
            .spawn(move || {
                if let Err(error) = relay(program.into(), own, target) {
                    tracing::debug!(%target, %error, "a connection within this system broke");
                }
                relays.0.fetch_sub(1, Ordering::Relaxed);
            });
        if begun.is_err() {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn relay(program: UnixStream, own: IpAddr, target: SocketAddr) -> io::Result<()> {
    let marks = introduction(&program)?;
    let family = match target {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let server = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if target.is_ipv4() {
        bind(&server, &SocketAddr::new(own, 0))?;
    }
    connect(&server, &target)?;
    // Whatever ends this thread but an end in order is a reset.
    sockopt::set_socket_linger(&server, Some(Duration::ZERO))?;
    sockopt::set_tcp_nodelay(&server, true)?;
    let server = TcpStream::from(server);
    let (mut from_program, mut to_server) = (program.try_clone()?, server.try_clone()?);
    let broken = AtomicBool::new(false);
    let sent = thread::scope(|scope| -> io::Result<()> {
        let sending = scope.spawn(|| -> io::Result<()> {
            let copied = copy(&mut from_program, &mut to_server).and_then(|()| {
                match marks.as_ref().is_none_or(left_in_order) {
                    true => Ok(()),
                    false => Err(io::ErrorKind::ConnectionReset.into()),
                }
            });
            match copied {
                Ok(()) => to_server.shutdown(Shutdown::Write),
                Err(error) => {
                    // It wakes the other direction.
                    broken.store(true, Ordering::Release);
                    let _ = server.shutdown(Shutdown::Both);
                    let _ = program.shutdown(Shutdown::Both);
                    Err(error)
                }
            }
        });
        let received = copy(&mut &server, &mut &program);
        match &received {
            Ok(()) => {
                // Not if the other direction broke and woke this one.
                if !broken.load(Ordering::Acquire)
                    && let Some(marks) = &marks
                {
                    let _ = rustix::io::write(marks, &OUR_MARK.to_ne_bytes());
                }
                let _ = program.shutdown(Shutdown::Write);
            }
            Err(_) => {
                let _ = program.shutdown(Shutdown::Both);
            }
        }
        let sent = sending.join().unwrap_or(Ok(()));
        received.and(sent)
    });
    if sent.is_ok() {
        sockopt::set_socket_linger(&server, None)?;
    }
    sent
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The counter of a program with the library; `None` for one without, which ends as TCP does.
fn introduction(program: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let name = getpeername(program)?
        .and_then(|address| SocketAddrUnix::try_from(address).ok())
        .and_then(|address| address.abstract_name().and_then(PeerName::parse));
    if name.is_none_or(|name| name.kind != PeerNameKind::Library) {
        return Ok(None);
    }
    program.set_read_timeout(Some(INTRODUCTION_MAX))?;
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let received = recvmsg(program, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut counter = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            counter = fds.last().or(counter);
        }
    }
    program.set_read_timeout(None)?;
    match counter {
        Some(counter) if received.bytes == 1 => {
            // It is written to later: that must not wait.
            rustix::io::ioctl_fionbio(&counter, true)?;
            Ok(Some(counter))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Whether the program has left its mark, from each of its processes.
fn left_in_order(marks: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fdinfo/{}", marks.as_raw_fd());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("eventfd-count:"))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok());
    let half = count.unwrap_or(0) as u32;
    half & 0xffff > half >> 16
}

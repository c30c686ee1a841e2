//! Streams between two programs of one system that use the library: their kernel sockets, joined without an engine.
//!
//! - The connecting end is bound to a name that says who it is; the name also reserves its port, so that
//!   two streams to one listener never have the same address.
//! - Right after connecting it sends one byte with an event counter. Each side adds its own mark before it ends
//!   in order. At the end of file, no mark from the other side means: it died. Where processes forked from it go
//!   on with the stream, each of them must leave one.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::told::Told;
use super::{EPHEMERAL_PORTS, PeerName, PeerNameKind, SocketPath, SystemDir};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socket_with,
};

/// How long an accepted connection may take to introduce itself.
const PREAMBLE_WAIT: Duration = Duration::from_secs(2);

/// How often a mark is looked for where only a destructive read can tell.
const MARK_TRIES_MAX: u32 = 20;

/// Which end of the stream this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It connected.
    Client,
    /// It accepted.
    Server,
}

impl Side {
    /// As it travels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    /// As [`Side::name`] says it.
    pub fn from_name(name: &str) -> Option<Self> {
        let both = [Self::Client, Self::Server];
        both.into_iter().find(|side| side.name() == name)
    }

    fn mark(self) -> u64 {
        match self {
            Self::Client => 1,
            Self::Server => 1 << 32,
        }
    }

    /// Whether a counter holds the other side's mark, from each of its processes.
    fn other_in(self, count: u64) -> bool {
        let half = match self {
            Self::Client => (count >> 32) as u32,
            Self::Server => count as u32,
        };
        half & 0xffff > half >> 16
    }

    /// One more process, forked from the first, must leave its mark.
    fn hold(self) -> u64 {
        self.mark() << 16
    }
}

/// The event counter in which both sides leave their marks.
#[derive(Clone, Debug)]
pub struct Marks {
    counter: Arc<OwnedFd>,
    side: Side,
    left: Arc<Told>,
}

impl Marks {
    /// This side's, in a counter that both ends have.
    pub fn new(counter: OwnedFd, side: Side) -> Self {
        Self {
            counter: Arc::new(counter),
            side,
            left: Arc::new(Told::new()),
        }
    }

    /// Which end it is of.
    pub fn side(&self) -> Side {
        self.side
    }

    /// What both ends share.
    pub fn counter(&self) -> BorrowedFd<'_> {
        self.counter.as_fd()
    }

    /// Leaves this side's mark: what follows is an end in order, whichever thread's.
    pub fn leave(&self) {
        self.left.once(|| {
            let _ = rustix::io::write(&*self.counter, &self.side.mark().to_ne_bytes());
        });
    }

    /// One more process of this side must leave its mark.
    pub fn hold(&self) {
        let _ = rustix::io::write(&*self.counter, &self.side.hold().to_ne_bytes());
        self.left.again();
    }

    /// Whether the other side has left its mark.
    pub fn other_left(&self) -> bool {
        match counter_value(&self.counter) {
            Some(count) => self.side.other_in(count),
            None => self.other_left_by_reading(),
        }
    }

    /// Without /proc: take the value out and put it back. The other side may do so at the same moment.
    fn other_left_by_reading(&self) -> bool {
        for _ in 0..MARK_TRIES_MAX {
            let mut count = [0; 8];
            if rustix::io::read(&*self.counter, &mut count).is_ok() {
                let _ = rustix::io::write(&*self.counter, &count);
                if self.side.other_in(u64::from_ne_bytes(count)) {
                    return true;
                }
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        false
    }
}

/// An event counter's value, without changing it.
fn counter_value(counter: &OwnedFd) -> Option<u64> {
    value_in(&info(counter).ok()?)
}

fn info(counter: &OwnedFd) -> io::Result<String> {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", counter.as_raw_fd()))
}

fn value_in(info: &str) -> Option<u64> {
    let value = info
        .lines()
        .find_map(|line| line.strip_prefix("eventfd-count:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

/// A joined pair's end.
#[derive(Debug)]
pub struct Joined {
    /// The connected socket.
    pub socket: OwnedFd,
    /// How its two ends tell each other that they end in order.
    pub marks: Marks,
    /// The port that its name stands for.
    pub local_port: u16,
}

/// Connects to `port` of this system. `deadline`: when to give up.
pub fn connect(dir: &SystemDir, port: u16, timeout: Option<Duration>) -> io::Result<Joined> {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    let local_port = take_name(dir, port, None, socket.as_fd())?;
    let target = SocketPath::new(&dir.port_socket(port))?;
    let give_up = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        if let Some(at) = give_up {
            let left = at.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_micros(1)); // zero would wait for ever
            set_socket_timeout(&socket, Timeout::Send, Some(left))?;
        }
        match rustix::net::connect(&socket, target.address()) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "{}:{port} did not take the connection in time: its listener's queue is full",
                        dir.system()
                    ),
                ));
            }
            Err(Errno::NOENT | Errno::CONNREFUSED) => return Err(refused(dir, port)),
            Err(e) => return Err(e.into()),
        }
    }
    if give_up.is_some() {
        set_socket_timeout(&socket, Timeout::Send, None)?;
    }
    let marks = join(socket.as_fd())?;
    Ok(Joined {
        socket,
        marks,
        local_port,
    })
}

/// As [`connect`], on a socket that does not wait: `WouldBlock` if the listener's queue is full. From port `from`, or from a
/// free one if a stream to that listener has it.
pub fn try_connect(dir: &SystemDir, port: u16, from: u16) -> io::Result<Joined> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let local_port = match take_name(dir, port, Some(from), socket.as_fd()) {
        Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => {
            take_name(dir, port, None, socket.as_fd())?
        }
        taken => taken?,
    };
    let target = SocketPath::unfollowed(&dir.port_socket(port))?;
    rustix::net::connect(&socket, target.address())?;
    let marks = join(socket.as_fd())?;
    Ok(Joined {
        socket,
        marks,
        local_port,
    })
}

/// Nobody listens on `port` of this system.
pub fn refused(dir: &SystemDir, port: u16) -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionRefused,
        format!(
            "connection refused by {}:{port}: nobody listens there; start the program there, or name a port that `stp ss --all` shows",
            dir.system()
        ),
    )
}

/// Introduces a socket that has just been connected.
pub fn join(socket: BorrowedFd<'_>) -> io::Result<Marks> {
    let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    introduce(socket, &counter)?;
    Ok(Marks::new(counter, Side::Client))
}

/// Binds `socket` to a name of this system for a stream to `port`: that of `from`, or a free one. Returns the
/// port it stands for.
pub fn take_name(
    dir: &SystemDir,
    port: u16,
    from: Option<u16>,
    socket: BorrowedFd<'_>,
) -> io::Result<u16> {
    // The same for every stream to one listener: the kernel then refuses a second one from the same port.
    let place = dir.path().as_os_str().as_encoded_bytes();
    let token = place
        .iter()
        .chain(&port.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    let bind = |local_port: u16| -> io::Result<bool> {
        let name = PeerName {
            kind: PeerNameKind::Library,
            system: *dir.system(),
            port: local_port,
            token,
        };
        match rustix::net::bind(socket, &name.address()?) {
            Err(Errno::ADDRINUSE) => Ok(false),
            Err(e) => Err(e.into()),
            Ok(()) => Ok(true),
        }
    };
    if let Some(from) = from {
        return bind(from)?.then_some(from).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!(
                    "a stream from {0}:{from} to {0}:{port} exists already; bind another port",
                    dir.system()
                ),
            )
        });
    }
    let (first, count) = (*EPHEMERAL_PORTS.start(), EPHEMERAL_PORTS.len() as u32);
    let start = next_start();
    for step in 0..count {
        let local_port = first + (start.wrapping_add(step) % count) as u16;
        if bind(local_port)? {
            return Ok(local_port);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        format!("every local port for {}:{port} is in use", dir.system()),
    ))
}

/// Where the search for a free port begins: one after the other, from a start that differs by process.
fn next_start() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
        .wrapping_add(std::process::id().wrapping_mul(2654435761) >> 8)
}

fn introduce(socket: BorrowedFd<'_>, counter: &OwnedFd) -> io::Result<()> {
    let rights = [counter.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&rights));
    loop {
        match sendmsg(
            socket,
            &[IoSlice::new(&[0])],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Err(Errno::INTR) => {}
            Err(Errno::PIPE) => return Err(Errno::CONNRESET.into()),
            sent => return sent.map(drop).map_err(io::Error::from),
        }
    }
}

/// Takes the introduction of a connection just accepted; `None` if it is not a proper one. An error: this process
/// has no descriptor left for it, and the connection is lost.
pub fn welcome(socket: BorrowedFd<'_>) -> io::Result<Option<Marks>> {
    let introduced = await_introduction(socket, PREAMBLE_WAIT);
    if introduced {
        receive(socket)
    } else {
        Ok(None)
    }
}

fn await_introduction(socket: BorrowedFd<'_>, patience: Duration) -> bool {
    let give_up = Instant::now() + patience;
    loop {
        let left = give_up.saturating_duration_since(Instant::now());
        let Ok(wait) = Timespec::try_from(left) else {
            return false;
        };
        let mut watched = [PollFd::new(&socket, PollFlags::IN)];
        match poll(&mut watched, Some(&wait)) {
            Err(Errno::INTR) => {}
            polled => return polled.is_ok_and(|ready| ready > 0),
        }
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Marks>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    );
    let mut counter = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            counter = fds.last().or(counter);
        }
    }
    let Some(received) = received.ok().filter(|received| received.bytes == 1) else {
        return Ok(None);
    };
    let Some(counter) = counter else {
        let cut = received.flags.contains(ReturnFlags::CTRUNC);
        return if cut {
            Err(Errno::MFILE.into())
        } else {
            Ok(None)
        };
    };
    // It will be written to: it must be a counter, and not one that makes us wait.
    let nonblocking = fcntl_getfl(&counter).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK));
    let proper = match info(&counter) {
        Ok(text) => value_in(&text).is_some(),
        // Looking needs one more descriptor.
        Err(error) if error.raw_os_error() == Some(Errno::MFILE.raw_os_error()) => {
            return Err(error);
        }
        Err(_) => !std::path::Path::new("/proc/self").exists(),
    };
    Ok((nonblocking && proper).then(|| Marks::new(counter, Side::Server)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendezvous::RunDir;
    use rustix::net::{bind, listen};

    fn place(root: &std::path::Path) -> SystemDir {
        RunDir::open(&root.join("run"))
            .and_then(|run| run.system(stp_format::VolumeId([5; 16]), &"alpha".parse().unwrap()))
            .unwrap()
    }

    /// Listens on port 7000 with the shortest queue there is.
    fn listener(dir: &SystemDir) -> OwnedFd {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let socket = socket_with(family, SocketType::STREAM, flags, None).unwrap();
        let path = SocketPath::new(&dir.port_socket(7000)).unwrap();
        bind(&socket, path.address()).unwrap();
        listen(&socket, 0).unwrap();
        socket
    }

    fn pair(dir: &SystemDir, listener: &OwnedFd) -> (Joined, OwnedFd) {
        let ours = connect(dir, 7000, None).unwrap();
        let theirs = rustix::net::accept_with(listener, SocketFlags::CLOEXEC).unwrap();
        (ours, theirs)
    }

    #[test]
    fn a_full_queue_times_out() {
        let root = tempfile::tempdir().unwrap();
        let dir = place(root.path());
        let _listener = listener(&dir);
        let wait = Duration::from_millis(50);
        let mut waiting = Vec::new();
        let error = loop {
            match connect(&dir, 7000, Some(wait)) {
                Ok(joined) => waiting.push(joined),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100);
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("alpha:7000"), "{error}");
    }

    #[test]
    fn one_that_does_not_wait_tells_a_full_queue_from_nobody() {
        let root = tempfile::tempdir().unwrap();
        let dir = place(root.path());
        let kind =
            |tried: io::Result<Joined>| tried.map(|joined| joined.local_port).map_err(|e| e.kind());
        assert_eq!(
            kind(try_connect(&dir, 7000, 40_000)),
            Err(io::ErrorKind::NotFound)
        );
        let listener = listener(&dir);
        let first = try_connect(&dir, 7000, 40_000).unwrap();
        assert_eq!(first.local_port, 40_000);
        let theirs = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
        assert!(welcome(theirs.as_fd()).unwrap().is_some());
        // Its port is taken now: the next one gets another.
        let mut waiting = vec![try_connect(&dir, 7000, 40_000).unwrap()];
        assert_ne!(waiting[0].local_port, 40_000);
        let full = loop {
            match try_connect(&dir, 7000, 40_000) {
                Ok(joined) => waiting.push(joined),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100);
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn marks_reach_the_other_side_only_with_and_without_proc() {
        let root = tempfile::tempdir().unwrap();
        let dir = place(root.path());
        let listener = listener(&dir);
        for leaving in [Side::Client, Side::Server] {
            let (ours, theirs) = pair(&dir, &listener);
            let client = ours.marks;
            let server = welcome(theirs.as_fd()).unwrap().unwrap();
            assert!(!client.other_left() && !server.other_left());
            let (leaver, other) = match leaving {
                Side::Client => (&client, &server),
                Side::Server => (&server, &client),
            };
            leaver.leave();
            leaver.leave();
            for _ in 0..2 {
                assert!(other.other_left() && other.other_left_by_reading());
                assert!(!leaver.other_left() && !leaver.other_left_by_reading());
            }
        }
    }

    #[test]
    fn every_process_of_a_side_must_leave_its_mark() {
        let root = tempfile::tempdir().unwrap();
        let dir = place(root.path());
        let listener = listener(&dir);
        let (ours, theirs) = pair(&dir, &listener);
        let server = welcome(theirs.as_fd()).unwrap().unwrap();
        server.leave();
        assert!(ours.marks.other_left());
        server.hold();
        assert!(!ours.marks.other_left() && !ours.marks.other_left_by_reading());
        assert!(!server.other_left());
        server.leave();
        assert!(ours.marks.other_left());
    }

    #[test]
    fn improper_introductions_are_turned_away() {
        let root = tempfile::tempdir().unwrap();
        let dir = place(root.path());
        let listener = listener(&dir);
        let bare = || {
            let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
            let socket = socket_with(family, SocketType::STREAM, flags, None).unwrap();
            let path = SocketPath::new(&dir.port_socket(7000)).unwrap();
            rustix::net::connect(&socket, path.address()).unwrap();
            let theirs = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC).unwrap();
            (socket, theirs)
        };
        // Gone before it said a word.
        let (ours, theirs) = bare();
        drop(ours);
        assert!(welcome(theirs.as_fd()).unwrap().is_none());
        // A byte without a counter.
        let (ours, theirs) = bare();
        rustix::io::write(&ours, b"x").unwrap();
        assert!(welcome(theirs.as_fd()).unwrap().is_none());
        // Something else than a counter, and a counter that would make us wait.
        let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let waits = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        for wrong in [file, waits] {
            let (ours, theirs) = bare();
            introduce(ours.as_fd(), &wrong).unwrap();
            assert!(welcome(theirs.as_fd()).unwrap().is_none());
        }
    }
}

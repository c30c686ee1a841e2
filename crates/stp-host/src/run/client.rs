//! The program's side: one call, one connection, nothing kept.
//!
//! - A [`Client`] is plain data: it may be copied, forked and used from any thread, also in a signal handler.
//! - No call allocates (but [`Client::systems`]), starts a thread or leaves a descriptor open; every descriptor is made with
//!   close-on-exec and closed by the system call itself.
//! - Every call ends: an engine that does not answer within [`ANSWER_WAIT`] is reported as silent.
//! - The key is told to the engine's user only: anybody can listen at an abstract name that is free.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    recvmsg, send, sendmsg, socket_with,
};
use stp_format::SystemName;

use super::fd::Fd;
use super::sys;
use super::wire::{
    Answer, Connecting, Hello, Key, MESSAGE_BYTES_MAX, Malformed, Outcome, Peer, Request,
    SystemEntry, Text, WIRE_VERSION,
};
use crate::address::SystemNumber;

/// How long an engine may take for an answer, beyond what it was asked to wait.
pub const ANSWER_WAIT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// What a socket address holds besides the leading zero of an abstract name.
const PATH_BYTES_MAX: usize = 107;

/// Systems that are asked for at most.
const SYSTEMS_TOTAL_MAX: usize = 4096;

/// What keeps a process from asking at all.
const OWN_LIMITS: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];

/// Who has the engine's name is somebody else.
const STRANGER: i32 = libc::EACCES;

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nobody answers: no engine runs, or this process cannot reach it.
    NoEngine(i32),
    /// The engine is there and says nothing.
    Silent,
    /// The engine speaks another version.
    Version(u16),
    /// The other end talks nonsense.
    Nonsense,
    /// The engine refused; the number is the one to report.
    Refused {
        /// The error number.
        errno: i32,
        /// For people.
        text: Text,
    },
}

impl Error {
    /// The error number that a socket call reports for it.
    pub fn errno(&self) -> i32 {
        match self {
            // No fault of the engine's: the program can do something about it.
            Self::NoEngine(own) if OWN_LIMITS.iter().any(|e| e.raw_os_error() == *own) => *own,
            Self::NoEngine(_) => Errno::NETDOWN.raw_os_error(),
            Self::Silent => Errno::TIMEDOUT.raw_os_error(),
            Self::Version(_) | Self::Nonsense => Errno::PROTO.raw_os_error(),
            Self::Refused { errno, .. } => *errno,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEngine(STRANGER) => f.write_str(
                "no engine answers, another user's process has its name: `stp run` starts one anew, which takes another",
            ),
            Self::NoEngine(errno) => write!(
                f,
                "no engine answers ({}): it has ended; `stp run` starts one anew, `stp engine` another",
                io::Error::from_raw_os_error(*errno)
            ),
            Self::Silent => f.write_str("the engine does not answer: is it stopped?"),
            Self::Version(theirs) => write!(
                f,
                "the engine speaks version {theirs} of the calls of `stp run`, this library version {WIRE_VERSION}: use one release of stp for both"
            ),
            Self::Nonsense => f.write_str("what answers is no engine of this release of stp"),
            Self::Refused { text, .. } => f.write_str(text.as_str()),
        }
    }
}

impl std::error::Error for Error {}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::AGAIN => Self::Silent,
            errno => Self::NoEngine(errno.raw_os_error()),
        }
    }
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Nonsense => Self::Nonsense,
            Malformed::Version(theirs) => Self::Version(theirs),
        }
    }
}

#[derive(Clone, Copy)]
struct Name {
    bytes: [u8; PATH_BYTES_MAX],
    len: u8,
}

impl Name {
    fn new(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; PATH_BYTES_MAX];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        Some(Self {
            bytes,
            len: text.len() as u8,
        })
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Whose an engine may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Users {
    /// Who owns the run directory.
    pub(super) owner: u32,
    /// Who was told of the way first, and may have started the engine.
    pub(super) own: u32,
    /// The user namespace in which these numbers mean them.
    pub(super) namespace: u64,
}

impl Users {
    /// For this process.
    pub(super) fn new(owner: u32) -> Self {
        Self {
            owner,
            own: rustix::process::geteuid().as_raw(),
            namespace: user_namespace().unwrap_or(0),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (users, namespace) = text.rsplit_once(',')?;
        let (owner, own) = users.split_once(',')?;
        Some(Self {
            owner: owner.parse().ok()?,
            own: own.parse().ok()?,
            namespace: namespace.parse().ok()?,
        })
    }

    /// Whether a process of `user` may be the engine whose socket lies at `path`.
    fn admit(&self, user: u32, path: &[u8]) -> bool {
        if [self.owner, self.own].contains(&user) {
            return true;
        }
        // Elsewhere the same users have other numbers; the socket's owner shows the engine's.
        let is_elsewhere = user_namespace().is_some_and(|found| found != self.namespace);
        is_elsewhere && rustix::fs::stat(path).map_or(true, |found| found.st_uid == user)
    }
}

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.owner, self.own, self.namespace)
    }
}

fn user_namespace() -> Option<u64> {
    let found = rustix::fs::stat(c"/proc/self/ns/user").ok()?;
    Some(found.st_ino)
}

/// The way to the engine.
#[derive(Clone, Copy)]
pub struct Client {
    /// Works after `chroot` and `setuid`, within the network namespace.
    name: Name,
    /// Works in every network namespace; empty if it is too long.
    path: Name,
    key: Key,
    users: Users,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = String::from_utf8_lossy(self.name.as_bytes());
        f.debug_tuple("Client").field(&name).finish()
    }
}

impl Client {
    /// By what [`env::RUN_SOCKET`](super::env::RUN_SOCKET), [`env::RUN_KEY`](super::env::RUN_KEY) and
    /// [`env::RUN_USERS`](super::env::RUN_USERS) hold; `None` if that is no way to an engine.
    pub fn new(socket: &[u8], key: &str, users: &str) -> Option<Self> {
        let comma = socket.iter().position(|b| *b == b',')?;
        let (name, path) = (&socket[..comma], &socket[comma + 1..]);
        Some(Self {
            name: Name::new(name).filter(|name| name.len > 0)?,
            path: Name::new(path).or_else(|| Name::new(b""))?,
            key: Key::parse(key)?,
            users: Users::parse(users)?,
        })
    }

    fn open(&self) -> Result<Fd, Error> {
        let name = SocketAddrUnix::new_abstract_name(self.name.as_bytes())?;
        let first = match self.open_at(&name) {
            // One that is stopped is no better reached by its path.
            Err(Errno::AGAIN) => return Err(Error::Silent),
            Err(errno) => errno,
            Ok(socket) => return Ok(socket),
        };
        if self.path.len > 0 {
            let path = SocketAddrUnix::new(self.path.as_bytes())?;
            match self.open_at(&path) {
                Err(Errno::AGAIN) => return Err(Error::Silent),
                Err(_) => {}
                Ok(socket) => return Ok(socket),
            }
        }
        Err(first.into())
    }

    fn open_at(&self, at: &SocketAddrUnix) -> Result<Fd, Errno> {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let socket = Fd::from(socket_with(family, SocketType::SEQPACKET, flags, None)?);
        // A full queue of one that is stopped would hold it up for ever.
        set_socket_timeout(&socket, Timeout::Send, Some(ANSWER_WAIT))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_WAIT))?;
        retry(|| connect(&socket, at))?;
        match sys::peer(&socket) {
            Ok(peer) if self.users.admit(peer.user, self.path.as_bytes()) => Ok(socket),
            _ => Err(Errno::from_raw_os_error(STRANGER)),
        }
    }

    fn ask(&self, request: &Request, wait: Duration) -> Result<(Answer, Fd), Error> {
        let socket = self.open()?;
        if !wait.is_zero() {
            set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_WAIT + wait))?;
        }
        let message = request.encode(self.key);
        retry(|| send(&socket, message.bytes(), SendFlags::NOSIGNAL))?;
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let (count, _) = retry(|| recv(&socket, &mut bytes, RecvFlags::empty()))?;
        if count == 0 {
            return Err(Error::NoEngine(Errno::CONNRESET.raw_os_error()));
        }
        match Answer::decode(&bytes[..count])? {
            Answer::Failed { errno, text } => Err(Error::Refused { errno, text }),
            answer => Ok((answer, socket)),
        }
    }

    fn call(&self, request: Request) -> Result<Answer, Error> {
        Ok(self.ask(&request, Duration::ZERO)?.0)
    }

    /// Who the engine is.
    pub fn hello(&self) -> Result<Hello, Error> {
        match self.call(Request::Hello)? {
            Answer::Hello(hello) => Ok(hello),
            _ => Err(Error::Nonsense),
        }
    }

    /// The systems of the group that are or were there, this one first.
    pub fn systems(&self) -> Result<Vec<SystemEntry>, Error> {
        let mut all = Vec::new();
        while all.len() < SYSTEMS_TOTAL_MAX {
            let from = all.len() as u16;
            let Answer::Systems { entries, more } = self.call(Request::Systems { from })? else {
                return Err(Error::Nonsense);
            };
            all.extend(entries.iter().flatten());
            if !more {
                break;
            }
        }
        Ok(all)
    }

    /// Publishes the port of a socket that listens at `at`.
    pub fn listen(&self, at: SocketAddr, v6_only: bool) -> Result<(), Error> {
        self.done(Request::Listen { at, v6_only })
    }

    /// Takes the port of a socket back that listened at `at`. Without it the engine finds out by itself, a little later.
    pub fn unlisten(&self, at: SocketAddr) -> Result<(), Error> {
        self.done(Request::Unlisten { at })
    }

    /// Whether `port` of this system belongs to a listener that the kernel's TCP does not know: a program that uses the
    /// library.
    pub fn is_taken(&self, port: u16) -> Result<bool, Error> {
        match self.call(Request::Taken { port })? {
            Answer::Truth(truth) => Ok(truth),
            _ => Err(Error::Nonsense),
        }
    }

    /// Announces that the socket bound to `local` is about to connect to `to`: a system's address in either form, or
    /// loopback for this system. A refusal that is known within `wait` is returned at once, as [`Error::Refused`].
    pub fn connect(
        &self,
        local: SocketAddr,
        to: SocketAddr,
        wait: Duration,
    ) -> Result<Connecting, Error> {
        let request = Request::Connect {
            local,
            to,
            wait_us: u32::try_from(wait.as_micros()).unwrap_or(u32::MAX),
        };
        match self.ask(&request, wait)?.0 {
            Answer::Connecting(connecting) => Ok(connecting),
            _ => Err(Error::Nonsense),
        }
    }

    /// What became of the last connection that was announced from `local`. A failure is told once.
    pub fn outcome(&self, local: SocketAddr) -> Result<Outcome, Error> {
        match self.call(Request::Outcome { local })? {
            Answer::Outcome(outcome) => Ok(outcome),
            _ => Err(Error::Nonsense),
        }
    }

    /// The system and port behind `peer`, as the kernel names the peer of the socket bound to `local`. To be asked for
    /// [reserved](crate::address::is_reserved) addresses and for `::1`; `None`: no connection of the engine.
    pub fn whois(&self, local: SocketAddr, peer: SocketAddr) -> Result<Option<Peer>, Error> {
        match self.call(Request::Whois { local, peer })? {
            Answer::Who(who) => Ok(who),
            _ => Err(Error::Nonsense),
        }
    }

    /// The number of a system; `None`: there is no such system.
    pub fn resolve(&self, name: &SystemName) -> Result<Option<SystemNumber>, Error> {
        match self.call(Request::Resolve { name: *name })? {
            Answer::Number(number) => Ok(number),
            _ => Err(Error::Nonsense),
        }
    }

    /// The system that an address stands for, in either form; `None`: there is no such system.
    pub fn name_of(&self, ip: IpAddr) -> Result<Option<SystemName>, Error> {
        match self.call(Request::NameOf { ip })? {
            Answer::Name(name) => Ok(name),
            _ => Err(Error::Nonsense),
        }
    }

    /// The door's network namespace, and its user namespace if it has its own. For `stp run`, not for the preload: these
    /// descriptors close as the standard library's do.
    pub fn namespaces(&self) -> Result<Vec<OwnedFd>, Error> {
        let socket = self.open()?;
        let message = Request::Namespace.encode(self.key);
        retry(|| send(&socket, message.bytes(), SendFlags::NOSIGNAL))?;
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = retry(|| {
            let mut parts = [io::IoSliceMut::new(&mut bytes)];
            recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        match Answer::decode(&bytes[..received.bytes])? {
            Answer::Namespace => Ok(fds),
            Answer::Failed { errno, text } => Err(Error::Refused { errno, text }),
            _ => Err(Error::Nonsense),
        }
    }

    /// Says that the engine is used as long as the process of `pidfd` lives. For `stp run`.
    pub fn stay(&self, pidfd: impl AsFd) -> Result<(), Error> {
        let socket = self.open()?;
        let message = Request::Stay.encode(self.key);
        let rights = [pidfd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&rights));
        let parts = [io::IoSlice::new(message.bytes())];
        retry(|| sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL))?;
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let (count, _) = retry(|| recv(&socket, &mut bytes, RecvFlags::empty()))?;
        match Answer::decode(&bytes[..count])? {
            Answer::Done => Ok(()),
            Answer::Failed { errno, text } => Err(Error::Refused { errno, text }),
            _ => Err(Error::Nonsense),
        }
    }

    fn done(&self, request: Request) -> Result<(), Error> {
        match self.call(request)? {
            Answer::Done => Ok(()),
            _ => Err(Error::Nonsense),
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{accept, bind, listen};

    /// Somebody who listens at a name, and a client that looks for an engine there.
    fn somebody(name: &str, users: &str) -> (OwnedFd, Client) {
        let name = format!("stp/test/{name}-{}", std::process::id());
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let socket = socket_with(family, SocketType::SEQPACKET, flags, None).unwrap();
        let at = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        bind(&socket, &at).unwrap();
        listen(&socket, 0).unwrap();
        let socket_variable = format!("{name},/nowhere/run.sock");
        let client = Client::new(socket_variable.as_bytes(), &"7".repeat(32), users);
        (socket, client.unwrap())
    }

    #[test]
    fn the_key_is_not_told_to_another_user() {
        let own = Users::new(4711);
        let strange = |user: u32| user.wrapping_add(1);
        let (listener, client) = somebody("stranger", &own.to_string());
        assert!(client.open().is_ok());
        drop(accept(&listener).unwrap());
        let others = Users {
            own: strange(own.own),
            owner: strange(own.own),
            ..own
        };
        let client = Client {
            users: others,
            ..client
        };
        let error = client.hello().unwrap_err();
        assert_eq!(error, Error::NoEngine(STRANGER));
        assert!(error.to_string().contains("another user"), "{error}");
        let talk = accept(&listener).unwrap();
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        assert_eq!(recv(&talk, &mut bytes, RecvFlags::empty()).unwrap().0, 0);
        // In another namespace the numbers say nothing, the socket's owner does.
        let elsewhere = Users {
            namespace: 1,
            ..others
        };
        assert!(elsewhere.admit(own.own, b"/nowhere/run.sock"));
        assert!(elsewhere.admit(own.own, b"/proc/self/stat"));
        assert!(!elsewhere.admit(strange(others.own), b"/proc/self/stat"));
    }

    #[test]
    fn an_engine_that_takes_nobody_in_is_silent() {
        let (_listener, client) = somebody("silent", &Users::new(0).to_string());
        let mut waiting = Vec::new();
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::NONBLOCK);
        let at = SocketAddrUnix::new_abstract_name(client.name.as_bytes()).unwrap();
        loop {
            let socket = socket_with(family, SocketType::SEQPACKET, flags, None).unwrap();
            match connect(&socket, &at) {
                Ok(()) => waiting.push(socket),
                Err(errno) => break assert_eq!(errno, Errno::AGAIN),
            }
        }
        assert_eq!(client.hello(), Err(Error::Silent));
    }
}

//! The server of a folder: answers commands on any number of connections.
//!
//! - A connection has a thread; more than [`SESSIONS_MAX`] wait to be accepted. One that wants nothing for 30 seconds is cut.
//! - Nothing outside the served folder is opened, whatever a client names and whatever links the folder holds.
//! - A client that comes again after a lost connection first ends what is left of the old one, so that it finds its partial
//!   files unlocked.
//! - To stop: no more is accepted, every connection is cut, partial files stay for another time.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Dir, OFlags};
use rustix::io::Errno;

use super::link::{Broken, Channel, Hangup, MessageReader, MessageWriter};
use super::paths;
use super::receive::{Allowed, receive};
use super::report::Silent;
use super::send::{self, Root};
use super::source::{self, Counting, Opened};
use super::wire::{self, Code, Fault, Kind, Message, Meta};

/// Connections served at once.
pub const SESSIONS_MAX: usize = 256;
/// How long a connection may take to say hello, and then what it wants. A client that is cut for it connects again.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// How long to wait for an old connection of the same transfer, and for all at the end.
const END_MAX: Duration = Duration::from_secs(10);

/// Where connections come from.
pub trait Acceptor {
    /// Readable when a connection waits.
    fn ready_fd(&self) -> BorrowedFd<'_>;
    /// The next connection, `None` if none waits.
    fn accept(&self) -> io::Result<Option<Channel>>;
}

/// A served folder.
pub struct Server {
    root: OwnedFd,
    read_only: bool,
    sessions: Mutex<Sessions>,
    ended: Condvar,
}

#[derive(Default)]
struct Sessions {
    next: u64,
    open: HashMap<u64, Session>,
}

struct Session {
    hangup: Hangup,
    /// Since when there is nothing to do for it.
    idle_since: Option<Instant>,
    transfer: Option<[u8; 16]>,
}

impl Server {
    /// Serves the folder behind this descriptor.
    pub fn new(root: OwnedFd, read_only: bool) -> Arc<Self> {
        Arc::new(Self {
            root,
            read_only,
            sessions: Mutex::default(),
            ended: Condvar::new(),
        })
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts and serves until `stop` becomes readable.
    pub fn run(self: &Arc<Self>, acceptor: &dyn Acceptor, stop: BorrowedFd<'_>) -> io::Result<()> {
        let result = self.accept_all(acceptor, stop);
        let deadline = Instant::now() + END_MAX;
        let mut sessions = self.sessions();
        for session in sessions.open.values() {
            (session.hangup)();
        }
        while !sessions.open.is_empty() && Instant::now() < deadline {
            sessions = self
                .ended
                .wait_timeout(sessions, Duration::from_millis(200))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        result
    }

    fn accept_all(
        self: &Arc<Self>,
        acceptor: &dyn Acceptor,
        stop: BorrowedFd<'_>,
    ) -> io::Result<()> {
        loop {
            let count = self.expire();
            let full = count >= SESSIONS_MAX;
            let accepting = acceptor.ready_fd();
            let mut fds = vec![PollFd::new(&stop, PollFlags::IN)];
            if !full {
                fds.push(PollFd::new(&accepting, PollFlags::IN));
            }
            let pause = match count {
                0 => None,
                SESSIONS_MAX.. => Some(Timespec {
                    tv_sec: 0,
                    tv_nsec: 50_000_000,
                }),
                _ => Some(Timespec {
                    tv_sec: 1,
                    tv_nsec: 0,
                }),
            };
            match poll(&mut fds, pause.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
            if fds.get(1).is_none_or(|fd| fd.revents().is_empty()) {
                continue;
            }
            match acceptor.accept() {
                Ok(Some(channel)) => self.start(channel),
                Ok(None) => {}
                Err(e) if is_passing(&e) => {
                    tracing::warn!("accept: {e}");
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Cuts connections that want nothing; gives how many are open.
    fn expire(&self) -> usize {
        let sessions = self.sessions();
        for session in sessions.open.values() {
            if session
                .idle_since
                .is_some_and(|since| since.elapsed() > IDLE_MAX)
            {
                (session.hangup)();
            }
        }
        sessions.open.len()
    }

    fn set_idle(&self, number: u64, since: Option<Instant>) {
        if let Some(session) = self.sessions().open.get_mut(&number) {
            session.idle_since = since;
        }
    }

    /// Serves one connection on a thread of its own.
    pub fn start(self: &Arc<Self>, channel: Channel) {
        let number = {
            let mut sessions = self.sessions();
            let number = sessions.next;
            sessions.next += 1;
            let hangup = Arc::clone(&channel.hangup);
            sessions.open.insert(
                number,
                Session {
                    hangup,
                    idle_since: Some(Instant::now()),
                    transfer: None,
                },
            );
            number
        };
        let server = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name("stp-serve".into())
            .spawn(move || {
                let _end = End {
                    server: &server,
                    number,
                };
                let peer = channel.peer.clone();
                match server.session(number, channel) {
                    Ok(()) => tracing::debug!("{peer}: done"),
                    Err(broken) => tracing::info!("{peer}: {broken}"),
                }
            });
        if let Err(e) = spawned {
            tracing::warn!("no thread for a connection: {e}");
            self.end(number);
        }
    }

    fn end(&self, number: u64) {
        self.sessions().open.remove(&number);
        self.ended.notify_all();
    }

    /// Notes who this is and waits until an older connection of the same transfer is gone.
    fn greet(&self, number: u64, transfer: [u8; 16]) {
        let deadline = Instant::now() + END_MAX;
        let mut sessions = self.sessions();
        if let Some(session) = sessions.open.get_mut(&number) {
            session.transfer = Some(transfer);
            session.idle_since = None;
        }
        loop {
            let mut older = false;
            for (_, session) in sessions
                .open
                .iter()
                .filter(|(n, s)| **n < number && s.transfer == Some(transfer))
            {
                (session.hangup)();
                older = true;
            }
            if !older || Instant::now() >= deadline {
                return;
            }
            sessions = self
                .ended
                .wait_timeout(sessions, Duration::from_millis(100))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn session(&self, number: u64, channel: Channel) -> Result<(), Broken> {
        let Channel {
            reader,
            writer,
            hangup,
            ..
        } = channel;
        let mut reader = MessageReader::new(reader);
        let mut writer = Mutex::new(MessageWriter::new(writer));
        let result = self.commands(number, &mut reader, &mut writer, &hangup);
        if let Err(Broken::Protocol(text)) = &result {
            // Who does not read that is cut in the end.
            self.set_idle(number, Some(Instant::now()));
            let writer = writer.get_mut().unwrap_or_else(PoisonError::into_inner);
            let _ = writer.put(&Message::Error(Fault::new(Code::Protocol, text.clone())));
            let _ = writer.flush();
        }
        if result.is_err() {
            hangup();
        }
        result
    }

    fn commands(
        &self,
        number: u64,
        reader: &mut MessageReader,
        writer: &mut Mutex<MessageWriter>,
        hangup: &Hangup,
    ) -> Result<(), Broken> {
        match reader.message()? {
            Message::Hello {
                version_min,
                version_max,
                transfer,
                ..
            } => {
                let version = version_max.min(wire::VERSION);
                if version < version_min.max(wire::VERSION_MIN) {
                    let text = format!(
                        "no common version of the file protocol: the client speaks {version_min} to {version_max}, the server {} to {}",
                        wire::VERSION_MIN,
                        wire::VERSION
                    );
                    return answer(writer, &Message::Error(Fault::new(Code::Version, text)));
                }
                self.greet(number, transfer);
                answer(
                    writer,
                    &Message::Welcome {
                        version,
                        features: 0,
                        read_only: self.read_only,
                    },
                )?;
            }
            _ => return Err(Broken::Protocol("a connection begins with hello".into())),
        }
        loop {
            self.set_idle(number, Some(Instant::now()));
            let Some(command) = reader.next_or_end()? else {
                return Ok(());
            };
            self.set_idle(number, None);
            let refused = match command {
                Message::Stat { path, follow } => match self.stat(&path, follow) {
                    Ok(meta) => {
                        answer(writer, &Message::StatReply(meta))?;
                        continue;
                    }
                    Err(fault) => fault,
                },
                Message::List { path } => match self.list(&path, writer)? {
                    Ok(()) => continue,
                    Err(fault) => fault,
                },
                Message::Put { path } => match self.put_base(&path) {
                    Ok(base) => {
                        answer(writer, &Message::Ready)?;
                        receive(reader, writer, hangup, base, Allowed::Any, &Silent)?;
                        continue;
                    }
                    Err(fault) => fault,
                },
                Message::Get {
                    path,
                    recursive,
                    name,
                } => match self.get_root(&path, recursive, name) {
                    Ok((root, counting)) => {
                        answer(writer, &Message::Ready)?;
                        let writer = writer.get_mut().unwrap_or_else(PoisonError::into_inner);
                        let mut roots = std::iter::once(root);
                        send::send(reader, writer, hangup, &mut roots, counting, &Silent)?;
                        continue;
                    }
                    Err(fault) => fault,
                },
                _ => return Err(Broken::Protocol("not a command".into())),
            };
            answer(writer, &Message::Error(refused))?;
        }
    }

    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Fault> {
        paths::open_beneath(self.root.as_fd(), path, flags)
            .map_err(|e| paths::fault(e, "cannot open it"))
    }

    /// The folder of a path and its name in there, both inside.
    fn parent<'a>(&self, path: &'a [u8]) -> Result<(OwnedFd, &'a [u8]), Fault> {
        let (folder, name) = paths::split(path);
        let folder = self.open(folder, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok((folder, if name.is_empty() { b"." } else { name }))
    }

    fn stat(&self, path: &[u8], follow: bool) -> Result<Option<Meta>, Fault> {
        let path = paths::clean(path)?;
        let found = if follow {
            self.open(&path, OFlags::PATH).and_then(|fd| {
                let stat =
                    rustix::fs::fstat(&fd).map_err(|e| paths::fault(e, "cannot look at it"))?;
                Ok(paths::meta(&stat, Vec::new()))
            })
        } else {
            self.parent(&path)
                .and_then(|(dir, name)| look(dir.as_fd(), name))
        };
        match found {
            Ok(meta) => Ok(Some(meta)),
            Err(Fault {
                code: Code::NotFound,
                ..
            }) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    fn list(
        &self,
        path: &[u8],
        writer: &mut Mutex<MessageWriter>,
    ) -> Result<Result<(), Fault>, Broken> {
        let opened = paths::clean(path).and_then(|path| {
            let fd = self.open(&path, OFlags::PATH);
            // A link that leads out is shown as the link that it is.
            let folder = match fd {
                Ok(fd) if rustix::fs::fstat(&fd).is_ok_and(|s| paths::kind(&s) == Kind::Folder) => {
                    let fd = self.open(&path, OFlags::RDONLY | OFlags::DIRECTORY)?;
                    Some(Dir::new(fd).map_err(|e| paths::fault(e, "cannot read the folder"))?)
                }
                Ok(_) => None,
                Err(fault) if fault.code == Code::NotFound || fault.code == Code::Outside => None,
                Err(fault) => return Err(fault),
            };
            match folder {
                Some(dir) => Ok((Some(dir), None)),
                None => {
                    let (dir, name) = self.parent(&path)?;
                    Ok((None, Some((name.to_vec(), look(dir.as_fd(), name)?))))
                }
            }
        });
        let writer = writer.get_mut().unwrap_or_else(PoisonError::into_inner);
        match opened {
            Err(fault) => return Ok(Err(fault)),
            Ok((Some(mut dir), _)) => {
                while let Some(entry) = dir.read() {
                    let entry = match entry {
                        Ok(entry) => entry,
                        Err(e) => return Ok(Err(paths::fault(e, "cannot read the folder"))),
                    };
                    let name = entry.file_name().to_bytes();
                    if name == b"." || name == b".." {
                        continue;
                    }
                    // Gone since it was named: not there.
                    if let Ok(meta) = dir
                        .fd()
                        .map_err(|e| paths::fault(e, ""))
                        .and_then(|fd| look(fd, name))
                    {
                        writer.put(&Message::Entry {
                            name: name.to_vec(),
                            meta,
                        })?;
                    }
                }
            }
            Ok((None, Some((name, meta)))) => writer.put(&Message::Entry { name, meta })?,
            Ok((None, None)) => {}
        }
        writer.put(&Message::ListEnd)?;
        writer.flush()?;
        Ok(Ok(()))
    }

    fn put_base(&self, path: &[u8]) -> Result<OwnedFd, Fault> {
        if self.read_only {
            return Err(Fault::new(
                Code::ReadOnly,
                "the server is read-only; start it without --read-only to copy to it",
            ));
        }
        let path = paths::clean(path)?;
        paths::open_beneath(self.root.as_fd(), &path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|e| paths::fault(e, "cannot open the target folder"))
    }

    fn get_root(
        &self,
        path: &[u8],
        recursive: bool,
        name: Vec<u8>,
    ) -> Result<(Root, Option<Counting>), Fault> {
        let path = paths::clean(path)?;
        let name = (!name.is_empty()).then_some(name);
        let opened = if recursive && name.is_some() && !path.is_empty() {
            let (dir, leaf) = self.parent(&path)?;
            source::open_source(dir.as_fd(), leaf, false)?
        } else {
            let fd = paths::open_beneath(self.root.as_fd(), &path, source::READ)
                .map_err(|e| paths::fault(e, "cannot read the source"))?;
            source::sort_out(fd)?
        };
        let again = match &opened {
            Opened::Folder(_) if !recursive => {
                return Err(Fault::new(Code::IsFolder, "is a folder; copy it with -r"));
            }
            Opened::Folder(fd) => paths::open_beneath(fd.as_fd(), b".", source::READ)
                .ok()
                .map(Opened::Folder),
            Opened::File(fd) => fd.try_clone().ok().map(Opened::File),
            Opened::Link { .. } => None,
        };
        if name.is_none() && !matches!(opened, Opened::Folder(_)) {
            return Err(Fault::new(Code::NotFolder, "not a folder"));
        }
        let counting = again.map(|source| -> Counting {
            Box::new(move |stop| source::count(std::iter::once(source), stop))
        });
        Ok((Root { name, opened }, counting))
    }
}

struct End<'a> {
    server: &'a Server,
    number: u64,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.server.end(self.number);
    }
}

fn answer(writer: &mut Mutex<MessageWriter>, message: &Message) -> Result<(), Broken> {
    let writer = writer.get_mut().unwrap_or_else(PoisonError::into_inner);
    writer.put(message)?;
    writer.flush()?;
    Ok(())
}

fn look(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Meta, Fault> {
    let stat = paths::look(dir, name).map_err(|e| paths::fault(e, "cannot look at it"))?;
    let target = match paths::kind(&stat) {
        Kind::Link => rustix::fs::readlinkat(dir, name, Vec::new())
            .map(|t| t.into_bytes())
            .unwrap_or_default(),
        _ => Vec::new(),
    };
    Ok(paths::meta(&stat, target))
}

/// An accept error that concerns one connection or will pass.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted | WouldBlock
    ) || matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)
    )
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_client_that_wants_nothing_is_cut() {
        let temp = tempfile::tempdir().unwrap();
        let served = std::fs::File::open(temp.path()).unwrap();
        let server = Server::new(served.into(), false);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (cut, is_cut) = mpsc::channel();
        let hangup = move |stream: &UnixStream| {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = cut.send(());
        };
        server.start(Channel::new(theirs, "alpha:1".into(), hangup));
        let mut reader = MessageReader::new(Box::new(ours.try_clone().unwrap()));
        let mut writer = MessageWriter::new(Box::new(ours));
        let hello = Message::Hello {
            version_min: wire::VERSION_MIN,
            version_max: wire::VERSION,
            features: 0,
            transfer: [1; 16],
        };
        writer.put(&hello).unwrap();
        writer.flush().unwrap();
        reader.message().unwrap();
        assert_eq!((server.expire(), is_cut.try_recv().is_ok()), (1, false));
        // It is idle as soon as its thread has come back for the next command.
        loop {
            let mut sessions = server.sessions();
            let session = sessions.open.values_mut().next().unwrap();
            if let Some(since) = &mut session.idle_since {
                *since -= IDLE_MAX + Duration::from_secs(1);
                break;
            }
            drop(sessions);
            std::thread::yield_now();
        }
        assert_eq!((server.expire(), is_cut.try_recv().is_ok()), (1, true));
        reader.message().unwrap_err();
    }
}

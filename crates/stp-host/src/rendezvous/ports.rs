//! A system's ports: one listening Unix socket each, one owner each, across all its processes.
//!
//! - Binding, stale reclaim and removal happen under the lock of `ports/`.
//! - A socket file that no process holds is stale and makes way at once; one that is held is in use,
//!   whether it listens yet or not. The probe puts nothing into the holder's queue.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with};

use super::files::shared_as_its_folder;
use super::path::SocketPath;
use super::run_dir::SystemDir;

/// The ports that are given out when none is named.
pub const EPHEMERAL_PORTS: RangeInclusive<u16> = 32768..=60999;

/// A listener's queue: the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The file of a bound port, removed with this value by the process that bound it.
#[derive(Debug)]
pub struct PortFile {
    dir: SystemDir,
    port: u16,
    inode: (u64, u64),
    pid: u32,
}

impl PortFile {
    /// Under the lock, just after binding.
    fn found(dir: &SystemDir, port: u16) -> io::Result<Self> {
        let path = dir.port_socket(port);
        let found = fs::symlink_metadata(&path).map_err(|e| named(&path, e))?;
        Ok(Self {
            dir: dir.clone(),
            port,
            inode: (found.dev(), found.ino()),
            pid: std::process::id(),
        })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket's path.
    pub fn path(&self) -> PathBuf {
        self.dir.port_socket(self.port)
    }
}

impl Drop for PortFile {
    fn drop(&mut self) {
        // A forked child's copy is not the owner.
        if self.pid != std::process::id() {
            return;
        }
        let Ok(_lock) = self.dir.lock_ports() else {
            return; // the next one that wants the port finds it stale
        };
        let path = self.path();
        let ours = |found: fs::Metadata| (found.dev(), found.ino()) == self.inode;
        if fs::symlink_metadata(&path).is_ok_and(ours) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// A bound port: its listening socket, and the file that goes with it.
#[derive(Debug)]
pub struct PortSocket {
    socket: OwnedFd,
    file: PortFile,
}

impl PortSocket {
    /// Binds `port` of `dir` and listens; 0 picks a free one.
    /// `AddrInUse` if any process of the system holds it.
    pub fn bind(dir: &SystemDir, port: u16) -> io::Result<Self> {
        let (socket, file) = {
            let _lock = dir.lock_ports()?;
            take(dir, port)?
        };
        listen(&socket, BACKLOG)?;
        Ok(Self { socket, file })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.file.port()
    }

    /// The socket's path.
    pub fn path(&self) -> PathBuf {
        self.file.path()
    }
}

impl AsFd for PortSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A port that is taken and that nobody listens on yet.
#[derive(Debug)]
pub struct Reservation {
    _socket: OwnedFd,
    file: PortFile,
}

impl Reservation {
    /// Takes `port` of `dir`; 0 picks a free one. `AddrInUse` if any process of the system holds it.
    pub fn take(dir: &SystemDir, port: u16) -> io::Result<Self> {
        let _lock = dir.lock_ports()?;
        let (socket, file) = take(dir, port)?;
        Ok(Self {
            _socket: socket,
            file,
        })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.file.port()
    }

    /// Makes `socket`, a Unix stream socket without a name, the port's listener.
    pub fn listen(self, socket: BorrowedFd<'_>, backlog: i32) -> io::Result<PortFile> {
        let dir = self.file.dir.clone();
        let _lock = dir.lock_ports()?;
        let path = self.file.path();
        // Bound beside the port's own name and moved there: at no moment is the port free.
        let aside = path.with_extension("new");
        match fs::remove_file(&aside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(named(&aside, e)),
            _ => {}
        }
        bind(socket, SocketPath::new(&aside)?.address()).map_err(|e| named(&aside, e.into()))?;
        let moved = listen(socket, backlog)
            .map_err(io::Error::from)
            .and_then(|()| shared_as_its_folder(&aside))
            .and_then(|()| fs::rename(&aside, &path));
        if let Err(error) = moved {
            let _ = fs::remove_file(&aside);
            return Err(named(&path, error));
        }
        PortFile::found(&dir, self.file.port)
        // The reservation's own file is gone: its end finds another's there.
    }
}

/// Binds a fresh socket to `port`, or to a free one for 0. Under the lock.
fn take(dir: &SystemDir, port: u16) -> io::Result<(OwnedFd, PortFile)> {
    if port != 0 {
        return bind_locked(dir, port)?.ok_or_else(|| in_use(dir, port));
    }
    let (first, count) = (*EPHEMERAL_PORTS.start(), EPHEMERAL_PORTS.len() as u32);
    let start = getrandom::u32().map_err(io::Error::other)? % count;
    for step in 0..count {
        let port = first + ((start + step) % count) as u16;
        if let Some(bound) = bind_locked(dir, port)? {
            return Ok(bound);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!(
            "system {}: every port of {}..={} is in use; name a port outside",
            dir.system(),
            EPHEMERAL_PORTS.start(),
            EPHEMERAL_PORTS.end()
        ),
    ))
}

fn bind_locked(dir: &SystemDir, port: u16) -> io::Result<Option<(OwnedFd, PortFile)>> {
    let path = dir.port_socket(port);
    if is_held(&path)? {
        return Ok(None);
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(named(&path, e)),
        _ => {}
    }
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    bind(&socket, SocketPath::new(&path)?.address()).map_err(|e| named(&path, e.into()))?;
    shared_as_its_folder(&path).map_err(|e| named(&path, e))?;
    Ok(Some((socket, PortFile::found(dir, port)?)))
}

fn in_use(dir: &SystemDir, port: u16) -> io::Error {
    io::Error::new(
        io::ErrorKind::AddrInUse,
        format!(
            "port {port} of system {} is in use by another listener; stop it, or choose another port (0: any free one)",
            dir.system()
        ),
    )
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Whether a process holds the socket at `path`. A datagram socket asks: the kernel looks for the holder
/// first and finds the wrong type second, so that no connection comes of it.
pub(super) fn is_held(path: &Path) -> io::Result<bool> {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let probe = socket_with(family, SocketType::DGRAM, flags, None)?;
    match connect(&probe, SocketPath::new(path)?.address()) {
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(false),
        Err(Errno::PROTOTYPE) | Ok(()) => Ok(true),
        Err(e) => Err(named(path, e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendezvous::RunDir;
    use stp_format::VolumeId;

    fn place(root: &Path) -> SystemDir {
        RunDir::open(&root.join("run"))
            .and_then(|run| run.system(VolumeId([1; 16]), &"alpha".parse().unwrap()))
            .unwrap()
    }

    #[test]
    fn a_port_has_one_owner_and_is_free_after_it() {
        let root = tempfile::tempdir().unwrap();
        let dir = place(root.path());
        let first = PortSocket::bind(&dir, 7000).unwrap();
        let error = PortSocket::bind(&dir, 7000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("7000"), "{error}");
        drop(first);
        assert!(!dir.port_socket(7000).exists());
        PortSocket::bind(&dir, 7000).unwrap();
    }

    #[test]
    fn what_a_crash_leaves_makes_way() {
        let root = tempfile::tempdir().unwrap();
        let dir = place(root.path());
        let listener = std::os::unix::net::UnixListener::bind(dir.port_socket(7000)).unwrap();
        assert!(PortSocket::bind(&dir, 7000).is_err());
        drop(listener); // the file stays
        assert!(dir.port_socket(7000).exists());
        let again = PortSocket::bind(&dir, 7000).unwrap();
        // One that took over is not robbed by the one before it.
        let mut before = PortSocket::bind(&dir, 7001).unwrap();
        before.file.port = 7000;
        drop(before);
        assert!(dir.port_socket(7000).exists());
        drop(again);
    }

    #[test]
    fn probing_leaves_no_connection_behind() {
        let root = tempfile::tempdir().unwrap();
        let dir = place(root.path());
        let listener = PortSocket::bind(&dir, 7000).unwrap();
        assert!(PortSocket::bind(&dir, 7000).is_err());
        rustix::io::ioctl_fionbio(&listener, true).unwrap();
        let none = rustix::net::accept(&listener).unwrap_err();
        assert_eq!(none, Errno::WOULDBLOCK);
    }

    #[test]
    fn a_reservation_keeps_the_port_and_hands_it_to_its_listener() {
        let root = tempfile::tempdir().unwrap();
        let dir = place(root.path());
        let reserved = Reservation::take(&dir, 7000).unwrap();
        assert!(PortSocket::bind(&dir, 7000).is_err());
        assert!(Reservation::take(&dir, 7000).is_err());
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let socket = || socket_with(family, SocketType::STREAM, flags, None).unwrap();
        let listener = socket();
        let file = reserved.listen(listener.as_fd(), 5).unwrap();
        assert!(PortSocket::bind(&dir, 7000).is_err());
        assert_eq!(dir.ports().unwrap(), [7000]);
        let path = SocketPath::new(&dir.port_socket(7000)).unwrap();
        connect(socket(), path.address()).unwrap();
        rustix::net::accept(&listener).unwrap();
        drop((listener, file));
        assert!(!dir.port_socket(7000).exists());
        drop(Reservation::take(&dir, 7000).unwrap());
        assert!(!dir.port_socket(7000).exists());
    }

    #[test]
    fn port_0_picks_free_ones_of_the_range() {
        let root = tempfile::tempdir().unwrap();
        let dir = place(root.path());
        let all: Vec<_> = (0..50)
            .map(|_| PortSocket::bind(&dir, 0).unwrap())
            .collect();
        let mut ports: Vec<_> = all.iter().map(PortSocket::port).collect();
        ports.sort();
        ports.dedup();
        assert_eq!(ports.len(), 50);
        assert!(ports.iter().all(|p| EPHEMERAL_PORTS.contains(p)));
    }

    #[test]
    fn many_threads_want_one_port_and_one_gets_it() {
        let root = tempfile::tempdir().unwrap();
        let dir = place(root.path());
        let barrier = std::sync::Barrier::new(8);
        let won: usize = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let got = PortSocket::bind(&dir, 7000);
                        barrier.wait();
                        usize::from(got.is_ok())
                    })
                })
                .collect();
            all.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(won, 1);
    }
}

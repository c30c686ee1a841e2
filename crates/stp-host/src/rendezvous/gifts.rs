//! Gifts of streams that no engine carries: descriptors that pass from one program of a system to another.
//!
//! - A gift is a socket `gifts/<name>~<age>-<random>.sock`; its giver serves it, the oldest of a name first.
//! - Three steps: the giver hands out copies, the taker asks for them, the giver says yes. Until that yes they are
//!   the giver's, after it the taker's; a taker that dies before leaves the gift to the next.
//! - A file that nobody serves any more is removed by whoever finds it.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, accept_with,
    bind, connect, listen, recv, recvmsg, send, sendmsg, socket_with,
};
use rustix::time::{ClockId, clock_gettime};
use stp_format::ProcessName;

use super::files::shared_as_its_folder;
use super::path::SocketPath;
use super::ports::is_held;
use super::run_dir::SystemDir;

/// How long one side may keep the other waiting within an exchange.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// What a gift's description may take.
const ABOUT_BYTES_MAX: usize = 4096;
/// Descriptors of one gift.
const FDS_MAX: usize = 4;
/// Takers that wait for one gift; the others find it again.
const BACKLOG: i32 = 16;
/// The taker wants it; the giver agrees.
const ASK: u8 = b'?';
const YES: u8 = b'y';

/// What became of a gift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// A taker has it.
    Taken,
    /// Nobody took it in time.
    Expired,
    /// Its giver took it back.
    Stopped,
}

/// What a taker gets.
#[derive(Debug)]
pub struct Offered {
    /// As the giver described it.
    pub about: Vec<u8>,
    /// Its descriptors, in the giver's order.
    pub fds: Vec<OwnedFd>,
}

/// A gift that waits for its taker.
#[derive(Debug)]
pub struct GiftSocket {
    socket: OwnedFd,
    path: PathBuf,
}

fn wait(watched: &mut [PollFd<'_>], until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: i64::from(i32::MAX),
            tv_nsec: 0,
        });
        match poll(watched, Some(&left)) {
            Err(Errno::INTR) => {}
            polled => return Ok(polled? > 0),
        }
    }
}

impl GiftSocket {
    /// Offers a gift to those who take by `name` on this system.
    pub fn bind(dir: &SystemDir, name: &ProcessName) -> io::Result<Self> {
        let now = clock_gettime(ClockId::Monotonic);
        let age = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        let random = getrandom::u64().map_err(io::Error::other)?;
        let path = dir
            .gifts()
            .join(format!("{name}~{age:016x}-{random:016x}.sock"));
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let socket = socket_with(family, SocketType::SEQPACKET, flags, None)?;
        bind(&socket, SocketPath::new(&path)?.address()).map_err(|e| {
            io::Error::new(
                io::Error::from(e).kind(),
                format!("{}: {e}", path.display()),
            )
        })?;
        let gift = Self { socket, path };
        shared_as_its_folder(&gift.path)?;
        listen(&gift.socket, BACKLOG)?;
        Ok(gift)
    }

    /// Serves takers, one after the other, until one has the gift, `stop` is readable, or `deadline` has come.
    pub fn serve(
        self,
        about: &[u8],
        fds: &[BorrowedFd<'_>],
        stop: BorrowedFd<'_>,
        deadline: Instant,
    ) -> io::Result<Passed> {
        loop {
            let mut watched = [
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
                PollFd::new(&self.socket, PollFlags::IN),
            ];
            if !wait(&mut watched, deadline)? {
                return Ok(Passed::Expired);
            }
            if !watched[0].revents().is_empty() {
                return Ok(Passed::Stopped);
            }
            let taker = match accept_with(&self.socket, SocketFlags::CLOEXEC) {
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                taker => taker?,
            };
            // A taker that breaks off leaves the gift to the next.
            if hand_out(&taker, about, fds).unwrap_or(false) {
                return Ok(Passed::Taken);
            }
        }
    }
}

impl Drop for GiftSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether the taker has it now.
fn hand_out(taker: &OwnedFd, about: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<bool> {
    set_socket_timeout(taker, Timeout::Send, Some(ANSWER_MAX))?;
    set_socket_timeout(taker, Timeout::Recv, Some(ANSWER_MAX))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(fds));
    sendmsg(
        taker,
        &[IoSlice::new(about)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    let mut answer = [0];
    let (count, _) = recv(taker, &mut answer, RecvFlags::empty())?;
    Ok(count == 1 && answer[0] == ASK && send(taker, &[YES], SendFlags::NOSIGNAL).is_ok())
}

/// The oldest gift to `name` that is to be had now.
pub fn take_gift(dir: &SystemDir, name: &ProcessName) -> io::Result<Option<Offered>> {
    let prefix = format!("{name}~");
    let mut found = Vec::new();
    for entry in fs::read_dir(dir.gifts())? {
        let entry = entry?;
        if entry
            .file_name()
            .to_str()
            .is_some_and(|file| file.starts_with(&prefix))
        {
            found.push(entry.path());
        }
    }
    found.sort();
    for path in found {
        match ask_for(&path) {
            Ok(Some(offered)) => return Ok(Some(offered)),
            Ok(None) => {}
            // It went to another, or its giver broke off: the next one.
            Err(_) if !is_held(&path).unwrap_or(true) => {
                let _ = fs::remove_file(&path);
            }
            Err(_) => {}
        }
    }
    Ok(None)
}

fn ask_for(path: &std::path::Path) -> io::Result<Option<Offered>> {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::SEQPACKET, flags, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(ANSWER_MAX))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_MAX))?;
    connect(&socket, SocketPath::new(path)?.address())?;
    let mut about = vec![0; ABOUT_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut about)];
    let received = recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    if received.bytes == 0 || fds.is_empty() || received.flags.intersects(cut) {
        return Ok(None);
    }
    send(socket.as_fd(), &[ASK], SendFlags::NOSIGNAL)?;
    let mut answer = [0];
    let (count, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    if count != 1 || answer[0] != YES {
        return Ok(None);
    }
    about.truncate(received.bytes);
    Ok(Some(Offered { about, fds }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendezvous::RunDir;
    use rustix::event::{EventfdFlags, eventfd};
    use stp_format::VolumeId;

    fn place(root: &std::path::Path) -> SystemDir {
        RunDir::open(&root.join("run"))
            .and_then(|run| run.system(VolumeId([1; 16]), &"alpha".parse().unwrap()))
            .unwrap()
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn the_oldest_gift_of_the_name_is_taken_and_only_once() {
        let root = tempfile::tempdir().unwrap();
        let dir = place(root.path());
        let (heir, other) = ("heir".parse().unwrap(), "heir2".parse().unwrap());
        assert!(take_gift(&dir, &heir).unwrap().is_none());
        let first = GiftSocket::bind(&dir, &heir).unwrap();
        let second = GiftSocket::bind(&dir, &heir).unwrap();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        std::thread::scope(|scope| {
            let serve = |gift: GiftSocket, about: &'static [u8]| {
                let stop = stop.as_fd();
                scope.spawn(move || gift.serve(about, &[stop], stop, far()).unwrap())
            };
            let served = [serve(first, b"first"), serve(second, b"second")];
            assert!(take_gift(&dir, &other).unwrap().is_none());
            for about in [&b"first"[..], b"second"] {
                let offered = take_gift(&dir, &heir).unwrap().unwrap();
                assert_eq!((&*offered.about, offered.fds.len()), (about, 1));
            }
            for server in served {
                assert_eq!(server.join().unwrap(), Passed::Taken);
            }
        });
        assert!(take_gift(&dir, &heir).unwrap().is_none());
        assert_eq!(fs::read_dir(dir.gifts()).unwrap().count(), 0);
    }

    #[test]
    fn a_taker_that_breaks_off_leaves_the_gift_and_a_dead_giver_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dir = place(root.path());
        let heir = "heir".parse().unwrap();
        let gift = GiftSocket::bind(&dir, &heir).unwrap();
        let path = gift.path.clone();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        std::thread::scope(|scope| {
            let served = scope.spawn(|| gift.serve(b"it", &[stop.as_fd()], stop.as_fd(), far()));
            for _ in 0..3 {
                let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
                let taker = socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
                connect(&taker, SocketPath::new(&path).unwrap().address()).unwrap();
            }
            assert!(take_gift(&dir, &heir).unwrap().is_some());
            assert_eq!(served.join().unwrap().unwrap(), Passed::Taken);
        });
        // As a killed giver leaves it.
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        let path = dir
            .gifts()
            .join("heir~0000000000000000-0000000000000000.sock");
        bind(&socket, SocketPath::new(&path).unwrap().address()).unwrap();
        drop(socket);
        assert!(take_gift(&dir, &heir).unwrap().is_none());
        assert!(!path.exists());
    }

    #[test]
    fn a_gift_expires_and_can_be_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let dir = place(root.path());
        let heir = "heir".parse().unwrap();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let gift = GiftSocket::bind(&dir, &heir).unwrap();
        let passed = gift.serve(b"it", &[stop.as_fd()], stop.as_fd(), Instant::now());
        assert_eq!(passed.unwrap(), Passed::Expired);
        let gift = GiftSocket::bind(&dir, &heir).unwrap();
        rustix::io::write(&stop, &1_u64.to_ne_bytes()).unwrap();
        let passed = gift.serve(b"it", &[stop.as_fd()], stop.as_fd(), far());
        assert_eq!(passed.unwrap(), Passed::Stopped);
        assert!(take_gift(&dir, &heir).unwrap().is_none());
    }
}

//! A connected stream.
//!
//! - The bytes go through a kernel socket, or past it by the lane; this file adds only what the kernel cannot know:
//!   whether the end of the bytes is an end in order.
//! - The mark of an orderly end is left before the descriptor closes, by the last clone.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};
use stp_host::control::{Calls, StreamToken, Verdict};
use stp_host::rendezvous::SystemDir;
use stp_host::rendezvous::direct::Marks;

use crate::addr::Addr;
use crate::gift::{self, Gift, TakerName};
use crate::lane::Lane;

/// How a stream's end is told.
pub enum Fate {
    /// The engine knows.
    Engine {
        /// How it is asked.
        calls: Arc<dyn Calls>,
        /// About which stream.
        token: StreamToken,
    },
    /// The other program's mark says.
    Direct(Marks),
    /// As the socket has it.
    Raw,
}

impl Fate {
    /// How the peer's bytes ended, now that the socket says so: `None` in order, else how it broke.
    pub fn peer_end(&self) -> Option<String> {
        match self {
            Self::Engine { calls, token } => match calls.verdict(*token) {
                Verdict::Clean => None,
                Verdict::Reset(why) => Some(why),
                Verdict::Open => Some("its engine closed it without a word".to_owned()),
            },
            Self::Direct(marks) if marks.other_left() => None,
            Self::Direct(_) => {
                Some("the program there ended without closing the stream".to_owned())
            }
            Self::Raw => None,
        }
    }

    /// How our half of the stream broke, now that the far end of the socket is closed.
    pub fn broken(&self) -> Option<String> {
        match self {
            // An engine holds its end until our half is through, unless the stream broke.
            Self::Engine { calls, token } => Some(match calls.verdict(*token) {
                Verdict::Reset(why) => why,
                Verdict::Clean | Verdict::Open => {
                    "it broke before the end of what was sent to it".to_owned()
                }
            }),
            Self::Direct(_) => self.peer_end(),
            Self::Raw => None,
        }
    }

    /// Says that the coming end of this program's bytes is meant.
    pub fn mark(&self) {
        match self {
            Self::Engine { calls, token } => calls.mark_clean(*token),
            Self::Direct(marks) => marks.leave(),
            Self::Raw => {}
        }
    }

    /// One more process, forked from the one that opened it, goes on with the stream.
    pub fn hold(&self) {
        match self {
            Self::Engine { calls, token } => calls.hold(*token),
            Self::Direct(marks) => marks.hold(),
            Self::Raw => {}
        }
    }

    /// Breaks the stream; the socket is the caller's.
    pub fn abort(&self) {
        if let Self::Engine { calls, token } = self {
            calls.abort(*token);
        }
    }
}

/// A stream of bytes to and from another program.
///
/// Dropping the last clone ends it in order: what was written is delivered.
pub struct Stream {
    socket: UnixStream,
    shared: Arc<Shared>,
}

struct Shared {
    fate: Fate,
    lane: Option<Lane>,
    /// Whose program this is; `local` names another system if the stream was moved here.
    home: SystemDir,
    local: Addr,
    peer: Addr,
    /// The process that opened it: a forked copy that goes must not announce an end.
    pid: u32,
    /// Clones of this stream in this process.
    handles: AtomicUsize,
    /// The end of our bytes is announced as meant.
    marked: AtomicBool,
    /// `shutdown(Read)`: the end of the peer's bytes is our own doing.
    read_shut: AtomicBool,
    /// `shutdown(Write)`.
    write_shut: AtomicBool,
    /// [`Stream::abort`].
    aborted: AtomicBool,
    /// The peer's end, once it is known: `None` in order, else how it broke.
    ended: OnceLock<Option<String>>,
    /// [`Stream::take_error`] has told that it broke.
    break_told: AtomicBool,
    /// It has been given: `gift` says what came of it.
    given: AtomicBool,
    gift: Mutex<Option<Arc<gift::State>>>,
}

impl Shared {
    fn gift(&self) -> Option<Arc<gift::State>> {
        if !self.given.load(Ordering::Acquire) {
            return None;
        }
        // One assignment is all that happens under this lock.
        let gift = self.gift.lock().unwrap_or_else(PoisonError::into_inner);
        gift.clone()
    }

    /// Whether the stream may be used: it is not being given, nor was it taken.
    fn check_given(&self) -> io::Result<()> {
        let Some(gift) = self.gift() else {
            return Ok(());
        };
        gift.check()?;
        self.given.store(false, Ordering::Release);
        Ok(())
    }

    fn mark_clean(&self) {
        if self.aborted.load(Ordering::Acquire) || self.marked.swap(true, Ordering::AcqRel) {
            return;
        }
        match &self.fate {
            Fate::Engine { calls, token } => {
                if !matches!(self.ended.get(), Some(Some(_))) {
                    calls.mark_clean(*token);
                }
            }
            Fate::Direct(marks) => marks.leave(),
            Fate::Raw => {}
        }
    }

    /// The last handle is about to close its descriptor.
    fn close(&self) {
        if self.pid != std::process::id() {
            return;
        }
        if self.gift().is_some_and(|gift| !gift.close()) {
            return;
        }
        match &self.fate {
            Fate::Engine { calls, token } => {
                if !self.aborted.load(Ordering::Acquire) {
                    calls.close(*token);
                }
            }
            _ => self.mark_clean(),
        }
        if let Some(lane) = &self.lane {
            lane.close(self.ended.get().is_some());
        }
    }

    /// How the peer's bytes ended, now that the socket says so: `None` in order, else how it broke.
    fn peer_end(&self) -> Option<String> {
        self.ended.get_or_init(|| self.fate.peer_end()).clone()
    }

    /// How our half of the stream broke, now that the far end of the socket is closed.
    fn broken(&self) -> Option<String> {
        match &self.fate {
            Fate::Engine { .. } => self.fate.broken(),
            // The other program may well leave before we have finished.
            Fate::Direct(_) => self.peer_end(),
            Fate::Raw => None,
        }
    }

    fn reset_error(&self, why: &str) -> io::Error {
        io::Error::new(
            io::ErrorKind::ConnectionReset,
            format!("connection reset by {}: {why}", self.peer),
        )
    }

    /// The answer to a read that found the end.
    fn end_of_file(&self) -> io::Result<usize> {
        if self.aborted.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                format!("the stream to {} was reset by this program", self.peer),
            ));
        }
        if self.read_shut.load(Ordering::Acquire) {
            return Ok(0);
        }
        match self.peer_end() {
            None => Ok(0),
            Some(why) => Err(self.reset_error(&why)),
        }
    }

    fn read_error(&self, error: Errno) -> io::Error {
        match error {
            Errno::CONNRESET => {
                self.reset_error("it was closed before everything sent to it was read")
            }
            error => error.into(),
        }
    }
}

impl Stream {
    pub(crate) fn new(
        socket: OwnedFd,
        home: &SystemDir,
        local: Addr,
        peer: Addr,
        fate: Fate,
    ) -> Self {
        let lane = match &fate {
            Fate::Engine { calls, token } => Lane::new(calls, *token),
            Fate::Direct(_) | Fate::Raw => None,
        };
        Self {
            socket: socket.into(),
            shared: Arc::new(Shared {
                fate,
                lane,
                home: home.clone(),
                local,
                peer,
                pid: std::process::id(),
                handles: AtomicUsize::new(1),
                marked: AtomicBool::new(false),
                read_shut: AtomicBool::new(false),
                write_shut: AtomicBool::new(false),
                aborted: AtomicBool::new(false),
                ended: OnceLock::new(),
                break_told: AtomicBool::new(false),
                given: AtomicBool::new(false),
                gift: Mutex::new(None),
            }),
        }
    }

    /// Makes this stream available to a program that takes by `to`'s name, on this system or another, for at
    /// most `wait`. The taker goes on at the exact byte, in both directions, and the peer notices nothing.
    ///
    /// Until the gift is settled every use of this stream but dropping it is refused. If nobody takes it, it
    /// works again. Clones must be dropped before, and no other thread may be reading or writing.
    pub fn give(&self, to: &TakerName, wait: Duration) -> io::Result<Gift> {
        let shared = &self.shared;
        shared.check_given()?;
        if shared.handles.load(Ordering::Acquire) > 1 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a stream with clones cannot be given: drop them first",
            ));
        }
        let (local, peer) = (&shared.local, &shared.peer);
        let gift = gift::give(
            &shared.home,
            &shared.fate,
            self.as_fd(),
            local,
            peer,
            to,
            wait,
        )?;
        *shared.gift.lock().unwrap_or_else(PoisonError::into_inner) = Some(gift.state());
        shared.given.store(true, Ordering::Release);
        Ok(gift)
    }

    fn check_given(&self) -> io::Result<()> {
        self.shared.check_given()
    }

    /// The far end.
    pub fn peer_addr(&self) -> io::Result<Addr> {
        Ok(self.shared.peer.clone())
    }

    /// This end.
    pub fn local_addr(&self) -> io::Result<Addr> {
        Ok(self.shared.local.clone())
    }

    /// Ends one direction or both. After `Write`, the peer reads to the end of what was sent, then end of file.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.check_given()?;
        let shared = &self.shared;
        if how != Shutdown::Write {
            shared.read_shut.store(true, Ordering::Release);
        }
        if how != Shutdown::Read {
            shared.mark_clean();
            shared.write_shut.store(true, Ordering::Release);
        }
        if let Some(lane) = &shared.lane {
            lane.settle();
            lane.ring();
        }
        self.socket.shutdown(how)
    }

    /// Another handle to the same stream. The last one to be dropped closes it.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.check_given()?;
        let socket = self.socket.try_clone()?;
        self.shared.handles.fetch_add(1, Ordering::AcqRel);
        Ok(Self {
            socket,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Breaks the stream at once, in both directions: the peer reads `ConnectionReset`, and what it has
    /// not received yet may be lost.
    pub fn abort(&self) -> io::Result<()> {
        self.check_given()?;
        let shared = &self.shared;
        if shared.aborted.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        if let Fate::Engine { calls, token } = &shared.fate {
            calls.abort(*token);
        }
        if let Some(lane) = &shared.lane {
            lane.ring();
        }
        match self.socket.shutdown(Shutdown::Both) {
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        }
    }

    /// How long a read waits, `None`: for ever. Zero is refused.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.check_given()?;
        self.socket.set_read_timeout(timeout)
    }

    /// How long a write waits, `None`: for ever. Zero is refused.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.check_given()?;
        self.socket.set_write_timeout(timeout)
    }

    /// See [`Stream::set_read_timeout`].
    pub fn read_timeout(&self) -> io::Result<Option<Duration>> {
        self.socket.read_timeout()
    }

    /// See [`Stream::set_write_timeout`].
    pub fn write_timeout(&self) -> io::Result<Option<Duration>> {
        self.socket.write_timeout()
    }

    /// Makes reads and writes return `WouldBlock` instead of waiting.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.check_given()?;
        self.socket.set_nonblocking(nonblocking)?;
        if let Some(lane) = &self.shared.lane {
            lane.set_nonblocking(nonblocking);
        }
        Ok(())
    }

    /// Reads without taking the bytes out.
    pub fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.receive(buf, RecvFlags::PEEK)
    }

    /// The pending error of the socket, and clears it. A stream that broke before its end was announced by
    /// [`Stream::shutdown`] says so here even if the peer had finished its half: no read would tell any more.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        if let Some(error) = self.socket.take_error()? {
            return Ok(Some(error));
        }
        let shared = &self.shared;
        if shared.write_shut.load(Ordering::Acquire)
            || shared.aborted.load(Ordering::Acquire)
            || !self.is_cut()
            || shared.break_told.swap(true, Ordering::AcqRel)
        {
            return Ok(None);
        }
        Ok(shared.broken().map(|why| shared.reset_error(&why)))
    }

    fn receive(&self, buf: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        self.check_given()?;
        let wanted = !buf.is_empty();
        let plain = wanted && flags.is_empty() && !self.shared.read_shut.load(Ordering::Acquire);
        let by_lane = match &self.shared.lane {
            Some(lane) if plain => lane.read(self.socket.as_fd(), buf),
            Some(lane) => {
                lane.settle();
                None
            }
            None => None,
        };
        let received =
            by_lane.unwrap_or_else(|| recv(&self.socket, buf, flags).map(|(count, _)| count));
        match received {
            Ok(0) if wanted => self.shared.end_of_file(),
            Ok(count) => Ok(count),
            Err(error) => Err(self.shared.read_error(error)),
        }
    }

    /// Sends by the lane if there is one, else, or what has no room there, by the socket.
    fn transmit(&self, buf: &[u8]) -> Result<usize, Errno> {
        let shared = &self.shared;
        let is_open = || {
            !shared.write_shut.load(Ordering::Acquire) && !shared.aborted.load(Ordering::Acquire)
        };
        let by_lane = match &shared.lane {
            Some(lane) if !buf.is_empty() => lane.write(self.socket.as_fd(), buf, is_open),
            _ => None,
        };
        by_lane.unwrap_or_else(|| {
            let count = send(&self.socket, buf, SendFlags::NOSIGNAL)?;
            Ok(self.sent(count))
        })
    }

    /// So many bytes were put into the socket.
    fn sent(&self, count: usize) -> usize {
        if let Some(lane) = &self.shared.lane {
            lane.socket_used(count);
        }
        count
    }

    /// Others may look at the descriptor.
    pub(crate) fn expose(&self) {
        if let Some(lane) = &self.shared.lane {
            lane.expose();
        }
    }

    /// What a failed write means.
    fn write_error(&self, error: Errno) -> io::Error {
        let shared = &self.shared;
        match error {
            Errno::CONNRESET => shared.read_error(error),
            Errno::PIPE if !shared.write_shut.load(Ordering::Acquire) && self.is_gone() => {
                match shared.peer_end() {
                    Some(why) => shared.reset_error(&why),
                    None => broken_pipe(&shared.peer),
                }
            }
            Errno::PIPE => broken_pipe(&shared.peer),
            error => error.into(),
        }
    }

    /// Whether the far end of the socket is closed in both directions, before this end is.
    fn is_cut(&self) -> bool {
        let mut watched = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec::default();
        poll(&mut watched, Some(&now)).is_ok() && watched[0].revents().contains(PollFlags::HUP)
    }

    /// Whether the far end of the socket will send nothing more: it is closed, not just its reading half.
    fn is_gone(&self) -> bool {
        let mut watched = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec::default();
        poll(&mut watched, Some(&now)).is_ok()
            && watched[0]
                .revents()
                .intersects(PollFlags::RDHUP | PollFlags::HUP)
    }
}

fn broken_pipe(peer: &Addr) -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        format!("broken pipe: {peer} or this end has closed the stream"),
    )
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.shared.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.close();
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("local", &self.shared.local.to_string())
            .field("peer", &self.shared.peer.to_string())
            .field("fd", &self.socket.as_raw_fd())
            .finish()
    }
}

impl Read for &Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.receive(buf, RecvFlags::empty())
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Ok(0);
        }
        self.check_given()?;
        if let Some(lane) = &self.shared.lane {
            lane.settle();
        }
        match (&self.socket).read_vectored(bufs) {
            Ok(0) => self.shared.end_of_file(),
            Ok(n) => Ok(n),
            Err(e) => match Errno::from_io_error(&e) {
                Some(errno) => Err(self.shared.read_error(errno)),
                None => Err(e),
            },
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.check_given()?;
        self.transmit(buf).map_err(|error| self.write_error(error))
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.check_given()?;
        let bufs = &bufs[..bufs.len().min(IO_SLICES_MAX)];
        let mut control = SendAncillaryBuffer::default();
        match sendmsg(&self.socket, bufs, &mut control, SendFlags::NOSIGNAL) {
            Ok(count) => Ok(self.sent(count)),
            Err(error) => Err(self.write_error(error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the kernel takes in one call.
const IO_SLICES_MAX: usize = 1024;

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buf)
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(bufs)
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self).write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.expose();
        self.socket.as_fd()
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.expose();
        self.socket.as_raw_fd()
    }
}

//! A stream's lane: its bytes' way past the socket, where its engine is in this process.
//!
//! - The lane is for streams whose descriptor nobody but this library uses. Whoever asks for the descriptor, or forks,
//!   ends that for good: from then on bytes go by the socket, where everybody can see them.
//! - Every write into the socket by this library is counted *after* it: see [`stp_host::control::lane`].
//! - Nothing here waits longer, or for anything else, than the socket would.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use stp_host::control::lane::{Bell, Close, Got, Put, Write};
use stp_host::control::{Calls, StreamToken};
use stp_host::forks::Moment;

pub(crate) struct Lane {
    calls: Arc<dyn Calls>,
    token: StreamToken,
    /// When the stream came into this process.
    since: Moment,
    /// Others may use the descriptor.
    public: AtomicBool,
    /// As the library has set it.
    nonblocking: AtomicBool,
    /// Something was read by the lane.
    used: AtomicBool,
    /// Writes into the socket.
    written: AtomicU64,
    bell: Arc<Bell>,
}

impl Lane {
    /// The lane of a stream that has just come into being; `None` if its engine is elsewhere.
    pub(crate) fn new(calls: &Arc<dyn Calls>, token: StreamToken) -> Option<Self> {
        calls.lane()?;
        Some(Self {
            calls: Arc::clone(calls),
            token,
            since: Moment::now()?,
            public: AtomicBool::new(false),
            nonblocking: AtomicBool::new(false),
            used: AtomicBool::new(false),
            written: AtomicU64::new(0),
            bell: Arc::default(),
        })
    }

    /// The engine, unless this is a forked copy.
    fn engine(&self) -> Option<&dyn stp_host::control::lane::Lane> {
        if !self.since.is_same_process() {
            return None;
        }
        self.calls.lane()
    }

    fn is_private(&self) -> bool {
        !self.public.load(Ordering::Acquire) && self.since.is_alone()
    }

    /// The descriptor is about to be seen by others.
    pub(crate) fn expose(&self) {
        if !self.public.swap(true, Ordering::AcqRel)
            && let Some(engine) = self.engine()
        {
            engine.publish(self.token, true);
            self.ring();
        }
    }

    /// The next call looks at the socket itself: what has arrived must be there.
    pub(crate) fn settle(&self) {
        if self.used.load(Ordering::Acquire)
            && let Some(engine) = self.engine()
        {
            engine.publish(self.token, false);
        }
    }

    /// The last handle goes, and the clean end is announced. `read`: the program has read to the end.
    pub(crate) fn close(&self, read: bool) {
        let written = self.written.load(Ordering::Acquire);
        match self.engine() {
            Some(engine) if self.is_private() => engine.close(Close {
                token: self.token,
                written,
                read,
            }),
            // What was kept for a reader is unread: the kernel shall see that.
            _ => self.settle(),
        }
    }

    /// Something about the stream has changed: a writer that waits for room looks again.
    pub(crate) fn ring(&self) {
        self.bell.ring();
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Release);
    }

    fn is_nonblocking(&self, socket: BorrowedFd<'_>) -> bool {
        if self.is_private() {
            return self.nonblocking.load(Ordering::Acquire);
        }
        fcntl_getfl(socket).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK))
    }

    /// The program has written so many bytes into the socket.
    pub(crate) fn socket_used(&self, bytes: usize) {
        self.written.fetch_add(1, Ordering::AcqRel);
        if let Some(engine) = self.engine() {
            engine.socket_used(bytes);
        }
    }

    /// Reads by the lane; `None`: by the socket.
    pub(crate) fn read(
        &self,
        socket: BorrowedFd<'_>,
        buf: &mut [u8],
    ) -> Option<Result<usize, Errno>> {
        let engine = self.engine()?;
        let nonblocking = self.is_nonblocking(socket);
        if nonblocking && !self.is_private() {
            return None;
        }
        let mut received = None;
        let mut receive = |buf: &mut [u8]| match recv(socket, buf, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => false,
            done => {
                received = Some(done.map(|(count, _)| count));
                true
            }
        };
        match engine.take(self.token, buf, !nonblocking, &mut receive) {
            Got::Bytes(count) => {
                self.used.store(true, Ordering::Release);
                Some(Ok(count))
            }
            Got::Socket => received,
            Got::Nothing => {
                // It may keep what comes for the next reader.
                self.used.store(true, Ordering::Release);
                None
            }
        }
    }

    /// Writes by the lane, and what does not fit there by the socket; `None`: all by the socket. `is_open`: this
    /// program has not ended its half.
    pub(crate) fn write(
        &self,
        socket: BorrowedFd<'_>,
        buf: &[u8],
        is_open: impl Fn() -> bool,
    ) -> Option<Result<usize, Errno>> {
        let engine = self.engine()?;
        let mut done = 0;
        let mut patience = None;
        while self.is_private() && is_open() {
            let written = self.written.load(Ordering::Acquire);
            let waits = !self.nonblocking.load(Ordering::Acquire);
            let write = Write {
                token: self.token,
                bytes: &buf[done..],
                written,
                bell: &self.bell,
            };
            let (taken, ticket) = match engine.put(write, waits) {
                Put::All => return Some(Ok(buf.len())),
                Put::Full { taken, ticket } => (taken, ticket),
                Put::Refused => break,
            };
            done += taken;
            // What changed before the ticket was drawn has rung already, for nobody.
            let waits = self.is_private() && is_open();
            if !waits || self.nonblocking.load(Ordering::Acquire) {
                break;
            }
            let waited = self.wait(socket, ticket, &mut patience);
            if let Err(error) = waited {
                return Some(if done > 0 { Ok(done) } else { Err(error) });
            }
        }
        if done == 0 {
            return None;
        }
        let sent = send(socket, &buf[done..], SendFlags::NOSIGNAL);
        Some(Ok(done
            + sent.map_or(0, |count| {
                self.socket_used(count);
                count
            })))
    }

    /// Waits for room, as long as the socket would in all; `patience` is when that is over, once it is known.
    fn wait(
        &self,
        socket: BorrowedFd<'_>,
        ticket: u32,
        patience: &mut Option<Option<Instant>>,
    ) -> Result<(), Errno> {
        let until = *patience.get_or_insert_with(|| {
            let timeout = socket_timeout(socket, Timeout::Send).ok().flatten();
            timeout.and_then(|timeout| Instant::now().checked_add(timeout))
        });
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(Errno::AGAIN);
        }
        match self.bell.wait(ticket, left) {
            Err(Errno::TIMEDOUT) => Err(Errno::AGAIN),
            waited => waited,
        }
    }
}

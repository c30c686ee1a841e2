//! Being asked to end: SIGINT, SIGTERM and SIGHUP.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};

use crate::CliError;

/// Notices the signals that ask a process to end. From then on they no longer end it.
#[derive(Debug)]
pub struct EndSignals {
    wake: UnixStream,
    last: Arc<AtomicUsize>,
    default: Arc<AtomicBool>,
}

impl EndSignals {
    /// Starts to notice.
    pub fn watch() -> Result<Self, CliError> {
        let failed = |error| CliError::new(format_args!("cannot handle signals: {error}"));
        let (wake, write) = UnixStream::pair().map_err(failed)?;
        let last = Arc::new(AtomicUsize::new(0));
        let default = Arc::new(AtomicBool::new(false));
        for (signal, number) in [(SIGINT, SIGINT), (SIGTERM, SIGTERM), (SIGHUP, SIGHUP)] {
            let number = usize::try_from(number).unwrap_or_default();
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&default))
                .map_err(failed)?;
            // The number first: who is woken by the pipe finds it.
            signal_hook::flag::register_usize(signal, Arc::clone(&last), number).map_err(failed)?;
            let write = write.try_clone().map_err(failed)?;
            signal_hook::low_level::pipe::register(signal, write).map_err(failed)?;
        }
        Ok(Self {
            wake,
            last,
            default,
        })
    }

    /// From now on a signal ends the process at once: whoever asks twice is in a hurry.
    pub fn restore_default(&self) {
        self.default.store(true, Ordering::SeqCst);
    }

    /// The signal that came last, if one came.
    pub fn seen(&self) -> Option<i32> {
        match self.last.load(Ordering::SeqCst) {
            0 => None,
            number => i32::try_from(number).ok(),
        }
    }

    /// Waits for a signal, at most so long; `None` if none came.
    pub fn wait(&self, at_most: Option<Duration>) -> Option<i32> {
        if let Some(signal) = self.seen() {
            return Some(signal);
        }
        let timeout = at_most.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let mut fds = [PollFd::new(&self.wake, PollFlags::IN)];
        // Interrupted or timed out: the number says which.
        let _ = poll(&mut fds, timeout.as_ref());
        self.seen()
    }
}

impl AsFd for EndSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

//! Atomics, locks and the futex, under one name.
//!
//! - The files that use these say nothing else of threads, so that a test can put others in their place, which try
//!   every order that the memory may show (`stp-sim`, `tests/orders`).

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
pub(crate) use std::sync::{Mutex, PoisonError};
pub(crate) use std::thread::yield_now;

/// Waiting for a word to change.
pub(crate) mod futex {
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use rustix::io::Errno;
    use rustix::thread::futex;
    use rustix::time::Timespec;

    /// Wakes everybody who waits for the word.
    pub(crate) fn wake_all(word: &AtomicU32) {
        // It fails for an address that is none only.
        let _ = futex::wake(word, futex::Flags::PRIVATE, u32::MAX);
    }

    /// Waits until somebody wakes, unless the word is not `value` any more.
    pub(crate) fn wait(
        word: &AtomicU32,
        value: u32,
        timeout: Option<Duration>,
    ) -> Result<(), Errno> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        futex::wait(word, futex::Flags::PRIVATE, value, timeout.as_ref())
    }
}

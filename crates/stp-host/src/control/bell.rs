//! The bell: what a writer without room waits for.
//!
//! - A ticket that is drawn before the look at what is waited for loses no ring: the bell then rings for it, or has rung.
//! - Who finds a bell rung finds what its ringer did before. (`stp-sim` compiles this file a second time and tries it
//!   in every order that the memory may show.)

use std::time::Duration;

use rustix::io::Errno;

use crate::sync::{AtomicU32, Ordering, futex};

/// See the file's head.
#[derive(Debug, Default)]
pub struct Bell(AtomicU32);

impl Bell {
    /// How often it has rung.
    pub fn ticket(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Wakes everybody who waits.
    pub fn ring(&self) {
        self.0.fetch_add(1, Ordering::Release);
        futex::wake_all(&self.0);
    }

    /// Waits until it rings, unless it has since `ticket`. Interrupted by signals as a write into a socket is:
    /// without a time-out the kernel goes on where it shall.
    pub fn wait(&self, ticket: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        match futex::wait(&self.0, ticket, timeout) {
            Ok(()) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

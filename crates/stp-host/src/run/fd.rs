//! A descriptor that is closed by the system call itself.
//!
//! - The standard library closes through the C library's `close`, which inside the preload is the preload's
//!   own. This one goes past it.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// An open descriptor, closed at its end.
#[derive(Debug)]
pub struct Fd(ManuallyDrop<OwnedFd>);

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Self {
        Self(ManuallyDrop::new(fd))
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: the descriptor is owned by this value alone, and its own drop never runs.
        unsafe { rustix::io::close(self.0.as_raw_fd()) }
    }
}

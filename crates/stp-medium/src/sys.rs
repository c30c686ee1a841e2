//! Calls of the kernel that no safe crate offers: record locks of open file descriptions, signal masks.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

/// The signal mask as it was; put back when dropped.
pub(crate) struct SignalsBlocked(libc::sigset_t);

/// Blocks every signal in this thread, for threads started meanwhile to inherit.
pub(crate) fn block_signals() -> SignalsBlocked {
    let mut all = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: `sigfillset` initialises the set it is given; `pthread_sigmask` reads the one and
    // initialises the other; it cannot fail with a valid `how`.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        SignalsBlocked(before.assume_init())
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: a mask that `pthread_sigmask` filled in; no old mask is asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

/// Tries to take an exclusive lock on a byte range for this open file description.
pub(crate) fn try_lock_range(file: impl AsFd, start: u64, len: u64) -> io::Result<()> {
    set_lock(file, libc::F_WRLCK, start, len)
}

/// Lets go of a byte range.
pub(crate) fn unlock_range(file: impl AsFd, start: u64, len: u64) -> io::Result<()> {
    set_lock(file, libc::F_UNLCK, start, len)
}

fn set_lock(file: impl AsFd, kind: libc::c_int, start: u64, len: u64) -> io::Result<()> {
    let too_far = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let range = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start.try_into().map_err(too_far)?,
        l_len: len.try_into().map_err(too_far)?,
        l_pid: 0,
    };
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call and `range` is a valid `flock` that the call only reads.
    match unsafe { libc::fcntl(fd, libc::F_OFD_SETLK, &range) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A second open file description of the same file, for reading.
pub(crate) fn reopen_read_only(file: &File) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

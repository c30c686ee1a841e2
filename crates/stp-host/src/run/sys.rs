//! What the kernel offers to sockets and no safe binding has.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Lets nothing in that is sent to this socket: every packet is dropped before the kernel looks at it.
pub(super) fn drop_everything(socket: impl AsFd) -> io::Result<()> {
    // One instruction: return with 0 bytes kept.
    let mut accept_none = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &mut accept_none,
    };
    let size = std::mem::size_of_val(&program) as libc::socklen_t;
    // SAFETY: the kernel copies `size` bytes of the option and the one instruction that it points to before the call
    // returns; both live until then.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

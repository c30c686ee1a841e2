//! Internet sockets of unmodified programs, translated: which calls mean the group, and what the kernel is told instead.
//!
//! - A program's descriptor is its own kernel TCP socket, always. Only openings and names are translated; no call that
//!   moves bytes is here, but for `MSG_FASTOPEN`, which opens.
//! - [`Inet`] keeps no state about sockets: everything is read from the kernel's own names, and asked of the engine
//!   where those do not tell. So `fork`, `exec`, `dup` and passed descriptors need nothing.
//! - Every other socket, address and name goes to the kernel and the C library untouched.
//! - `connect`, `bind`, `listen`, `accept`, `getsockname`, `getpeername` and `getsockopt` neither allocate nor lock, and
//!   leave `errno` alone when they succeed.
//! - At the calls that are cancellation points, no value with a destructor is alive.

mod engine;
mod hosts;
mod library;
mod meaning;
mod names;
mod open;
mod sys;

use libc::{
    addrinfo, c_char, c_int, c_void, hostent, msghdr, size_t, sockaddr, socklen_t, ssize_t,
};

pub use engine::Inet;
pub use library::{LIBC, of_environment};
pub use meaning::Map;

/// The calls below: the C library's, or those of whatever else is in between.
#[allow(missing_docs)] // Each is the call of its name.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    pub bind: unsafe extern "C" fn(c_int, *const sockaddr, socklen_t) -> c_int,
    pub listen: unsafe extern "C" fn(c_int, c_int) -> c_int,
    pub connect: unsafe extern "C-unwind" fn(c_int, *const sockaddr, socklen_t) -> c_int,
    pub accept: unsafe extern "C-unwind" fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int,
    pub accept4: unsafe extern "C-unwind" fn(c_int, *mut sockaddr, *mut socklen_t, c_int) -> c_int,
    pub getsockname: unsafe extern "C" fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int,
    pub getpeername: unsafe extern "C" fn(c_int, *mut sockaddr, *mut socklen_t) -> c_int,
    pub getsockopt: unsafe extern "C" fn(c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int,
    pub sendto: unsafe extern "C-unwind" fn(
        c_int,
        *const c_void,
        size_t,
        c_int,
        *const sockaddr,
        socklen_t,
    ) -> ssize_t,
    pub sendmsg: unsafe extern "C-unwind" fn(c_int, *const msghdr, c_int) -> ssize_t,
    pub getaddrinfo: unsafe extern "C-unwind" fn(
        *const c_char,
        *const c_char,
        *const addrinfo,
        *mut *mut addrinfo,
    ) -> c_int,
    pub getnameinfo: unsafe extern "C-unwind" fn(
        *const sockaddr,
        socklen_t,
        *mut c_char,
        socklen_t,
        *mut c_char,
        socklen_t,
        c_int,
    ) -> c_int,
    pub gethostbyname: unsafe extern "C-unwind" fn(*const c_char) -> *mut hostent,
    pub gethostbyname2: unsafe extern "C-unwind" fn(*const c_char, c_int) -> *mut hostent,
    pub gethostbyaddr: unsafe extern "C-unwind" fn(*const c_void, socklen_t, c_int) -> *mut hostent,
    pub gethostbyname_r: unsafe extern "C-unwind" fn(
        *const c_char,
        *mut hostent,
        *mut c_char,
        size_t,
        *mut *mut hostent,
        *mut c_int,
    ) -> c_int,
    pub gethostbyname2_r: unsafe extern "C-unwind" fn(
        *const c_char,
        c_int,
        *mut hostent,
        *mut c_char,
        size_t,
        *mut *mut hostent,
        *mut c_int,
    ) -> c_int,
    pub gethostbyaddr_r: unsafe extern "C-unwind" fn(
        *const c_void,
        socklen_t,
        c_int,
        *mut hostent,
        *mut c_char,
        size_t,
        *mut *mut hostent,
        *mut c_int,
    ) -> c_int,
}

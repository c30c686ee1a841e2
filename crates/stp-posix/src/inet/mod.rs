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
mod list;
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

macro_rules! next {
    ($($abi:literal fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty;)*) => {
        /// The calls below: the C library's, or those of whatever else is in between.
        #[allow(missing_docs)] // Each is the call of its name.
        #[derive(Clone, Copy, Debug)]
        pub struct Next {
            $(pub $name: unsafe extern $abi fn($($type),*) -> $result,)*
        }
    };
}

crate::translated_calls!(next);

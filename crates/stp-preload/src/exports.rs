//! The exported calls, one list: what is in it is a symbol of the library, and nothing else is.
//!
//! - Each has the C library's signature and is handed on with the arguments as they came.
//! - Calls that are cancellation points, or may run the program's code, let an unwinding through.

use std::ffi::{c_char, c_int, c_void};
use std::mem::transmute;

use libc::{addrinfo, hostent, msghdr, size_t, sockaddr, socklen_t, ssize_t};
use stp_posix::inet::Next;

use crate::{behind, routes};

macro_rules! exports {
    ($($abi:literal fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty;)*) => {
        /// What is behind this library.
        pub(crate) fn next() -> Next {
            Next {$(
                // SAFETY: the C library's function of this name has this signature.
                $name: unsafe {
                    transmute::<*mut c_void, unsafe extern $abi fn($($type),*) -> $result>(
                        behind(
                            const {
                                match std::ffi::CStr::from_bytes_with_nul(
                                    concat!(stringify!($name), "\0").as_bytes(),
                                ) {
                                    Ok(name) => name,
                                    Err(_) => panic!(),
                                }
                            },
                        ),
                    )
                },
            )*}
        }

        $(
            /// The call of its name.
            ///
            /// # Safety
            /// As the C library's.
            // SAFETY: meant to stand before the C library's function of this name, with the same signature.
            #[unsafe(no_mangle)]
            pub(crate) unsafe extern $abi fn $name($($argument: $type),*) -> $result {
                let routes = routes();
                // SAFETY: the program's own arguments.
                unsafe {
                    match &routes.inet {
                        Some(inet) => inet.$name(&routes.next, $($argument),*),
                        None => (routes.next.$name)($($argument),*),
                    }
                }
            }
        )*
    };
}

exports! {
    "C" fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int;
    "C" fn listen(fd: c_int, backlog: c_int) -> c_int;
    "C-unwind" fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int;
    "C-unwind" fn accept(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int;
    "C-unwind" fn accept4(
        fd: c_int,
        address: *mut sockaddr,
        len: *mut socklen_t,
        flags: c_int,
    ) -> c_int;
    "C" fn getsockname(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int;
    "C" fn getpeername(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int;
    "C" fn getsockopt(
        fd: c_int,
        level: c_int,
        name: c_int,
        value: *mut c_void,
        len: *mut socklen_t,
    ) -> c_int;
    "C-unwind" fn sendto(
        fd: c_int,
        buffer: *const c_void,
        count: size_t,
        flags: c_int,
        address: *const sockaddr,
        len: socklen_t,
    ) -> ssize_t;
    "C-unwind" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t;
    "C-unwind" fn getaddrinfo(
        node: *const c_char,
        service: *const c_char,
        hints: *const addrinfo,
        result: *mut *mut addrinfo,
    ) -> c_int;
    "C-unwind" fn getnameinfo(
        address: *const sockaddr,
        len: socklen_t,
        host: *mut c_char,
        host_len: socklen_t,
        service: *mut c_char,
        service_len: socklen_t,
        flags: c_int,
    ) -> c_int;
    "C-unwind" fn gethostbyname(name: *const c_char) -> *mut hostent;
    "C-unwind" fn gethostbyname2(name: *const c_char, family: c_int) -> *mut hostent;
    "C-unwind" fn gethostbyaddr(address: *const c_void, len: socklen_t, family: c_int) -> *mut hostent;
    "C-unwind" fn gethostbyname_r(
        name: *const c_char,
        entry: *mut hostent,
        place: *mut c_char,
        room: size_t,
        result: *mut *mut hostent,
        h_errno: *mut c_int,
    ) -> c_int;
    "C-unwind" fn gethostbyname2_r(
        name: *const c_char,
        family: c_int,
        entry: *mut hostent,
        place: *mut c_char,
        room: size_t,
        result: *mut *mut hostent,
        h_errno: *mut c_int,
    ) -> c_int;
    "C-unwind" fn gethostbyaddr_r(
        address: *const c_void,
        len: socklen_t,
        family: c_int,
        entry: *mut hostent,
        place: *mut c_char,
        room: size_t,
        result: *mut *mut hostent,
        h_errno: *mut c_int,
    ) -> c_int;
}

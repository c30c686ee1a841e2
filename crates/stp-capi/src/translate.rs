//! The calls that `stp/translate.h` puts in place of a TCP program's own.
//!
//! - Each has the signature of the call it stands for, with `stp_translate_` before its name.
//! - What means no system, and every call where no volume is named, is the C library's.

use libc::{
    addrinfo, c_char, c_int, c_void, hostent, msghdr, size_t, sockaddr, socklen_t, ssize_t,
};
use stp_posix::inet::{LIBC, of_environment};

macro_rules! translated {
    ($($abi:literal fn $export:ident = $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty;)*) => {
        $(
            /// The call behind its prefix.
            // SAFETY: no other library has a function of this name.
            #[unsafe(no_mangle)]
            pub(crate) unsafe extern $abi fn $export($($argument: $type),*) -> $result {
                // SAFETY: the program's own arguments.
                unsafe {
                    match of_environment() {
                        Some(inet) => inet.$name(&LIBC, $($argument),*),
                        None => (LIBC.$name)($($argument),*),
                    }
                }
            }
        )*
    };
}

translated! {
    "C" fn stp_translate_bind = bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int;
    "C" fn stp_translate_listen = listen(fd: c_int, backlog: c_int) -> c_int;
    "C-unwind" fn stp_translate_connect = connect(
        fd: c_int,
        address: *const sockaddr,
        len: socklen_t,
    ) -> c_int;
    "C-unwind" fn stp_translate_accept = accept(
        fd: c_int,
        address: *mut sockaddr,
        len: *mut socklen_t,
    ) -> c_int;
    "C-unwind" fn stp_translate_accept4 = accept4(
        fd: c_int,
        address: *mut sockaddr,
        len: *mut socklen_t,
        flags: c_int,
    ) -> c_int;
    "C" fn stp_translate_getsockname = getsockname(
        fd: c_int,
        address: *mut sockaddr,
        len: *mut socklen_t,
    ) -> c_int;
    "C" fn stp_translate_getpeername = getpeername(
        fd: c_int,
        address: *mut sockaddr,
        len: *mut socklen_t,
    ) -> c_int;
    "C" fn stp_translate_getsockopt = getsockopt(
        fd: c_int,
        level: c_int,
        name: c_int,
        value: *mut c_void,
        len: *mut socklen_t,
    ) -> c_int;
    "C-unwind" fn stp_translate_sendto = sendto(
        fd: c_int,
        buffer: *const c_void,
        count: size_t,
        flags: c_int,
        address: *const sockaddr,
        len: socklen_t,
    ) -> ssize_t;
    "C-unwind" fn stp_translate_sendmsg = sendmsg(
        fd: c_int,
        message: *const msghdr,
        flags: c_int,
    ) -> ssize_t;
    "C-unwind" fn stp_translate_getaddrinfo = getaddrinfo(
        node: *const c_char,
        service: *const c_char,
        hints: *const addrinfo,
        result: *mut *mut addrinfo,
    ) -> c_int;
    "C-unwind" fn stp_translate_getnameinfo = getnameinfo(
        address: *const sockaddr,
        len: socklen_t,
        host: *mut c_char,
        host_len: socklen_t,
        service: *mut c_char,
        service_len: socklen_t,
        flags: c_int,
    ) -> c_int;
    "C-unwind" fn stp_translate_gethostbyname = gethostbyname(name: *const c_char) -> *mut hostent;
    "C-unwind" fn stp_translate_gethostbyname2 = gethostbyname2(
        name: *const c_char,
        family: c_int,
    ) -> *mut hostent;
    "C-unwind" fn stp_translate_gethostbyaddr = gethostbyaddr(
        address: *const c_void,
        len: socklen_t,
        family: c_int,
    ) -> *mut hostent;
    "C-unwind" fn stp_translate_gethostbyname_r = gethostbyname_r(
        name: *const c_char,
        entry: *mut hostent,
        place: *mut c_char,
        room: size_t,
        result: *mut *mut hostent,
        h_errno: *mut c_int,
    ) -> c_int;
    "C-unwind" fn stp_translate_gethostbyname2_r = gethostbyname2_r(
        name: *const c_char,
        family: c_int,
        entry: *mut hostent,
        place: *mut c_char,
        room: size_t,
        result: *mut *mut hostent,
        h_errno: *mut c_int,
    ) -> c_int;
    "C-unwind" fn stp_translate_gethostbyaddr_r = gethostbyaddr_r(
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

//! The C library's calls that are translated: one list, from which the doors make their exports.
//!
//! - Each is here with its signature in the C library. What may run the program's code or end its thread
//!   (a cancellation point) lets an unwinding through.

/// Gives the list to the macro `$each`. Who calls it has the types of `libc` in scope.
#[macro_export]
macro_rules! translated_calls {
    ($each:ident) => {
        $each! {
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
    };
}

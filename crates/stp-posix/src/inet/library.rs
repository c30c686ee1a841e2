//! The translation for a program that is linked with the C library instead of being preloaded.
//!
//! - The way to the engine is the one that `stp run` handed down, else it is found by `STP_VOLUME`, `STP_SYSTEM` and
//!   `STP_RUN_DIR`. Without a volume every call is the kernel's.
//! - It is found once, by the first call that is translated.

use std::sync::OnceLock;

use libc::{
    addrinfo, c_char, c_int, c_void, hostent, msghdr, size_t, sockaddr, socklen_t, ssize_t,
};
use stp_format::SystemName;
use stp_host::rendezvous::RunDir;
use stp_host::run::{Way, env};

use super::{Inet, Map, Next};

/// The C library's own calls.
pub const LIBC: Next = Next {
    bind,
    listen,
    connect,
    accept,
    accept4,
    getsockname,
    getpeername,
    getsockopt,
    sendto,
    sendmsg,
    getaddrinfo,
    getnameinfo,
    gethostbyname,
    gethostbyname2,
    gethostbyaddr,
    gethostbyname_r,
    gethostbyname2_r,
    gethostbyaddr_r,
};

unsafe extern "C" {
    fn bind(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn getsockname(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int;
    fn getpeername(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int;
    fn getsockopt(
        fd: c_int,
        level: c_int,
        name: c_int,
        value: *mut c_void,
        len: *mut socklen_t,
    ) -> c_int;
}

unsafe extern "C-unwind" {
    fn connect(fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int;
    fn accept(fd: c_int, address: *mut sockaddr, len: *mut socklen_t) -> c_int;
    fn accept4(fd: c_int, address: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int;
    fn sendto(
        fd: c_int,
        buffer: *const c_void,
        count: size_t,
        flags: c_int,
        address: *const sockaddr,
        len: socklen_t,
    ) -> ssize_t;
    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t;
    fn getaddrinfo(
        node: *const c_char,
        service: *const c_char,
        hints: *const addrinfo,
        result: *mut *mut addrinfo,
    ) -> c_int;
    fn getnameinfo(
        address: *const sockaddr,
        len: socklen_t,
        host: *mut c_char,
        host_len: socklen_t,
        service: *mut c_char,
        service_len: socklen_t,
        flags: c_int,
    ) -> c_int;
    fn gethostbyname(name: *const c_char) -> *mut hostent;
    fn gethostbyname2(name: *const c_char, family: c_int) -> *mut hostent;
    fn gethostbyaddr(address: *const c_void, len: socklen_t, family: c_int) -> *mut hostent;
    fn gethostbyname_r(
        name: *const c_char,
        entry: *mut hostent,
        place: *mut c_char,
        room: size_t,
        result: *mut *mut hostent,
        h_errno: *mut c_int,
    ) -> c_int;
    fn gethostbyname2_r(
        name: *const c_char,
        family: c_int,
        entry: *mut hostent,
        place: *mut c_char,
        room: size_t,
        result: *mut *mut hostent,
        h_errno: *mut c_int,
    ) -> c_int;
    fn gethostbyaddr_r(
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

/// This process's translation; `None`: its environment names no volume that can be used.
pub fn of_environment() -> Option<&'static Inet> {
    static INET: OnceLock<Option<Inet>> = OnceLock::new();
    INET.get_or_init(|| {
        let variable = |name: &str| {
            let value = std::env::var_os(name)?;
            // Once a process.
            let bytes: &'static [u8] = std::os::unix::ffi::OsStringExt::into_vec(value).leak();
            (!bytes.is_empty()).then_some(bytes)
        };
        Inet::from_env(variable).or_else(by_volume)
    })
    .as_ref()
}

fn by_volume() -> Option<Inet> {
    let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let spec = text(env::VOLUME)?.parse().ok()?;
    let volume = stp_host::volume::open_read_only(&spec).ok()?;
    let volume = volume.superblock().volume;
    let system: SystemName = match text(env::SYSTEM) {
        Some(system) => system.parse().ok()?,
        None => rustix::system::uname()
            .nodename()
            .to_str()
            .ok()?
            .parse()
            .ok()?,
    };
    let dir = RunDir::open_default(None).ok()?;
    let dir = dir.system(volume, &system).ok()?;
    let client = Way::of(&dir).ok()?.client().ok()?;
    let map = Map::parse(&text(env::RUN_MAP).unwrap_or_default());
    Some(Inet::new(client, volume, system, map))
}

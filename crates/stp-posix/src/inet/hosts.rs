//! Host names: `SYSTEM.stp` to addresses and back, for all the calls that C has for it.
//!
//! - `SYSTEM.stp` is ours alone: a system that the group does not have is unknown, no other resolver is asked.
//! - A bare name is ours only if nobody else knows it.
//! - Service names, hints, flags and their errors are the C library's: it is asked with the system's address in
//!   place of the name, and what it gives is freed as always.

use std::ffi::{CStr, CString};
use std::net::IpAddr;
use std::ptr::null_mut;

use libc::{addrinfo, c_char, c_int, c_void, hostent, size_t, sockaddr, socklen_t};
use stp_format::SystemName;
use stp_host::address::{self, DOMAIN};

use super::sys::{self, Raw};
use super::{Inet, Next};

unsafe extern "C" {
    fn __h_errno_location() -> *mut c_int;
}

const HOST_NOT_FOUND: c_int = 1;
const TRY_AGAIN: c_int = 2;

/// glibc's answer for names that have no address; not in every list of constants.
const EAI_NODATA: c_int = -5;
const EAI_ADDRFAMILY: c_int = -9;
const AI_IDN: c_int = 0x40;
const AI_CANONIDN: c_int = 0x80;

/// The longest answer of the calls with a place of their own.
const ENTRY_BYTES_MAX: usize = 512;

/// Why a name has no address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Miss {
    /// The group has no such system.
    Unknown,
    /// The engine could not be asked.
    Later,
}

/// A system found by a name.
struct Found {
    system: SystemName,
    v4: IpAddr,
    v6: IpAddr,
}

impl Found {
    fn ip(&self, family: c_int) -> IpAddr {
        if family == libc::AF_INET6 {
            self.v6
        } else {
            self.v4
        }
    }

    fn host(&self) -> String {
        format!("{}.{DOMAIN}", self.system)
    }
}

impl Inet {
    /// `None`: not a name of ours.
    fn lookup(&self, host: &str) -> Option<Result<Found, Miss>> {
        address::in_domain(host).map(|name| self.lookup_system(name))
    }

    fn lookup_system(&self, name: &str) -> Result<Found, Miss> {
        let system = self
            .system_named(name)
            .map_err(|_| Miss::Later)?
            .ok_or(Miss::Unknown)?;
        let number = self.number_of(&system);
        Ok(Found {
            system,
            v4: self.face(number, false),
            v6: self.face(number, true),
        })
    }

    /// A name that nobody else knows.
    fn lookup_bare(&self, host: &str) -> Option<Found> {
        let host = host.strip_suffix('.').unwrap_or(host);
        host.parse::<SystemName>().ok()?;
        self.lookup_system(host).ok()
    }

    /// `getaddrinfo`.
    ///
    /// # Safety
    /// As the C library's.
    pub unsafe fn getaddrinfo(
        &self,
        next: &Next,
        node: *const c_char,
        service: *const c_char,
        hints: *const addrinfo,
        result: *mut *mut addrinfo,
    ) -> c_int {
        // SAFETY: the program's own arguments; hints are read as the C library reads them.
        unsafe {
            let hinted = (!hints.is_null()).then(|| *hints);
            let flags = hinted.map_or(0, |hints| hints.ai_flags);
            let host = text(node);
            // There is an IPv4 network, whatever interfaces say: literals and the own host must not depend on those.
            let literal = node.is_null() || host.is_some_and(|host| host.parse::<IpAddr>().is_ok());
            if let Some(mut plain) = hinted
                && literal
                && plain.ai_family == libc::AF_INET
            {
                plain.ai_flags &= !libc::AI_ADDRCONFIG;
                return (next.getaddrinfo)(node, service, &raw const plain, result);
            }
            let Some(host) = host.filter(|_| !literal && flags & libc::AI_NUMERICHOST == 0) else {
                return (next.getaddrinfo)(node, service, hints, result);
            };
            let found = match self.lookup(host) {
                Some(Ok(found)) => found,
                Some(Err(Miss::Unknown)) => return libc::EAI_NONAME,
                Some(Err(Miss::Later)) => return libc::EAI_AGAIN,
                None => {
                    let answer = (next.getaddrinfo)(node, service, hints, result);
                    let unknown = [
                        libc::EAI_NONAME,
                        libc::EAI_AGAIN,
                        libc::EAI_FAIL,
                        EAI_NODATA,
                        EAI_ADDRFAMILY,
                    ];
                    if !unknown.contains(&answer) {
                        return answer;
                    }
                    match self.lookup_bare(host) {
                        Some(found) => found,
                        None => return answer,
                    }
                }
            };
            let mut literal = hinted.unwrap_or_else(sys::zeroed);
            literal.ai_flags &= !(libc::AI_ADDRCONFIG
                | libc::AI_CANONNAME
                | libc::AI_V4MAPPED
                | libc::AI_ALL
                | AI_IDN
                | AI_CANONIDN);
            literal.ai_flags |= libc::AI_NUMERICHOST;
            let Ok(ip) = CString::new(found.ip(literal.ai_family).to_string()) else {
                return libc::EAI_FAIL;
            };
            let answer = (next.getaddrinfo)(ip.as_ptr(), service, &raw const literal, result);
            if answer == 0 && flags & libc::AI_CANONNAME != 0 {
                return name_canonically(&found, *result);
            }
            answer
        }
    }

    /// `getnameinfo`.
    ///
    /// # Safety
    /// As the C library's.
    #[allow(clippy::too_many_arguments)] // The C library's signature.
    pub unsafe fn getnameinfo(
        &self,
        next: &Next,
        address: *const sockaddr,
        len: socklen_t,
        host: *mut c_char,
        host_len: socklen_t,
        service: *mut c_char,
        service_len: socklen_t,
        flags: c_int,
    ) -> c_int {
        // SAFETY: the program's own arguments.
        unsafe {
            let asis = |flags| {
                (next.getnameinfo)(address, len, host, host_len, service, service_len, flags)
            };
            if host.is_null()
                || host_len == 0
                || flags & libc::NI_NUMERICHOST != 0
                || len > size_of::<libc::sockaddr_storage>() as socklen_t
                || !sys::is_readable(address.cast(), len as usize)
            {
                return asis(flags);
            }
            let Some(ip) = Raw::read(address, len).map(|address| address.ip()) else {
                return asis(flags);
            };
            let system = match self.system_at(ip) {
                Ok(Some(system)) => system,
                _ if !address::is_visible(ip) => return asis(flags),
                Err(_) if flags & libc::NI_NAMEREQD != 0 => return libc::EAI_AGAIN,
                Ok(None) if flags & libc::NI_NAMEREQD != 0 => return libc::EAI_NONAME,
                _ => return asis(flags | libc::NI_NUMERICHOST),
            };
            let name = format!("{system}.{DOMAIN}");
            if name.len() >= host_len as usize {
                return libc::EAI_OVERFLOW;
            }
            if !service.is_null() && service_len > 0 {
                let answer =
                    (next.getnameinfo)(address, len, null_mut(), 0, service, service_len, flags);
                if answer != 0 {
                    return answer;
                }
            }
            name.as_ptr()
                .copy_to_nonoverlapping(host.cast(), name.len());
            host.add(name.len()).write(0);
            0
        }
    }

    /// `gethostbyname`.
    ///
    /// # Safety
    /// As the C library's.
    pub unsafe fn gethostbyname(&self, next: &Next, name: *const c_char) -> *mut hostent {
        // SAFETY: the program's own arguments.
        unsafe { self.by_name(name, libc::AF_INET, || (next.gethostbyname)(name)) }
    }

    /// `gethostbyname2`.
    ///
    /// # Safety
    /// As the C library's.
    pub unsafe fn gethostbyname2(
        &self,
        next: &Next,
        name: *const c_char,
        family: c_int,
    ) -> *mut hostent {
        // SAFETY: the program's own arguments.
        unsafe { self.by_name(name, family, || (next.gethostbyname2)(name, family)) }
    }

    unsafe fn by_name(
        &self,
        name: *const c_char,
        family: c_int,
        asis: impl Fn() -> *mut hostent,
    ) -> *mut hostent {
        // SAFETY: the program's own arguments.
        unsafe {
            match self.find_host(name, family) {
                Some(Ok(found)) => in_own_place(&found, family),
                Some(Err(miss)) => missed(miss),
                None => {
                    let entry = asis();
                    if entry.is_null()
                        && let Some(found) = self.find_bare_host(name, family)
                    {
                        return in_own_place(&found, family);
                    }
                    entry
                }
            }
        }
    }

    /// `gethostbyname_r`.
    ///
    /// # Safety
    /// As the C library's.
    #[allow(clippy::too_many_arguments)] // The C library's signature.
    pub unsafe fn gethostbyname_r(
        &self,
        next: &Next,
        name: *const c_char,
        entry: *mut hostent,
        place: *mut c_char,
        room: size_t,
        result: *mut *mut hostent,
        h_errno: *mut c_int,
    ) -> c_int {
        let family = libc::AF_INET;
        // SAFETY: the program's own arguments.
        unsafe {
            self.by_name_r(name, family, (entry, place, room, result, h_errno), || {
                (next.gethostbyname_r)(name, entry, place, room, result, h_errno)
            })
        }
    }

    /// `gethostbyname2_r`.
    ///
    /// # Safety
    /// As the C library's.
    #[allow(clippy::too_many_arguments)] // The C library's signature.
    pub unsafe fn gethostbyname2_r(
        &self,
        next: &Next,
        name: *const c_char,
        family: c_int,
        entry: *mut hostent,
        place: *mut c_char,
        room: size_t,
        result: *mut *mut hostent,
        h_errno: *mut c_int,
    ) -> c_int {
        // SAFETY: the program's own arguments.
        unsafe {
            self.by_name_r(name, family, (entry, place, room, result, h_errno), || {
                (next.gethostbyname2_r)(name, family, entry, place, room, result, h_errno)
            })
        }
    }

    unsafe fn by_name_r(
        &self,
        name: *const c_char,
        family: c_int,
        out: Out,
        asis: impl Fn() -> c_int,
    ) -> c_int {
        // SAFETY: the program's own arguments.
        unsafe {
            match self.find_host(name, family) {
                Some(Ok(found)) => in_place(&found, family, out),
                Some(Err(miss)) => missed_r(miss, out),
                None => {
                    let answer = asis();
                    let (_, _, _, result, _) = out;
                    if (*result).is_null()
                        && answer != libc::ERANGE
                        && let Some(found) = self.find_bare_host(name, family)
                    {
                        return in_place(&found, family, out);
                    }
                    answer
                }
            }
        }
    }

    unsafe fn find_host(&self, name: *const c_char, family: c_int) -> Option<Result<Found, Miss>> {
        if family != libc::AF_INET && family != libc::AF_INET6 {
            return None;
        }
        // SAFETY: passed on.
        self.lookup(unsafe { text(name) }?)
    }

    unsafe fn find_bare_host(&self, name: *const c_char, family: c_int) -> Option<Found> {
        if family != libc::AF_INET && family != libc::AF_INET6 {
            return None;
        }
        // SAFETY: passed on.
        self.lookup_bare(unsafe { text(name) }?)
    }

    /// `gethostbyaddr`.
    ///
    /// # Safety
    /// As the C library's.
    pub unsafe fn gethostbyaddr(
        &self,
        next: &Next,
        address: *const c_void,
        len: socklen_t,
        family: c_int,
    ) -> *mut hostent {
        // SAFETY: the program's own arguments.
        unsafe {
            match self.find_address(address, len, family) {
                Some(Ok(found)) => in_own_place(&found, family),
                Some(Err(miss)) => missed(miss),
                None => (next.gethostbyaddr)(address, len, family),
            }
        }
    }

    /// `gethostbyaddr_r`.
    ///
    /// # Safety
    /// As the C library's.
    #[allow(clippy::too_many_arguments)] // The C library's signature.
    pub unsafe fn gethostbyaddr_r(
        &self,
        next: &Next,
        address: *const c_void,
        len: socklen_t,
        family: c_int,
        entry: *mut hostent,
        place: *mut c_char,
        room: size_t,
        result: *mut *mut hostent,
        h_errno: *mut c_int,
    ) -> c_int {
        // SAFETY: the program's own arguments.
        unsafe {
            let out = (entry, place, room, result, h_errno);
            match self.find_address(address, len, family) {
                Some(Ok(found)) => in_place(&found, family, out),
                Some(Err(miss)) => missed_r(miss, out),
                None => (next.gethostbyaddr_r)(
                    address, len, family, entry, place, room, result, h_errno,
                ),
            }
        }
    }

    /// `None`: not an address of ours.
    unsafe fn find_address(
        &self,
        address: *const c_void,
        len: socklen_t,
        family: c_int,
    ) -> Option<Result<Found, Miss>> {
        // SAFETY: the program's own arguments, read as far as they are said to go.
        let ip: IpAddr = unsafe {
            match (family, len as usize) {
                (libc::AF_INET, 4) => address.cast::<[u8; 4]>().read_unaligned().into(),
                (libc::AF_INET6, 16) => address.cast::<[u8; 16]>().read_unaligned().into(),
                _ => return None,
            }
        };
        match self.system_at(ip) {
            Ok(Some(system)) => Some(Ok(Found {
                system,
                v4: ip,
                v6: ip,
            })),
            _ if !address::is_visible(ip) => None,
            Ok(None) => Some(Err(Miss::Unknown)),
            Err(_) => Some(Err(Miss::Later)),
        }
    }
}

/// Where the calls that end in `_r` put their answer: entry, space, its size, result, `h_errno`.
type Out = (
    *mut hostent,
    *mut c_char,
    size_t,
    *mut *mut hostent,
    *mut c_int,
);

unsafe fn text<'a>(text: *const c_char) -> Option<&'a str> {
    if text.is_null() {
        return None;
    }
    // SAFETY: a C string, as the C library takes it.
    unsafe { CStr::from_ptr(text) }.to_str().ok()
}

/// Gives the first entry the system's name, in memory that `freeaddrinfo` frees.
unsafe fn name_canonically(found: &Found, list: *mut addrinfo) -> c_int {
    let Ok(host) = CString::new(found.host()) else {
        return libc::EAI_FAIL;
    };
    // SAFETY: the list is the C library's own answer; its entries own their names, which come from `malloc`.
    unsafe {
        let copy = libc::strdup(host.as_ptr());
        if copy.is_null() {
            libc::freeaddrinfo(list);
            return libc::EAI_MEMORY;
        }
        libc::free((*list).ai_canonname.cast());
        (*list).ai_canonname = copy;
    }
    0
}

unsafe fn missed(miss: Miss) -> *mut hostent {
    // SAFETY: the C library's variable of this thread.
    unsafe { *__h_errno_location() = miss.h_errno() };
    null_mut()
}

unsafe fn missed_r(miss: Miss, (_, _, _, result, h_errno): Out) -> c_int {
    // SAFETY: the program's own places.
    unsafe {
        *result = null_mut();
        *h_errno = miss.h_errno();
    }
    match miss {
        Miss::Unknown => 0,
        Miss::Later => libc::EAGAIN,
    }
}

impl Miss {
    fn h_errno(self) -> c_int {
        match self {
            Self::Unknown => HOST_NOT_FOUND,
            Self::Later => TRY_AGAIN,
        }
    }
}

/// As the C library's own: one place for the whole process, good until the next call.
unsafe fn in_own_place(found: &Found, family: c_int) -> *mut hostent {
    struct Place {
        entry: hostent,
        space: [u64; ENTRY_BYTES_MAX / 8],
    }
    static mut PLACE: Place = Place {
        entry: hostent {
            h_name: null_mut(),
            h_aliases: null_mut(),
            h_addrtype: 0,
            h_length: 0,
            h_addr_list: null_mut(),
        },
        space: [0; ENTRY_BYTES_MAX / 8],
    };
    let mut result = null_mut();
    let mut h_errno = 0;
    // SAFETY: threads that call this at once overwrite each other's answers, as they do in the C library.
    unsafe {
        let out = (
            &raw mut PLACE.entry,
            (&raw mut PLACE.space).cast(),
            ENTRY_BYTES_MAX,
            &raw mut result,
            &raw mut h_errno,
        );
        in_place(found, family, out);
    }
    result
}

/// Lays the answer out in the program's space.
unsafe fn in_place(
    found: &Found,
    family: c_int,
    (entry, place, room, result, h_errno): Out,
) -> c_int {
    let host = found.host();
    let (address, address_len) = match found.ip(family) {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped().octets(), 4),
        IpAddr::V6(v6) => (v6.octets(), 16),
    };
    let address = &address[16 - address_len..];
    // Pointers first: the list of addresses with its end, the empty list of aliases.
    let pointers = 3 * size_of::<*mut c_char>();
    let skip = place.align_offset(align_of::<*mut c_char>());
    // SAFETY: everything is written within the room that was counted before; the program gives the rest.
    unsafe {
        if skip + pointers + address_len + host.len() + 1 > room {
            *result = null_mut();
            // What makes programs come again with more room.
            *h_errno = -1;
            sys::fail(sys::Errno(libc::ERANGE));
            return libc::ERANGE;
        }
        let list = place.add(skip).cast::<*mut c_char>();
        let bytes = place.add(skip + pointers);
        let name = bytes.add(address_len);
        address
            .as_ptr()
            .copy_to_nonoverlapping(bytes.cast(), address_len);
        host.as_ptr()
            .copy_to_nonoverlapping(name.cast(), host.len());
        name.add(host.len()).write(0);
        list.write(bytes);
        list.add(1).write(null_mut());
        list.add(2).write(null_mut());
        entry.write(hostent {
            h_name: name,
            h_aliases: list.add(2),
            h_addrtype: family,
            h_length: address_len as c_int,
            h_addr_list: list,
        });
        *result = entry;
        *h_errno = 0;
    }
    0
}

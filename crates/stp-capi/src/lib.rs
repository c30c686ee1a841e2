//! libstp: the STP calls under their C names.
//!
//! - The door routes: what a call does is in `stp_posix::calls`. Here its outcome becomes a result, `errno` and
//!   what `STPerror` tells.
//! - No panic crosses: it becomes `EIO` and `STP_EBUG`.
//! - What is exported here is in `include/stp.h`, in `stp.map` and in a man page, and nothing else is (tested).
#![allow(
    non_snake_case,
    clippy::missing_safety_doc,
    reason = "the names are C's; a program's pointers are checked by the kernel, and the man pages say what they mean"
)]

mod translate;

use std::cell::RefCell;
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};

use libc::{c_char, c_int, c_void, fd_set, iovec, nfds_t, pollfd, socklen_t, ssize_t, timeval};
use stp_posix::calls::{self, CODES, Code, Fault, Outcome};

struct Last {
    code: Code,
    text: CString,
    /// What `STPstrerror` returned last for another code.
    other: CString,
}

thread_local! {
    static LAST: RefCell<Last> = RefCell::new(Last {
        code: Code::None,
        text: CString::default(),
        other: CString::default(),
    });
}

fn remember(fault: &Fault) {
    let text = CString::new(fault.to_string()).unwrap_or_default();
    // A thread that is ending has nobody to tell.
    let _ = LAST.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            last.code = fault.code;
            last.text = text;
        }
    });
    // SAFETY: the C library's place for this thread's errno.
    unsafe { *libc::__errno_location() = fault.errno };
}

/// Runs a call; -1 and `errno` where it fails.
fn call<T: From<i8>>(work: impl FnOnce() -> Outcome<T>) -> T {
    let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let text = "a mistake in the STP library: please report it with what the program did";
        Err(Fault::new(libc::EIO, Code::Bug, text))
    });
    outcome.unwrap_or_else(|fault| {
        let _ = catch_unwind(|| remember(&fault));
        T::from(-1)
    })
}

fn done(work: impl FnOnce() -> Outcome<()>) -> c_int {
    call(|| work().map(|()| 0))
}

fn count(work: impl FnOnce() -> Outcome<usize>) -> ssize_t {
    call(|| work().map(|count| count as ssize_t))
}

/// `STPsocket`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub extern "C" fn STPsocket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    call(|| calls::socket(domain, kind, protocol))
}

/// `STPbind`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPbind(s: c_int, addr: *const c_void, len: socklen_t) -> c_int {
    done(|| calls::bind(s, addr, len))
}

/// `STPlisten`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub extern "C" fn STPlisten(s: c_int, backlog: c_int) -> c_int {
    done(|| calls::listen(s, backlog))
}

/// `STPaccept`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPaccept(s: c_int, addr: *mut c_void, len: *mut socklen_t) -> c_int {
    call(|| calls::accept(s, addr, len, 0))
}

/// `STPaccept4`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPaccept4(
    s: c_int,
    addr: *mut c_void,
    len: *mut socklen_t,
    flags: c_int,
) -> c_int {
    call(|| calls::accept(s, addr, len, flags))
}

/// `STPconnect`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPconnect(s: c_int, addr: *const c_void, len: socklen_t) -> c_int {
    done(|| calls::connect(s, addr, len))
}

/// `STPsend`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPsend(
    s: c_int,
    buf: *const c_void,
    len: usize,
    flags: c_int,
) -> ssize_t {
    count(|| calls::send(s, buf, len, flags))
}

/// `STPrecv`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPrecv(s: c_int, buf: *mut c_void, len: usize, flags: c_int) -> ssize_t {
    count(|| calls::recv(s, buf, len, flags))
}

/// `STPwrite`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPwrite(s: c_int, buf: *const c_void, len: usize) -> ssize_t {
    count(|| calls::send(s, buf, len, 0))
}

/// `STPread`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPread(s: c_int, buf: *mut c_void, len: usize) -> ssize_t {
    count(|| calls::recv(s, buf, len, 0))
}

/// `STPwritev`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPwritev(s: c_int, parts: *const iovec, number: c_int) -> ssize_t {
    count(|| calls::writev(s, parts, number))
}

/// `STPreadv`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPreadv(s: c_int, parts: *const iovec, number: c_int) -> ssize_t {
    count(|| calls::readv(s, parts, number))
}

/// `STPclose`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub extern "C" fn STPclose(s: c_int) -> c_int {
    done(|| calls::close(s))
}

/// `STPshutdown`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub extern "C" fn STPshutdown(s: c_int, how: c_int) -> c_int {
    done(|| calls::shutdown(s, how))
}

/// `STPdup`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub extern "C" fn STPdup(s: c_int) -> c_int {
    call(|| calls::dup(s, None))
}

/// `STPdup2`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub extern "C" fn STPdup2(s: c_int, onto: c_int) -> c_int {
    call(|| calls::dup(s, Some(onto)))
}

/// `STPpoll`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPpoll(fds: *mut pollfd, number: nfds_t, timeout: c_int) -> c_int {
    call(|| calls::poll(fds, number, timeout))
}

/// `STPselect`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPselect(
    number: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    call(|| calls::select(number, read, write, except, timeout))
}

/// `STPgethostbyname`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPgethostbyname(name: *const c_char, addr: *mut c_void) -> c_int {
    done(|| calls::host_by_name(name, addr))
}

/// `STPgethostname`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPgethostname(s: c_int, addr: *mut c_void, len: *mut socklen_t) -> c_int {
    done(|| calls::host_name(s, addr, len))
}

/// `STPgetpeername`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPgetpeername(s: c_int, addr: *mut c_void, len: *mut socklen_t) -> c_int {
    done(|| calls::peer_name(s, addr, len))
}

/// `STPaddr`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPaddr(addr: *mut c_void, text: *const c_char) -> c_int {
    done(|| {
        let text = calls::text(text)?;
        calls::write(addr, &calls::from_text(&text)?)
    })
}

/// `STPgetsockopt`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPgetsockopt(
    s: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    done(|| calls::get_kernel(s, level, name, value, len))
}

/// `STPsetsockopt`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPsetsockopt(
    s: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    done(|| calls::set_kernel(s, level, name, value, len))
}

/// `STPgetopt`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPgetopt(
    s: c_int,
    option: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    done(|| calls::get(s, option, value, len))
}

/// `STPsetopt`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPsetopt(
    s: c_int,
    option: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    done(|| calls::set(s, option, value, len))
}

/// `STPgivesocket`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPgivesocket(s: c_int, taker: *const c_char, timeout: c_int) -> c_int {
    done(|| calls::give(s, taker, timeout))
}

/// `STPgiven`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub extern "C" fn STPgiven(s: c_int, timeout: c_int) -> c_int {
    done(|| calls::given(s, timeout))
}

/// `STPtakesocket`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn STPtakesocket(name: *const c_char, timeout: c_int) -> c_int {
    call(|| calls::take(name, timeout))
}

/// `STPerror`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub extern "C" fn STPerror() -> c_int {
    LAST.try_with(|last| last.try_borrow().map_or(0, |last| last.code as c_int))
        .unwrap_or(0)
}

/// `STPstrerror`(3).
// SAFETY: names that begin with STP are this library's own.
#[unsafe(no_mangle)]
pub extern "C" fn STPstrerror(code: c_int) -> *const c_char {
    let general = CODES.iter().find(|(known, _)| *known as c_int == code);
    let general = general.map_or("an unknown STP error", |(_, text)| *text);
    let told = LAST.try_with(|last| {
        let Ok(mut last) = last.try_borrow_mut() else {
            return c"".as_ptr();
        };
        if last.code as c_int == code && !last.text.is_empty() {
            return last.text.as_ptr();
        }
        last.other = CString::new(general).unwrap_or_default();
        last.other.as_ptr()
    });
    told.unwrap_or(c"".as_ptr())
}

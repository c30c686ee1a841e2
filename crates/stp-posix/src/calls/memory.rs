//! A program's memory: read and written through the kernel, so that a bad pointer is `EFAULT` and no crash.
//!
//! - Where the kernel does not allow that (a sandbox), the memory is touched directly: a null pointer is still refused.

use libc::{c_char, c_int, c_void, iovec, pid_t};

use super::fault::{Code, Fault, Outcome};

/// The longest text that any call takes.
const TEXT_BYTES_MAX: usize = 4096;
/// Pages are at least this long: a read within one touches no other.
const PAGE_BYTES: usize = 4096;

fn fault() -> Fault {
    Fault::plain(libc::EFAULT)
}

type Transfer = unsafe extern "C" fn(
    pid_t,
    *const iovec,
    libc::c_ulong,
    *const iovec,
    libc::c_ulong,
    libc::c_ulong,
) -> isize;

/// Whether the kernel did it; `None` where it does not do such things.
fn transfer(call: Transfer, ours: *mut u8, theirs: *mut c_void, len: usize) -> Option<bool> {
    let local = iovec {
        iov_base: ours.cast(),
        iov_len: len,
    };
    let remote = iovec {
        iov_base: theirs,
        iov_len: len,
    };
    // SAFETY: `ours` is valid for `len` bytes by the callers; the kernel checks `theirs`.
    let done = unsafe { call(libc::getpid(), &local, 1, &remote, 1, 0) };
    if done == len as isize {
        return Some(true);
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM | libc::EACCES) if done < 0 => None,
        _ => Some(false),
    }
}

/// Reads `out.len()` bytes at `from`.
pub(super) fn read(from: *const c_void, out: &mut [u8]) -> Outcome<()> {
    if out.is_empty() {
        return Ok(());
    }
    if from.is_null() {
        return Err(fault());
    }
    match transfer(
        libc::process_vm_readv,
        out.as_mut_ptr(),
        from.cast_mut(),
        out.len(),
    ) {
        Some(true) => Ok(()),
        Some(false) => Err(fault()),
        None => {
            // SAFETY: not null; the caller of the C function promised the rest.
            unsafe { std::ptr::copy(from.cast::<u8>(), out.as_mut_ptr(), out.len()) };
            Ok(())
        }
    }
}

/// Writes `bytes` at `to`.
pub fn write(to: *mut c_void, bytes: &[u8]) -> Outcome<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    if to.is_null() {
        return Err(fault());
    }
    match transfer(
        libc::process_vm_writev,
        bytes.as_ptr().cast_mut(),
        to,
        bytes.len(),
    ) {
        Some(true) => Ok(()),
        Some(false) => Err(fault()),
        None => {
            // SAFETY: not null; the caller of the C function promised the rest.
            unsafe { std::ptr::copy(bytes.as_ptr(), to.cast::<u8>(), bytes.len()) };
            Ok(())
        }
    }
}

/// Reads an `int`.
pub(super) fn read_int(from: *const c_void) -> Outcome<c_int> {
    let mut bytes = [0; size_of::<c_int>()];
    read(from, &mut bytes)?;
    Ok(c_int::from_ne_bytes(bytes))
}

/// Writes an `int`.
pub(super) fn write_int(to: *mut c_void, value: c_int) -> Outcome<()> {
    write(to, &value.to_ne_bytes())
}

/// Reads a text up to its end, which must be UTF-8.
pub fn text(from: *const c_char) -> Outcome<String> {
    let mut bytes = Vec::new();
    let mut at = from.cast::<u8>();
    while bytes.len() < TEXT_BYTES_MAX {
        let room = PAGE_BYTES - at as usize % PAGE_BYTES;
        let mut part = vec![0; room];
        read(at.cast(), &mut part)?;
        if let Some(end) = part.iter().position(|byte| *byte == 0) {
            bytes.extend_from_slice(&part[..end]);
            return String::from_utf8(bytes)
                .map_err(|_| Fault::new(libc::EINVAL, Code::Address, "the text is not UTF-8"));
        }
        bytes.extend_from_slice(&part);
        at = at.wrapping_add(room);
    }
    Err(Fault::new(
        libc::ENAMETOOLONG,
        Code::Address,
        format!("a text of more than {TEXT_BYTES_MAX} bytes"),
    ))
}

/// Writes `bytes` at `to` as far as the length at `len` allows, and the whole length there, as `getsockname` does.
pub(super) fn write_cut(to: *mut c_void, len: *mut libc::socklen_t, bytes: &[u8]) -> Outcome<()> {
    let room = room(len)?;
    write(to, &bytes[..bytes.len().min(room)])?;
    write_int(len.cast(), bytes.len() as c_int)
}

/// The length at `len`; negative ones are refused as the kernel refuses them.
pub(super) fn room(len: *const libc::socklen_t) -> Outcome<usize> {
    usize::try_from(read_int(len.cast())?).map_err(|_| Fault::plain(libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_memory_is_copied_and_bad_memory_is_a_fault() {
        let from = [1_u8, 2, 3, 4];
        let mut out = [0; 4];
        read(from.as_ptr().cast(), &mut out).unwrap();
        assert_eq!(out, from);
        let nowhere = std::ptr::without_provenance_mut::<c_void>(8);
        for bad in [std::ptr::null_mut(), nowhere] {
            assert_eq!(read(bad, &mut out).unwrap_err().errno, libc::EFAULT);
            assert_eq!(write(bad, &out).unwrap_err().errno, libc::EFAULT);
            assert_eq!(text(bad.cast()).unwrap_err().errno, libc::EFAULT);
        }
        // A part of it is no better than nothing of it.
        let end = usize::MAX - 1;
        let edge = std::ptr::without_provenance_mut::<c_void>(end);
        assert_eq!(write(edge, &out).unwrap_err().errno, libc::EFAULT);
    }

    #[test]
    fn texts_end_at_their_zero_and_are_not_endless() {
        assert_eq!(text(c"beta:7000".as_ptr()).unwrap(), "beta:7000");
        assert_eq!(text(c"".as_ptr()).unwrap(), "");
        let endless = vec![b'x'; 3 * TEXT_BYTES_MAX];
        let error = text(endless.as_ptr().cast()).unwrap_err();
        assert_eq!(error.errno, libc::ENAMETOOLONG);
        assert_eq!(text(c"\xff".as_ptr()).unwrap_err().errno, libc::EINVAL);
    }
}

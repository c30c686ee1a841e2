//! `libstp_preload.so`: the calls of the C library that it stands before, each handed to `stp_posix::inet`.
//!
//! - A call here only routes: to the translation if `stp run` started this process, else to the next library.
//! - Next is whatever the dynamic linker finds behind this library, so another preloaded library stays in use.
//! - Everything is looked up when the library is loaded; a call that comes earlier looks it up then.
//! - What `stp run` handed down is copied at load: programs write over their environment.
//! - Nothing here starts a thread, keeps a descriptor, or prints.

#[cfg(not(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")))]
compile_error!("libstp_preload.so is for 64-bit Linux with the GNU C library");

mod exports;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use stp_posix::inet::{Inet, Next};

/// What this process's calls are routed to.
struct Routes {
    next: Next,
    /// `None`: not under `stp run`.
    inet: Option<Inet>,
}

static ROUTES: OnceLock<Routes> = OnceLock::new();

fn routes() -> &'static Routes {
    ROUTES.get_or_init(Routes::find)
}

impl Routes {
    fn find() -> Self {
        Self {
            next: exports::next(),
            inet: Inet::from_env(variable),
        }
    }
}

const RELEASE_BYTES: usize = env!("CARGO_PKG_VERSION").len();

/// The release, where `stp run` looks for it before it has a program load this library.
#[used]
// SAFETY: plain bytes, in a section of their own that nothing else is in.
#[unsafe(link_section = ".stp.release")]
static RELEASE: [u8; RELEASE_BYTES] = *env!("CARGO_PKG_VERSION")
    .as_bytes()
    .first_chunk()
    .expect("its own length");

/// The C library calls it when the library is loaded, before the program begins.
extern "C" fn load(
    _count: c_int,
    _arguments: *const *const c_char,
    _environment: *const *const c_char,
) {
    // Mentioned, so that the linker keeps it.
    std::hint::black_box(&RELEASE);
    routes();
}

// SAFETY: the section holds functions of this signature, which the dynamic linker calls once.
#[used]
#[unsafe(link_section = ".init_array")]
static LOAD: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = load;

/// A variable of the environment. Without the standard library's lock, which another thread may hold when this process
/// forks.
fn variable(name: &str) -> Option<&'static [u8]> {
    let mut key = [0_u8; 64];
    key.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    // SAFETY: a C string; the key is longer than any name. What is found is copied at once.
    unsafe {
        let value = libc::getenv(key.as_ptr().cast());
        (!value.is_null()).then(|| CStr::from_ptr(value).to_bytes())
    }
}

/// The next library's function of this name.
///
/// # Panics
/// If there is none: the C library that this was built for has all of them.
fn behind(name: &CStr) -> *mut c_void {
    // SAFETY: a C string.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    assert!(!found.is_null(), "the C library has no {name:?}");
    found
}

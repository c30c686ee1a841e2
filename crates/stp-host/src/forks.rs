//! Forks of this process: how many there were, and whether this is a forked copy.
//!
//! - Both are known without a system call, and a fork is counted before there is a child.
//! - Counted is what the C library's `fork` does. A process made by the bare system call must not go on with anything
//!   of Rust's or of the C library's either.
#![allow(unsafe_code)]

use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

static FORKS: AtomicU32 = AtomicU32::new(0);
static GENERATION: AtomicU32 = AtomicU32::new(0);
static COUNTED: AtomicBool = AtomicBool::new(false);

/// A moment of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    forks: u32,
    generation: u32,
}

impl Moment {
    /// Now; forks are counted from the first call on. `None` if they cannot be.
    pub fn now() -> Option<Self> {
        static HANDLERS: Once = Once::new();
        HANDLERS.call_once(|| {
            // SAFETY: the functions are of the right kind, touch atomics only and live as long as the program.
            let failed = unsafe { libc::pthread_atfork(Some(before), None, Some(in_child)) };
            COUNTED.store(failed == 0, Ordering::Release);
        });
        COUNTED.load(Ordering::Acquire).then(|| Self {
            forks: FORKS.load(Ordering::Acquire),
            generation: GENERATION.load(Ordering::Acquire),
        })
    }

    /// Whether no child has been forked since.
    pub fn is_alone(&self) -> bool {
        FORKS.load(Ordering::Acquire) == self.forks
    }

    /// Whether this is still the same process.
    pub fn is_same_process(&self) -> bool {
        GENERATION.load(Ordering::Acquire) == self.generation
    }
}

extern "C" fn before() {
    FORKS.fetch_add(1, Ordering::AcqRel);
}

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::AcqRel);
}

//! Told: something that the threads of a process say once between them.
//!
//! - Whoever's call returns knows that it has been said, by this thread or another. (`stp-sim` compiles this file a
//!   second time and tries it in every order that the memory may show.)
//! - A process forked while another thread was saying it does not wait for that thread for ever.

use crate::sync::{AtomicU8, Ordering, yield_now};

const NO: u8 = 0;
const BY_SOMEBODY: u8 = 1;
const YES: u8 = 2;

/// How often a thread looks whether another has said it: that takes a system call.
const LOOKS_MAX: u32 = 10_000;

/// See the file's head.
#[derive(Debug)]
pub(super) struct Told(AtomicU8);

impl Told {
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(NO))
    }

    /// Says it, unless that was done.
    pub(super) fn once(&self, say: impl FnOnce()) {
        let mine = self
            .0
            .compare_exchange(NO, BY_SOMEBODY, Ordering::AcqRel, Ordering::Acquire);
        if mine.is_ok() {
            say();
            return self.0.store(YES, Ordering::Release);
        }
        for _ in 0..LOOKS_MAX {
            if self.0.load(Ordering::Acquire) != BY_SOMEBODY {
                return;
            }
            yield_now();
        }
    }

    /// It has to be said again.
    pub(super) fn again(&self) {
        self.0.store(NO, Ordering::Release);
    }
}

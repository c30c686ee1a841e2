//! A mailbox: what threads leave for whoever drives the engine.
//!
//! - Nothing that was left is lost, whatever the moment: it is there before the flag that says so.
//! - Looking into an empty one costs a load. (`stp-sim` compiles this file a second time and tries it in every order
//!   that the memory may show.)

use crate::sync::{AtomicBool, Mutex, Ordering, PoisonError};

/// See the file's head.
pub(super) struct Mailbox<T> {
    left: Mutex<Vec<T>>,
    any: AtomicBool,
}

impl<T> Mailbox<T> {
    pub(super) fn new() -> Self {
        Self {
            left: Mutex::new(Vec::new()),
            any: AtomicBool::new(false),
        }
    }

    /// Leaves something.
    pub(super) fn leave(&self, items: impl IntoIterator<Item = T>) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.extend(items);
        drop(left);
        self.any.store(true, Ordering::Release);
    }

    /// Takes everything.
    pub(super) fn take(&self) -> Vec<T> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        // Before the look inside: what comes behind that raises it again.
        self.any.store(false, Ordering::Relaxed);
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *left)
    }
}

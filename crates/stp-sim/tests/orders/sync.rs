//! What `crate::sync` is here: loom's atomics and locks, and a futex made of them.

pub(crate) use loom::sync::Mutex;
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
pub(crate) use loom::thread::yield_now;
pub(crate) use std::sync::PoisonError;

/// As the kernel does it: the word is looked at, and the waiter queued, under one lock.
pub(crate) mod futex {
    use std::time::Duration;

    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::sync::{Condvar, Mutex};
    use rustix::io::Errno;

    loom::lazy_static! {
        static ref QUEUE: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
    }

    pub(crate) fn wake_all(_word: &AtomicU32) {
        let _queue = QUEUE.0.lock().unwrap();
        QUEUE.1.notify_all();
    }

    pub(crate) fn wait(
        word: &AtomicU32,
        value: u32,
        _timeout: Option<Duration>,
    ) -> Result<(), Errno> {
        let queue = QUEUE.0.lock().unwrap();
        if word.load(Ordering::Relaxed) != value {
            return Err(Errno::AGAIN);
        }
        drop(QUEUE.1.wait(queue).unwrap());
        Ok(())
    }
}

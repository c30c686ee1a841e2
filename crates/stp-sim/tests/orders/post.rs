//! The mailbox: threads leave things while another drives, takes and goes to sleep.

use std::collections::BTreeSet;
use std::sync::Arc;

use loom::thread;

use crate::mailbox::Mailbox;
use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::{every_order, is_found};

trait Post: Send + Sync + 'static {
    fn empty() -> Self;
    fn leave(&self, item: u32);
    fn take(&self) -> Vec<u32>;
}

impl Post for Mailbox<u32> {
    fn empty() -> Self {
        Self::new()
    }

    fn leave(&self, item: u32) {
        Mailbox::leave(self, [item]);
    }

    fn take(&self) -> Vec<u32> {
        Mailbox::take(self)
    }
}

/// Says that something is there before it is.
struct Hasty(Mutex<Vec<u32>>, AtomicBool);

impl Post for Hasty {
    fn empty() -> Self {
        Self(Mutex::new(Vec::new()), AtomicBool::new(false))
    }

    fn leave(&self, item: u32) {
        self.1.store(true, Ordering::Release);
        self.0.lock().unwrap().push(item);
    }

    fn take(&self) -> Vec<u32> {
        match self.1.swap(false, Ordering::AcqRel) {
            true => std::mem::take(&mut *self.0.lock().unwrap()),
            false => Vec::new(),
        }
    }
}

/// Takes first, and forgets then that anything was there.
struct Forgetful(Hasty);

impl Post for Forgetful {
    fn empty() -> Self {
        Self(Hasty::empty())
    }

    fn leave(&self, item: u32) {
        self.0.0.lock().unwrap().push(item);
        self.0.1.store(true, Ordering::Release);
    }

    fn take(&self) -> Vec<u32> {
        if !self.0.1.load(Ordering::Acquire) {
            return Vec::new();
        }
        let taken = std::mem::take(&mut *self.0.0.lock().unwrap());
        self.0.1.store(false, Ordering::Release);
        taken
    }
}

/// Two threads leave something while a third takes; whoever is woken by them takes the rest.
fn left_is_taken<P: Post>() {
    let post = Arc::new(P::empty());
    let leavers: Vec<_> = (1..=2)
        .map(|item| {
            let post = Arc::clone(&post);
            thread::spawn(move || post.leave(item))
        })
        .collect();
    let mut taken = post.take();
    for leaver in leavers {
        leaver.join().unwrap();
    }
    taken.extend(post.take());
    let once: BTreeSet<u32> = taken.iter().copied().collect();
    assert_eq!((taken.len(), once.len()), (2, 2), "taken: {taken:?}");
}

#[test]
fn nothing_that_is_left_is_lost() {
    every_order(left_is_taken::<Mailbox<u32>>);
}

#[test]
fn notes_that_are_told_of_too_early_or_forgotten_too_late_are_found() {
    is_found(left_is_taken::<Hasty>);
    is_found(left_is_taken::<Forgetful>);
}

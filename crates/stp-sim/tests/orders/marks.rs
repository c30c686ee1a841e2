//! Marks: that an end is meant reaches whoever sees the end, and no other stream.

use std::sync::Arc;

use loom::thread;

use crate::cell::{CLOSE, Cell, HOLD};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::told::Told;
use crate::{every_order, is_found};

/// A place for one stream's marks.
trait Place: Send + Sync + 'static {
    fn empty() -> Self;
    fn claim(&self, owner: u64);
    fn free(&self, owner: u64);
    fn close(&self, owner: u64);
    fn closes(&self, owner: u64) -> Option<u16>;
}

impl Place for Cell {
    fn empty() -> Self {
        Self(AtomicU64::new(0))
    }

    fn claim(&self, owner: u64) {
        Cell::claim(self, owner);
    }

    fn free(&self, owner: u64) {
        Cell::free(self, owner);
    }

    fn close(&self, owner: u64) {
        self.count(owner, CLOSE);
    }

    fn closes(&self, owner: u64) -> Option<u16> {
        self.counts(owner).map(|(closes, _)| closes)
    }
}

/// Owner and count in two words: looks whose it is, then counts.
struct TwoWords(AtomicU64, AtomicU64);

impl Place for TwoWords {
    fn empty() -> Self {
        Self(AtomicU64::new(0), AtomicU64::new(0))
    }

    fn claim(&self, owner: u64) {
        self.1.store(0, Ordering::Release);
        self.0.store(owner, Ordering::Release);
    }

    fn free(&self, _owner: u64) {
        self.0.store(0, Ordering::Release);
    }

    fn close(&self, owner: u64) {
        if self.0.load(Ordering::Acquire) == owner {
            self.1.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn closes(&self, owner: u64) -> Option<u16> {
        let ours = self.0.load(Ordering::Acquire) == owner;
        ours.then(|| self.1.load(Ordering::Acquire) as u16)
    }
}

/// A child ends its stream while the engine forgets that, and gives its place to the next one.
fn marks_are_one_streams<P: Place>() {
    let place = Arc::new(P::empty());
    place.claim(1);
    let child = thread::spawn({
        let place = Arc::clone(&place);
        move || place.close(1)
    });
    place.free(1);
    place.claim(2);
    child.join().unwrap();
    assert_eq!(place.closes(2), Some(0), "another stream's mark");
}

#[test]
fn a_late_mark_is_nobody_elses() {
    every_order(marks_are_one_streams::<Cell>);
}

#[test]
fn a_mark_that_counts_for_the_next_stream_is_found() {
    is_found(marks_are_one_streams::<TwoWords>);
}

/// Two processes mark, a third joins them, the engine decides: nothing of it gets lost.
#[test]
fn marks_and_verdict_in_one_word_do_not_lose_each_other() {
    every_order(|| {
        let cell = Arc::new(Cell::empty());
        cell.claim(7);
        let others: Vec<_> = [CLOSE, HOLD]
            .into_iter()
            .map(|one| {
                let cell = Arc::clone(&cell);
                thread::spawn(move || cell.count(7, one))
            })
            .collect();
        cell.decide(7, 3);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!((cell.counts(7), cell.ending(7)), (Some((1, 1)), Some(3)));
    });
}

/// Two threads end one stream: whichever is first at the socket, the mark is there.
fn mark_is_there(leave: fn(&Told, &AtomicBool, &AtomicU32)) {
    let shared = Arc::new((Told::new(), AtomicBool::new(false), AtomicU32::new(0)));
    let other = thread::spawn({
        let shared = Arc::clone(&shared);
        move || {
            leave(&shared.0, &shared.1, &shared.2);
            assert_eq!(
                shared.2.load(Ordering::Relaxed),
                1,
                "it ends without a mark"
            );
        }
    });
    leave(&shared.0, &shared.1, &shared.2);
    assert_eq!(
        shared.2.load(Ordering::Relaxed),
        1,
        "it ends without a mark"
    );
    other.join().unwrap();
}

#[test]
fn whoever_ends_a_stream_ends_it_marked() {
    every_order(|| {
        mark_is_there(|told, _, marks| {
            told.once(|| {
                marks.fetch_add(1, Ordering::Relaxed);
            });
        });
    });
}

#[test]
fn an_end_before_another_threads_mark_is_found() {
    is_found(|| {
        mark_is_there(|_, left, marks| {
            if !left.swap(true, Ordering::AcqRel) {
                marks.fetch_add(1, Ordering::Relaxed);
            }
        });
    });
}

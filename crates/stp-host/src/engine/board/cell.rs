//! A cell of the board: one stream's marks and its verdict, in one word.
//!
//! - The word says whose it is, so that nothing that is meant for one stream ever counts for the next one in its
//!   cell, however late it comes. (`stp-sim` compiles this file a second time and tries it in every order that the
//!   memory may show.)
//! - Zeroes are a free cell.

use crate::sync::{AtomicU64, Ordering};

/// It belongs to a stream.
const USED: u64 = 1 << 63;
/// Whose it is: these bits of the token, above those that chose the cell.
const OWNER_SHIFT: u32 = 40;
const OWNER_BITS: u64 = 0x7f_ffff;
/// Where the verdict stands, eight bits of it.
const ENDING_SHIFT: u32 = 32;
/// One clean end; counted in the lowest 16 bits.
pub(super) const CLOSE: u64 = 1;
/// One more process whose clean end is needed; counted in the next 16 bits.
pub(super) const HOLD: u64 = 1 << 16;
const COUNT: u64 = 0xffff;

/// See the file's head.
#[repr(transparent)]
pub(super) struct Cell(pub(super) AtomicU64);

/// What a used cell holds while nothing has been said of its stream.
fn fresh(owner: u64) -> u64 {
    USED | (owner & OWNER_BITS) << OWNER_SHIFT
}

fn is_of(state: u64, owner: u64) -> bool {
    let head = USED | OWNER_BITS << OWNER_SHIFT;
    state & head == fresh(owner)
}

impl Cell {
    /// Takes the cell, unless another stream has it.
    pub(super) fn claim(&self, owner: u64) {
        let _ = self
            .0
            .compare_exchange(0, fresh(owner), Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Gives it back.
    pub(super) fn free(&self, owner: u64) {
        self.change(owner, |_| Some(0));
    }

    /// Counts one [`CLOSE`] or [`HOLD`].
    pub(super) fn count(&self, owner: u64, one: u64) {
        self.change(owner, |state| {
            // A count that is full stays so; it would take 65535 processes on one stream.
            let full = (state / one) & COUNT == COUNT;
            (!full).then_some(state + one)
        });
    }

    /// Notes the verdict; the first one stays.
    pub(super) fn decide(&self, owner: u64, ending: u8) {
        self.change(owner, |state| {
            let open = (state >> ENDING_SHIFT) & 0xff == 0;
            open.then_some(state | u64::from(ending) << ENDING_SHIFT)
        });
    }

    /// Clean ends and holds; `None` if the cell is not the stream's.
    pub(super) fn counts(&self, owner: u64) -> Option<(u16, u16)> {
        let state = self.of(owner)?;
        Some(((state & COUNT) as u16, ((state / HOLD) & COUNT) as u16))
    }

    /// The verdict, 0 while there is none; `None` if the cell is not the stream's.
    pub(super) fn ending(&self, owner: u64) -> Option<u8> {
        Some((self.of(owner)? >> ENDING_SHIFT) as u8)
    }

    fn of(&self, owner: u64) -> Option<u64> {
        let state = self.0.load(Ordering::Acquire);
        is_of(state, owner).then_some(state)
    }

    fn change(&self, owner: u64, next: impl Fn(u64) -> Option<u64>) {
        let next = |state| is_of(state, owner).then(|| next(state)).flatten();
        let _ = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }
}

//! The board: marks and verdicts of streams in memory that forked children share with their engine's process.
//!
//! - A cell belongs to one stream at a time; streams take cells in the order of their tokens. A stream whose cell
//!   is still another's has none: its marks and verdict are then known in the engine's own process only.
//! - Everything is an atomic in shared memory, so a child may use it after a `fork` in the middle of anything.
//! - Pages that no stream has used cost nothing.

mod cell;

use std::fmt;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use self::cell::{CLOSE, Cell, HOLD};
use crate::control::StreamToken;

/// Streams that have a cell at the same time, if their tokens follow each other.
const CELLS: usize = 1 << 16;
const BYTES: usize = CELLS * size_of::<Cell>();

/// See the file's head.
pub(super) struct Board {
    cells: NonNull<Cell>,
}

// SAFETY: the memory holds atomics only, and is unmapped when nobody has the board any more.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Board")
    }
}

impl Board {
    /// An empty board.
    pub(super) fn new() -> std::io::Result<Self> {
        // SAFETY: the kernel chooses the place; nothing of ours is there.
        let place = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
            )?
        };
        let cells = NonNull::new(place.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { cells })
    }

    /// A stream's cell, and what the cell knows it by.
    fn cell(&self, token: StreamToken) -> (&Cell, u64) {
        let index = token.0 as usize % CELLS;
        // SAFETY: the index is below the number of cells, the mapping lives as long as the board, is aligned to
        // a page, and zeroes are a valid cell.
        let cell = unsafe { self.cells.add(index).as_ref() };
        (cell, token.0 / CELLS as u64)
    }

    /// Takes the token's cell, unless another stream has it.
    pub(super) fn claim(&self, token: StreamToken) {
        let (cell, owner) = self.cell(token);
        cell.claim(owner);
    }

    /// Gives it back.
    pub(super) fn free(&self, token: StreamToken) {
        let (cell, owner) = self.cell(token);
        cell.free(owner);
    }

    /// One process of those that hold the stream has ended it in order.
    pub(super) fn close(&self, token: StreamToken) {
        let (cell, owner) = self.cell(token);
        cell.count(owner, CLOSE);
    }

    /// One more process goes on with the stream: its clean end is needed as well.
    pub(super) fn hold(&self, token: StreamToken) {
        let (cell, owner) = self.cell(token);
        cell.count(owner, HOLD);
    }

    /// Clean ends and holds; `None` without a cell.
    pub(super) fn counts(&self, token: StreamToken) -> Option<(u16, u16)> {
        let (cell, owner) = self.cell(token);
        cell.counts(owner)
    }

    /// Notes the verdict; the first one stays.
    pub(super) fn decide(&self, token: StreamToken, ending: u8) {
        let (cell, owner) = self.cell(token);
        cell.decide(owner, ending);
    }

    /// The verdict, 0 while there is none; `None` without a cell.
    pub(super) fn ending(&self, token: StreamToken) -> Option<u8> {
        let (cell, owner) = self.cell(token);
        cell.ending(owner)
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; no reference into it outlives the board.
        let _ = unsafe { munmap(self.cells.as_ptr().cast(), BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_one_streams_and_its_counts_do_not_mix() {
        let board = Board::new().unwrap();
        let (first, second) = (StreamToken(7), StreamToken(7 + CELLS as u64));
        assert_eq!(board.counts(first), None);
        board.claim(first);
        board.claim(second);
        assert_eq!(board.counts(second), None);
        board.close(first);
        board.close(second);
        board.hold(first);
        board.hold(first);
        assert_eq!(board.counts(first), Some((1, 2)));
        board.decide(first, 3);
        board.decide(first, 1);
        assert_eq!(board.ending(first), Some(3));
        assert_eq!(board.counts(first), Some((1, 2)));
        board.free(first);
        board.claim(second);
        assert_eq!(
            (board.counts(second), board.ending(second)),
            (Some((0, 0)), Some(0))
        );
        assert_eq!(board.counts(first), None);
    }

    #[test]
    fn a_full_count_stays_full() {
        let board = Board::new().unwrap();
        let token = StreamToken(1);
        board.claim(token);
        for _ in 0..70_000 {
            board.close(token);
        }
        assert_eq!(board.counts(token), Some((u16::MAX, 0)));
    }
}

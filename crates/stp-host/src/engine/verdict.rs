//! How streams end: what the library tells the engine before it closes, and what it learns after.
//!
//! - The mark is set before the descriptor is closed, so an engine that sees the end of a stream sees
//!   the mark too, or the program died.
//! - A stream that nobody knows any more counts as reset: a crash never looks like a clean end.
//! - Where several processes hold a stream after a `fork`, each that used it must end it in order.
//! - Ended streams are remembered, the oldest forgotten first beyond [`ENDED_MAX`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use stp_core::ResetReason;

use super::board::Board;
use crate::control::StreamToken;

/// Ended streams whose verdict can still be asked for.
pub(super) const ENDED_MAX: usize = 16_384;

/// How the far side of a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Still open, or ended on this side only.
    Open,
    /// The peer said that it will send no more, and all it sent has been handed over.
    Clean,
    /// The stream broke.
    Reset(ResetReason),
}

impl Ending {
    /// As the board has it: 0 is open, 1 clean, above that a reason's number and one.
    fn number(self) -> u8 {
        match self {
            Self::Open => 0,
            Self::Clean => 1,
            Self::Reset(reason) => (reason as u64).saturating_add(1) as u8,
        }
    }

    fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Open,
            1 => Self::Clean,
            reason => Self::Reset(ResetReason::from_number(u64::from(reason) - 1)),
        }
    }
}

#[derive(Debug)]
struct Record {
    /// Clean ends that were announced, and processes beyond the first that must announce one; those that are
    /// on the board are not counted here.
    closes: u16,
    holds: u16,
    ending: Ending,
    /// The engine's end is closed: nothing changes any more.
    ended: bool,
    /// The library will not ask again.
    retired: bool,
}

/// The table of marks and verdicts that an engine shares with its handles.
#[derive(Debug, Default)]
pub struct Verdicts {
    table: Mutex<Table>,
    /// What forked children see; a simulation has none.
    board: Option<Board>,
}

#[derive(Debug, Default)]
struct Table {
    records: HashMap<StreamToken, Record>,
    ended: VecDeque<StreamToken>,
}

impl Verdicts {
    /// One that forked children can use. Without the memory for it they cannot, which is all.
    pub(super) fn shared() -> Self {
        Self {
            table: Mutex::default(),
            board: Board::new().ok(),
        }
    }

    /// Notes a new stream: before the program can learn its token, so that no mark comes too early. What was
    /// noted already stays.
    pub(super) fn open(&self, token: StreamToken) {
        let record = Record {
            closes: 0,
            holds: 0,
            ending: Ending::Open,
            ended: false,
            retired: false,
        };
        self.table().records.entry(token).or_insert_with(|| {
            if let Some(board) = &self.board {
                board.claim(token);
            }
            record
        });
    }

    /// Takes a note back: the stream did not come about.
    pub(super) fn cancel(&self, token: StreamToken) {
        self.forget(&mut self.table(), token);
    }

    fn forget(&self, table: &mut Table, token: StreamToken) {
        if table.records.remove(&token).is_some()
            && let Some(board) = &self.board
        {
            board.free(token);
        }
    }

    /// The library says: the coming end of this stream is meant, as far as one process is concerned.
    pub fn mark_clean(&self, token: StreamToken) {
        if let Some(record) = self.table().records.get_mut(&token) {
            match &self.board {
                Some(board) if board.counts(token).is_some() => board.close(token),
                _ => record.closes = record.closes.saturating_add(1),
            }
        }
    }

    /// One more process goes on with the stream: its clean end is needed as well.
    pub fn hold(&self, token: StreamToken) {
        if let Some(record) = self.table().records.get_mut(&token) {
            match &self.board {
                Some(board) if board.counts(token).is_some() => board.hold(token),
                _ => record.holds = record.holds.saturating_add(1),
            }
        }
    }

    /// Whether everyone who must has said that the end is meant.
    pub(super) fn is_marked(&self, token: StreamToken) -> bool {
        let table = self.table();
        let Some(record) = table.records.get(&token) else {
            return false;
        };
        let board = self.board.as_ref();
        let (closes, holds) = board
            .and_then(|board| board.counts(token))
            .unwrap_or((record.closes, record.holds));
        closes > holds
    }

    /// The calls of a forked child, which must not wait for a lock that the other process holds.
    pub(super) fn in_child(&self) -> InChild<'_> {
        InChild(self.board.as_ref())
    }

    /// What became of the stream.
    pub fn ending(&self, token: StreamToken) -> Ending {
        let table = self.table();
        let known = table.records.get(&token).map(|record| record.ending);
        known.unwrap_or(Ending::Reset(ResetReason::EngineStopped))
    }

    /// The library has closed the stream for good and will not ask again.
    pub(super) fn retire(&self, token: StreamToken) {
        let mut table = self.table();
        if let Some(record) = table.records.get_mut(&token) {
            record.retired = true;
            if record.ended {
                self.forget(&mut table, token);
            }
        }
    }

    /// The far side has spoken. What it finished in order stays so, whatever happens to the rest.
    pub(super) fn decide(&self, token: StreamToken, ending: Ending) {
        if let Some(record) = self.table().records.get_mut(&token)
            && record.ending == Ending::Open
        {
            record.ending = ending;
            if let Some(board) = &self.board {
                board.decide(token, ending.number());
            }
        }
    }

    /// The engine closes its end.
    pub(super) fn end(&self, token: StreamToken) {
        let mut table = self.table();
        let Some(record) = table.records.get_mut(&token) else {
            return;
        };
        if record.retired {
            self.forget(&mut table, token);
            return;
        }
        record.ended = true;
        table.ended.push_back(token);
        // Retired streams leave their token in the queue; it is dropped here in its turn.
        while table.ended.len() > ENDED_MAX {
            if let Some(oldest) = table.ended.pop_front() {
                self.forget(&mut table, oldest);
            }
        }
    }

    /// Whether anything is known of a stream.
    pub(super) fn is_known(&self, token: StreamToken) -> bool {
        self.table().records.contains_key(&token)
    }

    /// A stream changes its owner and its token. The old owner's mark goes along only if its bytes have
    /// `ended`: otherwise it would make the new owner's death look like an end in order.
    pub(super) fn hand_over(&self, from: StreamToken, to: StreamToken, ended: bool) {
        let marked = ended && self.is_marked(from);
        let Some((ending, over)) = self
            .table()
            .records
            .get(&from)
            .map(|record| (record.ending, record.ended))
        else {
            return;
        };
        self.open(to);
        self.decide(to, ending);
        if marked {
            self.mark_clean(to);
        }
        if over {
            self.end(to);
        }
        self.cancel(from);
    }

    /// The engine stops: whatever is open is broken.
    pub(super) fn end_all(&self, reason: ResetReason) {
        for (token, record) in &mut self.table().records {
            if !record.ended && record.ending == Ending::Open {
                record.ending = Ending::Reset(reason);
                if let Some(board) = &self.board {
                    board.decide(*token, record.ending.number());
                }
            }
            record.ended = true;
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every update is a single assignment: a panic elsewhere leaves nothing half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a forked child can do about its parent's streams.
pub(super) struct InChild<'a>(Option<&'a Board>);

impl InChild<'_> {
    /// As [`Verdicts::mark_clean`].
    pub(super) fn mark_clean(&self, token: StreamToken) {
        if let Some(board) = self.0 {
            board.close(token);
        }
    }

    /// As [`Verdicts::hold`].
    pub(super) fn hold(&self, token: StreamToken) {
        if let Some(board) = self.0 {
            board.hold(token);
        }
    }

    /// As [`Verdicts::ending`].
    pub(super) fn ending(&self, token: StreamToken) -> Ending {
        let known = self.0.and_then(|board| board.ending(token));
        known.map_or(
            Ending::Reset(ResetReason::EngineStopped),
            Ending::from_number,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_that_used_a_stream_must_end_it() {
        for verdicts in [Verdicts::default(), Verdicts::shared()] {
            let token = StreamToken(9);
            verdicts.open(token);
            verdicts.mark_clean(token);
            assert!(verdicts.is_marked(token));
            verdicts.hold(token);
            assert!(!verdicts.is_marked(token));
            verdicts.mark_clean(token);
            assert!(verdicts.is_marked(token));
        }
    }

    #[test]
    fn a_child_sees_verdicts_and_leaves_marks() {
        let verdicts = Verdicts::shared();
        let (token, unknown) = (StreamToken(9), StreamToken(10));
        verdicts.open(token);
        let child = verdicts.in_child();
        assert_eq!(child.ending(token), Ending::Open);
        child.mark_clean(token);
        assert!(verdicts.is_marked(token));
        verdicts.decide(token, Ending::Reset(ResetReason::ProgramDied));
        let died = Ending::Reset(ResetReason::ProgramDied);
        assert_eq!((child.ending(token), verdicts.ending(token)), (died, died));
        let stopped = Ending::Reset(ResetReason::EngineStopped);
        assert_eq!(child.ending(unknown), stopped);
        verdicts.end(token);
        verdicts.retire(token);
        assert_eq!(child.ending(token), stopped);
    }

    const RESET: Ending = Ending::Reset(ResetReason::PeerDied);

    #[test]
    fn a_clean_end_stays_clean_and_an_unknown_stream_never_is() {
        let verdicts = Verdicts::default();
        let (clean, open, unknown) = (StreamToken(1), StreamToken(2), StreamToken(3));
        verdicts.open(clean);
        verdicts.open(open);
        verdicts.decide(clean, Ending::Clean);
        verdicts.decide(clean, RESET);
        verdicts.end(clean);
        assert_eq!(verdicts.ending(clean), Ending::Clean);
        assert_eq!(verdicts.ending(open), Ending::Open);
        verdicts.end_all(ResetReason::EngineStopped);
        assert_eq!(verdicts.ending(clean), Ending::Clean);
        let stopped = Ending::Reset(ResetReason::EngineStopped);
        assert_eq!(verdicts.ending(open), stopped);
        assert_eq!(verdicts.ending(unknown), stopped);
    }

    #[test]
    fn ended_streams_are_remembered_within_bounds() {
        let verdicts = Verdicts::default();
        for token in 0..2 * ENDED_MAX as u64 {
            let token = StreamToken(token);
            verdicts.open(token);
            verdicts.decide(token, Ending::Clean);
            verdicts.end(token);
        }
        assert_eq!(verdicts.table().records.len(), ENDED_MAX);
        let newest = StreamToken(2 * ENDED_MAX as u64 - 1);
        assert_eq!(verdicts.ending(newest), Ending::Clean);
        verdicts.retire(newest);
        assert_eq!(verdicts.table().records.len(), ENDED_MAX - 1);
    }
}

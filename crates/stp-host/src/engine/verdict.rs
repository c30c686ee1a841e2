//! How streams end: what the library tells the engine before it closes, and what it learns after.
//!
//! - The mark is set before the descriptor is closed, so an engine that sees the end of a stream sees
//!   the mark too, or the program died.
//! - A stream that nobody knows any more counts as reset: a crash never looks like a clean end.
//! - Ended streams are remembered, the oldest forgotten first beyond [`ENDED_MAX`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use stp_core::ResetReason;

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

#[derive(Debug)]
struct Record {
    clean_mark: bool,
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
}

#[derive(Debug, Default)]
struct Table {
    records: HashMap<StreamToken, Record>,
    ended: VecDeque<StreamToken>,
}

impl Verdicts {
    /// Notes a new stream: before the program can learn its token, so that no mark comes too early. What was
    /// noted already stays.
    pub(super) fn open(&self, token: StreamToken) {
        let record = Record {
            clean_mark: false,
            ending: Ending::Open,
            ended: false,
            retired: false,
        };
        self.table().records.entry(token).or_insert(record);
    }

    /// Takes a note back: the stream did not come about.
    pub(super) fn cancel(&self, token: StreamToken) {
        self.table().records.remove(&token);
    }

    /// The library says: the coming end of this stream is meant.
    pub fn mark_clean(&self, token: StreamToken) {
        if let Some(record) = self.table().records.get_mut(&token) {
            record.clean_mark = true;
        }
    }

    /// Whether the library has said so.
    pub(super) fn is_marked(&self, token: StreamToken) -> bool {
        let table = self.table();
        table.records.get(&token).is_some_and(|r| r.clean_mark)
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
                table.records.remove(&token);
            }
        }
    }

    /// The far side has spoken. What it finished in order stays so, whatever happens to the rest.
    pub(super) fn decide(&self, token: StreamToken, ending: Ending) {
        if let Some(record) = self.table().records.get_mut(&token)
            && record.ending == Ending::Open
        {
            record.ending = ending;
        }
    }

    /// The engine closes its end.
    pub(super) fn end(&self, token: StreamToken) {
        let mut table = self.table();
        let Some(record) = table.records.get_mut(&token) else {
            return;
        };
        if record.retired {
            table.records.remove(&token);
            return;
        }
        record.ended = true;
        table.ended.push_back(token);
        // Retired streams leave their token in the queue; it is dropped here in its turn.
        while table.ended.len() > ENDED_MAX {
            if let Some(oldest) = table.ended.pop_front() {
                table.records.remove(&oldest);
            }
        }
    }

    /// The engine stops: whatever is open is broken.
    pub(super) fn end_all(&self, reason: ResetReason) {
        for record in self.table().records.values_mut() {
            if !record.ended && record.ending == Ending::Open {
                record.ending = Ending::Reset(reason);
            }
            record.ended = true;
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every update is a single assignment: a panic elsewhere leaves nothing half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

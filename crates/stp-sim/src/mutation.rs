//! Mutations: one thing broken on purpose, to show that a checker notices.
//!
//! - Each breaks the engine's input, its output on the way to the checker, or the world's rules for it; a run without
//!   a finding under a mutation is a checker that cannot fail.

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The engine hands a program a byte that the other did not write.
    WrongByte,
    /// The engine swallows bytes.
    LostBytes,
    /// A reset is told as a clean end.
    FalseEnd,
    /// A reset that nothing excuses.
    BareReset,
    /// A connection is handed over twice.
    TwiceAccepted,
    /// Bytes are handed over after the end.
    DataAfterEnd,
    /// A write goes to the neighbour's seat.
    ForeignWrite,
    /// Locks are granted to everybody.
    LockForAll,
    /// A record is written a second time as it was.
    RecordAgain,
    /// A segment changes between its first and a later write.
    SegmentChanged,
    /// A segment is written into another slot.
    WrongSlot,
    /// Acknowledgements are not heeded by the monitor.
    UnheededAcks,
    /// Writes are reported and never land, without end.
    DeadStorage,
    /// The engine steps on and on.
    Spin,
    /// The engine may hold nothing.
    NoRoom,
    /// A program's socket is never closed: its stream stays.
    LeakedStream,
    /// A row of the socket table stays in use.
    LeakedRow,
    /// A node does not say that it has left.
    SilentLeave,
    /// A node that dies does not come back.
    GoneForGood,
    /// Transfers are reported never.
    LostCompletion,
    /// A stream is given without the last byte that its giver has not read.
    GiftLosesUnread,
    /// A stream is given with what its giver wrote and was not sent, twice.
    GiftDoublesUnsent,
    /// A giver is told that it has its stream again when it was taken.
    GiftStaysToo,
    /// A giver is told nothing.
    GiftUnsettled,
    /// A byte is handed over as urgent that is none.
    FalseMark,
    /// Urgent bytes come as common ones.
    LostMark,
    /// A byte that was kept for a reader by the lane is lost.
    LaneLosesKept,
    /// Bytes go by the lane while earlier ones wait in the socket.
    LanePastOrder,
    /// A writer that waits for room is not told of it.
    SilentBell,
    /// In memory, a segment's number is stored before what it belongs to.
    NumberFirst,
    /// What is written for one link alone is of the session before.
    HotOldSession,
    /// A segment that was taken in for one link alone is taken in again.
    HotTwice,
    /// What is written for one link alone lands in another slot.
    HotWrongSlot,
}

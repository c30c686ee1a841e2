//! This node's seat record: heartbeat, doorbell, acknowledgements for idle links.
//!
//! - One write at a time, to the two copies in turn, each with a higher version.
//! - The heartbeat has its own timer; a change that peers wait for (`ring`) goes out at once.
//! - A failed write is tried again; its copy is written first, so that the other stays whole.

use crate::claim::Claimed;
use crate::time::Time;
use core::time::Duration;

/// Pause after a failed write.
const FAULT_PAUSE: Duration = Duration::from_millis(50);

/// This program's version as it stands in the seat record.
pub(crate) fn engine_version() -> u32 {
    let mut parts = env!("CARGO_PKG_VERSION")
        .split('.')
        .map(|part| part.parse().unwrap_or(0u32));
    let mut part = || parts.next().unwrap_or(0) & 0xff;
    part() << 16 | part() << 8 | part()
}

/// What is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeatWrite {
    pub(crate) op: u64,
    pub(crate) copy: u8,
    pub(crate) begun: Time,
    /// Changes up to this number are in it.
    pub(crate) change: u64,
}

#[derive(Debug)]
pub(crate) struct OwnSeat {
    pub(crate) record_version: u64,
    pub(crate) heartbeat: u64,
    next_copy: u8,
    pub(crate) writing: Option<SeatWrite>,
    /// When the next heartbeat is due.
    beat_at: Time,
    /// After a failed write: when the next may be tried.
    not_before: Time,
    /// Counts changes that peers wait for.
    change: u64,
    /// The last of them that stands on the volume.
    pub(crate) published: u64,
    pub(crate) written_at: Time,
    pub(crate) stalled: bool,
}

impl OwnSeat {
    pub(crate) fn new(claimed: Claimed, now: Time) -> Self {
        Self {
            record_version: claimed.record_version,
            heartbeat: 0,
            next_copy: 1 - claimed.copy,
            writing: None,
            beat_at: now,
            not_before: now,
            change: 1,
            published: 0,
            written_at: now,
            stalled: false,
        }
    }

    /// Something changed that peers wait for. The number by which [`OwnSeat::published`] tells that it
    /// stands on the volume.
    pub(crate) fn ring(&mut self) -> u64 {
        self.change += 1;
        self.change
    }

    /// When the record must be written, if no write is under way.
    pub(crate) fn due(&self) -> Option<Time> {
        if self.writing.is_some() {
            return None;
        }
        let wanted = if self.change > self.published {
            Time::ZERO
        } else {
            self.beat_at
        };
        Some(wanted.max(self.not_before))
    }

    /// Begins a write; its version, heartbeat and copy.
    pub(crate) fn begin(&mut self, now: Time, op: u64) -> u8 {
        self.record_version += 1;
        self.heartbeat += 1;
        let copy = self.next_copy;
        self.writing = Some(SeatWrite {
            op,
            copy,
            begun: now,
            change: self.change,
        });
        copy
    }

    /// The write has ended. Whether it succeeded after a stall.
    pub(crate) fn handle_written(&mut self, now: Time, good: bool, heartbeat: Duration) -> bool {
        let Some(write) = self.writing.take() else {
            return false;
        };
        if !good {
            self.not_before = now + FAULT_PAUSE;
            return false;
        }
        self.next_copy = 1 - write.copy;
        self.published = write.change;
        self.written_at = now;
        self.beat_at = now + heartbeat;
        core::mem::replace(&mut self.stalled, false)
    }

    /// Whether the write under way has hung for `limit`. A node that did not try is not stalled.
    pub(crate) fn hangs(&self, now: Time, limit: Duration) -> bool {
        self.writing
            .is_some_and(|write| now.since(write.begun) >= limit)
    }

    /// How long ago the node's last write succeeded.
    pub(crate) fn silent_for(&self, now: Time) -> Duration {
        now.since(self.written_at)
    }
}

//! This node's socket table: which row belongs to what, and what must be written.
//!
//! - Rows are taken when a socket first needs the volume and freed when it ends.
//! - Written lazily: all units that changed, as one run, at most once per interval.
//! - A unit is never written over its newest good copy: one that is torn or fails leaves that one.

use crate::event::StreamId;
use crate::time::Time;
use alloc::vec::Vec;
use core::time::Duration;
use stp_format::geometry::SCBS_PER_UNIT;

/// Between two writes of the table.
pub(crate) const TABLE_INTERVAL: Duration = Duration::from_millis(1000);
/// Units in one write at the most.
pub(crate) const TABLE_RUN_UNITS: usize = 64;

/// What a row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    Free,
    Listener(u16),
    Stream(StreamId),
}

#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Row>,
    free: Vec<u32>,
    /// Per unit: changed since it was last written.
    dirty: Vec<bool>,
    /// Per unit: its version and the copy that holds the last one that was written.
    versions: Vec<(u64, u8)>,
    pub(crate) writing: Option<u64>,
    due: Time,
}

impl Table {
    pub(crate) fn new(rows: usize) -> Self {
        let units = rows / SCBS_PER_UNIT;
        Self {
            rows: alloc::vec![Row::Free; units * SCBS_PER_UNIT],
            free: (0..(units * SCBS_PER_UNIT) as u32).rev().collect(),
            dirty: alloc::vec![false; units],
            versions: alloc::vec![(0, 1); units],
            writing: None,
            due: Time::ZERO,
        }
    }

    pub(crate) fn take(&mut self, row: Row) -> Option<u32> {
        let place = self.free.pop()?;
        self.rows[place as usize] = row;
        self.touch(place);
        Some(place)
    }

    pub(crate) fn set(&mut self, place: u32, row: Row) {
        self.rows[place as usize] = row;
        self.touch(place);
    }

    pub(crate) fn free(&mut self, place: u32) {
        self.rows[place as usize] = Row::Free;
        self.free.push(place);
        self.touch(place);
    }

    /// A row's content changed.
    pub(crate) fn touch(&mut self, place: u32) {
        self.dirty[place as usize / SCBS_PER_UNIT] = true;
    }

    pub(crate) fn rows_of(&self, unit: usize) -> &[Row] {
        &self.rows[unit * SCBS_PER_UNIT..(unit + 1) * SCBS_PER_UNIT]
    }

    /// When the next write is due; `None` while nothing changed or a write is under way.
    pub(crate) fn due(&self) -> Option<Time> {
        (self.writing.is_none() && self.dirty.contains(&true)).then_some(self.due)
    }

    /// Begins a write: a run of units from the first changed one on, all to the copy that is the older one of each.
    /// The run's first unit, copy, and the version of each unit. Clean units in between are written along.
    pub(crate) fn begin(&mut self, op: u64, now: Time) -> Option<(usize, u8, Vec<u64>)> {
        let first = self.dirty.iter().position(|d| *d)?;
        let held_by = self.versions[first].1;
        let end = (first + TABLE_RUN_UNITS).min(self.dirty.len());
        let alike = self.versions[first..end].iter();
        let end = first + alike.take_while(|(_, held)| *held == held_by).count();
        let last = (first..end).rev().find(|unit| self.dirty[*unit])?;
        let versions = (first..=last)
            .map(|unit| {
                self.dirty[unit] = false;
                let (version, _) = &mut self.versions[unit];
                *version += 1;
                *version
            })
            .collect();
        self.writing = Some(op);
        self.due = now + TABLE_INTERVAL;
        // The rest of a table that changed all over follows at once.
        if self.dirty[last..].contains(&true) {
            self.due = now;
        }
        Some((first, 1 - held_by, versions))
    }

    /// The write has ended; a failed run is written again.
    pub(crate) fn handle_written(&mut self, first: usize, units: usize, good: bool) {
        self.writing = None;
        if !good {
            self.dirty[first..first + units].fill(true);
            return;
        }
        for (_, held_by) in &mut self.versions[first..first + units] {
            *held_by = 1 - *held_by;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNITS: usize = 4;

    fn write(table: &mut Table, good: bool) -> (usize, u8, usize) {
        let (first, copy, versions) = table.begin(1, Time::ZERO).unwrap();
        table.handle_written(first, versions.len(), good);
        (first, copy, versions.len())
    }

    #[test]
    fn the_newest_good_copy_is_never_written_over() {
        let mut table = Table::new(UNITS * SCBS_PER_UNIT);
        let place = |unit: usize| (unit * SCBS_PER_UNIT) as u32;
        table.touch(place(1));
        assert_eq!(write(&mut table, true), (1, 0, 1));
        // Unit 1 stands in copy 0 now, its neighbours do not.
        table.touch(place(0));
        table.touch(place(1));
        table.touch(place(2));
        assert_eq!(write(&mut table, true), (0, 0, 1));
        assert_eq!(write(&mut table, true), (1, 1, 1));
        assert_eq!(write(&mut table, true), (2, 0, 1));
        assert_eq!(table.due(), None);
    }

    #[test]
    fn a_failed_write_is_tried_again_on_the_same_copy() {
        let mut table = Table::new(UNITS * SCBS_PER_UNIT);
        table.touch(0);
        assert_eq!(write(&mut table, false), (0, 0, 1));
        assert_eq!(write(&mut table, false), (0, 0, 1));
        assert_eq!(write(&mut table, true), (0, 0, 1));
        table.touch(0);
        assert_eq!(write(&mut table, true), (0, 1, 1));
    }
}

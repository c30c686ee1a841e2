//! A medium around a medium that counts and reports.
//!
//! - Every operation passes unchanged, in the same order, under the same id.
//! - Counters only rise; they may be read from any thread.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stp_format::{Geometry, Place, SeatId, UNIT_BYTES};

use crate::{Completion, Medium, Op, OpId, SeatLock};

/// A place without its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlaceKind {
    /// Either copy of the superblock.
    Superblock,
    /// A run of seat records.
    Directory,
    /// One seat record.
    Seat,
    /// A socket table.
    Table,
    /// A link ring.
    Slot,
}

impl PlaceKind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Superblock,
        Self::Directory,
        Self::Seat,
        Self::Table,
        Self::Slot,
    ];

    /// The kind of a place.
    pub fn of(place: &Place) -> Self {
        match place {
            Place::Superblock { .. } => Self::Superblock,
            Place::Directory { .. } => Self::Directory,
            Place::Seat { .. } => Self::Seat,
            Place::Table { .. } => Self::Table,
            Place::Slot { .. } => Self::Slot,
        }
    }
}

/// What happened so far at places of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Reads that completed, well or not.
    pub reads: u64,
    /// Bytes of those that completed well.
    pub read_bytes: u64,
    /// Writes that completed, well or not.
    pub writes: u64,
    /// Bytes of those that completed well.
    pub write_bytes: u64,
    /// Operations of either sort that failed.
    pub errors: u64,
}

#[derive(Default)]
struct Cells {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    write_bytes: AtomicU64,
    errors: AtomicU64,
}

/// The counters of a [`Trace`]; clones are the same ones.
#[derive(Clone, Default)]
pub struct Counters(Arc<[Cells; 5]>);

impl Counters {
    /// The totals of one kind of place.
    pub fn of(&self, kind: PlaceKind) -> Totals {
        let cells = &self.0[kind as usize];
        Totals {
            reads: cells.reads.load(Ordering::Relaxed),
            read_bytes: cells.read_bytes.load(Ordering::Relaxed),
            writes: cells.writes.load(Ordering::Relaxed),
            write_bytes: cells.write_bytes.load(Ordering::Relaxed),
            errors: cells.errors.load(Ordering::Relaxed),
        }
    }

    /// The totals of all places together.
    pub fn all(&self) -> Totals {
        PlaceKind::ALL
            .iter()
            .map(|kind| self.of(*kind))
            .fold(Totals::default(), |sum, next| Totals {
                reads: sum.reads + next.reads,
                read_bytes: sum.read_bytes + next.read_bytes,
                writes: sum.writes + next.writes,
                write_bytes: sum.write_bytes + next.write_bytes,
                errors: sum.errors + next.errors,
            })
    }
}

/// Counts what passes through it, and reports each operation to `tracing` at its finest level.
pub struct Trace<M> {
    inner: M,
    counters: Counters,
    /// Kind and bytes of what is under way.
    under_way: HashMap<OpId, (PlaceKind, usize)>,
}

impl<M: Medium> Trace<M> {
    /// Around a medium.
    pub fn new(inner: M) -> Self {
        Self {
            inner,
            counters: Counters::default(),
            under_way: HashMap::new(),
        }
    }

    /// Its counters, to keep.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }
}

impl<M: Medium> Medium for Trace<M> {
    fn set_geometry(&mut self, geometry: Geometry) {
        self.inner.set_geometry(geometry);
    }

    fn size_bytes(&self) -> io::Result<u64> {
        self.inner.size_bytes()
    }

    fn submit(&mut self, id: OpId, op: Op) {
        let (place, units) = match &op {
            Op::Read { place, buf } => (place, buf.units()),
            Op::Write { place, units, .. } => (place, *units),
        };
        tracing::trace!(id = id.0, ?op, "submitted");
        self.under_way
            .insert(id, (PlaceKind::of(place), units * UNIT_BYTES));
        self.inner.submit(id, op);
    }

    fn kick(&mut self) {
        self.inner.kick();
    }

    fn poll(&mut self) -> Option<Completion> {
        let completion = self.inner.poll()?;
        if let Some((kind, bytes)) = self.under_way.remove(&completion.id) {
            let cells = &self.counters.0[kind as usize];
            let (count, sum) = match completion.buf {
                Some(_) => (&cells.reads, &cells.read_bytes),
                None => (&cells.writes, &cells.write_bytes),
            };
            count.fetch_add(1, Ordering::Relaxed);
            match &completion.result {
                Ok(()) => sum.fetch_add(bytes as u64, Ordering::Relaxed),
                Err(_) => cells.errors.fetch_add(1, Ordering::Relaxed),
            };
            tracing::trace!(id = completion.id.0, ?kind, result = ?completion.result, "completed");
        }
        Some(completion)
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.wait_fd()
    }

    fn set_inline(&mut self, inline: bool) {
        self.inner.set_inline(inline);
    }

    fn is_inline(&self) -> bool {
        self.inner.is_inline()
    }

    fn run_bytes(&self) -> usize {
        self.inner.run_bytes()
    }

    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn lock_seat(&mut self, seat: SeatId) -> io::Result<SeatLock> {
        self.inner.lock_seat(seat)
    }

    fn unlock_seat(&mut self, seat: SeatId) {
        self.inner.unlock_seat(seat);
    }

    fn describe(&self) -> String {
        format!("{}, traced", self.inner.describe())
    }
}

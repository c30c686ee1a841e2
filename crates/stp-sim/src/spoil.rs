//! Spoiling: what befalls the volume's bytes, and what mutations do to writes on their way.
//!
//! - A picture of the volume is of one moment; what comes back is from that moment, all of it or one seat's.

use std::sync::Arc;

use stp_format::{Place, SeatId, UNIT_BYTES, UnitBuf};

use crate::disk::{Disk, PIECE_BYTES};
use crate::mutation::Mutation;

/// Units that a storage of larger blocks reads, changes and writes together.
const BLOCK_UNITS: u64 = 4;

impl Disk {
    /// Spoils a piece of a record, table or slot; of records and tables always the same copy, so that
    /// one stays whole, unless it may strike `anywhere`.
    pub(crate) fn rot(&mut self, anywhere: bool) {
        let seat = SeatId(self.rng.below(u64::from(self.geometry.seats)) as u16);
        let copy = match anywhere {
            true => self.rng.below(2) as u8,
            false => (seat.0 & 1) as u8,
        };
        let place = match self.rng.below(3) {
            0 => Place::Seat { seat, copy },
            1 => Place::Table {
                seat,
                copy,
                unit: 0,
            },
            _ => {
                let extent = self.rng.below(u64::from(self.geometry.extents)) as u16;
                Place::Slot {
                    seat,
                    ring: self.geometry.ring(extent, 1),
                    slot: self.rng.below(4) as u32,
                    skip: 0,
                }
            }
        };
        let Some(offset) = self.geometry.offset(place, 1) else {
            return;
        };
        self.figures.fault("bit rot");
        self.spoiled_at = Some(self.now);
        self.note(offset ^ 0x707);
        let start = offset as usize;
        match self.rng.below(3) {
            0 => {
                let at = start + self.rng.below(UNIT_BYTES as u64) as usize;
                self.bytes[at] ^= 1 << self.rng.below(8);
            }
            1 => {
                let at = start + self.rng.below(8) as usize * PIECE_BYTES;
                let garbage = self.rng.next();
                crate::pattern::fill(garbage, 0, &mut self.bytes[at..at + PIECE_BYTES]);
            }
            _ => {
                let garbage = self.rng.next();
                crate::pattern::fill(garbage, 0, &mut self.bytes[start..start + UNIT_BYTES]);
            }
        }
    }

    /// Somewhere on the volume, with room for so many units.
    pub(crate) fn elsewhere(&mut self, units: usize) -> u64 {
        let all = self.bytes.len() / UNIT_BYTES;
        let last = all.saturating_sub(units) as u64;
        self.rng.below(last + 1) * UNIT_BYTES as u64
    }

    /// Where a misdirected write lands: mostly in some seat's rings, sometimes, if it is no longer than one, on the
    /// copy of a record that also rots.
    pub(crate) fn elsewhere_to_spoil(&mut self, units: usize) -> u64 {
        let seat = SeatId(self.rng.below(u64::from(self.geometry.seats)) as u16);
        let copy = (seat.0 & 1) as u8;
        let record = Place::Seat { seat, copy };
        if units <= usize::from(self.geometry.record_units)
            && self.rng.percent(10)
            && let Some(offset) = self.geometry.offset(record, units)
        {
            return offset;
        }
        let ring = self.geometry.ring(0, self.geometry.extents);
        let slots = self.geometry.ring_slots(ring);
        let slot = self.rng.below(u64::from(slots)) as u32;
        let skip = 0;
        let place = Place::Slot {
            seat,
            ring,
            slot,
            skip,
        };
        self.geometry
            .offset(place, units)
            .unwrap_or_else(|| self.elsewhere(units))
    }

    /// Takes a picture of the volume, or brings back what the last one shows: everything, a seat's records, or all
    /// that one seat holds.
    pub(crate) fn roll_back(&mut self) {
        let Some(picture) = self.picture.take() else {
            self.picture = Some(self.bytes.clone());
            return;
        };
        let seat = SeatId(self.rng.below(u64::from(self.geometry.seats)) as u16);
        let record = u64::from(self.geometry.record_units) * UNIT_BYTES as u64;
        let copy = self.rng.below(2) as u8;
        let start = |copy| {
            self.geometry
                .offset(Place::Seat { seat, copy }, 1)
                .unwrap_or_default()
        };
        let (class, from, to) = match self.rng.below(3) {
            0 => ("volume goes back", 0, self.bytes.len() as u64),
            1 => ("record goes back", start(copy), start(copy) + record),
            _ => (
                "both copies of a record go back",
                start(0),
                start(0) + 2 * record,
            ),
        };
        self.figures.fault(class);
        self.spoiled_at = Some(self.now);
        self.note(from ^ 0x0dd);
        let range = from as usize..to as usize;
        self.bytes[range.clone()].copy_from_slice(&picture[range]);
    }

    /// The volume ends earlier: mostly somewhere in the rings, sometimes anywhere. What stood behind is lost.
    pub(crate) fn shrink(&mut self) {
        let rings = self.geometry.ring(0, self.geometry.extents);
        let place = Place::Slot {
            seat: SeatId(0),
            ring: rings,
            slot: 0,
            skip: 0,
        };
        let first = match self.rng.percent(80) {
            true => self.geometry.offset(place, 1).unwrap_or_default(),
            false => 0,
        };
        let units = (self.bytes.len() as u64 - first) / UNIT_BYTES as u64;
        let end = first + self.rng.below(units) * UNIT_BYTES as u64;
        self.figures.fault("volume shrinks");
        self.spoiled_at = Some(self.now);
        self.note(end ^ 0x54);
        self.ends_at = end;
        self.bytes[end as usize..].fill(0);
    }

    /// The volume has its size again.
    pub(crate) fn grow(&mut self) {
        self.ends_at = u64::MAX;
    }

    /// What lies in one block of a larger size with what is written, as it is now: it is put back with it.
    pub(crate) fn neighbours(&self, offset: u64, length: usize) -> Vec<(u64, Arc<UnitBuf>)> {
        let block = BLOCK_UNITS * UNIT_BYTES as u64;
        let end = offset + length as u64;
        let (first, last) = (offset / block * block, end.div_ceil(block) * block);
        let ranges = [(first, offset), (end, last.min(self.bytes.len() as u64))];
        let beside = ranges.into_iter().filter(|(from, to)| from < to);
        beside
            .map(|(from, to)| {
                let old = &self.bytes[from as usize..to as usize];
                let mut copy = UnitBuf::zeroed(UnitBuf::units_for(old.len()));
                copy.bytes_mut()[..old.len()].copy_from_slice(old);
                (from, Arc::new(copy))
            })
            .collect()
    }

    /// What a mutation makes of a write.
    pub(crate) fn mutated(
        &mut self,
        handle: usize,
        place: Place,
        data: Arc<UnitBuf>,
        units: usize,
    ) -> (Place, Arc<UnitBuf>) {
        let ripe = self.written > 500;
        let Some(mutation) = self.mutation.filter(|_| ripe) else {
            return (place, data);
        };
        let seats = self.geometry.seats;
        match (mutation, place) {
            (
                Mutation::ForeignWrite,
                Place::Slot {
                    seat,
                    ring,
                    slot,
                    skip,
                },
            ) => {
                let seat = SeatId((seat.0 + 1) % seats);
                (
                    Place::Slot {
                        seat,
                        ring,
                        slot,
                        skip,
                    },
                    data,
                )
            }
            (
                Mutation::WrongSlot,
                Place::Slot {
                    seat,
                    ring,
                    slot,
                    skip,
                },
            ) => {
                let slot = (slot + 1) % self.geometry.ring_slots(ring);
                (
                    Place::Slot {
                        seat,
                        ring,
                        slot,
                        skip,
                    },
                    data,
                )
            }
            (Mutation::SegmentChanged, Place::Slot { .. }) => {
                // The bytes behind the end of the segment's last frame count too.
                let mut copy = UnitBuf::zeroed(data.units());
                copy.bytes_mut().copy_from_slice(data.bytes());
                let last = units * UNIT_BYTES - 1;
                copy.bytes_mut()[last] ^= self.written as u8 | 1;
                (place, Arc::new(copy))
            }
            (Mutation::RecordAgain, Place::Seat { seat, .. }) => {
                let again = self.handles[handle].last_record.clone();
                (
                    place,
                    again
                        .filter(|_| self.handles[handle].seat == Some(seat))
                        .unwrap_or(data),
                )
            }
            _ => (place, data),
        }
    }
}

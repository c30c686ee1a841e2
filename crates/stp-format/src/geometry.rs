//! Where everything lies: the one file with offset arithmetic.
//!
//! ```text
//! unit 0            superblock, copy 0
//! unit 16           superblock, copy 1
//! unit 32           seat directory: per seat two copies of its record, side by side
//! next multiple     seat areas, one after the other: socket table (two copies), extents
//! of an extent
//! ```
//!
//! - A [`Place`] names what is meant, not a byte: a medium that has no bytes in a row maps it its own way.
//! - Every place but the superblock and the directory as a whole belongs to one seat ([`Place::owner`]).
//! - Nothing outside `0..size_bytes` has an offset.

use crate::ids::SeatId;
use crate::unit::UNIT_BYTES;
use core::fmt;

/// Units between the two copies of the superblock: a boot loader or a partition table written over
/// the front of a disk leaves the second copy whole.
const SUPERBLOCK_COPY_UNITS: u64 = 16;
/// First unit of the seat directory.
const DIRECTORY_UNIT: u64 = 32;
/// Bytes of a seat record before its list of links; see `seat.rs`.
pub const SEAT_RECORD_HEAD_BYTES: usize = 1536;
/// Bytes of one entry in a seat record's list of links.
pub const LINK_ENTRY_BYTES: usize = 48;
/// Most seats that a volume can have: the directory is read as one piece, many times a second.
pub const SEATS_MAX: u16 = 128;
/// Fewest seats that make sense: two systems.
pub const SEATS_MIN: u16 = 2;
/// Socket control blocks in one unit of a socket table.
pub const SCBS_PER_UNIT: usize = 31;
/// Units of one copy of the socket table at most: 3720 sockets a seat.
const TABLE_UNITS_MAX: u64 = 120;
/// Part of a seat's area that its table may take, both copies together.
const TABLE_SHARE: u64 = 12;
/// Units of an extent where space allows: 256 KiB.
const EXTENT_UNITS_MAX: u64 = 64;
/// Units of the smallest extent: four slots of one unit.
const EXTENT_UNITS_MIN: u64 = 4;
/// Slots of a ring at the least.
pub const RING_SLOTS_MIN: u32 = 4;
/// Units of a slot at the most: 256 KiB.
pub const SLOT_UNITS_MAX: u32 = 64;

/// Something on a volume that is read or written as one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A copy (0 or 1) of the superblock; one unit.
    Superblock {
        /// Which copy.
        copy: u8,
    },
    /// The seat records of a run of seats, both copies of each. Read only.
    Directory {
        /// The first seat.
        first: SeatId,
    },
    /// A copy (0 or 1) of one seat's record.
    Seat {
        /// Whose.
        seat: SeatId,
        /// Which copy.
        copy: u8,
    },
    /// Units of a copy (0 or 1) of a seat's socket table.
    Table {
        /// Whose.
        seat: SeatId,
        /// Which copy.
        copy: u8,
        /// The first unit meant, counted within the copy.
        unit: u32,
    },
    /// A slot of a link ring.
    Slot {
        /// Whose ring.
        seat: SeatId,
        /// Where the ring is.
        ring: Ring,
        /// The slot's number in the ring.
        slot: u32,
        /// Units skipped at the slot's front.
        skip: u32,
    },
}

impl Place {
    /// The only seat that may write here; `None` where no node ever writes after format.
    pub fn owner(&self) -> Option<SeatId> {
        match *self {
            Self::Superblock { .. } | Self::Directory { .. } => None,
            Self::Seat { seat, .. } | Self::Table { seat, .. } | Self::Slot { seat, .. } => {
                Some(seat)
            }
        }
    }
}

/// A run of extents in a seat's area, used as fixed slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ring {
    /// First extent.
    pub first_extent: u16,
    /// How many extents.
    pub extents: u16,
    /// Units of a slot.
    pub slot_units: u16,
}

/// A geometry that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeometryError {
    /// Fewer or more seats than a volume can have.
    Seats(u16),
    /// Too few bytes for so many seats; holds both figures.
    TooSmall {
        /// Bytes there are.
        found: u64,
        /// Bytes needed at the least.
        needed: u64,
    },
    /// The parts do not fit into the stated size, or are not what any version of this format plans.
    Inconsistent,
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seats(found) => {
                write!(
                    f,
                    "{found} seats asked for: {SEATS_MIN} to {SEATS_MAX} are possible"
                )
            }
            Self::TooSmall { found, needed } => write!(
                f,
                "{found} bytes are too few for this many seats: at least {needed} are needed"
            ),
            Self::Inconsistent => f.write_str("the parts of the volume do not fit together"),
        }
    }
}

impl core::error::Error for GeometryError {}

/// The measures of a volume; fixed at format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the whole volume; a multiple of the unit.
    pub size_bytes: u64,
    /// Number of seats.
    pub seats: u16,
    /// Units of one copy of a seat record.
    pub record_units: u16,
    /// Units of one copy of a socket table.
    pub table_units: u16,
    /// Units of an extent.
    pub extent_units: u16,
    /// Extents in a seat's area.
    pub extents: u16,
}

impl Geometry {
    /// The best use of `size_bytes` for `seats` seats.
    pub fn plan(size_bytes: u64, seats: u16) -> Result<Self, GeometryError> {
        if !(SEATS_MIN..=SEATS_MAX).contains(&seats) {
            return Err(GeometryError::Seats(seats));
        }
        let unit = UNIT_BYTES as u64;
        let record_bytes = SEAT_RECORD_HEAD_BYTES + LINK_ENTRY_BYTES * usize::from(seats);
        let record_units = record_bytes.div_ceil(UNIT_BYTES) as u16;
        let head_units = DIRECTORY_UNIT + u64::from(seats) * 2 * u64::from(record_units);
        // Every other seat can always get a ring of one extent.
        let extents_min = u64::from(seats - 1);
        let area_min = 2 + extents_min * EXTENT_UNITS_MIN;
        // Seat areas start at a multiple of the extent, which is at most EXTENT_UNITS_MAX.
        let needed =
            (head_units.next_multiple_of(EXTENT_UNITS_MIN) + u64::from(seats) * area_min) * unit;
        let too_small = GeometryError::TooSmall {
            found: size_bytes,
            needed,
        };

        let mut extent_units = EXTENT_UNITS_MAX;
        while extent_units >= EXTENT_UNITS_MIN {
            let first = head_units.next_multiple_of(extent_units);
            let area = (size_bytes / unit).saturating_sub(first) / u64::from(seats);
            let spare = area.saturating_sub(extents_min * extent_units) / 2;
            let table_units = (area / (2 * TABLE_SHARE))
                .min(spare)
                .clamp(1, TABLE_UNITS_MAX);
            let extents =
                (area.saturating_sub(2 * table_units) / extent_units).min(u64::from(u16::MAX));
            // Below three times the least, smaller extents share the space out better.
            if extents >= 3 * extents_min
                || (extent_units == EXTENT_UNITS_MIN && extents >= extents_min)
            {
                let geometry = Self {
                    size_bytes: size_bytes / unit * unit,
                    seats,
                    record_units,
                    table_units: table_units as u16,
                    extent_units: extent_units as u16,
                    extents: extents as u16,
                };
                return geometry.validated();
            }
            extent_units /= 2;
        }
        Err(too_small)
    }

    /// Itself, if its parts lie one behind the other within its size.
    pub fn validated(self) -> Result<Self, GeometryError> {
        let unit = UNIT_BYTES as u64;
        if !(SEATS_MIN..=SEATS_MAX).contains(&self.seats) {
            return Err(GeometryError::Seats(self.seats));
        }
        let record_bytes = SEAT_RECORD_HEAD_BYTES + LINK_ENTRY_BYTES * usize::from(self.seats);
        let sane = self.size_bytes.is_multiple_of(unit)
            && usize::from(self.record_units) == record_bytes.div_ceil(UNIT_BYTES)
            && (1..=TABLE_UNITS_MAX).contains(&u64::from(self.table_units))
            && u64::from(self.extent_units).is_power_of_two()
            && (EXTENT_UNITS_MIN..=EXTENT_UNITS_MAX).contains(&u64::from(self.extent_units))
            && self.extents >= self.seats - 1;
        if !sane {
            return Err(GeometryError::Inconsistent);
        }
        let needed = self.area_unit(SeatId(self.seats)) * unit;
        if needed > self.size_bytes {
            return Err(GeometryError::TooSmall {
                found: self.size_bytes,
                needed,
            });
        }
        Ok(self)
    }

    /// Units of the directory's part for `seats` seats.
    pub fn directory_units(&self, seats: u16) -> usize {
        usize::from(seats) * 2 * usize::from(self.record_units)
    }

    /// Sockets that a seat's table holds.
    pub fn scbs(&self) -> usize {
        usize::from(self.table_units) * SCBS_PER_UNIT
    }

    /// Bytes of all slots of a seat together: what a node can have under way.
    pub fn ring_bytes(&self) -> u64 {
        u64::from(self.extents) * u64::from(self.extent_units) * UNIT_BYTES as u64
    }

    /// A ring over a run of extents: slots as big as four of them fit, up to [`SLOT_UNITS_MAX`].
    pub fn ring(&self, first_extent: u16, extents: u16) -> Ring {
        let units = u32::from(extents) * u32::from(self.extent_units);
        let slot_units = (units / RING_SLOTS_MIN).clamp(1, SLOT_UNITS_MAX) as u16;
        Ring {
            first_extent,
            extents,
            slot_units,
        }
    }

    /// Number of slots of a ring.
    pub fn ring_slots(&self, ring: Ring) -> u32 {
        u32::from(ring.extents) * u32::from(self.extent_units) / u32::from(ring.slot_units.max(1))
    }

    /// Whether a ring that a record names lies within a seat's area.
    pub fn holds(&self, ring: Ring) -> bool {
        ring.extents > 0
            && ring.slot_units > 0
            && u32::from(ring.first_extent) + u32::from(ring.extents) <= u32::from(self.extents)
            && u32::from(ring.slot_units) <= SLOT_UNITS_MAX
            && self.ring_has(ring, RING_SLOTS_MIN - 1)
    }

    /// Whether a ring has the slot with this number: without the division, which every transfer would pay for.
    fn ring_has(&self, ring: Ring, slot: u32) -> bool {
        let units = u64::from(ring.extents) * u64::from(self.extent_units);
        (u64::from(slot) + 1) * u64::from(ring.slot_units) <= units
    }

    /// The byte offset of `units` units at `place`; `None` if any of them lies outside that place's bounds.
    pub fn offset(&self, place: Place, units: usize) -> Option<u64> {
        let units = units as u64;
        let (start, room) = match place {
            Place::Superblock { copy } => (u64::from(self.copy(copy)?) * SUPERBLOCK_COPY_UNITS, 1),
            Place::Directory { first } => {
                let seat = self.seat(first)?;
                (
                    self.record_unit(seat, 0),
                    self.directory_units(self.seats - first.0) as u64,
                )
            }
            Place::Seat { seat, copy } => (
                self.record_unit(self.seat(seat)?, self.copy(copy)?),
                u64::from(self.record_units),
            ),
            Place::Table { seat, copy, unit } => {
                let table = u64::from(self.table_units);
                let start = self.area_unit(self.seat(seat)?) + u64::from(self.copy(copy)?) * table;
                (start + u64::from(unit), table.checked_sub(u64::from(unit))?)
            }
            Place::Slot {
                seat,
                ring,
                slot,
                skip,
            } => {
                let seat = self.seat(seat)?;
                if !self.holds(ring) || !self.ring_has(ring, slot) {
                    return None;
                }
                let extent = u64::from(ring.first_extent) * u64::from(self.extent_units);
                let slot_units = u64::from(ring.slot_units);
                (
                    self.area_unit(seat)
                        + 2 * u64::from(self.table_units)
                        + extent
                        + u64::from(slot) * slot_units
                        + u64::from(skip),
                    slot_units.checked_sub(u64::from(skip))?,
                )
            }
        };
        (units <= room).then(|| start * UNIT_BYTES as u64)
    }

    /// Where a copy of the superblock lies, on every volume of any geometry.
    pub fn superblock_offset(copy: u8) -> u64 {
        u64::from(copy.min(1)) * SUPERBLOCK_COPY_UNITS * UNIT_BYTES as u64
    }

    fn seat(&self, seat: SeatId) -> Option<SeatId> {
        (seat.0 < self.seats).then_some(seat)
    }

    fn copy(&self, copy: u8) -> Option<u8> {
        (copy < 2).then_some(copy)
    }

    fn record_unit(&self, seat: SeatId, copy: u8) -> u64 {
        DIRECTORY_UNIT + (u64::from(seat.0) * 2 + u64::from(copy)) * u64::from(self.record_units)
    }

    /// First unit of a seat's area; for the seat behind the last, the unit behind the volume.
    fn area_unit(&self, seat: SeatId) -> u64 {
        let head = DIRECTORY_UNIT + u64::from(self.seats) * 2 * u64::from(self.record_units);
        let extents = u64::from(self.extents) * u64::from(self.extent_units);
        let area = 2 * u64::from(self.table_units) + extents;
        head.next_multiple_of(u64::from(self.extent_units)) + u64::from(seat.0) * area
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_volume_gives_every_pair_a_ring_and_three_links_four_mebibytes() {
        let geometry = Geometry::plan(256 << 20, 16).unwrap();
        assert_eq!(usize::from(geometry.extent_units) * UNIT_BYTES, 256 << 10);
        assert!(geometry.extents >= 3 * 16 + 12, "{geometry:?}");
        assert!(geometry.scbs() >= 3700, "{geometry:?}");
    }

    #[test]
    fn every_plan_is_consistent_and_the_smallest_is_named() {
        for seats in [2, 3, 16, 64, 128] {
            let Err(GeometryError::TooSmall { needed, .. }) = Geometry::plan(0, seats) else {
                panic!("an empty volume was planned for {seats} seats");
            };
            assert!(
                Geometry::plan(needed, seats).is_ok(),
                "{seats} seats in {needed} bytes"
            );
            for size in (needed..64 * needed).step_by(needed as usize / 3) {
                let geometry = Geometry::plan(size, seats).unwrap();
                assert_eq!(geometry.validated(), Ok(geometry));
            }
        }
    }

    #[test]
    fn places_of_different_owners_never_overlap() {
        let geometry = Geometry::plan(2 << 20, 3).unwrap();
        let mut owner_of_unit = alloc::collections::BTreeMap::new();
        let mut claim = |place: Place, units: usize, owner: u32| {
            let first = geometry.offset(place, units).unwrap() / UNIT_BYTES as u64;
            for unit in first..first + units as u64 {
                assert_eq!(
                    *owner_of_unit.entry(unit).or_insert(owner),
                    owner,
                    "unit {unit}"
                );
                assert!(unit < geometry.size_bytes / UNIT_BYTES as u64);
            }
        };
        for copy in 0..2 {
            claim(Place::Superblock { copy }, 1, 100);
            for seat in 0..3 {
                let owner = u32::from(seat);
                let seat = SeatId(seat);
                claim(
                    Place::Seat { seat, copy },
                    geometry.record_units.into(),
                    owner,
                );
                claim(
                    Place::Table {
                        seat,
                        copy,
                        unit: 0,
                    },
                    geometry.table_units.into(),
                    owner,
                );
                let ring = geometry.ring(0, geometry.extents);
                for slot in 0..geometry.ring_slots(ring) {
                    claim(
                        Place::Slot {
                            seat,
                            ring,
                            slot,
                            skip: 0,
                        },
                        ring.slot_units.into(),
                        owner,
                    );
                }
            }
        }
    }

    #[test]
    fn nothing_outside_its_place_has_an_offset() {
        let geometry = Geometry::plan(1 << 20, 2).unwrap();
        let ring = geometry.ring(0, 2);
        let seat = SeatId(0);
        assert_eq!(geometry.offset(Place::Superblock { copy: 2 }, 1), None);
        assert_eq!(geometry.offset(Place::Superblock { copy: 0 }, 2), None);
        assert_eq!(
            geometry.offset(
                Place::Seat {
                    seat: SeatId(2),
                    copy: 0
                },
                1
            ),
            None
        );
        let slots = geometry.ring_slots(ring);
        assert_eq!(
            geometry.offset(
                Place::Slot {
                    seat,
                    ring,
                    slot: slots,
                    skip: 0
                },
                1
            ),
            None
        );
        let skip = u32::from(ring.slot_units);
        assert_eq!(
            geometry.offset(
                Place::Slot {
                    seat,
                    ring,
                    slot: 0,
                    skip
                },
                1
            ),
            None
        );
        let beyond = Ring {
            first_extent: geometry.extents,
            ..ring
        };
        assert_eq!(
            geometry.offset(
                Place::Slot {
                    seat,
                    ring: beyond,
                    slot: 0,
                    skip: 0
                },
                1
            ),
            None
        );
    }
}

//! The unit: the smallest piece of a volume that is read or written.
//!
//! - A unit is 4096 bytes at a multiple of 4096: no two writers ever share a physical sector.
//! - A [`UnitBuf`] is aligned to its unit, so that it can go to storage without a copy.

use alloc::vec::Vec;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Bytes in a unit.
pub const UNIT_BYTES: usize = 4096;

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Unit([u8; UNIT_BYTES]);

const _: () = assert!(size_of::<Unit>() == UNIT_BYTES && align_of::<Unit>() == UNIT_BYTES);

/// A whole number of units, aligned for direct I/O.
#[derive(Clone)]
pub struct UnitBuf {
    units: Vec<Unit>,
}

impl UnitBuf {
    /// `units` units of zeros.
    pub fn zeroed(units: usize) -> Self {
        Self {
            // A failed allocation aborts here as it does for every `Vec`.
            units: Unit::new_vec_zeroed(units).unwrap_or_default(),
        }
    }

    /// The fewest units that hold `bytes` bytes, at least one.
    pub fn units_for(bytes: usize) -> usize {
        bytes.div_ceil(UNIT_BYTES).max(1)
    }

    /// Length in units.
    pub fn units(&self) -> usize {
        self.units.len()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.units.len() * UNIT_BYTES
    }

    /// Whether it holds no unit at all.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        self.units.as_slice().as_bytes()
    }

    /// All bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.units.as_mut_slice().as_mut_bytes()
    }

    /// Drops the units behind the first `units`; capacity is kept.
    pub fn truncate(&mut self, units: usize) {
        self.units.truncate(units);
    }
}

impl core::fmt::Debug for UnitBuf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "UnitBuf({} units)", self.units())
    }
}

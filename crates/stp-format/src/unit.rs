//! The unit: the smallest piece of a volume that is read or written.
//!
//! - A unit is 4096 bytes at a multiple of 4096: no two writers ever share a physical sector.
//! - A [`UnitBuf`] is aligned to its unit, so that it can go to storage without a copy. It lies on the heap, or in memory
//!   that somebody lends.

use alloc::vec::Vec;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Bytes in a unit.
pub const UNIT_BYTES: usize = 4096;

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Unit([u8; UNIT_BYTES]);

const _: () = assert!(size_of::<Unit>() == UNIT_BYTES && align_of::<Unit>() == UNIT_BYTES);

/// Whose memory buffers lie in that are not on the heap.
pub trait Lender: Sync {
    /// A buffer is not used any more.
    fn take_back(&self, memory: &'static mut [u8]);
}

/// Memory that goes back to whom it came from.
struct Lent {
    units: &'static mut [Unit],
    lender: &'static dyn Lender,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let units = core::mem::take(&mut self.units);
        self.lender.take_back(units.as_mut_bytes());
    }
}

enum Memory {
    Heap(Vec<Unit>),
    Lent(Lent),
}

/// A whole number of units, aligned for direct I/O.
pub struct UnitBuf {
    memory: Memory,
}

impl UnitBuf {
    /// `units` units of zeros.
    pub fn zeroed(units: usize) -> Self {
        // A failed allocation aborts here as it does for every `Vec`.
        let heap = Unit::new_vec_zeroed(units).unwrap_or_default();
        let memory = Memory::Heap(heap);
        Self { memory }
    }

    /// A buffer in memory of somebody else's, with whatever stands there; `None` if that is not a whole number of units,
    /// aligned to one.
    pub fn lent(memory: &'static mut [u8], lender: &'static dyn Lender) -> Option<Self> {
        let units = <[Unit]>::mut_from_bytes(memory).ok()?;
        let memory = Memory::Lent(Lent { units, lender });
        Some(Self { memory })
    }

    /// The fewest units that hold `bytes` bytes, at least one.
    pub fn units_for(bytes: usize) -> usize {
        bytes.div_ceil(UNIT_BYTES).max(1)
    }

    fn as_units(&self) -> &[Unit] {
        match &self.memory {
            Memory::Heap(units) => units,
            Memory::Lent(lent) => lent.units,
        }
    }

    fn as_units_mut(&mut self) -> &mut [Unit] {
        match &mut self.memory {
            Memory::Heap(units) => units,
            Memory::Lent(lent) => lent.units,
        }
    }

    /// Length in units.
    pub fn units(&self) -> usize {
        self.as_units().len()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.units() * UNIT_BYTES
    }

    /// Whether it holds no unit at all.
    pub fn is_empty(&self) -> bool {
        self.units() == 0
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        self.as_units().as_bytes()
    }

    /// All bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.as_units_mut().as_mut_bytes()
    }
}

/// A copy lies on the heap.
impl Clone for UnitBuf {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.units());
        copy.bytes_mut().copy_from_slice(self.bytes());
        copy
    }
}

impl core::fmt::Debug for UnitBuf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "UnitBuf({} units)", self.units())
    }
}

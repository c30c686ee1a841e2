//! Large buffers side by side in huge pages: for the storage such a buffer is one piece instead of sixty-four, which saves a
//! third of what its transfer costs.
//!
//! - A slab is as large as a huge page and is cut into buffers of one size. It is never given back to the system, but its
//!   buffers are used again, by every engine of the process: there are as many as were ever used at the same time.
//! - Where the system has no huge pages to give, a slab is ordinary memory.
//! - A process forked while another thread was in here finds it locked for ever: then buffers are on the heap.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, TryLockError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use stp_format::{Lender, UNIT_BYTES, UnitBuf};

const SLAB_BYTES: usize = 2 << 20;
/// Smaller buffers are on the heap.
const BUFFER_BYTES_MIN: usize = 128 << 10;
/// Tries for a lock that everybody holds for some microseconds at the most.
const TRIES_MAX: u32 = 10_000;

/// Buffers that nobody uses, by their size.
type Free = BTreeMap<usize, Vec<&'static mut [u8]>>;

struct Slabs {
    free: Mutex<Free>,
}

static SLABS: Slabs = Slabs {
    free: Mutex::new(BTreeMap::new()),
};

/// A buffer of so many units, with whatever stands in it.
pub(crate) fn buffer(units: usize) -> UnitBuf {
    let bytes = units * UNIT_BYTES;
    let suits = bytes >= BUFFER_BYTES_MIN && SLAB_BYTES.is_multiple_of(bytes);
    let memory = if suits { SLABS.take(bytes) } else { None };
    let lent = memory.and_then(|memory| UnitBuf::lent(memory, &SLABS));
    lent.unwrap_or_else(|| UnitBuf::zeroed(units))
}

impl Slabs {
    fn free(&self) -> Option<MutexGuard<'_, Free>> {
        for _ in 0..TRIES_MAX {
            match self.free.try_lock() {
                Ok(free) => return Some(free),
                Err(TryLockError::Poisoned(free)) => return Some(free.into_inner()),
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
        None
    }

    fn take(&self, bytes: usize) -> Option<&'static mut [u8]> {
        let mut free = self.free()?;
        let free = free.entry(bytes).or_default();
        if free.is_empty() {
            free.extend(slab()?.chunks_exact_mut(bytes));
        }
        free.pop()
    }
}

impl Lender for Slabs {
    fn take_back(&self, memory: &'static mut [u8]) {
        if let Some(mut free) = self.free() {
            free.entry(memory.len()).or_default().push(memory);
        }
    }
}

/// A new slab; `None` if there is no memory.
fn slab() -> Option<&'static mut [u8]> {
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // Twice as much as is used has a place for it that begins where a huge page does; what is never touched costs nothing.
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let start = unsafe { mmap_anonymous(null_mut(), 2 * SLAB_BYTES, prot, flags) }.ok()?;
    let start = start.cast::<u8>();
    let before = start.align_offset(SLAB_BYTES);
    if before > SLAB_BYTES {
        return None;
    }
    // SAFETY: the aligned part of the new mapping, all zeros, which nobody else knows of and which is never unmapped. The
    // advice changes nothing of that.
    Some(unsafe {
        let slab = start.add(before);
        let _ = madvise(slab.cast(), SLAB_BYTES, Advice::LinuxHugepage);
        std::slice::from_raw_parts_mut(slab, SLAB_BYTES)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_do_not_overlap_and_come_back() {
        let mut buffers: Vec<_> = (0..20).map(|_| buffer(64)).collect();
        for (number, buffer) in (0..).zip(&mut buffers) {
            assert_eq!(buffer.units(), 64);
            buffer.bytes_mut().fill(number);
        }
        for (number, buffer) in (0..).zip(&buffers) {
            assert!(buffer.bytes().iter().all(|byte| *byte == number));
        }
        drop(buffers);
        let free = SLABS.free().unwrap();
        assert!(free.get(&(64 * UNIT_BYTES)).map_or(0, Vec::len) >= 20);
    }

    #[test]
    fn odd_sizes_are_on_the_heap() {
        for units in [0, 1, 31, 33, 63, 513, 1024] {
            assert_eq!(buffer(units).units(), units);
        }
    }
}

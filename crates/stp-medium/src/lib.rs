//! The storage under a volume: the only floor that reads and writes it.
//!
//! - A [`Medium`] moves whole units between a [`Place`] and a buffer that it owns meanwhile; it never
//!   looks inside them.
//! - Submitting never blocks; completions come back by [`Medium::poll`], in any order.
//! - A read returns what some write put there, whole or in pieces, now or a while ago: the floors above
//!   validate, order and repeat.
//! - `unsafe` lives in `uring.rs`, `mapped.rs`, `slab.rs` and `sys.rs` only.
//!
//! [`open`] gives the medium for a [`VolumeSpec`]; [`local`] is the in-process reference; [`trace`] and
//! [`fault`] are mediums around mediums; [`conformance`] is what all of them pass.
#![deny(unsafe_code)]

pub mod bare;
pub mod conformance;
mod direct;
pub mod fault;
pub mod local;
mod lock;
mod mapped;
mod pool;
pub mod signature;
mod slab;
mod spec;
mod storage;
mod sys;
pub mod trace;
mod uring;
mod words;

pub use mapped::is_device_memory;
pub use spec::{Access, IoChoice, Kind, OpenError, OpenOptions, SpecError, VolumeSpec, open};

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use stp_format::{Geometry, Place, Ring, SeatId, UNIT_BYTES, UnitBuf};

/// Atomics under one name: a test puts others in their place.
mod sync {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
}

/// Ties a completion to its operation; the caller chooses it, unique among those under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// One transfer.
#[derive(Debug)]
pub enum Op {
    /// Fills the whole buffer from a place.
    Read {
        /// From where.
        place: Place,
        /// Its length says how much.
        buf: UnitBuf,
    },
    /// Writes the first `units` units of a buffer to a place. The buffer is shared because a segment is
    /// kept until it is acknowledged.
    Write {
        /// To where.
        place: Place,
        /// The bytes; nobody changes them while the write is under way.
        data: Arc<UnitBuf>,
        /// How many units of `data`, from its front.
        units: usize,
        /// Complete only when the bytes would survive a loss of power (`O_DSYNC`, FUA).
        durable: bool,
    },
}

/// How a transfer ended.
#[derive(Debug)]
pub struct Completion {
    /// Which.
    pub id: OpId,
    /// A read's buffer, filled if `result` is good; `None` for a write.
    pub buf: Option<UnitBuf>,
    /// What happened. After an error the bytes on the volume are unknown: old, new, or mixed.
    pub result: std::io::Result<()>,
}

/// A storage object that several nodes share.
pub trait Medium: Send {
    /// Tells the medium the volume's measures; before that only [`Place::Superblock`] can be reached.
    fn set_geometry(&mut self, geometry: Geometry);

    /// Bytes of the storage object, as it says now.
    fn size_bytes(&self) -> std::io::Result<u64>;

    /// Takes an operation. What cannot even be started completes with an error; a place outside the
    /// volume completes with [`std::io::ErrorKind::InvalidInput`].
    fn submit(&mut self, id: OpId, op: Op);

    /// Hands everything submitted to the storage. Call once after a batch of [`Medium::submit`].
    fn kick(&mut self);

    /// As [`Medium::kick`], for a caller that has nothing to do before the first of what was submitted has ended: it may
    /// be kept for so long if that saves it from being woken up.
    fn kick_and_wait(&mut self, _longest: Duration) {
        self.kick();
    }

    /// The next finished operation, if there is one. Never blocks. Call it until it has none: operations
    /// beyond [`Medium::depth`] start when those before them were taken out.
    fn poll(&mut self) -> Option<Completion>;

    /// Readable when [`Medium::poll`] has something; `None` if operations complete within
    /// [`Medium::kick`].
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;

    /// From now on, or no longer, transfers are done by the thread that calls [`Medium::kick`], within that
    /// call, one after the other. For a thread that has nothing to do but wait for them: it saves handing over
    /// and waking up. What was submitted before goes on as it was. Nothing for a medium that has no choice.
    fn set_inline(&mut self, _inline: bool) {}

    /// Whether what is submitted now completes within [`Medium::kick`].
    fn is_inline(&self) -> bool {
        self.wait_fd().is_none()
    }

    /// Where buffers that go through here come from: memory that suits its transfers. Their content is whatever it was.
    fn buffers(&self) -> fn(usize) -> UnitBuf {
        UnitBuf::zeroed
    }

    /// The storage as memory, if that is what it is and all of it is there now. The answer is good for a moment only: ask
    /// again every millisecond at least.
    fn memory(&mut self) -> Option<Arc<dyn Memory>> {
        None
    }

    /// Transfers of the same kind to or from neighbouring places, handed over by one [`Medium::kick`], up to so many bytes
    /// together, cost no more than one; 0: each costs its own.
    fn run_bytes(&self) -> usize {
        0
    }

    /// Operations that it works on side by side; more are queued.
    fn depth(&self) -> usize;

    /// Tries to hold a seat for as long as the medium lives, by a lock that the storage keeps for all
    /// hosts, so that a taker need not wait out the longest write.
    fn lock_seat(&mut self, seat: SeatId) -> std::io::Result<SeatLock>;

    /// Lets go of a seat that [`Medium::lock_seat`] holds; nothing if it holds none.
    fn unlock_seat(&mut self, seat: SeatId);

    /// What it is, for people: `"file, O_DIRECT, io_uring"`.
    fn describe(&self) -> String;
}

impl<M: Medium + ?Sized> Medium for Box<M> {
    fn set_geometry(&mut self, geometry: Geometry) {
        (**self).set_geometry(geometry);
    }

    fn size_bytes(&self) -> std::io::Result<u64> {
        (**self).size_bytes()
    }

    fn submit(&mut self, id: OpId, op: Op) {
        (**self).submit(id, op);
    }

    fn kick(&mut self) {
        (**self).kick();
    }

    fn kick_and_wait(&mut self, longest: Duration) {
        (**self).kick_and_wait(longest);
    }

    fn poll(&mut self) -> Option<Completion> {
        (**self).poll()
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        (**self).wait_fd()
    }

    fn set_inline(&mut self, inline: bool) {
        (**self).set_inline(inline);
    }

    fn is_inline(&self) -> bool {
        (**self).is_inline()
    }

    fn buffers(&self) -> fn(usize) -> UnitBuf {
        (**self).buffers()
    }

    fn memory(&mut self) -> Option<Arc<dyn Memory>> {
        (**self).memory()
    }

    fn run_bytes(&self) -> usize {
        (**self).run_bytes()
    }

    fn depth(&self) -> usize {
        (**self).depth()
    }

    fn lock_seat(&mut self, seat: SeatId) -> std::io::Result<SeatLock> {
        (**self).lock_seat(seat)
    }

    fn unlock_seat(&mut self, seat: SeatId) {
        (**self).unlock_seat(seat);
    }

    fn describe(&self) -> String {
        (**self).describe()
    }
}

/// A storage that is memory: a transfer is a copy, of bytes instead of units, and is done when the call returns.
///
/// Lengths and positions are multiples of eight. What does not lie within the slot is
/// [`std::io::ErrorKind::InvalidInput`].
pub trait Memory: Send + Sync {
    /// Where a slot lies; `None` outside the volume, and for any other place.
    fn spot(&self, place: Place) -> Option<Spot>;

    /// A word of a slot, as others write it: to be looked at until it changes. `None` outside the slot.
    fn word(&self, spot: &Spot, at: usize) -> Option<&AtomicU64>;

    /// Copies from a slot, from its byte `at` on.
    fn read(&self, spot: &Spot, at: usize, into: &mut [u8]) -> std::io::Result<()>;

    /// The front of a slot will soon be written: whatever makes that fast may be done now. It changes nothing.
    fn prepare(&self, spot: &Spot, len: usize);

    /// Copies to the front of a slot. Whoever sees the word of [`stp_format::segment::SEGMENT_SEQ_AT`] sees all of it.
    fn write(&self, spot: &Spot, bytes: &[u8]) -> std::io::Result<()>;
}

/// A slot's place in memory: found once, used for each copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    seat: SeatId,
    ring: Ring,
    slot: u32,
    skip: u32,
    /// Slots of the ring.
    slots: u32,
    offset: u64,
    room_bytes: usize,
}

impl Spot {
    /// Where a slot lies on a volume of these measures.
    pub fn of(geometry: &Geometry, place: Place) -> Option<Self> {
        let Place::Slot {
            seat,
            ring,
            slot,
            skip,
        } = place
        else {
            return None;
        };
        let units = usize::from(ring.slot_units).checked_sub(skip as usize)?;
        Some(Self {
            seat,
            ring,
            slot,
            skip,
            slots: geometry.ring_slots(ring),
            offset: geometry.offset(place, units)?,
            room_bytes: units * UNIT_BYTES,
        })
    }

    /// Makes it the spot of `place`, if that is a slot of the same ring: cheaper than [`Spot::of`].
    pub fn step_to(&mut self, place: Place) -> bool {
        match place {
            Place::Slot {
                seat,
                ring,
                slot,
                skip,
            } if seat == self.seat
                && ring == self.ring
                && skip == self.skip
                && slot < self.slots =>
            {
                let stride = u64::from(ring.slot_units) * UNIT_BYTES as u64;
                let first = self.offset - u64::from(self.slot) * stride;
                self.offset = first + u64::from(slot) * stride;
                self.slot = slot;
                true
            }
            _ => false,
        }
    }

    /// Which slot.
    pub fn place(&self) -> Place {
        Place::Slot {
            seat: self.seat,
            ring: self.ring,
            slot: self.slot,
            skip: self.skip,
        }
    }

    /// The byte offset on the volume of `len` bytes of the slot from its byte `at` on, if they lie in it and are whole
    /// words.
    pub fn offset(&self, at: usize, len: usize) -> Option<u64> {
        let whole = (at | len).is_multiple_of(words::WORD_BYTES);
        let fits = at <= self.room_bytes && len <= self.room_bytes - at;
        (whole && fits).then(|| self.offset + at as u64)
    }
}

/// What came of [`Medium::lock_seat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeatLock {
    /// Held now, until the medium is dropped or its process dies.
    Held,
    /// Somebody else holds it: that node is alive.
    Busy,
    /// This storage has no locks that all hosts respect: use the timed claim.
    Unsupported,
}
